"""Converts one file or folder into one bundle or a folder of bundles, or back."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl.flags import FlagValues

from dimo_jax import bundles
from dimo_jax.bundles import ownership, places
from dimo_jax.common import files, overlaps, readers, trees
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.conditions import clip_vocabulary, transformers_tokenizer
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER
from dimo_jax.convert import sources, text_to_image, to_diffusers
from dimo_jax.convert.formats import folders
from dimo_jax.convert.networks import clip
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
    """Convert, and says what it has made.

    Args:
        flags: those of dimo_jax.convert.

    Raises:
        InputError: the input is not of the source, or cannot be read, or the output not written.
    """
    backend.start()
    path, output = files.local(flags.input), files.local(flags.output)
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
    elif flags.source == "meissonic" or (flags.source == "dimo" and path.is_dir()):
        _convert_folder(flags, path, output)
    else:
        _convert_model(flags, folders.weights(path), output, flags.source)


def _report(written: Mapping[str, int]) -> None:
    for place, total in written.items():
        print(f"{total:,} parameters: {place}")


def _convert_folder(flags: FlagValues, path: Path, output: Path) -> None:
    """Convert the models of text to image, each to a bundle of its folder's name."""
    encoder = path / TEXT_ENCODER_FOLDER
    if encoder.is_dir():
        files.check_folder(output / TEXT_ENCODER_FOLDER, ownership.foreign)
    with Progress("convert") as progress:
        written = text_to_image.from_folder(
            path,
            output,
            generator=flags.source == "dimo",
            image_size=flags.image_size,
            hash_of=lambda files: _hash(files, progress),
        )
    _report(written)
    if encoder.is_dir():
        _convert_model(flags, folders.weights(encoder), output / TEXT_ENCODER_FOLDER, "clip")


def _convert_model(flags: FlagValues, path: Path, output: Path, name: str | None) -> None:
    """Convert one model whose keys tell its sizes."""
    files.check_folder(output, ownership.foreign)
    state = sources.read(path, flags.key)
    with Progress("convert") as progress:
        if name is None:
            name = sources.recognise(state)
            other = "; for the one-step generator give --source=dimo" if name == "maskgit" else ""
            progress.note(f"{path} has the keys of {name}{other}")
        source = sources.SOURCES[name]
        options = sources.Options(
            heads=flags.heads,
            num_classes=flags.num_classes,
            image_size=flags.image_size,
            model_yaml=_model_yaml(flags, path) if name == "vqgan" else None,
            activation=flags.activation,
            described=folders.description(path) if name == "clip" else None,
        )
        try:
            config, params = sources.convert(state, source, options)
        except InputError as error:
            raise InputError(f"{path} is not a {name} checkpoint: {error}") from error
        attachments = None
        if name == "clip":
            theirs = clip.is_hugging_face(state)
            attachments = _tokenizer(flags, path, config["text"], theirs, progress)
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
                "file": path.name,
                "sha256": _hash(folders.parts(path), progress),
            },
            attachments=attachments,
        )
    leaves = trees.named_leaves(params).values()
    total = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    print(f"{name}: a {source.kind} of {total:,} parameters in {len(state)} tensors: {output}")
