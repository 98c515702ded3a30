"""Meissonic's folder -> bundles, and back: transformer/ and vqvae/, side by side.

The released one-step generator is a folder with transformer/ alone. The text encoder beside them is
an ordinary CLIP, which comes by convert/clip.py; on the way back it is one of the parts.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dimo_jax import bundle_files, bundles, files, models, tokenizers
from dimo_jax.common import readers
from dimo_jax.conditions import clip_tokenizer, transformers_tokenizer
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER
from dimo_jax.convert import (
    clip,
    clip_json,
    diffusers_folder,
    folders,
    layouts,
    meissonic,
    torch_files,
    vq_model,
)
from dimo_jax.convert.layouts import Entry
from dimo_jax.errors import InputError
from dimo_jax.models import clip as clip_network

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
_PARTS_BACK = {
    **PARTS,
    TEXT_ENCODER_FOLDER: Part(
        "clip",
        clip_network.build,
        lambda config: clip.entries(config, hugging_face=True),
        clip_json.text_config_json,
        "model.safetensors",
    ),
}
# A model's folder -> the one that goes with it, and the files that are written there.
_COMPANIONS: Mapping[str, tuple[str, frozenset[str]]] = {
    "transformer": ("scheduler", frozenset({"scheduler_config.json"})),
    TEXT_ENCODER_FOLDER: (
        "tokenizer",
        frozenset(
            ("merges.txt", "vocab.json", "tokenizer.json")
            + ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        ),
    ),
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
        files.check_folder(target, bundle_files.foreign)
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


def to_folder(path: Path, output: Path, note: Callable[[str], None]) -> dict[str, int]:
    """The folder that diffusers, transformers and the authors' scripts load, of bundles.

    Args:
        path: one bundle, or a folder of bundles, those of a finished run's export too. With a
            transformer goes the text encoder that lies beside it.
        output: gets transformer/ with scheduler/, vqvae/, text_encoder/ with tokenizer/: those
            that there are.
        note: takes a line before each, since gigabytes take a while.

    Returns:
        {sub-folder: its number of parameters}.

    Raises:
        InputError: there is no bundle of such a model, or the folder cannot be written.
    """
    written: dict[str, int] = {}
    # A finished run leaves it beside its export, a conversion beside the transformer.
    beside = path.parent / TEXT_ENCODER_FOLDER
    _check_output(output, [*_bundles_in(path), *([beside] if _is_bundle(path) else [])])
    for place in _bundles_in(path):
        _write(place, output, written, note)
    alone = _is_bundle(path) and str(output / "transformer") in written
    if alone and str(output / TEXT_ENCODER_FOLDER) not in written and _is_bundle(beside):
        _write(beside, output, written, note)
    return written


def _check_output(output: Path, places: Sequence[Path]) -> None:
    """Refuses, before anything is written, to replace what `to_folder` did not write."""
    if (output / bundles.PARAMS_FILE).is_file():
        raise InputError(f"{output} is a bundle, expected a folder for diffusers; name another")
    for place in filter(_is_bundle, places):
        name = _name_back(place, bundle_files.read_config(place)["model"])
        names = {diffusers_folder.CONFIG_FILE, _PARTS_BACK[name].weights_file}
        own = functools.partial(diffusers_folder.foreign, names=names)
        files.check_folder(output / name, own)
        if name in _COMPANIONS:
            companion, names = _COMPANIONS[name]
            with_model = functools.partial(
                diffusers_folder.foreign, names=names, beside=output / name
            )
            files.check_folder(output / companion, with_model)


def _write(place: Path, output: Path, written: dict[str, int], note: Callable[[str], None]) -> None:
    """The sub-folders of one bundle, entered in `written`."""
    note(f"reads {place}")
    bundle = bundles.load(place)
    name = _name_back(place, bundle.model)
    if str(output / name) in written:
        raise InputError(
            f"{place.parent} holds two bundles of a {bundle.model['name']}; give one of them"
        )
    part = _PARTS_BACK[name]
    config = part.build(bundle.model).config
    table = part.entries(config)
    note(f"writes {output / name}, and reads it back")
    shapes = diffusers_folder.write(
        output / name, part.config_json(config), table, bundle.params, part.weights_file
    )
    written[str(output / name)] = sum(math.prod(shape) for shape in shapes.values())
    if name == "transformer":
        fields = diffusers_folder.as_json(meissonic.scheduler_json(config))
        _replace_companion(output, name, {"scheduler_config.json": fields})
    elif name == TEXT_ENCODER_FOLDER:
        content = _tokenizer_files(bundle, config["text"]["context"], note)
        _replace_companion(output, name, content)


def _tokenizer_files(
    bundle: bundles.Bundle, context: int, note: Callable[[str], None]
) -> dict[str, bytes]:
    attached = bundle.attachments
    data = attached.get(transformers_tokenizer.TOKENIZER_FILE)
    if data is None:
        merges = clip_tokenizer.merges_of(attached, bundle.path)
        data = transformers_tokenizer.from_merges(merges, context)
        note(
            f"{bundle.path} has open_clip's tokenizer; that of transformers, which is written, "
            "makes other ids of '!' and of what ftfy and HTML's escapes change"
        )
    return transformers_tokenizer.to_folder(data)


def _replace_companion(output: Path, name: str, content: Mapping[str, bytes]) -> None:
    folder, names = _COMPANIONS[name]
    diffusers_folder.replace(output / folder, content, names, output / name)


def _is_bundle(path: Path) -> bool:
    return (path / bundles.CONFIG_FILE).is_file()


def _bundles_in(path: Path) -> list[Path]:
    """The bundles that become one folder; the path itself if there are none."""
    inside = [path, *sorted(x for x in path.iterdir() if x.is_dir())] if path.is_dir() else []
    return [place for place in inside if _is_bundle(place)] or [path]


def _name_back(place: Path, model: Mapping[str, Any]) -> str:
    """The sub-folder of a bundle's model."""
    by_model = {part.name: name for name, part in _PARTS_BACK.items()}
    shown = model["name"]
    if shown == "clip" and model["image"] is not None:
        shown = "clip with an image tower"
    if shown not in by_model:
        raise InputError(
            f"{place} is a {shown}, which diffusers has no folder for; there are "
            f"{', '.join(by_model)} (clip: of text alone): use dimo_jax.export"
        )
    return by_model[shown]


def _models_in(path: Path) -> dict[str, Path]:
    """The folders of PARTS."""
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
