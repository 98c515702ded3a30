"""Metrics of a run: JSON lines are the record; TensorBoard (all of clu) and a tracker are views.

`<workdir>/metrics.jsonl` has one object a line: {"stage": ..., "step": ..., "<name>": number}.
Apart from the keys under time/, the record of an interrupted and resumed run equals that of an
uninterrupted one. Pictures go to `<workdir>/images/<stage>/`. On a disk every line is there at
once; an object store cannot append, so there it is written as a whole from time to time, and
before every checkpoint.
"""

import contextlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from dimo_jax.common import files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.images import save_png

FILE_NAME = "metrics.jsonl"
# Between two writes of the whole record to an object store; what a kill may cost of it.
STORE_EVERY_SECONDS = 30.0


def read(workdir: str | AnyPath) -> list[dict[str, Any]]:
    """Return the record of a run, one dict for each line, oldest first; [] where there is none.

    A last line that a killed process left half-written is left out.

    Raises:
        InputError: if any other line is not a JSON object.
    """
    path = files.path(workdir) / FILE_NAME
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # what follows the last newline: nothing, or the torn line
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = readers.parse_json(line, "")
        except InputError:
            record = None
        if not isinstance(record, dict):
            raise InputError(
                f"{path}, line {number}, is not a JSON object; delete that line to continue"
            )
        records.append(record)
    return records


class _Appended:
    """The record on a disk."""

    def __init__(self, path: AnyPath):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            self.replace(read(path.parent))

    def append(self, record: Mapping[str, Any]) -> None:
        files.guard()
        # One write of the whole line, so that a kill can tear the last line only.
        with self._path.open("ab", buffering=0) as file:
            file.write(_line(record))

    def replace(self, records: list[dict[str, Any]]) -> None:
        files.write_file(self._path, b"".join(map(_line, records)))

    def records(self) -> list[dict[str, Any]]:
        return read(self._path.parent)

    def flush(self) -> None:
        pass


class _Stored:
    """The record in an object store: kept in memory, written whole."""

    def __init__(self, path: AnyPath, clock: Callable[[], float] = time.monotonic):
        self._path, self._clock = path, clock
        self._records = read(path.parent)
        self._is_stored, self._stored_at = True, clock()

    def append(self, record: Mapping[str, Any]) -> None:
        self._records.append(dict(record))
        self._is_stored = False
        if self._clock() - self._stored_at >= STORE_EVERY_SECONDS:
            self.flush()

    def replace(self, records: list[dict[str, Any]]) -> None:
        self._records, self._is_stored = list(records), False
        self.flush()

    def records(self) -> list[dict[str, Any]]:
        return list(self._records)

    def flush(self) -> None:
        if not self._is_stored:
            files.write_file(self._path, b"".join(map(_line, self._records)))
            self._is_stored, self._stored_at = True, self._clock()


@runtime_checkable
class View(Protocol):
    """What shows the record elsewhere; its failure ends the view, never the run.

    Attributes:
        failed: what no longer happens then, for a line on standard error.
    """

    failed: str

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Show a line of the record, whose values need not be finite."""
        ...

    def images(self, stage: str, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show pictures, uint8 [H, W, C]."""
        ...

    def close(self, exit_code: int) -> None:
        """Show all that is left, and that the run ended with this status."""
        ...


class _TensorBoard:
    """Event files in a folder for each stage."""

    failed = "no TensorBoard files are written"

    def __init__(self, directory: AnyPath):
        # Here and by name because it takes seconds: clu's writers pull in TensorFlow.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # announced on every start if on
        self._clu = importlib.import_module("clu.metric_writers")
        self._directory = directory
        self._writers: dict[str, Any] = {}  # stage -> clu SummaryWriter

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._of(stage).write_scalars(step, values)

    def images(self, stage: str, step: int, images: Mapping[str, np.ndarray]) -> None:
        batch = {name: image[None] for name, image in images.items()}  # [1, H, W, C]
        self._of(stage).write_images(step, batch)

    def close(self, exit_code: int) -> None:
        for writer in self._writers.values():
            writer.close()

    def _of(self, stage: str) -> Any:
        if stage not in self._writers:
            self._writers[stage] = self._clu.SummaryWriter(str(self._directory / stage))
        return self._writers[stage]


class Metrics:
    """Writer of a run's metrics; only process 0 of a run on many writes.

    Args:
        workdir: the run's directory, on a disk or in an object store; created if need be.
        tensorboard: also write event files to `<workdir>/tensorboard/<stage>/`. Where clu or
            TensorFlow cannot be imported, one line on standard error says so and the run goes on.
    """

    def __init__(self, workdir: str | AnyPath, tensorboard: bool):
        self._workdir = files.path(workdir)
        self._path = self._workdir / FILE_NAME
        self._active = jax.process_index() == 0
        self._views: list[View] = []
        if self._active:
            self._record = (_Stored if files.is_remote(workdir) else _Appended)(self._path)
            if tensorboard:
                try:
                    self._views.append(_TensorBoard(self._workdir / "tensorboard"))
                except Exception as error:  # a broken TensorFlow raises anything
                    self._notice(_TensorBoard.failed, error)

    def __enter__(self) -> "Metrics":
        """Return itself, to be closed at the end of the block."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Close, with the status of an error that ended the block."""
        self.close(0 if error is None else getattr(error, "exit_code", 1))

    def add(self, view: View) -> None:
        """Show what is written from now on in another view too, and close it with the rest."""
        self._views.append(view)

    def rewind(self, stage: str, step: int) -> None:
        """Drop this stage's lines of later steps, which a resumed run writes again.

        Args:
            stage: other stages' lines stay.
            step: the last step to keep; -1 drops the whole stage.
        """
        if self._active:
            records = self._record.records()
            kept = [r for r in records if r.get("stage") != stage or r.get("step", 0) <= step]
            if len(kept) < len(records):
                self._record.replace(kept)

    def write(self, step: int, values: Mapping[str, Any], stage: str) -> None:
        """Append one line.

        Args:
            step: updates made so far.
            values: name -> scalar; a value that is not finite is recorded as null.
            stage: e.g. "pretrain".
        """
        if not self._active:
            return
        reserved = {"stage", "step"} & set(values)
        if reserved:
            raise ValueError(f"{sorted(reserved)} cannot be names of metrics")
        numbers = {name: float(value) for name, value in values.items()}
        record = {"stage": stage, "step": step}
        record |= {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._record.append(record)
        self._show(lambda view: view.scalars(stage, step, numbers))

    def images(self, step: int, images: Mapping[str, np.ndarray], stage: str) -> None:
        """Write `<workdir>/images/<stage>/<name>_<step>.png`.

        Args:
            step: updates made so far.
            images: name -> uint8 [H, W, C], C = 1 or 3.
            stage: e.g. "distill".
        """
        if not self._active:
            return
        directory = self._workdir / "images" / stage
        for name, image in images.items():
            save_png(directory / f"{name}_{step:07d}.png", image)
        self._show(lambda view: view.images(stage, step, images))

    def flush(self) -> None:
        """Return when every line so far is where `read` finds it.

        To be called before a checkpoint is saved: a run that goes on from there writes no earlier
        line again.

        Raises:
            InputError: the record cannot be written.
        """
        if self._active:
            self._record.flush()

    def close(self, exit_code: int = 0) -> None:
        """Flush the record, and close the views with the run's exit status."""
        try:
            self.flush()
        finally:
            self._show(lambda view: view.close(exit_code))
            self._views = []

    def _show(self, call: Callable[[View], None]) -> None:
        for view in list(self._views):
            try:
                call(view)
            except Exception as error:
                self._views.remove(view)
                self._notice(view.failed, error)
                with contextlib.suppress(Exception):
                    view.close(1)

    def _notice(self, what: str, error: Exception) -> None:
        reason = (str(error).splitlines() or [""])[0]
        print(
            f"{what} ({type(error).__name__}: {reason}); {self._path} has every metric",
            file=sys.stderr,
        )


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
