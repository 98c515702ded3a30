"""The pipeline of --to=diffusers: its tokens and pixels are ours, where there is no JAX at all."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from dimo_jax import bundles, models, tokenizers
from dimo_jax.bundles import card
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_vocabulary, text_encoder
from dimo_jax.convert import to_diffusers
from dimo_jax.method.dimo import generate
from dimo_jax.models import clip
from dimo_jax.samplers import one_step
from tests.helpers import ROOT

# On one worker, which makes the fixtures once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("diffusers_pipeline")]

TEXT = {
    "name": "meissonic", "num_tokens": 16, "codebook_size": 11, "vocabulary": 15, "width": 32,
    "depth": 1, "single_depth": 1, "heads": 2, "mlp_dim": 128, "text_length": 12, "text_dim": 8,
    "pooled_dim": 6, "rope_dims": [4, 8, 4], "merge": True, "timestep": "ratio",
}  # fmt: skip
CLASSES = {
    "name": "maskgit", "num_tokens": 16, "codebook_size": 11, "num_classes": 5, "width": 32,
    "depth": 1, "heads": 4, "mlp_dim": 48, "dropout": 0.1, "predict_mask_id": True,
}  # fmt: skip
VQ_MODEL = {
    "name": "vq_model", "image_size": 8, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1,
    "z_channels": 4, "embed_dim": 6, "n_embed": 11,
}  # fmt: skip
VQGAN = {**VQ_MODEL, "name": "vqgan", "attn_levels": [1], "l2_codebook": False}
PATCHES = {"name": "patches", "image_size": 8, "channels": 3, "patch_size": 2, "codebook_size": 11}
ENCODER = {
    "name": "clip", "activation": "gelu", "projection": 6, "image": None,
    "text": {
        "vocabulary": 514, "context": 12, "width": 8, "depth": 2, "heads": 2, "mlp_dim": 12,
    },
}  # fmt: skip
SAMPLER = {"ratio": 0.5, "sigma": 0.3, "temperature": 1.3, "top_k": 0, "top_p": 1.0}
# Name -> network, tokenizer, changes of the sampler.
GENERATORS = {
    "text": (TEXT, VQ_MODEL, {"top_k": 4}),
    "imagenet": (CLASSES, VQGAN, {"ratio": [0.3, 0.8]}),
    "digits": ({**CLASSES, "predict_mask_id": False}, PATCHES, {"top_p": 0.7}),
}
MICRO = [16.0, 12.0, 0.0, 3.0, 5.5]
PROMPTS, LABELS = {"prompt": ["a red ball", "blue"]}, {"class_labels": [3, 0, 4]}


def random_params(init):
    """Norms and biases too; so large that the condition changes the tokens."""
    numbers = np.random.default_rng(0)

    def draw(path, x):
        name, shape = path[-1].key, x.shape
        if len(shape) == 1:
            return (0 if name == "bias" else 1) + 0.2 * numbers.normal(size=shape)
        return numbers.normal(size=shape) / (1 if "embedding" in name else shape[-2] ** 0.5)

    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(lambda p, x: draw(p, x).astype(np.float32), shapes)


def save(place, network, tokenizer, changes):
    built, codec = models.build(network), tokenizers.build(tokenizer)
    decoder = random_params(codec.init)
    inside = {}
    if network["name"] == "meissonic":
        params = jax.tree.map(lambda x: 3 * x, random_params(clip.build(ENCODER).init))
        merges = {"merges.txt": clip_vocabulary.to_text([])}
        inside["text_encoder"] = {"kind": "clip", "model": ENCODER, "params": params}
        inside["text_encoder"] |= {"attachments": merges}
    bundles.save(
        place, kind="generator", model=built.config, params=random_params(built.init),
        sampler={**SAMPLER, **changes}, tokenizer_params=decoder, inside=inside,
        tokenizer={"config": codec.config, "hash": tokenizers.fingerprint(codec, decoder)},
        provenance={"micro_conditions": MICRO},
    )  # fmt: skip
    return bundles.load(place)


def call_of(bundle):
    return LABELS if "num_classes" in bundle.model else PROMPTS


def expected_of(bundle, place):
    """Start noise as the pipeline takes it, and what our generator makes of it."""
    network, asked = bundle.build(), call_of(bundle)
    settings = one_step.settings_from(bundle.sampler, network)
    if "prompt" in asked:
        encoder = text_encoder.load_encoder(None, bundle.path)
        condition = encoder.conditions(network, 2, MICRO)(asked["prompt"])
    else:
        condition = np.asarray(asked["class_labels"], np.int32)

    def keys():
        return jax.random.split(jax.random.key(7), len(next(iter(asked.values()))))

    pairs = jax.vmap(lambda key: jax.random.split(key, 2))(keys())
    latents, noise_keys = generate.initial_state(pairs[:, 0], settings)
    size = (network.num_tokens, bundle.model["width"])
    noise = jax.vmap(lambda key: jax.random.normal(key, size))(noise_keys)
    size = (network.num_tokens, 11 + bool(bundle.model.get("predict_mask_id")))
    gumbel = jax.vmap(lambda key: jax.random.gumbel(key, size))(pairs[:, 1])
    start = {"latents": np.asarray(latents, np.int64), "noise": noise, "gumbel": gumbel}
    np.savez(place, **start)
    arguments = (bundle.params, keys(), condition)
    tokens = jax.jit(lambda *x: generate.generate(network.apply, *x, settings))(*arguments)
    tokenizer = bundles.load_tokenizer(bundle.path / "tokenizer", bundle)
    pixels = tokenizer.build().decode(tokenizer.params, tokens)
    return {"tokens": tokens, "pixels": np.moveaxis(pixels, -1, 1), "latents": latents}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """{name: (what is expected, what the pipeline drew, what it said, its folder)}."""
    root, expected = tmp_path_factory.mktemp("diffusers"), {}
    for name, parts in GENERATORS.items():
        bundle = save(root / "bundles" / name, *parts)
        expected[name] = expected_of(bundle, root / f"{name}.npz")
        (root / f"{name}.call.json").write_text(json.dumps(call_of(bundle)))
        to_diffusers.to_folder(bundle.path, root / name, lambda line: None)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1"}
    driver = [sys.executable, str(ROOT / "tests" / "helpers" / "diffusers_driver.py")]
    folders = [str(root / name) for name in GENERATORS]
    subprocess.run([*driver, *folders], check=True, cwd=root, env=environment, timeout=200)
    return {
        name: (
            expected[name],
            dict(np.load(root / f"{name}.out.npz")),
            json.loads((root / f"{name}.said.json").read_text()),
            root / name,
        )
        for name in GENERATORS
    }


@pytest.mark.parametrize("name", GENERATORS)
def test_tokens_and_pixels_are_ours_from_the_same_start(drawn, name):
    expected, found, _, _ = drawn[name]
    tokens = np.asarray(expected["tokens"])
    assert len({row.tobytes() for row in tokens}) == len(tokens) and len(np.unique(tokens)) > 3
    np.testing.assert_array_equal(found["tokens"], tokens)
    assert expected["pixels"].std() > 0.02
    np.testing.assert_allclose(found["pixels"], expected["pixels"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", GENERATORS)
def test_what_is_saved_loads_again_and_float16_runs(drawn, name):
    _, found, _, folder = drawn[name]
    np.testing.assert_array_equal(found["reloaded"], found["tokens"])
    saved = folder.with_name(f"{name}.saved")
    for path in folder.rglob("*.py"):
        assert (saved / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert (found["half"] == found["tokens"]).mean() > 0.8
    assert found["half_pixels"].std() > 0.02 and found["half_pixels"].dtype == np.float32
    assert ((0 <= found["half_pixels"]) & (found["half_pixels"] <= 1)).all()


@pytest.mark.parametrize("name", GENERATORS)
def test_a_start_of_its_own_is_as_the_generator_was_trained(drawn, name):
    _, found, _, _ = drawn[name]
    low, high = np.broadcast_to(GENERATORS[name][2].get("ratio", 0.5), 2)
    start = found["start"]
    masked = (start == 11).sum(1)
    if low == high:
        assert (masked == 8).all()
    else:
        assert masked.min() == 5 and masked.max() == 13 and abs(masked.mean() - 8.8) < 0.5
    # Every code, and at every place: 500 images with 16 tokens each.
    counts = np.bincount(start[start < 11], minlength=11)
    assert len(counts) == 11 and counts.min() > 0.7 * counts.mean()
    assert (abs((start == 11).mean(0) - masked.mean() / 16) < 0.12).all()
    assert abs(found["noisy"].mean() - 0.91**0.5) < 0.01 and abs(found["noisy"].std() - 0.3) < 0.01
    uniform = np.bincount(found["uniform"].ravel(), minlength=3)
    assert uniform.min() > 0.9 * uniform.mean()
    np.testing.assert_array_equal(found["last"], found["alone"])


@pytest.mark.parametrize("name", GENERATORS)
def test_what_cannot_be_is_refused_or_warned_of(drawn, name):
    _, _, said, _ = drawn[name]
    kind = "TextToImage" if name == "text" else "ClassToImage"
    assert said["class"] == f"{kind}Pipeline"
    size = GENERATORS[name][1]["image_size"]
    assert said["height"].startswith(f"height is 17, but this generator makes images of {size} x")
    assert said["latents"].startswith("latents has the shape [") and ", 16]" in said["latents"]
    assert said["generators"].startswith("there are 5 generators, expected 1 or ")
    assert said["pil"] == [[size, size]] * len(said["pil"]) and said["pil"]
    assert [x.split(" is ignored")[0] for x in said["warnings"]] == [
        "diffusers_driver.py: num_inference_steps=4", "diffusers_driver.py: guidance_scale=7.5",
    ]  # fmt: skip
    if kind == "ClassToImage":
        assert said["labels"] == "class_labels is [99]; they are whole numbers from 0 to 4"


def test_the_readme_says_how_it_is_loaded(drawn):
    for name, argument in (("text", 'prompt=["a red ball"]'), ("imagenet", "class_labels=[0, 1,")):
        text = (drawn[name][3] / "README.md").read_text()
        assert "library_name: diffusers\n" in text and argument in text
        assert "DiffusionPipeline.from_pretrained(" in text and "import dimo_jax" not in text


def test_a_readme_that_was_edited_stays_and_a_stranger_is_not_replaced(tmp_path):
    generator = save(tmp_path / "b", *GENERATORS["digits"]).path
    output, quiet = tmp_path / "out", lambda line: None
    to_diffusers.to_folder(generator, output, quiet)
    (output / card.FILE).write_text("mine")
    (output / "model_index.json").write_text("old")
    to_diffusers.to_folder(generator, output, quiet)
    assert (output / card.FILE).read_text() == "mine"
    assert "ClassToImagePipeline" in (output / "model_index.json").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "pipeline.py").write_text("theirs")
    with pytest.raises(InputError, match="other holds pipeline.py of somebody else"):
        to_diffusers.to_folder(generator, other, quiet)
    assert [x.name for x in other.iterdir()] == ["pipeline.py"]
    # Without a decoder it is no pipeline, and the old one would not fit.
    lines = []
    to_diffusers.to_folder(generator, output, lines.append, {"vqvae": "none"})
    assert any("is no pipeline without all of its parts" in line for line in lines)
    assert not (output / "model_index.json").exists()


@pytest.mark.parametrize(
    ("kind", "sampler", "complaint"),
    [
        (
            "generator",
            {**SAMPLER, "step_ratios": [0.5], "step_sigma": 0.0, "redraw": False},
            "draws in several steps, and a folder for diffusers has no place",
        ),
        ("generator", {"name": "maskgit", "num_steps": 4}, "draws in several steps"),
        ("teacher", None, "is a teacher of classes, and --to=diffusers takes a one-step generator"),
    ],
)
def test_what_makes_no_single_step_is_refused(tmp_path, kind, sampler, complaint):
    bundle = save(tmp_path / "one", *GENERATORS["digits"])
    fields = {"model": bundle.model, "params": bundle.params, "tokenizer": bundle.tokenizer}
    bundles.save(tmp_path / "b", kind=kind, sampler=sampler, **fields)
    with pytest.raises(InputError, match=complaint):
        given = {"vqvae": str(tmp_path / "one" / "tokenizer")}
        to_diffusers.to_folder(tmp_path / "b", tmp_path / "out", lambda line: None, given)
    assert not (tmp_path / "out").exists()
