"""CLIP score and HPS v2 of a folder of images.

Axes: N images.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dimo_jax.common import picture_folder
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.data import benchmark_prompts, prompt_files
from dimo_jax.evaluation.features import clip_features
from dimo_jax.evaluation.metrics import clip_score, hps

CAPTIONS_FILE = "captions.txt"


class Scores(NamedTuple):
    """What one kind of score found.

    Attributes:
        name: of the score.
        values: figure by name.
        settings: what they were computed with, plain values.
        hashes: of the network's parameters.
        text: the figures in words.
    """

    name: str
    values: Mapping[str, float]
    settings: Mapping[str, Any]
    hashes: Mapping[str, str]
    text: str


def clip_of_folder(
    folder: Path,
    bundle: Path,
    captions: Path | None = None,
    form: str = "dimo",
    batch_size: int = 64,
    field: str = "",
) -> Scores:
    """Return the CLIP score of a folder's images.

    Args:
        folder: images whose names begin with the number of their caption, from 0 on.
        bundle: of the kind "clip".
        captions: a list of them, as for prompt_files.Texts; default: captions.txt in the folder.
        form: a key of clip_score.FORMS.
        batch_size: examples in a call.
        field: of the captions' records; empty: the first that is known.

    Raises:
        InputError: images or captions are missing or damaged, or the bundle is another.
    """
    files, texts = paired(folder, _captions(captions or folder / CAPTIONS_FILE, field))
    features, found = clip_features.load(bundle, batch_size)
    if form in clip_score.FORMS:
        _note(features.tokenizer.describe_cut(texts, clip_score.FORMS[form].prefix))
    scored = clip_score.score(features, files, texts, form)
    return Scores(
        "CLIP score",
        {"clip_score": scored.value},
        {"clip_form": form, "clip_images": len(files)},
        {"clip_weights": found.params_hash},
        f"CLIP score ({form}): {scored.value:.4f}",
    )


def _captions(path: Path, field: str) -> list[str]:
    """Return the texts of a list.

    An empty one would be a caption that is lost, so it is refused.
    """
    texts = list(prompt_files.Texts(str(path), field, "--prompt_field"))
    while texts and not texts[-1].strip():
        texts.pop()
    empty = [number for number, text in enumerate(texts, start=1) if not text.strip()]
    if empty:
        raise InputError(f"{path}: caption {empty[0]} is empty; give one for each image")
    return [text.strip() for text in texts]


def _note(text: str | None) -> None:
    if text:
        with Progress("evaluate") as progress:
            progress.note(text)


def paired(folder: Path, captions: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the images of a folder, and for each the caption whose number begins its name.

    Args:
        folder: with nothing but images that have numbers, and files of other kinds.
        captions: all of them must have an image, or more.

    Returns:
        (files, their captions), in the order of the numbers.

    Raises:
        InputError: a name has no number or one of no caption, or a caption has no image.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the images' folder")
    files = [file for file in folder.iterdir() if picture_folder.is_picture(file.name)]
    numbers = {file: re.match(r"\d+", file.name) for file in files}
    strange = sorted(file.name for file, number in numbers.items() if number is None)
    if strange:
        raise InputError(f"{folder / strange[0]} does not begin with the number of its caption")
    indices = {file: int(number[0]) for file, number in numbers.items() if number}
    lacking = sorted(set(range(len(captions))) - set(indices.values()))
    beyond = [file.name for file, index in indices.items() if index >= len(captions)]
    if lacking or beyond:
        what = f"no image of caption {lacking[0]}" if lacking else f"{min(beyond)} and no such one"
        raise InputError(f"{folder} has {what}; there are {len(captions)} captions, from 0 on")
    files.sort(key=lambda file: (indices[file], len(file.name), file.name))
    return files, [captions[indices[file]] for file in files]


def hps_of_folder(
    folder: Path,
    bundle: Path,
    benchmark: Path,
    version: str,
    antialias: bool = True,
    batch_size: int = 64,
) -> Scores:
    """Return the scores of HPS v2's benchmark.

    Args:
        folder: <style>/00000.jpg and so on.
        bundle: of the kind "clip", with the weights of the version.
        benchmark: the folder with the styles' prompts, or the file of one style.
        version: one of hps.VERSIONS; no file tells it, and their numbers are not comparable.
        antialias: as clip_images.hps_pixels.
        batch_size: examples in a call.

    Returns:
        "hps", the mean over the styles, and "hps_<style>" of each.

    Raises:
        InputError: an unknown version; prompts or images are missing or damaged.
    """
    if version not in hps.VERSIONS:
        raise InputError(f"there is no HPS {version!r}; there are {', '.join(hps.VERSIONS)}")
    texts: dict[str, list[str]] = {}
    for prompt in benchmark_prompts.read("hpsv2", benchmark):
        texts.setdefault(prompt.metadata["style"], []).append(prompt.text)
    # All are looked for before the first is scored.
    images = {style: hps.benchmark_files(folder, style, len(x)) for style, x in texts.items()}
    features, found = clip_features.load(bundle, batch_size)
    _note(features.tokenizer.describe_cut([text for some in texts.values() for text in some]))
    rows = hps.table(
        {style: hps.scores(features, images[style], x, antialias) for style, x in texts.items()}
    )
    return Scores(
        "HPS v2",
        {"hps": rows[-1].mean, **{f"hps_{row.style}": row.mean for row in rows[:-1]}},
        {"hps_version": version, "hps_antialias": antialias},
        {"hps_weights": found.params_hash},
        hps.in_words(rows),
    )
