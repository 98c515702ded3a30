"""What samples are compared with: files of statistics in all their spellings, or real images.

D features (2048, and 2023 of the spatial ones), N real images.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dimo_jax.common import archives, files
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import listed, shown
from dimo_jax.convert.formats import torch_files
from dimo_jax.evaluation.features.feature_store import FeatureStore
from dimo_jax.evaluation.features.moments import ROUNDING, Moments, covariance_fault
from dimo_jax.evaluation.images import image_sets
from dimo_jax.evaluation.images.image_set import ImageSet, read_settings
from dimo_jax.evaluation.metrics.protocols import METRICS, Protocol

# (mean, covariance) as they are called; the files with `cov` are PyTorch's.
MOMENTS = (("mu", "sigma"), ("ref_mu", "ref_sigma"), ("mu", "cov"))
SPATIAL_MOMENTS = (("mu_s", "sigma_s"),)
# Written by `write`, beside the first of each of these.
FEATURES, SETTINGS = "features", "settings"
IMAGES = "arr_0"
TORCH_SUFFIXES = (".pt", ".pth")
_KEPT = ("decoded", "tokenizer")  # of what a set of images says of its making
_CHUNK_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Reference:
    """A reference, as far as it goes: what it does not hold is None.

    Attributes:
        where: its path, or tfds:NAME:SPLIT; "" for none at all, which serves "is".
        sha256: of the file; None for images in a folder or a data set.
        moments: of the 2048 features.
        spatial: of the 2023 spatial ones, for sFID.
        features: float32 [N, 2048] of real images.
        images: the real images themselves.
        settings: of the network that `moments` and `features` come from, where the file tells.
    """

    where: str
    sha256: str | None = None
    moments: Moments | None = None
    spatial: Moments | None = None
    features: Float[np.ndarray, "N D"] | None = None
    images: ImageSet | None = None
    settings: Mapping[str, Any] | None = None

    @property
    def class_names(self) -> Sequence[str]:
        """Return the names of its images' classes; none where it does not tell them."""
        if self.images is not None and self.images.class_names:
            return self.images.class_names
        found = (self.settings or {}).get("class_names", ())
        is_list = isinstance(found, list) and all(isinstance(x, str) for x in found)
        return found if is_list else ()

    @property
    def is_decoded(self) -> bool:
        """Return whether its images are decoded tokens rather than pictures."""
        facts = {} if self.images is None else self.images.facts
        return "decoded" in facts or "decoded" in (self.settings or {})

    def fid_moments(self, protocol: Protocol) -> Moments | None:
        """Return what FID is against; None where it is computed from the images."""
        return None if protocol.reference == "images" and self.images else self.moments

    def sfid_moments(self, protocol: Protocol) -> Moments | None:
        """Return what sFID is against; None where it is computed from the images."""
        return None if protocol.reference == "images" and self.images else self.spatial

    def lacks(self, metric: str, protocol: Protocol) -> str | None:
        """Return why the reference cannot serve a metric; None if it can.

        Args:
            metric: one of protocols.METRICS.
            protocol: what FID is to be measured against.
        """
        if not (self.moments or self.images or self.features is not None) and metric != "is":
            return f"{metric} needs a reference; give --reference"
        if metric == "fid" and self.moments is None and self.images is None:
            return f"{self.where} has neither mu and sigma nor images, which FID needs; add them"
        # Of a file that has mu and sigma, the images are but some of those that these are of.
        alone = self.images is not None and (self.moments is None or protocol.reference == "images")
        if metric == "sfid" and self.spatial is None and not alone:
            return f"{self.where} has no mu_s and sigma_s, which sFID needs; make one that has"
        if metric == "prdc" and self.features is None and self.images is None:
            return (
                f"{self.where} has neither images (arr_0) nor features, and precision, recall, "
                "density and coverage compare with real examples; give a file that has them"
            )
        return None


def choose_metrics(
    requested: tuple[str, ...] | None, reference: Reference, protocol: Protocol
) -> tuple[tuple[str, ...], list[str]]:
    """Return what is computed.

    Args:
        requested: the metrics that must be; None for as many of the protocol's as can be, but FID.
        reference: what they are compared with.
        protocol: whose metrics.

    Returns:
        The metrics in order, and why each of the others was left out.

    Raises:
        InputError: a metric is unknown, or the reference cannot serve one that is requested.
    """
    unknown = [name for name in requested or () if name not in METRICS]
    if unknown:
        raise InputError(f"there is no metric {', '.join(unknown)}; there are {', '.join(METRICS)}")
    wanted = protocol.metrics if requested is None else requested
    lacking = {name: reference.lacks(name, protocol) for name in wanted}
    for name, why in lacking.items():
        if why and (requested is not None or name == "fid"):
            raise InputError(why)
    chosen = tuple(name for name in METRICS if name in wanted and not lacking[name])
    return chosen, [f"no {name}: {why}" for name, why in lacking.items() if why]


def open_reference(where: str, **options: Any) -> Reference:
    """Open a reference: a file of statistics, an .npz with images, a folder, a zip or a data set.

    Args:
        where: mu and sigma, ref_mu and ref_sigma, mu_s and sigma_s, arr_0, features in an .npz; mu
            and cov or sigma in a .pt; or anything that image_sets.open_set takes.
        options: of image_sets.open_set.

    Returns:
        What it holds, statistics as float64. Images are not read yet.

    Raises:
        InputError: it cannot be read, holds none of these, or something that is no statistic.
    """
    path = files.local(where)
    if path.suffix in TORCH_SUFFIXES:
        content = torch_files.read(path)
        if not isinstance(content, dict):
            raise InputError(f"{path} holds a {type(content).__name__}, expected mu and cov")
        moments = _moments(path, content, MOMENTS)
        if moments is None:
            raise InputError(f"{path} holds {_names(content)}, expected mu and cov (or sigma)")
        return Reference(where, file_hash(path), moments)
    if path.suffix != ".npz" or not path.is_file():
        return Reference(where, images=image_sets.open_set(where, **options))
    with archives.open_npz(path) as data:
        return _from_npz(path, data)


def _from_npz(path: Path, data: Mapping[str, Any]) -> Reference:
    known = {*(x for pair in (*MOMENTS, *SPATIAL_MOMENTS) for x in pair), IMAGES, FEATURES}
    if not known & set(data):
        raise InputError(
            f"{path} holds {_names(data)}, expected statistics (mu and sigma) or images (arr_0)"
        )
    features = data[FEATURES] if FEATURES in data else None
    if features is not None and (features.ndim != 2 or features.dtype.kind != "f"):
        raise InputError(f"features of {path} are {_shape(features)}, expected float [N, D]")
    if features is not None and not np.isfinite(features).all():
        raise InputError(f"features of {path} have values that are not finite; make it again")
    return Reference(
        str(path),
        file_hash(path),
        _moments(path, data, MOMENTS),
        _moments(path, data, SPATIAL_MOMENTS),
        features,
        image_sets.open_set(path) if IMAGES in data else None,
        read_settings(str(data[SETTINGS]), path)
        if SETTINGS in data and features is not None
        else None,
    )


def _moments(
    path: Path, data: Mapping[str, Any], spellings: tuple[tuple[str, str], ...]
) -> Moments | None:
    """Return the first pair that is there, in float64 whatever it was.

    A mu of float32 is common.
    """
    for names in spellings:
        if all(name in data for name in names):
            found = [np.asarray(data[name]) for name in names]
            break
    else:
        half = [name for pair in spellings for name in pair if name in data]
        if half:
            raise InputError(f"{path} has {half[0]} alone, expected {' and '.join(spellings[0])}")
        return None
    for name, array, ndim in zip(names, found, (1, 2), strict=True):
        size = found[0].shape[:1]
        # "V": bfloat16, which NumPy has no kind for.
        if array.dtype.kind not in "fV" or array.ndim != ndim or array.shape != size * ndim:
            raise InputError(f"{name} of {path} is {_shape(array)}, expected float {['D'] * ndim}")
        if not np.isfinite(array.astype(np.float64)).all():
            raise InputError(f"{name} of {path} has values that are not finite; make it again")
    result = Moments(*(array.astype(np.float64) for array in found))
    # Two bytes: float16 and bfloat16, which round to 1/256.
    rounding = ROUNDING if found[1].dtype.itemsize > 2 else 1e-2
    if fault := covariance_fault(result.covariance, rounding):
        raise InputError(f"{names[1]} of {path} is no covariance: it {fault}; make it again")
    return result


def _shape(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _names(content: Mapping[str, Any]) -> str:
    return listed([shown(name) for name in content]) or "nothing"


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write(path: Path, store: FeatureStore, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write a reference of real images: mu, sigma, mu_s, sigma_s and features.

    Args:
        path: the .npz.
        store: their features, all there.
        settings: of the network; a later evaluation with others refuses the file.

    Returns:
        What the file says of itself.

    Raises:
        InputError: the path cannot be written.
    """
    moments, spatial = store.moments("2048"), store.moments("spatial")
    about = {
        **settings,
        "num": store.images.num,
        "images": store.images.where,
        "pixels": store.pixel_hash(),
        **{name: store.images.facts[name] for name in _KEPT if name in store.images.facts},
        **({"class_names": list(names)} if (names := store.images.class_names) else {}),
    }
    arrays: dict[str, Any] = {
        **dict(zip(MOMENTS[0], moments, strict=True)),
        **dict(zip(SPATIAL_MOMENTS[0], spatial, strict=True)),
        **{FEATURES: store.load("2048"), SETTINGS: np.array(json.dumps(about))},
    }
    archives.save_npz(path, **arrays)
    return about
