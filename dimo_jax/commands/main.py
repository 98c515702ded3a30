"""Runs what a config describes, from the first check to the line that says where it is."""

import contextlib
import time
from types import ModuleType
from typing import Any

import jax
from absl.flags import FlagValues

from dimo_jax import cli
from dimo_jax import config as configs
from dimo_jax.bundles import places
from dimo_jax.common import files, hub, run_lock
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import format_seconds
from dimo_jax.config import validation
from dimo_jax.parallel import distributed, locks, sharding
from dimo_jax.runs import banner, dry_run, image_run, joint_run, training_sets, work_folder
from dimo_jax.training import load_models, stages, traces, wandb_run
from dimo_jax.training.metrics import Metrics


def run(flags: FlagValues) -> None:
    """Check the config and run what it describes; say at the end where everything is.

    Args:
        flags: those of dimo_jax.main.

    Raises:
        InputError: the config or the work directory cannot be used; many more by what runs.
    """
    began = time.monotonic()
    config, workdir = flags.config.to_dict(), files.path(flags.workdir)
    validation.validate(config)
    config = training_sets.resolved(config)
    validation.validate(config)
    if flags.teacher_only:
        _check_teacher_only(config, flags.profile)
    trace = _trace(flags.profile, config, workdir)
    work_folder.check(workdir, config)
    if config["compilation_cache"]:
        jax.config.update("jax_compilation_cache_dir", config["compilation_cache"])
    cli.start_processes(flags)
    distributed.assert_same(
        {
            "config": config,
            "--workdir": str(workdir),
            "--profile": flags.profile,
            "--teacher_only": flags.teacher_only,
            "code": distributed.code_version(),
        }
    )
    banner.show(banner.machine_lines())
    layout = sharding.layout(config["mesh"])
    lock = locks.held(workdir / run_lock.FILE_NAME, f"--workdir={workdir}")
    if flags.dry_run:
        # To read the checkpoints of a run that goes on would remove what it is writing.
        with lock if workdir.exists() else contextlib.nullcontext():
            return dry_run.show(_load(config, workdir, layout))
    with lock:
        what = _run(config, workdir, layout, began, trace, flags.teacher_only)
    if distributed.is_lead():
        print(f"{what} in {format_seconds(time.monotonic() - began)}; everything is in {workdir}/")
        if config["data"]["name"] != "joint":
            made = workdir / ("teacher" if flags.teacher_only else places.EXPORT_FOLDER)
            steps = config["logging"]["picture_steps"] if flags.teacher_only else None
            command = banner.sample_command(made, load_models.is_text(config), steps)
            print(f"images of it: {command}")
            if not flags.teacher_only:  # whose bundle has no model card
                print(f"to publish it: {hub.upload_command(made)}")


def _trace(given: str | None, config: dict[str, Any], workdir: AnyPath) -> traces.Request | None:
    """Return what --profile requests."""
    if given is None:
        return None
    window, total = traces.window(given), config["distill"]["num_steps"]
    if window.end > total:
        raise InputError(
            f"--profile={given} records steps {window.first} to {window.end - 1}, and the last "
            f"step of the distillation is {total - 1} (config.distill.num_steps={total})"
        )
    return traces.Request(window, workdir / "profile", "distill")


def _check_teacher_only(config: dict[str, Any], profile: str | None) -> None:
    """Refuse --teacher_only where no teacher is trained."""
    teacher, joint = config["teacher"], config["data"]["name"] == "joint"
    if joint or not configs.trains_teacher(config):
        given = f"config.teacher.bundle={teacher['bundle']}" if teacher["bundle"] else "random"
        found = "the exact posterior of config.data.joint" if joint else given
        raise InputError(
            f"--teacher_only ends with a teacher that the run has trained, and this run's teacher "
            f"is {found}: leave the flag out"
        )
    if profile is not None:
        raise InputError(
            f"--profile={profile} records the distillation, which --teacher_only leaves out: give "
            "one of them"
        )


def _kind(config: dict[str, Any]) -> ModuleType:
    """Return the module whose `load` and `run` are for a config."""
    return joint_run if config["data"]["name"] == "joint" else image_run


def _load(config: dict[str, Any], workdir: AnyPath, layout: sharding.Layout) -> Any:
    """Find all that the config can get wrong, before anything is computed or written."""
    trained = ("pretrain", "distill") if configs.trains_teacher(config) else ("distill",)
    if config["logging"]["wandb"] and distributed.is_lead():
        wandb_run.check()
    stages.refuse_other_settings(
        config, {name: stages.checkpoints_of(workdir, name) for name in trained}
    )
    return _kind(config).load(config, workdir, layout)


def _run(
    config: dict[str, Any],
    workdir: AnyPath,
    layout: sharding.Layout,
    began: float,
    trace: traces.Request | None,
    teacher_only: bool,
) -> str:
    """Start the run, or go on with it where it was; return what it has made."""
    loaded = _load(config, workdir, layout)
    banner.show(banner.run_lines(config, loaded.network, layout, workdir))
    work_folder.write_config(config, workdir / work_folder.CONFIG_FILE)
    with Metrics(workdir, config["logging"]["tensorboard"]) as metrics:
        if config["logging"]["wandb"] and distributed.is_lead():
            tracker = wandb_run.start(config, workdir)
            banner.show([tracker.described])
            metrics.add(tracker)
        if teacher_only:
            return image_run.run(loaded, metrics, began, teacher_only=True)
        return _kind(config).run(loaded, metrics, began, trace)
