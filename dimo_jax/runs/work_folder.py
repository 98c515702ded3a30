"""The folder of a run: whose files it holds, and which process has it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dimo_jax.bundles import ownership, places
from dimo_jax.common import files, overlaps
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.parallel import distributed

CONFIG_FILE = "config.json"
# What a run writes into its folder beside config.json, which comes first.
_BUNDLES = ("export", "teacher", "tokenizer", "text_encoder", "classifier")
_OTHERS = (
    *("checkpoints", "data", "images", "metrics.jsonl", "profile", "report", "tensorboard"),
    *("wandb", "wandb.json"),
)


def check(workdir: AnyPath, config: Mapping[str, Any]) -> None:
    """Refuse a folder in which a run would replace what no run has written.

    Args:
        workdir: of the run; need not exist.
        config: a complete config, whose bundles the run only reads.

    Raises:
        InputError: it is a file, holds files of those names and no config.json of a run, lies in a
            bundle that is read, or would write a bundle that is read or is none.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is a file; name a folder")
    files.check_writable(workdir / CONFIG_FILE)
    there = [x for x in (CONFIG_FILE, *_BUNDLES, *_OTHERS) if (workdir / x).exists()]
    if there and not places.run_config(workdir):
        raise InputError(
            f"--workdir={workdir} holds {there[0]} and no {CONFIG_FILE} of a run, which would "
            "replace it; name a new folder"
        )
    read = list(_bundles_of(config))
    overlaps.refuse(workdir, read, may_hold=True, flag="--workdir")
    overlaps.refuse(workdir / "export", read, flag="the export of --workdir")
    for name in _BUNDLES:
        files.check_folder(workdir / name, ownership.foreign)


def _bundles_of(section: Mapping[str, Any]) -> Iterator[str]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _bundles_of(value)
        elif name == "bundle" and value:
            yield str(value)


def write_config(config: Mapping[str, Any], path: AnyPath) -> None:
    """Record the config; find out whether all processes have the same work directory."""
    if distributed.is_lead():
        files.write_file(path, json.dumps(config, indent=1).encode())
    distributed.barrier("config.json")
    if not distributed.agree(path.exists()):
        raise InputError(
            f"not all processes see {path}, which process 0 wrote; --workdir must be on a disk "
            "that all of them share"
        )
