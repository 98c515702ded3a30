"""The Flax names of Google's two files, read in both directions.

The tokenizer's parts have no names in the original; here they get Flax's automatic ones again, from
modules of the same classes in the same order.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from dimo_jax import models, tokenizers
from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks import google, layouts
from dimo_jax.tokenizers import google_vqgan

TRANSFORMER = {
    "name": "google_maskgit", "num_tokens": 6, "codebook_size": 5, "num_classes": 3, "width": 8,
    "depth": 2, "heads": 2, "mlp_dim": 16, "dropout": 0.1,
}  # fmt: skip
TOKENIZER = {
    "name": "google_vqgan", "image_size": 8, "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 2,
    "embed_dim": 6, "n_embed": 20,
}  # fmt: skip


class ResBlock(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(self.features, (3, 3), use_bias=False)(nn.swish(nn.GroupNorm()(x)))
        h = nn.Conv(self.features, (3, 3), use_bias=False)(nn.swish(nn.GroupNorm()(h)))
        if x.shape[-1] == self.features:
            return x + h
        return h + nn.Conv(self.features, (1, 1), use_bias=False)(h)


def two_blocks(features, x):
    # Flax numbers modules as they are made: ResBlock()(ResBlock()(x)) would number them backwards.
    for _ in range(2):
        x = ResBlock(features)(x)
    return x


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (3, 3), use_bias=False)(x)
        for level, features in enumerate((32, 32, 64)):
            if level:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            x = two_blocks(features, x)
        x = two_blocks(64, x)
        return nn.Conv(6, (1, 1))(nn.swish(nn.GroupNorm()(x)))


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = two_blocks(64, nn.Conv(64, (3, 3))(x))
        for level, features in ((2, 64), (1, 32), (0, 32)):
            x = two_blocks(features, x)
            if level:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = nn.Conv(features, (3, 3))(x)
        return nn.Conv(3, (3, 3))(nn.swish(nn.GroupNorm()(x)))


class Quantizer(nn.Module):
    @nn.compact
    def __call__(self):
        return self.param("codebook", nn.initializers.normal(1.0), (20, 6))


class Vqvae(nn.Module):
    def setup(self):
        self.encoder, self.decoder, self.quantizer = Encoder(), Decoder(), Quantizer()

    def __call__(self, image, tokens):
        return self.encoder(image), self.decoder(self.quantizer()[tokens])


def randomized(shapes):
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: generator.normal(0, 0.2, x.shape).astype(np.float32), shapes)


def like(config):
    build = models.build if config["name"] == "google_maskgit" else tokenizers.build
    return jax.eval_shape(build(config).init, jax.random.key(0))


def entries(config, layout="flax"):
    if config["name"] == "google_maskgit":
        return google.transformer_entries(config)
    return google.tokenizer_entries(config, layout)


@functools.cache
def tokenizer_file():
    """A module of the original's structure, some inputs, and its file."""
    module = Vqvae()
    inputs = (
        np.random.default_rng(1).uniform(size=(2, 8, 8, 3)).astype(np.float32),
        np.random.default_rng(2).integers(0, 20, (2, 2, 2), np.int32),
    )
    variables = randomized(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    return jax.jit(module.apply)(variables, *inputs), inputs, serialization.to_bytes(variables)


def test_the_tokenizers_flax_file_is_read_into_the_same_network():
    (latents, pixels), (images, tokens), data = tokenizer_file()
    state = google.from_bytes(data)
    assert google.tokenizer_layout(state) == "flax"
    assert google.tokenizer_config_from(state, image_size=8) == TOKENIZER
    params = layouts.to_params(entries(TOKENIZER), state, like(TOKENIZER))

    @jax.jit
    def both(params):
        return (
            google_vqgan.latents(TOKENIZER, params, images),
            google_vqgan.pixels(TOKENIZER, params, tokens.reshape(2, 4)),
        )

    # Not only names and shapes: two blocks of one shape in each other's place would show here.
    found = both(params)
    np.testing.assert_allclose(found[0], latents, atol=1e-5)
    np.testing.assert_allclose(found[1], pixels, atol=1e-5)
    assert google.to_bytes(layouts.to_state(entries(TOKENIZER), params)) == data


def test_the_transformers_names_and_shapes_are_those_of_the_description():
    config = {
        **TRANSFORMER, "num_tokens": 256, "codebook_size": 1024, "num_classes": 1000, "width": 768,
        "depth": 24, "heads": 16, "mlp_dim": 3072,
    }  # fmt: skip
    dense = lambda name, i, o: {f"{name}/kernel": (*i, *o), f"{name}/bias": o}  # noqa: E731
    norm = lambda name: {f"{name}/scale": (768,), f"{name}/bias": (768,)}  # noqa: E731
    expected = {
        "Embed_0/word_embeddings/embedding": (2025, 768),
        "Embed_0/position_embeddings/embedding": (257, 768),
        **norm("Embed_0/embeddings_ln"),
        **dense("MlmLayer_0/mlm_dense", (768,), (768,)),
        **norm("MlmLayer_0/mlm_ln"),
        "MlmLayer_0/mlm_bias/bias": (2025,),
    }
    for i in range(24):
        attention, mlp = f"TransformerLayer_{i}/Attention_0", f"TransformerLayer_{i}/Mlp_0"
        for name in ("query", "key", "value"):
            expected |= dense(f"{attention}/self_attention/{name}", (768,), (16, 48))
        expected |= dense(f"{attention}/self_attention/out", (16, 48), (768,))
        expected |= norm(f"{attention}/attention_output_ln")
        expected |= dense(f"{mlp}/intermediate_output", (768,), (3072,))
        expected |= dense(f"{mlp}/layer_output", (3072,), (768,))
        expected |= norm(f"{mlp}/layer_output_ln")
    found = layouts.state_shapes(entries(config), like(config))
    assert found == expected
    shapes = {key: jax.ShapeDtypeStruct(shape, np.float32) for key, shape in found.items()}
    assert google.transformer_config_from(shapes) == config


def test_every_name_of_the_transformer_means_what_it_says():
    """The original's forward pass, by its own names, on a file of random arrays."""
    state = google.from_bytes(google.to_bytes(randomized(flat_shapes(TRANSFORMER))))
    params = layouts.to_params(entries(TRANSFORMER), state, like(TRANSFORMER))
    tokens, labels = np.array([[0, 5, 5, 3, 1, 4]], np.int32), np.array([2], np.int32)
    ids = np.concatenate([labels[:, None] + 5, np.where(tokens == 5, -1, tokens)], 1)
    table = state["Embed_0/word_embeddings/embedding"]
    x = table[ids] + state["Embed_0/position_embeddings/embedding"]

    def norm(x, name):
        return np.asarray(nn.LayerNorm(epsilon=1e-12).apply({"params": under(state, name)}, x))

    def dense(x, name):
        return x @ state[f"{name}/kernel"] + state[f"{name}/bias"]

    def gelu(x):
        return np.asarray(jax.nn.gelu(x))

    x = norm(x, "Embed_0/embeddings_ln")
    for i in range(2):
        prefix = f"TransformerLayer_{i}"
        attention = nn.MultiHeadDotProductAttention(num_heads=2, deterministic=True)
        weights = google.to_bytes(under(state, f"{prefix}/Attention_0/self_attention"))
        h = x + np.asarray(attention.apply(serialization.msgpack_restore(weights), x))
        h = norm(h, f"{prefix}/Attention_0/attention_output_ln")
        inner = gelu(dense(h, f"{prefix}/Mlp_0/intermediate_output"))
        h = h + dense(inner, f"{prefix}/Mlp_0/layer_output")
        x = norm(h, f"{prefix}/Mlp_0/layer_output_ln")
    x = norm(gelu(dense(x, "MlmLayer_0/mlm_dense")), "MlmLayer_0/mlm_ln")
    expected = (x @ table.T + state["MlmLayer_0/mlm_bias/bias"])[:, 1:, :5]
    network = models.build(TRANSFORMER)
    found = jax.jit(network.apply)(params, jnp.asarray(tokens), jnp.asarray(labels))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def under(state, prefix):
    return {k[len(prefix) + 1 :]: v for k, v in state.items() if k.startswith(f"{prefix}/")}


def flat_shapes(config, layout="flax"):
    shapes = layouts.state_shapes(entries(config, layout), like(config))
    return {key: jax.ShapeDtypeStruct(shape, np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("config", "layout"),
    [(TRANSFORMER, "flax"), (TOKENIZER, "flax"), (TOKENIZER, "torch")],
)
def test_a_round_trip_gives_the_same_bits(config, layout):
    params = randomized(like(config))
    state = layouts.to_state(entries(config, layout), params)
    if layout == "flax":
        state = google.from_bytes(google.to_bytes(state))
    back = layouts.to_params(entries(config, layout), state, like(config))
    jax.tree.map(np.testing.assert_array_equal, back, params)
    if config is TOKENIZER:
        assert google.tokenizer_layout(state) == layout
        assert google.tokenizer_config_from(state, image_size=8) == config


@pytest.mark.parametrize("config", [TRANSFORMER, TOKENIZER])
def test_every_difference_is_in_one_message(config):
    state = randomized(flat_shapes(config))
    names = list(state)
    state["extra/kernel"] = state.pop(names[3])
    state[names[5]] = state[names[5]][None]
    with pytest.raises(InputError) as error:
        layouts.to_params(entries(config), state, like(config))
    for text in (f"{names[3]} is missing", "extra/kernel is unknown", f"{names[5]} is (1, "):
        assert text in str(error.value)


def written(tree):
    return serialization.msgpack_serialize(tree)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tokenizer_file()[2][:-9], "not Flax's msgpack .*cut off"),
        (b"\x80\x02}q\x00.", "the file is not Flax's msgpack|the file holds"),
        (
            written({"params": {}, "batch_stats": {}}),
            r"holds \['batch_stats', 'params'\], expected",
        ),
        (written({"a": np.zeros(2)}), r"the file holds \['a'\], expected a dict with 'params'"),
        (written({"params": np.zeros(2)}), "expected a dict with 'params'"),
        (written({"params": {"a": {"b": 1.5}}}), "a/b in the file should be arrays"),
    ],
)
def test_files_that_are_something_else_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        google.from_bytes(data)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("quantizer/codebook", (5,), r"quantizer/codebook is \(5,\), expected 2 axes"),
        ("encoder/Conv_0/kernel", None, "encoder/Conv_0/kernel is missing"),
        ("encoder/ResBlock_8/x", (1,), "has 9 residual blocks and the decoder 3 levels"),
        (
            "encoder/Conv_0/kernel",
            (3, 3, 3, 5),
            r"\[32, 32, 64\] channels, expected multiples .* 5",
        ),
        ("decoder/Conv_1/kernel", (1,), None),
    ],
)
def test_tokenizer_sizes_that_cannot_be_read_are_refused(key, shape, message):
    state = flat_shapes(TOKENIZER)
    if shape is None:
        del state[key]
    else:
        state[key] = jax.ShapeDtypeStruct(shape, np.float32)
    if message is None:  # of no size's concern: the table will say it
        assert google.tokenizer_config_from(state, 8) == TOKENIZER
        return
    with pytest.raises(InputError, match=message):
        google.tokenizer_config_from(state)


def test_transformer_sizes_that_cannot_be_read_are_refused():
    state = flat_shapes(TRANSFORMER)
    with pytest.raises(InputError, match="has 9 rows, expected more than 1001: .* number of class"):
        google.transformer_config_from(state)
    assert google.transformer_config_from(state, num_classes=3) == TRANSFORMER
    del state["TransformerLayer_0/Mlp_0/intermediate_output/kernel"]
    with pytest.raises(InputError, match="intermediate_output/kernel is missing"):
        google.transformer_config_from(state, num_classes=3)
    with pytest.raises(InputError, match="encoder.conv_in.weight is missing"):
        google.tokenizer_config_from(state)
