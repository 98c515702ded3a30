"""Crops against torchvision's on Pillow images, and what is left to chance."""

import dataclasses

from tests.helpers import torch_peers  # noqa: F401

# isort: split
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as vision

from dimo_jax.common import crops
from dimo_jax.common.errors import InputError


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("name", list(crops.FILTERS))
@pytest.mark.parametrize(
    "size", [(40, 61), (61, 40), (48, 33), (32, 32), (31, 90), (33, 33), (7, 19)]
)
def test_centre_crops_are_torchvision_s(size, name):
    pixels = noise(*size)
    mode = vision.InterpolationMode[name.upper()]
    image = vision.resize(Image.fromarray(pixels), 32, mode)  # type: ignore[arg-type]
    wanted = np.asarray(vision.center_crop(image, 32))  # type: ignore[arg-type]
    settings = crops.Settings(32, filter=name, small="enlarge")
    np.testing.assert_array_equal(crops.cut(pixels, settings, 0, 0), wanted)


def test_a_random_crop_is_a_part_of_the_resized_picture_perhaps_mirrored():
    pixels = noise(37, 80)
    image = vision.resize(Image.fromarray(pixels), 32)  # type: ignore[arg-type]
    whole = np.asarray(image)
    assert whole.shape == (32, 69, 3)
    parts = {whole[:, left : left + 32].tobytes(): left for left in range(38)}
    mirrored = {whole[:, left : left + 32][:, ::-1].tobytes(): left for left in range(38)}
    settings = crops.Settings(32, crop="random", flip=True, seed=3)
    found = [crops.cut(pixels, settings, i, view).tobytes() for i in range(300) for view in (0, 1)]
    lefts = [parts.get(one, mirrored.get(one)) for one in found]
    # 600 draws of 38 places: each is found, both ends too; half of them are mirrored.
    assert set(lefts) == set(range(38))
    assert 250 < sum(one in mirrored for one in found) < 350
    # Chi-squared of 37 degrees of freedom: above 75 once in 10,000.
    counts = np.bincount(np.asarray(lefts, int), minlength=38)
    assert ((counts - 600 / 38) ** 2 / (600 / 38)).sum() < 75


# SeedSequence's algorithm (O'Neill's seed_seq_fe, pool of four words) by the loop below.
def _by_hand(entropy, num_words):
    mask = 2**32 - 1
    constant = 0x43B0D7E5

    def hashmix(value):
        nonlocal constant
        value = (value ^ constant) & mask
        constant = constant * 0x931E8875 & mask
        value = value * constant & mask
        return value ^ value >> 16

    def mix(x, y):
        result = (0xCA01F9DD * x - 0x4973F715 * y) & mask
        return result ^ result >> 16

    pool = [hashmix(entropy[i] if i < len(entropy) else 0) for i in range(4)]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = mix(pool[target], hashmix(pool[source]))
    for value in entropy[4:]:
        for target in range(4):
            pool[target] = mix(pool[target], hashmix(value))
    constant, words = 0x8B51F9DD, []
    for i in range(num_words):
        value = pool[i % 4] ^ constant
        constant = constant * 0x58F38DED & mask
        value = value * constant & mask
        words.append(value ^ value >> 16)
    return words


CHANCE = sum(
    word << 32 * i
    for i, word in enumerate(
        _by_hand([7, 123_456_789_012 & 0xFFFFFFFF, 123_456_789_012 >> 32, 3], 2)
    )
)


def test_chance_depends_on_seed_index_and_view_alone():
    pixels = noise(32, 90)
    settings = crops.Settings(32, crop="random", flip=True)

    def drawn(seed, index, view):
        seeded = dataclasses.replace(settings, seed=seed)
        return crops.cut(pixels, seeded, index, view).tobytes()

    np.random.seed(0)
    first = drawn(0, 5, 0)
    np.random.seed(1)
    assert drawn(0, 5, 0) == first
    assert len({first, drawn(1, 5, 0), drawn(0, 6, 0), drawn(0, 5, 1)}) == 4
    # Written down: a later NumPy must not move what was encoded by an earlier one.
    assert crops._chances(7, 123_456_789_012, 3)[0] == CHANCE


def test_small_pictures_are_refused_or_enlarged():
    with pytest.raises(InputError, match=r"a.png is 90x31 pixels, smaller than the 32 asked for"):
        crops.cut(noise(31, 90), crops.Settings(32), 0, 0, "a.png")
    enlarged = crops.cut(noise(31, 90), crops.Settings(32, small="enlarge"), 0, 0)
    assert enlarged.shape == (32, 32, 3)
    with pytest.raises(InputError, match="thin.png would take 1792000x256 pixels"):
        crops.cut(noise(1, 7000), crops.Settings(256, small="enlarge"), 0, 0, "thin.png")


def test_views_are_those_of_one_at_a_time():
    pixels, settings = noise(50, 70), crops.Settings(32, crop="random", flip=True)
    wanted = [crops.cut(pixels, settings, 5, view) for view in range(7)]
    np.testing.assert_array_equal(crops.views(pixels, settings, 5, 7), wanted)
