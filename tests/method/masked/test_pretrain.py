import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dimo_jax.common import rng
from dimo_jax.method.masked import denoise, masking, pretrain
from tests.helpers.small_network import CLASSES, MASK_ID, L, V, apply, init

B = 32
MASK = masking.MaskSettings("arccos", "exact", 0.0, 1.0)
BASE = denoise.DenoiseSettings(MASK, MASK_ID, 0.0, 0.0, "masked", "mean_batch")


def batch():
    index = jnp.arange(B)
    return pretrain.PretrainBatch(
        seed=jnp.int32(3),
        index=index,
        tokens=jax.random.randint(jax.random.key(5), (B, L), 0, V),
        condition=index % CLASSES,
        null_condition=jnp.full((B,), CLASSES),
    )


def run(settings=BASE, step=0, **changes):
    options = {"dropout": False, "ema_decay": 0.9, "ema_warmup": False} | changes
    state = pretrain.create_state(init(1), optax.sgd(1.0)).replace(step=jnp.int32(step))
    new, metrics = jax.jit(pretrain.make_step(apply, optax.sgd(1.0), settings, **options))(
        state, batch()
    )
    return jax.tree.map(lambda a, b: a - b, state.params, new.params), new, metrics


def test_the_update_is_the_gradient_of_masked_cross_entropy():
    keys = rng.example_keys(rng.stream_key(3, "pretrain_mask", 0), jnp.arange(B))
    pairs = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    mask, _ = masking.sample_mask(pairs[:, 0], L, MASK)
    data = batch()

    def loss(params):
        log_q = jax.nn.log_softmax(
            apply(params, jnp.where(mask, MASK_ID, data.tokens), data.condition)
        )
        picked = (log_q * jax.nn.one_hot(data.tokens, V)).sum(-1)
        return -jnp.where(mask, picked, 0).sum() / mask.sum()

    gradient, new, metrics = run()
    expected = jax.grad(loss)(init(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected)
    assert float(metrics["teacher_loss"]) == pytest.approx(float(loss(init(1))), rel=1e-5)
    assert int(new.step) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing": 0.1},
        {"condition_drop": 0.5},
        {"positions": "all"},
        {"reduction": "sum"},
        {"mask": dataclasses.replace(MASK, kind="bernoulli")},
    ],
    ids=lambda c: next(iter(c)),
)
def test_each_option_changes_the_gradient(changes):
    base, found = run()[0], run(dataclasses.replace(BASE, **changes))[0]
    pairs = zip(jax.tree.leaves(base), jax.tree.leaves(found), strict=True)
    assert max(float(jnp.abs(a - b).max()) for a, b in pairs) > 1e-6


def test_dropped_conditions_train_the_null_label_alone():
    assert not np.any(run()[0]["label"][CLASSES])
    assert np.any(run(dataclasses.replace(BASE, condition_drop=0.5))[0]["label"][CLASSES])


def test_dropout_is_a_switch():
    assert float(run(dropout=True)[2]["teacher_loss"]) != float(run()[2]["teacher_loss"])


def test_ema_follows_the_parameters():
    for warmup, decay in ((False, 0.9), (True, 11 / 20)):
        _, new, _ = run(step=10, ema_warmup=warmup)
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, init(1), new.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.ema, expected)


def test_it_learns_the_data():
    """Trained on one fixed batch, the loss falls far below that of a uniform guess."""
    optimizer = optax.adam(0.05)
    step = jax.jit(
        pretrain.make_step(apply, optimizer, BASE, dropout=False, ema_decay=0.9, ema_warmup=True)
    )
    state, data = pretrain.create_state(init(1), optimizer), batch()
    data = data.replace(tokens=jnp.tile(jnp.arange(L) % V, (B, 1)))
    for _ in range(60):
        state, metrics = step(state, data)
    assert float(metrics["teacher_loss"]) < 0.1 * np.log(V)


@pytest.mark.parametrize("parts", [1, 4])
def test_the_loss_by_ratio_is_that_of_the_examples_with_such_a_share_masked(parts):
    settings = dataclasses.replace(BASE, label_smoothing=0.1, positions="all")
    metrics = run(settings, loss_bins=4, parts=parts)[2]
    keys = rng.example_keys(rng.stream_key(3, "pretrain_mask", 0), jnp.arange(B))
    mask, _ = masking.sample_mask(
        jax.vmap(lambda key: jax.random.split(key, 2))(keys)[:, 0], L, MASK
    )
    data, mask = batch(), np.asarray(mask)
    log_q = np.asarray(
        jax.nn.log_softmax(apply(init(1), jnp.where(mask, MASK_ID, data.tokens), data.condition))
    )
    sums, counts = np.zeros(4), np.zeros(4)
    for b in range(B):
        here = min(int(4 * mask[b].sum() / L), 3)
        for i in np.flatnonzero(mask[b]):
            sums[here] -= 0.9 * log_q[b, i, data.tokens[b, i]] + 0.1 * log_q[b, i].mean()
            counts[here] += 1
    assert (counts > 0).sum() >= 3  # or this would test too little
    names = [f"teacher_loss_at_{x}" for x in ("0_to_0.25", "0.25_to_0.5", "0.5_to_0.75")]
    found = [float(metrics[name]) for name in [*names, "teacher_loss_at_0.75_to_1"]]
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found, sums / counts, rtol=1e-5)


def test_the_loss_by_ratio_changes_no_update():
    plain, binned = run()[1], run(loss_bins=3)[1]
    jax.tree.map(np.testing.assert_array_equal, plain.params, binned.params)
    assert "teacher_loss_at_0_to_0.333" in run(loss_bins=3)[2]
    assert not any(name.startswith(pretrain.BY_RATIO) for name in run()[2])
