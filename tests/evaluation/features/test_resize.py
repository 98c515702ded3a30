from tests.helpers import torch_peers  # noqa: F401

# isort: split

import hashlib

import jax
import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer, make_resizer
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from dimo_jax.evaluation.features import resize


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("height, width", [(32, 32), (256, 256), (299, 299), (512, 512), (70, 411)])
def test_tf1_bilinear_equals_torch_fidelitys(height, width):
    images = random_images(1, height, width, 3)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(x, (299, 299), align_corners=False)
    found = np.asarray(jax.jit(resize.tf1_bilinear)(images))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), rtol=0, atol=5e-5)


def test_tf1_bilinear_has_no_half_pixels_and_no_antialiasing():
    row = np.array([0.0, 8.0, 4.0, 12.0], np.float32)[None, None, :, None]
    resized = jax.jit(resize.tf1_bilinear, static_argnums=1)
    wide = np.asarray(resized(np.broadcast_to(row, (1, 8, 4, 1)), 8))[0, 0, :, 0]
    np.testing.assert_array_equal(wide, [0, 4, 8, 6, 4, 8, 12, 12])
    narrow = np.asarray(resized(np.broadcast_to(row, (1, 2, 4, 1)), 2))[0, 0, :, 0]
    np.testing.assert_array_equal(narrow, [0, 4])


def test_an_image_of_the_wanted_size_is_left_alone():
    images = random_images(1, 299, 299, 3)
    np.testing.assert_array_equal(np.asarray(jax.jit(resize.tf1_bilinear)(images)), images)


@pytest.mark.parametrize("height, width", [(256, 256), (64, 100), (400, 299)])
def test_clean_bicubic_equals_clean_fids(height, width):
    images = random_images(2, height, width, 3)
    found = resize.clean_bicubic(images)
    assert found.dtype == np.float32
    expected = np.stack([build_resizer("clean")(image) for image in images])
    np.testing.assert_array_equal(found, expected)
    assert found.min() == 0 and found.max() == 255  # bicubic overshoots: both ends are clipped


def test_quantized_bicubic_equals_that_of_an_ordinary_picture():
    images = random_images(2, 80, 64, 3)
    peer = make_resizer("PIL", True, "bicubic", (299, 299))
    expected = np.stack([peer(image) for image in images])
    np.testing.assert_array_equal(resize.clean_bicubic(images, quantized=True), expected)
    assert not np.array_equal(resize.clean_bicubic(images), expected)


# (height, width, new height, new width, first values, SHA-256) of cv2.resize with INTER_LINEAR on
# `patterned`, OpenCV 5.0.0 (opencv-python-headless, x86-64).
OPENCV = [
    (5, 7, 16, 11, [169, 80, 95, 196, 139, 70], "750faf0e4f375e69"),
    (64, 64, 100, 100, [169, 80, 95, 196, 140, 70], "417d10cc87ebe475"),
    (96, 60, 50, 31, [129, 115, 91, 166, 33, 76], "ab2d95f70e64a79d"),
    (40, 90, 133, 300, [169, 80, 95, 169, 80, 95], "5bc02b7648c9858c"),
    (31, 33, 31, 33, [169, 80, 95, 229, 211, 41], "2ac02473e1df6473"),
    (64, 64, 32, 32, [136, 134, 104, 189, 66, 103], "1d35f319cb5c1e4f"),
    (1, 9, 20, 4, [206, 162, 61, 182, 41, 21], "4bdcc6054201d8ae"),
]


def patterned(height, width):
    numbers = np.arange(height * width * 3, dtype=np.int64) * 7919 + 13
    return (numbers**2 % 65521 % 256).astype(np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("height, width, new_height, new_width, first, digest", OPENCV)
def test_opencvs_pixels_to_the_bit(height, width, new_height, new_width, first, digest):
    found = resize.opencv_bilinear(patterned(height, width), new_height, new_width)
    assert found.shape == (new_height, new_width, 3) and found.dtype == np.uint8
    assert found.reshape(-1)[:6].tolist() == first
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == digest
