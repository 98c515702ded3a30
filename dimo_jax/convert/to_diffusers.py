"""Bundles of text to image -> the folder that diffusers, transformers and its authors load.

The way back of a converted folder: transformer/ and scheduler/, vqvae/, text_encoder/ and
tokenizer/.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dimo_jax import bundles
from dimo_jax.bundles import ownership
from dimo_jax.common import files
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.conditions import clip_tokenizer, transformers_tokenizer
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER, check_belongs, identity_of
from dimo_jax.convert.networks import diffusers_folder, meissonic
from dimo_jax.convert.sources import FOLDERS, SOURCES

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
# The parts that belong to a transformer, and the flags that name them.
LEFT_OUT = "none"
_FLAGS = {"vqvae": "tokenizer", TEXT_ENCODER_FOLDER: "text_encoder"}


def to_folder(
    path: Path,
    output: Path,
    note: Callable[[str], None],
    given: Mapping[str, str | None] | None = None,
) -> dict[str, int]:
    """Write the folder.

    Args:
        path: one bundle, or a folder of bundles, those of a finished run's export too. With a
            transformer go its tokenizer and its text encoder, from inside or beside it.
        output: gets transformer/ with scheduler/, vqvae/, text_encoder/ with tokenizer/. Without a
            transformer: those that there are.
        note: takes a line before each, since gigabytes take a while.
        given: {"vqvae" or "text_encoder": path of the bundle in place of the one that is found;
            LEFT_OUT leaves that part out}.

    Returns:
        {sub-folder: its number of parameters}.

    Raises:
        InputError: there is no bundle of such a model; a part that belongs to a transformer is
            missing, or is another one's; or the folder cannot be written. Nothing is written then.
    """
    if (output / bundles.PARAMS_FILE).is_file():
        raise InputError(f"{output} is a bundle, expected a folder for diffusers; name another")
    places, left_out = _parts(path, given or {})
    _check_output(output, places)
    if "transformer" in places:
        _check_parts(places, note)
    written: dict[str, int] = {}
    for name, place in places.items():
        note(f"reads {place}")
        written[str(output / name)] = _write(name, bundles.load(place), output, note)
    for name in left_out:
        with_it = f" and {_COMPANIONS[name][0]}/" if name in _COMPANIONS else ""
        note(f"left out, as --{_FLAGS[name]}={LEFT_OUT} says: {name}/{with_it}")
    return written


def _parts(path: Path, given: Mapping[str, str | None]) -> tuple[dict[str, Path], list[str]]:
    """{sub-folder: its bundle} of what becomes one folder, and what is left out of it."""
    places: dict[str, Path] = {}
    for place in _bundles_in(path):
        if place.name == bundles.TOKENIZER_FOLDER and given.get("vqvae") and place != path:
            continue  # of whatever kind: another is given, or none is wanted
        name = _name_back(place)
        if name in places:
            raise InputError(f"{path} holds two bundles for {name}/; give one of them")
        places[name] = place
    if "transformer" not in places:
        return places, []
    left_out = []
    for name, flag in _FLAGS.items():
        chosen = given.get(name)
        if chosen == LEFT_OUT:
            places.pop(name, None)
            left_out.append(name)
        elif chosen:
            places[name] = files.local(chosen)
            if (found := _name_back(places[name])) != name:
                raise InputError(f"--{flag}={chosen} is one for {found}/, not for {name}/")
        elif name not in places:
            # A conversion leaves them side by side, and runs of before beside their export.
            beside = places["transformer"].parent / name
            if not _is_bundle(beside):
                raise InputError(
                    f"{places['transformer']} lacks its {name}: there is no bundle of it inside or "
                    f"at {beside}; give --{flag}=BUNDLE, or --{flag}={LEFT_OUT} to leave it out"
                )
            places[name] = beside
    return places, left_out


def _check_output(output: Path, names: Iterable[str]) -> None:
    """Refuse, before anything is written, to replace what `to_folder` did not write."""
    for name in names:
        own = {diffusers_folder.CONFIG_FILE, FOLDERS[name].weights_file}
        files.check_folder(output / name, functools.partial(diffusers_folder.foreign, names=own))
        if name in _COMPANIONS:
            companion, own = _COMPANIONS[name]
            foreign = functools.partial(diffusers_folder.foreign, names=own, beside=output / name)
            files.check_folder(output / companion, foreign)


def _check_parts(places: Mapping[str, Path], note: Callable[[str], None]) -> None:
    """Refuse another tokenizer or text encoder than the transformer was trained with."""
    place = places["transformer"]
    config = ownership.read_config(place)
    fields = {name: config[name] for name in ("kind", "model", "sampler", "tokenizer")}
    # Its parameters are gigabytes that decide nothing here.
    model = bundles.Bundle(
        **fields, provenance=config["provenance"], params=None, path=place, params_hash=""
    )
    if "vqvae" in places:
        note(f"compares {places['vqvae']}")
        bundles.load_tokenizer(places["vqvae"], model)
    expected = model.provenance.get(TEXT_ENCODER_FOLDER)
    if expected is not None and TEXT_ENCODER_FOLDER in places:
        note(f"compares {places[TEXT_ENCODER_FOLDER]}")
        found = bundles.load(places[TEXT_ENCODER_FOLDER], kind="clip")
        tokenizer = clip_tokenizer.of_files(found.attachments, found.model["text"], found.path)
        check_belongs(expected, identity_of(found.params, tokenizer), found.path, place)


def _write(name: str, bundle: bundles.Bundle, output: Path, note: Callable[[str], None]) -> int:
    """Write the sub-folders of one bundle; return its number of parameters."""
    folder, config = FOLDERS[name], bundle.build().config
    note(f"writes {output / name}, and reads it back")
    shapes = diffusers_folder.write(
        output / name,
        folder.config_json(config),
        folder.entries(config),
        bundle.params,
        folder.weights_file,
    )
    content = None
    if name == "transformer":
        fields = diffusers_folder.as_json(meissonic.scheduler_json(config))
        content = {"scheduler_config.json": fields}
    elif name == TEXT_ENCODER_FOLDER:
        content = _tokenizer_files(bundle, config["text"]["context"], note)
    if content is not None:
        companion, names = _COMPANIONS[name]
        diffusers_folder.replace(output / companion, content, names, output / name)
    return sum(math.prod(shape) for shape in shapes.values())


def _tokenizer_files(
    bundle: bundles.Bundle, context: int, note: Callable[[str], None]
) -> dict[str, bytes]:
    """Return the folder of a text encoder's tokenizer, for transformers."""
    found = bundle.attachments
    data = found.get(transformers_tokenizer.TOKENIZER_FILE)
    if data is None:
        merges = clip_tokenizer.merges_of(found, bundle.path)
        data = transformers_tokenizer.from_merges(merges, context)
        note(
            f"{bundle.path} has open_clip's tokenizer; that of transformers, which is written, "
            "makes other ids of '!' and of what ftfy and HTML's escapes change"
        )
    return transformers_tokenizer.to_folder(data, context)


def _is_bundle(path: Path) -> bool:
    return (path / bundles.CONFIG_FILE).is_file()


def _bundles_in(path: Path) -> list[Path]:
    """Return the bundles that become one folder; the path itself if there are none."""
    inside = [path, *sorted(x for x in path.iterdir() if x.is_dir())] if path.is_dir() else []
    return [place for place in inside if _is_bundle(place)] or [path]


def _name_back(place: Path) -> str:
    """Return the sub-folder of a bundle's model, by what its config.json says."""
    model: Mapping[str, Any] = ownership.read_config(place)["model"]
    name = model.get("name")
    if name == "clip" and model.get("image") is not None:
        name = "clip with an image tower"
    source = SOURCES.get(name) if isinstance(name, str) else None
    if source is None or source.folder is None:
        known = [x for x, some in SOURCES.items() if some.folder]
        raise InputError(
            f"{place} is a {shown(name)}, which diffusers has no folder for; there are "
            f"{', '.join(known)} (clip: of text alone): use dimo_jax.export"
        )
    return source.folder.name
