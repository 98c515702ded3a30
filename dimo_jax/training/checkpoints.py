"""Checkpoints of a training state; Orbax is here, in orbax_manager.py and in saved.py alone.

A checkpoint is `<directory>/<step>/`, with the state and a JSON object `meta` that says what the
state belongs to. Orbax writes it under a temporary name and renames it when it is complete, so a
process killed while saving leaves the last finished checkpoint as it was.

Several processes write one checkpoint together, each its own shards, so the directory must be one
that all of them reach. It can be read on another mesh and by another number of processes.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from dimo_jax.common import files, trees
from dimo_jax.common.errors import InputError
from dimo_jax.parallel import distributed
from dimo_jax.training import checksums, computed_with, orbax_errors
from dimo_jax.training.orbax_errors import Unreadable, reading
from dimo_jax.training.orbax_manager import (
    TEMPORARY,
    Manager,
    StateHandler,
    StateRestore,
    StateSave,
)
from dimo_jax.training.retention import Retention
from dimo_jax.training.saved import COUNTERS, FIGURES, OWN, VERSIONS

State = Any  # any pytree of arrays


class Checkpoints:
    """The checkpoints of one stage, written in the background.

    Opening removes what a killed process left half-written.

    Args:
        directory: a local path or gs://...; created if need be. All processes open it.
        keep: which of the finished checkpoints stay; a number is that of the newest.
        allow_fallback: where the newest cannot be read, take the one before instead of stopping.

    Attributes:
        set_aside: a sentence for each damaged checkpoint that `restore` renamed.
        changed: what is another one than where the restored checkpoint was written: versions of
            Python, packages and this code, kind of device.
    """

    def __init__(
        self, directory: str | os.PathLike, keep: int | Retention, allow_fallback: bool = False
    ):
        directory = str(directory)
        # Orbax refuses relative paths.
        self.directory = directory if "://" in directory else os.path.abspath(directory)
        self.set_aside: list[str] = []
        self.changed: list[str] = []
        self._keep = Retention(keep) if isinstance(keep, int) else keep
        self._allow_fallback = allow_fallback
        self._computed_with = computed_with.begun()
        self._saving: int | None = None  # the step whose save began last
        self._failed = self._abandoned = False
        self._before = set(threading.enumerate())  # threads that are not of a save
        # Read from directly: what the manager does around them waits for the other processes,
        # which never come if one of them alone finds its shards damaged.
        self._state, self._meta = StateHandler(), ocp.JsonCheckpointHandler()
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(orbax_errors.quiet_failures())
        self._manager = Manager(self.directory, self._state, self._meta, self._keep)
        for step in self._manager.all_steps() if self._keep.best else ():
            with contextlib.suppress(Unreadable):  # damaged: it is not among the best
                found = reading(lambda step=step: self._read_meta(step))
                self._keep.note(step, found.get(FIGURES, {}))

    def latest(self) -> int | None:
        """Step of the newest finished checkpoint, None where there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that can be gone back to, oldest first."""
        # A process killed while it removed an older one leaves a part of that under its name.
        return sorted(self._manager.all_steps())[-self._keep.newest :]

    def save(
        self,
        step: int,
        state: State,
        meta: Mapping[str, Any],
        counters: Mapping[str, int] | None = None,
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Start to save; return once the state is copied, so that it may be donated.

        Args:
            step: the state's step; a step that is saved already is left as it is.
            state: a pytree of arrays.
            meta: JSON values that a resumed run must repeat.
            counters: whole numbers that a resumed run counts on from.
            figures: {name: what was measured of this state}, at most one; the less the better.

        Raises:
            InputError: if this save or the one before failed; the finished ones stay valid.
        """
        if step in self._manager.all_steps():
            return
        files.guard()
        more = {COUNTERS: dict(counters or {}), FIGURES: dict(figures or {})}
        beside = {**meta, **{name: entry for name, entry in more.items() if entry}}
        beside[VERSIONS] = self._computed_with
        with self._failing_well():
            self._manager.wait_until_finished()
            self._saving, self._before = step, set(threading.enumerate())
            self._keep.note(step, figures or {})
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=StateSave(state), meta=ocp.args.JsonSave(checksums.signed(beside))
                ),
                # The caller decides when to save; without this Orbax's own interval may refuse.
                force=True,
            )

    def is_best(self, figures: Mapping[str, float]) -> bool:
        """Return whether a checkpoint of these figures would be kept as one of the best."""
        return self._keep.is_best(figures, self._manager.all_steps())

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """Return the JSON object of a checkpoint, by default the newest, as `save` was given it.

        Raises:
            InputError: if it cannot be read, or there is none.
        """
        found = self._first_readable(step, lambda s: reading(lambda: self._read_meta(s)))
        return {name: value for name, value in found[1].items() if name not in OWN}

    def counters(self, step: int | None = None) -> dict[str, int]:
        """Return the counters saved with a checkpoint, by default the newest.

        {} where there are none.

        Raises:
            InputError: if they cannot be read, or there is no such checkpoint.
        """
        found = self._first_readable(step, lambda s: reading(lambda: self._read_meta(s)))
        return dict(found[1].get(COUNTERS, {}))

    def restore(self, like: State, step: int | None = None) -> tuple[State, dict[str, Any]]:
        """Read a checkpoint, by default the newest.

        Args:
            like: arrays or jax.ShapeDtypeStruct in the tree to restore; their shardings say where
                each leaf goes, whatever they were when it was saved; a leaf without one goes to
                the first device.
            step: which checkpoint.

        Returns:
            (state, meta): the state has the type and structure of `like`.

        Raises:
            InputError: if there is none, if its tree differs (every difference is listed), or if
                it cannot be read, and either the one before is not allowed or cannot be read
                either. With a fallback, what was passed over is renamed to <step>.damaged once
                another one has been read.
        """
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first
            ),
            like,
        )
        found, state, damaged = self._first_readable(step, lambda s: self._read(s, abstract))
        for bad, reason in damaged.items():
            self._set_aside(bad, reason, found)
        saved = self._read_meta(found).get(VERSIONS)
        self._computed_with, self.changed = computed_with.continued(saved, found)
        return state, self.meta(found)

    def wait(self) -> None:
        """Return when the save that is under way, if any, is finished.

        Raises:
            InputError: if it failed; a second call then returns at once.
        """
        if not (self._failed or self._abandoned):
            with self._failing_well():
                self._manager.wait_until_finished()

    def abandon(self) -> None:
        """Wait for nothing any more: for no process that has ended, nor for a disk that hangs."""
        self._abandoned = True
        distributed.abandon_threads()

    def close(self) -> None:
        """Finish the save that is under way and free the background threads.

        Raises:
            InputError: if that save failed, and that was not reported yet.
        """
        if self._abandoned:
            return
        with contextlib.suppress(Exception) if self._failed else self._failing_well():
            self._manager.close()
        if not self._failed:  # what a failed save has left prints until the process ends
            self._quiet.close()

    def _path(self, name: int | str) -> Any:
        return self._manager.directory / str(name)

    def _read_meta(self, step: int) -> dict[str, Any]:
        found = dict(self._meta.restore(self._path(step) / "meta"))
        checksums.check_signed(found)
        return found

    def _read(self, step: int, abstract: State) -> State:
        """Return the state of a checkpoint; the same outcome on every process.

        Raises:
            Unreadable: if any process cannot read its part.
            InputError: if the tree is another one.
        """
        place = self._path(step) / "state"
        state, reason, differences = None, "", []
        try:
            # One that is saved since the metadata are signed has checksums of its arrays too.
            required = checksums.FIELD in reading(lambda: self._read_meta(step))
            if distributed.is_lead():
                reading(lambda: checksums.check(place, required))
            saved = reading(lambda: self._state.metadata(place).tree)
            differences = trees.differences(saved, abstract)
            if not differences:
                args = StateRestore(abstract)
                state = reading(lambda: self._state.restore(place, args=args), arrays=True)
        except Unreadable as error:
            reason = str(error)
        if not distributed.agree(not reason):
            raise Unreadable(reason or "another process cannot read its part")
        if differences:
            raise InputError(
                f"checkpoint {self._path(step)} holds another state: {'; '.join(differences)}; "
                "use the settings it was made with, or another work directory"
            )
        return state

    def _first_readable(
        self, step: int | None, read: Callable[[int], Any]
    ) -> tuple[int, Any, dict[int, str]]:
        """(step, read(step), {step passed over: reason}) of the newest that can be read.

        Raises:
            InputError: if there is none, or the first is damaged and no other is allowed.
        """
        self.wait()
        steps = self.steps()
        if step is None and steps:
            candidates = steps[::-1] if self._allow_fallback else steps[-1:]
        elif step is not None and step in self._manager.all_steps():
            candidates = [step]
        else:
            which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise InputError(f"there is {which} in {self.directory}")
        damaged = {}
        for candidate in candidates:
            try:
                return candidate, read(candidate), damaged
            except Unreadable as error:
                damaged[candidate] = str(error)
        raise self._damaged(damaged)

    def _damaged(self, damaged: Mapping[int, str]) -> InputError:
        found = "; ".join(
            f"checkpoint {self._path(step)} cannot be read ({reason})"
            for step, reason in damaged.items()
        )
        earlier = [step for step in self.steps() if step < min(damaged)]
        if not earlier:
            every = "that directory" if len(damaged) == 1 else "these directories"
            return InputError(f"{found}; remove {every} to start again from step 0")
        return InputError(
            f"{found}; the one before is {self._path(max(earlier))}: give "
            "--config.checkpoint.allow_fallback=True to continue from there"
        )

    def _set_aside(self, step: int, reason: str, used: int) -> None:
        """Rename a damaged checkpoint, so that its step can be saved again."""
        number, place = 1, self._path(f"{step}.damaged")
        while place.exists():
            number += 1
            place = self._path(f"{step}.damaged{number}")
        distributed.barrier(f"damaged {step}")  # all have found the same free name
        if distributed.is_lead():
            self._path(step).rename(place)
        distributed.barrier(f"set aside {step}")
        self._manager.reload()
        self.set_aside.append(
            f"checkpoint {self._path(step)} cannot be read ({reason}); it is now {place}, and step "
            f"{used} is used instead"
        )

    @contextlib.contextmanager
    def _failing_well(self) -> Iterator[None]:
        """Turn what a failed save raises into one sentence, the first time."""
        try:
            yield
        except KeyboardInterrupt:
            # The first one lets the save end; who sends another does not want to wait for it.
            self.abandon()
            raise
        except Exception as error:
            self._failed = True
            if distributed.lost(error):
                raise
            path = self.directory if self._saving is None else self._path(self._saving)
            if not orbax_errors.settle(self._before, f"{path}{TEMPORARY}"):
                self.abandon()
            self._manager.reload()  # it had counted the one that failed
            finished = [step for step in self._manager.all_steps() if step != self._saving]
            valid = f"the one of step {max(finished)} stays valid; " if finished else ""
            raise InputError(
                f"checkpoint {path} cannot be written: {orbax_errors.cause(error)}; {valid}once "
                "that is mended, the same command continues"
            ) from error
