"""The images of a prompt benchmark in the folders that its scorer expects, written resumably.

A file's name is made of numbers and of names of styles, never of a prompt, so prompts may hold
slashes, quotes and any script. What decides the images is in <output>.settings.json beside the
folder, since two of the scorers take whatever lies inside for images. Axes: B images, H, W.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8
from PIL import Image

from dimo_jax.common import files, images, pictures, resumable
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.data.benchmark_prompts import HPS_STYLES, Prompt

_JPEG_QUALITY = 75  # Pillow's own: part of HPS v2's protocol
_GRID_COLUMNS = 2

# One image to draw: (prompt, its index in the list, its number among the prompt's images).
Item = tuple[str, int, int]
Draw = Callable[[Sequence[Item]], UInt8[np.ndarray, "B H W 3"]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a benchmark's files lie, by prompt and index in the list.

    Attributes:
        image: (prompt, index, k, images of a prompt) -> the image's path inside the folder.
        beside: (prompt, index) -> other files of the prompt, by path.
        grid: index -> a picture of all images of the prompt, or None.
        captions: whether captions.txt lists the prompts, a line for each.
        most: images of a prompt at most; None for any number.
    """

    image: Callable[[Prompt, int, int, int], str]
    beside: Callable[[Prompt, int], dict[str, bytes]] = lambda prompt, index: {}
    grid: Callable[[int], str] | None = None
    captions: bool = False
    most: int | None = None


def _flat(prompt: Prompt, index: int, k: int, num: int) -> str:
    return f"{index:05d}.png" if num == 1 else f"{index:05d}_{k}.png"


LAYOUTS: Mapping[str, Layout] = {
    # Folders of digits, which the detector's script looks for; one JSON line and the samples.
    "geneval": Layout(
        lambda prompt, index, k, num: f"{index:05d}/samples/{k:05d}.png",
        lambda prompt, index: {
            f"{index:05d}/metadata.jsonl": json.dumps(dict(prompt.metadata)).encode()
        },
        lambda index: f"{index:05d}/grid.png",
    ),
    "hpsv2": Layout(
        lambda prompt, index, k, num: (
            f"{prompt.metadata['style']}/{prompt.metadata['index']:05d}.jpg"
        ),
        most=1,
    ),
    # By position in the list, as its captions.
    "coco": Layout(_flat, captions=True),
    "plain": Layout(_flat, captions=True),
}


def image_keys(seed: int, items: Sequence[Item]) -> Key[Array, "B"]:
    """Return the random key of each image.

    A function of (seed, prompt index, k) and nothing else.
    """
    index, k = (jnp.asarray([item[i] for item in items], jnp.uint32) for i in (1, 2))
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, 0))
    prompts = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), index)
    return fold(prompts, k)


def write_benchmark(
    layout: str,
    prompts: Sequence[Prompt],
    draw: Draw,
    output: Path,
    images_per_prompt: int = 1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    process: tuple[int, int] = (0, 1),
) -> int:
    """Draw what is missing of a benchmark and write it, each file under a temporary name first.

    Args:
        layout: a key of LAYOUTS.
        prompts: of prompts.read.
        draw: items -> uint8 RGB images in their order; at most batch_size items in a call. What it
            draws for an item must depend on (seed, index, k) alone, as `image_keys`.
        output: the folder.
        images_per_prompt: 4 in GenEval, 1 in the others.
        seed: of all images; it is only noted here.
        settings: other plain values that decide the images: the model's hash, its sampler.
        batch_size: images in a call.
        process: (index, processes): every n-th prompt is drawn here.

    Returns:
        How many images were there already.

    Raises:
        InputError: an unknown layout, a number of images that it has no names for, or a folder
            that was begun with other settings or holds other files.
    """
    chosen, num = _checked(layout, prompts, images_per_prompt), images_per_prompt
    _begin(
        output,
        {
            "layout": layout,
            "seed": seed,
            "images_per_prompt": num,
            "prompts_sha256": _hash(prompts),
            **(settings or {}),
        },
        process,
    )
    if chosen.captions and process[0] == 0:
        # A line break inside a caption would move all that follow.
        lines = [" ".join(prompt.text.splitlines()) for prompt in prompts]
        files.write_file(output / "captions.txt", "".join(f"{x}\n" for x in lines).encode())
    places = {
        (i * num + k, i * num + k + 1): output / chosen.image(prompt, i, k, num)
        for i, prompt in enumerate(prompts)
        for k in range(num)
    }
    # All images of a prompt in one process, which then writes what is beside them.
    store = resumable.Store(places, "images", group=num)

    def finish(some: Sequence[resumable.Range]) -> None:
        for index in sorted({start // num for start, _ in some}):
            samples = [places[i, i + 1] for i in range(index * num, (index + 1) * num)]
            _write_beside(chosen, prompts[index], index, output, samples)

    def made(left: list[resumable.Range]) -> Iterator[int]:
        for i in range(0, len(left), batch_size):
            some = left[i : i + batch_size]
            items = [(prompts[n // num].text, n // num, n % num) for n, _ in some]
            for part, image in zip(some, draw(items), strict=True):
                files.write_file(places[part], _encoded(places[part], image))
            finish(some)
            yield len(some)

    with Progress("sample", silent=process[0] != 0) as progress:
        before, _ = store.fill(made, progress, process)
    finish(store.share(process))  # prompts whose last image was written just before a kill
    return before


def _checked(layout: str, prompts: Sequence[Prompt], num: int) -> Layout:
    if layout not in LAYOUTS:
        raise InputError(f"there is no benchmark {layout!r}; there are {', '.join(LAYOUTS)}")
    chosen = LAYOUTS[layout]
    if num < 1 or (chosen.most is not None and num > chosen.most):
        known = f"{chosen.most} image" if chosen.most else "one image or more"
        raise InputError(f"{layout} takes {known} of a prompt, not {num}")
    found = {str(prompt.metadata.get("style")) for prompt in prompts}
    if layout == "hpsv2" and not found <= {*HPS_STYLES}:
        raise InputError(
            f"hpsv2 has the styles {', '.join(HPS_STYLES)}, not "
            f"{', '.join(sorted(found - {*HPS_STYLES}))}; name the prompts' file after one of them"
        )
    return chosen


def _hash(prompts: Sequence[Prompt]) -> str:
    plain = [[prompt.text, dict(prompt.metadata)] for prompt in prompts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _settings_file(output: Path) -> Path:
    """Return the path beside the folder that the images go to, links resolved."""
    folder = files.followed(output)
    return folder.with_name(f"{folder.name}.settings.json")


def check_output(output: Path) -> None:
    """Refuse a folder that `write_benchmark` neither made nor can make, before the work.

    Raises:
        InputError: it holds files and nothing beside it says that they are a benchmark's, or it
            cannot be written there.
    """
    begun = _settings_file(output).exists()
    files.check_folder(output, lambda _: None if begun else files.anything(output))


def _begin(output: Path, settings: Mapping[str, Any], process: tuple[int, int]) -> None:
    """Write what decides the images beside the folder, or compare it with what was written."""
    path = _settings_file(output)
    # Found out before the settings are read: process 0 writes those first, then images. Settings
    # of images that were deleted bind nobody.
    is_new = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if is_new or not resumable.compare(path, settings, str(output)):
        if process[1] == 1:  # with several processes, one may have written images already
            check_output(output)
        if process[0] == 0:
            resumable.record(path, settings)


def _encoded(path: Path, image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    if path.suffix == ".png":
        return images.encode_png(image)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _write_beside(
    layout: Layout, prompt: Prompt, index: int, output: Path, samples: Sequence[Path]
) -> None:
    """Write what belongs beside the images of a prompt, where it is not there yet."""
    for name, content in layout.beside(prompt, index).items():
        if not (output / name).is_file():
            files.write_file(output / name, content)
    if layout.grid is None or (output / layout.grid(index)).is_file():
        return
    if all(place.is_file() for place in samples):
        tiles = np.stack([np.asarray(pictures.read_image(place)) for place in samples])
        picture = images.grid(tiles, min(len(samples), _GRID_COLUMNS))
        images.save_png(output / layout.grid(index), picture)
