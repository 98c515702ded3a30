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
from dimo_jax.common import files, overlaps, run_lock
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.data import benchmark_prompts
from dimo_jax.evaluation import measure, references
from dimo_jax.evaluation.features.feature_store import Extractor, FeatureStore
from dimo_jax.evaluation.images import image_sets
from dimo_jax.evaluation.metrics import geneval, prompt_scores
from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.metrics.protocols import PROTOCOLS, Protocol
from dimo_jax.evaluation.report import (
    compare,
    digits_report,
    page,
    result_folders,
    results,
    showcase,
)
from dimo_jax.parallel import backend, distributed, locks
from dimo_jax.profiling import step_speed
from dimo_jax.runs import banner, run_evaluation, run_samples, snapshots
from dimo_jax.runs.run_evaluation import Yardstick

FEATURES_FOLDER = "features"


def _open(flags: FlagValues, where: str, image_size: int | None) -> image_sets.ImageSet:
    return image_sets.open_set(where, flags.recursive, image_size, flags.data_dir)


def _check_number(flags: FlagValues, samples: image_sets.ImageSet) -> None:
    if flags.num is not None and samples.num != flags.num:
        raise InputError(
            f"{samples.where} has {samples.num} images, expected --num={flags.num}; give all of "
            "them, or leave the flag out"
        )


def _make_reference(flags: FlagValues, path: Path, protocol: Protocol, folder: Path) -> None:
    """Write a reference of --samples."""
    images = _open(flags, flags.samples, flags.image_size)
    _check_number(flags, images)
    extractor, _ = _network(flags, protocol)
    store = FeatureStore(folder, images, extractor, "reference")
    store.fill()
    if not distributed.is_lead():
        return
    with Progress("evaluate") as progress:
        for text in store.warnings():
            progress.note(f"warning: {text}")
    about = references.write(path, store, {**extractor.settings, "protocol": protocol.name})
    print(f"{about['num']} images, protocol {protocol.name}: {path}")


def _network(flags: FlagValues, protocol: Protocol) -> tuple[Extractor, str]:
    """Return the feature network and the hash of its weights."""
    found = bundles.load(flags.features, kind="features")
    network = measure.open_network(found, protocol, _judged_at_once(flags))
    banner.show(banner.machine_lines())
    return network, found.params_hash


def _judged_at_once(flags: FlagValues) -> int:
    return flags.batch_size or 64


def _yardstick(
    flags: FlagValues, protocol: Protocol, output: Path
) -> tuple[Yardstick, str, list[str]]:
    """Return what sets are measured with.

    The hash of the weights, and what the reference cannot serve.
    """
    reference = references.Reference("")
    if flags.reference is not None:
        reference = references.open_reference(
            flags.reference,
            recursive=flags.recursive,
            image_size=flags.image_size,
            data_dir=flags.data_dir,
        )
    asked = None if flags.metrics is None else tuple(flags.metrics)
    metrics, left_out = references.choose_metrics(asked, reference, protocol)
    extractor, weights = _network(flags, protocol)
    folder = output / FEATURES_FOLDER
    return Yardstick(reference, extractor, protocol, metrics, folder), weights, left_out


def _evaluate(flags: FlagValues, protocol: Protocol, output: Path, began: float) -> None:
    """Judge --samples and writes the results."""
    samples = _open(flags, flags.samples, None)
    _check_number(flags, samples)
    yardstick, weights, left_out = _yardstick(flags, protocol, output)
    row, look = yardstick.judge(samples)
    if row is not None:
        _write(flags, output, [row], [look], yardstick, weights, left_out, began)


def _evaluate_run(flags: FlagValues, protocol: Protocol, output: Path, began: float) -> None:
    """Draws what --workdir's models make, judges it and writes the results."""
    workdir = files.path(flags.workdir)
    if flags.num is None:
        raise InputError("--workdir needs --num, the samples in a set; FID-50k is of --num=50000")
    teacher = {} if flags.guidance is None else {"guidance": flags.guidance}
    found = benchmark_prompts.requested(flags.prompts, flags.metadata, flags.prompt_field)
    texts = found and [prompt.text for prompt in found.prompts]
    steps = cli.numbers(flags, "steps", int, [1])
    temperatures = cli.numbers(flags, "temperatures", float, [])
    snapshot = _snapshot(workdir, flags.step, output)
    asked = run_samples.sets_of(workdir, steps, temperatures, teacher, texts, snapshot)
    yardstick, weights, left_out = _yardstick(flags, protocol, output)
    with Progress("evaluate", silent=not distributed.is_lead()) as progress:
        image_bytes = run_samples.image_bytes(asked[0])
        samples_folder = output / run_evaluation.SAMPLES_FOLDER
        progress.note(run_evaluation.check_space(samples_folder, asked, flags.num, image_bytes))
        clock = step_speed.Clock(5, 1, 1, None, progress.note) if flags.speed else None
    rows, looks = run_evaluation.judge_run(
        workdir,
        asked,
        yardstick,
        output,
        num=flags.num,
        seed=flags.seed,
        batch_size=flags.batch_size,
        clock=clock,
    )
    if rows:
        _write(flags, output, rows, looks, yardstick, weights, left_out, began)


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
    rows: Sequence[dict[str, Any]],
    looks: Sequence[showcase.Look],
    yardstick: Yardstick,
    weights: str,
    left_out: Sequence[str],
    began: float,
) -> None:
    """Write the results' files; one line says where they are."""
    with Progress("evaluate") as progress:
        for text in left_out:
            progress.note(text)
        for text in dict.fromkeys(text for row in rows for text in row["warnings"]):
            progress.note(f"warning: {text}")
    protocol, hashes = yardstick.protocol, dict(rows[0]["hashes"])
    if len(rows) > 1:
        del hashes["samples"]  # each row has its own
    workdir = files.path(flags.workdir) if flags.workdir else None
    trained = configs.flat(places.run_config(workdir)) if workdir else {}
    paths = results.write(
        output,
        rows,
        protocol,
        seed=rows[0]["seed"],
        **_environment(),
        wall_seconds=time.monotonic() - began,
        hashes={**hashes, "weights": weights},
        reference=yardstick.reference.where,
        **({"training": trained} if trained else {}),
        **showcase.write(output, looks),
    )
    paths.append(page.write(output, title=_title(flags), workdir=workdir))
    for row in rows:
        if len(rows) > 1:
            print(f"{row['model']}, {row['steps']} steps, {metric_names.describe(row['sampler'])}")
        print(results.adm_lines(row, protocol))
    print(f"{rows[0]['num']} samples, protocol {protocol.name}: {', '.join(map(str, paths))}")


def _title(flags: FlagValues) -> str:
    return Path(flags.workdir or flags.samples).name or "Samples"


def _environment() -> dict[str, Any]:
    found = digits_report.environment()
    return {**found, "versions": {**found["versions"], "code": distributed.code_version()}}


def _score_prompts(flags: FlagValues, output: Path, began: float) -> None:
    """CLIP score or HPS of --samples against their prompts."""
    name, found, text = prompt_scores.scores_of(
        files.local(flags.samples),
        files.path(flags.clip) if flags.clip else None,
        files.path(flags.hps) if flags.hps else None,
        captions=files.local(flags.captions) if flags.captions else None,
        form=flags.clip_form,
        benchmark=files.local(flags.hps_prompts) if flags.hps_prompts else None,
        version=flags.hps_version,
        antialias=flags.hps_antialias,
        batch_size=_judged_at_once(flags),
        field=flags.prompt_field or "",
    )
    print(text)
    seconds = time.monotonic() - began
    path = results.write_scores(output, name, found, **_environment(), wall_seconds=seconds)
    print(f"{path}, {page.write(output, title=_title(flags))}")


def _compare(runs: list[str], output: Path | None) -> None:
    """Show runs side by side, on the terminal or as files."""
    if output is None:
        print(compare.compare(runs).markdown)
    else:
        print(", ".join(map(str, compare.write(runs, output))))


def _check_output(flags: FlagValues, mode: str, output: Path | None) -> None:
    """Refuse to replace what no evaluation wrote, before anything is computed."""
    if flags.make_reference:
        where = files.local(flags.make_reference)
        files.check_writable(where)
        overlaps.refuse(where, [flags.samples], flag="--make_reference")
    if output is None:
        return
    if mode == "compare":
        return result_folders.check_comparison(output)
    run = places.parts_of_run(files.path(flags.workdir)) if flags.workdir else []
    given = (flags.samples, flags.reference, flags.features, flags.clip, flags.hps)
    result_folders.check(output, [*given, flags.hps_prompts, *map(str, run)])


def run(flags: FlagValues, mode: str, runs: list[str]) -> None:
    """Write results.json, results.md and report.html, and prints five lines.

    Args:
        flags: those of dimo_jax.evaluate.
        mode: which of its flags says what to do: samples, workdir, compare or geneval.
        runs: those of --compare.

    Raises:
        InputError: a flag, or what it names, cannot be used.
    """
    began = time.monotonic()
    output = files.local(flags.output) if flags.output else None
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"--output={output} is a file; name a folder")
    _check_output(flags, mode, output)
    if mode == "compare":
        return _compare(runs, output)
    if mode == "geneval":
        return print(geneval.in_words(geneval.summarise(files.local(flags.geneval))))
    if flags.clip or flags.hps:
        backend.start()
        return _score_prompts(flags, output, began)
    if flags.reference is not None and flags.make_reference is not None:
        raise InputError("--reference and --make_reference exclude each other")
    if flags.make_reference and Path(flags.make_reference).suffix != ".npz":
        raise InputError(f"--make_reference={flags.make_reference} must end in .npz")
    cli.start_alike(flags)
    protocol = PROTOCOLS[flags.protocol]
    if flags.num_neighbours is not None:
        protocol = dataclasses.replace(protocol, num_neighbours=flags.num_neighbours)
    with locks.held(output / run_lock.FILE_NAME, f"--output={output}"):
        if mode == "workdir":
            return _evaluate_run(flags, protocol, output, began)
        if flags.make_reference:
            where = files.local(flags.make_reference)
            return _make_reference(flags, where, protocol, output / FEATURES_FOLDER)
        return _evaluate(flags, protocol, output, began)
