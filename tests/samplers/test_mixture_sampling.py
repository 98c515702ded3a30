"""Sampling di4c's student, against the trajectories of the original modules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax import samplers
from dimo_jax.models import joined
from dimo_jax.samplers import maskgit
from dimo_jax.samplers.maskgit import MaskGitSettings
from tests.helpers import di4c

SETTINGS = MaskGitSettings(num_steps=4, guidance=7.0, counts="differences")


@pytest.mark.parametrize(
    ("num_tokens", "schedule", "counts"),
    [
        (256, "arccos", [85, 171]),
        (256, "arccos", [41, 44, 53, 118]),
        (256, "arccos", [20, 21, 22, 22, 25, 28, 36, 82]),
        (256, "arccos", [10, 10, 11, 10, 11, 11, 11, 11, 12, 13, 14, 14, 17, 19, 24, 58]),
        (256, "cosine", [75, 181]),
        (256, "cosine", [19, 56, 83, 98]),
        (256, "cosine", [5, 14, 24, 32, 39, 44, 48, 50]),
        (256, "cosine", [1, 4, 6, 8, 11, 13, 15, 17, 19, 20, 21, 23, 24, 24, 25, 25]),
        (1024, "arccos", [165, 176, 212, 471]),
        (1024, "arccos", [82, 83, 86, 90, 99, 113, 142, 329]),
    ],
)
def test_counts_are_the_published_ones(num_tokens, schedule, counts):
    found = maskgit.unmask_counts(schedule, len(counts), num_tokens, "differences")
    assert found == tuple(counts)


@pytest.mark.parametrize("name", ["sample", "sample_lfg"])
def test_trajectories_are_the_originals(name, monkeypatch):
    """With the numbers that the original drew; what they are drawn from decides the order."""
    recorded = di4c.case(name)
    steps = {k: jnp.asarray(recorded[k]) for k in ("z", "drawn", "gumbel")}
    monkeypatch.setattr(maskgit, "_mixture", lambda keys, i: steps["z"][i, :, 0])
    monkeypatch.setattr(maskgit, "_tokens", lambda keys, i, logits: steps["drawn"][i])
    monkeypatch.setattr(maskgit, "_order_noise", lambda keys, i, shape: steps["gumbel"][i])
    network, params, _ = di4c.network("student")
    if name == "sample_lfg":
        teacher, teacher_params, _ = di4c.network("teacher")
        network = joined.guided(network, teacher)
        params = {"network": params, "guide": teacher_params}
    labels = jnp.asarray(di4c.case("sample")["labels"])
    assert maskgit.unmask_counts("arccos", 4, 16, "differences") == tuple(
        di4c.case("sample")["counts"]
    )
    keys, null = jax.random.split(jax.random.key(0), 3), jnp.full(3, 10)
    fixed, plan = samplers.prepare(SETTINGS, 16)
    decode = jax.jit(maskgit.decode, static_argnums=(0, 5))
    expected, masked = np.full((3, 16), 32), np.ones((3, 16), bool)
    for i, drawn in enumerate(recorded["drawn"]):
        some = plan.replace(num_steps=np.asarray(i + 1, np.int32))
        tokens = np.asarray(decode(network, params, keys, labels, null, fixed, some))
        still = recorded["mask_after"][i].reshape(3, 16) == 1
        expected[masked & ~still] = drawn[masked & ~still]
        masked = still
        np.testing.assert_array_equal(tokens, expected)
    clamped = np.minimum(tokens, 31).reshape(3, 4, 4)
    np.testing.assert_array_equal(clamped, recorded["final_tokens_clamped"])


def test_the_number_is_new_in_every_step_and_shared_by_both_branches():
    found = []
    network, params, _ = di4c.network("student")

    def apply(params, tokens, condition):
        jax.debug.callback(
            lambda x: found.append(np.asarray(x)), condition["mixture"], ordered=True
        )
        return jnp.zeros((*tokens.shape, 33))

    network = dataclasses.replace(network, apply=apply)
    labels, null, key = np.zeros(3, np.int32), np.full(3, 10, np.int32), jax.random.key(5)
    samplers.sample(network, {}, key, labels, null, SETTINGS, batch_size=3, first_index=1)
    jax.effects_barrier()
    seen = np.stack(found).reshape(4, 3, 2)
    np.testing.assert_array_equal(seen[..., 0], seen[..., 1])
    for step, image in np.ndindex(4, 3):
        place = (image + 1, step, 2)
        expected = jax.random.uniform(functools.reduce(jax.random.fold_in, place, key))
        assert seen[step, image, 0] == expected
    assert len(np.unique(seen)) == 12
