"""Converts one file or folder into one bundle or a folder of bundles, or back."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl.flags import FlagValues

from dimo_jax import bundles, tokenizers
from dimo_jax.bundles import ownership, places
from dimo_jax.common import files, hub, overlaps, readers, trees
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.conditions import clip_vocabulary, transformers_tokenizer
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER
from dimo_jax.convert import checkpoint_files, sources, to_diffusers
from dimo_jax.convert.formats import folders
from dimo_jax.convert.networks import clip, clip_json, meissonic
from dimo_jax.parallel import backend

_CHUNK_BYTES = 1 << 26


def _model_yaml(flags: FlagValues, path: Path) -> str | None:
    """Return the text of a VQGAN's model.yaml.

    The one that is named, or the one beside the file.
    """
    place = Path(flags.yaml) if flags.yaml else path.with_name("model.yaml")
    if not place.is_file():
        if flags.yaml:
            raise InputError(f"there is no file {place}; give --yaml the path of a model.yaml")
        return None
    return readers.text(place, readers.MAX_YAML_BYTES)


def _tokenizer(
    flags: FlagValues,
    weights: Path,
    sizes: Mapping[str, int],
    hugging_face: bool,
    progress: Progress,
) -> dict[str, bytes]:
    """Return the tokenizer of a text tower, as a file of the bundle.

    A folder of Hugging Face brings its own; the weights of open_clip have open_clip's.
    """
    place = Path(flags.vocabulary) if flags.vocabulary else clip_vocabulary.find(weights.parent)
    if place is None:
        raise InputError(
            f"there is no vocabulary beside {weights}, and no package that ships it; give "
            "--vocabulary=merges.txt, or: pip install open_clip_torch"
        )
    folder = place if place.is_dir() else place.parent
    own = hugging_face and transformers_tokenizer.is_folder(folder)
    # As transformers does: this file alone, where there is one.
    whole = folder / transformers_tokenizer.TOKENIZER_FILE
    merges = clip_vocabulary.read(whole if own and whole.is_file() else place, sizes["vocabulary"])
    if own:
        progress.note(f"tokenizer: {folder}, with the ids of transformers' CLIPTokenizer")
        data = transformers_tokenizer.read(folder, merges, sizes["context"], sizes["vocabulary"])
        return {transformers_tokenizer.TOKENIZER_FILE: data}
    progress.note(f"tokenizer: open_clip's ids, with the vocabulary {place}")
    return {clip_vocabulary.MERGES_FILE: clip_vocabulary.to_text(merges)}


def _hash(paths: list[Path], progress: Progress) -> str:
    """SHA-256 of the files in a row, which the bundle remembers; most of the time goes here."""
    digest, total, done = hashlib.sha256(), sum(path.stat().st_size for path in paths), 0
    progress.update(0, total, "bytes read")
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                progress.update(done, total, "bytes read")
    return digest.hexdigest()


def run(flags: FlagValues) -> None:
    """Convert, and say what it has made.

    Args:
        flags: those of dimo_jax.convert.

    Raises:
        InputError: the input is not of the source, or cannot be read, or the output not written.
    """
    backend.start()
    path, output = files.local(hub.local(flags.input)), files.local(flags.output)
    overlaps.refuse(output, [path, flags.yaml, flags.vocabulary])
    if output.exists() and not output.is_dir():
        raise InputError(f"--output={output} is a file; name a folder")
    if flags.to == "diffusers":
        with Progress("convert") as progress:
            given = {"vqvae": flags.tokenizer, TEXT_ENCODER_FOLDER: flags.text_encoder}
            found = places.find(path)
            written = to_diffusers.to_folder(found, output, progress.note, given)
        _report(written)
    elif (path / bundles.PARAMS_FILE).is_file():
        raise InputError(f"{path} is a bundle already: what reads bundles takes it as it is")
    elif parts := _parts(flags.source, path):
        _convert_parts(flags, parts, output)
    else:
        _convert_model(flags, path, output, flags.source)
    print(f"to publish it: {hub.upload_command(output)}")


def _report(written: Mapping[str, int]) -> None:
    for place, total in written.items():
        print(f"{total:,} parameters: {place}")


def _parts(source: str | None, path: Path) -> dict[str, Path]:
    """Return the folders of several models in one, by their sources."""
    if source not in (None, "meissonic", sources.GENERATOR):
        return {}
    folders_of = {k: x.folder.name for k, x in sources.SOURCES.items() if x.folder}
    return {k: path / name for k, name in folders_of.items() if (path / name).is_dir()}


def _convert_parts(flags: FlagValues, parts: Mapping[str, Path], output: Path) -> None:
    """Convert the models of text to image, each to a bundle of its folder's name."""
    for place in parts.values():
        files.check_folder(output / place.name, ownership.foreign)
    fields = {k: folders.description(folders.weights(place)) or {} for k, place in parts.items()}
    size, text_length = flags.image_size, None
    if size is None and "meissonic" in fields:
        size = meissonic.image_size(fields["meissonic"])
    if fields.get("clip"):
        text_length = clip_json.settings_of(fields["clip"])["text"]["context"]
    options = sources.Options(image_size=size, text_length=text_length)
    tokenizer: dict[str, Any] = {}
    for name, place in parts.items():
        generator = name == "meissonic" and flags.source == sources.GENERATOR
        more = tokenizer if name == "meissonic" else {}
        config, params = _convert_model(
            flags,
            place,
            output / place.name,
            sources.GENERATOR if generator else name,
            options,
            **more,
        )
        if name == "vq_model":
            built = tokenizers.build(config)
            options = dataclasses.replace(options, num_tokens=built.num_tokens)
            digest = tokenizers.fingerprint(built, params)
            tokenizer = {"tokenizer": {"config": config, "hash": digest}}
            if flags.source == sources.GENERATOR:
                tokenizer["tokenizer_params"] = params


def _convert_model(
    flags: FlagValues,
    path: Path,
    output: Path,
    named: str | None,
    options: sources.Options | None = None,
    **more: Any,
) -> tuple[dict[str, Any], trees.Tree]:
    """Convert one model, and print what it is.

    Args:
        flags: those of dimo_jax.convert.
        path: the file, or the folder of one model.
        output: the bundle.
        named: as sources.choose takes it.
        options: what is known besides the flags.
        more: further arguments of bundles.save.

    Returns:
        (config, params).
    """
    files.check_folder(output, ownership.foreign)
    path, published = folders.weights(path), hub.repository(flags.input)
    state = checkpoint_files.read(path, flags.key)
    with Progress("convert") as progress:
        name, source = sources.choose(named, state)
        if named is None:
            other = f"; for the one-step generator give --source={sources.GENERATOR}"
            progress.note(f"{path} has the keys of {name}{other if source.generator else ''}")
        options = dataclasses.replace(
            options or sources.Options(image_size=flags.image_size),
            heads=flags.heads,
            num_classes=flags.num_classes,
            model_yaml=_model_yaml(flags, path) if name == "vqgan" else None,
            activation=flags.activation,
            described=folders.description(path) if source.folder else None,
        )
        try:
            config, params = sources.convert(state, source, options)
        except InputError as error:
            raise InputError(f"{path} is not a {name} checkpoint: {error}") from error
        if source.kind == "clip":
            theirs = clip.is_hugging_face(state)
            more["attachments"] = _tokenizer(flags, path, config["text"], theirs, progress)
        if sizes := sources.unusual(source, config):
            progress.note(f"no published file has {'; '.join(sizes)}; converted as it is")
        bundles.save(
            output,
            kind=source.kind,
            model=config,
            params=params,
            sampler=source.sampler(config),
            provenance={
                "source": name,
                **({"repository": published} if published else {}),
                "file": path.name,
                "sha256": _hash(folders.parts(path), progress),
            },
            **more,
        )
    leaves = trees.named_leaves(params).values()
    total = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    print(f"{name}: a {source.kind} of {total:,} parameters in {len(state)} tensors: {output}")
    return config, params
