"""CLIP: a text tower, an image tower, and the space that both are projected to.

The scores of text-to-image models come from both towers; the text tower alone is the condition
encoder of Meissonic. Text attends causally and its padding is not masked: what stands behind the
end token changes no position before it. Axes: B batch, N positions, D width, P projection.

Source: Radford et al., arXiv 2103.00020; the layout of open_clip, with exact or quick GELU.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dimo_jax.common import limits
from dimo_jax.common.errors import InputError
from dimo_jax.models import blocks
from dimo_jax.models.attention import attention_fn
from dimo_jax.models.network import Compute

Params = Any  # a pytree of arrays

# OpenAI's weights, and those trained to continue them, have x sigmoid(1.702 x); LAION's have the
# erf form. No shape tells, and the wrong one gives plausible features.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
# Of pixels in 0..1, by channel: an image tower is given (pixels - MEAN) / STD.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_BLOCKS = ("width", "depth", "heads", "mlp_dim")
TEXT_SIZES = ("vocabulary", "context", *_BLOCKS)
IMAGE_SIZES = ("image_size", "patch_size", *_BLOCKS)


@dataclasses.dataclass(frozen=True)
class Clip:
    """Both towers as pure functions of the parameters.

    They compute in the parameters' dtype, with the norms' statistics and the softmax in float32,
    and with the highest precision of products: what they give is reported or compared.

    Attributes:
        config: plain values that rebuild it through `build`.
        init: key -> params: {"text": ..., "image": ...}, or {"text": ...}.
        encode_text: (params, tokens int32 [B, N]), N at most the context, ->
            {"hidden": [B, N, D] after the last norm,
             "penultimate": [B, N, D], the last block's input, without a norm,
             "pooled": [B, D], hidden at the end token,
             "projected": [B, P]}.
            The end token is the largest id of a row, at its first place. Under jit only what is
            used of it is computed.
        encode_image: (params, images float32 [B, S, S, 3], normalised by MEAN and STD) ->
            {"pooled": [B, D], "projected": [B, P]}; None in a network of text alone.
    """

    config: dict[str, Any]
    init: Callable[[Key[Array, ""]], Params]
    encode_text: Callable[[Params, Int[Array, "B N"]], dict[str, Array]]
    encode_image: Callable[[Params, Float[Array, "B S S 3"]], dict[str, Array]] | None

    @property
    def context(self) -> int:
        """Tokens of a text, start, end and padding included."""
        return self.config["text"]["context"]

    @property
    def image_size(self) -> int:
        """Pixels along a side."""
        return self.config["image"]["image_size"]


def _norm(name: str) -> nn.LayerNorm:
    # Flax's fast variance E[x^2] - E[x]^2 breaks parity with PyTorch.
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, both residual.

    Attributes:
        heads: of width D / heads each, which scales the scores: 64 in most, not in all networks.
        mlp_dim: width inside the feed-forward.
        activation: a key of ACTIVATIONS.
        causal: whether a position sees no later one.
    """

    heads: int
    mlp_dim: int
    activation: str
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], deterministic: bool) -> Float[Array, "B N D"]:
        """Apply one layer; there is no dropout."""
        mask = nn.make_causal_mask(x[..., 0], dtype=bool) if self.causal else None
        attention = nn.MultiHeadDotProductAttention(
            num_heads=self.heads,
            deterministic=deterministic,
            dtype=x.dtype,
            force_fp32_for_softmax=True,
            # Ours has no mask, and is the faster one on 257 positions.
            attention_fn=nn.dot_product_attention if self.causal else attention_fn(Compute()),
            name="attention",
        )
        x = x + attention(_norm("attention_norm")(x), mask=mask)
        y = nn.Dense(self.mlp_dim, name="mlp_in")(_norm("mlp_norm")(x))
        return x + nn.Dense(x.shape[-1], name="mlp_out")(ACTIVATIONS[self.activation](y))


class _TextTower(nn.Module):
    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    activation: str
    projection: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "B N"]) -> dict[str, Array]:
        table = self.param("token_embedding", _normal(), (self.vocabulary, self.width))
        positions = self.param("position_embedding", _normal(), (self.context, self.width))
        x = table[tokens] + positions[None, : tokens.shape[1]]
        block = functools.partial(Block, self.heads, self.mlp_dim, self.activation, True)
        if self.depth > 1:
            before = self.depth - 1
            x = blocks.run_blocks(self, block, before, x, Compute(), deterministic=True)
        penultimate = x
        x = block(name=f"block_{self.depth - 1}")(x, True)
        hidden = _norm("last_norm")(x)
        # argmax gives the first of equal ids: end tokens as padding do not matter.
        pooled = hidden[jnp.arange(len(tokens)), jnp.argmax(tokens, axis=1)]
        kernel = self.param("projection", _normal(), (self.width, self.projection))
        return {
            "hidden": hidden,
            "penultimate": penultimate,
            "pooled": pooled,
            "projected": pooled @ kernel,
        }


class _ImageTower(nn.Module):
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    activation: str
    projection: int

    @nn.compact
    def __call__(self, images: Float[Array, "B S S 3"]) -> dict[str, Array]:
        window = (self.patch_size, self.patch_size)
        patches = nn.Conv(self.width, window, window, "VALID", use_bias=False, name="patch")(images)
        patches = patches.reshape(len(images), -1, self.width)
        first = self.param("class_embedding", _normal(), (self.width,))
        first = jnp.broadcast_to(first[None, None], (len(images), 1, self.width))
        shape = (1 + patches.shape[1], self.width)
        positions = self.param("position_embedding", _normal(), shape)
        x = jnp.concatenate([first.astype(patches.dtype), patches], axis=1) + positions[None]
        x = _norm("first_norm")(x)
        block = functools.partial(Block, self.heads, self.mlp_dim, self.activation, False)
        x = blocks.run_blocks(self, block, self.depth, x, Compute(), deterministic=True)
        pooled = _norm("last_norm")(x[:, 0])
        kernel = self.param("projection", _normal(), (self.width, self.projection))
        return {"pooled": pooled, "projected": pooled @ kernel}


def _normal() -> Callable[..., Array]:
    return nn.initializers.normal(0.02)


def build(config: Mapping[str, Any]) -> Clip:
    """Return the network of a plain configuration.

    Args:
        config: {"name": "clip", "activation": a key of ACTIVATIONS, "projection": P,
            "text": {vocabulary, context, width, depth, heads, mlp_dim},
            "image": {image_size, patch_size, width, depth, heads, mlp_dim} or None}.

    Returns:
        The network; its parameters come from a converted file.

    Raises:
        InputError: a field is missing, unknown or of a size that cannot be.
    """
    limits.check_sizes(config)
    config = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    _check(config)
    common = {name: config[name] for name in ("activation", "projection")}
    text = _TextTower(**config["text"], **common)
    image = _ImageTower(**config["image"], **common) if config["image"] else None

    def init(key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key)
        tokens = jnp.zeros((1, config["text"]["context"]), jnp.int32)
        params = {"text": text.init(keys[0], tokens)["params"]}
        if image is None:
            return params
        side = config["image"]["image_size"]
        pixels = jnp.zeros((1, side, side, 3), jnp.float32)
        return {**params, "image": image.init(keys[1], pixels)["params"]}

    def encode_text(params: Params, tokens: Int[Array, "B N"]) -> dict[str, Array]:
        with jax.default_matmul_precision("highest"):
            return text.bind({"params": params["text"]})(tokens)

    if image is None:
        return Clip(config, init, encode_text, None)

    def encode_image(params: Params, images: Float[Array, "B S S 3"]) -> dict[str, Array]:
        dtype = params["image"]["patch"]["kernel"].dtype
        with jax.default_matmul_precision("highest"):
            return image.bind({"params": params["image"]})(images.astype(dtype))

    return Clip(config, init, encode_text, encode_image)


def _check(config: Mapping[str, Any]) -> None:
    wrong = _field_errors("clip", config, ("name", "activation", "projection", "text", "image"))
    if not wrong:
        wrong += [] if config["name"] == "clip" else [f"name is {config['name']!r}"]
        if config["activation"] not in ACTIVATIONS:
            wrong.append(f"activation is {config['activation']!r}, not {' or '.join(ACTIVATIONS)}")
        wrong += _size_errors({"projection": config["projection"]}, "")
        towers = [("text", TEXT_SIZES)] + ([("image", IMAGE_SIZES)] if config["image"] else [])
        for name, fields in towers:
            tower = config[name] if isinstance(config[name], Mapping) else {}
            wrong += _field_errors(name, tower, fields) or _size_errors(tower, f"{name}.")
    if wrong:
        raise InputError(f"this is no network of CLIP: {'; '.join(wrong)}")


def _field_errors(where: str, found: Mapping[str, Any], expected: tuple[str, ...]) -> list[str]:
    missing = [f"{where} lacks {name}" for name in expected if name not in found]
    return missing + [f"{where} has an unknown {name}" for name in found if name not in expected]


def _size_errors(sizes: Mapping[str, Any], prefix: str) -> list[str]:
    wrong = [
        f"{prefix}{name} is {value!r}, expected a number from 1"
        for name, value in sizes.items()
        if type(value) is not int or value < 1
    ]
    for name, part in (("width", "heads"), ("image_size", "patch_size")):
        if not wrong and name in sizes and sizes[name] % sizes[part]:
            wrong.append(
                f"{prefix}{name} {sizes[name]} is not divisible by {prefix}{part} {sizes[part]}"
            )
    return wrong
