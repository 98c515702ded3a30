"""Where an evaluation and the run that it is of are on disk."""

from typing import Any

from dimo_jax.bundles import places
from dimo_jax.common import files
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.config import flat
from dimo_jax.training import metrics

FILE_NAME = "results.json"


def find(path: AnyPath | str) -> AnyPath:
    """Return the results.json that a path means: itself, in that folder, or in a run's one report.

    Args:
        path: a results.json, its folder, or a workdir that holds one such folder (of several, the
            one called report).

    Raises:
        InputError: there is none, or several and none is called report.
    """
    path = files.path(path)
    if path.is_file():
        return path
    for folder in (path, path / "report"):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    inside = sorted(path.glob(f"*/{FILE_NAME}"))
    if len(inside) == 1:
        return inside[0]
    if inside:
        folders = ", ".join(str(entry.parent) for entry in inside)
        raise InputError(f"{path} holds several evaluations; name one of them: {folders}")
    raise InputError(
        f"{path} has no {FILE_NAME}; name a run that was evaluated, an evaluation's folder or its "
        f"{FILE_NAME}"
    )


def trained(folder: AnyPath) -> dict[str, Any]:
    """Return what a run was trained with, {"section.field": value}; empty where that is unknown.

    Args:
        folder: of the results; the run's config.json is in it or one folder up.
    """
    return flat(next(filter(None, map(places.run_config, _both(folder))), {}))


def records(folder: AnyPath, workdir: AnyPath | str | None = None) -> list[dict[str, Any]]:
    """Return the run's metrics, oldest first; [] where there are none.

    Args:
        folder: of the results.
        workdir: of the run; None is the folder or one folder up.

    Raises:
        InputError: a line of metrics.jsonl, other than a torn last one, is not JSON.
    """
    if workdir is not None:
        return metrics.read(workdir)
    there = (place for place in _both(folder) if (place / metrics.FILE_NAME).is_file())
    return next(map(metrics.read, there), [])


def _both(folder: AnyPath) -> tuple[AnyPath, AnyPath]:
    folder = folder if files.is_remote(folder) else folder.absolute()
    return folder, folder.parent
