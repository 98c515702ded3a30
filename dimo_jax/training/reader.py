"""Reads the metrics of steps late, records them, and stops at what is not finite."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.method.masked.pretrain import BY_RATIO
from dimo_jax.training.checkpoints import Checkpoints
from dimo_jax.training.metrics import Metrics

# Among a step's metrics: how many optimizer updates it left out, since a gradient was not finite.
SKIPPED = "updates_skipped"
TOTAL = "updates_skipped_total"
IN_A_ROW = "steps_skipped_in_a_row"


class Reader:
    """Holds the metrics of steps that the device may not have finished yet, and reads them late.

    Args:
        name: the stage.
        start: the step it starts from.
        num_steps: in all.
        log_every_steps: a line in the metrics once in that many steps.
        shown: names of metrics for the progress line.
        metrics: of the run.
        progress: of the stage.
        checkpoints: of the stage, for what the messages say.
        max_skipped: steps in a row whose updates were left out that stop the run; 0 is any number.
        seed: of the run, for the message.
        counters: what `counters` was at `start`.
    """

    def __init__(
        self,
        name: str,
        start: int,
        num_steps: int,
        *,
        log_every_steps: int,
        shown: Sequence[str],
        metrics: Metrics,
        progress: Progress,
        checkpoints: Checkpoints,
        max_skipped: int,
        seed: int | None,
        counters: Mapping[str, int],
    ):
        self._name, self._num_steps, self._log_every_steps = name, num_steps, log_every_steps
        self._shown, self._metrics, self._progress = shown, metrics, progress
        self._checkpoints, self._max_skipped, self._seed = checkpoints, max_skipped, seed
        self._total, self._in_a_row = (int(counters.get(key, 0)) for key in (TOTAL, IN_A_ROW))
        self._pending: list[tuple[int, Mapping[str, Any]]] = []
        self._last = (start, time.monotonic())  # step and time of the last read

    @property
    def counters(self) -> dict[str, int]:
        """What was counted up to the last step read, to be saved with the state of that step."""
        counted = self._total or self._in_a_row
        return {TOTAL: self._total, IN_A_ROW: self._in_a_row} if counted else {}

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the metrics of the step that was dispatched last, without waiting for it."""
        self._pending.append((step, values))

    def read(self, late: bool) -> None:
        """Check what is pending, and record the lines that are due.

        Args:
            late: leave the newest step alone, and wait for the others only where a line is due:
                the device then always has a step to work on. False reads everything now.

        Raises:
            InputError: if a metric is not finite though the step made all its updates, or if too
                many steps in a row did not.
        """
        ready = self._pending[:-1] if late else self._pending
        if late and not any(self._due(step) for step, _ in ready):
            return
        self._pending = self._pending[len(ready) :]
        host = jax.device_get([values for _, values in ready])  # waits for the device
        now, newest = time.monotonic(), ready[-1][0]
        rate = (newest - self._last[0]) / max(now - self._last[1], 1e-9)
        self._last = (newest, now)
        for (step, _), values in zip(ready, host, strict=True):
            self._judge(step, values)
            if self._due(step):
                self._record(step, values, rate)
        parts = [f"{key} {float(host[-1][key]):.4g}" for key in self._shown]
        parts += [f"skipped {self._total}"] if self._total else []
        self._progress.update(newest, self._num_steps, "  ".join(parts))

    def _due(self, step: int) -> bool:
        return step % self._log_every_steps == 0 or step == self._num_steps

    def _record(self, step: int, values: Mapping[str, Any], rate: float) -> None:
        recorded = {f"train/{key}": x for key, x in values.items() if key != SKIPPED}
        if SKIPPED in values:
            recorded[f"train/{TOTAL}"] = self._total
        self._metrics.write(step, recorded | {"time/steps_per_second": rate}, self._name)

    def _judge(self, step: int, values: Mapping[str, Any]) -> None:
        skipped = float(values.get(SKIPPED, 0))
        if 0 < skipped < np.inf:
            self._total += int(skipped)
            self._in_a_row += 1
            if 0 < self._max_skipped <= self._in_a_row:
                raise InputError(self._too_many(step))
            return
        self._in_a_row = 0
        bad = [
            f"{key} {float(x)}"
            for key, x in values.items()
            if not np.isfinite(x) and not key.startswith(BY_RATIO)
        ]
        if bad:
            raise InputError(
                f"{self._name}: not finite at step {step} of {self._num_steps}: {', '.join(bad)}; "
                f"the checkpoints in {self._checkpoints.directory} are from before; try a lower "
                "learning rate, a longer warm-up or stronger clipping, in another work directory"
            )

    def _too_many(self, step: int) -> str:
        newest = self._checkpoints.latest()
        again = "step 0" if newest is None else f"step {newest}, the newest checkpoint"
        seed = "" if self._seed is None else f" (seed {self._seed})"
        return (
            f"{self._name}: the gradient was not finite in {self._in_a_row} steps in a row, the "
            f"last of them step {step} of {self._num_steps}{seed}; their updates were left out; "
            f"the same command repeats them from {again} in {self._checkpoints.directory}; try a "
            "lower learning rate, a longer warm-up or stronger clipping, in another work "
            "directory, or allow more with config.max_skipped_in_a_row"
        )
