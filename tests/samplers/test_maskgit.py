"""MaskGit decoding against its published counts and against a second writing of it in NumPy.

Axes: B batch, L tokens, V vocabulary, S steps.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from dimo_jax import models, samplers
from dimo_jax.common.errors import InputError
from dimo_jax.models import Network
from dimo_jax.samplers import maskgit
from dimo_jax.samplers.maskgit import MaskGitSettings
from dimo_jax.samplers.one_step import GeneratorSettings
from tests.helpers import mostly_slow

B, L, CODES, CLASSES = 5, 12, 6, 3
MASK_ID, NULL = CODES, CLASSES
LABELS = np.arange(B) % CLASSES

GOLDEN_COUNTS = [
    ("arccos", 256, [1, 18, 26, 32, 38, 43, 48, 50]),
    ("arccos", 256, [1, 9, 13, 17, 19, 22, 24, 26, 28, 30, 32, 35]),
    ("arccos", 256, [1, 6, 9, 10, 12, 14, 15, 16, 18, 19, 20, 21, 22, 23, 25, 25]),
    ("cosine", 256, [1, 12, 22, 32, 41, 47, 51, 50]),
    ("linear", 256, [1, 9, 18, 27, 37, 46, 55, 63]),
    ("square", 256, [1, 13, 24, 34, 41, 46, 49, 48]),
    ("root", 256, [1, 7, 14, 22, 30, 41, 55, 86]),
    ("arccos", 1024, [1, 26, 38, 46, 54, 61, 67, 73, 79, 84, 89, 94, 99, 104, 109]),
]


@pytest.mark.parametrize(("schedule", "num_tokens", "counts"), GOLDEN_COUNTS)
def test_counts_are_the_published_ones(schedule, num_tokens, counts):
    assert maskgit.unmask_counts(schedule, len(counts), num_tokens) == tuple(counts)


@pytest.mark.parametrize("schedule", maskgit.UNMASK_SCHEDULES)
def test_counts_write_every_token_once_whatever_the_number_of_steps(schedule):
    for num_steps, num_tokens in itertools.product((1, 2, 3, 15, 16, 40), (1, 4, 16, 64)):
        counts = maskgit.unmask_counts(schedule, num_steps, num_tokens)
        assert sum(counts) == num_tokens and min(counts) >= 1 and len(counts) <= num_steps
    assert maskgit.unmask_counts(schedule, 1, 64) == (64,)


def network_weights():
    rng = np.random.default_rng(0)
    shapes = {
        "place": (L, CODES + 1),
        "label": (CLASSES + 1, CODES + 1),
        "seen": (CODES + 1, L, CODES + 1),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def fake_apply(params, tokens, condition):
    """Logits that depend on the place, the label and every token of the grid."""
    seen = params["seen"][tokens].mean(axis=1)  # [B, L, V]
    return 2 * (params["place"][None] + params["label"][condition][:, None] + 2 * seen)


def network(apply=fake_apply):
    return Network({}, L, CODES, CLASSES, network_weights, apply)


def decode(settings, labels, apply=fake_apply):
    """Not compiled as a whole: XLA would take seconds for each settings, the loop takes none."""
    params = jax.tree.map(jnp.asarray, network_weights())
    keys = jax.random.split(jax.random.key(0), len(labels))
    labels = jnp.asarray(labels, jnp.int32)
    with jax.disable_jit():
        tokens = maskgit.decode(
            network(apply), params, keys, labels, jnp.full_like(labels, NULL), settings
        )
    return np.asarray(tokens)


def numpy_counts(schedule, S):
    r = np.linspace(1, 0, S)
    v = {
        "root": 1 - r**0.5,
        "linear": 1 - r,
        "square": 1 - r * r,
        "cosine": np.cos(np.pi * r / 2),
        "arccos": np.arccos(r) / (np.pi / 2),
    }[schedule]
    counts = np.round(v / v.sum() * L)
    counts[counts == 0] = 1
    counts[-1] += L - counts.sum()
    return counts.astype(int)


def keep(probs, settings):
    """Top-k, then top-p, one position at a time."""
    order = np.argsort(-probs, kind="stable")
    if settings.top_k:
        order = order[: settings.top_k]
    mass = probs[order] / probs[order].sum()
    size = 1 + np.searchsorted(np.cumsum(mass), settings.top_p) if settings.top_p < 1 else None
    return order[:size]


def numpy_decode(settings, labels, keys=None):
    """The loop of the original, image by image, with explicit random numbers from JAX's keys."""
    params = network_weights()
    S, w = settings.num_steps, settings.guidance - 1
    keys = jax.random.split(jax.random.key(0), len(labels)) if keys is None else keys
    images = []
    for image_key, label in zip(keys, labels, strict=True):
        grid, masked = np.full(L, MASK_ID), np.ones(L, bool)
        for i, count in enumerate(numpy_counts(settings.schedule, S)):
            key_tokens, key_order = jax.random.split(jax.random.fold_in(image_key, i))
            w_i = w * i / (S - 1) if settings.guidance_schedule == "linear" else w
            c, u = (
                np.array(fake_apply(params, grid[None], np.array([x])))[0] for x in (label, NULL)
            )
            logits = ((1 + w_i) * c.astype(np.float64) - w_i * u) / settings.temperature
            probs = scipy.special.softmax(logits, axis=-1)
            for row in probs:
                kept = keep(row, settings)
                row[np.setdiff1d(np.arange(CODES + 1), kept)] = 0
                row /= row.sum()
            gumbel = np.asarray(jax.random.gumbel(key_tokens, (L, CODES + 1)))
            with np.errstate(divide="ignore"):
                drawn = np.argmax(np.log(probs) + gumbel, axis=-1)
            confidence = probs[np.arange(L), drawn]
            if settings.randomize == "linear":
                noise = np.asarray(jax.random.gumbel(key_order, (L,)))
                share = settings.choice_temperature * (1 - i / (S - 1))
                confidence = np.log(confidence) + share * noise
            elif settings.randomize == "random" or (settings.randomize == "warm_up" and i < 2):
                confidence = np.asarray(jax.random.uniform(key_order, (L,)))
            best = sorted(np.flatnonzero(masked), key=lambda n: -confidence[n])[:count]
            grid[best], masked[best] = drawn[best], False
        assert not masked.any()
        images.append(grid)
    return np.stack(images)


BASE = MaskGitSettings(num_steps=4)
OPTIONS = {
    "num_steps": {"num_steps": 7},
    "schedule": {"schedule": "root"},
    "warm_up": {"randomize": "warm_up"},
    "random": {"randomize": "random"},
    "none": {"randomize": "none"},
    "choice_temperature": {"choice_temperature": 0.3},
    "temperature": {"temperature": 0.25},
    "guidance": {"guidance": 3.5},
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.5},
}


@pytest.mark.parametrize("option", ["everything", *mostly_slow(["base", *OPTIONS], 0)])
def test_decoding_is_the_numpy_loop(option):
    changes = {
        "base": {},
        "everything": {
            "num_steps": 5,
            "schedule": "cosine",
            "choice_temperature": 1.0,
            "temperature": 1.5,
            "guidance": 2.0,
            "guidance_schedule": "constant",
            "top_k": 4,
            "top_p": 0.8,
        },
        **OPTIONS,
    }[option]
    settings = dataclasses.replace(BASE, **changes)
    tokens = decode(settings, LABELS)
    np.testing.assert_array_equal(tokens, numpy_decode(settings, LABELS))
    if changes:
        assert (tokens != decode(BASE, LABELS)).any()


def test_guidance_schedule_is_a_ramp_from_one_or_constant():
    ramp = dataclasses.replace(BASE, guidance=4.0)
    constant = dataclasses.replace(ramp, guidance_schedule="constant")
    np.testing.assert_array_equal(decode(constant, LABELS), numpy_decode(constant, LABELS))
    assert (decode(constant, LABELS) != decode(ramp, LABELS)).any()


@pytest.mark.parametrize(("scale", "rows"), [(1.0, B), (2.0, 2 * B)])
def test_one_network_call_a_step_and_twice_the_batch_only_with_guidance(scale, rows):
    calls = []

    def apply(params, tokens, condition):
        calls.append((tokens.shape[0], condition.shape[0]))
        return fake_apply(params, tokens, condition)

    decode(dataclasses.replace(BASE, guidance=scale), LABELS, apply=apply)
    assert calls == [(rows, rows)] * BASE.num_steps


def test_one_step_samples_every_position_with_full_guidance():
    tokens = decode(MaskGitSettings(num_steps=1, guidance=3.0), LABELS)
    start, params = np.full((B, L), MASK_ID), network_weights()
    c, u = (fake_apply(params, start, np.array(x)) for x in (LABELS, [NULL] * B))
    for i, image_key in enumerate(jax.random.split(jax.random.key(0), B)):
        key = jax.random.split(jax.random.fold_in(image_key, 0))[0]
        logits = (u + 3 * (c - u))[i] + np.asarray(jax.random.gumbel(key, (L, CODES + 1)))
        np.testing.assert_array_equal(tokens[i], np.argmax(logits, axis=-1))


def test_more_steps_than_tokens_write_one_at_a_time_and_stop():
    calls = []

    def apply(params, tokens, condition):
        calls.append(np.asarray(tokens))
        # [MASK] is never drawn, so that what is masked can be counted in the grid.
        return fake_apply(params, tokens, condition).at[..., MASK_ID].set(-1e9)

    decode(MaskGitSettings(num_steps=40, schedule="linear"), LABELS, apply=apply)
    remaining = [(grid == MASK_ID).sum(axis=1).tolist() for grid in calls]
    assert remaining == [[n] * B for n in range(L, 0, -1)]


def test_ties_write_exactly_the_count_by_the_lower_index():
    confidence = jnp.asarray([[1.0, 2.0, 2.0, 2.0, 2.0, 0.0]])
    mask = jnp.asarray([[True, False, True, True, True, True]])
    chosen = maskgit.most_confident(confidence, mask, 2)
    assert np.asarray(chosen).tolist() == [[False, False, True, True, False, False]]
    assert np.asarray(maskgit.most_confident(confidence, mask, 9)).tolist() == mask.tolist()


def test_a_written_mask_id_stays():
    """The first place is the surest in both steps, and draws [MASK] in the first, code 0 after."""
    drawn = iter([MASK_ID, 0])

    def apply(params, tokens, condition):
        logits = jnp.zeros((len(tokens), L, CODES + 1)).at[:, :, next(drawn)].set(20.0)
        return logits.at[:, 0].multiply(5.0)

    tokens = decode(
        MaskGitSettings(num_steps=2, schedule="linear", randomize="none"), LABELS, apply
    )
    assert tokens.tolist() == [[MASK_ID] + [0] * (L - 1)] * B


def test_steps_of_one_token_give_the_joint_that_independent_tokens_cannot():
    """With exact conditionals, in an order that ignores the values, decoding is exact sampling."""
    joint = np.diag([0.4, 0.3, 0.2, 0.1]) * 0.96 + 0.04 / 16
    network = models.build({"name": "exact_posterior", "num_tokens": 2, "codebook_size": 4})
    labels = np.zeros(4000, np.int32)
    tokens = samplers.sample(
        network,
        {"log_joint": jnp.asarray(np.log(joint), jnp.float32)},
        jax.random.key(0),
        labels,
        labels,
        MaskGitSettings(num_steps=2, randomize="random"),
        batch_size=4000,
    )
    found = np.histogram2d(*tokens.T, bins=np.arange(5))[0] / len(tokens)
    independent = np.outer(joint.sum(1), joint.sum(0))
    assert 0.5 * np.abs(independent - joint).sum() > 0.5
    assert 0.5 * np.abs(found - joint).sum() < 0.03


def test_a_compiled_sample_in_batches_is_the_numpy_loop_on_the_documented_keys():
    labels = np.arange(7, dtype=np.int32) % CLASSES
    settings = dataclasses.replace(BASE, guidance=2.0)
    net = network()

    def sample(labels, first_index=0, seed=1):
        return samplers.sample(
            net,
            jax.tree.map(jnp.asarray, network_weights()),
            jax.random.key(seed),
            labels,
            np.full_like(labels, NULL),
            settings,
            3,
            first_index,
        )

    whole = sample(labels)
    keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(7)]
    np.testing.assert_array_equal(whole, numpy_decode(settings, labels, keys))
    np.testing.assert_array_equal(sample(labels[4:], first_index=4), whole[4:])
    assert (sample(labels, seed=2) != whole).any()


def test_a_sweep_over_steps_noise_and_guidance_traces_the_network_once():
    traces = []

    def apply(params, tokens, condition):
        traces.append(tokens.shape)
        return fake_apply(params, tokens, condition)

    net = network(apply)

    labels = np.zeros(3, np.int32)
    weights = jax.tree.map(jnp.asarray, network_weights())
    for change in (
        {"guidance": 2.0},
        {"guidance": 3.0, "num_steps": 7},
        {"guidance": 1.5, "choice_temperature": 9.0, "schedule": "cosine"},
    ):
        settings = dataclasses.replace(BASE, **change)
        key, null = jax.random.key(0), np.full_like(labels, NULL)
        found = samplers.sample(net, weights, key, labels, null, settings, 3)
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        np.testing.assert_array_equal(found, numpy_decode(settings, labels, keys))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("schedule", "sine"),
        ("randomize", "gumbel"),
        ("guidance_schedule", "cosine"),
        ("choice_temperature", -1.0),
        ("temperature", 0.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
    ],
)
def test_settings_out_of_range_name_the_field(field, value):
    with pytest.raises(InputError, match=f"^{field} is .*must be"):
        dataclasses.replace(BASE, **{field: value})


def test_stopped_early_it_has_written_what_the_schedule_says_and_goes_on_from_there():
    params, labels = network_weights(), LABELS.astype(np.int32)
    settings = MaskGitSettings(num_steps=5, guidance=1.5)
    codes_alone = network(lambda *given: fake_apply(*given)[..., :CODES])

    def stopped(until):
        return samplers.sample(
            codes_alone, params, jax.random.key(1), labels, labels * 0 + NULL, settings, B, 0, until
        )

    final, before = stopped(None), np.full((B, L), MASK_ID)
    for until, written in enumerate(np.cumsum(maskgit.unmask_counts("arccos", 5, L)), start=1):
        found = stopped(until)
        assert ((found != MASK_ID).sum(axis=1) == written).all()
        np.testing.assert_array_equal(found[before != MASK_ID], before[before != MASK_ID])
        before = found
    np.testing.assert_array_equal(before, final)
    np.testing.assert_array_equal(stopped(9), final)
    one_step = GeneratorSettings(L, CODES, MASK_ID, 0.6, 0.6, sigma=0.0, temperature=1.0)
    with pytest.raises(InputError, match="'one_step' cannot stop after 1 steps"):
        samplers.sample(network(), params, jax.random.key(1), labels, None, one_step, B, until=1)
