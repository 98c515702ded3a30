"""Human Preference Score v2: 100 times CLIP's cosine, by weights that were trained on choices.

v2.0 and v2.1 are two sets of weights for ViT-H-14, whose numbers are not comparable; the paper has
v2.0. The learned logit scale is not used. Axes: N images.

Source: Wu et al., arXiv 2306.09341; the package hpsv2's evaluate(), computed in float32 where it
computes in float16.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features import clip_images
from dimo_jax.evaluation.features.clip_features import ClipFeatures, Picture
from dimo_jax.evaluation.metrics import clip_score

VERSIONS = ("v2.0", "v2.1")
GROUP = 80  # consecutive prompts whose means are compared with each other
_LISTED = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        style: "anime", ..., or "average" over all images.
        mean: of the style's scores: of the means of its groups.
        deviation: of the groups' means, as of a population; None for the average.
        num: images.
    """

    style: str
    mean: float
    deviation: float | None
    num: int


def scores(
    features: ClipFeatures,
    images: Iterable[Picture],
    prompts: Sequence[str],
    antialias: bool = True,
) -> Float[np.ndarray, "N"]:
    """Return the score of each image.

    Args:
        features: of HPS's network.
        images: files, or images as they come out of JPEG files, since JPEG is a step of the
            protocol. A file of another format is passed through it.
        prompts: one for each image.
        antialias: False for what torchvision before 0.17 did; it is part of the result.

    Raises:
        InputError: another number of images than of prompts, or an image with an alpha channel.
    """
    found = features.images(images, functools.partial(_pixels, antialias=antialias))
    return 100 * clip_score.cosines(found, features.texts(prompts))


def _pixels(image: Image.Image, size: int, antialias: bool) -> Float[np.ndarray, "S S 3"]:
    # An image that was made in memory has no format.
    if image.format not in (None, "JPEG", "MPO") and not clip_images.has_alpha(image):
        image = clip_images.as_jpeg(image)
    return clip_images.hps_pixels(image, size, antialias)


def table(by_style: Mapping[str, Float[np.ndarray, "N"]]) -> list[Row]:
    """Return the benchmark's table: a row for each style, then the mean over all images.

    Args:
        by_style: scores in the order of the prompts; 800 in the benchmark.

    Raises:
        InputError: there is no style, or one without images.
    """
    empty = [style for style, found in by_style.items() if not len(found)]
    if empty or not by_style:
        raise InputError(f"there are no scores of {', '.join(empty) or 'any style'}")
    rows = []
    for style, found in by_style.items():
        found = np.asarray(found, np.float64)
        groups = [found[i : i + GROUP].mean() for i in range(0, len(found), GROUP)]
        rows.append(Row(style, float(np.mean(groups)), float(np.std(groups)), len(found)))
    every = np.concatenate([np.asarray(x, np.float64) for x in by_style.values()])
    return [*rows, Row("average", float(every.mean()), None, len(every))]


def in_words(rows: Sequence[Row]) -> str:
    """Return the table as lines of text: style, mean, deviation between groups, images."""
    lines = [f"{'style':<15} {'HPS':>6} {'std':>7} {'images':>7}"]
    for row in rows:
        deviation = "" if row.deviation is None else f"{row.deviation:.4f}"
        lines.append(f"{row.style:<15} {row.mean:6.2f} {deviation:>7} {row.num:7d}")
    return "\n".join(lines)


def benchmark_files(folder: Path, style: str, num: int) -> list[Path]:
    """Return the images of one style, <folder>/<style>/00000.jpg and so on, or .png.

    Args:
        folder: of the benchmark.
        style: one of its folders.
        num: prompts of the style.

    Raises:
        InputError: images are missing, which the package would fill with the next ones.
    """
    names = [
        [folder / style / f"{i:05d}{suffix}" for suffix in (".jpg", ".png")] for i in range(num)
    ]
    files = [next((file for file in pair if file.is_file()), pair[0]) for pair in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        listed = ", ".join(missing[:_LISTED])
        raise InputError(
            f"{folder / style} lacks {len(missing)} of {num} images, {listed} first; sample them"
        )
    return files
