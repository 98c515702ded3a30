"""Metrics and models as people read them: headings, directions, values as text."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MODELS = {
    "teacher": "teacher",
    "generator": "generator",
    "test_split": "test split",
    "decoded": "pictures encoded and decoded (the tokenizer's own limit)",
    "independent": "independent sampling of the exact marginals",
    "true_joint": "samples of the true joint (the estimate's own error)",
}
MISSING = "–"


class Metric(NamedTuple):
    """How one metric is shown.

    Attributes:
        heading: above its column.
        better: "lower", "higher", or "" where neither end is the good one.
        explanation: a sentence; "" where nothing is known of it.
        headline: whether it stands in the headline table.
        decimals: digits after the point.
        in_percent: whether a share is shown times 100.
        is_share: whether a further decimal tells something once there are many samples.
        noun: its name in a sentence; "" for the heading.
        of_class: the explanation of its values class by class.
    """

    heading: str
    better: str
    explanation: str = ""
    headline: bool = False
    decimals: int = 2
    in_percent: bool = False
    is_share: bool = False
    noun: str = ""
    of_class: str = ""


def _share(heading: str, explanation: str, of_class: str = "") -> Metric:
    return Metric(heading, "higher", explanation, headline=True, is_share=True, of_class=of_class)


# Every metric, in the order of the columns.
METRICS = {
    "fid": Metric("FID", "lower", "Fréchet distance of the Inception features", headline=True),
    "rfid": Metric(
        "rFID",
        "lower",
        "Fréchet distance of the Inception features between pictures and their decoded tokens: "
        "what the tokenizer alone costs",
        headline=True,
    ),
    "sfid": Metric("sFID", "lower", "Fréchet distance of Inception's spatial features"),
    "inception_score": Metric(
        "IS",
        "higher",
        "Inception Score: sure of each sample, of many classes together",
        headline=True,
    ),
    "inception_score_adm": Metric(
        "IS (ADM)", "higher", "Inception Score over ADM's splits", headline=True
    ),
    "frechet_features": Metric(
        "Fréchet, features",
        "lower",
        "Fréchet distance in the classifier's features, % of the real variance",
        headline=True,
        noun="Fréchet distance in features",
        of_class="Fréchet distance between the samples of a class and its training images in the "
        "classifier's features, % of the variance of all training images",
    ),
    "frechet_pixels": Metric(
        "Fréchet, pixels",
        "lower",
        "Fréchet distance in pixels, % of the real variance",
        headline=True,
        noun="Fréchet distance in pixels",
    ),
    "precision": _share("precision", "share of samples inside the real manifold"),
    "recall": _share("recall", "share of real images inside the samples' manifold"),
    # It may exceed 1.
    "density": _share("density", "real neighbourhoods around a sample, relative to k"),
    "coverage": _share("coverage", "share of real neighbourhoods with a sample inside"),
    "accuracy": _share(
        "accuracy",
        "share of samples that the classifier gives the label they were asked for",
        of_class="share of the samples of a class that the classifier gives that class",
    ),
    "duplicates": Metric(
        "duplicates, %",
        "lower",
        "share of samples whose tokens equal an earlier sample's",
        in_percent=True,
    ),
    "copies": Metric(
        "copies, %",
        "lower",
        "share of samples whose tokens equal a training image's",
        in_percent=True,
    ),
    "near_copies": Metric(
        "near copies, %",
        "lower",
        "share of samples of whose tokens at most 5 % differ from a training image's; the test "
        "split's share says how near strangers are",
        in_percent=True,
    ),
    "entropy": Metric(
        "entropy, bits", "", "mean entropy of a token's distribution over the samples, bits"
    ),
    "total_variation": Metric(
        "total variation", "lower", "half the sum of |p - q| over the true joint", decimals=3
    ),
    "kid": Metric("KID", "lower", "squared maximum mean discrepancy of the features", decimals=4),
    "clip_score": Metric("CLIP score", "higher", "cosine of image and prompt in CLIP"),
    "hps": Metric("HPS", "higher", "human preference score"),
    "geneval_overall": _share(
        "GenEval", "mean over its six kinds of prompts of the share of right images"
    ),
    **{
        f"geneval_{tag}": Metric(
            f"GenEval, {column}", "higher", "share of images that show the prompt", is_share=True
        )
        for tag, column in (
            ("single_object", "single"),
            ("two_object", "two"),
            ("counting", "counting"),
            ("colors", "colors"),
            ("position", "position"),
            ("color_attr", "attribution"),
        )
    },
    "latency_seconds": Metric(
        "seconds an image", "lower", "labels to one image, median", decimals=4
    ),
    "images_per_second": Metric(
        "images/s", "higher", "in batches, labels to images, median", decimals=1
    ),
    "nearest_real": Metric("distance to the nearest real image", "lower"),
}
# Longer or older spellings of the same.
SYNONYMS = {
    "is": "inception_score",
    "inception_score_mean": "inception_score",
    "frechet_inception_distance": "fid",
}


def metric(name: str) -> Metric:
    """Return how a metric is shown; one that is not known keeps its name and has no direction."""
    return METRICS.get(known_as(name)) or Metric(name.replace("_", " "), "")


def known_as(name: str) -> str:
    """Return the usual spelling of a metric's name."""
    return SYNONYMS.get(name, name)


def in_order(names: Iterable[str]) -> list[str]:
    """Return each name once: the known ones in the order of METRICS, the rest as they come."""
    rank = {name: i for i, name in enumerate(METRICS)}
    return sorted(dict.fromkeys(names), key=lambda name: rank.get(known_as(name), len(rank)))


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


def title(model_name: str, steps: int) -> str:
    """'teacher, 4 steps'; only the name where steps is 0."""
    return f"{model(model_name)}, {count_steps(steps)}" if steps else model(model_name)


def describe(sampler: Mapping[str, Any]) -> str:
    """Return a sampler in a few words: 'guidance 1.0, choice_temperature 4.5, randomize linear'."""
    return ", ".join(f"{name} {value}" for name, value in sorted(sampler.items()))


def count_steps(steps: int) -> str:
    """'1 step', '2 steps'."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"
