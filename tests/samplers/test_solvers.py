"""Solvers of the absorbing process against their formulas, a NumPy writing and a known joint.

Axes: B batch, L tokens, V vocabulary, K codes, S steps.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from dimo_jax import models, samplers
from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.report import joint_report
from dimo_jax.models import Network
from dimo_jax.samplers import solvers
from dimo_jax.samplers.solvers import SolverSettings
from tests.helpers import mostly_slow

B, L, CODES, CLASSES = 3, 8, 5, 3
MASK_ID, NULL = CODES, CLASSES
LABELS = np.arange(B) % CLASSES
BASE = SolverSettings(num_steps=4)


def test_rates_are_those_of_the_absorbing_process():
    logits = np.random.default_rng(0).normal(size=(1, 3, 5)).astype(np.float32)
    tokens, time = np.array([[4, 1, 4]], np.int32), 0.3
    # By the paper's own functions, delta and all; the fifth logit is that of [MASK].
    delta = 1e-5
    total_noise = -np.log(1 - (1 - delta) * time)
    noise = (1 - delta) / (1 - (1 - delta) * time)
    expected = noise / np.expm1(total_noise) * scipy.special.softmax(2 * logits, -1)[..., :4]
    expected[:, 1] = 0
    found = solvers.rates(jnp.asarray(logits), jnp.asarray(tokens), time, 4, temperature=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Two codes, equally probable, at half the time: one change a unit of time each.
    even = solvers.rates(jnp.zeros((1, 1, 2)), jnp.full((1, 1), 2), 0.5, 2)
    np.testing.assert_allclose(even, [[[1.0, 1.0]]])


@pytest.mark.parametrize(
    ("theta", "rk2", "alphas"),
    [
        (1 / 2, (0, 1), (2, 1)),
        (1 / 3, (-1 / 2, 3 / 2), (9 / 4, 5 / 4)),
        (2 / 3, (1 / 4, 3 / 4), (9 / 4, 5 / 4)),
    ],
)
def test_mixing_weights_by_hand_and_folded(theta, rk2, alphas):
    np.testing.assert_allclose(solvers.mixing_weights("theta_rk2", theta), rk2, atol=1e-12)
    found = solvers.mixing_weights("theta_trapezoidal", theta)
    np.testing.assert_allclose(found, (-alphas[1], alphas[0]))
    # The released code leaps the whole step with these instead.
    folded = (-((1 - theta) ** 2 + theta**2) / (2 * theta), 1 / (2 * theta))
    np.testing.assert_allclose((1 - theta) * np.array(found), folded)


@pytest.mark.parametrize(
    ("method", "theta", "expected"),
    [
        # 2 inner - start; 3/2 inner - 1/2 start; inner.
        ("theta_trapezoidal", 1 / 2, [0.0, 1.2, 0.0]),
        ("theta_rk2", 1 / 3, [0.1, 0.9, 0.0]),
        ("theta_rk2", 1 / 2, [0.4, 0.6, 0.0]),
    ],
)
def test_mixed_rates_by_hand_are_never_negative(method, theta, expected):
    start, inner = jnp.asarray([1.0, 0.0, 0.7]), jnp.asarray([0.4, 0.6, 0.0])
    found = solvers.mixed_rates(method, theta, start, inner)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_leap_changes_a_position_when_exactly_one_event_falls_into_it():
    rates, duration, num = np.array([0.4, 0.0, 3.0]), 0.7, 100_000
    tokens = jnp.full((1, num), 3, jnp.int32)
    leap = jax.jit(solvers.tau_leap, static_argnames="mask_id")
    rate = jnp.broadcast_to(jnp.asarray(rates, jnp.float32), (1, num, 3))
    found = leap(jax.random.split(jax.random.key(0), 1), tokens, rate, duration, mask_id=3)
    # The process itself: a Poisson count of each code, and all but a single event rejected.
    events = np.random.default_rng(0).poisson(duration * rates, (num, 3))
    single = events.sum(-1) == 1
    expected = np.where(single, events.argmax(-1), 3)
    share = np.bincount(np.asarray(found)[0], minlength=4) / num
    np.testing.assert_allclose(share, np.bincount(expected, minlength=4) / num, atol=0.008)
    by_hand = duration * rates * np.exp(-duration * 3.4)
    np.testing.assert_allclose(share, [*by_hand, 1 - by_hand.sum()], atol=0.006)
    assert share[1] == 0
    # Far beyond one event a leap changes nothing; a token that is written stays at any rate.
    one, two = (jax.random.split(jax.random.key(seed), 1) for seed in (1, 2))
    assert (leap(one, tokens, rate, 50.0, mask_id=3) == 3).all()
    assert (leap(two, tokens - 2, rate, duration, mask_id=3) == 1).all()


def network_weights():
    rng = np.random.default_rng(0)
    shapes = {
        "place": (L, CODES + 1),
        "label": (CLASSES + 1, CODES + 1),
        "seen": (CODES + 1, L, CODES + 1),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def fake_apply(params, tokens, condition):
    """Logits, one for [MASK] too, that depend on the place, the label and every token."""
    seen = params["seen"][tokens].mean(axis=1)  # [B, L, V]
    return 2 * (params["place"][None] + params["label"][condition][:, None] + 2 * seen)


def network(apply=fake_apply):
    return Network({}, L, CODES, CLASSES, network_weights, apply)


def decode(settings, apply=fake_apply):
    """Not compiled as a whole: XLA would take seconds for each settings, the loop takes none."""
    params = jax.tree.map(jnp.asarray, network_weights())
    keys = jax.random.split(jax.random.key(0), B)
    labels = jnp.asarray(LABELS, jnp.int32)
    with jax.disable_jit():
        tokens = solvers.decode(
            network(apply), params, keys, labels, jnp.full_like(labels, NULL), settings
        )
    return np.asarray(tokens)


def numpy_rates(settings, grid, label, time):
    """Rates of one grid and, for the end, the guided logits of the codes."""
    params = network_weights()
    c, u = (np.array(fake_apply(params, grid[None], np.array([x])))[0] for x in (label, NULL))
    w = settings.guidance - 1
    w = w * (1 - time) if settings.guidance_schedule == "linear" else w
    logits = (1 + w) * c.astype(np.float64) - w * u
    rate = scipy.special.softmax(logits / settings.temperature, -1)[:, :CODES] / time
    rate[grid != MASK_ID] = 0
    return rate, logits[:, :CODES]


def numpy_leap(key, grid, rate, duration):
    key_when, key_what = jax.random.split(key)
    mean = duration * rate.sum(-1)
    jumps = np.asarray(jax.random.uniform(key_when, (L,))) < mean * np.exp(-mean)
    with np.errstate(divide="ignore"):
        noisy = np.log(rate) + np.asarray(jax.random.gumbel(key_what, (L, CODES)))
    return np.where(jumps, noisy.argmax(-1), grid)


def numpy_decode(settings, labels, keys=None):
    keys = jax.random.split(jax.random.key(0), len(labels)) if keys is None else keys
    theta, images = settings.theta, []
    times = np.linspace(1, settings.end_time, settings.num_steps + 1)
    for image_key, label in zip(keys, labels, strict=True):
        grid = np.full(L, MASK_ID)
        for i, (time, after) in enumerate(zip(times[:-1], times[1:], strict=True)):
            first, second = jax.random.split(jax.random.fold_in(image_key, i))
            h = time - after
            rate, _ = numpy_rates(settings, grid, label, time)
            if settings.method == "tau_leaping":
                grid = numpy_leap(first, grid, rate, h)
                continue
            inner = numpy_leap(first, grid, rate, theta * h)
            inner_rate, _ = numpy_rates(settings, inner, label, time - theta * h)
            if settings.method == "theta_rk2":
                mixed = (1 - 1 / (2 * theta)) * rate + 1 / (2 * theta) * inner_rate
                grid = numpy_leap(second, grid, np.maximum(mixed, 0), h)
            else:
                # The folded form of the released code: the whole step with other factors.
                alpha_1, alpha_2 = 1 / (2 * theta), ((1 - theta) ** 2 + theta**2) / (2 * theta)
                mixed = np.maximum(alpha_1 * inner_rate - alpha_2 * rate, 0)
                grid = numpy_leap(second, inner, mixed, h)
        _, logits = numpy_rates(settings, grid, label, settings.end_time)
        images.append(np.where(grid == MASK_ID, logits.argmax(-1), grid))
    return np.stack(images)


OPTIONS = {
    "tau_leaping": {"method": "tau_leaping"},
    "theta_rk2": {"method": "theta_rk2"},
    "rk2 of Heun": {"method": "theta_rk2", "theta": 1.0},
    "theta": {"theta": 0.3},
    "num_steps": {"num_steps": 9},
    "end_time": {"end_time": 0.3},
    "temperature": {"temperature": 0.4},
    "guidance": {"guidance": 4.0},
    "constant": {"guidance": 4.0, "guidance_schedule": "constant"},
}


@pytest.mark.parametrize("option", ["base", *mostly_slow(OPTIONS)])
def test_decoding_is_the_numpy_loop(option):
    settings = dataclasses.replace(BASE, **OPTIONS.get(option, {}))
    tokens = decode(settings)
    np.testing.assert_array_equal(tokens, numpy_decode(settings, LABELS))
    assert tokens.min() >= 0 and tokens.max() < MASK_ID
    if option != "base":
        assert (tokens != decode(BASE)).any()


@pytest.mark.parametrize("method", solvers.METHODS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_masked_positions_only_ever_unmask_and_calls_are_as_stated(method, guidance):
    calls = []

    def apply(params, tokens, condition):
        calls.append(np.asarray(tokens))
        return fake_apply(params, tokens, condition)

    settings = dataclasses.replace(BASE, num_steps=6, method=method, guidance=guidance)
    tokens = decode(settings, apply)
    assert sum(len(grid) for grid in calls) == B * solvers.network_calls(settings)
    by_hand = {"tau_leaping": 6 + 1, "theta_rk2": 12 + 1, "theta_trapezoidal": 12 + 1}
    assert solvers.network_calls(settings) == by_hand[method] * (1 if guidance == 1 else 2)
    # With guidance an example's two branches stand side by side.
    grids = [grid[:: len(grid) // B] for grid in [*calls, tokens]]
    # Every inner grid follows from the one before; theta-RK-2 then starts from that one again.
    pairs = list(zip(grids[:-1], grids[1:], strict=True))
    if method == "theta_rk2":
        pairs = pairs[::2] + list(zip(grids[:-1:2], [*grids[2:-1:2], grids[-1]], strict=True))
    for before, after in pairs:
        known = before != MASK_ID
        np.testing.assert_array_equal(after[known], before[known])
    assert (tokens != MASK_ID).all()
    assert any((grid != MASK_ID).any() for grid in calls)


@pytest.mark.parametrize("method", solvers.METHODS)
def test_with_exact_conditionals_more_steps_come_to_the_joint(method):
    joint = np.diag([0.4, 0.3, 0.2, 0.1]) * 0.96 + 0.04 / 16
    network = models.build({"name": "exact_posterior", "num_tokens": 2, "codebook_size": 4})
    labels = np.zeros(6000, np.int32)
    distances = []
    for num_steps in (1, 4, 16, 64):
        tokens = samplers.sample(
            network,
            {"log_joint": jnp.asarray(np.log(joint), jnp.float32)},
            jax.random.key(0),
            labels,
            labels,
            SolverSettings(num_steps=num_steps, method=method),
            batch_size=len(labels),
        )
        distances.append(0.5 * np.abs(joint_report.histogram(tokens, 4) - joint).sum())
    assert sorted(distances, reverse=True) == distances, distances
    # Independent tokens are at 0.67; so many samples of the joint itself at about 0.015.
    assert distances[-1] < 0.02, distances


def test_a_compiled_sample_in_batches_is_the_numpy_loop_on_the_documented_keys():
    labels, traces = np.arange(7, dtype=np.int32) % CLASSES, []

    def apply(params, tokens, condition):
        traces.append(tokens.shape)
        return fake_apply(params, tokens, condition)

    net = network(apply)

    def sample(labels, settings, first_index=0, seed=1):
        weights, key = jax.tree.map(jnp.asarray, network_weights()), jax.random.key(seed)
        null = np.full_like(labels, NULL)
        return samplers.sample(net, weights, key, labels, null, settings, 3, first_index)

    keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(7)]
    # A sweep over steps, end and guidance compiles once: two calls in a step, one at the end.
    for change in ({"guidance": 2.0}, {"guidance": 3.0, "num_steps": 7, "end_time": 0.1}):
        settings = dataclasses.replace(BASE, **change)
        whole = sample(labels, settings)
        np.testing.assert_array_equal(whole, numpy_decode(settings, labels, keys))
        np.testing.assert_array_equal(sample(labels[4:], settings, first_index=4), whole[4:])
        assert (sample(labels, settings, seed=2) != whole).any()
    assert traces == [(6, L)] * 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("method", "euler"),
        ("theta", 0.0),
        ("theta", 1.0),
        ("end_time", 0.0),
        ("end_time", 1.0),
        ("temperature", 0.0),
        ("guidance_schedule", "cosine"),
    ],
)
def test_settings_out_of_range_name_the_field(field, value):
    with pytest.raises(InputError, match=f"^{field} is .*must be"):
        dataclasses.replace(BASE, **{field: value})
