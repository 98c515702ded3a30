"""What a run would need on TPUs or GPUs that are not there; runs on any CPU.

python -m dimo_jax.plan --config=configs/imagenet.py --topology=v5e:4x4
python -m dimo_jax.plan --config=configs/imagenet.py --topology=h100:8
"""

from absl import flags
from ml_collections import config_flags

from dimo_jax import cli
from dimo_jax.common.command_flags import Flags

FLAGS = Flags()

FLAGS.group("The run and the machines")
config_flags.DEFINE_config_file(
    "config",
    None,
    "the run's config, e.g. configs/imagenet.py:paper; --config.section.field=value changes a "
    "field",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "topology",
    None,
    "a TPU slice, e.g. v5e:4x4, v5p:2x2x2, v6e:16x16, v4:2x2x1; GPUs of one node, h100:8, h200:8, "
    "b200:8, a100:8, a100_40gb:8, l40s:4, or of several, h100:8x4 (four nodes of 8); cpu:8",
    flag_values=FLAGS,
)
flags.DEFINE_integer("num_slices", 1, "TPU slices of that shape", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string(
    "output", None, "a JSON file for the plan; the text is printed in any case", flag_values=FLAGS
)
cli.define_print_config(FLAGS)
FLAGS.group("What is planned")
flags.DEFINE_enum(
    "what",
    "train",
    ["train", "sample", "teacher_sample"],
    "the training step, one step, or the teacher's steps",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "batch_size", 64, "images of one call of a sampler", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer("steps", 8, "with --what=teacher_sample", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float(
    "guidance",
    None,
    "with --what=teacher_sample; default config.distill.guidance",
    flag_values=FLAGS,
)
FLAGS.require("config", "topology", print_config=["config"])


def main() -> None:
    """Plans the run."""
    from dimo_jax.commands import plan

    plan.run(FLAGS)


if __name__ == "__main__":
    cli.run(main, FLAGS)
