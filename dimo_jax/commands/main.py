"""Runs what a config describes, from the first check to the line that says where it is."""

import json
import time
from typing import Any

import jax
from absl.flags import FlagValues

from dimo_jax import cli, files, validation
from dimo_jax import config as configs
from dimo_jax.errors import InputError
from dimo_jax.files import AnyPath
from dimo_jax.parallel import distributed, sharding
from dimo_jax.runs import banner, dry_run, opening
from dimo_jax.runs.image_run import ImageRun
from dimo_jax.runs.joint_run import JointRun
from dimo_jax.training import stages
from dimo_jax.training.metrics import Metrics
from dimo_jax.training.progress import format_seconds


def run(flags: FlagValues) -> None:
    """Checks the config and runs what it describes; says at the end where everything is.

    Args:
        flags: those of dimo_jax.main.

    Raises:
        InputError: the config or the work directory cannot be used; many more by what runs.
    """
    began = time.monotonic()
    config, workdir = flags.config.to_dict(), files.path(flags.workdir)
    validation.validate(config)
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is a file; name a folder")
    if config["compilation_cache"]:
        jax.config.update("jax_compilation_cache_dir", config["compilation_cache"])
    cli.start_processes(flags)
    distributed.assert_same(
        {"config": config, "--workdir": str(workdir), "code": distributed.code_version()}
    )
    banner.show(banner.machine_lines())
    layout = sharding.layout(config["mesh"])
    trained = ("pretrain", "distill") if configs.trains_teacher(config) else ("distill",)
    stages.refuse_other_settings(
        config, {name: stages.checkpoints_of(workdir, name) for name in trained}
    )
    kind = JointRun if config["data"]["name"] == "joint" else ImageRun
    # All that the config can get wrong is found here, before anything is computed or written.
    described = kind(config, workdir, layout)
    if flags.dry_run:
        dry_run.show(described)
        return
    banner.show(banner.run_lines(config, described.network, layout, workdir))
    _write_config(config, workdir / "config.json")
    metrics = Metrics(workdir, config["logging"]["tensorboard"])
    try:
        what = described.run(metrics, began)
    finally:
        metrics.close()
    if distributed.is_lead():
        print(f"{what} in {format_seconds(time.monotonic() - began)}; everything is in {workdir}/")
        if config["data"]["name"] != "joint":
            print(f"images of it: {banner.sample_command(workdir, opening.is_text(config))}")


def _write_config(config: dict[str, Any], path: AnyPath) -> None:
    """Records the config; finds out whether all processes have the same work directory."""
    if distributed.is_lead():
        files.write_file(path, json.dumps(config, indent=1).encode())
    distributed.barrier("config.json")
    if not distributed.agree(path.exists()):
        raise InputError(
            f"not all processes see {path}, which process 0 wrote; --workdir must be on a disk "
            "that all of them share"
        )
