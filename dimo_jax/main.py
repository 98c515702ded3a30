"""A whole run: teacher, distillation, export, evaluation, report.

python -m dimo_jax.main --config=configs/digits.py --workdir=runs/digits

--workdir may be gs://bucket/folder, which every machine reaches.

On several machines, or with several processes on one, each is started with the same command and the
same work directory, which all of them reach. SLURM, TPU pods and indexed Kubernetes jobs tell each
its place; elsewhere --coordinator=host:port --num_processes=N --process_id=0, 1, ... do.
"""

from absl import flags
from ml_collections import config_flags

from dimo_jax import cli
from dimo_jax.common.command_flags import Flags

FLAGS = Flags()

FLAGS.group("The run")
config_flags.DEFINE_config_file(
    "config",
    None,
    "the run's config, e.g. configs/digits.py:patch; --config.section.field=value changes a field",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "workdir", None, "where the run lives; the same one continues it", flag_values=FLAGS
)
flags.DEFINE_bool(
    "dry_run",
    False,
    "check everything, say what would be done stage by stage, and write nothing",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "teacher_only",
    False,
    "end with the trained teacher; the same command without it goes on to distil, and --dry_run is "
    "of both",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "profile",
    None,
    "STEP:STEPS, such as 20:5: record so many steps of the distillation from that one on, for "
    "xprof and TensorBoard, in WORKDIR/profile",
    flag_values=FLAGS,
)
cli.define_print_config(FLAGS)
cli.define_process_flags(FLAGS)
FLAGS.require("config", "workdir", print_config=["config"])


def main() -> None:
    """Run what the config describes."""
    from dimo_jax.commands import main as command

    command.run(FLAGS)


if __name__ == "__main__":
    cli.run(main, FLAGS)
