"""A batch in parts gives the gradient of the batch; a gradient that is not finite moves nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dimo_jax.method.dimo import distill
from dimo_jax.method.masked import microbatches, pretrain
from tests.helpers.small_network import apply, init
from tests.method.dimo.test_distill import BASE, B, batch, close, differ, run, started

CASES = {
    "fresh": {},
    "means": {"reduction": "mean_masked"},
    "batch means": {"reduction": "mean_batch"},
    "paper's weights": {"weighting": "paper"},
    "reuse": {"aux_sample": "reuse"},
    "reuse twice": {"aux_sample": "reuse", "aux_updates": 2},
    "two soft": {"aux_updates": 2, "aux": dataclasses.replace(BASE.aux, soft_weight=0.5)},
    "reuse twice, soft": {
        "aux_sample": "reuse",
        "aux_updates": 2,
        "aux": dataclasses.replace(BASE.aux, soft_weight=0.5, positions="all", reduction="sum"),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_distillation_step_in_parts_is_the_step(case):
    settings = dataclasses.replace(BASE, **CASES[case])
    whole = run(settings)
    for parts in (2, 8):
        found = run(dataclasses.replace(settings, parts=parts))
        for a, b in zip(found, whole, strict=True):
            close(a, b, atol=2e-6)
    assert differ(whole[0], jax.tree.map(jnp.zeros_like, whole[0]))


@pytest.mark.parametrize("reduction", ["mean_batch", "mean_masked"])
def test_a_teachers_step_in_parts_is_the_step(reduction):
    settings = dataclasses.replace(BASE.aux, reduction=reduction, condition_drop=0.3)
    data = batch()
    tokens = jax.random.randint(jax.random.key(4), (B, 6), 0, 5)
    given = pretrain.PretrainBatch(
        data.seed, data.index, tokens, data.condition, data.null_condition
    )
    found = []
    for parts in (1, 4):
        step = pretrain.make_step(
            apply,
            optax.sgd(1.0),
            settings,
            dropout=False,
            ema_decay=0.9,
            ema_warmup=False,
            parts=parts,
        )
        found.append(jax.jit(step)(pretrain.create_state(init(1), optax.sgd(1.0)), given))
    close(*found, atol=2e-6)


@pytest.mark.slow
def test_the_parts_have_dropout_of_their_own():
    settings = dataclasses.replace(BASE, generator_dropout=True)
    assert differ(run(settings)[0], run(dataclasses.replace(settings, parts=2))[0])


def test_what_is_kept_of_the_examples_comes_back_in_their_order():
    x = jnp.arange(12.0).reshape(6, 2)
    total, rest = microbatches.in_parts(lambda part: (part.sum(), part * 2), 3, x)
    assert float(total) == 66.0
    np.testing.assert_array_equal(rest, x * 2)


def test_one_part_at_a_time_is_in_memory():
    seen = []

    def function(part):
        seen.append(part.shape)
        return part.sum(), None

    microbatches.in_parts(function, 4, jnp.zeros((8, 3)))
    assert set(seen) == {(2, 3)}


def test_a_gradient_that_is_not_finite_moves_nothing_and_is_counted():
    optimizer = optax.adam(0.1)
    state = started(optimizer=optimizer)
    step = jax.jit(distill.make_step(apply, apply, optimizer, optimizer, BASE))
    broken = jax.tree.map(lambda x: x * jnp.nan, init(7))
    new, metrics = step(state, broken, batch())
    # Only the generator looks at the teacher.
    assert float(metrics["updates_skipped"]) == 1 and not np.isfinite(
        metrics["generator_grad_norm"]
    )
    close((new.generator, new.generator_opt), (state.generator, state.generator_opt), atol=0)
    assert differ(new.auxiliary, state.auxiliary)
    assert int(new.step) == 1 and int(optax.tree.get(new.aux_opt, "count")) == 1
    new, metrics = step(new, init(7), batch())
    assert float(metrics["updates_skipped"]) == 0 and differ(new.generator, state.generator)
