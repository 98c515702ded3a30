"""Named protocols: what a figure of a set of samples was computed with, as plain data.

The same name (FID, precision) means different computations in different papers; each result
carries the protocol that it belongs to.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

METRICS = ("fid", "is", "sfid", "prdc")
# ImageNet's FIDs are of 50,000 samples; below this many the bias is larger than what is compared.
MIN_COMPARABLE = 10_000
SHUFFLE_SEED = 2020  # torch-fidelity's


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to measure samples.

    Attributes:
        name: as on the command line.
        about: where it comes from, in a sentence.
        resizer: a key of inception_features.RESIZERS.
        stretch: whether every image, real or not, is first stretched to 0..255 (see `stretch`).
        reference: "statistics": FID is against the means and covariances that a reference file
            holds; "images": against the reference's own images.
        metrics: what is computed where nobody asks for something else.
        score: whose splits the Inception Score of the headline has: "torch_fidelity" or "adm".
        num_neighbours: k of precision, recall, density and coverage.
        closed: whether the edge belongs to a ball.
        half: whether their distances are float16, as ADM's evaluator has them.
        chunks: into how many parts, shuffled, both sets are cut for them; the mean is reported.
    """

    name: str
    about: str
    resizer: str = "tf1_bilinear"
    stretch: bool = False
    reference: str = "statistics"
    metrics: tuple[str, ...] = ("fid", "is", "prdc")
    score: str = "torch_fidelity"
    num_neighbours: int = 3
    closed: bool = False
    half: bool = False
    chunks: int = 1

    def report(self) -> dict[str, Any]:
        """Return all of it as plain values, for a result."""
        return {**dataclasses.asdict(self), "metrics": list(self.metrics)}

    def preprocessing(self) -> dict[str, Any]:
        """Return what is done to an image before the network.

        Features of another are other features.
        """
        return {"resizer": self.resizer, "stretch": self.stretch}


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "dimo",
            "the code of the Di[M]O paper: FID by clean-fid's legacy_tensorflow mode, Inception "
            "Score by torch-fidelity, prdc with k = 3 of 10,000 real images against all samples",
        ),
        Protocol(
            "adm",
            "OpenAI's guided-diffusion evaluator: Inception Score over runs of 5,000, sFID, "
            "precision and recall with closed balls and float16 distances",
            metrics=("fid", "is", "sfid", "prdc"),
            score="adm",
            closed=True,
            half=True,
        ),
        Protocol(
            "clean",
            "clean-fid: bicubic resizing with antialiasing, unrounded",
            resizer="clean_bicubic",
        ),
        Protocol(
            "valeo",
            "the teacher's repository, MaskGIT-pytorch 1.0, and Di4C: all images stretched to "
            "0..255, real validation images in place of stored statistics, prdc as the mean over "
            "five parts (its random shuffles here have the seed of torch-fidelity's)",
            stretch=True,
            reference="images",
            chunks=5,
        ),
    )
}


def stretch(images: UInt8[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "N H W C"]:
    """Stretch each image so that its least value, over all channels, is 0 and its largest 255.

    Truncated, as (x - min) / (max - min) * 255 is there; an image of one value becomes black.

    Source: the metrics of MaskGIT-pytorch 1.0.
    """
    low = images.min(axis=(1, 2, 3), keepdims=True).astype(np.int32)
    span = images.max(axis=(1, 2, 3), keepdims=True) - low
    return ((images - low) * 255 // np.maximum(span, 1)).astype(np.uint8)
