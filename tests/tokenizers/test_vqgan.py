import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dimo_jax import tokenizers
from dimo_jax.common import images as pictures
from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks import layouts
from dimo_jax.convert.networks import vqgan as tables
from dimo_jax.tokenizers import layers, vqgan
from dimo_jax.tokenizers.tokenizer import decode_in_chunks
from tests.helpers.golden import golden, golden_state
from tests.helpers.torch_vqgan import TorchVqgan, randomized

TAMING = {
    "name": "vqgan", "image_size": 8, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1,
    "attn_levels": [0, 1], "z_channels": 8, "embed_dim": 6, "n_embed": 40, "l2_codebook": False,
}  # fmt: skip
LLAMAGEN = {
    "name": "llamagen", "image_size": 16, "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1,
    "attn_levels": [2], "z_channels": 8, "embed_dim": 4, "n_embed": 60, "l2_codebook": True,
}  # fmt: skip
SMALL = {"vqgan": TAMING, "llamagen": LLAMAGEN}


def shapes_of(config):
    return jax.eval_shape(tokenizers.build(config).init, jax.random.key(0))


def load(config, state):
    return layouts.to_params(tables.entries(config), state, shapes_of(config))


@functools.cache
def pair(name):
    """A PyTorch module with random weights, and our parameters from its state dict."""
    module = randomized(SMALL[name], seed=0)
    state = {k: v.numpy() for k, v in module.state_dict().items()}
    state.pop("quantize.codebook_used", None)
    return module, load(SMALL[name], state)


def channels_first(images):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def channels_last(images):
    return np.moveaxis(np.asarray(images), 1, -1)


def some_images(batch, size):
    return np.random.default_rng(size).uniform(size=(batch, size, size, 3)).astype(np.float32)


def some_tokens(batch, tokenizer):
    shape = (batch, tokenizer.num_tokens)
    return np.random.default_rng(3).integers(0, tokenizer.codebook_size, shape, np.int32)


@pytest.fixture(scope="module")
def golden_pair():
    config = {
        **tokenizers.build({"name": "vqgan"}).config,
        **{"image_size": 64, "ch": 32, "z_channels": 16, "embed_dim": 16, "n_embed": 24},
    }
    expected = layouts.state_shapes(tables.entries(config), shapes_of(config))
    assert len(expected) == 343
    assert sum(np.prod(shape) for shape in expected.values()) == 4_390_355
    return config, load(config, golden_state(expected))


def test_golden_vectors_of_the_decoder(golden_pair):
    config, params = golden_pair
    tokens = ((np.arange(16) * 5 + 2) % 24).astype(np.int32)[None]
    image = np.asarray(jax.jit(functools.partial(vqgan.pixels, config))(params, tokens))
    assert image.shape == (1, 64, 64, 3)
    np.testing.assert_allclose([image.mean(), image.std()], [0.1070905, 0.6792325], atol=1e-5)
    cells = [image[0, 0, 0, 0], image[0, 0, 63, 1], image[0, 31, 17, 2], image[0, 63, 63, 0]]
    np.testing.assert_allclose(cells, [-0.083248, -0.019980, 0.288262, 0.048591], atol=1e-5)


def test_golden_vectors_of_the_encoder(golden_pair):
    config, params = golden_pair
    encode = tokenizers.build(config).encode
    both = jax.jit(lambda *args: (vqgan.latents(config, *args), encode(*args)))
    images = channels_last((golden(99, (1, 3, 64, 64)) + 1) / 2).astype(np.float32)
    z, tokens = map(np.asarray, both(params, images))
    np.testing.assert_allclose([z.mean(), z.std()], [0.0020489, 0.5057652], atol=1e-5)
    cells = [z[0, 0, 0, 0], z[0, 1, 2, 7], z[0, 3, 3, 15]]
    np.testing.assert_allclose(cells, [0.091333, -0.008494, -0.079506], atol=1e-5)
    codes = [5, 8, 8, 5, 5, 20, 20, 12, 10, 22, 8, 0, 23, 8, 20, 16]
    np.testing.assert_array_equal(tokens, [codes])


# The parameters do not depend on the image's side: twice the side is what 512 is to 256.
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("name", SMALL)
def test_encoding_is_that_of_pytorch(name, factor):
    module, params = pair(name)
    size = factor * SMALL[name]["image_size"]
    tokenizer = tokenizers.build({**SMALL[name], "image_size": size})

    @jax.jit  # one program, for the compilation's time
    def encode(params, images):
        return vqgan.latents(tokenizer.config, params, images), tokenizer.encode(params, images)

    images = some_images(3, size)
    z, tokens = encode(params, images)
    x = channels_first(2 * images - 1)
    np.testing.assert_allclose(z, channels_last(module.latents(x)), atol=1e-5)
    np.testing.assert_array_equal(tokens, module.encode(x))
    assert len(np.unique(tokens)) > 10  # else equal codes say little


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("name", SMALL)
def test_decoding_is_that_of_pytorch(name, factor):
    module, params = pair(name)
    size = factor * SMALL[name]["image_size"]
    tokenizer = tokenizers.build({**SMALL[name], "image_size": size})

    tokens = some_tokens(3, tokenizer)
    decoded = np.asarray(tokenizer.decode(params, tokens))
    expected = channels_last(module.decode(torch.from_numpy(tokens)))
    assert expected.max() > 1 and expected.min() < -1  # there is something to clip
    np.testing.assert_allclose(decoded, (np.clip(expected, -1, 1) + 1) / 2, atol=1e-5)
    original = np.clip(expected * 127.5 + 128, 0, 255).astype(np.uint8).astype(int)
    different = np.abs(pictures.to_uint8(decoded) - original)
    assert different.max() <= 1 and different.mean() < 1e-3  # where 127.5 x ends in one half


@pytest.mark.parametrize(("name", "total"), [("vqgan", 72_141_699), ("llamagen", 71_883_403)])
def test_the_published_sizes_have_the_keys_and_shapes_of_pytorch(name, total):
    config = tokenizers.build({"name": name}).config
    with torch.device("meta"):
        state = TorchVqgan(config).state_dict()
    expected = {k: tuple(v.shape) for k, v in state.items() if k != "quantize.codebook_used"}
    params = shapes_of(config)
    assert layouts.state_shapes(tables.entries(config), params) == expected
    assert len(expected) == 343
    assert sum(x.size for x in jax.tree.leaves(params)) == total


def test_decoding_in_chunks_is_decoding_at_once():
    params = pair("vqgan")[1]
    tokenizer = tokenizers.build(TAMING)
    tokens = some_tokens(5, tokenizer)
    at_once = tokenizer.decode(params, tokens)
    sizes = []

    def decode(params, tokens):
        sizes.append(len(tokens))
        return tokenizer.decode(params, tokens)

    recording = dataclasses.replace(tokenizer, decode=decode)
    for num, chunk in ((5, 2), (5, 5), (3, 5), (4, 2)):
        sizes.clear()
        found = decode_in_chunks(recording, params, tokens[:num], chunk)
        np.testing.assert_allclose(found, at_once[:num], atol=1e-5)
        assert sizes == [chunk] * -(-num // chunk)  # one shape, hence one program


@pytest.mark.parametrize(
    ("side", "chunk", "expected"), [(1024, 64, 1), (512, 64, 4), (2048, 4, 1), (256, 9, 9)]
)
def test_large_images_are_decoded_a_few_at_a_time(side, chunk, expected):
    sizes = []

    def decode(params, tokens):
        sizes.append(len(tokens))
        return np.broadcast_to(np.float32(tokens[:, :1, None, None]), (len(tokens), side, side, 1))

    def unused(*_):
        raise AssertionError

    large = tokenizers.Tokenizer({}, (1, 1), 99, (side, side, 1), unused, unused, decode)
    found = decode_in_chunks(large, {}, np.arange(5, dtype=np.int32)[:, None], chunk)
    assert set(sizes) == {expected}
    assert found[:, 0, 0, 0].tolist() == found[:, -1, -1, 0].tolist() == [0, 1, 2, 3, 4]


def test_decoding_in_chunks_of_nothing_and_by_nothing():
    tokenizer = tokenizers.build(LLAMAGEN)
    params = pair("llamagen")[1]
    none = np.zeros((0, tokenizer.num_tokens), np.int32)
    assert decode_in_chunks(tokenizer, params, none, 4).shape == (0, 16, 16, 3)
    with pytest.raises(InputError, match="chunk is 0 images, expected at least 1"):
        decode_in_chunks(tokenizer, params, none, 0)


def test_the_nearest_code_and_of_several_the_first():
    generator = np.random.default_rng(0)
    codebook = generator.normal(size=(50, 3)).astype(np.float32)
    codebook[30] = codebook[7]
    z = generator.normal(size=(2, 4, 5, 3)).astype(np.float32)
    z[0, 0, 0] = codebook[30]
    distances = ((z[..., None, :] - codebook).astype(np.float64) ** 2).sum(-1)
    found = np.asarray(layers.nearest_codes(jnp.asarray(z), jnp.asarray(codebook)))
    np.testing.assert_array_equal(found, distances.argmin(-1))
    assert found[0, 0, 0] == 7 and found.dtype == np.int32


def test_l2_normalisation_is_torch_normalize():
    x = np.float32([[3, 4], [0, 0], [3e-13, 4e-13], [-1e-6, 0]])
    found = np.asarray(layers.l2_normalized(jnp.asarray(x)))
    np.testing.assert_allclose(found, torch.nn.functional.normalize(torch.from_numpy(x)), rtol=1e-6)
    np.testing.assert_allclose(found[2], [0.3, 0.4], rtol=1e-6)  # divided by 1e-12, not by 5e-13


@pytest.mark.parametrize("shortcut", ["input", "output"])
def test_residual_block_without_biases_and_with_either_shortcut(shortcut):
    block = layers.ResidualBlock(64, use_bias=False, shortcut=shortcut)
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 32)).astype(np.float32)
    generator = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: generator.normal(0, 0.1, leaf.shape).astype(np.float32),
        jax.eval_shape(block.init, jax.random.key(0), jnp.asarray(x))["params"],
    )
    assert {k for k, v in params.items() if "bias" in v} == {"norm1", "norm2"}
    weights = jax.tree.map(torch.from_numpy, params)
    kernels = {k: v["kernel"].permute(3, 2, 0, 1) for k, v in weights.items() if "kernel" in v}
    functional = torch.nn.functional
    h = x_torch = channels_first(x)
    for i in (1, 2):
        scale, bias = (weights[f"norm{i}"][k] for k in ("scale", "bias"))
        h = functional.silu(functional.group_norm(h, 32, scale, bias, eps=1e-6))
        h = functional.conv2d(h, kernels[f"conv{i}"], padding=1)
    source = x_torch if shortcut == "input" else h
    expected = h + functional.conv2d(source, kernels["shortcut_conv"])
    found = jax.jit(block.apply)({"params": params}, x)
    np.testing.assert_allclose(found, channels_last(expected), atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_the_config_is_complete_and_rebuilds_the_tokenizer(name):
    tokenizer = tokenizers.build(SMALL[name])
    assert (tokenizer.grid, tokenizer.codebook_size) == ((4, 4), SMALL[name]["n_embed"])
    assert tokenizer.config == SMALL[name]
    assert tokenizers.build(json.loads(json.dumps(tokenizer.config))).config == tokenizer.config


def test_the_interface():
    params = pair("vqgan")[1]
    tokenizer = tokenizers.build(TAMING)
    images = some_images(5, 8)
    tokens = tokenizer.encode(params, images)
    assert tokens.shape == (5, 16) and tokens.dtype == np.int32
    last = np.full((5, 16), 39, np.int32)
    decoded = tokenizer.decode(params, last)
    assert decoded.shape == images.shape and decoded.dtype == np.float32
    np.testing.assert_array_equal(tokenizer.decode(params, last + 1), decoded)  # the mask id
    with pytest.raises(ValueError, match=re.escape("images have shape (2, 16, 16, 3)")):
        tokenizer.encode(params, some_images(2, 16))
    with pytest.raises(ValueError, match=re.escape("tokens have shape (1, 7)")):
        tokenizer.decode(params, np.zeros((1, 7), np.int32))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ch": 48}, "ch of the tokenizer 'vqgan' is 48, expected a multiple of 32"),
        ({"ch_mult": []}, r"ch_mult .* is \[\], expected a factor for each level"),
        ({"ch_mult": [1, 0]}, r"ch_mult\[1\] .* is 0, expected an int >= 1"),
        ({"image_size": 9}, "image_size .* is 9, expected a multiple of 2"),
        ({"attn_levels": [2]}, r"attn_levels .* is \[2\], expected levels among 0 .. 1"),
        ({"n_embed": 0}, "n_embed .* is 0, expected an int >= 1"),
        ({"resolution": 256}, r"'vqgan' has no fields \['resolution'\]"),
    ],
)
def test_bad_sizes_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        tokenizers.build({**TAMING, **changed})
