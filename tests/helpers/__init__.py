"""What tests share: peers, small models, files as users have them, programs that are killed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def mostly_slow(cases: Iterable[Any], kept: int = 1) -> list[Any]:
    """Return cases to parametrize a test with; all but the first ones are left to make test-all."""
    return [
        pytest.param(x, marks=[] if i < kept else pytest.mark.slow) for i, x in enumerate(cases)
    ]
