"""Halton decoding against its published order and counts and a second writing of it in NumPy.

Axes: B batch, L tokens, V vocabulary, S steps.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import qmc

from dimo_jax import samplers
from dimo_jax.common.errors import InputError
from dimo_jax.models import Network
from dimo_jax.samplers import halton
from dimo_jax.samplers.halton import HaltonSettings
from tests.helpers import mostly_slow

B, SIDE, CODES, CLASSES = 4, 4, 6, 3
L, MASK_ID, NULL = SIDE**2, CODES, CLASSES
LABELS = np.arange(B) % CLASSES

FIRST_CELLS = {
    16: "(8,5)(4,10)(12,1)(2,7)(10,12)(6,3)(14,8)(1,14)(9,0)(5,5)(13,11)(3,2)",
    24: "(12,8)(6,16)(18,2)(3,10)(15,18)(9,5)(21,13)(1,21)",
}
COUNTS = {
    8: [20, 21, 21, 23, 25, 28, 35, 83],
    16: [10, 10, 10, 11, 10, 11, 11, 12, 12, 13, 13, 15, 16, 19, 25, 58],
}


@pytest.mark.parametrize("side", FIRST_CELLS)
def test_the_first_cells_are_the_published_ones(side):
    cells = [divmod(int(cell), side) for cell in halton.cell_order(side**2)]
    assert "".join(f"({row},{column})" for row, column in cells).startswith(FIRST_CELLS[side])


@pytest.mark.parametrize("side", [1, 2, 5, 16, 24, 32, 50])
def test_the_order_is_that_of_first_visits_and_reaches_every_cell(side):
    order = halton.cell_order(side**2)
    assert sorted(order) == list(range(side**2))
    # SciPy's sequence begins at index 0, the original's at 1.
    points = np.floor(qmc.Halton(2, scramble=False).random(10_001)[1:] * side).astype(int)
    visits = dict.fromkeys(map(tuple, points))
    # At 50 the original's 10,000 points miss one cell.
    assert len(visits) == side**2 - (side == 50)
    assert [divmod(int(cell), side) for cell in order[: len(visits)]] == list(visits)


def test_only_square_grids_have_an_order():
    with pytest.raises(InputError, match="num_tokens is 12; .* square"):
        halton.cell_order(12)


@pytest.mark.parametrize("num_steps", COUNTS)
def test_counts_are_the_published_ones(num_steps):
    assert list(halton.reveal_counts(num_steps, 256)) == COUNTS[num_steps]


@pytest.mark.parametrize("num_tokens", [16, 256, 576])
def test_counts_are_pytorchs_in_its_own_precision(num_tokens):
    for S in (1, 2, 3, 8, 12, 32, 64, num_tokens, 2 * num_tokens):
        ends = [
            max(
                i + 1,
                int((1 - torch.arccos(torch.tensor((i + 1) / S)) / (math.pi * 0.5)) * num_tokens),
            )
            for i in range(S)
        ]
        found = np.cumsum(halton.reveal_counts(S, num_tokens))
        assert found.tolist() == np.minimum(ends, num_tokens)[:num_tokens].tolist()
        # A step that wrote nothing would shift the temperatures of those after it.
        assert len(found) == min(S, num_tokens)


def weights():
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


def numpy_decode(settings, keys, labels):
    """The loop of the original, image by image, cell by cell, with the numbers of JAX's keys."""
    params, w, S = weights(), settings.guidance - 1, settings.num_steps
    cells = list(
        dict.fromkeys(
            map(tuple, np.floor(qmc.Halton(2, scramble=False).random(999)[1:] * SIDE).astype(int))
        )
    )
    images = []
    for key, label in zip(keys, labels, strict=True):
        start_key, draw_key = jax.random.split(key)
        start = int(jax.random.randint(start_key, (), 0, L)) if settings.randomize else 0
        order = [cells[(j - start) % L] for j in range(L)]
        grid, written = np.full((SIDE, SIDE), MASK_ID), 0
        for i in range(S):
            until = max(i + 1, int((1 - math.acos((i + 1) / S) / (math.pi / 2)) * L))
            c, u = (
                np.array(fake_apply(params, grid.reshape(1, L), np.array([x])))[0].astype(float)
                for x in (label, NULL)
            )
            temperature = (
                np.linspace(
                    settings.inverse_temperature_first, settings.inverse_temperature_last, S
                )[i]
                ** settings.inverse_temperature_power
            )
            if i < settings.warmup_steps:
                temperature /= 2
            logits = temperature * ((1 + w) * c - w * u)
            gumbel = np.asarray(jax.random.gumbel(jax.random.fold_in(draw_key, i), (L, CODES + 1)))
            for row, column in order[written:until]:
                at = logits[row * SIDE + column].copy()
                if settings.top_k:
                    at[np.argsort(-at)[settings.top_k :]] = -np.inf
                grid[row, column] = np.argmax(at + gumbel[row * SIDE + column])
            written = until
        images.append(np.clip(grid, 0, CODES - 1).reshape(L))
    return np.stack(images)


def network(apply=fake_apply):
    return Network({}, L, CODES, CLASSES, weights, apply)


def decode(settings, apply=fake_apply):
    """Not compiled as a whole: XLA would take seconds for each settings, the loop takes none."""
    params = jax.tree.map(jnp.asarray, weights())
    labels = jnp.asarray(LABELS, jnp.int32)
    keys = jax.random.split(jax.random.key(0), B)
    with jax.disable_jit():
        tokens = halton.decode(
            network(apply), params, keys, labels, jnp.full_like(labels, NULL), settings
        )
    return np.asarray(tokens)


BASE = HaltonSettings(num_steps=5)
OPTIONS = {
    "num_steps": {"num_steps": 9},
    "more_steps_than_cells": {"num_steps": 20, "inverse_temperature_last": 4.0},
    "guidance": {"guidance": 3.5},
    "warmup": {"warmup_steps": 3},
    "temperatures": {"inverse_temperature_first": 0.2, "inverse_temperature_last": 3.0},
    "top_k": {"top_k": 2},
    "randomize": {"randomize": True},
    "everything": {
        "num_steps": 7,
        "guidance": 2.0,
        "inverse_temperature_first": 1.5,
        "inverse_temperature_last": 0.5,
        "inverse_temperature_power": 2.0,
        "warmup_steps": 2,
        "top_k": 4,
        "randomize": True,
    },
}


@pytest.mark.parametrize("option", ["base", *mostly_slow(OPTIONS)])
def test_decoding_is_the_numpy_loop(option):
    settings = dataclasses.replace(BASE, **OPTIONS.get(option, {}))
    tokens = decode(settings)
    expected = numpy_decode(settings, jax.random.split(jax.random.key(0), B), LABELS)
    np.testing.assert_array_equal(tokens, expected)
    if option != "base":
        assert (tokens != decode(BASE)).any()


@pytest.mark.parametrize(("scale", "rows"), [(1.0, B), (2.0, 2 * B)])
def test_one_network_call_a_step_and_twice_the_batch_only_with_guidance(scale, rows):
    calls = []

    def apply(params, tokens, condition):
        calls.append((tokens.shape[0], condition.shape[0]))
        return fake_apply(params, tokens, condition)

    decode(dataclasses.replace(BASE, guidance=scale), apply)
    assert calls == [(rows, rows)] * BASE.num_steps


def test_a_drawn_mask_id_stays_in_the_grid_and_becomes_the_last_code_at_the_end():
    seen = []

    def apply(params, tokens, condition):
        seen.append(np.asarray(tokens))
        return jnp.zeros((len(tokens), L, CODES + 1)).at[:, :, MASK_ID].set(50.0)

    assert decode(BASE, apply).tolist() == [[CODES - 1] * L] * B
    assert (np.stack(seen) == MASK_ID).all()


def test_an_image_depends_on_its_key_and_index_not_on_its_batch():
    labels = np.arange(7, dtype=np.int32) % CLASSES
    settings = dataclasses.replace(BASE, guidance=2.0, randomize=True)
    net = network()

    def sample(labels, batch_size=3, first_index=0, seed=1):
        return samplers.sample(
            net,
            jax.tree.map(jnp.asarray, weights()),
            jax.random.key(seed),
            labels,
            np.full_like(labels, NULL),
            settings,
            batch_size,
            first_index,
        )

    whole = sample(labels)
    keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(7)]
    np.testing.assert_array_equal(whole, numpy_decode(settings, keys, labels))
    np.testing.assert_array_equal(sample(labels, batch_size=5), whole)
    np.testing.assert_array_equal(sample(labels[4:], first_index=4), whole[4:])
    assert (sample(labels, seed=2) != whole).any()


def test_a_sweep_over_steps_temperatures_and_guidance_traces_the_network_once():
    traces = []

    def apply(params, tokens, condition):
        traces.append(tokens.shape)
        return fake_apply(params, tokens, condition)

    net = network(apply)

    params, key = jax.tree.map(jnp.asarray, weights()), jax.random.key(0)
    labels = np.zeros(3, np.int32)
    for change in (
        {"guidance": 2.0},
        {"guidance": 3.0, "num_steps": 7, "warmup_steps": 2},
        {"guidance": 1.5, "inverse_temperature_last": 2.0},
    ):
        settings = dataclasses.replace(BASE, **change)
        null = np.full_like(labels, NULL)
        found = samplers.sample(net, params, key, labels, null, settings, 3)
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        np.testing.assert_array_equal(found, numpy_decode(settings, keys, labels))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("inverse_temperature_first", 0.0),
        ("inverse_temperature_last", -1.0),
        ("warmup_steps", -1),
        ("top_k", -1),
    ],
)
def test_settings_out_of_range_name_the_field(field, value):
    with pytest.raises(InputError, match=f"^{field} is .*must be"):
        dataclasses.replace(BASE, **{field: value})
