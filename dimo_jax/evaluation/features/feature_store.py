"""Features of a set of images on disk, in ranges: a killed command goes on where it was.

Each range is a file that appears whole, named after the images it is of, so that a replaced image
costs its own range and no other. Several processes take ranges in turn on a disk that they share.
Axes: N images, D features.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from dimo_jax.common import archives, pictures, resumable
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.common.resumable import Range
from dimo_jax.common.shown import listed
from dimo_jax.evaluation.features.moments import Accumulator, Moments
from dimo_jax.evaluation.features.outputs import Outputs
from dimo_jax.evaluation.images.image_set import Batch, ImageSet
from dimo_jax.parallel import distributed, locks

# All that any metric needs, whatever is requested today: they come out of one pass.
OUTPUTS = ("2048", "logits_unbiased", "spatial")
_SAVED = (*OUTPUTS, "digests", "kinds", "constant")
RANGE_SIZE = 256  # images of a range: what a kill may cost, and 5 MB of features
RANGE_BYTES = 1 << 28  # of pixels; three ranges are in memory
_DECODING = 2  # raised when a file's pixels become others, so that no features of before are used

Features = Mapping[str, Float[np.ndarray, "N _"]]
Extract = Callable[[UInt8[np.ndarray, "N H W 3"]], Features]


class Extractor(NamedTuple):
    """A feature network, ready to use.

    Attributes:
        extract: images to the OUTPUTS.
        settings: plain values that decide its result: hash of the weights, preprocessing.
        batch_size: ranges are multiples of it, so that no batch is filled up in vain.
    """

    extract: Extract
    settings: Mapping[str, Any]
    batch_size: int = 1


class FeatureStore(Outputs):
    """The features of one set.

    Args:
        folder: for this and other sets.
        images: the set.
        extractor: what makes the features; other settings have another sub-folder.
        role: what the set is, part of the sub-folder's name.
    """

    def __init__(self, folder: Path, images: ImageSet, extractor: Extractor, role: str):
        self.images, self._extractor = images, extractor
        settings = json.dumps({**extractor.settings, "decoding": _DECODING}, sort_keys=True)
        key = hashlib.sha256(settings.encode()).hexdigest()
        self.folder = folder / f"{role}-{key[:12]}"
        budget = min(RANGE_SIZE, RANGE_BYTES // (3 * images.height * images.width))
        size = extractor.batch_size * max(1, budget // extractor.batch_size)
        paths = {
            part: self.folder / f"{part[0]:08d}-{images.identity(*part)[:16]}.npz"
            for part in resumable.ranges(images.num, size)
        }
        self.files = resumable.Store(paths, "images", self._is_whole)

    def fill(self) -> int:
        """Compute what is missing; every process of a run calls it.

        An image that cannot be read costs its range: all others are done before it is reported.

        Returns:
            How many images this process computed.

        Raises:
            InputError: naming the images that cannot be used, after all the rest was kept.
        """
        errors: list[str] = []
        silent = not distributed.is_lead()
        with Progress("features", silent=silent) as progress, ThreadPoolExecutor(1) as writer:

            def made(left: list[Range]) -> Iterator[int]:
                writing = None
                for part, batch in self._read_ahead(left):
                    if isinstance(batch, InputError):
                        errors.append(str(batch))
                        progress.note(str(batch))
                        continue
                    found = self._extractor.extract(batch.pixels)
                    # One range is read and one written while the network has a third.
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(self._save, part, batch, found)
                    yield part[1] - part[0]
                if writing is not None:
                    writing.result()

            for text in self.images.notes:
                progress.note(text)
            process = (jax.process_index(), jax.process_count())
            before, done = self.files.fill(made, progress, process)
        self._agree(errors, done)
        return done - before

    def _agree(self, errors: list[str], done: int) -> None:
        everywhere = distributed.agree(not errors)
        if errors:
            raise InputError(
                f"{listed(errors)}. The features of the {done} other images are kept in "
                f"{self.folder}; the same command goes on from there"
            )
        if not everywhere:
            raise InputError("another process cannot use some of its images; see its message")
        paths = self.files.paths.values()
        locks.check_shared("features", paths, self.folder, "--output")
        if distributed.is_lead():
            own = set(self.folder.glob(f"{'[0-9]' * 8}-{'[0-9a-f]' * 16}.npz"))
            for path in own - set(paths):
                path.unlink()  # of images that have changed since

    def _read_ahead(self, ranges: list[Range]) -> Iterator[tuple[Range, Batch | InputError]]:
        """Yield each range's images, read while those before them are with the network."""
        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(self.images.read, *part) for part in ranges[:1]]
            for i, part in enumerate(ranges):
                try:
                    found = waiting.pop().result()
                except InputError as error:
                    found = error
                waiting = [pool.submit(self.images.read, *x) for x in ranges[i + 1 : i + 2]]
                yield part, found

    def _save(self, part: Range, batch: Batch, found: Features) -> None:
        pixels, flat = batch.pixels, batch.pixels.reshape(len(batch.pixels), -1)
        head = f"{pixels.shape[1:]}".encode()
        digests = [hashlib.sha256(head + image.tobytes()).digest() for image in pixels]
        archives.save_npz(
            self.files.paths[part],
            **{name: np.asarray(found[name], np.float32) for name in OUTPUTS},
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
            kinds=batch.kinds,
            constant=flat.min(axis=1) == flat.max(axis=1),
        )

    def _is_whole(self, part: Range) -> bool:
        """Return whether a range is there and every array of it as it was written."""
        try:
            with archives.open_npz(self.files.paths[part]) as data:
                num = part[1] - part[0]
                return all(data[name].shape[:1] == (num,) for name in _SAVED)
        except InputError:
            return False

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """Yield one of OUTPUTS, "digests", "kinds" or "constant", range by range in order.

        Raises:
            InputError: a file is damaged.
        """
        for path in self.files.paths.values():
            with archives.open_npz(path) as data:
                yield data[name]

    def load(self, name: str) -> np.ndarray:
        """Return the same as one array; 50,000 x 2048 are 0.4 GB."""
        return np.concatenate(list(self.parts(name)))

    def moments(self, name: str) -> Moments:
        """Mean and covariance in float64, without all features in memory.

        They come from the files, so they are the same for any number of processes.

        Raises:
            InputError: there are fewer than two images.
        """
        if self.images.num < 2:
            raise InputError(f"{self.images.where} has 1 image; a covariance needs two or more")
        stream = Accumulator()
        for part in self.parts(name):
            stream.add(part)
        return stream.sums().moments()

    def num(self, name: str) -> int:
        """Return of how many images the moments are."""
        return self.images.num

    def pixel_hash(self) -> str:
        """SHA-256 over the images' own: the same for the same pixels in whatever files."""
        return hashlib.sha256(self.load("digests").tobytes()).hexdigest()

    def warnings(self) -> list[str]:
        """Return what is odd about these images, each in a sentence with an example."""
        found = list(self.images.notes)
        if len(index := np.flatnonzero(self.load("constant"))):
            found.append(f"{self._some(index)} of one colour")
        if len(index := np.flatnonzero(kinds := self.load("kinds"))):
            found.append(
                f"converted to 8-bit RGB: {len(index)} of {self.images.num} images, "
                f"{pictures.described(kinds)}; the first is {self.images.name(int(index[0]))}"
            )
        duplicates = self._duplicates()
        if duplicates:
            first, second = duplicates[0]
            found.append(
                f"{self.images.name(second)} equals {self.images.name(first)} "
                f"({len(duplicates)} duplicates in all)"
            )
        if self.images.is_jpeg():
            found.append(f"{self.images.where} holds JPEG files, whose artefacts a FID sees")
        return found

    def _some(self, index: np.ndarray) -> str:
        more = f" and {len(index) - 1} more are" if len(index) > 1 else " is"
        return f"{self.images.name(int(index[0]))}{more}"

    def _duplicates(self) -> list[tuple[int, int]]:
        """(first, later) of every image that equals an earlier one."""
        first: dict[bytes, int] = {}
        digests = enumerate(x.tobytes() for x in self.load("digests"))
        pairs = [(first.setdefault(digest, i), i) for i, digest in digests]
        return [(a, b) for a, b in pairs if a != b]
