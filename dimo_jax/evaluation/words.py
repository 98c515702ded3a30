"""Samplers and step counts in words, for the progress line and the report."""

from collections.abc import Mapping
from typing import Any


def describe(sampler: Mapping[str, Any]) -> str:
    """A sampler in a few words: 'guidance 1.0, choice_temperature 4.5, randomize linear'."""
    return ", ".join(f"{name} {value}" for name, value in sorted(sampler.items()))


def count_steps(steps: int) -> str:
    """'1 step', '2 steps'."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"
