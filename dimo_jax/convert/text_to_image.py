"""Meissonic's folder -> bundles: transformer/ and vqvae/, side by side.

The released one-step generator is a folder with transformer/ alone. The text encoder beside them is
an ordinary CLIP, which comes by convert/networks/clip.py. convert/to_diffusers.py is the way back.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from dimo_jax import bundles, models, tokenizers
from dimo_jax.bundles import ownership
from dimo_jax.common import files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER
from dimo_jax.convert.formats import folders, torch_files
from dimo_jax.convert.networks import clip_json, diffusers_folder, layouts, meissonic, vq_model
from dimo_jax.convert.networks.layouts import Entry

# 64 steps and guidance 9, as its authors recommend.
_TEACHER_SAMPLER = {"num_steps": 64, "guidance": 9.0, "choice_temperature": 2.0}
# What the released generator was trained with. The authors' sampling script defaults to ratio 0.6
# and sigma 0.1, those of their ImageNet model.
_GENERATOR_SAMPLER = {"ratio": 0.5, "sigma": 0.3, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


@dataclasses.dataclass(frozen=True)
class Part:
    """One model of the folder.

    Attributes:
        name: of our network or tokenizer.
        build: config -> network or tokenizer.
        entries: config -> the table.
        config_json: config -> the fields of config.json.
        weights_file: what its library calls the weights.
    """

    name: str
    build: Callable[[Mapping[str, Any]], Any]
    entries: Callable[[Mapping[str, Any]], list[Entry]]
    config_json: Callable[[Mapping[str, Any]], dict[str, Any]]
    weights_file: str = diffusers_folder.WEIGHTS_FILE


PARTS = {
    "transformer": Part("meissonic", models.build, meissonic.entries, meissonic.config_json),
    "vqvae": Part("vq_model", tokenizers.build, vq_model.entries, vq_model.config_json),
}


def from_folder(
    path: Path,
    output: Path,
    *,
    generator: bool = False,
    image_size: int | None = None,
    hash_of: Callable[[list[Path]], str],
) -> dict[str, int]:
    """Bundles of the models in a folder.

    Args:
        path: with the sub-folders transformer/ and vqvae/, or one of them; or one model itself.
        output: gets a bundle of the same name for each; or is the bundle of the one model.
        generator: whether the transformer is a one-step generator, which takes the tokenizer with
            it if that is there.
        image_size: pixels along a side; None for 1024, or 512 if the transformer merges no tokens.
        hash_of: files -> SHA-256 of all their bytes, which the bundle remembers.

    Returns:
        {bundle's folder: its number of parameters}.

    Raises:
        InputError: a file is missing or damaged, or not exactly Meissonic's; all differences are
            listed.
    """
    found = _models_in(path)
    for name, folder in found.items():
        target = output if folder == path else output / name
        files.check_folder(target, ownership.foreign)
    size = image_size or _image_size(found)
    written = {}
    tokenizer: dict[str, Any] = {}
    num_tokens = (size // 16) ** 2  # of the published VQ model
    # The tokenizer first: the transformer's bundle says which one its tokens belong to.
    for name in sorted(found, key=lambda name: name != "vqvae"):
        folder = found[name]
        fields = readers.json_object(folder / diffusers_folder.CONFIG_FILE)
        if name == "vqvae":
            config = vq_model.config_from(fields, size)
        else:
            config = meissonic.config_from(
                fields, num_tokens, _text_length(path / TEXT_ENCODER_FOLDER)
            )
        config = PARTS[name].build(config).config
        file = diffusers_folder.weights(folder)
        params = _params(name, config, file)
        target = output if folder == path else output / name
        source = {
            "source": "dimo" if generator else "meissonic",
            "file": file.name,
            "sha256": hash_of(folders.parts(file)),
        }
        if name == "vqvae":
            bundles.save(target, kind="tokenizer", model=config, params=params, provenance=source)
            built = tokenizers.build(config)
            num_tokens, digest = built.num_tokens, tokenizers.fingerprint(built, params)
            tokenizer = {"tokenizer": {"config": config, "hash": digest}}
            if generator:
                tokenizer["tokenizer_params"] = params
        else:
            bundles.save(
                target,
                kind="generator" if generator else "teacher",
                model=config,
                params=params,
                sampler=_GENERATOR_SAMPLER if generator else _TEACHER_SAMPLER,
                provenance=source,
                **tokenizer,
            )
        written[str(target)] = sum(x.size for x in jax.tree.leaves(params))
    return written


def _models_in(path: Path) -> dict[str, Path]:
    """Return the folders of PARTS."""
    found = {name: path / name for name in PARTS if (path / name).is_dir()}
    if not found and (path / diffusers_folder.CONFIG_FILE).is_file():
        fields = readers.json_object(path / diffusers_folder.CONFIG_FILE)
        # Their class names are those of many others too.
        if "num_single_layers" in fields:
            found = {"transformer": path}
        elif "num_vq_embeddings" in fields:
            found = {"vqvae": path}
    if not found:
        raise InputError(
            f"{path} has neither {' nor '.join(f'{name}/' for name in PARTS)}, and is no such "
            "folder itself; give the folder that Meissonic is downloaded to"
        )
    return found


def _image_size(found: Mapping[str, Path]) -> int:
    if "transformer" not in found:
        return 1024
    fields = readers.json_object(found["transformer"] / diffusers_folder.CONFIG_FILE)
    return 1024 if fields.get("downsample") else 512


def _text_length(encoder: Path) -> int:
    """Ids of a prompt: those of the text encoder beside the transformer, or of CLIP."""
    place = encoder / diffusers_folder.CONFIG_FILE
    fields = readers.json_object(place) if place.is_file() else {"model_type": "clip_text_model"}
    return clip_json.told(fields)["text"]["context"]


def _params(name: str, config: Mapping[str, Any], file: Path) -> Any:
    """Float32 parameters, whatever the file has."""
    part = PARTS[name]
    like = jax.eval_shape(part.build(config).init, jax.random.key(0))
    try:
        return layouts.to_params(
            part.entries(config), folders.read(file), like, torch_files.release
        )
    except InputError as error:
        raise InputError(
            f"{file} does not fit its {diffusers_folder.CONFIG_FILE}: {error}"
        ) from error
