"""Mask2Former with a Swin backbone: a picture to a hundred masks, each with scores of classes.

This is the detector that GenEval scores images with. Every query attends only to where its own mask
of the layer before lies. Axes: B batch, H height, W width, Q queries, K classes, D width.

Source: Cheng et al., arXiv 2112.01527, with the sizes and the order of OpenMMLab's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dimo_jax.common.errors import InputError
from dimo_jax.models.pixel_decoder import GROUPS, LEVELS, PixelDecoder, resized, sine_positions
from dimo_jax.models.swin import STAGES, Swin, dense, norm

Params = Any  # a pytree of arrays

# Height and width of what the network takes are multiples of it.
STRIDE = 32
# OpenMMLab's mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.
PUBLISHED = {
    "name": "mask2former",
    "num_classes": 80,
    "num_queries": 100,
    "width": 256,
    "heads": 8,
    "swin": {"width": 96, "depth": [2, 2, 18, 2], "heads": [3, 6, 12, 24], "window": 7},
    "pixel_decoder": {"depth": 6, "mlp_dim": 1024},
    "decoder": {"depth": 9, "mlp_dim": 2048},
}


@dataclass(frozen=True)
class Detector:
    """The network as pure functions of its parameters, in float32 with the highest precision.

    Attributes:
        config: plain values that rebuild it through models.build.
        init: key -> params, random and of the published shapes.
        apply: (params, images [B, H, W, 3]) -> (logits of classes [B, Q, K + 1], of which the last
            is "no object", logits of masks [B, Q, H / 4, W / 4]). Images are normalised, their
            sides multiples of STRIDE.
    """

    config: dict[str, Any]
    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[[Params, Float[Array, "B H W 3"]], tuple[Array, Array]]


class _Layer(nn.Module):
    """Attention to the picture, attention among the queries, feed-forward; norms follow."""

    heads: int
    mlp_dim: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Q D"],
        query: Float[Array, "1 Q D"],
        value: Float[Array, "B N D"],
        place: Float[Array, "1 N D"],
        seen: Array,
    ) -> Float[Array, "B Q D"]:
        y = self._attention("cross_attention")(x + query, value + place, value, mask=seen)
        x = norm(name="cross_norm")(x + y)
        y = self._attention("self_attention")(x + query, x + query, x)
        x = norm(name="self_norm")(x + y)
        y = dense(x.shape[-1], name="mlp_out")(nn.relu(dense(self.mlp_dim, name="mlp_in")(x)))
        return norm(name="mlp_norm")(x + y)

    def _attention(self, name: str) -> nn.MultiHeadDotProductAttention:
        return nn.MultiHeadDotProductAttention(
            self.heads, kernel_init=nn.initializers.lecun_uniform(), name=name
        )


class _Network(nn.Module):
    num_classes: int
    num_queries: int
    width: int
    heads: int
    swin: Mapping[str, Any]
    pixel_decoder: Mapping[str, Any]
    decoder: Mapping[str, Any]

    def setup(self) -> None:
        normal, shape = nn.initializers.normal(1.0), (self.num_queries, self.width)
        depth, heads = (tuple(self.swin[name]) for name in ("depth", "heads"))
        self.backbone = Swin(self.swin["width"], depth, heads, self.swin["window"])
        self.pixels = PixelDecoder(self.width, self.heads, **self.pixel_decoder)
        self.query_feature = self.param("query_feature", normal, shape)
        self.query_place = self.param("query_place", normal, shape)
        self.level_embedding = self.param("level_embedding", normal, (LEVELS, self.width))
        mlp_dim = self.decoder["mlp_dim"]
        self.layer = [_Layer(self.heads, mlp_dim) for _ in range(self.decoder["depth"])]
        self.last_norm = norm()
        self.mask_embedding = [dense(self.width) for _ in range(3)]
        self.class_logits = dense(self.num_classes + 1)

    def __call__(self, images: Float[Array, "B H W 3"]) -> tuple[Array, Array]:
        maps, feature = self.pixels(self.backbone(images))
        sizes = [(x.shape[1], x.shape[2]) for x in maps]
        flat = [x.reshape(len(x), -1, self.width) for x in maps]
        values = [x + self.level_embedding[None, i : i + 1] for i, x in enumerate(flat)]
        places = [
            jnp.asarray(sine_positions(size, self.width)).reshape(1, -1, self.width)
            for size in sizes
        ]
        # What each level sees of a mask is its resized logits. Resizing is linear: that of the
        # features, once, gives the same at a fraction of the products.
        features = [resized(feature, size) for size in sizes]
        query = self.query_place[None]
        x = jnp.broadcast_to(self.query_feature[None], (len(images), *self.query_feature.shape))
        for i, layer in enumerate(self.layer):
            level = i % LEVELS
            seen = self._masks(x, features[level]).reshape(*x.shape[:2], -1) >= 0
            # A mask of nothing is opened: the softmax needs one position.
            seen = seen | ~seen.any(axis=-1, keepdims=True)
            x = layer(x, query, values[level], places[level], seen[:, None])
        return self.class_logits(self.last_norm(x)), self._masks(x, feature)

    def _masks(
        self, x: Float[Array, "B Q D"], feature: Float[Array, "B H W D"]
    ) -> Float[Array, "B Q H W"]:
        y = self.last_norm(x)
        for i, layer in enumerate(self.mask_embedding):
            y = layer(nn.relu(y) if i else y)
        return jnp.einsum("bqd,bhwd->bqhw", y, feature)


def build(
    num_classes: int,
    num_queries: int,
    width: int,
    heads: int,
    swin: Mapping[str, Any],
    pixel_decoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
) -> Detector:
    """Build the network.

    Args:
        num_classes: K, without "no object".
        num_queries: Q.
        width: D of the decoders, a multiple of the groups of their norms, 32.
        heads: of the decoders.
        swin: width, depth, heads and window of the backbone: see Swin.
        pixel_decoder: depth and mlp_dim: see PixelDecoder.
        decoder: its depth and mlp_dim.

    Returns:
        The network; its parameters come from a converted file.

    Raises:
        InputError: a size that it does not take.
    """
    swin = {k: list(v) if isinstance(v, Sequence) else v for k, v in swin.items()}
    config = {
        "name": "mask2former",
        "num_classes": num_classes,
        "num_queries": num_queries,
        "width": width,
        "heads": heads,
        "swin": swin,
        "pixel_decoder": dict(pixel_decoder),
        "decoder": dict(decoder),
    }
    _check(config)
    network = _Network(**{k: v for k, v in config.items() if k != "name"})

    def init(key: Key[Array, ""]) -> Params:
        return network.init(key, jnp.zeros((1, STRIDE, STRIDE, 3), jnp.float32))["params"]

    def apply(params: Params, images: Float[Array, "B H W 3"]) -> tuple[Array, Array]:
        if images.shape[1] % STRIDE or images.shape[2] % STRIDE:
            raise ValueError(f"images are {images.shape}; pad them to multiples of {STRIDE} first")
        with jax.default_matmul_precision("highest"):
            return network.bind({"params": params})(images)

    return Detector(config, init, apply)


def _check(config: Mapping[str, Any]) -> None:
    """Refuse sizes that are of no such network."""
    wrong = []
    for name in ("swin", "pixel_decoder", "decoder"):
        if set(config[name]) != set(PUBLISHED[name]):
            wrong.append(f"{name} has {', '.join(config[name])}, not {', '.join(PUBLISHED[name])}")
    if not wrong:
        stages = config["swin"]
        lists = [stages[name] for name in ("depth", "heads")]
        if any(not isinstance(x, list) or len(x) != STAGES for x in lists):
            wrong.append(f"swin.depth and swin.heads need {STAGES} numbers each")
        elif any(x < 1 for x in (*stages["depth"], *stages["heads"], stages["window"])):
            wrong.append("swin has a size below 1")
        elif any(stages["width"] * 2**i % n for i, n in enumerate(stages["heads"])):
            wrong.append(f"swin.width {stages['width']} is not divisible by {stages['heads']}")
    if config["width"] % GROUPS or config["width"] % config["heads"]:
        wrong.append(f"width {config['width']} is no multiple of {GROUPS} and {config['heads']}")
    if wrong:
        raise InputError(f"this is no Mask2Former: {'; '.join(wrong)}")
