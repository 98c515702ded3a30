"""Metrics and models as people read them: headings, directions, values as text."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MODELS = {"teacher": "teacher", "generator": "generator", "test_split": "test split"}
MISSING = "–"


class Metric(NamedTuple):
    """How one metric is shown.

    Attributes:
        heading: above its column.
        better: "lower", "higher", or "" where neither end is the good one.
        explanation: a sentence; "" where the results bring their own.
        decimals: digits after the point.
        in_percent: whether a share is shown times 100.
        is_share: whether a further decimal tells something once there are many samples.
        noun: its name in a sentence; "" for the heading.
    """

    heading: str
    better: str
    explanation: str = ""
    decimals: int = 2
    in_percent: bool = False
    is_share: bool = False
    noun: str = ""


# The columns of the paper's tables, then those of the digits, in the order they are shown in.
HEADLINE = {
    "fid": Metric("FID", "lower", "Fréchet distance of the Inception features"),
    "inception_score": Metric(
        "IS", "higher", "Inception Score: sure of each sample, of many classes together"
    ),
    "inception_score_adm": Metric("IS (ADM)", "higher", "Inception Score over ADM's splits"),
    "frechet_features": Metric("Fréchet, features", "lower", noun="Fréchet distance in features"),
    "frechet_pixels": Metric("Fréchet, pixels", "lower", noun="Fréchet distance in pixels"),
    "precision": Metric(
        "precision", "higher", "share of samples inside the real manifold", is_share=True
    ),
    "recall": Metric(
        "recall", "higher", "share of real images inside the samples' manifold", is_share=True
    ),
    "density": Metric(
        "density",
        "higher",
        "real neighbourhoods around a sample, relative to k; may exceed 1",
        is_share=True,
    ),
    "coverage": Metric(
        "coverage", "higher", "share of real neighbourhoods with a sample inside", is_share=True
    ),
    "accuracy": Metric("accuracy", "higher", is_share=True),
}
OTHERS = {
    "sfid": Metric("sFID", "lower", "Fréchet distance of Inception's spatial features"),
    "kid": Metric("KID", "lower", "squared maximum mean discrepancy of the features", 4),
    "clip_score": Metric("CLIP score", "higher", "cosine of image and prompt in CLIP"),
    "hps": Metric("HPS", "higher", "human preference score"),
    "latency_seconds": Metric("seconds an image", "lower", "labels to one image, median", 4),
    "images_per_second": Metric("images/s", "higher", "in batches, labels to images, median", 1),
    "nearest_real": Metric("distance to the nearest real image", "lower"),
    "duplicates": Metric("duplicates, %", "lower", in_percent=True),
    "copies": Metric("copies, %", "lower", in_percent=True),
    "entropy": Metric("entropy, bits", ""),
}
# Longer or older spellings of the same.
SYNONYMS = {
    "is": "inception_score",
    "inception_score_mean": "inception_score",
    "frechet_inception_distance": "fid",
}


def metric(name: str) -> Metric:
    """Return how a metric is shown; one that is not known keeps its name and has no direction."""
    known = {**HEADLINE, **OTHERS}.get(known_as(name))
    return known or Metric(name.replace("_", " "), "")


def known_as(name: str) -> str:
    """Return the usual spelling of a metric's name."""
    return SYNONYMS.get(name, name)


def in_order(names: Iterable[str]) -> list[str]:
    """Return each name once.

    The paper's columns first, then the known ones, the rest as they come.
    """
    known = [*HEADLINE, *OTHERS]
    rank = {name: i for i, name in enumerate(known)}
    unique = dict.fromkeys(names)
    return sorted(unique, key=lambda name: rank.get(known_as(name), len(known)))


def is_headline(name: str) -> bool:
    """Return whether the metric stands in the headline table."""
    return known_as(name) in HEADLINE


def value(name: str, mean: float | None, std: float | None = None, precise: bool = False) -> str:
    """'0.63 ± 0.04' of a metric.

    Args:
        name: the metric.
        mean: None or not finite gives a dash.
        std: left out where there is none, as for the test split.
        precise: whether there are samples enough for a further decimal of a share.
    """
    shown = metric(name)
    if mean is None or not math.isfinite(mean):
        return MISSING
    factor = 100 if shown.in_percent else 1
    decimals = shown.decimals + (precise and shown.is_share)
    text = f"{factor * mean:.{decimals}f}"
    if std is None or not math.isfinite(std) or std == 0:
        return text
    return f"{text} ± {factor * std:.{decimals}f}"


def model(name: str) -> str:
    """'test split' for 'test_split'; names that are not known stay as they are."""
    return MODELS.get(name, name)


def describe(sampler: Mapping[str, Any]) -> str:
    """Return a sampler in a few words: 'guidance 1.0, choice_temperature 4.5, randomize linear'."""
    return ", ".join(f"{name} {value}" for name, value in sorted(sampler.items()))


def count_steps(steps: int) -> str:
    """'1 step', '2 steps'."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"
