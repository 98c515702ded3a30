r"""What samples, or a finished run, are worth: figures, a report with pictures, runs side by side.

python -m dimo_jax.evaluate images --samples=samples.npz \
    --reference=VIRTUAL_imagenet256_labeled.npz --features=bundles/inception --output=eval/
python -m dimo_jax.evaluate images --samples=IMAGES/ --clip=bundles/clip \
    --captions=captions.txt --output=eval/
python -m dimo_jax.evaluate images --samples=STYLES/ --hps=bundles/hps --hps_version=v2.1 \
    --hps_prompts=PROMPTS/ --output=eval/
python -m dimo_jax.evaluate run --workdir=runs/imagenet --steps=1,8 --temperatures=1,3,5,7,9 \
    --num=50000 --reference=VIRTUAL_imagenet256_labeled.npz --features=bundles/inception \
    --output=eval/
python -m dimo_jax.evaluate compare runs/one runs/two --output=both/
python -m dimo_jax.evaluate reference real.npz --samples=REAL/ --features=bundles/inception \
    --output=eval/
python -m dimo_jax.evaluate reference decoded.npz --samples=tokens/photos \
    --tokenizer=bundles/vqgan --features=bundles/inception --output=eval/
python -m dimo_jax.evaluate images --samples=tokens/photos --tokenizer=bundles/vqgan \
    --reference=photos/ --features=bundles/inception --output=rfid/
python -m dimo_jax.evaluate geneval geneval/ --detector=bundles/mask2former \
    --clip=bundles/clip_l14 --output=eval/
python -m dimo_jax.evaluate geneval results.jsonl

--samples is a folder of pictures, a .zip of them, or an .npz with arr_0 (dimo_jax.sample writes
one); --reference a file of statistics, of images, or both, or a folder of real images. Both may be
tfds:NAME:SPLIT, or tokens of dimo_jax.encode, which --tokenizer decodes; against the pictures that
they were encoded from (cut out alike) that is rFID, the tokenizer's own limit. Of a run samples of
the generator (1 step, at each temperature) and of the teacher (more steps) are drawn, measured, and
with --speed timed. Features are kept in OUTPUT/features: the same command goes on after a kill, and
other metrics of the same images cost no second pass. It writes results.json, results.md and
report.html, and prints the five lines of OpenAI's evaluator.
geneval scores a folder of images, as dimo_jax.sample --prompts=geneval writes it, or prints the
table of a file of results.
The protocols:
"""

import sys
import textwrap

from absl import flags

from dimo_jax import cli
from dimo_jax.common.command_flags import Flags
from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.metrics.protocols import METRICS, PROTOCOLS

PROMPTS_GROUP = "images, against prompts"
GENEVAL_GROUP = "geneval, of a folder of images"
FORMER_GROUP = "The spelling of before, in place of a command"
# Each with the flags that it needs.
COMMANDS = {
    "images": ("samples", "output", "features"),
    "run": ("workdir", "output", "features"),
    "compare": (),
    "reference": ("samples", "output", "features"),
    "geneval": (),
}

__doc__ = (__doc__ or "") + "\n".join(
    textwrap.fill(f"{name:6} {protocol.about}", 100, subsequent_indent=" " * 7)
    for name, protocol in PROTOCOLS.items()
)

FLAGS = Flags()
FLAGS.set_gnu_getopt()  # flags may come before and after the command

FLAGS.group("Everyday")
flags.DEFINE_string("samples", None, "the images that are measured", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "run: what dimo_jax.main wrote", flag_values=FLAGS)
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
    "real images: cut out the middle square and shrink it so far",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "data_dir", "~/tensorflow_datasets", "where tfds: data sets lie", flag_values=FLAGS
)
flags.DEFINE_string(
    "tokenizer", None, "bundle: decodes --samples or --reference of tokens", flag_values=FLAGS
)
flags.DEFINE_string(
    "cut_as",
    None,
    "folder of tokens: cut pictures of a folder or a data set out as its were; default: --samples "
    "of tokens",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "prompt_field",
    None,
    "of a record of --prompts or --captions; default: prompt, caption or text",
    flag_values=FLAGS,
)
FLAGS.group("run")
flags.DEFINE_string(
    "step",
    None,
    "checkpoint of the generator: its step, newest or best; default: the finished generator, "
    "or of an unfinished run the newest",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "steps", None, "1 is the generator in its own steps, others the teacher", flag_values=FLAGS
)
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
flags.DEFINE_bool("speed", False, "time the samplers too", flag_values=FLAGS)
FLAGS.group(PROMPTS_GROUP)
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
FLAGS.group(GENEVAL_GROUP)
flags.DEFINE_string(
    "detector", None, "bundle of Mask2Former; --clip is that of its colours", flag_values=FLAGS
)
FLAGS.group(FORMER_GROUP)
flags.DEFINE_bool("compare", False, "now: compare RUN RUN", flag_values=FLAGS)
flags.DEFINE_string("geneval", None, "now: geneval FILE", flag_values=FLAGS)
flags.DEFINE_string("geneval_images", None, "now: geneval FOLDER", flag_values=FLAGS)
flags.DEFINE_string("make_reference", None, "now: reference FILE", flag_values=FLAGS)
cli.define_process_flags(FLAGS)


def _spelled_before(arguments: list[str]) -> tuple[str, list[str]]:
    """Return command and arguments where flags alone say what to do, as they did before."""
    names = {"samples": "images", "workdir": "run", "compare": "compare", "geneval": "geneval"}
    names |= {"geneval_images": "geneval"}
    given = [name for name in names if FLAGS[name].value]
    if len(given) != 1:
        found = " and ".join([*arguments[:1], *(f"--{name}" for name in given)]) or "none of them"
        raise InputError(
            f"give one of {', '.join(COMMANDS)}; found {found}; for example: "
            f"{cli.first_example(__doc__)} (--help lists all flags)"
        )
    command = names[given[0]]
    if FLAGS.make_reference and command == "images":
        return "reference", [FLAGS.make_reference, *arguments]
    place = FLAGS.geneval or FLAGS.geneval_images
    return command, [*([place] if command == "geneval" else []), *arguments]


def _refuse_foreign(command: str) -> None:
    """Refuse the flags of other commands."""
    own = {
        "samples": ("images", "reference"),
        "workdir": ("run",),
        **dict.fromkeys(("reference", "metrics", "num_neighbours"), ("images", "run")),
        **dict.fromkeys(FLAGS.members("run"), ("run",)),
        **dict.fromkeys(FLAGS.members(PROMPTS_GROUP), ("images",)),
        **dict.fromkeys(FLAGS.members(GENEVAL_GROUP), ("geneval",)),
        "clip": ("images", "geneval"),
        **dict.fromkeys(FLAGS.members(FORMER_GROUP), ("calls without a command",)),
    }
    for name, commands in own.items():
        if FLAGS[name].present and command not in commands:
            raise InputError(f"--{name} is of {' and '.join(commands)}, not of {command}")


def _check(command: str, arguments: list[str]) -> None:
    """Refuse what does not go together, before anything is imported."""
    takes = {"reference": 1, "geneval": 1, "compare": len(arguments)}.get(command, 0)
    if len(arguments) > takes:
        raise InputError(f"unexpected argument {arguments[takes]!r}; every flag is --name=value")
    if len(arguments) < takes:
        raise InputError(f"{command} needs a file; for example: {command} FILE")
    of_prompts = bool(FLAGS.clip or FLAGS.hps) and (command != "geneval" or bool(FLAGS.hps))
    if of_prompts and (command != "images" or (FLAGS.clip and FLAGS.hps)):
        raise InputError("--clip and --hps are scores of images --samples; give one of the two")
    needed = COMMANDS[command][: 3 - of_prompts]
    if missing := [f"--{name}" for name in needed if not FLAGS[name].value]:
        raise InputError(f"{command} needs {' and '.join(missing)}")


def main(arguments: list[str]) -> None:
    """Evaluate what the command and the flags name."""
    named = bool(arguments) and arguments[0] in COMMANDS
    command, rest = (arguments[0], arguments[1:]) if named else _spelled_before(arguments)
    if named:
        _refuse_foreign(command)
    _check(command, rest)
    from dimo_jax.commands import evaluate

    evaluate.run(FLAGS, command, rest)
    # At the end: what is refused is said in one line.
    if not named and not FLAGS.process_id:
        print(f"hint: write python -m dimo_jax.evaluate {command} ...", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, FLAGS)
