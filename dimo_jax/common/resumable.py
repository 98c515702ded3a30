"""Many images on disk in ranges, so that a killed command goes on where it was.

While it runs the ranges lie in <output>.parts/; at the end they become one .npz or a folder of PNG
files, which appears whole, and the ranges go. Axes: N images, H, W, C, L tokens.
"""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray

from dimo_jax.common import archives, files, images, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.temporaries import is_temporary

# Images of a range: what a kill may cost. 50 MB at 256 x 256.
RANGE_SIZE = 256
SETTINGS_FILE = "settings.json"
_OWN = re.compile(r"settings\.json|\d{8,}\.npz")


def folder_of(output: AnyPath) -> AnyPath:
    """Return where the ranges of an output lie until they are joined."""
    return output.with_name(f"{output.name}.parts")


def _foreign(folder: AnyPath) -> str | None:
    """Names what a folder holds that is not of ranges."""
    names = sorted(x.name for x in folder.iterdir()) if folder.is_dir() else []
    return next((x for x in names if not (_OWN.fullmatch(x) or is_temporary(x))), None)


def lock_of(output: AnyPath) -> AnyPath:
    """Return the file by which one command holds an output; not in its folder, which is removed."""
    return output.with_name(f".{output.name}.lock")


def check_ranges(output: AnyPath) -> None:
    """Refuse an output whose ranges would lie among other files.

    Raises:
        InputError: there are some in their folder, which is removed at the end.
    """
    if found := _foreign(folder_of(output)):
        raise InputError(
            f"{folder_of(output)} holds {found}, and would be removed at the end; name another "
            "output"
        )


class Parts:
    """The ranges of one output.

    Args:
        output: the .npz file or the folder that they are to become.
        labels: [N] int32, the label of each image, or the number of its prompt.
        settings: plain values that decide the images; a folder begun with others is refused. They
            go into the output: `settings` of an .npz, settings.json in a folder.
        named: "labels" or "prompts": what those numbers are.

    Raises:
        InputError: there are ranges of another command, or the place cannot be written.
    """

    def __init__(
        self,
        output: AnyPath,
        labels: Int[ndarray, "N"],
        settings: Mapping[str, Any],
        named: str = "labels",
    ):
        self.output, self.labels, self._named = output, labels, named
        self.folder = folder_of(output)
        text = json.dumps({**settings, "num": len(labels)}, sort_keys=True, indent=1)
        self._settings = text
        path = self.folder / SETTINGS_FILE
        check_ranges(output)
        if not path.exists():
            files.write_file(path, text.encode())
        elif readers.text(path) != text:
            raise InputError(
                f"{self.folder} was begun with other settings than these; give those again to go "
                "on, or remove it"
            )

    def ranges(self) -> list[tuple[int, int]]:
        """Return all ranges [start, stop) in order."""
        num = len(self.labels)
        return [(i, min(i + RANGE_SIZE, num)) for i in range(0, num, RANGE_SIZE)]

    def path(self, start: int) -> AnyPath:
        """Return the file of the range that begins at `start`.

        It is there when the range is done.
        """
        return self.folder / f"{start:08d}.npz"

    def save(self, start: int, pixels: UInt8[ndarray, "n H W C"], tokens: Int[ndarray, "n L"]):
        """Write a range."""
        buffer = io.BytesIO()
        np.savez(buffer, pixels=pixels, tokens=tokens)
        files.write_file(self.path(start), buffer.getvalue())

    def finish(self, redraw: Callable[[int, int], None]) -> None:
        """Join the ranges into the output and removes them.

        Args:
            redraw: draws and saves a range [start, stop) anew, where its file is damaged.
        """
        self._redraw = redraw
        if self.output.suffix == ".npz":
            self._write_npz()
        else:
            files.write_folder(self.output, self._pictures(), self._foreign_output)
        if _foreign(self.folder) is None:
            files.remove_folder(self.folder)

    def _foreign_output(self, folder: AnyPath) -> str | None:
        """Names what may not be replaced: anything but pictures of a join that broke off."""
        if not files.is_remote(folder):  # there a folder appears whole
            return files.anything(folder)
        own = re.compile(rf"settings\.json|\d+_{self._named.rstrip('s')}\d+\.png")
        names = sorted(x.name for x in folder.iterdir())
        return next((name for name in names if not own.fullmatch(name)), None)

    def _load(self, start: int) -> tuple[ndarray, ndarray]:
        stop = min(start + RANGE_SIZE, len(self.labels))
        try:
            return self._read(start, stop)
        except InputError:
            self._redraw(start, stop)
            return self._read(start, stop)

    def _read(self, start: int, stop: int) -> tuple[ndarray, ndarray]:
        with archives.open_npz(self.path(start)) as data:
            pixels, tokens = data["pixels"], data["tokens"]
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != stop - start:
            raise InputError(f"{self.path(start)} is not of the images {start} to {stop}")
        return pixels, tokens

    def _write_npz(self) -> None:
        starts = [start for start, _ in self.ranges()]
        shape = self._load(0)[0].shape[1:3]
        head = {
            "descr": "|u1",
            "fortran_order": False,
            "shape": (len(self.labels), *shape, 3),
        }
        tokens = []
        with files.writing(self.output) as file, zipfile.ZipFile(file, "w") as archive:
            # Without the size in advance zipfile wants to be told that it may pass 4 GB.
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, head)
                for start in starts:
                    pixels, part = self._load(start)
                    # Evaluators of arr_0 expect RGB; gray stands in all three.
                    rgb = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
                    member.write(np.ascontiguousarray(rgb).data)
                    tokens.append(part)
            others = {
                self._named: self.labels,
                "tokens": np.concatenate(tokens),
                "settings": np.array(self._settings),
            }
            for name, array in others.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array)

    def _pictures(self) -> Iterator[tuple[str, bytes]]:
        yield SETTINGS_FILE, self._settings.encode()
        digits = len(str(len(self.labels) - 1))
        for start, stop in self.ranges():
            pixels, _ = self._load(start)
            for i, image in zip(range(start, stop), pixels, strict=True):
                yield (
                    f"{i:0{digits}d}_{self._named.rstrip('s')}{self.labels[i]}.png",
                    images.encode_png(image),
                )
