"""Pixels, PNG files and grids."""

import io

import numpy as np
import pytest
from PIL import Image

from dimo_jax.common import images
from dimo_jax.common.errors import InputError


def test_pixels_are_rounded_half_up_and_clipped():
    values = np.array([-0.2, 0.0, 0.5 / 255, 0.49 / 255, 0.5, 1.0, 1.7, np.nan], np.float32)
    pixels = images.to_uint8(values.reshape(1, 2, 4, 1))
    assert pixels.dtype == np.uint8
    assert pixels.ravel().tolist() == [0, 0, 1, 0, 128, 255, 255, 0]


def test_pixels_are_those_of_the_vqgan_reference():
    x = np.linspace(-1.2, 1.2, 1001).reshape(1, 1, -1, 1)
    reference = np.clip(x * 127.5 + 128, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(images.to_uint8((x + 1) / 2), reference)


def test_a_grid_that_nothing_shows_is_refused_before_it_is_made():
    shown = tiles(5, 64, 3)
    labels = ["first", "second"]
    assert images.grid_size(5, 3, (64, 64), labels) == images.grid(shown, 3, labels).shape[:2]
    assert images.grid_size(5, 3, (8, 8)) == images.grid(tiles(5, 8, 1), 3).shape[:2]
    images.check_grid(32_767, 2_000, "so")
    for height, width in ((32_768, 100), (100, 32_768), (9_000, 9_000)):
        with pytest.raises(
            InputError, match=rf"{width:,} x {height:,} pixels, .*; do this instead"
        ):
            images.check_grid(height, width, "do this instead")


def tiles(num, size, channels):
    return np.random.default_rng(0).integers(0, 200, (num, size, size, channels), np.uint8)


@pytest.mark.parametrize(("size", "scale", "channels"), [(8, 5, 1), (64, 1, 3)])
def test_a_grid_places_every_tile_and_leaves_the_rest_white(size, scale, channels):
    shown = tiles(5, size, channels)
    picture = images.grid(shown, columns=3)
    step = size * scale + 2
    assert picture.shape == (2 * step + 2, 3 * step + 2, 3)
    covered = np.zeros(picture.shape[:2], bool)
    for i, tile in enumerate(shown):
        top, left = 2 + i // 3 * step, 2 + i % 3 * step
        area = np.s_[top : top + size * scale, left : left + size * scale]
        covered[area] = True
        large = np.kron(tile, np.ones((scale, scale, 1), np.uint8))
        np.testing.assert_array_equal(picture[area], np.broadcast_to(large, (*large.shape[:2], 3)))
    assert (picture[~covered] == 255).all()


def test_row_labels_stand_in_a_margin_beside_their_row():
    shown = tiles(4, 40, 1)
    plain = images.grid(shown, columns=2)
    named = images.grid(shown, columns=2, row_labels=["teacher, 8 steps", ""])
    margin = named.shape[1] - plain.shape[1]
    np.testing.assert_array_equal(named[:, margin:], plain)
    assert margin > 40
    first, second = named[:44, :margin], named[44:, :margin]
    assert first.min() < 100 and (second == 255).all()
    # Nothing of the text is cut off at the margin's ends.
    assert (named[:, 0] == 255).all() and (named[:, margin - 1] == 255).all()


def test_row_labels_must_fit_the_rows():
    with pytest.raises(ValueError, match="1 row labels for 2 rows"):
        images.grid(tiles(4, 8, 1), columns=2, row_labels=["one"])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_holds_the_pixels(tmp_path, channels, mode):
    image = tiles(1, 8, channels)[0]
    with Image.open(io.BytesIO(images.encode_png(image))) as opened:
        assert (opened.mode, opened.format) == (mode, "PNG")
    path = images.save_png(tmp_path / "new" / "x.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)).reshape(image.shape), image)
    assert [x.name for x in path.parent.iterdir()] == ["x.png"]
