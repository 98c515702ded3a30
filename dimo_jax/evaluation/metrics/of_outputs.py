"""Metrics as functions of a feature network's outputs: those of the samples, of the reference.

A list of them and a network are all that one evaluation differs in from another.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features.outputs import Outputs
from dimo_jax.evaluation.metrics import (
    by_class,
    frechet,
    inception_score,
    neighbours,
    prdc,
    tokens,
)
from dimo_jax.evaluation.metrics.protocols import Protocol
from dimo_jax.evaluation.metrics.rows import Value

# The Inception Score goes by two names, for its splits are part of it.
SCORES = {"torch_fidelity": "inception_score", "adm": "inception_score_adm"}
NEAR = 0.05  # a near copy differs from a training image in at most this share of its tokens


class Found(NamedTuple):
    """What one metric found.

    Attributes:
        values: figure by name.
        parts: what it is made of, plain values.
        per_class: figures of each class by name.
    """

    values: Mapping[str, Value]
    parts: Mapping[str, Any] = {}
    per_class: Mapping[str, Sequence[Value | None]] = {}


class Metric(NamedTuple):
    """One or several figures.

    Attributes:
        compute: (samples, reference) -> what is found.
        on_all: whether all processes of a run compute it together; else the lead does alone.
    """

    compute: Callable[[Outputs, Outputs], Found]
    on_all: bool = False


def of_inception(names: Sequence[str], protocol: Protocol) -> list[Metric]:
    """Return the metrics of photographs.

    Args:
        names: some of protocols.METRICS.
        protocol: how they are computed.
    """
    known = {
        "fid": Metric(lambda *sides: _frechet("fid", "2048", *sides)),
        "sfid": Metric(lambda *sides: _frechet("sfid", "spatial", *sides)),
        "is": Metric(lambda samples, _: _inception_scores(samples, protocol)),
        "prdc": Metric(lambda samples, real: _prdc(samples, real, protocol), on_all=True),
    }
    return [metric for name, metric in known.items() if name in names]


def of_classifier(num_classes: int, codebook_size: int, num_neighbours: int) -> list[Metric]:
    """Return the metrics of small images with labels, whose network is a classifier.

    The outputs are "features", "predicted", "pixels", "tokens" and "labels".

    Args:
        num_classes: of the labels.
        codebook_size: of the tokens.
        num_neighbours: k of precision, recall, density and coverage, in pixels.
    """

    def in_pixels(samples: Outputs, real: Outputs) -> Found:
        theirs, ours = (side.load("pixels") for side in (real, samples))
        # Not centred: equal distances between pictures of few gray levels are then equal.
        return _plain(neighbours.precision_recall_density_coverage(theirs, ours, num_neighbours))

    return [
        *FRECHET_PERCENTS,
        Metric(lambda samples, real: _by_class(samples, real, num_classes)),
        Metric(in_pixels),
        Metric(lambda samples, real: _of_tokens(samples, real, codebook_size)),
    ]


def total_variation(samples: Outputs, truth: Outputs) -> Found:
    """Half the sum of |p - q| of the outputs "joint": 0 for the same, 1 for disjoint ones."""
    difference = np.abs(samples.load("joint") - truth.load("joint"))
    return _plain({"total_variation": float(0.5 * difference.sum())})


def _plain(values: Mapping[str, float]) -> Found:
    return Found({name: Value(value) for name, value in values.items()})


def _frechet(name: str, output: str, samples: Outputs, real: Outputs) -> Found:
    ours, theirs = samples.moments(output), real.moments(output)
    if ours.mean.shape != theirs.mean.shape:
        raise InputError(
            f"the reference has {len(theirs.mean)} features and the network {len(ours.mean)}; "
            "give the reference of this network"
        )
    found = frechet.frechet(theirs, ours)
    parts = {**found._asdict(), "reference_num": real.num(output)}
    return Found({name: Value(found.distance)}, {name: parts})


def _percent(output: str, samples: Outputs, real: Outputs) -> Found:
    value = frechet.frechet_percent(real.moments(output), samples.load(output))
    return _plain({f"frechet_{output}": value})


# By these the teacher's samplers are compared.
FRECHET_PERCENTS = (
    Metric(lambda *sides: _percent("features", *sides)),
    Metric(lambda *sides: _percent("pixels", *sides)),
)


def _inception_scores(samples: Outputs, protocol: Protocol) -> Found:
    """Return both forms, of logits without bias, the protocol's own first."""
    output = "logits_unbiased"
    if (num := samples.num(output)) is None:
        raise ValueError("the samples do not say how many they are")
    forms = {
        "torch_fidelity": inception_score.torch_fidelity_splits(num),
        "adm": inception_score.adm_splits(num),
    }
    sums, at = {form: [] for form in forms}, 0
    for logits in samples.parts(output):
        for form, splits in forms.items():
            part = splits[at : at + len(logits)]
            sums[form].append(inception_score.sums(logits, part, int(splits.max()) + 1))
        at += len(logits)
    values, parts = {}, {}
    for form in sorted(forms, key=lambda form: form != protocol.score):
        score = inception_score.score(inception_score.merge(sums[form]))
        values[SCORES[form]] = Value(score.mean, score.std)
        parts[SCORES[form]] = {
            **values[SCORES[form]]._asdict(),
            "splits": score.splits.tolist(),
            "split_sizes": np.bincount(forms[form]).tolist(),
        }
    return Found(values, parts)


def _prdc(samples: Outputs, real: Outputs, protocol: Protocol) -> Found:
    theirs, ours = real.load("2048"), samples.load("2048")
    if theirs.shape[1] != ours.shape[1]:
        raise InputError(
            f"the reference has {theirs.shape[1]} features and the network {ours.shape[1]}; give "
            "the reference of this network"
        )
    chunks = prdc.measure(theirs, ours, protocol)
    parts = {
        "chunks": chunks,
        "reference_num": len(theirs),
        "num_neighbours": protocol.num_neighbours,
        "closed": protocol.closed,
        "half": protocol.half,
    }
    values = {name: Value(float(np.mean(x)), float(np.std(x))) for name, x in chunks.items()}
    return Found(values, {"prdc": parts})


def _by_class(samples: Outputs, real: Outputs, num_classes: int) -> Found:
    """Return the accuracy, and it and the distance in features for each class."""
    labels, predicted = samples.load("labels"), samples.load("predicted")
    ours, theirs = (
        by_class.class_moments(side.load("features"), side.load("labels"), num_classes)
        for side in (samples, real)
    )
    variance = float(np.trace(real.moments("features").covariance))
    of_classes = {
        "frechet_features": by_class.frechet_percents(theirs, ours, variance),
        "accuracy": by_class.accuracies(predicted, labels, num_classes),
    }
    per_class = {
        name: [None if value is None else Value(value) for value in values]
        for name, values in of_classes.items()
    }
    return Found({"accuracy": Value(float(np.mean(predicted == labels)))}, {}, per_class)


def _of_tokens(samples: Outputs, real: Outputs, codebook_size: int) -> Found:
    # Duplicates and copies are found by tokens, all a generator decides on: with a lossy tokenizer
    # no sample could equal a training image exactly. Equal images have equal tokens, so these
    # shares are never below those of exactly equal images.
    ours, theirs = (side.load("tokens") for side in (samples, real))
    most = int(NEAR * ours.shape[1])  # places; none of the digits' 16
    near = {"near_copies": np.mean(tokens.fewest_differences(ours, theirs) <= most)} if most else {}
    return _plain(
        {
            "duplicates": tokens.share_of_duplicates(ours),
            "copies": tokens.share_of_copies(ours, theirs),
            **{name: float(value) for name, value in near.items()},
            "entropy": tokens.entropy(ours, codebook_size),
        }
    )
