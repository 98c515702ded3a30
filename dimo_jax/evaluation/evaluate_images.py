"""The evaluator: images, a reference, the outputs of a feature network and metrics become a row.

N samples, D features.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dimo_jax import bundles
from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features.feature_store import OUTPUTS, Extractor, FeatureStore
from dimo_jax.evaluation.features.inception_features import InceptionFeatures
from dimo_jax.evaluation.features.moments import Moments
from dimo_jax.evaluation.features.outputs import Outputs
from dimo_jax.evaluation.images.image_set import ImageSet
from dimo_jax.evaluation.metrics import of_outputs, prdc, protocols
from dimo_jax.evaluation.metrics.of_outputs import Found, Metric
from dimo_jax.evaluation.metrics.protocols import Protocol
from dimo_jax.evaluation.metrics.rows import Row
from dimo_jax.evaluation.references import Reference
from dimo_jax.parallel import distributed

PRECISION = "float32, products of the highest precision; moments and distances in float64"


def evaluate(
    samples: Outputs,
    reference: Outputs,
    metrics: Sequence[Metric],
    *,
    model: str = "samples",
    steps: int = 0,
    sampler: Mapping[str, Any] | None = None,
) -> Row:
    """Measure one set, on one process.

    Args:
        samples: the outputs of a feature network for the samples.
        reference: its outputs for what they are compared with.
        metrics: what is computed of both.
        model: the row's name.
        steps: of the sampler; 0 where that means nothing.
        sampler: its settings.

    Returns:
        The row, with "parts" of its metrics in `rest`.
    """
    # What all processes compute first: none is to wait in it for what the lead does alone.
    first = {i: x.compute(samples, reference) for i, x in enumerate(metrics) if x.on_all}
    found: list[Found] = [
        first[i] if i in first else metric.compute(samples, reference)
        for i, metric in enumerate(metrics)
    ]
    return Row(
        model,
        steps,
        {name: value for one in found for name, value in one.values.items()},
        dict(sampler or {}),
        per_class={name: x for one in found for name, x in one.per_class.items()},
        rest={"parts": {name: part for one in found for name, part in one.parts.items()}},
    )


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


@dataclass(frozen=True)
class Evaluator:
    """How sets of images on disk are evaluated.

    Attributes:
        reference: what they are compared with; it must serve all metrics, see
            references.choose_metrics.
        extractor: the feature network, of `open_network` or a function of a test.
        protocol: how.
        metrics: some of protocols.METRICS.
        folder: where features are kept; a later call goes on from there.
    """

    reference: Reference
    extractor: Extractor
    protocol: Protocol
    metrics: Sequence[str]
    folder: Path

    def evaluate(
        self,
        images: ImageSet,
        role: str = "samples",
        *,
        model: str = "samples",
        steps: int = 0,
        sampler: Mapping[str, Any] | None = None,
    ) -> Row | None:
        """Measure one set; every process of a run calls it.

        Args:
            images: the set.
            role: its name among the kept features.
            model: the row's name.
            steps: of the sampler; 0 where that is unknown.
            sampler: its settings; None for what the samples say.

        Returns:
            The row on the lead process, on the others None.

        Raises:
            InputError: images that cannot be used, too few, or a reference of another network.
        """
        self._check_numbers(images)
        self._check_network()
        began, samples = time.monotonic(), self.outputs(images, role)
        computed = samples.fill()
        seconds = time.monotonic() - began
        real, seen = None, self._seen_images()
        if seen is not None:
            real = self.outputs(seen, "reference")
            real.fill()
        known = _Known(self.reference, real, self.protocol)
        metrics = of_outputs.of_inception(self.metrics, self.protocol)
        if not distributed.is_lead():
            for metric in metrics:
                if metric.on_all:
                    metric.compute(samples, known)
            return None
        facts = images.facts
        sampler = dict(sampler if sampler is not None else facts.get("sampler") or {})
        row = evaluate(
            samples,
            known,
            metrics,
            model=model,
            steps=steps or sampler.get("num_steps", int(sampler.get("name") == "one_step")),
            sampler=sampler,
        )
        if "decoded" in facts:  # of no model: what is the distance's name, too
            named = {"rfid" if name == "fid" else name: x for name, x in row.metrics.items()}
            row = replace(row, model="decoded", metrics=named)
        about = {
            "num": images.num,
            **row.rest,
            "seed": facts.get("seed"),
            "labels": _balance(images),
            "image_size": [images.height, images.width],
            "rounding": facts.get("rounding", "as in the files"),
            # Of this process, with its compilation and the reading of files.
            "images_per_second": computed / seconds if computed else None,
            "reference": _against(row.rest["parts"]),
            "hashes": {
                "samples": samples.pixel_hash(),
                "reference": self.reference.sha256 or (real and real.pixel_hash()),
                # Of what dimo_jax.sample drew them with.
                **{name: facts[name] for name in ("model", "tokenizer") if name in facts},
            },
        }
        return replace(row, rest=about, warnings=self._warnings(samples, real, row))

    def outputs(self, images: ImageSet, role: str) -> FeatureStore:
        """Return the kept features of a set, as far as they are there."""
        return FeatureStore(self.folder, images, self.extractor, role)

    def _seen_images(self) -> ImageSet | None:
        """Return the reference's images where a metric needs the network to see them."""
        reference, metrics = self.reference, self.metrics
        needed = (
            ("prdc" in metrics and reference.features is None)
            or ("fid" in metrics and reference.fid_moments(self.protocol) is None)
            or ("sfid" in metrics and reference.sfid_moments(self.protocol) is None)
        )
        return reference.images if needed else None

    def _check_numbers(self, samples: ImageSet) -> None:
        """Refuse sets that are too small for a metric before the network sees any image."""
        least = {"fid": 2, "sfid": 2, "is": 10, "prdc": prdc.least_number(self.protocol)}
        reference, metrics = self.reference, self.metrics
        sets = [(samples.where, samples.num, metrics)]
        seen, own = self._seen_images(), [name for name in ("fid", "sfid") if name in metrics]
        if "prdc" in metrics and reference.features is not None:
            sets.append((reference.where, len(reference.features), ["prdc"]))
        elif "prdc" in metrics:
            own = ["prdc", *own]
        if seen is not None:
            sets.append((reference.where, seen.num, own))
        for where, number, needed in sets:
            for name in needed:
                if number < least[name]:
                    raise InputError(
                        f"{where} has {number} images, too few for {name}, which needs "
                        f"{least[name]}"
                    )

    def _check_network(self) -> None:
        made = self.reference.settings or {}
        for name, value in self.extractor.settings.items():
            if name in made and made[name] != value:
                raise InputError(
                    f"{self.reference.where} was made with {name} {made[name]}, and this "
                    f"evaluation has {value}; make it again with evaluate reference"
                )

    def _warnings(self, samples: FeatureStore, real: FeatureStore | None, row: Row) -> list[str]:
        found = samples.warnings()
        if real is not None:
            found += real.warnings()
            against_images = row.rest["parts"].get("fid", {}).get("reference_num")
            if against_images and self.protocol.reference == "statistics":
                found.append(
                    f"FID is against the {real.images.num} images of {real.images.where}: not "
                    "comparable with published ones, which are against mu and sigma of a training "
                    "set"
                )
        sizes = [(x.images.width, x.images.height) for x in (samples, real) if x is not None]
        if len(set(sizes)) > 1:
            (w, h), (real_w, real_h) = sizes
            found.append(f"samples are {w}x{h} pixels and the reference's images {real_w}x{real_h}")
        if self.reference.is_decoded:
            found.append(
                f"the reference {self.reference.where} is of decoded tokens, not of pictures: what "
                "the tokenizer loses is in none of the distances to it"
            )
        if samples.images.num < protocols.MIN_COMPARABLE:
            found.append(
                f"{samples.images.num} samples: FID falls as their number grows, so this one is "
                "not comparable with those of 50,000"
            )
        return found


class _Known(Outputs):
    """The outputs of a reference: what its file holds, else those of its images."""

    def __init__(self, reference: Reference, real: FeatureStore | None, protocol: Protocol):
        self._features, self._real = reference.features, real or Outputs()
        known = {"2048": reference.fid_moments, "spatial": reference.sfid_moments}
        self._stored = {name: moments(protocol) for name, moments in known.items()}

    def load(self, name: str) -> np.ndarray:
        return self._real.load(name) if self._features is None else self._features

    def moments(self, name: str) -> Moments:
        return self._stored[name] or self._real.moments(name)

    def num(self, name: str) -> int | None:
        return None if self._stored[name] else self._real.num(name)


def _balance(samples: ImageSet) -> dict[str, int] | None:
    """Return how even the classes are; None where the samples do not tell theirs."""
    if samples.labels is None:
        return None
    _, counts = np.unique(samples.labels, return_counts=True)
    return {"classes": len(counts), "fewest": int(counts.min()), "most": int(counts.max())}


def _against(parts: Mapping[str, Any]) -> str | None:
    """Return what FID was against, in words; None where there is none."""
    if "fid" not in parts:
        return None
    num = parts["fid"]["reference_num"]
    return "mu and sigma" if num is None else f"{num} images"
