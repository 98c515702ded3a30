import sys

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from dimo_jax.common.errors import InputError
from dimo_jax.tokenizers import patches


@pytest.fixture(scope="module")
def images():
    return (load_digits().images / 16).astype(np.float32)[..., None]


def cut(images, patch_size):
    """The patches by plain loops: [B, L, patch_size * patch_size * channels]."""
    starts = range(0, images.shape[1], patch_size)
    return np.array(
        [
            [
                image[row : row + patch_size, column : column + patch_size].ravel()
                for row in starts
                for column in starts
            ]
            for image in images
        ]
    )


@pytest.mark.parametrize(
    ("image_size", "channels", "patch_size"), [(8, 1, 2), (6, 3, 3), (4, 2, 1)]
)
def test_encode_is_the_nearest_code_and_decode_pastes_it(image_size, channels, patch_size):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(5, image_size, image_size, channels)).astype(np.float32)
    codebook = rng.uniform(size=(20, patch_size, patch_size * channels)).astype(np.float32)
    params = {"codebook": jnp.asarray(codebook)}
    tokenizer = patches.build(
        image_size=image_size, channels=channels, patch_size=patch_size, codebook_size=20
    )
    flat = codebook.reshape(20, -1)
    wanted = cdist(cut(images, patch_size).reshape(-1, flat.shape[1]), flat).argmin(1)
    tokens = tokenizer.encode(params, images)
    np.testing.assert_array_equal(np.ravel(tokens), wanted)
    decoded = np.asarray(tokenizer.decode(params, tokens))
    np.testing.assert_array_equal(cut(decoded, patch_size), flat[np.asarray(tokens)])


def test_ties_go_to_the_lowest_index():
    tokenizer = patches.build(image_size=2, codebook_size=5)
    values = np.array([0.0, 1.0, 0.25, 0.75, 0.25], np.float32)
    params = {"codebook": jnp.asarray(np.tile(values[:, None, None], (1, 2, 2)))}
    images = np.array([0.5, 0.25], np.float32)[:, None, None, None] * np.ones((2, 2, 2, 1))
    # 0.5 lies between codes 2, 3 and 4; 0.25 is codes 2 and 4.
    np.testing.assert_array_equal(tokenizer.encode(params, images.astype(np.float32)), [[2], [2]])


def test_decode_clips():
    tokenizer = patches.build(image_size=2, codebook_size=1)
    params = {"codebook": jnp.array([[[-0.1, 0.5], [0.9, 1.2]]])}
    decoded = tokenizer.decode(params, np.zeros((1, 1), np.int32))
    np.testing.assert_array_equal(decoded[0, ..., 0], np.float32([[0.0, 0.5], [0.9, 1.0]]))


def test_fit_learns_the_digits(images):
    params = patches.fit(images[:1400], 128, 0)
    assert params["codebook"].shape == (128, 2, 2) and params["codebook"].dtype == jnp.float32
    tokenizer = patches.build()
    tokens = tokenizer.encode(params, images)
    error = np.mean(np.square(tokenizer.decode(params, tokens) - images))
    # k-means is at a local minimum: no worse than a run of a peer with its own starting points.
    points = cut(images[:1400], 2).reshape(-1, 4)
    peer = KMeans(128, n_init=1, random_state=1).fit(points)
    held_out = cut(images, 2).reshape(-1, 4)
    wanted = np.mean(np.square(peer.cluster_centers_[peer.predict(held_out)] - held_out))
    assert error < 1.05 * wanted
    assert len(np.unique(tokens)) == 128


def test_fit_is_a_function_of_images_and_seed(images):
    first, again, other = (patches.fit(images[:300], 16, seed)["codebook"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_fit_with_as_many_codes_as_patches_is_lossless():
    images = np.random.default_rng(0).uniform(size=(2, 6, 6, 3)).astype(np.float32)
    params = patches.fit(images, 8, 0, patch_size=3)
    tokenizer = patches.build(image_size=6, channels=3, patch_size=3, codebook_size=8)
    decoded = tokenizer.decode(params, tokenizer.encode(params, images))
    np.testing.assert_allclose(decoded, images, atol=1e-6)


def test_too_many_codes_are_refused():
    images = np.zeros((3, 4, 4, 1), np.float32)
    images[0, 0, 0] = 1.0
    with pytest.raises(InputError, match="codebook_size is 3, expected at most 2"):
        patches.fit(images, 3, 0)


def test_a_missing_scikit_learn_names_the_extra(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(InputError, match=r"pip install -e \"\.\[digits\]\""):
        patches.fit(images[:10], 4, 0)


def test_of_many_patches_equal_ones_count_once(images, monkeypatch):
    some = np.asarray(images[:40])
    monkeypatch.setattr(patches, "MANY_PATCHES", 0)
    once, often = (patches.fit(x, 16, 0)["codebook"] for x in (some, np.repeat(some, 5, axis=0)))
    np.testing.assert_array_equal(once, often)
