"""Checkpoints of a training state: all of Orbax is in this file.

A checkpoint is `<directory>/<step>/`, with the state and a JSON object `meta` that says what the
state belongs to. Orbax writes it under a temporary name and renames it when it is complete, so a
process killed while saving leaves the last finished checkpoint as it was.
"""

import contextlib
import gc
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from dimo_jax.errors import InputError
from dimo_jax.training import trees

State = Any  # any pytree of arrays

# How long the reads that a failed restore leaves behind may take to end.
SETTLE_SECONDS = 0.5


def changed_entries(
    saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Entries that differ between two JSON objects, one line each: 'a/b: was 1, is 2'.

    Args:
        saved: from a checkpoint.
        current: what this run would write; tuples count as lists, as in JSON.
        prefix: put before each name.
    """
    saved, current = json.loads(json.dumps(saved)), json.loads(json.dumps(current))
    lines = []
    for name in [*saved, *(n for n in current if n not in saved)]:
        path = f"{prefix}{name}"
        if name not in saved:
            lines.append(f"{path}: was not there, is {current[name]!r}")
        elif name not in current:
            lines.append(f"{path}: was {saved[name]!r}, is gone")
        elif isinstance(saved[name], dict) and isinstance(current[name], dict):
            lines += changed_entries(saved[name], current[name], f"{path}/")
        elif saved[name] != current[name]:
            lines.append(f"{path}: was {saved[name]!r}, is {current[name]!r}")
    return lines


class Checkpoints:
    """The checkpoints of one stage, written in the background.

    Opening removes what a killed process left half-written.

    Args:
        directory: a local path or gs://...; created if need be.
        keep: how many of the newest finished checkpoints stay.
    """

    def __init__(self, directory: str | os.PathLike, keep: int):
        directory = str(directory)
        # Orbax refuses relative paths.
        self.directory = directory if "://" in directory else os.path.abspath(directory)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
            ),
            # Named here because a reopened manager has no item_metadata without handlers (0.12).
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def latest(self) -> int | None:
        """Step of the newest finished checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, meta: Mapping[str, Any]) -> None:
        """Starts to save; returns once the state is copied, so that it may be donated.

        Args:
            step: the state's step; a step that is saved already is left as it is.
            state: a pytree of arrays.
            meta: JSON values.

        Raises:
            Exception: whatever made an earlier background save fail.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
            ),
            # The caller decides when to save; without this Orbax's own interval may refuse.
            force=True,
        )

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The JSON object of a checkpoint, by default the newest.

        Raises:
            InputError: if it cannot be read, or there is none.
        """
        step = self._existing(step)
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return dict(self._attempt(step, lambda: self._manager.restore(step, args=args).meta))

    def restore(self, like: State, step: int | None = None) -> tuple[State, dict[str, Any]]:
        """Reads a checkpoint, by default the newest.

        Args:
            like: arrays or jax.ShapeDtypeStruct in the tree to restore; their shardings say where
                each leaf goes, a leaf without one goes to the first device.
            step: which checkpoint.

        Returns:
            (state, meta): the state has the type and structure of `like`.

        Raises:
            InputError: if there is none, if its tree differs (every difference is listed), or if
                it cannot be read.
        """
        step = self._existing(step)
        meta = self.meta(step)
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first
            ),
            like,
        )
        saved = self._attempt(step, lambda: self._manager.item_metadata(step).state.tree)
        differences = trees.differences(saved, abstract)
        if differences:
            raise InputError(
                f"checkpoint {self._path(step)} holds another state: {'; '.join(differences)}; "
                "use the settings it was made with, or another work directory"
            )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return self._attempt(step, lambda: self._manager.restore(step, args=args).state), meta

    def wait(self) -> None:
        """Returns when the save that is under way, if any, is finished.

        Raises:
            Exception: whatever made it fail.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes the save that is under way and frees the background threads."""
        self._manager.close()

    def _existing(self, step: int | None) -> int:
        step = self.latest() if step is None else step
        if step not in self._manager.all_steps():
            which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise InputError(f"there is {which} in {self.directory}")
        return step

    def _path(self, step: int) -> str:
        return f"{self.directory}/{step}"

    def _attempt(self, step: int, read: Callable[[], Any]) -> Any:
        """read(), with whatever Orbax and TensorStore raise turned into an InputError."""
        with _one_error_only():
            try:
                return read()
            except Exception as error:  # ValueError, KeyError, FileNotFoundError, Exception, ...
                damaged = self._damaged(step, error)
            # Not inside `except`: the error's frames hold the reads that have to end first.
            gc.collect()
            time.sleep(SETTLE_SECONDS)
            gc.collect()
        raise damaged

    def _damaged(self, step: int, error: Exception) -> InputError:
        earlier = [s for s in self._manager.all_steps() if s < step]
        then = f"continue from step {max(earlier)}" if earlier else "start again from step 0"
        reason = (str(error).splitlines() or [""])[0][:200]
        return InputError(
            f"checkpoint {self._path(step)} cannot be read ({type(error).__name__}: {reason}); "
            f"remove that directory to {then}"
        )


@contextlib.contextmanager
def _one_error_only() -> Iterator[None]:
    """Drops what a failed restore prints besides its error.

    Orbax 0.12 leaves its event loop at the first error, while TensorStore is still reading the
    other arrays. Each of those reads then prints a traceback of its own from another thread, such
    as 'Event loop is closed', and they would bury the sentence that counts.
    """
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")
    disabled = logger.disabled
    sys.unraisablehook, logger.disabled = (lambda _: None), True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited")
            yield
    finally:
        sys.unraisablehook, logger.disabled = hook, disabled
