"""Meissonic's decoding against aMUSEd's scheduler in diffusers, on the same random numbers.

Axes: B batch, L tokens, V codes, P numbers of a prompt.
"""

from tests.helpers import torch_peers  # noqa: F401

# isort: split

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_amused

from dimo_jax import samplers
from dimo_jax.common.errors import InputError
from dimo_jax.method.masked import guidance
from dimo_jax.models import Network
from dimo_jax.samplers import meissonic
from dimo_jax.samplers.meissonic import MeissonicSettings

B, L, CODES, P = 3, 9, 6, 2
MASK_ID = CODES
BASE = MeissonicSettings(num_steps=5, guidance=3.0)


def network_weights():
    rng = np.random.default_rng(0)
    shapes = {
        "place": (L, CODES),
        "pooled": (P, CODES),
        "seen": (CODES + 1, L, CODES),
        "time": (CODES,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def fake_apply(params, tokens, condition):
    """Logits that depend on the place, the prompt, the time and every token."""
    seen = params["seen"][tokens].mean(axis=1)
    vector = condition["pooled"] @ params["pooled"]
    vector = vector + 0.2 * condition["timestep"][:, None] * params["time"][None]
    return params["place"][None] + vector[:, None] + 2 * seen


def conditions():
    numbers = np.random.default_rng(1).normal(size=(2, B, P)).astype(np.float32)
    return [{"pooled": jnp.asarray(x)} for x in numbers]


def keys():
    return jax.random.split(jax.random.key(0), B)


def network(apply=fake_apply):
    return Network({}, L, CODES, 0, network_weights, apply)


def decode(settings, apply=fake_apply):
    """Not compiled as a whole: XLA would take seconds for each settings, the loop takes none."""
    params = jax.tree.map(jnp.asarray, network_weights())
    with jax.disable_jit():
        return np.asarray(meissonic.decode(network(apply), params, keys(), *conditions(), settings))


def reference(settings, monkeypatch):
    """The pipeline's loop around aMUSEd's scheduler, whose numbers are drawn by our keys."""
    scheduler = scheduling_amused.AmusedScheduler(mask_token_id=MASK_ID)
    scheduler.set_timesteps(
        settings.num_steps, (settings.choice_temperature, settings.last_choice_temperature)
    )
    params, (condition, null) = network_weights(), conditions()
    side = int(L**0.5)
    sample = torch.full((B, side, side), MASK_ID)
    grids = []
    for i, timestep in enumerate(scheduler.timesteps):
        pairs = [jax.random.split(jax.random.fold_in(key, i)) for key in keys()]
        draws = np.stack([jax.random.gumbel(pair[0], (L, CODES)) for pair in pairs])
        order = torch.tensor(np.stack([jax.random.gumbel(pair[1], (L,)) for pair in pairs]))

        def multinomial(probs, num, generator=None, draws=draws):
            return (probs.log() + torch.tensor(draws).reshape(probs.shape)).argmax(-1)[:, None]

        monkeypatch.setattr(torch, "multinomial", multinomial)
        monkeypatch.setattr(
            scheduling_amused, "gumbel_noise", lambda t, generator=None, order=order: order
        )
        # Unconditional first, as the pipeline has them.
        pooled = np.concatenate([null["pooled"], condition["pooled"]])
        time = np.full(2 * B, float(timestep), np.float32)
        tokens = np.tile(sample.reshape(B, L).numpy(), (2, 1))
        logits = fake_apply(params, tokens, {"pooled": pooled, "timestep": time})
        unconditional, conditional = np.split(logits, 2)
        logits = unconditional + settings.guidance * (conditional - unconditional)
        grid = torch.tensor(logits).mT.reshape(B, CODES, side, side)
        sample = scheduler.step(grid, timestep, sample).prev_sample
        grids.append(sample.reshape(B, L).numpy())
    return grids


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_steps": 1},
        {"num_steps": L},  # settles the last tokens one by one
        {"num_steps": 3, "choice_temperature": 0.5, "last_choice_temperature": 2.0},
        {"guidance": 1.0},
    ],
)
def test_every_step_is_that_of_the_scheduler(change, monkeypatch):
    settings = dataclasses.replace(BASE, **change)
    seen = []

    def apply(params, tokens, condition):
        seen.append(np.asarray(tokens))
        return fake_apply(params, tokens, condition)

    found = decode(settings, apply)
    expected = reference(settings, monkeypatch)
    np.testing.assert_array_equal(found, expected[-1])
    assert len(seen) == settings.num_steps and np.all(seen[0] == MASK_ID)
    guided = settings.guidance != 1
    for tokens, before in zip(seen[1:], expected[:-1], strict=True):
        # Both branches of an image stand side by side.
        np.testing.assert_array_equal(tokens[:: 1 + guided], before)
        assert 0 < (before == MASK_ID).sum() < B * L
    assert found.max() < MASK_ID and len(np.unique(found)) > 3


def test_the_network_counts_the_steps_that_follow():
    times = []

    def apply(params, tokens, condition):
        times.append(float(condition["timestep"][0]))
        return fake_apply(params, tokens, condition)

    decode(BASE, apply)
    assert times == [4.0, 3.0, 2.0, 1.0, 0.0]


def test_sampling_in_batches_is_decoding_and_compiles_once():
    params, (condition, null) = network_weights(), conditions()
    traced = []

    def apply(params, tokens, condition):
        traced.append(tokens.shape)
        return fake_apply(params, tokens, condition)

    net = network(apply)

    def sample(settings, batch_size):
        return samplers.sample(
            net, params, jax.random.key(3), condition, null, settings, batch_size
        )

    together = sample(BASE, B)
    for other in (dataclasses.replace(BASE, num_steps=4, guidance=2.0), BASE):
        again = sample(other, B)
    assert traced == [(2 * B, L)]
    np.testing.assert_array_equal(again, together)
    np.testing.assert_array_equal(sample(BASE, 2), together)


def test_the_guidance_is_that_of_the_negative_prompt():
    params = jax.tree.map(jnp.asarray, network_weights())
    tokens = jnp.zeros((B, L), jnp.int32)
    timed = [{**c, "timestep": jnp.zeros(B)} for c in conditions()]
    pair = guidance.both_branches(fake_apply, params, tokens, *timed)
    for found, condition in zip(pair, timed, strict=True):
        np.testing.assert_allclose(found, fake_apply(params, tokens, condition), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0; it must be at least 1"),
        ({"choice_temperature": -1.0}, "choice_temperature is -1.0"),
        ({"last_choice_temperature": -1.0}, "last_choice_temperature is -1.0"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(BASE, **change)


def test_more_steps_than_tokens_are_refused():
    with pytest.raises(InputError, match="num_steps is 10, but there are 9 tokens"):
        meissonic.make_plan(dataclasses.replace(BASE, num_steps=10), L)
