"""Evaluates samples or a finished run; puts runs side by side."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl.flags import FlagValues

from dimo_jax import bundles, cli
from dimo_jax import config as configs
from dimo_jax.bundles import places
from dimo_jax.commands import evaluate_scores
from dimo_jax.common import files, overlaps, run_lock, versions
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.data import benchmark_prompts
from dimo_jax.data.token_sets import TOKENS_FILE
from dimo_jax.evaluation import evaluate_images, references, shown
from dimo_jax.evaluation.evaluate_images import Evaluator
from dimo_jax.evaluation.features.feature_store import Extractor, FeatureStore
from dimo_jax.evaluation.images import image_sets
from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.metrics.protocols import PROTOCOLS, Protocol
from dimo_jax.evaluation.metrics.rows import Row
from dimo_jax.evaluation.report import (
    compare,
    page,
    result_folders,
    samples_report,
    showcase,
)
from dimo_jax.evaluation.report.schema import Results
from dimo_jax.evaluation.shown import Shown
from dimo_jax.parallel import distributed, locks
from dimo_jax.profiling import step_speed
from dimo_jax.runs import banner, run_evaluation, run_samples, snapshots

FEATURES_FOLDER = "features"


def _samples(flags: FlagValues, image_size: int | None = None) -> image_sets.ImageSet:
    """Open --samples, as many as --num says."""
    found = image_sets.open_set(
        flags.samples,
        flags.recursive,
        image_size,
        flags.data_dir,
        flags.tokenizer,
        flags.cut_as,
    )
    if flags.num is not None and found.num != flags.num:
        raise InputError(
            f"{found.where} has {found.num} images, expected --num={flags.num}; give all of them, "
            "or leave the flag out"
        )
    return found


def _protocol(flags: FlagValues) -> Protocol:
    chosen = PROTOCOLS[flags.protocol]
    if flags.num_neighbours is None:
        return chosen
    return dataclasses.replace(chosen, num_neighbours=flags.num_neighbours)


def _network(flags: FlagValues, protocol: Protocol) -> Extractor:
    """Return the feature network."""
    found = bundles.load(flags.features, kind="features")
    network = evaluate_images.open_network(found, protocol, flags.batch_size or 64)
    banner.show(banner.machine_lines())
    return network


def _evaluator(flags: FlagValues, output: Path) -> tuple[Evaluator, list[str]]:
    """Return how sets are measured, and what the reference cannot serve."""
    reference, protocol = references.Reference(""), _protocol(flags)
    if flags.reference is not None:
        reference = references.open_reference(
            flags.reference,
            recursive=flags.recursive,
            image_size=flags.image_size,
            data_dir=flags.data_dir,
            tokenizer=flags.tokenizer,
            cut_as=_cut_as(flags),
        )
    requested = None if flags.metrics is None else tuple(flags.metrics)
    metrics, left_out = references.choose_metrics(requested, reference, protocol)
    network, folder = _network(flags, protocol), output / FEATURES_FOLDER
    return Evaluator(reference, network, protocol, metrics, folder), left_out


def _cut_as(flags: FlagValues) -> str | None:
    """Return the tokens folder as whose pictures the reference's are cut; decoded ones' is theirs.

    Else rFID would measure the difference of two ways to cut, too.
    """
    if flags.cut_as is None and flags.image_size is None and flags.samples is not None:
        return flags.samples if (files.local(flags.samples) / TOKENS_FILE).is_file() else None
    return flags.cut_as


def _images(flags: FlagValues, output: Path, began: float) -> None:
    """Measure --samples and write the results."""
    images = _samples(flags)
    evaluator, left_out = _evaluator(flags, output)
    if (row := evaluator.evaluate(images)) is not None:
        pictures = [shown.of_set(evaluator, images, row)]
        _write(flags, output, [row], pictures, evaluator, left_out, began)


def _run(flags: FlagValues, output: Path, began: float) -> None:
    """Draw samples of --workdir's models, measure them and write the results."""
    workdir = files.path(flags.workdir)
    if flags.num is None:
        raise InputError("--workdir needs --num, the samples in a set; FID-50k is of --num=50000")
    teacher = {} if flags.guidance is None else {"guidance": flags.guidance}
    found = benchmark_prompts.requested(flags.prompts, flags.metadata, flags.prompt_field)
    texts = found and [prompt.text for prompt in found.prompts]
    steps = cli.numbers(flags, "steps", int, [1])
    temperatures = cli.numbers(flags, "temperatures", float, [])
    snapshot = _snapshot(workdir, flags.step, output)
    requested = run_samples.sets_of(workdir, steps, temperatures, teacher, texts, snapshot)
    evaluator, left_out = _evaluator(flags, output)
    with Progress("evaluate", silent=not distributed.is_lead()) as progress:
        image_bytes = run_samples.image_bytes(requested[0])
        folder = output / run_evaluation.SAMPLES_FOLDER
        progress.note(run_evaluation.check_space(folder, requested, flags.num, image_bytes))
        clock = step_speed.Clock(5, 1, 1, None, progress.note) if flags.speed else None
    rows, pictures = run_evaluation.evaluate_run(
        workdir,
        requested,
        evaluator,
        output,
        num=flags.num,
        seed=flags.seed,
        batch_size=flags.batch_size,
        clock=clock,
    )
    if rows:
        _write(flags, output, rows, pictures, evaluator, left_out, began)


def _snapshot(workdir: AnyPath, step: str | None, output: Path) -> tuple[Path, int] | None:
    """Bundle and step of a checkpoint's generator; None: the finished one's serves.

    The bundle is kept in the output: the run may remove the checkpoint while it is evaluated.
    """
    found = snapshots.generator_of(workdir, step)
    if not isinstance(found, snapshots.Snapshot):
        return None
    path = output / f"checkpoint_{found.step}"
    if distributed.is_lead():
        found.save(path)
    distributed.barrier("snapshot")
    with Progress("evaluate", silent=not distributed.is_lead()) as progress:
        progress.note(f"the averaged generator of step {found.step}, kept as {path}")
    return path, found.step


def _write(
    flags: FlagValues,
    output: Path,
    rows: Sequence[Row],
    pictures: Sequence[Shown],
    evaluator: Evaluator,
    left_out: Sequence[str],
    began: float,
) -> None:
    """Write the results' files; one line says where they are."""
    with Progress("evaluate") as progress:
        for text in left_out:
            progress.note(text)
        for text in dict.fromkeys(text for row in rows for text in row.warnings):
            progress.note(f"warning: {text}")
    protocol, hashes = evaluator.protocol, dict(rows[0].rest["hashes"])
    if len(rows) > 1:
        del hashes["samples"]  # each row has its own
    workdir = files.path(flags.workdir) if flags.workdir else None
    class_names = evaluator.reference.class_names
    drawn = showcase.draw(pictures, class_names=class_names)
    results = Results(
        rows,
        {
            "precision": evaluate_images.PRECISION,
            "seed": rows[0].rest["seed"],
            **_environment(),
            "wall_seconds": time.monotonic() - began,
            "hashes": {**hashes, "weights": evaluator.extractor.settings["weights"]},
            "reference": evaluator.reference.where,
        },
        protocol=protocol.report(),
        per_class=showcase.nearest_by_class(pictures, class_names),
        extremes=drawn.extremes,
        pictures=drawn.entries,
        training=configs.flat(places.run_config(workdir)) if workdir else {},
    )
    drawn.save(output)
    paths = samples_report.write(output, results)
    paths.append(page.write(output, title=_title(flags), workdir=workdir))
    for row in rows:
        if len(rows) > 1:
            print(f"{row.model}, {row.steps} steps, {metric_names.describe(row.sampler)}")
        print(samples_report.adm_lines(row, protocol))
    num = rows[0].rest["num"]
    print(f"{num} samples, protocol {protocol.name}: {', '.join(map(str, paths))}")


def _title(flags: FlagValues) -> str:
    return Path(flags.workdir or flags.samples).name or "Samples"


def _environment() -> dict[str, Any]:
    return versions.environment(code=distributed.code_version())


def _reference(flags: FlagValues, output: Path, path: Path) -> None:
    """Write a reference of --samples."""
    images, protocol = _samples(flags, flags.image_size), _protocol(flags)
    extractor = _network(flags, protocol)
    store = FeatureStore(output / FEATURES_FOLDER, images, extractor, "reference")
    store.fill()
    if not distributed.is_lead():
        return
    with Progress("evaluate") as progress:
        for text in store.warnings():
            progress.note(f"warning: {text}")
    about = references.write(path, store, {**extractor.settings, "protocol": protocol.name})
    print(f"{about['num']} images, protocol {protocol.name}: {path}")


def _compare(runs: list[str], output: Path | None) -> None:
    """Show runs side by side, on the terminal or as files."""
    if output is None:
        print(compare.compare(runs).markdown)
    else:
        print(", ".join(map(str, compare.write(runs, output))))


def _check_output(flags: FlagValues, output: Path) -> None:
    """Refuse to replace what no evaluation wrote, before anything is computed."""
    run = places.parts_of_run(files.path(flags.workdir)) if flags.workdir else []
    given = (flags.samples, flags.reference, flags.features, flags.clip, flags.hps)
    more = (flags.hps_prompts, flags.tokenizer, flags.cut_as)
    result_folders.check(output, [*given, *more, *map(str, run)])


def _check_reference(flags: FlagValues, path: Path) -> None:
    files.check_writable(path)
    overlaps.refuse(path, [flags.samples], flag="the reference")
    if flags.reference is not None:
        raise InputError("a reference is made without --reference; leave it out")
    if path.suffix != ".npz":
        raise InputError(f"the reference {path} must end in .npz")


def run(flags: FlagValues, command: str, arguments: list[str]) -> None:
    """Write results.json, results.md and report.html, and print five lines.

    Args:
        flags: those of dimo_jax.evaluate.
        command: a key of its COMMANDS.
        arguments: the runs to compare, the file of a reference, or GenEval's results or images.

    Raises:
        InputError: a flag, or what it names, cannot be used.
    """
    began = time.monotonic()
    output = files.local(flags.output) if flags.output else None
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"--output={output} is a file; name a folder")
    if command == "geneval":
        return evaluate_scores.of_geneval(flags, files.local(arguments[0]), began)
    if command == "compare":
        if output is not None:
            result_folders.check_comparison(output)
        return _compare(arguments, output)
    if command == "reference":
        _check_reference(flags, files.local(arguments[0]))
    if output is None:
        raise InputError(f"{command} writes files; give --output, their folder")
    _check_output(flags, output)
    if flags.clip or flags.hps:
        return evaluate_scores.of_samples(flags, output, began)
    cli.start_alike(flags)
    with locks.held(output / run_lock.FILE_NAME, f"--output={output}"):
        if command == "reference":
            return _reference(flags, output, files.local(arguments[0]))
        return {"images": _images, "run": _run}[command](flags, output, began)
