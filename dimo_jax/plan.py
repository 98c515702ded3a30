"""What a run would need on TPUs that are not there; runs on any CPU.

python -m dimo_jax.plan --config=configs/imagenet.py --topology=v5e:4x4
"""

import json

from absl import flags
from ml_collections import config_flags

from dimo_jax import cli, files, validation
from dimo_jax.errors import InputError
from dimo_jax.parallel import sharding, topologies
from dimo_jax.runs import planning
from dimo_jax.training.progress import Progress

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "the run's config, e.g. configs/imagenet.py:paper")
flags.DEFINE_string("topology", None, "e.g. v5e:4x4, v5p:2x2x2, v6e:16x16, v4:2x2x1, cpu:8")
flags.DEFINE_integer("num_slices", 1, "TPU slices of that shape", lower_bound=1)
flags.DEFINE_enum(
    "what", "train", list(planning.PROGRAMS), "the training step, one step, or the teacher's steps"
)
flags.DEFINE_integer("batch_size", 64, "images of one call of a sampler", lower_bound=1)
flags.DEFINE_integer("steps", 8, "with --what=teacher_sample", lower_bound=1)
flags.DEFINE_float("guidance", None, "with --what=teacher_sample; default config.distill.guidance")
flags.DEFINE_string("output", None, "a JSON file for the plan; the text is printed in any case")
flags.mark_flags_as_required(["config", "topology"])


def main() -> None:
    """Compiles the real program for the slice and says whether it fits."""
    config = FLAGS.config.to_dict()
    validation.validate(config, starts=False)
    found, device = topologies.find(FLAGS.topology, FLAGS.num_slices)
    layout = sharding.layout(config["mesh"], found)
    with Progress("plan") as progress:
        sampling = planning.Sampling(FLAGS.batch_size, FLAGS.steps, FLAGS.guidance)
        result = planning.plan(config, FLAGS.what, layout, device, sampling, progress.note)
    result = {"topology": FLAGS.topology, "num_slices": FLAGS.num_slices, **result}
    if FLAGS.output:
        files.write_file(FLAGS.output, json.dumps(result, indent=1).encode())
    print(planning.text(result))
    if not result["fits"]:
        raise InputError(f"the run does not fit on {FLAGS.topology}; see the verdict above")


if __name__ == "__main__":
    cli.run(main)
