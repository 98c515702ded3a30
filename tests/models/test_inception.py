"""Inception-v3 against torch-fidelity's, on random weights and images with structure."""

from tests.helpers import torch_peers  # noqa: F401

# isort: split

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from dimo_jax import models
from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features import resize
from dimo_jax.models import inception
from tests.helpers import inception_weights

# On one worker, which makes the fixtures once.
pytestmark = pytest.mark.xdist_group("inception")

CONFIG = {"name": "inception", "num_logits": 1008, "divisor": 1}
NAMED = ("64", "192", "768", "2048", "logits_unbiased", "logits")
SIDE = 96


@functools.cache
def shapes(divisor=1):
    network = models.build({**CONFIG, "divisor": divisor})
    return jax.eval_shape(network.init, jax.random.key(0))


def textured_images():
    """Two images of few waves: of white noise all features would be nearly the same."""
    numbers = np.random.default_rng(1)
    coarse = torch.from_numpy(numbers.normal(size=(2, 3, 4, 4)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").numpy()
    noise = numbers.normal(size=smooth.shape) * np.array([1, 25])[:, None, None, None]
    return (128 + 90 * smooth + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """The outputs of both, by name; torch-fidelity's of the same state dict, loaded strictly."""
    params, images = inception_weights.random_params(), textured_images()
    path = inception_weights.save_torch(
        tmp_path_factory.mktemp("weights") / "inception.pth", params
    )
    peer = FeatureExtractorInceptionV3(
        "inception", list(NAMED), feature_extractor_weights_path=str(path)
    )
    kept = []
    peer.Mixed_6d.branch1x1.register_forward_hook(lambda *x: kept.append(x[-1]))
    with torch.no_grad():
        expected = {
            k: x.numpy() for k, x in zip(NAMED, peer(torch.from_numpy(images)), strict=True)
        }
    expected["spatial"] = kept[0][:, :7].permute(0, 2, 3, 1).reshape(2, -1).numpy()
    network = models.build(CONFIG)

    @jax.jit
    def forward(params, images):
        return network.apply(params, resize.tf1_bilinear(images))

    found = forward(params, images.transpose(0, 2, 3, 1))
    return {k: np.asarray(x) for k, x in found.items()}, expected


@pytest.mark.parametrize("name", inception.OUTPUTS)
def test_outputs_equal_torch_fidelitys(peers, name):
    found, expected = (outputs[name] for outputs in peers)
    assert found.dtype == np.float32 and found.shape == expected.shape
    # What is compared is alive: the two images differ by far more than the tolerance.
    assert np.abs(expected[0] - expected[1]).mean() > 0.02
    tolerance = 2e-5 if "logits" in name else 1e-5
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_sizes_are_the_published_ones(peers):
    sizes = {name: x.shape[1] for name, x in peers[0].items()}
    assert sizes == {
        **{"64": 64, "192": 192, "768": 768, "2048": 2048},
        **{"logits_unbiased": 1008, "logits": 1008, "spatial": 2023},
    }
    leaves = jax.tree.leaves(shapes())
    assert len(leaves) == 94 * 5 + 2
    assert sum(math.prod(x.shape) for x in leaves) == 23_885_392


def test_a_small_network_has_the_same_structure_and_the_highest_precision():
    config = {**CONFIG, "divisor": 16}
    network = models.build(config)
    assert network.config == config
    images = jax.ShapeDtypeStruct((3, 299, 299, 3), jnp.float32)
    program, found = jax.make_jaxpr(network.apply, return_shape=True)(shapes(16), images)
    sizes = [found[name].shape for name in inception.OUTPUTS]
    assert sizes == [(3, n) for n in (4, 12, 48, 128, 1008, 1008, 2023)]
    # Each of the 94 convolutions and the matrix product names it for both operands.
    assert str(program).count("Precision.HIGHEST, Precision.HIGHEST") == 95


@pytest.mark.parametrize("sizes", [{"divisor": 3}, {"divisor": 32}, {"num_logits": 0}])
def test_other_sizes_are_refused(sizes):
    with pytest.raises(InputError, match="inception does not take .*; give num_logits 1008"):
        models.build({**CONFIG, **sizes})


def test_images_of_another_size_are_refused():
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    with pytest.raises(ValueError, match="resize them to 299 pixels first"):
        jax.eval_shape(models.build(CONFIG).apply, shapes(), images)
