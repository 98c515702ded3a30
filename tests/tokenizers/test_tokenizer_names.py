import json
import re

import jax
import numpy as np
import pytest

from dimo_jax import tokenizers
from dimo_jax.common.errors import InputError
from dimo_jax.tokenizers.tokenizer import check_sizes

# The convolutional ones are at their full size by default; their own tests say the same of them.
SMALL = ["gray_levels", "patches"]


@pytest.mark.parametrize("name", sorted(tokenizers.TOKENIZERS))
def test_every_name_builds_with_its_defaults(name):
    tokenizer = tokenizers.build({"name": name})
    assert tokenizer.config["name"] == name
    assert tokenizers.build(tokenizer.config).config == tokenizer.config


@pytest.mark.parametrize(
    ("config", "grid", "codebook_size", "image_shape"),
    [
        ({"name": "gray_levels"}, (8, 8), 17, (8, 8, 1)),
        ({"name": "gray_levels", "image_size": 5, "num_levels": 4}, (5, 5), 4, (5, 5, 1)),
        ({"name": "patches"}, (4, 4), 128, (8, 8, 1)),
        (
            {"name": "patches", "image_size": 12, "channels": 3, "patch_size": 4},
            (3, 3),
            128,
            (12, 12, 3),
        ),
    ],
)
def test_sizes_and_round_trip_of_the_config(config, grid, codebook_size, image_shape):
    tokenizer = tokenizers.build(config)
    assert (tokenizer.grid, tokenizer.image_shape) == (grid, image_shape)
    assert (tokenizer.num_tokens, tokenizer.codebook_size) == (grid[0] * grid[1], codebook_size)
    written = json.loads(json.dumps(tokenizer.config))
    assert config.items() <= written.items()
    assert tokenizers.build(written).config == tokenizer.config


@pytest.mark.parametrize("name", SMALL)
def test_interface(name):
    tokenizer = tokenizers.build({"name": name})
    params = tokenizer.init(jax.random.key(0))
    shape = (3, *tokenizer.image_shape)
    images = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    tokens = jax.jit(tokenizer.encode)(params, images)
    assert tokens.shape == (3, tokenizer.num_tokens) and tokens.dtype == np.int32
    assert 0 <= tokens.min() and tokens.max() < tokenizer.codebook_size
    decoded = jax.jit(tokenizer.decode)(params, tokens)
    assert decoded.shape == shape and decoded.dtype == np.float32
    assert 0 <= decoded.min() and decoded.max() <= 1
    # What a code looks like is coded as itself.
    np.testing.assert_array_equal(tokenizer.encode(params, decoded), tokens)
    hash(tokenizer)  # it may be a static argument of jit


@pytest.mark.parametrize("name", SMALL)
def test_the_mask_id_decodes_as_the_last_code(name):
    tokenizer = tokenizers.build({"name": name})
    params = tokenizer.init(jax.random.key(0))
    last = np.full((1, tokenizer.num_tokens), tokenizer.codebook_size - 1, np.int32)
    mask_id = last + 1
    np.testing.assert_array_equal(tokenizer.decode(params, mask_id), tokenizer.decode(params, last))


@pytest.mark.parametrize("name", SMALL)
def test_other_sizes_are_refused(name):
    tokenizer = tokenizers.build({"name": name})
    params = tokenizer.init(jax.random.key(0))
    with pytest.raises(ValueError, match=re.escape("images have shape (2, 4, 16, 1)")):
        tokenizer.encode(params, np.zeros((2, 4, 16, 1), np.float32))
    with pytest.raises(ValueError, match=re.escape("tokens have shape (1, 7)")):
        tokenizer.decode(params, np.zeros((1, 7), np.int32))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "gray"}, r"name is 'gray', expected one of \[.*'gray_levels'.*\]"),
        ({}, "name is None"),
        ({"name": "gray_levels", "patch_size": 2}, r"'gray_levels' has no fields \['patch_size'\]"),
        ({"name": "gray_levels", "image_size": -8}, "image_size is -8, expected 0 to"),
        ({"name": "gray_levels", "num_levels": 1}, "expected at least 2"),
        ({"name": "patches", "codebook_size": 0}, "codebook_size .* is 0, expected an int >= 1"),
        ({"name": "patches", "channels": True}, "channels is True"),
        ({"name": "patches", "patch_size": 3}, "expected a divisor of image_size 8"),
    ],
)
def test_bad_configs_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        tokenizers.build(config)


@pytest.mark.parametrize("size", [8.0, "8", None])
def test_sizes_must_be_integers(size):
    # Not through build: while tests run, the annotations there refuse it first.
    with pytest.raises(InputError, match=f"image_size of .* is {size!r}, expected an int"):
        check_sizes("gray_levels", image_size=size)


def test_fingerprint_depends_on_config_and_parameters():
    small, large = (tokenizers.build({"name": "gray_levels", "image_size": n}) for n in (8, 9))
    patches = tokenizers.build({"name": "patches"})
    one, other = (patches.init(jax.random.key(seed)) for seed in (0, 1))
    prints = [
        tokenizers.fingerprint(small, {}),
        tokenizers.fingerprint(large, {}),
        tokenizers.fingerprint(patches, one),
        tokenizers.fingerprint(patches, other),
    ]
    assert len(set(prints)) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in prints)
    again = tokenizers.build({"name": "gray_levels", "num_levels": 17, "image_size": 8})
    assert tokenizers.fingerprint(again, {}) == prints[0]
