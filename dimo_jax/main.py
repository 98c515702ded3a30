"""A whole run: teacher, distillation, export, evaluation, report.

python -m dimo_jax.main --config=configs/digits.py --workdir=runs/digits
"""

import json
import time
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dimo_jax import cli, files
from dimo_jax import config as configs
from dimo_jax.errors import InputError
from dimo_jax.runs.image_run import ImageRun
from dimo_jax.runs.joint_run import JointRun
from dimo_jax.training import stages
from dimo_jax.training.metrics import Metrics
from dimo_jax.training.progress import format_seconds

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "the run's config, e.g. configs/digits.py:patch")
flags.DEFINE_string("workdir", None, "where the run lives; the same one continues it")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Checks the config and runs what it describes; says at the end where everything is."""
    began = time.monotonic()
    config, workdir = FLAGS.config.to_dict(), Path(FLAGS.workdir)
    configs.validate(config)
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is a file; name a folder")
    trained = ("pretrain", "distill") if configs.trains_teacher(config) else ("distill",)
    stages.refuse_other_settings(
        config, {name: stages.checkpoints_of(workdir, name) for name in trained}
    )
    files.write_file(workdir / "config.json", json.dumps(config, indent=1).encode())
    metrics = Metrics(workdir, config["logging"]["tensorboard"])
    try:
        run = JointRun if config["data"]["name"] == "joint" else ImageRun
        what = run(config, workdir, metrics).run(began)
    finally:
        metrics.close()
    print(f"{what} in {format_seconds(time.monotonic() - began)}; everything is in {workdir}/")


if __name__ == "__main__":
    cli.run(main)
