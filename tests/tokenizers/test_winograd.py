import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax.tokenizers import layers, winograd


def window_by_window(x, kernel):
    """The convolution as it is defined, in float64."""
    batch, height, width, _ = x.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = np.zeros((batch, height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            found[:, i, j] = np.einsum("bhwc,hwcd->bd", padded[:, i : i + 3, j : j + 3], kernel)
    return found


def random_conv(channels, features):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 6, 5, channels)).astype(np.float32)
    kernel = generator.normal(size=(3, 3, channels, features)).astype(np.float32)
    return x, kernel, layers.conv(features, 3, "conv", use_bias=False)


@pytest.mark.parametrize("shape", [(64, 96), (8, 64)], ids=str)
@pytest.mark.parametrize("height", [6, 5])
def test_a_convolution_is_what_its_definition_says(shape, height):
    x, kernel, conv = random_conv(*shape)
    found = jax.jit(conv.apply)({"params": {"kernel": kernel}}, x[:, :height])
    expected = window_by_window(x[:, :height], kernel)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("platform", "dtype", "convolutions"),
    [("cpu", jnp.float32, 4), ("cpu", jnp.bfloat16, 1), ("tpu", jnp.float32, 1)],
)
def test_only_float32_on_cpus_is_cut_up(platform, dtype, convolutions):
    x, kernel, conv = random_conv(winograd.MIN_CHANNELS, winograd.MIN_CHANNELS)
    params = {"params": {"kernel": kernel.astype(dtype)}}
    lowered = jax.jit(conv.apply).trace(params, x.astype(dtype))
    program = lowered.lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == convolutions
