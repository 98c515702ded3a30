"""Images as bytes: 8-bit pixels, PNG files, and grids of tiles with a name beside each row.

Axes: N images, H height, W width, C channels (1 or 3).
"""

import io
import math
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw

from dimo_jax.common import files, pictures
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath

# A tile of a grid is enlarged, by a whole factor, to at least this height or width.
MIN_TILE_PIXELS = 40
GAP_PIXELS = 2
BACKGROUND = 255
MAX_SIDE_PIXELS = 32_767  # of Cairo and the browsers


def to_uint8(images: Float[ndarray, "*N H W C"]) -> UInt8[ndarray, "*N H W C"]:
    """Return pixels 0..255 from [0, 1], rounded half up; values outside are clipped.

    Args:
        images: float pixels.

    Returns:
        The same shape in uint8; black where a pixel is not a number.

    Source: the VQGAN reference, clip(127.5 x + 128, 0, 255) truncated for x in [-1, 1].
    """
    return np.clip(np.nan_to_num(images * 255.0) + 0.5, 0, 255).astype(np.uint8)


def in_rgb(pixels: UInt8[ndarray, "*N H W C"]) -> UInt8[ndarray, "*N H W 3"]:
    """Return pixels in three channels, gray in all of them alike."""
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:-1], 3)))


def grid(
    images: UInt8[ndarray, "N H W C"],
    columns: int,
    row_labels: Sequence[str] | None = None,
) -> UInt8[ndarray, "GH GW 3"]:
    """Tile in rows of `columns`, row by row, on a white ground.

    Args:
        images: the tiles; N need not fill the last row.
        columns: tiles in a row.
        row_labels: a text to the left of each row; None for no such margin.

    Returns:
        One RGB picture; small tiles are enlarged without smoothing.

    Raises:
        ValueError: the number of labels is not the number of rows.
    """
    num, height, width, _ = images.shape
    rows = math.ceil(num / columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"{len(row_labels)} row labels for {rows} rows")
    scale, tile_height, tile_width = _tile(height, width)
    margin = _margin(row_labels or ())
    size = grid_size(num, columns, (height, width), row_labels)
    picture = np.full((*size, 3), BACKGROUND, np.uint8)
    for i, image in enumerate(images):
        top = (i // columns) * tile_height + GAP_PIXELS
        left = margin + (i % columns) * tile_width + GAP_PIXELS
        large = image.repeat(scale, axis=0).repeat(scale, axis=1)
        picture[top : top + height * scale, left : left + width * scale] = large
    if row_labels is None:
        return picture
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for row, text in enumerate(row_labels):
        middle = row * tile_height + GAP_PIXELS + height * scale // 2
        draw.text((2 * GAP_PIXELS, middle), text, fill=0, anchor="lm")
    return np.asarray(canvas)


def grid_size(
    num: int, columns: int, size: tuple[int, int], row_labels: Sequence[str] | None = None
) -> tuple[int, int]:
    """Compute the height and width of a grid.

    Args:
        num: tiles.
        columns: as for `grid`.
        size: height and width of a tile.
        row_labels: as for `grid`.
    """
    _, tile_height, tile_width = _tile(*size)
    rows, margin = math.ceil(num / columns), _margin(row_labels or ())
    return rows * tile_height + GAP_PIXELS, margin + columns * tile_width + GAP_PIXELS


def check_grid(height: int, width: int, advice: str) -> None:
    """Refuse a grid that no program would show, before its images are drawn.

    Args:
        height: of `grid_size`.
        width: likewise.
        advice: what to do instead.

    Raises:
        InputError: it has more than pictures.MAX_PIXELS, or MAX_SIDE_PIXELS along a side.
    """
    if max(height, width) > MAX_SIDE_PIXELS or height * width > pictures.MAX_PIXELS:
        raise InputError(
            f"a picture of all images would have {width:,} x {height:,} pixels, more than most "
            f"programs show ({MAX_SIDE_PIXELS:,} along a side, {pictures.MAX_PIXELS:,} in all); "
            f"{advice}"
        )


def _tile(height: int, width: int) -> tuple[int, int, int]:
    """Return how much a tile is enlarged, and its height and width then, with its gap."""
    scale = max(1, math.ceil(MIN_TILE_PIXELS / min(height, width)))
    return scale, height * scale + GAP_PIXELS, width * scale + GAP_PIXELS


def _margin(row_labels: Sequence[str]) -> int:
    if not row_labels:
        return 0
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return 4 * GAP_PIXELS + math.ceil(max(draw.textlength(text) for text in row_labels))


def encode_png(image: UInt8[ndarray, "H W C"]) -> bytes:
    """Return one picture, gray (C = 1) or RGB (C = 3), as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(path: str | os.PathLike, image: UInt8[ndarray, "H W C"]) -> AnyPath:
    """Write one picture as PNG, atomically.

    Args:
        path: the file; one that exists is replaced.
        image: [H, W, C] uint8, C = 1 or 3.

    Returns:
        The path.

    Raises:
        InputError: the path cannot be written.
    """
    return files.write_file(path, encode_png(image))
