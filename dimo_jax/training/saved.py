"""Checkpoints read where they lie, while the run that writes them may go on.

Nothing in their folder is made, removed or locked, and of the arrays only those that are wanted are
in memory. Checkpoints of any mesh and number of processes are read, onto the host.
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dimo_jax.common import files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.parallel import distributed
from dimo_jax.training import checksums, retention
from dimo_jax.training.orbax_errors import Unreadable, reading

# Where counters, what was measured, and the versions it was computed with lie in the JSON object
# beside the state, which has a checksum of itself.
OWN = COUNTERS, FIGURES, VERSIONS, _ = "counters", "figures", "versions", checksums.FIELD
NEWEST, BEST = "newest", "best"
# How often a newest checkpoint may be removed while it is read; each time the next is taken.
_ATTEMPTS = 5
# How long the run may take to remove a folder whose files are already missing.
REMOVAL_SECONDS = 3.0
# What Orbax writes last into a checkpoint; in an object store, which renames no folder.
_COMMITTED = "commit_success.txt"


def steps(directory: AnyPath) -> list[int]:
    """Find the steps of the finished checkpoints, oldest first; [] where there is no folder."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir()]
    found = sorted(int(name) for name in names if re.fullmatch("[0-9]+", name))
    if files.is_remote(directory):
        found = [step for step in found if (directory / str(step) / _COMMITTED).exists()]
    return found


def meta(directory: AnyPath, step: int) -> dict[str, Any]:
    """Read the JSON object beside a state.

    Raises:
        InputError: it cannot be read, or is not what was written.
    """
    place = directory / str(step) / "meta" / "metadata"
    found = readers.json_object(place)
    try:
        checksums.check_signed(found)
    except ValueError as error:
        raise InputError(f"{place} is damaged: {error}") from error
    return found


def figures(directory: AnyPath) -> dict[int, float]:
    """Read what was measured of each checkpoint, {step: figure}, under the name of the newest.

    What was measured of how many samples is part of a name; other names cannot be compared.
    """
    found: dict[int, tuple[str, float]] = {}
    for step in steps(directory):
        try:
            for name, figure in meta(directory, step).get(FIGURES, {}).items():
                found[step] = (str(name), float(figure))
        except (InputError, AttributeError, TypeError, ValueError):
            continue  # removed meanwhile, or damaged: it is not among the best
    newest = found[max(found)][0] if found else ""
    return {step: figure for step, (name, figure) in found.items() if name == newest}


def read_part(directory: AnyPath, wanted: str | int, name: str) -> tuple[int, Any]:
    """Read one entry of a state; every process of a command calls it and gets the same.

    Args:
        directory: of a stage's checkpoints.
        wanted: a step, NEWEST or BEST.
        name: of the entry, such as "ema".

    Returns:
        (step, tree of NumPy arrays).

    Raises:
        InputError: there is no such checkpoint, it cannot be read, or it was removed meanwhile.
    """
    for _ in range(_ATTEMPTS):
        step = _decided(lambda: _choose(directory, wanted))
        tree, reason = None, ""
        try:
            tree = _read(directory / str(step), name)
        except Unreadable as error:
            reason = str(error)
        if distributed.agree(not reason):
            return step, tree
        place = directory / str(step)
        removed = _decided(lambda place=place: _was_removed(place))
        others = _there([x for x in steps(directory) if x != step])
        if not removed:
            why = reason or "another process cannot read it"
            raise InputError(f"checkpoint {place} cannot be read ({why}); {others}")
        if wanted not in (NEWEST, BEST):
            break
    raise InputError(
        f"checkpoint {place} was removed by its run while it was read; {others}, or let the run "
        "keep them longer (config.checkpoint.keep, keep_every_steps)"
    )


def _choose(directory: AnyPath, wanted: str | int) -> int:
    """Return the step that is wanted.

    Raises:
        InputError: there is none.
    """
    found = steps(directory)
    if not found:
        raise InputError(
            f"there is no checkpoint in {directory} yet; the run saves the first after "
            "config.checkpoint.save_every_steps"
        )
    if wanted == NEWEST:
        return found[-1]
    if wanted == BEST:
        best = retention.best_of(figures(directory), 1)
        if not best:
            raise InputError(
                f"nothing was measured of the checkpoints in {directory}, so none is the best; "
                "that needs --config.interim.every_steps and --config.checkpoint.keep_best"
            )
        return next(iter(best))
    if wanted not in found:
        raise InputError(f"there is no checkpoint of step {wanted} in {directory}; {_there(found)}")
    return int(wanted)


def _read(place: AnyPath, name: str) -> Any:
    """Return one entry of the state in a checkpoint, on the host.

    Raises:
        Unreadable: it is damaged, or being removed.
    """
    handler = ocp.PyTreeCheckpointHandler()
    # One whose metadata are signed has checksums of its arrays too.
    required = checksums.FIELD in reading(lambda: meta(place.parent, int(place.name)))
    if distributed.is_lead():
        reading(lambda: checksums.check(place / "state", required))
    state: Any = place / "state"  # Orbax takes any path, and declares one of etils
    saved = reading(lambda: handler.metadata(state).tree[name])
    item = {name: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)}
    to_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    arguments = ocp.args.PyTreeRestore(item=item, restore_args=to_host, partial_restore=True)
    found = reading(lambda: handler.restore(state, args=arguments), arrays=True)
    return found[name]


def _was_removed(place: AnyPath) -> bool:
    """Return whether a checkpoint that cannot be read is gone, or will be in a moment."""
    end = time.monotonic() + REMOVAL_SECONDS
    while place.exists() and time.monotonic() < end:
        time.sleep(0.1)
    return not place.exists()


def _there(found: Sequence[int]) -> str:
    shown = ", ".join(map(str, found)) or "none"
    return f"there are now {shown}: give one of them as --step"


def _decided(decide: Callable[[], Any]) -> Any:
    """decide() of the lead, on all processes.

    Raises:
        InputError: on all processes, where it does on the lead.
    """
    message = b""
    if distributed.is_lead():
        try:
            message = json.dumps({"found": decide()}).encode()
        except InputError as error:
            message = json.dumps({"error": str(error)}).encode()
    answer = json.loads(distributed.gather_bytes(message)[0])
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["found"]
