"""Orbax's manager and handlers as training/checkpoints.py needs them."""

from typing import Any

import orbax.checkpoint as ocp

from dimo_jax.parallel import distributed
from dimo_jax.training import checksums
from dimo_jax.training.retention import Retention

TEMPORARY = ".orbax-checkpoint-tmp"  # ending of a checkpoint's folder until it is complete


class StateHandler(ocp.StandardCheckpointHandler):
    """Orbax's, with checksums: of an array that is damaged on the disk, its formats have none."""

    def finalize(self, directory: Any) -> None:
        """Complete a folder, with the checksums in it."""
        # By the lead alone, before the folder gets its name: no checkpoint is without them.
        super().finalize(directory)
        checksums.write(directory)


@ocp.args.register_with_handler(StateHandler, for_save=True)
class StateSave(ocp.args.StandardSave):
    """What is saved."""


@ocp.args.register_with_handler(StateHandler, for_restore=True)
class StateRestore(ocp.args.StandardRestore):
    """What is restored."""


class _Progress:
    """Whether a save is under way, of this process."""

    def __init__(self):
        self._value = False

    def get(self) -> bool:
        return self._value

    def set(self, value: bool) -> None:
        self._value = value


class _Policy(ocp.checkpoint_managers.PreservationPolicy):
    """Which checkpoints stay, by the steps alone."""

    def __init__(self, retention: Retention):
        self._retention = retention

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        kept = self._retention.kept([x.step for x in checkpoints])
        return [x.step in kept for x in checkpoints]


class Manager(ocp.CheckpointManager):
    """Orbax's, without its own eye on SIGTERM, and without a barrier after a failed save.

    Args:
        directory: of the checkpoints; created if need be.
        state: handler of the state.
        meta: handler of the JSON object beside it.
        retention: which checkpoints stay.
    """

    def __init__(
        self, directory: str, state: StateHandler, meta: ocp.JsonCheckpointHandler, retention: Any
    ):
        super().__init__(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Policy(retention),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                # Otherwise (0.12) every array's thread waits 300 seconds for a folder that another
                # thread failed to make, and the process cannot end before them.
                async_options=ocp.AsyncOptions(
                    create_directories_asynchronously=False, barrier_sync_fn=distributed.meet
                ),
            ),
            item_handlers={"state": state, "meta": meta},
        )
        # Orbax's (0.12) waits for all processes, also on the one whose save failed, while the
        # others wait for its part: nobody would hear of it for 20 minutes.
        self._save_progress_tracker = _Progress()

    def reached_preemption(self, step: int) -> bool:
        """Say no."""
        # Orbax (0.12) asks for the step of a save from a background thread, later. The runtime
        # takes the last number requested as where this process is, and might choose a
        # point to stop at that this process has passed (distributed.stop_together).
        return False
