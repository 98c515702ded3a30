"""Mask2Former against transformers' on random weights, its parts by hand, and its full size."""

from tests.helpers import torch_mask2former

# isort: split

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax import models
from dimo_jax.common.errors import InputError
from dimo_jax.convert import sources
from dimo_jax.models import pixel_decoder, swin
from tests.helpers import mostly_slow

SMALL = torch_mask2former.SMALL


@pytest.fixture(scope="module")
def networks():
    """(transformers', ours, our parameters), the same weights, by way of a file of mmdet 2.x."""
    peer = torch_mask2former.build(SMALL)
    state = torch_mask2former.mmdet_state(peer)
    name, source = sources.choose(None, state)
    config, params = sources.convert(state, source, sources.Options())
    assert (name, config) == ("mask2former", SMALL)
    return peer, models.build(config), params


# Maps of 3 to 4 positions, narrower than a window; one window, and not whole ones.
@pytest.mark.parametrize("size", mostly_slow([(96, 128), (224, 224), (320, 448)]))
def test_logits_are_transformers(networks, size):
    peer, network, params = networks
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    classes, masks = jax.device_get(jax.jit(network.apply)(params, images))
    expected = torch_mask2former.forward(peer, images)
    assert classes.shape == (2, 12, 6) and masks.shape == (2, 12, size[0] // 4, size[1] // 4)
    # What is compared is alive: images and queries differ by far more than the tolerance.
    for x in expected:
        assert x.std() > 0.5 and np.abs(x[0] - x[1]).mean() > 0.02 and x.std(axis=1).mean() > 0.05
    np.testing.assert_allclose(classes, expected[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(masks, expected[1], rtol=0, atol=1e-4)


def test_windows_are_cut_and_joined():
    x = jnp.arange(2 * 6 * 9 * 1.0).reshape(2, 6, 9, 1)
    cut = swin.windows(x, 3)
    assert cut.shape == (2, 6, 9, 1)
    np.testing.assert_array_equal(cut[0, 1, :, 0], [3, 4, 5, 12, 13, 14, 21, 22, 23])
    np.testing.assert_array_equal(swin.joined(cut, 3, (6, 9)), x)


def test_a_shift_keeps_its_seams_apart():
    mask = swin.shift_mask((4, 4), 2, 1)
    apart = -100 * np.array([[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]])
    right = -100 * np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    np.testing.assert_array_equal(mask[0], 0 * apart)
    np.testing.assert_array_equal(mask[1], right)
    np.testing.assert_array_equal(mask[3], apart)


def test_points_are_bilinear_and_zero_outside():
    # One map of 2 x 3, one head of one channel; the two other maps are empty of values.
    sizes = [(2, 3), (1, 1), (1, 1)]
    value = jnp.asarray([1, 2, 3, 4, 5, 6, 0, 0], jnp.float32).reshape(1, 8, 1, 1)
    offsets = np.zeros((1, 8, 1, 3, 4, 2), np.float32)
    weights = np.zeros((1, 8, 1, 3, 4), np.float32)
    weights[..., 0, 0] = 1
    moves = [(0, 0), (0.25, 0.5), (-0.5, 0), (9, 0), (-9, -9), (0.5, 0), (0, 0), (0, 0)]
    offsets[0, :, 0, 0, 0] = moves
    compiled = jax.jit(lambda *parts: pixel_decoder.deformable(parts[0], sizes, *parts[1:]))
    found = compiled(value, jnp.asarray(offsets), jnp.asarray(weights))
    # At 1; between 2, 3, 5 and 6; halfway between 2 and 3; far away, twice; halfway outside of 6;
    # and the middle of the map, of the two single positions.
    expected = [1, 2 + 0.25 + 1.5, 2.5, 0, 0, 3, 3.5, 3.5]
    np.testing.assert_allclose(found[0, :, 0, 0], expected, atol=1e-6)


def test_products_are_of_the_highest_precision():
    network = models.build(SMALL)
    params = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = str(jax.make_jaxpr(network.apply)(params, images))
    products = program.count("dot_general[") + program.count("conv_general_dilated[")
    assert program.count("Precision.HIGHEST, Precision.HIGHEST") == products > 50


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"width": 40}, "width 40 is no multiple of 32 and 4"),
        ({"swin": {**SMALL["swin"], "depth": [2, 2]}}, "need 4 numbers each"),
        ({"swin": {**SMALL["swin"], "heads": [3, 2, 4, 8]}}, "width 8 is not divisible"),
        ({"swin": {**SMALL["swin"], "window": 0}}, "a size below 1"),
        ({"decoder": {"depth": 4}}, "decoder has depth, not depth, mlp_dim"),
        ({"num_queries": -1}, "num_queries is -1, expected 0 to"),
    ],
)
def test_other_sizes_are_refused(change, complaint):
    with pytest.raises(InputError, match=complaint):
        models.build({**SMALL, **change})


def test_images_that_need_padding_are_refused():
    network = models.build(SMALL)
    params = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 100, 96, 3), jnp.float32)
    with pytest.raises(ValueError, match="pad them to multiples of 32 first"):
        jax.eval_shape(network.apply, params, images)
