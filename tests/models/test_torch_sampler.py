"""Sampling against plain PyTorch loops around the PyTorch network: the same tokens, one for one.

The loops (tests/helpers/torch_sampling.py) take the numbers that our keys give. Tokens may differ
where two candidates lie within float noise of each other, about 1e-5 here: the seed is one where
the smallest gap that was decided by is far above that. Axes: B batch, L tokens, V vocabulary, S
steps.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dimo_jax import models, samplers
from dimo_jax.convert.networks import layouts, maskgit
from dimo_jax.method.dimo import generate
from dimo_jax.samplers import maskgit as confidence_decoding
from dimo_jax.samplers import one_step
from tests.helpers.torch_sampling import torch_decode, torch_one_step
from tests.models.test_maskgit_parity import in_torch, random_state

B, L, CODES, CLASSES, WIDTH = 6, 16, 12, 5, 32
MASK_ID, NULL, V = CODES, CLASSES, CODES + 1
SIZES = {
    "name": "maskgit",
    "num_tokens": L,
    "codebook_size": CODES,
    "num_classes": CLASSES,
    "width": WIDTH,
    "depth": 1,
    "heads": 4,
    "mlp_dim": 64,
    "dropout": 0.1,
    "predict_mask_id": True,
}
SEED = 1
LABELS = np.arange(B, dtype=np.int32) % CLASSES
NETWORK = models.build(SIZES)


def image_keys():
    """[B] the documented key of each image in a set whose key is key(SEED)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(SEED), jnp.arange(B))


def numbers(draw, keys, shape):
    """[B, *shape] random numbers, from a key for each image."""
    return torch.tensor(np.asarray(jax.vmap(lambda key: draw(key, shape))(keys)))


def sharp_state():
    """Weights with which tokens depend on the class and on the grid, not on the noise alone."""
    factors = {"0.fn.mha.": 3, "last_layer.4.": 4}
    state = random_state(SIZES, 5)
    for key, part in itertools.product(state, factors):
        if part in key:
            state[key] = factors[part] * state[key]
    return state


@pytest.fixture(scope="module")
def params():
    like = jax.eval_shape(NETWORK.init, jax.random.key(0))
    tree = layouts.to_params(maskgit.entries(SIZES), sharp_state(), like)
    return jax.tree.map(jnp.asarray, tree)


@pytest.fixture(scope="module")
def network():
    return in_torch(SIZES, sharp_state())


def smallest_gap(scores, rank):
    """Between the rank-th and the next greatest of the last axis, over all others."""
    ordered = scores.sort(-1, descending=True).values
    return (ordered[..., rank - 1] - ordered[..., rank]).min().item()


class Draws:
    """The random numbers that our keys give, and the smallest gap that was decided by.

    Step i of an image takes split(fold_in(key, i)): numbers for the tokens, then for the order. One
    call takes split(key): for the start, then to draw.
    """

    labels, null, mask_id = torch.tensor(LABELS), NULL, MASK_ID

    def __init__(self, settings=None):
        self.settings, self.gap = settings, math.inf

    def decided(self, scores, rank):
        self.gap = min(self.gap, smallest_gap(scores, rank))

    def _pairs(self, i):
        fold = lambda key: key if i == "sample" else jax.random.fold_in(key, i)  # noqa: E731
        return jax.vmap(lambda key: jax.random.split(fold(key)))(image_keys())

    def tokens(self, i, logits):
        which = 1 if i == "sample" else 0
        scores = logits + numbers(jax.random.gumbel, self._pairs(i)[:, which], (L, V))
        self.decided(scores, 1)
        return scores.argmax(-1)

    def gumbel(self, i):
        return numbers(jax.random.gumbel, self._pairs(i)[:, 1], (L,))

    def uniform(self, i):
        return numbers(jax.random.uniform, self._pairs(i)[:, 1], (L,))

    def start(self, name):
        start, noise_keys = generate.initial_state(self._pairs(name)[:, 0], self.settings)
        return torch.tensor(np.asarray(start)), numbers(jax.random.normal, noise_keys, (L, WIDTH))


DECODINGS = {
    "arccos": {},
    "cosine": {"S": 5, "schedule": "cosine", "r_temp": 1.0},
    "linear": {"schedule": "linear"},
    "square": {"S": 3, "schedule": "square"},
    "root": {"schedule": "root"},
    "more steps than tokens": {"S": 20, "schedule": "linear"},
    "guidance": {"w": 3.0},
    "guidance, cosine": {"w": 3.0, "S": 5, "schedule": "cosine", "r_temp": 1.0},
    "warm_up": {"randomize": "warm_up", "w": 3.0},
    "random": {"randomize": "random"},
    "none": {"randomize": "none", "w": 3.0, "sm_temp": 1.3},
}


def decode(params, S, schedule, randomize, w=0.0, sm_temp=1.0, r_temp=4.5):
    settings = confidence_decoding.MaskGitSettings(
        num_steps=S,
        schedule=schedule,
        randomize=randomize,
        choice_temperature=r_temp,
        temperature=1 / sm_temp,
        guidance=1 + w,
    )
    null, key = np.full_like(LABELS, NULL), jax.random.key(SEED)
    return samplers.sample(NETWORK, params, key, LABELS, null, settings, B)


@pytest.mark.parametrize("name", DECODINGS)
def test_confidence_decoding_is_the_pytorch_loop(name, params, network):
    options = {"S": 8, "schedule": "arccos", "randomize": "linear", **DECODINGS[name]}
    draws = Draws()
    expected = torch_decode(network, draws, **options)
    print(f"\n{name}: smallest gap {draws.gap:.1e}")
    assert draws.gap > 1e-4, "two candidates almost tie: take another seed"
    np.testing.assert_array_equal(decode(params, **options), expected)


ONE_STEP = {
    "released": {},
    "other start, sharp": {"ratio": [0.2, 0.9], "sigma": 0.6, "temperature": 0.3},
    "no noise, truncated": {"sigma": 0.0, "temperature": 7.0, "top_k": 5, "top_p": 0.7},
}


@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_sampling_is_the_pytorch_call(name, params, network):
    sampler = {"ratio": 0.6, "sigma": 0.1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    settings = one_step.settings_from({**sampler, **ONE_STEP[name]}, NETWORK)
    draws, fields = Draws(settings), ("sigma", "temperature", "top_k", "top_p")
    expected = torch_one_step(network, draws, *(getattr(settings, name) for name in fields))
    print(f"\n{name}: smallest gap {draws.gap:.1e}")
    assert draws.gap > 1e-4, "two candidates almost tie: take another seed"
    found = samplers.sample(NETWORK, params, jax.random.key(SEED), LABELS, None, settings, B)
    np.testing.assert_array_equal(found, expected)
