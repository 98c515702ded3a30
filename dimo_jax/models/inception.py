"""Inception-v3 of the FID literature: FID compares images by its features.

This is the network of TensorFlow's inception-2015-12-05, not torchvision's: the average pools do
not count the padding, the last block has a max pool, there are 1008 classes and no auxiliary head,
and pixels are scaled by (x - 128) / 128. Modules and parameters have the names of the published
files. Shapes: B batch, H height, W width, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from dimo_jax.common.errors import InputError

Params = Any  # a pytree of arrays
Size = int | tuple[int, int]

IMAGE_SIZE = 299  # pixels along a side
NUM_LOGITS = 1008
# "64" to "2048" are means over all positions; "spatial" are 7 channels at 17 x 17 positions.
OUTPUTS = ("64", "192", "768", "2048", "logits_unbiased", "logits", "spatial")
SPATIAL_CHANNELS = 7
# Every number of channels below is a multiple of 16, so small networks exist for tests.
DIVISORS = (1, 2, 4, 8, 16)

_EPSILON = 1e-3  # of the batch norms
# A GPU's default, TF32, moves features by 1e-2 and a TPU's, bfloat16, by 1e-1; this one by 1e-5.
_PRECISION = lax.Precision.HIGHEST


@dataclass(frozen=True)
class Inception:
    """The network as pure functions of its parameters.

    Attributes:
        config: plain values that rebuild it through models.build.
        init: key -> params, random and of the published shapes.
        apply: (params, images float32 [B, 299, 299, 3] in 0..255) -> {name: float32 [B, D]} for
            all OUTPUTS. D is 64, 192, 768 and 2048 as the names say, 1008 for logits and 2023 for
            "spatial", the first 7 channels of Mixed_6d.branch1x1, flattened with the channel
            last. Under jit only what is used of it is computed.
    """

    config: dict
    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[[Params, Float[Array, "B H W 3"]], dict[str, Float[Array, "B _"]]]


class _Norm(nn.Module):
    """Batch norm with stored statistics, which are parameters here: nothing updates them."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, x.shape[-1:]
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        factor = scale / jnp.sqrt(var + _EPSILON)
        return x * factor[None, None, None] + (bias - mean * factor)[None, None, None]


class _Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    channels: int
    size: tuple[int, int]
    stride: int
    padding: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        x = nn.Conv(
            self.channels,
            self.size,
            self.stride,
            self.padding,
            use_bias=False,
            precision=_PRECISION,
            # Uniform: the default, a truncated normal, takes long to compile for each new shape.
            kernel_init=nn.initializers.he_uniform(),
            name="conv",
        )(x)
        return nn.relu(_Norm(name="bn")(x))


class _Block(nn.Module):
    """What all blocks are built with.

    Attributes:
        divisor: of the channels of every unit.
    """

    divisor: int

    def unit(
        self, x: Array, name: str, channels: int, size: Size = 1, stride: int = 1, padding: str = ""
    ) -> Array:
        """Apply one unit; without a stride it keeps height and width, unless by `padding`."""
        size = (size, size) if isinstance(size, int) else size
        padding = padding or ("SAME" if stride == 1 else "VALID")
        return _Unit(channels // self.divisor, size, stride, padding, name=name)(x)

    def chain(self, x: Array, name: str, *units: tuple) -> Array:
        """Units name_1, name_2, ... in a row, each given as (channels, size) or with a stride."""
        for i, arguments in enumerate(units, start=1):
            x = self.unit(x, f"{name}_{i}", *arguments)
        return x


def _halving_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2))


def _average_pool(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _max_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), padding="SAME")


def _concatenated(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)


class _BlockA(_Block):
    pool_channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _concatenated(
            self.unit(x, "branch1x1", 64),
            self.chain(x, "branch5x5", (48, 1), (64, 5)),
            self.chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3)),
            self.unit(_average_pool(x), "branch_pool", self.pool_channels),
        )


class _BlockB(_Block):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _concatenated(
            self.unit(x, "branch3x3", 384, 3, stride=2),
            self.chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3, 2)),
            _halving_pool(x),
        )


class _BlockC(_Block):
    inner_channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, row, column = self.inner_channels, (1, 7), (7, 1)
        return _concatenated(
            self.unit(x, "branch1x1", 192),
            self.chain(x, "branch7x7", (c, 1), (c, row), (192, column)),
            self.chain(x, "branch7x7dbl", (c, 1), (c, column), (c, row), (c, column), (192, row)),
            self.unit(_average_pool(x), "branch_pool", 192),
        )


class _BlockD(_Block):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _concatenated(
            self.chain(x, "branch3x3", (192, 1), (320, 3, 2)),
            self.chain(x, "branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
            _halving_pool(x),
        )


class _BlockE(_Block):
    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        single = self.unit(x, "branch3x3_1", 384)
        double = self.chain(x, "branch3x3dbl", (448, 1), (384, 3))
        return _concatenated(
            self.unit(x, "branch1x1", 320),
            self.unit(single, "branch3x3_2a", 384, (1, 3)),
            self.unit(single, "branch3x3_2b", 384, (3, 1)),
            self.unit(double, "branch3x3dbl_3a", 384, (1, 3)),
            self.unit(double, "branch3x3dbl_3b", 384, (3, 1)),
            self.unit(self.pool(x), "branch_pool", 192),
        )


class _Network(_Block):
    num_logits: int

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B _"]]:
        n, found = self.divisor, {}
        x = (images - 128) / 128
        x = self.unit(x, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = self.unit(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
        x = _halving_pool(self.unit(x, "Conv2d_2b_3x3", 64, 3))
        found["64"] = jnp.mean(x, axis=(1, 2))
        x = self.unit(x, "Conv2d_3b_1x1", 80)
        x = _halving_pool(self.unit(x, "Conv2d_4a_3x3", 192, 3, padding="VALID"))
        found["192"] = jnp.mean(x, axis=(1, 2))
        x = _BlockA(n, 32, name="Mixed_5b")(x)
        x = _BlockA(n, 64, name="Mixed_5c")(x)
        x = _BlockA(n, 64, name="Mixed_5d")(x)
        x = _BlockB(n, name="Mixed_6a")(x)
        x = _BlockC(n, 128, name="Mixed_6b")(x)
        x = _BlockC(n, 160, name="Mixed_6c")(x)
        x = _BlockC(n, 160, name="Mixed_6d")(x)
        # The block's first branch comes first. NHWC order: a reference file's mu_s has it.
        found["spatial"] = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
        x = _BlockC(n, 192, name="Mixed_6e")(x)
        found["768"] = jnp.mean(x, axis=(1, 2))
        x = _BlockD(n, name="Mixed_7a")(x)
        x = _BlockE(n, _average_pool, name="Mixed_7b")(x)
        x = _BlockE(n, _max_pool, name="Mixed_7c")(x)
        found["2048"] = x = jnp.mean(x, axis=(1, 2))
        found |= _Head(self.num_logits, name="fc")(x)
        return found


class _Head(nn.Module):
    """The classifier; the Inception Score's logits leave its bias out."""

    num_logits: int

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> dict[str, Float[Array, "B _"]]:
        shape = (x.shape[-1], self.num_logits)
        kernel = self.param("kernel", nn.initializers.lecun_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        logits = jnp.matmul(x, kernel, precision=_PRECISION)
        return {"logits_unbiased": logits, "logits": logits + bias[None]}


def build(num_logits: int = NUM_LOGITS, divisor: int = 1) -> Inception:
    """Build the network.

    Args:
        num_logits: classes; 1008 in all published files.
        divisor: every number of channels is divided by it: one of DIVISORS. 1 is the published
            network; others are small ones to try a program with.

    Returns:
        The network; its parameters come from a converted file.

    Raises:
        InputError: a size that it does not take.

    Source: Szegedy et al., arXiv 1512.00567; the departures from it as in pytorch-fid and
    torch-fidelity, of which this is the same function.
    """
    if divisor not in DIVISORS or num_logits < 1:
        raise InputError(
            f"inception does not take num_logits {num_logits} and divisor {divisor}; give "
            f"num_logits {NUM_LOGITS} and a divisor out of {DIVISORS}"
        )
    network = _Network(divisor, num_logits)

    def init(key: Key[Array, ""]) -> Params:
        # 75 is the least image that no convolution shrinks to nothing.
        return network.init(key, jnp.zeros((1, 75, 75, 3), jnp.float32))["params"]

    def apply(params: Params, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B _"]]:
        if images.shape[1:3] != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"images are {images.shape}; resize them to {IMAGE_SIZE} pixels first")
        return network.bind({"params": params})(images)

    return Inception(
        {"name": "inception", "num_logits": num_logits, "divisor": divisor}, init, apply
    )
