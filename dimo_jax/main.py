"""A whole run: teacher, distillation, export, evaluation, report.

python -m dimo_jax.main --config=configs/digits.py --workdir=runs/digits

--workdir may be gs://bucket/folder, which every machine reaches.

On several machines, or with several processes on one, each is started with the same command and the
same work directory, which all of them reach. SLURM, TPU pods and indexed Kubernetes jobs tell each
its place; elsewhere --coordinator=host:port --num_processes=N --process_id=0, 1, ... do.
"""

import json
import time
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from dimo_jax import cli, files, validation
from dimo_jax import config as configs
from dimo_jax.errors import InputError
from dimo_jax.files import AnyPath
from dimo_jax.parallel import distributed, sharding
from dimo_jax.runs.image_run import ImageRun
from dimo_jax.runs.joint_run import JointRun
from dimo_jax.training import stages
from dimo_jax.training.metrics import Metrics
from dimo_jax.training.progress import format_seconds

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "the run's config, e.g. configs/digits.py:patch")
flags.DEFINE_string("workdir", None, "where the run lives; the same one continues it")
flags.mark_flags_as_required(["config", "workdir"])
cli.define_process_flags()


def main() -> None:
    """Checks the config and runs what it describes; says at the end where everything is."""
    began = time.monotonic()
    config, workdir = FLAGS.config.to_dict(), files.path(FLAGS.workdir)
    validation.validate(config)
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is a file; name a folder")
    if config["compilation_cache"]:
        jax.config.update("jax_compilation_cache_dir", config["compilation_cache"])
    cli.start_processes()
    distributed.assert_same(
        {"config": config, "--workdir": str(workdir), "code": distributed.code_version()}
    )
    layout = sharding.layout(config["mesh"])
    trained = ("pretrain", "distill") if configs.trains_teacher(config) else ("distill",)
    stages.refuse_other_settings(
        config, {name: stages.checkpoints_of(workdir, name) for name in trained}
    )
    _write_config(config, workdir / "config.json")
    metrics = Metrics(workdir, config["logging"]["tensorboard"])
    try:
        run = JointRun if config["data"]["name"] == "joint" else ImageRun
        what = run(config, workdir, metrics, layout).run(began)
    finally:
        metrics.close()
    if distributed.is_lead():
        print(f"{what} in {format_seconds(time.monotonic() - began)}; everything is in {workdir}/")


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


if __name__ == "__main__":
    cli.run(main)
