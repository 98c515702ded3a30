"""Many images of labels or prompts as one .npz or a folder of PNG files, drawn resumably.

While they are drawn their ranges lie in <output>.parts/; at the end they become the output, which
appears whole, and the ranges go. Axes: N images, H, W, C, L tokens.
"""

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray

from dimo_jax.common import archives, files, images, resumable
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.common.resumable import SETTINGS_FILE, Range
from dimo_jax.parallel import distributed, locks

# Images of a range: what a kill may cost. 50 MB at 256 x 256.
RANGE_SIZE = 256
_OWN = re.compile(r"settings\.json|\d{8,}\.npz")
_PICTURES = re.compile(r"settings\.json|\d+_(label|prompt)\d+\.png")

Drawn = Iterator[tuple[Range, UInt8[ndarray, "n H W C"], Int[ndarray, "n L"]]]


def folder_of(output: AnyPath) -> AnyPath:
    """Return where the ranges of an output lie until they are joined."""
    return output.with_name(f"{output.name}.parts")


def lock_of(output: AnyPath) -> AnyPath:
    """Return the file by which one command holds an output; not in its folder, which is removed."""
    return output.with_name(f".{output.name}.lock")


def _foreign(output: AnyPath) -> str | None:
    return resumable.foreign(folder_of(output), lambda name: bool(_OWN.fullmatch(name)))


def check_ranges(output: AnyPath) -> None:
    """Refuse an output whose ranges would lie among other files.

    Raises:
        InputError: there are some in their folder, which is removed at the end.
    """
    if found := _foreign(output):
        raise InputError(
            f"{folder_of(output)} holds {found}, and would be removed at the end; name another "
            "output"
        )


def write_samples(
    output: AnyPath,
    labels: Int[ndarray, "N"],
    settings: Mapping[str, Any],
    draw: Callable[[int, int], tuple[UInt8[ndarray, "n H W C"], Int[ndarray, "n L"]]],
    named: str = "labels",
) -> int:
    """Draw what is missing of a file or folder, range by range, then join; by every process.

    Args:
        output: the .npz file or the folder.
        labels: [N] int32, the label of each image, or the number of its prompt.
        settings: plain values that decide the images. They go into the output: `settings` of an
            .npz, settings.json in a folder.
        draw: [start, stop) -> pixels and tokens of these images.
        named: "labels" or "prompts": what those numbers are.

    Returns:
        How many images of this process were there already.

    Raises:
        InputError: there are ranges of other settings, or the place cannot be written.
    """
    settings = {**settings, "num": len(labels)}
    folder = folder_of(output)
    parts = resumable.ranges(len(labels), RANGE_SIZE)
    store = resumable.Store({part: folder / f"{part[0]:08d}.npz" for part in parts}, "images")

    def made(left: list[Range]) -> Iterator[int]:
        for start, stop in left:
            pixels, tokens = draw(start, stop)
            archives.save_npz(store.paths[start, stop], pixels=pixels, tokens=tokens)
            yield stop - start

    with locks.held(lock_of(output), str(output)):
        check_ranges(output)
        place = folder / SETTINGS_FILE
        if not resumable.compare(place, settings, str(output)):
            resumable.record(place, settings)
        with Progress("sample", silent=not distributed.is_lead()) as progress:
            process = (jax.process_index(), jax.process_count())
            before, _ = store.fill(made, progress, process)
            distributed.barrier("sampled")
            if distributed.is_lead():

                def drawn() -> Drawn:
                    for part, path in store.paths.items():
                        try:
                            yield part, *_read(path, part)
                        except InputError:
                            progress.note(f"{path} is damaged; its images are drawn again")
                            list(made([part]))
                            yield part, *_read(path, part)

                text = resumable.as_text(settings)
                if output.suffix == ".npz":
                    arrays = {named: labels, "settings": np.array(text)}
                    _write_npz(output, len(labels), drawn, arrays)
                else:
                    pictures = _pictures(drawn(), labels, text, named.rstrip("s"))
                    files.write_folder(output, pictures, _foreign_output)
                if _foreign(output) is None:
                    files.remove_folder(folder)
        # No process may look for the output before it is there.
        distributed.barrier("joined")
    return before


def _read(path: AnyPath, part: Range) -> tuple[ndarray, ndarray]:
    start, stop = part
    with archives.open_npz(path) as data:
        pixels, tokens = data["pixels"], data["tokens"]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != stop - start:
        raise InputError(f"{path} is not of the images {start} to {stop}")
    return pixels, tokens


def _foreign_output(folder: AnyPath) -> str | None:
    """Name what may not be replaced: in a store, but for pictures of a join that broke off."""
    if not files.is_remote(folder):  # a folder on a disk appears whole
        return files.anything(folder)
    return resumable.foreign(folder, lambda name: bool(_PICTURES.fullmatch(name)))


def _pictures(
    drawn: Drawn, labels: Int[ndarray, "N"], settings: str, one: str
) -> Iterator[tuple[str, bytes]]:
    yield SETTINGS_FILE, settings.encode()
    digits = len(str(len(labels) - 1))
    for (start, _), pixels, _ in drawn:
        for i, image in enumerate(pixels, start):
            yield f"{i:0{digits}d}_{one}{labels[i]}.png", images.encode_png(image)


def _write_npz(
    output: AnyPath, num: int, drawn: Callable[[], Drawn], others: dict[str, ndarray]
) -> None:
    """Write the pixels range by range; `drawn` begins with the first at every call."""
    _, first, _ = next(drawn())
    head = {"descr": "|u1", "fortran_order": False, "shape": (num, *first.shape[1:3], 3)}
    tokens = []
    with files.writing(output) as file, zipfile.ZipFile(file, "w") as archive:
        # Without the size in advance zipfile refuses to pass 4 GB.
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, head)
            for _, pixels, some in drawn():
                # Evaluators of arr_0 expect RGB; gray stands in all three.
                member.write(images.in_rgb(pixels).data)
                tokens.append(some)
        for name, array in {**others, "tokens": np.concatenate(tokens)}.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
