"""Scores of images against their prompts: CLIP score, HPS v2, GenEval."""

import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl.flags import FlagValues

from dimo_jax import bundles, cli
from dimo_jax.common import files, run_lock, versions
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.evaluation import geneval_images
from dimo_jax.evaluation.features import clip_features
from dimo_jax.evaluation.features.detector import ObjectDetector
from dimo_jax.evaluation.geneval_images import PromptImages
from dimo_jax.evaluation.metrics import geneval, geneval_colors, geneval_rules, prompt_scores
from dimo_jax.evaluation.metrics.prompt_scores import Scores
from dimo_jax.evaluation.metrics.rows import Row, Value
from dimo_jax.evaluation.report import page, result_folders, schema
from dimo_jax.evaluation.report.schema import Results
from dimo_jax.parallel import backend, distributed, locks
from dimo_jax.runs import banner

# Pictures of a device in a call; a CPU gains nothing from more than one.
_DETECTED_AT_ONCE = 8


def of_samples(flags: FlagValues, output: Path, began: float) -> None:
    """Write the CLIP score or HPS of --samples against their prompts."""
    backend.start()
    folder, size = files.local(flags.samples), flags.batch_size or 64
    if flags.clip:
        captions = files.local(flags.captions) if flags.captions else None
        found = prompt_scores.clip_of_folder(
            folder,
            files.path(flags.clip),
            captions,
            flags.clip_form,
            size,
            flags.prompt_field or "",
        )
    elif not flags.hps_version or flags.hps_prompts is None:
        raise InputError("--hps needs --hps_version and --hps_prompts")
    else:
        prompts, bundle = files.local(flags.hps_prompts), files.path(flags.hps)
        found = prompt_scores.hps_of_folder(
            folder, bundle, prompts, flags.hps_version, flags.hps_antialias, size
        )
    _write(output, found, began, Path(flags.samples).name)


def of_geneval(flags: FlagValues, place: Path, began: float) -> None:
    """Print the table of a file of GenEval's results, or score a folder of its images first.

    Args:
        flags: those of dimo_jax.evaluate.
        place: the file or the folder.
        began: when the command did, of time.monotonic.

    Raises:
        InputError: results, images, a prompt or a bundle that cannot be used.
    """
    if not place.is_dir():
        if flags.detector:
            raise InputError(f"--detector is for a folder of images, and {place} is none")
        return print(geneval.in_words(geneval.summarise(place)))
    missing = " and ".join(f"--{x}" for x in ("detector", "output") if not flags[x].value)
    if missing:
        raise InputError(
            f"{place} is a folder of images, which is scored with --detector and --output; "
            f"{missing} is missing"
        )
    output, prompts = files.local(flags.output), geneval_images.find(place)
    colored = sum(len(x.names) for x in prompts if x.asks_for_colors)
    if colored and not flags.clip:
        raise InputError(
            f"{colored} images of {place} are of prompts with colours, which CLIP classifies; give "
            "--clip, the bundle of OpenAI's ViT-L/14"
        )
    result_folders.check(output, [str(place), flags.detector, flags.clip])
    geneval_images.check_output(output)
    cli.start_alike(flags)
    with locks.held(output / run_lock.FILE_NAME, f"--output={output}"):
        if (found := _detect(flags, prompts, output, bool(colored))) is not None:
            _write(output, found, began, place.name)


def _detect(
    flags: FlagValues, prompts: Sequence[PromptImages], output: Path, colored: bool
) -> Scores | None:
    """Write results.jsonl; the scores on the lead process, on the others None."""
    on_cpu = jax.default_backend() == "cpu"
    batch_size = 1 if on_cpu else _DETECTED_AT_ONCE * jax.local_device_count()
    batch_size = flags.batch_size or batch_size
    bundle = bundles.load(flags.detector, kind="detector")
    network = bundle.build()
    if network.config["num_classes"] != len(geneval_rules.CLASSES):
        raise InputError(
            f"{bundle.path} has {network.config['num_classes']} classes, and GenEval is of COCO's "
            f"{len(geneval_rules.CLASSES)}; convert the detector that it names"
        )
    hashes, classify, warnings = {"detector_weights": bundle.params_hash}, None, []
    if colored:
        features, clip = clip_features.load(files.path(flags.clip), batch_size)
        classify = geneval_colors.ColorClassifier(features)
        hashes["clip_weights"] = clip.params_hash
        warnings = [x for x in [geneval_colors.unusual(clip.model)] if x]
    banner.show(banner.machine_lines())
    with Progress("geneval", silent=not distributed.is_lead()) as progress:
        for text in warnings:
            progress.note(f"warning: {text}")
        detect = ObjectDetector(network, bundle.params, batch_size, progress.note)
        store = geneval_images.GenevalStore(prompts, output, detect, classify, hashes, batch_size)
        path = store.fill(progress)
    if path is None:
        return None
    summary = geneval.summarise(path)
    values = {k: v for k, v in summary.as_dict().items() if isinstance(v, float)}
    settings = {
        "geneval_images": summary.num_images,
        "geneval_prompts": summary.num_prompts,
        "geneval_partial": list(summary.partial),
        "geneval_warnings": warnings,
    }
    return Scores("GenEval", values, settings, hashes, f"{geneval.in_words(summary)}\n{path}")


def _write(output: Path, found: Scores, began: float, title: str) -> None:
    """Print scores and write them as results."""
    print(found.text)
    about = versions.environment(code=distributed.code_version())
    results = Results(
        [Row("samples", 0, {name: Value(value) for name, value in found.values.items()})],
        {
            "seed": None,
            **about,
            "wall_seconds": time.monotonic() - began,
            "hashes": found.hashes,
        },
        protocol={"name": found.name},
        settings=found.settings,
    )
    path = schema.write(output, results)
    print(f"{path}, {page.write(output, title=title or 'Samples')}")
