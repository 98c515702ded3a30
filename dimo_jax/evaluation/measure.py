"""One set of samples against a reference: features, then every metric with its parts.

N samples, D features.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dimo_jax import bundles
from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features.feature_store import OUTPUTS, Extractor, FeatureStore
from dimo_jax.evaluation.features.inception_features import InceptionFeatures
from dimo_jax.evaluation.features.moments import Moments
from dimo_jax.evaluation.images.image_set import ImageSet
from dimo_jax.evaluation.metrics import frechet, inception_score, prdc, protocols
from dimo_jax.evaluation.metrics.protocols import Protocol
from dimo_jax.evaluation.references import Reference
from dimo_jax.parallel import distributed

PRECISION = "float32, products of the highest precision; moments and distances in float64"
# The Inception Score goes by two names, for its splits are part of it.
SCORES = {"torch_fidelity": "inception_score", "adm": "inception_score_adm"}


def open_network(bundle: bundles.Bundle, protocol: Protocol, batch_size: int) -> Extractor:
    """Return the feature network of a bundle as a protocol feeds it.

    Args:
        bundle: of kind "features".
        protocol: says how images come to it.
        batch_size: images in a call.

    Returns:
        Images to the features of feature_store.OUTPUTS.
    """
    network = InceptionFeatures(
        bundle.build(), bundle.params, OUTPUTS, protocol.resizer, batch_size
    )

    def extract(images: np.ndarray) -> Mapping[str, np.ndarray]:
        return network(protocols.stretch(images) if protocol.stretch else images)

    settings = {"weights": bundle.params_hash, **protocol.preprocessing()}
    return Extractor(extract, settings, batch_size)


def evaluate_samples(
    samples: ImageSet,
    reference: Reference,
    extractor: Extractor,
    protocol: Protocol,
    metrics: Sequence[str],
    folder: Path,
    *,
    model: str = "samples",
    store: str | None = None,
    steps: int = 0,
    sampler: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Judge one set of samples; every process of a run calls it.

    Args:
        samples: what is judged.
        reference: what it is compared with; it must serve all metrics (references.choose_metrics).
        extractor: of `open_network`, or a function of a test.
        protocol: how.
        metrics: some of protocols.METRICS.
        folder: where features are kept; the call goes on from there.
        model: the row's name.
        store: the samples' name in the folder, where several sets share it; None for `model`.
        steps: of the sampler; 0 where that is unknown.
        sampler: its settings; None for what the samples tell.

    Returns:
        On the lead process the row of the result: "model", "steps", "num", "metrics" ({name:
        {"mean", "std"}}), "parts" (of each metric, plain values), "sampler", "seed", "labels",
        "warnings", "hashes" and more. On the others None.

    Raises:
        InputError: images that cannot be used, too few of them, or a reference of another network.
    """
    _check_numbers(samples, reference, protocol, metrics)
    _check_network(reference, extractor)
    ours = FeatureStore(folder, samples, extractor, model if store is None else store)
    began = time.monotonic()
    computed = ours.fill()
    seconds = time.monotonic() - began
    real = None
    if _reads_images(reference, protocol, metrics):
        real = FeatureStore(folder, reference.images, extractor, "reference")
        real.fill()
    parts: dict[str, Any] = {}
    if "prdc" in metrics:
        parts["prdc"] = _prdc(ours, reference, real, protocol)
    if not distributed.is_lead():
        return None
    if "is" in metrics:
        parts |= _scores(ours)
    if "fid" in metrics:
        parts["fid"] = _frechet(ours, real, "2048", reference.fid_moments(protocol))
    if "sfid" in metrics:
        parts["sfid"] = _frechet(ours, real, "spatial", reference.sfid_moments(protocol))
    facts = samples.facts
    sampler = dict(sampler if sampler is not None else facts.get("sampler") or {})
    return {
        "model": model,
        "steps": steps or sampler.get("num_steps", int(sampler.get("name") == "one_step")),
        "num": samples.num,
        "metrics": _headline(parts, protocol),
        "parts": parts,
        "sampler": sampler,
        "seed": facts.get("seed"),
        "labels": _balance(samples),
        "image_size": [samples.height, samples.width],
        "rounding": facts.get("rounding", "as in the files"),
        # Of this process, with its compilation and the reading of files.
        "images_per_second": computed / seconds if computed else None,
        "warnings": _warnings(ours, real, parts, protocol),
        "reference": _described(parts),
        "hashes": {
            "samples": ours.pixel_hash(),
            "reference": reference.sha256 or (real and real.pixel_hash()),
            # Of what dimo_jax.sample drew them with.
            **{name: facts[name] for name in ("model", "tokenizer") if name in facts},
        },
    }


def _reads_images(reference: Reference, protocol: Protocol, metrics: Sequence[str]) -> bool:
    """Return whether a metric needs the network to see the reference's images."""
    return (
        ("prdc" in metrics and reference.features is None)
        or ("fid" in metrics and reference.fid_moments(protocol) is None)
        or ("sfid" in metrics and reference.sfid_moments(protocol) is None)
    )


def _balance(samples: ImageSet) -> dict[str, int] | None:
    """Return how even the classes are; None where the samples do not tell theirs."""
    if samples.labels is None:
        return None
    _, counts = np.unique(samples.labels, return_counts=True)
    return {"classes": len(counts), "fewest": int(counts.min()), "most": int(counts.max())}


def _check_numbers(
    samples: ImageSet, reference: Reference, protocol: Protocol, metrics: Sequence[str]
) -> None:
    """Refuse sets that are too small for a metric before the network sees any image."""
    least = {"fid": 2, "sfid": 2, "is": 10, "prdc": prdc.least_number(protocol)}
    sets = [(samples.where, samples.num, metrics)]
    if "prdc" in metrics:
        real = reference.features
        number = reference.images.num if real is None else len(real)
        sets.append((reference.where, number, ["prdc"]))
    if _reads_images(reference, protocol, metrics):
        sets.append((reference.where, reference.images.num, {"fid", "sfid"} & set(metrics)))
    for where, number, names in sets:
        for name in names:
            if number < least[name]:
                raise InputError(
                    f"{where} has {number} images, too few for {name}, which needs {least[name]}"
                )


def _check_network(reference: Reference, extractor: Extractor) -> None:
    made = reference.settings or {}
    for name, value in extractor.settings.items():
        if name in made and made[name] != value:
            raise InputError(
                f"{reference.where} was made with {name} {made[name]}, and this evaluation has "
                f"{value}; make it again with --make_reference"
            )


def _frechet(
    store: FeatureStore, real: FeatureStore | None, output: str, stored: Moments | None
) -> dict[str, Any]:
    found = store.moments(output)
    of_reference = real.moments(output) if stored is None else stored
    if found.mean.shape != of_reference.mean.shape:
        raise InputError(
            f"the reference has {len(of_reference.mean)} features and the network "
            f"{len(found.mean)}; give the reference of this network"
        )
    result = frechet.frechet(of_reference, found)._asdict()
    return {**result, "reference_num": real.images.num if stored is None else None}


def _scores(store: FeatureStore) -> dict[str, Any]:
    """Return both forms of the Inception Score, of logits without bias."""
    num = store.images.num
    forms = {
        "torch_fidelity": inception_score.torch_fidelity_splits(num),
        "adm": inception_score.adm_splits(num),
    }
    found = {}
    for form, splits in forms.items():
        num_splits, at, sums = int(splits.max()) + 1, 0, []
        for logits in store.parts("logits_unbiased"):
            part = splits[at : at + len(logits)]
            sums.append(inception_score.sums(logits, part, num_splits))
            at += len(logits)
        score = inception_score.score(inception_score.merge(sums))
        found[SCORES[form]] = {
            "mean": score.mean,
            "std": score.std,
            "splits": score.splits.tolist(),
            "split_sizes": np.bincount(splits).tolist(),
        }
    return found


def _prdc(
    store: FeatureStore, reference: Reference, real: FeatureStore | None, protocol: Protocol
) -> dict[str, Any]:
    of_reference = real.load("2048") if reference.features is None else reference.features
    samples = store.load("2048")
    if of_reference.shape[1] != samples.shape[1]:
        raise InputError(
            f"{reference.where} has {of_reference.shape[1]} features and the network "
            f"{samples.shape[1]}; give the reference of this network"
        )
    chunks = prdc.measure(of_reference, samples, protocol)
    return {
        "chunks": chunks,
        "reference_num": len(of_reference),
        "num_neighbours": protocol.num_neighbours,
        "closed": protocol.closed,
        "half": protocol.half,
    }


def _headline(parts: Mapping[str, Any], protocol: Protocol) -> dict[str, dict[str, float]]:
    """{metric: {"mean", "std"}}; the deviation is over splits or chunks, 0 where there is one."""
    found = {}
    for name in ("fid", "sfid"):
        if name in parts:
            found[name] = {"mean": parts[name]["distance"], "std": 0.0}
    first = SCORES[protocol.score]
    for name in (first, *(x for x in SCORES.values() if x != first)):
        if name in parts:
            found[name] = {x: parts[name][x] for x in ("mean", "std")}
    for name, values in parts.get("prdc", {}).get("chunks", {}).items():
        found[name] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return found


def _described(parts: Mapping[str, Any]) -> str | None:
    """Return what FID was against, in words; None where there is none."""
    if "fid" not in parts:
        return None
    num = parts["fid"]["reference_num"]
    return "mu and sigma" if num is None else f"{num} images"


def _warnings(
    store: FeatureStore, real: FeatureStore | None, parts: Mapping[str, Any], protocol: Protocol
) -> list[str]:
    found = store.warnings()
    if real is not None:
        found += real.warnings()
        if parts.get("fid", {}).get("reference_num") and protocol.reference == "statistics":
            found.append(
                f"FID is against the {real.images.num} images of {real.images.where}: not "
                "comparable with published ones, which are against mu and sigma of a training set"
            )
    sizes = [(x.images.width, x.images.height) for x in (store, real) if x is not None]
    if len(set(sizes)) > 1:
        (w, h), (real_w, real_h) = sizes
        found.append(f"samples are {w}x{h} pixels and the reference's images {real_w}x{real_h}")
    if store.images.num < protocols.MIN_COMPARABLE:
        found.append(
            f"{store.images.num} samples: FID falls as their number grows, so this one is not "
            "comparable with those of 50,000"
        )
    return found
