"""How images come to CLIP, against torchvision's transforms on Pillow images and on tensors."""

import io

from tests.helpers import torch_peers  # noqa: F401

# isort: split
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2 as transforms
from torchvision.transforms.functional import center_crop

from dimo_jax.common import pictures
from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features import clip_images

# CLIP's published constants.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = transforms.InterpolationMode.BICUBIC
NORMALIZE = transforms.Normalize(MEAN, STD)


def picture(width, height, seed=0):
    """Waves and noise, so that a resize without antialiasing is another image."""
    numbers = np.random.default_rng(seed)
    coarse = numbers.integers(0, 256, (6, 6, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noise = numbers.normal(scale=40, size=(height, width, 3))
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def to_tensor(image):
    return transforms.functional.to_dtype(
        transforms.functional.pil_to_tensor(image), torch.float32, scale=True
    )


SIZES = [(97, 61), (60, 83), (24, 24), (24, 40), (19, 20)]


@pytest.mark.parametrize("width, height", SIZES)
def test_clips_own(width, height):
    image = picture(width, height)
    peer = transforms.Compose(
        [transforms.Resize(24, BICUBIC), transforms.CenterCrop(24), to_tensor, NORMALIZE]
    )
    found = clip_images.clip_pixels(image, 24)
    assert found.dtype == np.float32 and found.std() > 0.4
    np.testing.assert_allclose(found, peer(image).permute(1, 2, 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("width, height", SIZES)
def test_hps(width, height, antialias):
    image = picture(width, height, seed=1)
    peer = transforms.Compose(
        [
            to_tensor,
            transforms.Resize(24, BICUBIC, antialias=antialias),
            transforms.CenterCrop(24),
            NORMALIZE,
        ]
    )
    found = clip_images.hps_pixels(image, 24, antialias)
    assert found.dtype == np.float32
    # Without antialiasing PyTorch finds the places of the taps in float32.
    tolerance = 5e-6 if antialias else 3e-5
    np.testing.assert_allclose(found, peer(image).permute(1, 2, 0), rtol=0, atol=tolerance)


def test_floats_are_not_clipped_and_antialiasing_matters():
    image = Image.fromarray(np.repeat(np.uint8([[0, 255] * 20]), 40, 0).repeat(2, 0).repeat(2, 1))
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    for antialias in (True, False):
        found = clip_images.resized(pixels, 56, 56, antialias)
        assert found.min() < -0.01 and found.max() > 1.01
    large = picture(400, 400)
    on, off = (clip_images.hps_pixels(large, 24, x) for x in (True, False))
    assert np.abs(on - off).mean() * STD[0] * 255 > 8


@pytest.mark.parametrize("width, height", [(63, 60), (37, 90)])
def test_the_middle_square(width, height):
    image = picture(width, height)
    side = min(width, height)
    expected = center_crop(image, [side, side]).resize((20, 20), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(clip_images.squared(image, 20), expected)
    assert clip_images.squared(image).size == (256, 256)


def test_jpeg_is_pillows_default(tmp_path):
    image = picture(40, 40)
    image.save(tmp_path / "x.jpg")
    expected = np.asarray(Image.open(tmp_path / "x.jpg"))
    np.testing.assert_array_equal(clip_images.as_jpeg(image), expected)
    assert np.abs(expected.astype(int) - np.asarray(image)).max() > 10
    np.testing.assert_array_equal(pictures.read_image(tmp_path / "x.jpg"), expected)


def test_gray_becomes_rgb_and_alpha_is_refused():
    gray = picture(30, 30).convert("L")
    for prepare in (clip_images.clip_pixels, clip_images.hps_pixels):
        np.testing.assert_array_equal(prepare(gray, 24), prepare(gray.convert("RGB"), 24))
    with pytest.raises(InputError, match="mode RGBA has no HPS; save it as RGB"):
        clip_images.hps_pixels(gray.convert("RGBA"), 24)


def test_damaged_files_are_named(tmp_path):
    buffer = io.BytesIO()
    picture(60, 60).save(buffer, format="PNG")
    data = buffer.getvalue()
    for name, content in {"cut.png": data[: len(data) // 2], "text.png": b"no image"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} .* is no readable picture"):
            pictures.read_image(tmp_path / name)
    with pytest.raises(InputError, match="cannot read .*none.png"):
        pictures.read_image(tmp_path / "none.png")
