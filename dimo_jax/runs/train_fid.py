"""A distance of the generator at intervals of its training, from few samples and named for it.

The samples are drawn and seen by all processes, each its share; their moments are joined exactly.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from dimo_jax import bundles
from dimo_jax.common import images
from dimo_jax.common.errors import InputError, about
from dimo_jax.evaluation import evaluate_images, references
from dimo_jax.evaluation.features import moments
from dimo_jax.evaluation.features.classifier import FeatureNetwork
from dimo_jax.evaluation.features.moments import Moments
from dimo_jax.evaluation.metrics import frechet, protocols
from dimo_jax.models import inception
from dimo_jax.parallel import distributed

Images = Float[np.ndarray, "N H W C"]


class Distance(NamedTuple):
    """What the samples are compared with.

    Attributes:
        name: of the metric.
        features: float32 images in [0, 1] -> features [N, D].
        between: (reference, samples) -> the figure.
        reference: moments of the real images.
    """

    name: str
    features: Callable[[Images], Float[np.ndarray, "N D"]]
    between: Callable[[Moments, Moments], float]
    reference: Moments


def classifier_distance(network: FeatureNetwork, real: Images) -> Distance:
    """Return the Fréchet distance in a classifier's features, in percent of the real variance.

    Args:
        network: the classifier.
        real: the training split.
    """
    reference = frechet.moments(network.features(real))
    return Distance("frechet_features", network.features, frechet.frechet_percent, reference)


def inception_distance(bundle: str, reference: str, protocol: str, batch_size: int) -> Distance:
    """Return the FID, as `python -m dimo_jax.evaluate` computes it.

    Args:
        bundle: path of a bundle of kind "features".
        reference: path of a file with the real images' moments.
        protocol: a key of protocols.PROTOCOLS.
        batch_size: images in a call of the feature network.

    Raises:
        InputError: one of the two cannot serve.
    """
    chosen = protocols.PROTOCOLS[protocol]
    with about("config.interim.features"):
        found = bundles.load(bundle, kind="features")
    extractor = evaluate_images.open_network(found, chosen, batch_size)
    with about("config.interim.reference"):
        real = references.open_reference(reference)
    if real.moments is None:
        raise InputError(
            f"config.interim.reference={reference} has no moments (mu and sigma); give a file of "
            "statistics, such as python -m dimo_jax.evaluate reference writes"
        )
    dims = num_features(found)
    if dims != len(real.moments.mean):
        raise InputError(
            f"config.interim.reference={reference} is of {len(real.moments.mean)} features, and "
            f"config.interim.features={bundle} gives {dims}; give the reference of that network"
        )
    return Distance(
        "fid",
        lambda pixels: extractor.extract(images.to_uint8(pixels))["2048"],
        lambda one, other: frechet.frechet(one, other).distance,
        real.moments,
    )


def num_features(bundle: bundles.Bundle) -> int:
    """Return how many features the FID is of, by a bundle of kind "features"."""
    side = inception.IMAGE_SIZE
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    return jax.eval_shape(bundle.build().apply, bundle.params, image)["2048"].shape[-1]


def evaluate(
    draw: Callable[[Int[np.ndarray, "N"], int], Images],
    distance: Distance,
    labels: Int[np.ndarray, "N"],
    batch_size: int,
) -> dict[str, float]:
    """Return the figure; every process must call it.

    Args:
        draw: (labels, index of the first image) -> float32 [N, H, W, C] in [0, 1]; an image is to
            depend on its index and label alone.
        distance: measured to the real images.
        labels: of all samples; their number becomes part of the name.
        batch_size: images drawn at a time.

    Returns:
        {"interim/<name>_<number>": figure}, "5k" for a number of 5,000; nothing on a process that
        is not the lead.

    Raises:
        InputError: fewer samples than processes.
    """
    num, count = len(labels), jax.process_count()
    check_number(num)
    first, last = (num * (jax.process_index() + more) // count for more in (0, 1))
    part = moments.Accumulator()
    for start in range(first, last, batch_size):
        some = labels[start : min(start + batch_size, last)]
        part.add(distance.features(draw(some, start)))
    parts = [_unpacked(data) for data in distributed.gather_bytes(_packed(part.sums()))]
    if not distributed.is_lead():
        return {}
    found = distance.between(distance.reference, moments.merge(parts).moments())
    short = f"{num // 1000}k" if num % 1000 == 0 else str(num)
    return {f"interim/{distance.name}_{short}": found}


def check_number(num: int) -> None:
    """Refuse fewer samples than processes, or than a covariance needs.

    Raises:
        InputError: with the least number.
    """
    count = jax.process_count()
    if num < max(count, 2):
        raise InputError(
            f"config.interim.num_samples={num} is too few for {count} processes; give at least "
            f"{max(count, 2)}"
        )


def configured(
    config: Mapping[str, Any], channels: int, has_own: bool
) -> Distance | Literal["own"] | None:
    """Return the distance that config.interim describes, with its files read.

    Args:
        config: a complete config.
        channels: of the images.
        has_own: whether there are data to train the data's own on.

    Returns:
        None where it describes none; "own" for the data's own, which is trained when it is needed.

    Raises:
        InputError: only one of features and reference is given, or neither is and there are no
            data.
    """
    section = config["interim"]
    if not section["every_steps"]:
        return None
    check_number(section["num_samples"])
    given = [name for name in ("features", "reference") if section[name]]
    if len(given) == 2 and channels != 3:
        raise InputError(
            f"config.interim.features takes RGB, and these images have {channels} channels; leave "
            "it and config.interim.reference empty for the data's own distance"
        )
    if len(given) == 2:
        size = config["evaluation"]["batch_size"]
        return inception_distance(
            section["features"], section["reference"], section["protocol"], size
        )
    if given or not has_own:
        missing = [name for name in ("features", "reference") if name not in given]
        raise InputError(
            f"config.interim.every_steps={section['every_steps']} needs "
            f"{' and '.join(f'config.interim.{name}' for name in missing)}; give a bundle of "
            "Inception and a file of statistics, or every_steps=0"
        )
    return "own"


def _packed(sums: moments.Sums) -> bytes:
    buffer = io.BytesIO()
    # As float64 through a file's format: an exchange of arrays would make them float32.
    np.savez(buffer, **sums._asdict())
    return buffer.getvalue()


def _unpacked(data: bytes) -> moments.Sums:
    with np.load(io.BytesIO(data)) as arrays:
        return moments.Sums(int(arrays["count"]), arrays["mean"], arrays["scatter"])
