"""What was measured of one set of samples: a row of every table, with its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from dimo_jax.evaluation.metrics import names


class Value(NamedTuple):
    """One figure: its mean and spread; None where it was not measured or is not finite."""

    mean: float | None
    std: float | None = 0.0


@dataclass(frozen=True)
class Row:
    """One set of samples, or of several sampling seeds together.

    Attributes:
        model: "teacher", "generator", "test_split" or any other name.
        steps: network calls of the sampler; 0 where that means nothing.
        metrics: name -> value.
        sampler: its settings.
        per_class: name -> a value for each class, None where a class has too few samples.
        warnings: what a reader must know, each in a sentence.
        rest: what else is said of it: "num", "seed", "hashes", the metrics' "parts". Plain values.
    """

    model: str
    steps: int
    metrics: Mapping[str, Value]
    sampler: Mapping[str, Any] = field(default_factory=dict)
    per_class: Mapping[str, Sequence[Value | None]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """'teacher, 4 steps'."""
        return names.title(self.model, self.steps)

    def mean(self, name: str) -> float | None:
        """Return the mean of a metric, None where there is none."""
        return self.metrics[name].mean if name in self.metrics else None

    def known(self, name: str) -> float:
        """Return the mean of a metric that was measured.

        Raises:
            ValueError: it was not.
        """
        if (mean := self.mean(name)) is None:
            raise ValueError(f"{self.title} has no {name}")
        return mean


def over_seeds(rows: Sequence[Row]) -> Row:
    """Return one row for those of several seeds, with mean and spread (ddof 1) of every figure.

    What else is said of single rows is left out.
    """
    first = rows[0]
    metrics = {name: _joined([row.metrics[name] for row in rows]) for name in first.metrics}
    per_class = {
        name: [_joined(values) for values in zip(*(x.per_class[name] for x in rows), strict=True)]
        for name in first.per_class
    }
    return replace(first, metrics=metrics, per_class=per_class, rest={})


def _joined(values: Sequence[Value | None]) -> Value | None:
    """Mean and spread, 0 for a single value; None where one of the seeds has no value."""
    means = np.array([value.mean for value in values if value is not None])
    if len(means) < len(values):
        return None
    return Value(float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else 0.0)
