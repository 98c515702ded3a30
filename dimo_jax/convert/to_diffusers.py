"""Bundles -> a folder that diffusers loads, and of text to image transformers and its authors too.

Of text to image it is the way back of a converted folder: transformer/ and scheduler/, vqvae/,
text_encoder/ and tokenizer/. A one-step generator, of classes too, becomes a whole pipeline that
needs nothing of this package: model_index.json and the code in diffusers_files/ go with it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dimo_jax import bundles, models
from dimo_jax.bundles import card, ownership
from dimo_jax.common import files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.conditions import clip_tokenizer, transformers_tokenizer
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER, check_belongs, identity_of, micro_of
from dimo_jax.convert.networks import diffusers_folder, maskgit, meissonic, patches, vq_model
from dimo_jax.convert.sources import SOURCES, Folder
from dimo_jax.samplers import one_step

# A bundle's model -> its folder. Those that nobody publishes so are no sources.
_FOLDERS = {name: source.folder for name, source in SOURCES.items() if source.folder} | {
    "maskgit": Folder(
        "transformer",
        maskgit.config_json,
        maskgit.entries,
        ("modeling_maskgit", "MaskGitTransformer"),
    ),
    "vqgan": Folder("vqvae", vq_model.config_json, vq_model.entries, ("diffusers", "VQModel")),
    **dict.fromkeys(
        ("patches", "gray_levels"),
        Folder(
            "vqvae", patches.config_json, patches.entries, ("modeling_patches", "PatchCodebook")
        ),
    ),
}
_CODE = Path(__file__).parent / "diffusers_files"  # never imported here
_PIPELINE, _INDEX = "pipeline.py", "model_index.json"
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
_WITH_TEXT = "meissonic"


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
        output: gets transformer/ with scheduler/, vqvae/, text_encoder/ with tokenizer/, and of a
            complete generator the pipeline. Without a transformer: those that there are.
        note: takes a line before each, since gigabytes take a while.
        given: {"vqvae" or "text_encoder": path of the bundle in place of the one that is found;
            LEFT_OUT leaves that part out}.

    Returns:
        {sub-folder: its number of parameters}.

    Raises:
        InputError: there is no bundle of such a model; it draws in several steps; a part that
            belongs to a transformer is missing, or is another one's; or the folder cannot be
            written. Nothing is written then.
    """
    if (output / bundles.PARAMS_FILE).is_file():
        raise InputError(f"{output} is a bundle, expected a folder for diffusers; name another")
    places, left_out = _parts(path, given or {})
    found = {name: ownership.read_config(place) for name, place in places.items()}
    layout = {name: _FOLDERS[config["model"]["name"]] for name, config in found.items()}
    with readers.well_typed(f"a config.json in {path}"):
        for name, config in found.items():
            built = bundles.BUILDERS[config["kind"]](config["model"])
            layout[name].config_json(built.config)  # refuses what it cannot say
        pipeline = _pipeline(places, found, layout)
    _check_output(output, layout)
    if "transformer" in places:
        _check_parts(places, note)
    written: dict[str, int] = {}
    for name in (_INDEX, _PIPELINE):  # of an older conversion, or incomplete until the end
        (output / name).unlink(missing_ok=True)
    for name, place in places.items():
        note(f"reads {place}")
        written[str(output / name)] = _write(layout[name], bundles.load(place), output, note)
    if pipeline and card.edited(output) is None:
        pipeline[card.FILE] = _card(found)
    for name, data in pipeline.items():
        files.write_file(output / name, data)
    if found.get("transformer", {}).get("kind") == "generator" and not pipeline:
        note(f"{output} is no pipeline without all of its parts: there is no {_INDEX}")
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
    with_text = ownership.read_config(places["transformer"])["model"]["name"] == _WITH_TEXT
    for name, flag in _FLAGS.items():
        chosen = given.get(name)
        if name == TEXT_ENCODER_FOLDER and not with_text:
            if chosen:
                raise InputError(f"--{flag} is for text, and {places['transformer']} takes classes")
            continue
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


def _pipeline(
    places: Mapping[str, Path], found: Mapping[str, Mapping[str, Any]], layout: Mapping[str, Folder]
) -> dict[str, bytes]:
    """Return the files that make a pipeline of the parts; none of a teacher, or without a part."""
    if "transformer" not in places:
        return {}
    config, place = found["transformer"], places["transformer"]
    with_text = config["model"]["name"] == _WITH_TEXT
    sampler = config["sampler"] or {}
    if config["kind"] != "generator":
        if not with_text:
            raise InputError(
                f"{place} is a {config['kind']} of classes, and --to=diffusers takes a one-step "
                "generator of them; give that, or use python -m dimo_jax.export --format=torch"
            )
        return {}
    if "name" in sampler or one_step.num_steps(sampler) > 1:
        raise InputError(
            f"{place} draws in several steps, and a folder for diffusers has no place for what it "
            "needs between them; give a generator of one step, or use python -m dimo_jax.sample"
        )
    if not {"vqvae", *([TEXT_ENCODER_FOLDER] if with_text else [])} <= places.keys():
        return {}
    drawn = one_step.settings_from(sampler, models.build(config["model"]))
    tokenizer = found["vqvae"]["model"]
    settings = {
        "num_tokens": drawn.num_tokens,
        "image_size": tokenizer["image_size"],
        "ratio": [drawn.ratio_low, drawn.ratio_high],
        **{name: getattr(drawn, name) for name in ("sigma", "temperature", "top_k", "top_p")},
        "signed_pixels": tokenizer["name"] == "vqgan",  # in [-1, 1]
    }
    if with_text:
        timestep = config["model"]["timestep"]
        size = (tokenizer["image_size"], tokenizer["image_size"])
        micro = micro_of(place, config["provenance"] or {}, size)
        settings |= {"timestep": timestep, "micro_conditions": micro}
    index = {
        "_class_name": ["pipeline", f"{'Text' if with_text else 'Class'}ToImagePipeline"],
        "_diffusers_version": meissonic.DIFFUSERS_VERSION,
        "settings": settings,
        **{name: list(folder.loaded_by) for name, folder in layout.items()},
    }
    if with_text:
        index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    code = (_CODE / _PIPELINE).read_bytes()
    return {_PIPELINE: code, _INDEX: diffusers_folder.as_json(index)}


def _card(found: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return the README of a pipeline."""
    config = found["transformer"]
    tokenizer = {"config": found["vqvae"]["model"]}
    fields = config["model"], config["sampler"], tokenizer, config["provenance"]
    return card.text(*fields, in_diffusers=True).encode()


def _code(folder: Folder) -> dict[str, bytes]:
    """Return {name: content} of the file that loads a folder; empty where a library does."""
    file = _CODE / f"{folder.loaded_by[0]}.py"
    return {file.name: file.read_bytes()} if file.is_file() else {}


def _check_output(output: Path, layout: Mapping[str, Folder]) -> None:
    """Refuse, before anything is written, to replace what `to_folder` did not write."""
    for name, folder in layout.items():
        own = {diffusers_folder.CONFIG_FILE, folder.weights_file, *_code(folder)}
        files.check_folder(output / name, functools.partial(diffusers_folder.foreign, names=own))
        if name in _COMPANIONS:
            companion, own = _COMPANIONS[name]
            foreign = functools.partial(diffusers_folder.foreign, names=own, beside=output / name)
            files.check_folder(output / companion, foreign)
    theirs = [name for name in (_INDEX, _PIPELINE) if (output / name).exists()]
    if theirs and not diffusers_folder.is_own(output / "transformer"):
        raise InputError(f"{output} holds {theirs[0]} of somebody else; name another place")


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


def _write(
    folder: Folder, bundle: bundles.Bundle, output: Path, note: Callable[[str], None]
) -> int:
    """Write the sub-folders of one bundle; return its number of parameters."""
    name, config = folder.name, bundle.build().config
    note(f"writes {output / name}, and reads it back")
    shapes = diffusers_folder.write(
        output / name,
        folder.config_json(config),
        folder.entries(config),
        bundle.params,
        folder.weights_file,
        _code(folder),
    )
    content = None
    if config["name"] == _WITH_TEXT:
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
    folder = _FOLDERS.get(name) if isinstance(name, str) else None
    if folder is None:
        raise InputError(
            f"{place} is a {shown(name)}, which diffusers has no folder for; there are "
            f"{', '.join(_FOLDERS)} (clip: of text alone): use dimo_jax.export"
        )
    return folder.name
