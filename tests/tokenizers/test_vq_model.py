"""The VQ model of Meissonic against diffusers' VQModel, the golden vectors and its size."""

from tests.helpers import torch_peers  # noqa: F401

# isort: split

import functools

import jax
import numpy as np
import pytest
import torch
from diffusers import VQModel

from dimo_jax import tokenizers
from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks import layouts
from dimo_jax.convert.networks import vq_model as tables
from dimo_jax.tokenizers import vq_model
from tests.helpers.golden import golden, golden_state

SMALL = {
    "name": "vq_model", "image_size": 16, "ch": 32, "ch_mult": [1, 2, 3], "num_res_blocks": 1,
    "z_channels": 8, "embed_dim": 6, "n_embed": 40,
}  # fmt: skip
GOLDEN = {
    **SMALL, "image_size": 64, "ch_mult": [1, 2, 2, 3, 4], "num_res_blocks": 2, "embed_dim": 8,
    "n_embed": 24,
}  # fmt: skip


def shapes_of(config):
    return jax.eval_shape(tokenizers.build(config).init, jax.random.key(0))


def in_torch(config):
    fields = {k: v for k, v in tables.config_json(config).items() if not k.startswith("_")}
    return VQModel(**fields).eval()


def in_jax(config, state):
    return layouts.to_params(tables.entries(config), state, shapes_of(config))


@functools.cache
def pair():
    """A diffusers module with random weights, norms and biases too, and our parameters of it."""
    module, numbers = in_torch(SMALL), np.random.default_rng(0)

    def draw(key, shape):
        if len(shape) == 1:
            return (0 if key.endswith("bias") else 1) + 0.2 * numbers.normal(size=shape)
        return numbers.normal(size=shape) / np.sqrt(np.prod(shape[1:]))

    shapes = {k: tuple(x.shape) for k, x in module.state_dict().items()}
    state = {k: draw(k, shape).astype(np.float32) for k, shape in shapes.items()}
    module.load_state_dict({k: torch.from_numpy(x) for k, x in state.items()})
    return module, in_jax(SMALL, state)


def channels_last(images):
    return np.moveaxis(np.asarray(images), 1, -1)


@torch.no_grad()
def torch_decode(module, tokens, channels):
    side = round(tokens.shape[1] ** 0.5)
    grid = torch.from_numpy(tokens).reshape(-1, side, side).long()
    shape = (len(tokens), side, side, channels)
    return module.decode(grid, force_not_quantize=True, shape=shape).sample


# The parameters do not depend on the image's side.
@pytest.mark.parametrize("factor", [1, 2])
def test_encoding_is_that_of_diffusers(factor):
    module, params = pair()
    tokenizer = tokenizers.build({**SMALL, "image_size": factor * 16})
    images = np.random.default_rng(1).uniform(size=(2, factor * 16, factor * 16, 3)).astype("f")

    @jax.jit  # one program, for the compilation's time
    def encode(params, images):
        return vq_model.latents(tokenizer.config, params, images), tokenizer.encode(params, images)

    z, tokens = encode(params, images)
    with torch.no_grad():
        expected = module.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latents
        codes = module.quantize(expected)[2][2].reshape(2, -1)
    np.testing.assert_allclose(z, channels_last(expected), atol=1e-5)
    np.testing.assert_array_equal(tokens, codes)
    assert len(np.unique(tokens)) > 8  # else equal codes say little


@pytest.mark.parametrize("factor", [1, 2])
def test_decoding_is_that_of_diffusers(factor):
    module, params = pair()
    tokenizer = tokenizers.build({**SMALL, "image_size": factor * 16})
    shape = (2, tokenizer.num_tokens)
    tokens = np.random.default_rng(3).integers(0, 40, shape, np.int32)
    expected = channels_last(torch_decode(module, tokens, 6))
    assert expected.max() > 1 and expected.min() < 0  # there is something to clip
    found = tokenizer.decode(params, tokens)
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=1e-5)


@pytest.fixture(scope="module")
def golden_params():
    shapes = layouts.state_shapes(tables.entries(GOLDEN), shapes_of(GOLDEN))
    assert len(shapes) == 277 and sum(np.prod(shape) for shape in shapes.values()) == 4_833_083
    return in_jax(GOLDEN, golden_state(shapes))


def test_golden_vectors_of_the_decoder(golden_params):
    tokens = ((np.arange(16) * 5 + 2) % 24).astype(np.int32)[None]
    image = np.asarray(jax.jit(functools.partial(vq_model.pixels, GOLDEN))(golden_params, tokens))
    assert image.shape == (1, 64, 64, 3)
    np.testing.assert_allclose([image.mean(), image.std()], [-0.1531779, 0.5784352], atol=1e-5)
    cells = [image[0, 0, 0, 0], image[0, 0, 63, 1], image[0, 31, 17, 2], image[0, 63, 63, 0]]
    np.testing.assert_allclose(cells, [0.059070, -0.335613, -0.271763, -0.121943], atol=1e-5)


def test_golden_vectors_of_the_encoder(golden_params):
    encode = tokenizers.build(GOLDEN).encode
    both = jax.jit(lambda *args: (vq_model.latents(GOLDEN, *args), encode(*args)))
    images = channels_last(0.5 + 0.5 * golden(99, (1, 3, 64, 64))).astype(np.float32)
    z, tokens = map(np.asarray, both(golden_params, images))
    np.testing.assert_allclose([z.mean(), z.std()], [-0.0686632, 0.4307500], atol=1e-5)
    cells = [z[0, 0, 0, 0], z[0, 1, 2, 7], z[0, 3, 3, 3]]
    np.testing.assert_allclose(cells, [0.092088, 0.161821, 0.227017], atol=1e-5)
    np.testing.assert_array_equal(tokens, [[0, 0, 5, 0, 15, 22, 10, 11, 9, 0, 0, 5, 5, 15, 0, 6]])


def test_the_published_size_has_the_keys_and_shapes_of_diffusers():
    tokenizer = tokenizers.build({"name": "vq_model"})
    assert tokenizer.grid == (64, 64) and tokenizer.codebook_size == 8192
    with torch.device("meta"):
        state = in_torch(tokenizer.config).state_dict()
    params = shapes_of(tokenizer.config)
    expected = {k: tuple(x.shape) for k, x in state.items()}
    assert layouts.state_shapes(tables.entries(tokenizer.config), params) == expected
    assert len(expected) == 277
    assert sum(x.size for x in jax.tree.leaves(params)) == 146_244_675
    parts = {name: sum(x.size for x in jax.tree.leaves(params[name])) for name in params}
    assert (parts["encoder"], parts["decoder"]) == (58_693_568, 87_018_499)
    assert (parts["codebook"], parts["quant_conv"], parts["post_quant_conv"]) == (
        524288,
        4160,
        4160,
    )


def test_tamings_published_size_is_diffusers_vqmodel_with_attention():
    config = tokenizers.build({"name": "vqgan"}).config
    with torch.device("meta"):
        state = in_torch(config).state_dict()
    expected = {k: tuple(x.shape) for k, x in state.items()}
    assert layouts.state_shapes(tables.entries(config), shapes_of(config)) == expected


def test_the_config_is_complete_and_rebuilds_the_tokenizer():
    tokenizer = tokenizers.build(SMALL)
    assert (tokenizer.grid, tokenizer.codebook_size, tokenizer.config) == ((4, 4), 40, SMALL)
    assert tokenizers.build(tokenizer.config).config == SMALL


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ch": 48}, "ch of the tokenizer 'vq_model' is 48, expected a multiple of 32"),
        ({"image_size": 18}, "image_size .* is 18, expected a multiple of 4"),
        ({"attn_levels": [1]}, "has no fields"),
    ],
)
def test_bad_sizes_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        tokenizers.build({**SMALL, **changed})
