"""How fast this machine runs a config: the training step, the samplers, the decoder.

python -m dimo_jax.benchmark --config=configs/imagenet.py --peak_tflops=989 --output=train.json
python -m dimo_jax.benchmark --config=configs/imagenet.py --what=sample --batch_size=1,8,64
python -m dimo_jax.benchmark --config=configs/imagenet.py --what=teacher_sample --steps=8,16
python -m dimo_jax.benchmark --config=configs/pictures.py --what=data --config.data.path=tokens/x

train is the distillation step; sample the one-step generator, and its parts: network, token
sampling, decoder; teacher_sample the teacher by the sampler of its authors; decode the tokenizer's
decoder; data the reading of a teacher's batches from a folder of tokens, against its training step
or --step_seconds. Where the config names no bundle, weights are random. Figures are medians over
repetitions, with quartiles; compilation is apart. The result is JSON, on stdout or in --output. MFU
is the share of a peak that the model's operations (profiling/flops.py) reach: of the bfloat16 peak
in profiling/devices.py, or of --peak_tflops, which a CPU or an unlisted device needs.
"""

from absl import flags
from ml_collections import config_flags

from dimo_jax import cli
from dimo_jax.common.command_flags import Flags

FLAGS = Flags()

FLAGS.group("Everyday")
config_flags.DEFINE_config_file(
    "config",
    None,
    "e.g. configs/imagenet.py:smoke; --config.section.field=value changes a field",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "what",
    "train",
    ["train", "sample", "teacher_sample", "decode", "data"],
    "what is timed",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "batch_size",
    None,
    "one or more, 1,8,64; default: for train config.distill.batch_size, for data that of pretrain, "
    "else 1,8 and as many as dimo_jax.sample draws at a time",
    flag_values=FLAGS,
)
flags.DEFINE_string("output", None, "a JSON file; default: standard output", flag_values=FLAGS)
cli.define_print_config(FLAGS)
FLAGS.group("What is timed")
flags.DEFINE_list("steps", None, "teacher_sample: of its sampler; default 8,16", flag_values=FLAGS)
flags.DEFINE_float(
    "guidance", None, "teacher_sample: default config.distill.guidance", flag_values=FLAGS
)
flags.DEFINE_float(
    "step_seconds",
    None,
    "data: of a step, such as on another machine; default: it is timed",
    lower_bound=0.0,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "calls",
    5,
    "train, data: steps or batches in a repetition, between two waits",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer("repetitions", 10, "that count", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("warmup", 2, "repetitions before them", lower_bound=0, flag_values=FLAGS)
FLAGS.group("Peak and profile")
flags.DEFINE_float(
    "peak_tflops", None, "peak of one device, in TFLOP/s, for MFU", flag_values=FLAGS
)
flags.DEFINE_string(
    "profile",
    None,
    "STEP:STEPS, train: once all is timed, STEP steps more, and then STEPS that are recorded, for "
    "xprof and TensorBoard, in the folder `profile` beside --output",
    flag_values=FLAGS,
)
cli.define_process_flags(FLAGS)
FLAGS.require("config")


def main() -> None:
    """Time the config."""
    from dimo_jax.commands import benchmark

    benchmark.run(FLAGS)


if __name__ == "__main__":
    cli.run(main, FLAGS)
