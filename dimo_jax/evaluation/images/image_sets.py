"""Sets of images wherever they lie: in a folder, a zip, an .npz or a data set.

Nothing is loaded whole: the 50,000 images of an evaluation are 10 GB. Axes: N images, H height, W
width.
"""

import contextlib
import math
import os
import re
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dimo_jax import bundles
from dimo_jax.common import archives, files, images, picture_folder, pictures, readers, resumable
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import listed, shown
from dimo_jax.data import splits
from dimo_jax.data.pictures import Dataset
from dimo_jax.data.token_sets import TOKENS_FILE
from dimo_jax.data.token_sets import open_set as open_tokens
from dimo_jax.evaluation.images import image_files
from dimo_jax.evaluation.images.image_set import Batch, ImageSet, digest, read_settings
from dimo_jax.evaluation.images.token_images import Cut, Decoded

_THREADS = min(16, os.cpu_count() or 4)  # Pillow's decoders let go of the interpreter's lock
# Of an array in Fortran's order, which is read whole and for a while takes twice that.
MAX_TRANSPOSED_BYTES = 1 << 32


class _Files(ImageSet):
    """Pictures in files of a folder or members of a zip archive, in natural order: 2 before 10."""

    def __init__(self, where: str, names: list[str], image_size: int | None):
        self.names = sorted(names, key=_natural)
        super().__init__(where, len(names))
        self._image_size = image_size
        found = [re.search(r"_label(\d{1,9})\.\w+$", name) for name in self.names]
        labels = [int(match[1]) for match in found if match]
        if len(labels) == len(found):  # as dimo_jax.sample writes them
            self.labels = np.array(labels)
        self._first, pixels = self._first_readable()
        self.height, self.width = pixels.shape[:2]

    def _first_readable(self) -> tuple[int, np.ndarray]:
        """Return the picture whose size is that of all, and its place.

        Damaged ones come up in `read`.
        """
        last = self.num - 1
        for index in range(last):
            with contextlib.suppress(InputError):
                return index, self._decode(index).pixels
        return last, self._decode(last).pixels

    def name(self, index: int) -> str:
        return self.names[index]

    def is_jpeg(self) -> bool:
        return any(name.lower().endswith(pictures.JPEG_SUFFIXES) for name in self.names)

    def content(self, index: int) -> bytes:
        """Return the bytes of the picture's file."""
        raise NotImplementedError

    def _decode(self, index: int) -> image_files.Picture:
        return image_files.decode(self.content(index), self.name(index), self._image_size)

    def _checked(self, index: int) -> image_files.Picture | InputError:
        try:
            picture = self._decode(index)
        except InputError as error:
            return error
        height, width = picture.pixels.shape[:2]
        if (height, width) != (self.height, self.width):
            return InputError(
                f"{self.name(index)} is {width}x{height} pixels and {self.name(self._first)} "
                f"{self.width}x{self.height}; bring all images to one size"
            )
        return picture

    def read(self, start: int, stop: int) -> Batch:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(self._checked, range(start, stop)))
        errors = [str(x) for x in found if isinstance(x, InputError)]
        if errors:
            raise InputError(listed(errors))
        read = [x for x in found if not isinstance(x, InputError)]
        pixels = np.stack([x.pixels for x in read])
        return Batch(pixels, np.array([pictures.to_bits(x.kinds) for x in read], np.uint8))


class _Folder(_Files):
    def __init__(self, path: Path, recursive: bool, image_size: int | None):
        self._root = path
        names, notes = picture_folder.find(path, recursive)
        super().__init__(str(path), names, image_size)
        self.notes += notes
        settings = path / resumable.SETTINGS_FILE
        if settings.is_file():
            self.facts = read_settings(readers.text(settings), path)

    def name(self, index: int) -> str:
        return str(self._root / self.names[index])

    def content(self, index: int) -> bytes:
        return pictures.read(self._root / self.names[index])

    def identity(self, start: int, stop: int) -> str:
        lines = [f"crop {self._image_size}"]
        for name in self.names[start:stop]:
            facts = os.stat(self._root / name)
            lines.append(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}")
        return digest(*lines)


class _Zip(_Files):
    def __init__(self, path: Path, image_size: int | None):
        self._archive = archives.open_zip(path)
        members = {x.filename: x for x in self._archive.infolist() if not x.is_dir()}
        self._infos = {k: x for k, x in members.items() if picture_folder.is_picture(k)}
        if not self._infos:
            raise InputError(f"{path} has no pictures ({picture_folder.names_of_suffixes()})")
        super().__init__(str(path), list(self._infos), image_size)
        others = [x for x in members if x not in self._infos and not Path(x).name.startswith(".")]
        self.notes += picture_folder.skipped(str(path), others)

    def name(self, index: int) -> str:
        return f"{self.names[index]} in {self.where}"

    def content(self, index: int) -> bytes:
        name = self.names[index]
        pictures.check_bytes(self._infos[name].file_size, self.name(index))
        return archives.read_member(self._archive, name, self.where, self._infos[name].file_size)

    def identity(self, start: int, stop: int) -> str:
        infos = [self._infos[name] for name in self.names[start:stop]]
        return digest(
            f"crop {self._image_size}", *(f"{x.filename}\0{x.CRC}\0{x.file_size}" for x in infos)
        )


class _Npz(ImageSet):
    """arr_0 of an .npz, uint8 [N, H, W, 3]: ADM's form, and dimo_jax.sample's."""

    def __init__(self, path: Path):
        self._path, self._archive, self._whole = path, archives.open_zip(path), None
        members = {info.filename: info for info in self._archive.infolist()}
        if "arr_0.npy" not in members:
            names = shown(", ".join(name.removesuffix(".npy") for name in members)) or "nothing"
            raise InputError(
                f"{path} has {names}, but no arr_0; images are expected there, uint8 [N, H, W, 3]"
            )
        self._info = members["arr_0.npy"]
        shape = self._open()
        super().__init__(str(path), shape[0])
        self.height, self.width, self._channels = shape[1:]
        self._read_facts()

    def __del__(self):
        # An archive does not close its file while a member is open, and Python then complains.
        if hasattr(self, "_stream"):
            self._stream.close()

    def _open(self) -> tuple[int, ...]:
        """Go to the first image; return the array's shape."""
        if hasattr(self, "_stream"):
            self._stream.close()
        with archives.explained(f"arr_0 of {self._path}"):
            self._stream, self._at = self._archive.open(self._info), 0
            shape, fortran, dtype = archives.read_npy_header(self._stream, self._info.file_size)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape[1:]:
            raise InputError(
                f"arr_0 of {self._path} is {dtype} {list(shape)}, expected uint8 [N, H, W, 3]"
            )
        if fortran:
            self._whole = self._transposed(shape)
        return shape

    def _transposed(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "N H W C"]:
        """Return all images of an array in Fortran's order, in which no image lies in one piece."""
        num_bytes = math.prod(shape)
        if num_bytes > MAX_TRANSPOSED_BYTES:
            raise InputError(
                f"arr_0 of {self._path} is in Fortran's order and has {num_bytes:,} bytes, more "
                f"than {MAX_TRANSPOSED_BYTES:,}; save it again with np.ascontiguousarray"
            )
        data = self._read_bytes(num_bytes, shape[0])
        return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(shape, order="F"))

    def _read_facts(self) -> None:
        with archives.open_npz(self._path) as data:
            labels = data["labels"] if "labels" in data else np.empty(0, int)
            if labels.shape == (self.num,) and labels.dtype.kind in "iu":
                self.labels = labels
            if "settings" in data:
                self.facts = read_settings(str(data["settings"]), self._path)

    def identity(self, start: int, stop: int) -> str:
        # The time too: a damaged copy has the checksum of a good one in its list of members.
        changed = os.stat(self._path).st_mtime_ns
        return digest(f"{self._info.CRC} {self._info.file_size} {changed} {start} {stop}")

    def _read_bytes(self, num: int, stop: int, skipped: int = 0) -> bytes:
        """Read on in the array, up to the image `stop`."""
        try:
            self._stream.seek(skipped, os.SEEK_CUR)
            data = self._stream.read(num)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError(f"{self._path} is damaged before image {stop}: {error}") from error
        if len(data) < num:
            raise InputError(f"{self._path} ends before image {stop}; copy it again")
        return data

    def read(self, start: int, stop: int) -> Batch:
        if self._whole is None:
            # A deflated member can only be read on; one that is stored is jumped in just the same.
            image_bytes = self.height * self.width * self._channels
            if start < self._at:
                self._open()
            skipped, self._at = (start - self._at) * image_bytes, self.num
            data = self._read_bytes((stop - start) * image_bytes, stop, skipped)
            self._at = stop
            pixels = np.frombuffer(data, np.uint8)
            pixels = pixels.reshape(stop - start, self.height, self.width, self._channels)
        else:
            pixels = self._whole[start:stop]
        rgb = images.in_rgb(pixels)
        bits = pictures.to_bits(["gray"] if self._channels == 1 else [])
        return Batch(rgb, np.full(stop - start, bits, np.uint8))


class _Dataset(ImageSet):
    """A split of a tensorflow-datasets data set."""

    def __init__(self, where: str, data_dir: str, image_size: int | None):
        # As other evaluators read files: an EXIF orientation is not applied.
        self._source = Dataset(where, "none", data_dir=data_dir, upright=False)
        super().__init__(where, self._source.num)
        self._image_size = image_size
        self.height, self.width = self._picture(0).shape[:2]

    def _picture(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        pixels = self._source.read(index)
        if self._image_size is None:
            return pixels
        return image_files.cut(pixels, self._image_size, self.name(index))

    def identity(self, start: int, stop: int) -> str:
        return digest(f"{self._source.version} {self.where} {start} {stop} {self._image_size}")

    def read(self, start: int, stop: int) -> Batch:
        found = [self._picture(i) for i in range(start, stop)]
        for i, pixels in enumerate(found, start):
            height, width = pixels.shape[:2]
            if (height, width) != (self.height, self.width):
                raise InputError(
                    f"{self.name(i)} is {width}x{height} pixels and image 0 "
                    f"{self.width}x{self.height}; give --image_size"
                )
        return Batch(np.stack(found), np.zeros(len(found), np.uint8))


def open_set(
    where: str | os.PathLike,
    recursive: bool = False,
    image_size: int | None = None,
    data_dir: str = "~/tensorflow_datasets",
    tokenizer: str | None = None,
    cut_as: str | None = None,
) -> ImageSet:
    """Return a set of images.

    Args:
        where: a folder of pictures, a .zip of them, an .npz with arr_0, tfds:NAME:SPLIT, or a
            folder of tokens.
        recursive: take the folder's sub-folders too.
        image_size: cut and shrink every picture to that many pixels along a side (folder, zip,
            data set); None takes them as they are.
        data_dir: where tensorflow-datasets lie.
        tokenizer: the bundle that a folder of tokens is decoded with.
        cut_as: a folder of tokens: pictures of a folder or a data set are cut out as its were.

    Returns:
        The set; the first image has been decoded, the others not.

    Raises:
        InputError: there is no such set, it is empty, or not of that kind.
    """
    is_dataset = str(where).startswith(splits.DATASET)
    path = files.local(where)
    if (path / TOKENS_FILE).is_file():
        if tokenizer is None:
            raise InputError(f"{path} holds tokens; give --tokenizer, the bundle to decode them")
        return Decoded(open_tokens(path), bundles.load_tokenizer(tokenizer))
    if cut_as is not None and (is_dataset or path.is_dir()):
        return Cut(str(where), open_tokens(cut_as), data_dir)
    if is_dataset:
        return _Dataset(str(where), data_dir, image_size)
    if path.is_dir():
        return _Folder(path, recursive, image_size)
    if not path.is_file():
        raise InputError(f"there is no {path}; give a folder of images, a .zip or an .npz")
    if path.suffix == ".zip":
        return _Zip(path, image_size)
    if path.suffix == ".npz":
        return _Npz(path)
    raise InputError(f"{path} is no set of images: expected a folder, a .zip or an .npz")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort numbers inside names by their value."""
    # 1000 digits: int() refuses a name of more than 4300, which an archive may have.
    return [(int(x[:1000]), "") if x.isdecimal() else (-1, x) for x in re.split(r"(\d+)", name)]
