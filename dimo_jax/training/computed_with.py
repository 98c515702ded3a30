"""What each stretch of a training's steps was computed with, as its checkpoints carry it."""

from typing import Any

import jax

from dimo_jax.common import shown, versions
from dimo_jax.parallel import distributed

# One entry for each stretch, oldest first: {"from_step": int, **current()}.
History = list[dict[str, Any]]


def current() -> dict[str, str]:
    """Return the versions of Python, packages and this code, and the kind of device."""
    code, device = distributed.code_version(), jax.devices()[0].device_kind
    return {**versions.installed(), "code": code, "device": device}


def begun() -> History:
    """Return the history of a training that starts here."""
    return [{"from_step": 0, **current()}]


def continued(saved: Any, step: int) -> tuple[History, list[str]]:
    """Return the history of a training that goes on here, and what is another one than before.

    Args:
        saved: the history of the checkpoint; one without, or with something else in its place, is
            continued by an entry for what follows.
        step: of the checkpoint.
    """
    now = current()
    known = isinstance(saved, list) and all(isinstance(x, dict) for x in saved)
    history = list(saved) if known else []
    before = history[-1] if history else {}
    changes = [shown.shown(text) for text in versions.changes(before, now)]
    if changes or not history:
        history.append({"from_step": step, **now})
    return history, changes
