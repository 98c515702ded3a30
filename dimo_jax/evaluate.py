"""What samples, or a finished run, are worth: figures, a report to look at, runs side by side.

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

--samples is a folder of .png or .jpg, a .zip of them, or an .npz with arr_0 (dimo_jax.sample writes
one); --reference a file of statistics, of images, or both, or a folder of real images. Both may be
tfds:NAME:SPLIT. Of a run the generator (1 step, at each temperature) and the teacher (more steps)
are drawn, judged, and with --speed timed. Features are kept in OUTPUT/features: the same command
goes on after a kill, and other metrics of the same images cost no second pass. It writes
results.json, results.md and report.html, and prints the five lines of OpenAI's evaluator. The
protocols:
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dimo_jax import bundles, cli, files
from dimo_jax.errors import InputError
from dimo_jax.evaluation import (
    clip_score,
    compare,
    geneval,
    hps,
    image_sets,
    measure,
    page,
    prompt_scores,
    prompts,
    references,
    report,
    results,
    showcase,
    words,
)
from dimo_jax.evaluation.feature_store import Extractor, FeatureStore
from dimo_jax.evaluation.protocols import METRICS, PROTOCOLS, Protocol
from dimo_jax.parallel import distributed
from dimo_jax.runs import run_evaluation, run_samples, speed
from dimo_jax.runs.run_evaluation import Yardstick
from dimo_jax.training.progress import Progress

__doc__ += "".join(f"\n{name:6} {protocol.about}" for name, protocol in PROTOCOLS.items())

FEATURES_FOLDER = "features"
MODES = ("samples", "workdir", "compare", "geneval")  # what is asked for: one of them

# Its own, not absl's global ones: other commands define flags of the same names.
FLAGS = flags.FlagValues()

flags.DEFINE_string("samples", None, "the images that are judged", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "a run of dimo_jax.main, in their place", flag_values=FLAGS)
flags.DEFINE_string("reference", None, "what they are compared with", flag_values=FLAGS)
flags.DEFINE_string("features", None, "bundle of the feature network", flag_values=FLAGS)
flags.DEFINE_string("output", None, "folder of the results", flag_values=FLAGS)
flags.DEFINE_string(
    "make_reference", None, "write such a file (.npz) of --samples, and stop", flag_values=FLAGS
)
flags.DEFINE_enum("protocol", "dimo", list(PROTOCOLS), "how it is measured", flag_values=FLAGS)
flags.DEFINE_list(
    "metrics",
    None,
    f"of {', '.join(METRICS)}; default: those of the protocol that the reference serves",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "num_neighbours",
    None,
    "k of precision to coverage; default: the protocol's",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "num", None, "refuse any other number of samples", lower_bound=1, flag_values=FLAGS
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
flags.DEFINE_list(
    "steps", None, "--workdir: 1 is the generator, others the teacher", flag_values=FLAGS
)
flags.DEFINE_list("temperatures", None, "--workdir: of the generator", flag_values=FLAGS)
flags.DEFINE_float("guidance", None, "--workdir: of the teacher", flag_values=FLAGS)
flags.DEFINE_integer(
    "seed", 0, "--workdir: of the samples", lower_bound=0, upper_bound=2**32 - 1, flag_values=FLAGS
)
flags.DEFINE_enum(
    "prompts", None, list(prompts.READERS), "--workdir: of a run with text", flag_values=FLAGS
)
flags.DEFINE_string("metadata", None, "--prompts: the list of prompts", flag_values=FLAGS)
flags.DEFINE_bool("speed", False, "--workdir: time the samplers too", flag_values=FLAGS)
flags.DEFINE_bool("compare", False, "the arguments are runs: side by side", flag_values=FLAGS)
flags.DEFINE_string("geneval", None, "print the table of GenEval's results", flag_values=FLAGS)
flags.DEFINE_string("clip", None, "bundle: CLIP score of --samples", flag_values=FLAGS)
flags.DEFINE_enum("clip_form", "dimo", list(clip_score.FORMS), "which one", flag_values=FLAGS)
flags.DEFINE_string(
    "captions", None, "a line for each image; default: captions.txt in --samples", flag_values=FLAGS
)
flags.DEFINE_string("hps", None, "bundle: HPS v2 of --samples", flag_values=FLAGS)
flags.DEFINE_enum("hps_version", None, list(hps.VERSIONS), "of its weights", flag_values=FLAGS)
flags.DEFINE_string("hps_prompts", None, "folder of the styles' prompts", flag_values=FLAGS)
flags.DEFINE_bool("hps_antialias", True, "as its own code resizes", flag_values=FLAGS)
cli.define_process_flags(FLAGS)


def _open(where: str, image_size: int | None) -> image_sets.ImageSet:
    return image_sets.open_set(where, FLAGS.recursive, image_size, FLAGS.data_dir)


def _check_number(samples: image_sets.ImageSet) -> None:
    if FLAGS.num is not None and samples.num != FLAGS.num:
        raise InputError(
            f"{samples.where} has {samples.num} images, expected --num={FLAGS.num}; give all of "
            "them, or leave the flag out"
        )


def _make_reference(path: Path, protocol: Protocol, folder: Path) -> None:
    """Writes a reference of --samples."""
    images = _open(FLAGS.samples, FLAGS.image_size)
    _check_number(images)
    extractor, _ = _network(protocol)
    store = FeatureStore(folder, images, extractor, "reference")
    store.fill()
    if not distributed.is_lead():
        return
    with Progress("evaluate") as progress:
        for text in store.warnings():
            progress.note(f"warning: {text}")
    about = references.write(path, store, {**extractor.settings, "protocol": protocol.name})
    print(f"{about['num']} images, protocol {protocol.name}: {path}")


def _network(protocol: Protocol) -> tuple[Extractor, str]:
    """The feature network and the hash of its weights."""
    found = bundles.load(FLAGS.features, kind="features")
    return measure.open_network(found, protocol, _judged_at_once()), found.params_hash


def _judged_at_once() -> int:
    return FLAGS.batch_size or 64


def _yardstick(protocol: Protocol, output: Path) -> tuple[Yardstick, str, list[str]]:
    """What sets are measured with, the hash of the weights, and what the reference cannot serve."""
    reference = references.Reference("")
    if FLAGS.reference is not None:
        reference = references.open_reference(
            FLAGS.reference,
            recursive=FLAGS.recursive,
            image_size=FLAGS.image_size,
            data_dir=FLAGS.data_dir,
        )
    asked = None if FLAGS.metrics is None else tuple(FLAGS.metrics)
    metrics, left_out = references.choose_metrics(asked, reference, protocol)
    extractor, weights = _network(protocol)
    folder = output / FEATURES_FOLDER
    return Yardstick(reference, extractor, protocol, metrics, folder), weights, left_out


def _evaluate(protocol: Protocol, output: Path, began: float) -> None:
    """Judges --samples and writes the results."""
    samples = _open(FLAGS.samples, None)
    _check_number(samples)
    yardstick, weights, left_out = _yardstick(protocol, output)
    row, look = yardstick.judge(samples)
    if row is not None:
        _write(output, [row], [look], yardstick, weights, left_out, began)


def _evaluate_run(protocol: Protocol, output: Path, began: float) -> None:
    """Draws what --workdir's models make, judges it and writes the results."""
    workdir = files.path(FLAGS.workdir)
    if FLAGS.num is None:
        raise InputError("--workdir needs --num, the samples in a set; FID-50k is of --num=50000")
    teacher = {} if FLAGS.guidance is None else {"guidance": FLAGS.guidance}
    found = prompts.asked(FLAGS.prompts, FLAGS.metadata)
    texts = found and [prompt.text for prompt in found]
    steps = cli.numbers(FLAGS, "steps", int, [1])
    temperatures = cli.numbers(FLAGS, "temperatures", float, [])
    asked = run_samples.sets_of(workdir, steps, temperatures, teacher, texts)
    yardstick, weights, left_out = _yardstick(protocol, output)
    with Progress("evaluate", silent=not distributed.is_lead()) as progress:
        image_bytes = run_samples.image_bytes(asked[0])
        samples_folder = output / run_evaluation.SAMPLES_FOLDER
        progress.note(run_evaluation.check_space(samples_folder, asked, FLAGS.num, image_bytes))
        clock = speed.Clock(5, 1, 1, None, progress.note) if FLAGS.speed else None
    rows, looks = run_evaluation.judge_run(
        workdir,
        asked,
        yardstick,
        output,
        num=FLAGS.num,
        seed=FLAGS.seed,
        batch_size=FLAGS.batch_size,
        clock=clock,
    )
    if rows:
        _write(output, rows, looks, yardstick, weights, left_out, began)


def _write(
    output: Path,
    rows: Sequence[dict[str, Any]],
    looks: Sequence[showcase.Look],
    yardstick: Yardstick,
    weights: str,
    left_out: Sequence[str],
    began: float,
) -> None:
    """The results' files; one line says where they are."""
    with Progress("evaluate") as progress:
        for text in left_out:
            progress.note(text)
        for text in dict.fromkeys(text for row in rows for text in row["warnings"]):
            progress.note(f"warning: {text}")
    protocol, hashes = yardstick.protocol, dict(rows[0]["hashes"])
    if len(rows) > 1:
        del hashes["samples"]  # each row has its own
    paths = results.write(
        output,
        rows,
        protocol,
        seed=rows[0]["seed"],
        **_environment(),
        wall_seconds=time.monotonic() - began,
        hashes={**hashes, "weights": weights},
        reference=yardstick.reference.where,
        **showcase.write(output, looks),
    )
    workdir = files.path(FLAGS.workdir) if FLAGS.workdir else None
    paths.append(page.write(output, title=_title(), workdir=workdir))
    for row in rows:
        if len(rows) > 1:
            print(f"{row['model']}, {row['steps']} steps, {words.describe(row['sampler'])}")
        print(results.adm_lines(row, protocol))
    print(f"{rows[0]['num']} samples, protocol {protocol.name}: {', '.join(map(str, paths))}")


def _title() -> str:
    return Path(FLAGS.workdir or FLAGS.samples).name or "Samples"


def _environment() -> dict[str, Any]:
    found = report.environment()
    return {**found, "versions": {**found["versions"], "code": distributed.code_version()}}


def _score_prompts(output: Path, began: float) -> None:
    """CLIP score or HPS of --samples against their prompts."""
    name, found, text = prompt_scores.scores_of(
        files.local(FLAGS.samples),
        files.path(FLAGS.clip) if FLAGS.clip else None,
        files.path(FLAGS.hps) if FLAGS.hps else None,
        captions=files.local(FLAGS.captions) if FLAGS.captions else None,
        form=FLAGS.clip_form,
        benchmark=files.local(FLAGS.hps_prompts) if FLAGS.hps_prompts else None,
        version=FLAGS.hps_version,
        antialias=FLAGS.hps_antialias,
        batch_size=_judged_at_once(),
    )
    print(text)
    seconds = time.monotonic() - began
    path = results.write_scores(output, name, found, **_environment(), wall_seconds=seconds)
    print(f"{path}, {page.write(output, title=_title())}")


def _compare(runs: list[str], output: Path | None) -> None:
    """Runs side by side, on the terminal or as files."""
    if output is None:
        print(compare.compare(runs).markdown)
    else:
        print(", ".join(map(str, compare.write(runs, output))))


def _mode(arguments: list[str]) -> str:
    """What is asked for: one of MODES."""
    given = [mode for mode in MODES if FLAGS[mode].value]
    if len(given) != 1:
        shown = ", ".join(f"--{mode}" for mode in MODES)
        found = " and ".join(f"--{mode}" for mode in given) or "none of them"
        raise InputError(f"give one of {shown}; found {found}")
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
    """Flags in; results.json, results.md, report.html and five lines out."""
    began = time.monotonic()
    mode = _mode(arguments)
    output = files.local(FLAGS.output) if FLAGS.output else None
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"--output={output} is a file; name a folder")
    if mode == "compare":
        return _compare(arguments, output)
    if mode == "geneval":
        return print(geneval.in_words(geneval.summarise(files.local(FLAGS.geneval))))
    if FLAGS.clip or FLAGS.hps:
        return _score_prompts(output, began)
    if FLAGS.reference is not None and FLAGS.make_reference is not None:
        raise InputError("--reference and --make_reference exclude each other")
    if FLAGS.make_reference and Path(FLAGS.make_reference).suffix != ".npz":
        raise InputError(f"--make_reference={FLAGS.make_reference} must end in .npz")
    cli.start_alike(FLAGS)
    protocol = PROTOCOLS[FLAGS.protocol]
    if FLAGS.num_neighbours is not None:
        protocol = dataclasses.replace(protocol, num_neighbours=FLAGS.num_neighbours)
    if mode == "workdir":
        return _evaluate_run(protocol, output, began)
    if FLAGS.make_reference:
        where = files.local(FLAGS.make_reference)
        return _make_reference(where, protocol, output / FEATURES_FOLDER)
    return _evaluate(protocol, output, began)


if __name__ == "__main__":
    cli.run(main, FLAGS)
