"""Loads the folders of --to=diffusers and draws from them, where there is no dimo_jax and no JAX.

python diffusers_driver.py FOLDER ... ; beside each lie FOLDER.call.json, the condition, and
FOLDER.npz, the start noise; it gets FOLDER.out.npz and FOLDER.said.json.
"""

# ruff: noqa: E402
import sys

for absent in ("jax", "jaxlib", "flax", "dimo_jax"):
    sys.modules[absent] = None

import torch_peers  # noqa: F401  beside this file, since there is no package to name

# isort: split

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline


def load(folder, **options):
    options |= {"trust_remote_code": True, "local_files_only": True}
    return DiffusionPipeline.from_pretrained(folder, **options)


def refusal(call, **options):
    try:
        call(**options)
    except ValueError as error:
        return str(error)
    return "nothing"


def random_starts(pipeline, num):
    """Ids to start from, and what the noise makes of embeddings of ones."""
    seen = []

    def logits_of(ids, perturb):
        seen.extend([ids, perturb(torch.ones(*ids.shape, 8))])
        return torch.zeros(*ids.shape, 3)

    names = ("generator", "latents", "noise", "gumbel")
    drawn = pipeline._tokens(logits_of, num, dict.fromkeys(names))
    return {"start": seen[0], "noisy": seen[1], "uniform": drawn}


def draw(folder):
    beside = folder.parent
    asked = json.loads((beside / f"{folder.name}.call.json").read_text())
    start = {k: torch.from_numpy(x) for k, x in np.load(beside / f"{folder.name}.npz").items()}
    latent = {"output_type": "latent"}
    pipeline = load(folder)
    found = {
        "tokens": pipeline(**asked, **start, **latent).images,
        "pixels": pipeline(**asked, **start, output_type="pt").images,
        **random_starts(pipeline, 500),
    }
    said = {
        "class": type(pipeline).__name__,
        "height": refusal(pipeline, **asked, height=17),
        "latents": refusal(pipeline, **asked, latents=start["latents"][:, 1:]),
        "generators": refusal(pipeline, **asked, generator=[torch.Generator()] * 5),
        "pil": [list(x.size) for x in pipeline(**asked).images],
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline(**asked, num_inference_steps=4, guidance_scale=7.5)
        pipeline(**asked, num_inference_steps=1, guidance_scale=1.0)
    said["warnings"] = [f"{Path(x.filename).name}: {x.message}" for x in caught]
    (name,) = asked
    if name == "class_labels":
        said["labels"] = refusal(pipeline, class_labels=[99])
    # With a generator for each image, the last one is the same alone.
    some = [torch.Generator().manual_seed(i) for i in range(len(asked[name]))]
    found["last"] = pipeline(**asked, generator=some, **latent).images[-1:]
    one = torch.Generator().manual_seed(len(asked[name]) - 1)
    found["alone"] = pipeline(asked[name][-1:], generator=one, **latent).images

    pipeline.save_pretrained(beside / f"{folder.name}.saved")
    found["reloaded"] = load(beside / f"{folder.name}.saved")(**asked, **start, **latent).images
    half = load(folder, torch_dtype=torch.float16)
    assert half.transformer.dtype == torch.float16
    found["half"] = half(**asked, **start, **latent).images
    found["half_pixels"] = half(**asked, **start, output_type="pt").images
    assert half.vqvae.dtype == torch.float16
    np.savez(beside / f"{folder.name}.out.npz", **{k: x.numpy() for k, x in found.items()})
    (beside / f"{folder.name}.said.json").write_text(json.dumps(said))


for given in sys.argv[1:]:
    draw(Path(given))
