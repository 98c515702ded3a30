r"""What samples, or a finished run, are worth: figures, a report to look at, runs side by side.

python -m dimo_jax.evaluate --samples=samples.npz --reference=VIRTUAL_imagenet256_labeled.npz \
    --features=bundles/inception --output=eval/
python -m dimo_jax.evaluate --workdir=runs/imagenet --steps=1,8 --temperatures=1,3,5,7,9 \
    --num=50000 --reference=VIRTUAL_imagenet256_labeled.npz --features=bundles/inception \
    --output=eval/
python -m dimo_jax.evaluate --samples=REAL/ --make_reference=real.npz \
    --features=bundles/inception --output=eval/
python -m dimo_jax.evaluate --samples=IMAGES/ --clip=bundles/clip --captions=captions.txt \
    --output=eval/
python -m dimo_jax.evaluate --samples=STYLES/ --hps=bundles/hps --hps_version=v2.1 \
    --hps_prompts=PROMPTS/ --output=eval/
python -m dimo_jax.evaluate --compare runs/one runs/two --output=both/
python -m dimo_jax.evaluate --geneval=results.jsonl

--samples is a folder of pictures, a .zip of them, or an .npz with arr_0 (dimo_jax.sample writes
one); --reference a file of statistics, of images, or both, or a folder of real images. Both may be
tfds:NAME:SPLIT. Of a run the generator (1 step, at each temperature) and the teacher (more steps)
are drawn, judged, and with --speed timed. Features are kept in OUTPUT/features: the same command
goes on after a kill, and other metrics of the same images cost no second pass. It writes
results.json, results.md and report.html, and prints the five lines of OpenAI's evaluator. The
protocols:
"""

import textwrap

from absl import flags

from dimo_jax import cli
from dimo_jax.common.command_flags import Flags
from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.metrics.protocols import METRICS, PROTOCOLS

MODES = ("samples", "workdir", "compare", "geneval")  # what is asked for: one of them

__doc__ += "\n".join(
    textwrap.fill(f"{name:6} {protocol.about}", 100, subsequent_indent=" " * 7)
    for name, protocol in PROTOCOLS.items()
)

FLAGS = Flags()

FLAGS.group("Everyday")
flags.DEFINE_string("samples", None, "the images that are judged", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "a run of dimo_jax.main, in their place", flag_values=FLAGS)
flags.DEFINE_string("reference", None, "what they are compared with", flag_values=FLAGS)
flags.DEFINE_string("features", None, "bundle of the feature network", flag_values=FLAGS)
flags.DEFINE_string("output", None, "folder of the results", flag_values=FLAGS)
flags.DEFINE_integer(
    "num", None, "refuse any other number of samples", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_enum("protocol", "dimo", list(PROTOCOLS), "how it is measured", flag_values=FLAGS)
flags.DEFINE_list(
    "metrics",
    None,
    f"of {', '.join(METRICS)}; default: those of the protocol that the reference serves",
    flag_values=FLAGS,
)
FLAGS.group("Sets of images")
flags.DEFINE_integer(
    "num_neighbours",
    None,
    "k of precision to coverage; default: the protocol's",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "batch_size", None, "images in a batch; 64, long grids fewer", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_bool("recursive", False, "folders: with all inside them", flag_values=FLAGS)
flags.DEFINE_integer(
    "image_size",
    None,
    "real images (--reference, --make_reference): cut out the middle square and shrink it so far",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "data_dir", "~/tensorflow_datasets", "where tfds: data sets lie", flag_values=FLAGS
)
flags.DEFINE_string(
    "make_reference", None, "write such a file (.npz) of --samples, and stop", flag_values=FLAGS
)
FLAGS.group("A run (--workdir)")
flags.DEFINE_string(
    "step",
    None,
    "checkpoint of the generator: its step, newest or best; default: the finished generator, "
    "or of an unfinished run the newest",
    flag_values=FLAGS,
)
flags.DEFINE_list("steps", None, "1 is the generator, others the teacher", flag_values=FLAGS)
flags.DEFINE_list("temperatures", None, "of the generator", flag_values=FLAGS)
flags.DEFINE_float("guidance", None, "of the teacher", flag_values=FLAGS)
flags.DEFINE_integer(
    "seed", 0, "of the samples", lower_bound=0, upper_bound=2**32 - 1, flag_values=FLAGS
)
flags.DEFINE_string(
    "prompts",
    None,
    "of a run with text: a list of prompts, or a benchmark: geneval, hpsv2, coco",
    flag_values=FLAGS,
)
flags.DEFINE_string("metadata", None, "--prompts: the benchmark's own list", flag_values=FLAGS)
flags.DEFINE_string(
    "prompt_field",
    None,
    "of a record of --prompts or --captions; default: prompt, caption or text",
    flag_values=FLAGS,
)
flags.DEFINE_bool("speed", False, "time the samplers too", flag_values=FLAGS)
FLAGS.group("Scores against prompts")
flags.DEFINE_string("clip", None, "bundle: CLIP score of --samples", flag_values=FLAGS)
flags.DEFINE_enum(
    "clip_form", "dimo", ["dimo", "plain", "torchmetrics"], "which one", flag_values=FLAGS
)
flags.DEFINE_string(
    "captions",
    None,
    "a list, one for each image; default: captions.txt in --samples",
    flag_values=FLAGS,
)
flags.DEFINE_string("hps", None, "bundle: HPS v2 of --samples", flag_values=FLAGS)
flags.DEFINE_enum("hps_version", None, ["v2.0", "v2.1"], "of its weights", flag_values=FLAGS)
flags.DEFINE_string("hps_prompts", None, "folder of the styles' prompts", flag_values=FLAGS)
flags.DEFINE_bool("hps_antialias", True, "as its own code resizes", flag_values=FLAGS)
FLAGS.group("In place of --samples and --workdir")
flags.DEFINE_bool("compare", False, "the arguments are runs: side by side", flag_values=FLAGS)
flags.DEFINE_string("geneval", None, "print the table of GenEval's results", flag_values=FLAGS)
cli.define_process_flags(FLAGS)


def _mode(arguments: list[str]) -> str:
    """Return what is asked for: one of MODES."""
    given = [mode for mode in MODES if FLAGS[mode].value]
    if len(given) != 1:
        shown = ", ".join(f"--{mode}" for mode in MODES)
        found = " and ".join(f"--{mode}" for mode in given) or "none of them"
        raise InputError(
            f"give one of {shown}; found {found}; for example: {cli.first_example(__doc__)} "
            "(--help lists all flags)"
        )
    if arguments and given != ["compare"]:
        raise InputError(f"unexpected argument {arguments[0]!r}; every flag is --name=value")
    (mode,), of_prompts = given, bool(FLAGS.clip or FLAGS.hps)
    if of_prompts and (mode != "samples" or (FLAGS.clip and FLAGS.hps)):
        raise InputError("--clip and --hps are scores of --samples; give one of the two")
    needed = [] if mode in ("compare", "geneval") else ["output", "features"][: 2 - of_prompts]
    missing = [f"--{name}" for name in needed if not FLAGS[name].value]
    if missing:
        raise InputError(f"--{mode} needs {' and '.join(missing)}")
    return mode


def main(arguments: list[str]) -> None:
    """Evaluate what the flags name."""
    mode = _mode(arguments)
    from dimo_jax.commands import evaluate

    evaluate.run(FLAGS, mode, arguments)


if __name__ == "__main__":
    cli.run(main, FLAGS)
