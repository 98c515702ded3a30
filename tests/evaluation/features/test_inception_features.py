"""Batches of images to the devices and back, around a network whose outputs are plain to see."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features import resize
from dimo_jax.evaluation.features.inception_features import InceptionFeatures
from dimo_jax.models.inception import Inception


def see_through(params, images):
    """Pixels as features: some of each image in "2048", and the same times a parameter in "64"."""
    assert images.shape[1:] == (299, 299, 3) and images.dtype == jnp.float32
    pixels = images[:, ::50, ::70].reshape(len(images), -1)
    return {"2048": pixels, "64": pixels * params["factor"], "768": pixels + 1}


NETWORK = Inception({"name": "inception"}, lambda key: {}, see_through)
PARAMS = {"factor": np.float32(3)}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 40, 30, 3), np.uint8)


def picked(images):
    return np.asarray(images, np.float32)[:, ::50, ::70].reshape(len(images), -1)


@pytest.mark.parametrize("batch_size", [1, 4, 8, 10, 16])
def test_batches_give_what_all_at_once_gives(images, batch_size):
    """Ten images fill no last batch of 4; batches of 8 and 16 are spread over the 8 devices."""
    extract = InceptionFeatures(NETWORK, PARAMS, ("2048", "64"), batch_size=batch_size)
    found = extract(images)
    expected = picked(resize.tf1_bilinear(images))
    assert tuple(found) == ("2048", "64")
    assert found["2048"].dtype == np.float32
    np.testing.assert_allclose(found["2048"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["64"], 3 * expected, rtol=1e-6)


def test_large_batches_are_on_all_devices_and_others_on_one():
    for batch_size, devices in ((16, 8), (12, 1)):
        extract = InceptionFeatures(NETWORK, PARAMS, batch_size=batch_size)
        assert len(extract.spread.device_set) == devices
        assert len(extract.params["factor"].devices()) == devices


def test_resizers(images):
    extract = InceptionFeatures(NETWORK, PARAMS, resizer="clean_bicubic", batch_size=4)
    expected = picked(resize.clean_bicubic(images))
    np.testing.assert_allclose(extract(images)["2048"], expected, rtol=1e-6)
    extract = InceptionFeatures(NETWORK, PARAMS, resizer="clean_bicubic_uint8", batch_size=4)
    size = (299, 299)
    pictures = [np.asarray(Image.fromarray(x).resize(size, Image.BICUBIC)) for x in images]
    np.testing.assert_array_equal(extract(images)["2048"], picked(pictures))


def test_images_that_have_the_size_are_left_alone():
    images = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), np.uint8)
    for resizer in ("tf1_bilinear", "clean_bicubic", "clean_bicubic_uint8"):
        extract = InceptionFeatures(NETWORK, PARAMS, resizer=resizer, batch_size=2)
        np.testing.assert_array_equal(extract(images)["2048"], picked(images))


def test_wrong_names_and_images_are_refused(images):
    with pytest.raises(InputError, match="no output .'1024'. .* outputs are 64, 192"):
        InceptionFeatures(NETWORK, PARAMS, outputs=("1024",))
    with pytest.raises(InputError, match="no resizer 'lanczos'"):
        InceptionFeatures(NETWORK, PARAMS, resizer="lanczos")
    extract = InceptionFeatures(NETWORK, PARAMS)
    with pytest.raises(InputError, match=r"images are \(10, 40, 30, 1\), .* give RGB"):
        extract(images[..., :1])
    with pytest.raises(InputError, match="at least one"):
        extract(images[:0])
