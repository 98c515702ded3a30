"""Sampling against plain PyTorch loops around the PyTorch network: the same tokens, one for one.

The loops are written from the original's description and take the numbers that our keys give.
Tokens may differ where two candidates lie within float noise of each other, about 1e-5 here. Each
loop returns the smallest gap that it decided by, and the seed is one where it is far above that.
Axes: B batch, L tokens, V vocabulary, S steps.
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


def adap_sche(schedule, S):
    """How many tokens each of S steps writes."""
    r = torch.linspace(1, 0, S)
    v = {
        "root": 1 - r.sqrt(),
        "linear": 1 - r,
        "square": 1 - r**2,
        "cosine": torch.cos(r * math.pi * 0.5),
        "arccos": torch.arccos(r) / (math.pi * 0.5),
    }[schedule]
    counts = (v / v.sum() * L).round()
    counts[counts == 0] = 1
    counts[-1] += L - counts.sum()
    return counts.int().tolist()


@torch.no_grad()
def torch_decode(network, S, schedule, randomize, w=0.0, sm_temp=1.0, r_temp=4.5):
    """(tokens, smallest gap) of the original's loop, in its own terms: guidance 1 + w.

    Step i of an image takes split(fold_in(key, i)): numbers for the tokens, then for the order.
    """
    labels = torch.tensor(LABELS)
    grid, masked, gap = torch.full((B, L), MASK_ID), torch.ones(B, L, dtype=torch.bool), math.inf
    for i, count in enumerate(adap_sche(schedule, S)):
        remaining = int(masked[0].sum())
        if remaining == 0:
            break
        count = min(count, remaining)
        at_step = lambda key, i=i: jax.random.split(jax.random.fold_in(key, i))  # noqa: E731
        pairs = jax.vmap(at_step)(image_keys())
        logits = network(grid, labels)
        if w:
            w_i = w * i / (S - 1)
            logits = (1 + w_i) * logits - w_i * network(grid, torch.full_like(labels, NULL))
        prob = (logits * sm_temp).softmax(-1)
        scores = prob.log() + numbers(jax.random.gumbel, pairs[:, 0], (L, V))
        drawn = scores.argmax(-1)
        conf = prob.gather(-1, drawn[..., None])[..., 0]
        shuffled = randomize == "random" or (randomize == "warm_up" and i < 2)
        if randomize == "linear":
            noise = numbers(jax.random.gumbel, pairs[:, 1], (L,))
            conf = conf.log() + r_temp * noise * (1 - i / (S - 1))
        elif shuffled:
            conf = numbers(jax.random.uniform, pairs[:, 1], (L,))
        conf = torch.where(masked, conf, -math.inf)
        threshold = conf.sort(-1, descending=True).values[:, count - 1 : count]
        gap = min(gap, smallest_gap(scores, 1))
        if count < remaining and not shuffled:  # shuffled, both compare the very same numbers
            gap = min(gap, smallest_gap(conf, count))
        write = conf >= threshold
        grid, masked = torch.where(write, drawn, grid), masked & ~write
    assert not masked.any()
    return grid.numpy(), gap


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
    expected, gap = torch_decode(network, **options)
    print(f"\n{name}: smallest gap {gap:.1e}")
    assert gap > 1e-4, "two candidates almost tie: take another seed"
    np.testing.assert_array_equal(decode(params, **options), expected)


def kept(logits, top_k, top_p):
    """-inf outside the top_k largest, then outside the fewest that reach the mass top_p."""
    order = logits.argsort(-1, descending=True)
    mass = logits.gather(-1, order)
    if top_k:
        mass[..., top_k:] = -math.inf
    mass = mass.softmax(-1)
    keep = (mass.cumsum(-1) - mass < top_p) & (mass > 0)
    return logits.masked_fill(~torch.zeros_like(keep).scatter(-1, order, keep), -math.inf)


@torch.no_grad()
def torch_one_step(network, settings):
    """(tokens, smallest gap) of one call: an image's key gives one for the start, one to draw."""
    pairs = jax.vmap(jax.random.split)(image_keys())
    start, noise_keys = generate.initial_state(pairs[:, 0], settings)
    noise, sigma = numbers(jax.random.normal, noise_keys, (L, WIDTH)), settings.sigma
    logits = network(
        torch.tensor(np.asarray(start)),
        torch.tensor(LABELS),
        perturb=lambda e: math.sqrt(1 - sigma**2) * e + sigma * noise,
    )
    logits = kept(logits / settings.temperature, settings.top_k, settings.top_p)
    scores = logits + numbers(jax.random.gumbel, pairs[:, 1], (L, V))
    return scores.argmax(-1).numpy(), smallest_gap(scores, 1)


ONE_STEP = {
    "released": {},
    "other start, sharp": {"ratio": [0.2, 0.9], "sigma": 0.6, "temperature": 0.3},
    "no noise, truncated": {"sigma": 0.0, "temperature": 7.0, "top_k": 5, "top_p": 0.7},
}


@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_sampling_is_the_pytorch_call(name, params, network):
    sampler = {"ratio": 0.6, "sigma": 0.1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    settings = one_step.settings_from({**sampler, **ONE_STEP[name]}, NETWORK)
    expected, gap = torch_one_step(network, settings)
    print(f"\n{name}: smallest gap {gap:.1e}")
    assert gap > 1e-4, "two candidates almost tie: take another seed"
    found = samplers.sample(NETWORK, params, jax.random.key(SEED), LABELS, None, settings, B)
    np.testing.assert_array_equal(found, expected)
