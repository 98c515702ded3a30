import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dimo_jax.common import rng
from dimo_jax.method.dimo import distill, distill_state, divergences, generate, token_gradient
from dimo_jax.method.dimo.settings import DistillSettings
from dimo_jax.method.masked import denoise, guidance, losses, masking
from dimo_jax.training import optimizers
from tests.helpers import mostly_slow
from tests.helpers.small_network import CLASSES, MASK_ID, L, V, apply, init

B = 16
MASK = masking.MaskSettings("arccos", "exact", 0.0, 1.0)
AUX = denoise.DenoiseSettings(MASK, MASK_ID, 0.0, 0.0, "masked", "mean_batch")
BASE = DistillSettings(
    generator=generate.GeneratorSettings(L, V, MASK_ID, 0.6, 0.6, 0.1, 1.0),
    sigma_schedule="fixed",
    sigma_warmup_steps=0,
    mask=MASK,
    divergence=divergences.forward_kl(),
    jacobian="auxiliary",
    guidance=1.0,
    adaptive_guidance=False,
    teacher_temperature=1.0,
    teacher_top_k=0,
    teacher_top_p=1.0,
    teacher_lowered_by=2.0,
    aux_temperature=1.0,
    reduction="sum",
    weighting="one",
    aux=AUX,
    aux_sample="fresh",
    aux_updates=1,
    teacher_dropout=False,
    aux_dropout=False,
    generator_dropout=False,
    ema_decay=0.9,
    ema_warmup=False,
)


def batch(updates=1):
    index = jnp.arange(B)
    return distill_state.DistillBatch(
        seed=jnp.int32(3),
        index=index,
        condition=index % CLASSES,
        aux_condition=jnp.stack([(index + 1 + k) % CLASSES for k in range(updates)]),
        null_condition=jnp.full((B,), CLASSES),
    )


def started(same=False, step=0, optimizer=None):
    """A state whose networks differ (or not); SGD of rate 1, so that updates are gradients."""
    optimizer = optimizer or optax.sgd(1.0)
    state = distill_state.create_state(init(1), optimizer, optimizer)
    auxiliary = state.auxiliary if same else init(2)
    return state.replace(auxiliary=auxiliary, step=jnp.int32(step))


def run(settings, state=None, teacher=None, updates=None):
    """One step: (generator's gradient, auxiliary's total update, new state, metrics)."""
    state = started() if state is None else state
    step = distill.make_step(apply, apply, optax.sgd(1.0), optax.sgd(1.0), settings)
    data = batch(updates or settings.aux_updates)
    new, metrics = jax.jit(step)(state, init(7) if teacher is None else teacher, data)
    minus = functools.partial(jax.tree.map, lambda a, b: a - b)
    return (
        minus(state.generator, new.generator),
        minus(state.auxiliary, new.auxiliary),
        new,
        metrics,
    )


def close(a, b, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def differ(a, b):
    gaps = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)
    return max(jax.tree.leaves(gaps)) > 1e-6


def stream(name, step=0):
    return rng.example_keys(rng.stream_key(3, name, step), jnp.arange(B))


def surrogate_gradients(settings, guided=None):
    """The step by autodiff of 1/2 |z - sg(z - g)|^2, written out from the paper's algorithm."""
    state, teacher_params, data = started(), init(7), batch()
    start = generate.initial_state(stream("generator_init"), settings.generator)
    z_of = lambda p: generate.generator_logits(  # noqa: E731
        apply, p, start, data.condition, settings.generator.sigma
    )
    z = z_of(state.generator)
    tokens = jax.vmap(jax.random.categorical)(stream("generator_sample"), z)
    mask, _ = masking.sample_mask(stream("generator_mask"), L, settings.mask)
    x_t = jnp.where(mask, MASK_ID, tokens)
    teacher = apply(teacher_params, x_t, data.condition)
    if guided is not None:
        null = apply(teacher_params, x_t, data.null_condition)
        teacher = null + guided * (teacher - null)
    p = jax.nn.softmax(teacher)
    q = jax.nn.softmax(apply(state.auxiliary, x_t, data.condition))
    g = jnp.where(mask[..., None], q - p, 0.0)

    def surrogate(params):
        logits = z_of(params)
        return 0.5 * ((logits - jax.lax.stop_gradient(logits - g)) ** 2).sum() / B

    gradient = jax.grad(surrogate)(state.generator)
    generator = jax.tree.map(lambda a, b: a - b, state.generator, gradient)

    condition = data.aux_condition[0]
    fresh_start = generate.initial_state(stream("aux0_init"), settings.generator)
    fresh_z = generate.generator_logits(
        apply, generator, fresh_start, condition, settings.generator.sigma
    )
    fresh = jax.vmap(jax.random.categorical)(stream("aux0_sample"), fresh_z)
    pairs = jax.vmap(lambda key: jax.random.split(key, 2))(stream("aux0_mask"))
    aux_mask, _ = masking.sample_mask(pairs[:, 0], L, MASK)

    def cross_entropy(params):
        log_q = jax.nn.log_softmax(apply(params, jnp.where(aux_mask, MASK_ID, fresh), condition))
        picked = (log_q * jax.nn.one_hot(fresh, V)).sum(-1)
        return -jnp.where(aux_mask, picked, 0).sum() / aux_mask.sum()

    return gradient, jax.grad(cross_entropy)(state.auxiliary)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_pull_back_is_the_surrogate_losss_gradient(scale):
    settings = dataclasses.replace(BASE, guidance=scale)
    gradient, aux_gradient, _, _ = run(settings)
    with jax.debug_key_reuse(False):  # the surrogate evaluates z_theta twice, on the same noise
        expected = surrogate_gradients(settings, None if scale == 1.0 else scale)
    close(gradient, expected[0])
    close(aux_gradient, expected[1])


def test_the_first_gradient_is_zero_when_all_three_networks_are_equal():
    for divergence in (divergences.forward_kl(), divergences.jeffrey(-0.2)):
        settings = dataclasses.replace(BASE, divergence=divergence)
        gradient, aux_gradient, _, metrics = run(settings, started(same=True), init(1))
        assert float(metrics["generator_grad_norm"]) < 1e-5
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) < 1e-6
        assert float(metrics["divergence"]) == pytest.approx(0.0, abs=1e-6)
        assert differ(aux_gradient, jax.tree.map(jnp.zeros_like, aux_gradient))
    # Guidance away from 1 moves the target, and the gradient with it.
    guided = dataclasses.replace(BASE, guidance=3.0)
    assert float(run(guided, started(same=True), init(1))[3]["generator_grad_norm"]) > 1e-2


def gen(**changes):
    return {"generator": dataclasses.replace(BASE.generator, **changes)}


def aux(**changes):
    return {"aux": dataclasses.replace(AUX, **changes)}


def mask(**changes):
    return {"mask": dataclasses.replace(MASK, **changes)}


# option -> (changes, whether the generator's gradient changes, whether the auxiliary's does). None:
# only by way of the updated generator's samples, in which no token need differ.
OPTIONS = {
    "ratio": (gen(ratio_low=0.2, ratio_high=0.2), True, True),
    "ratio_range": (gen(ratio_low=0.2, ratio_high=0.9), True, None),
    "sigma": (gen(sigma=0.5), True, None),
    "temperature": (gen(temperature=3.0), True, True),
    "top_k": (gen(top_k=2), True, None),
    "top_p": (gen(top_p=0.5), True, True),
    "sigma_schedule": ({"sigma_schedule": "linear", "sigma_warmup_steps": 10}, True, None),
    "mask_schedule": (mask(schedule="square"), True, None),
    "mask_kind": (mask(kind="bernoulli"), True, None),
    "mask_limits": (mask(min_ratio=0.9), True, None),
    "reverse_kl": ({"divergence": divergences.reverse_kl()}, True, None),
    "jeffrey": ({"divergence": divergences.jeffrey(0.5)}, True, None),
    "jacobian": ({"divergence": divergences.reverse_kl(), "jacobian": "generator"}, True, None),
    "guidance": ({"guidance": 2.0}, True, None),
    "teacher_temperature": ({"teacher_temperature": 2.0}, True, None),
    "teacher_top_k": ({"teacher_top_k": 2}, True, None),
    "teacher_top_p": ({"teacher_top_p": 0.5}, True, None),
    "aux_temperature": ({"aux_temperature": 2.0}, True, None),
    "reduction": ({"reduction": "mean_masked"}, True, None),
    "weighting": ({"weighting": "paper"}, True, None),
    "teacher_dropout": ({"teacher_dropout": True}, True, None),
    "aux_dropout": ({"aux_dropout": True}, True, True),
    "generator_dropout": ({"generator_dropout": True}, True, True),
    "aux_sample": ({"aux_sample": "reuse"}, False, True),
    "aux_updates": ({"aux_updates": 3}, False, True),
    "label_smoothing": (aux(label_smoothing=0.1), False, True),
    "soft_weight": (aux(soft_weight=0.5), False, True),
    "positions": (aux(positions="all"), False, True),
    "aux_reduction": (aux(reduction="sum"), False, True),
    "condition_drop": (aux(condition_drop=0.5), False, True),
    "aux_mask": (aux(mask=dataclasses.replace(MASK, schedule="square")), False, True),
}
# What these are compared with, where it is not the base.
AGAINST = {"jacobian": {"divergence": divergences.reverse_kl()}}


@pytest.fixture(scope="module")
def base():
    return run(BASE)


@pytest.mark.parametrize("name", mostly_slow(OPTIONS, 4))
def test_each_option_changes_what_it_should_and_nothing_else(name, base):
    changes, moves_generator, moves_auxiliary = OPTIONS[name]
    if name in AGAINST:
        base = run(dataclasses.replace(BASE, **AGAINST[name]))
    found = run(dataclasses.replace(BASE, **changes))
    assert differ(found[0], base[0]) == moves_generator
    if moves_auxiliary is not None:
        assert differ(found[1], base[1]) == moves_auxiliary


@pytest.mark.slow
def test_adaptive_guidance_is_the_scale_of_each_examples_mask_ratio():
    settings = dataclasses.replace(BASE, guidance=3.0, adaptive_guidance=True)
    fixed = run(dataclasses.replace(BASE, guidance=3.0))
    assert differ(run(settings)[0], fixed[0])
    x_t, ratio, condition = jnp.full((2, L), MASK_ID), jnp.array([0.5, 1.0]), jnp.zeros(2, int)
    null = jnp.full((2,), CLASSES)
    found = token_gradient.teacher_logits(apply, init(7), x_t, ratio, condition, null, settings)
    c, u = (apply(init(7), x_t, label) for label in (condition, null))
    np.testing.assert_allclose(found[0], u[0] + 2.0 * (c[0] - u[0]), atol=1e-5)
    np.testing.assert_allclose(found[1], u[1] + 3.0 * (c[1] - u[1]), atol=1e-5)


def test_lowered_by_decides_how_far_truncation_goes():
    settings = dataclasses.replace(BASE, teacher_top_k=2)
    softer = dataclasses.replace(settings, teacher_lowered_by=0.5)
    assert differ(run(settings)[0], run(softer)[0])


LOGITS = [jax.random.normal(jax.random.key(i), (B, L, V)) for i in range(3)]
SOME = jax.random.bernoulli(jax.random.key(9), 0.4, (B, L))
WEIGHTS = losses.token_weights(SOME, "sum")


def test_only_masked_positions_carry_a_gradient():
    cotangent = token_gradient.token_gradient(*LOGITS, WEIGHTS, BASE)
    np.testing.assert_array_equal(np.abs(cotangent).sum(-1) > 0, SOME)


def test_a_nan_outside_the_mask_stays_there():
    teacher = jnp.where(SOME[..., None], LOGITS[0], jnp.nan)
    assert np.isfinite(token_gradient.token_gradient(teacher, *LOGITS[1:], WEIGHTS, BASE)).all()


def test_reductions_and_weights_scale_as_named():
    def of(reduction="sum", weighting="one"):
        settings = dataclasses.replace(BASE, weighting=weighting)
        weights = losses.token_weights(SOME, reduction)
        return token_gradient.token_gradient(*LOGITS, weights, settings)

    total = np.asarray(of())
    counts = np.maximum(SOME.sum(1), 1)[:, None, None]
    np.testing.assert_allclose(of(reduction="mean_masked"), total / counts, atol=1e-7)
    np.testing.assert_allclose(
        of(reduction="mean_batch"), total * B / np.asarray(SOME).sum(), atol=1e-7
    )
    teacher, _, generator = (np.asarray(jax.nn.softmax(x)) for x in LOGITS)
    weight = 1 / np.abs(generator - teacher).mean((1, 2), keepdims=True)
    np.testing.assert_allclose(of(weighting="paper"), total * weight, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_reuse_judges_and_trains_on_one_sample():
    """With reuse the auxiliary's gradient is that of the x_t that was judged."""
    settings = dataclasses.replace(BASE, aux_sample="reuse")
    _, found, _, _ = run(settings)
    state, data = started(), batch()
    start = generate.initial_state(stream("generator_init"), settings.generator)
    z = generate.generator_logits(apply, state.generator, start, data.condition, 0.1)
    tokens = jax.vmap(jax.random.categorical)(stream("generator_sample"), z)
    judged, _ = masking.sample_mask(stream("generator_mask"), L, MASK)

    def loss(params):
        logits = apply(params, jnp.where(judged, MASK_ID, tokens), data.condition)
        picked = losses.token_cross_entropy(logits, tokens, 0.0)
        return jnp.where(judged, picked, 0).sum() / judged.sum()

    close(found, jax.grad(loss)(state.auxiliary))
    more = run(dataclasses.replace(settings, aux_updates=3))
    assert differ(more[1], found)


def test_ema_follows_its_decay_and_its_warm_up():
    for warmup, decay in ((False, 0.9), (True, 11 / 20)):
        state = started(step=10)
        _, _, new, _ = run(dataclasses.replace(BASE, ema_warmup=warmup), state)
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, state.ema, new.generator)
        close(new.ema, expected, 1e-6)


def test_frozen_leaves_never_move_and_have_no_moments():
    params = init(1)
    optimizer = optimizers.build(
        name="adam", learning_rate=0.1, schedule="constant", warmup_steps=0, num_steps=9, beta1=0.9,
        beta2=0.999, eps=1e-8, weight_decay=0.1, clip_norm=1.0, frozen=("table", "position"),
        params=params,
    )  # fmt: skip
    state = distill_state.create_state(params, optimizer, optimizer).replace(auxiliary=init(2))
    step = jax.jit(distill.make_step(apply, apply, optimizer, optimizer, BASE))
    new = state
    for _ in range(3):
        new, _ = step(new, init(7), batch())
    for name in params:
        for tree in ("generator", "auxiliary", "ema"):
            same = np.array_equal(getattr(state, tree)[name], getattr(new, tree)[name])
            assert same == (name in ("table", "position")), (tree, name)


def test_the_step_number_draws_new_numbers_and_repeats_exactly():
    first, again, later = (run(BASE, started(step=s))[0] for s in (0, 0, 1))
    assert not differ(first, again)
    assert differ(first, later)


def test_donation_of_the_state_needs_no_copy_and_one_trace():
    step = jax.jit(
        distill.make_step(apply, apply, optax.adam(1e-3), optax.adam(1e-3), BASE), donate_argnums=0
    )
    make = jax.jit(lambda p: distill_state.create_state(p, optax.adam(1e-3), optax.adam(1e-3)))
    teacher = init(1)
    state = make(teacher)
    for _ in range(3):
        state, _ = step(state, teacher, batch())
    assert int(state.step) == 3
    assert step._cache_size() == 1
    assert not any(x.is_deleted() for x in jax.tree.leaves(teacher))


def test_truncated_guidance_uses_the_shared_filters():
    logits = LOGITS[0]
    settings = dataclasses.replace(BASE, teacher_temperature=2.0, teacher_top_k=2)
    found = token_gradient.teacher_logits(
        lambda *a, **k: logits, None, jnp.zeros((B, L), int), jnp.ones(B), None, None, settings
    )
    np.testing.assert_allclose(found, guidance.shape_logits(logits, 2.0, 2, 1.0, 2.0))
