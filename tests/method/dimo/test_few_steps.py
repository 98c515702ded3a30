"""A generator of K steps: what each starts from, what it draws, and what it learns from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dimo_jax.method.dimo import distill, generate, samples
from dimo_jax.method.masked import losses, masking
from tests.helpers import mostly_slow
from tests.helpers.small_network import CLASSES, MASK_ID, L, V, apply, init
from tests.method.dimo.test_distill import (
    AUX,
    BASE,
    MASK,
    B,
    batch,
    close,
    differ,
    run,
    started,
    stream,
)

THREE = dataclasses.replace(BASE.generator, step_ratios=(0.5, 0.34))
LABELS = jnp.arange(B) % CLASSES


def of(settings=BASE, **changes):
    return dataclasses.replace(settings, generator=dataclasses.replace(THREE, **changes))


def keys(seed=0):
    return jax.random.split(jax.random.key(seed), B)


def streams():
    return samples.Streams(jnp.int32(3), jnp.int32(0), jnp.arange(B))


def counted(settings, **changes):
    """What the network of the generator is given, call by call, in sampling."""
    seen = []

    def spy(params, tokens, condition, *, perturb=None, dropout_key=None):
        noisy = None if perturb is None else perturb(jnp.ones((B, L, 3)))
        jax.debug.callback(lambda *x: seen.append(x), tokens, noisy, ordered=True)
        return apply(params, tokens, condition)

    chosen = dataclasses.replace(settings, **changes)
    with jax.debug_key_reuse(False):  # the noise is drawn on something else than embeddings
        tokens = jax.jit(lambda p, k: generate.generate(spy, p, k, LABELS, chosen))(init(1), keys())
    jax.effects_barrier()
    return [tuple(map(np.asarray, x)) for x in seen], np.asarray(tokens)


def test_one_step_is_one_call_and_its_program_knows_nothing_of_later_ones():
    shapes = jax.eval_shape(lambda: (started(), init(7), batch()))

    def text(settings):
        step = distill.make_step(apply, apply, optax.sgd(1.0), optax.sgd(1.0), settings)
        return jax.jit(step).lower(*shapes).as_text()

    plain = text(BASE)
    one = dataclasses.replace(BASE.generator, step_sigma=0.7, redraw=True)
    changed = dataclasses.replace(BASE, generator=one, step_remask="any", aux_steps="last")
    assert text(changed) == plain
    assert text(of()) != plain
    seen, _ = counted(BASE.generator)
    assert len(seen) == 1 and (np.abs(seen[0][1] - 1) > 1e-3).any()


def test_each_later_step_masks_its_share_again_keeps_the_rest_and_has_no_noise():
    seen, tokens = counted(THREE)
    masked = [(x == MASK_ID).sum(1) for x, _ in seen]
    # round(0.6 * 6) of x_init, then round(0.5 * 6) and round(0.34 * 6).
    assert [set(x.tolist()) for x in masked] == [{4}, {3}, {2}]
    assert (np.abs(seen[0][1] - 1) > 1e-3).any()
    for _, noisy in seen[1:]:
        np.testing.assert_array_equal(noisy, 1.0)
    last = seen[-1][0]
    kept = last != MASK_ID
    np.testing.assert_array_equal(tokens[kept], last[kept])
    assert (tokens[~kept] < V).all() and len(np.unique(kept, axis=0)) > 3
    # The second step's tokens are what the third one saw of them.
    both = (seen[1][0] != MASK_ID) & kept
    np.testing.assert_array_equal(seen[1][0][both], last[both])


def test_noise_and_redrawing_in_later_steps_are_options():
    seen, _ = counted(THREE, step_sigma=0.3)
    assert all((np.abs(noisy - 1) > 1e-3).any() for _, noisy in seen)
    seen, tokens = counted(THREE, redraw=True)
    kept = seen[-1][0] != MASK_ID
    assert (tokens[kept] != seen[-1][0][kept]).any()


def test_an_image_depends_on_its_own_key_alone():
    draw = jax.jit(lambda k: generate.generate(apply, init(1), k, LABELS[: len(k)], THREE))
    found = draw(keys())
    np.testing.assert_array_equal(draw(keys()[:5]), found[:5])
    assert (draw(keys(1)) != found).any()


def test_a_step_in_training_starts_from_what_sampling_reaches_with_the_same_keys():
    own, params = streams(), init(1)
    step = jnp.arange(B) % 3 + 1
    settings = of()
    before = samples.start(apply, params, own, "generator", LABELS, settings, step)
    drawn = samples.drawn_positions(own, "generator", step, settings)
    np.testing.assert_array_equal(before.drawn, drawn)
    np.testing.assert_array_equal(before.drawn.sum(1), np.asarray([L, 3, 2])[step - 1])
    np.testing.assert_allclose(before.sigma, np.where(step == 1, 0.1, 0.0))
    # By hand: the first two steps from the same streams.
    start = generate.initial_state(stream("generator_init"), settings.generator)
    x, drawn = np.asarray(start[0]), np.ones((B, L), bool)
    np.testing.assert_array_equal(before.tokens[step == 1], x[step == 1])

    def keys_of_step(number):
        folded = jax.vmap(jax.random.fold_in, (0, None))(stream("generator_steps"), number + 1)
        return jax.vmap(lambda key: jax.random.split(key, 3))(folded)

    z_of = jax.jit(
        lambda x, keys, sigma: generate.generator_logits(apply, params, (x, keys), LABELS, sigma)
    )
    for number in (1, 2):
        own_keys, next_keys = keys_of_step(number), keys_of_step(number + 1)
        z = z_of(jnp.asarray(x), own_keys[:, 1], 0.1 if number == 1 else 0.0)
        tokens = jax.vmap(jax.random.categorical)(own_keys[:, 2], z)
        ratio = jnp.full(B, THREE.step_ratios[number - 1])
        mask = masking.exact_count_mask(next_keys[:, 0], ratio, L)
        x, drawn = np.where(mask, MASK_ID, np.where(drawn, tokens, x)), np.asarray(mask)
        np.testing.assert_array_equal(before.tokens[step == number + 1], x[step == number + 1])


def test_every_step_of_the_generator_is_trained_about_as_often():
    steps = np.asarray(samples.draw_step(streams(), "generator", of()))
    assert set(steps.tolist()) == {1, 2, 3}
    assert samples.draw_step(streams(), "generator", BASE) is None


def test_steps_are_trained_as_often_as_their_shares_say():
    settings = dataclasses.replace(of(), step_shares=(3.0, 1.0, 0.0))
    many = samples.Streams(jnp.int32(3), jnp.int32(0), jnp.arange(2000))
    found = np.asarray(samples.draw_step(many, "generator", settings))
    np.testing.assert_allclose(
        np.bincount(found, minlength=4) / 2000, [0, 0.75, 0.25, 0], atol=0.03
    )


@pytest.mark.parametrize("remask", ["any", "drawn"])
def test_only_what_the_step_drew_has_a_gradient_and_the_option_says_what_is_masked(remask):
    found = distill.mask_again(streams(), dataclasses.replace(of(), step_remask=remask))
    drawn = samples.drawn_positions(streams(), "generator", found.step, of())
    assert not np.asarray(found.weights > 0)[~drawn].any()
    np.testing.assert_array_equal(found.weights > 0, found.mask & drawn)
    outside = np.asarray(found.mask & ~drawn).any()
    assert outside == (remask == "any")
    if remask == "drawn":  # the schedule's share of those, at least one
        share = np.maximum(1, np.round(drawn.sum(1) * found.ratio))
        np.testing.assert_array_equal(found.mask.sum(1), share)
    # The auxiliary predicts all that is masked.
    np.testing.assert_allclose(found.aux_weights, losses.token_weights(found.mask, "mean_batch"))


def test_the_auxiliary_may_learn_from_the_last_step_alone():
    last = dataclasses.replace(of(), aux_steps="last")
    found = distill.mask_again(streams(), last)
    of_last = np.asarray(found.step == 3)
    np.testing.assert_array_equal(np.asarray(found.aux_weights).any(1), of_last)
    assert float(found.aux_weights.sum()) == pytest.approx(1.0)
    every = dataclasses.replace(last, aux=dataclasses.replace(AUX, positions="all"))
    of_all = np.asarray(distill.mask_again(streams(), every).aux_weights)
    assert (of_all[of_last] > 0).all() and not of_all[~of_last].any()


# Small updates: a generator whose tokens are all certain would hide what follows from them.
SMALL = dataclasses.replace(of(), reduction="mean_batch")
OPTIONS = {  # option -> (changes, whether the generator's gradient changes, the auxiliary's too)
    "aux_steps": ({"aux_steps": "last"}, False, True),
    "step_remask": ({"step_remask": "any"}, True, None),
    "step_sigma": ({"generator": dataclasses.replace(THREE, step_sigma=0.5)}, True, None),
    "redraw": ({"generator": dataclasses.replace(THREE, redraw=True)}, True, True),
}


@pytest.fixture(scope="module")
def base():
    return run(SMALL)


@pytest.mark.parametrize("name", mostly_slow(OPTIONS, 0))
def test_each_option_changes_what_it_should_and_nothing_else(name, base):
    changes, moves_generator, moves_auxiliary = OPTIONS[name]
    found = run(dataclasses.replace(SMALL, **changes))
    assert differ(found[0], base[0]) == moves_generator
    if moves_auxiliary is not None:
        assert differ(found[1], base[1]) == moves_auxiliary


def test_the_gradient_of_the_sampled_step_is_the_surrogates_and_none_runs_through_earlier_steps():
    settings, state = of(), started()

    def expected(params):
        own = streams()
        masked = distill.mask_again(own, settings)
        before = samples.start(apply, params, own, "generator", LABELS, settings, masked.step)

        def z_of(params):
            drawn = (before.tokens, before.noise_keys)
            return generate.generator_logits(apply, params, drawn, LABELS, before.sigma)

        tokens = jax.vmap(jax.random.categorical)(stream("generator_sample"), z_of(params))
        x = jnp.where(before.drawn, tokens, before.tokens)
        x_t = jnp.where(masked.mask, MASK_ID, x)
        p = jax.nn.softmax(apply(init(7), x_t, LABELS))
        q = jax.nn.softmax(apply(state.auxiliary, x_t, LABELS))
        g = jnp.where((masked.mask & before.drawn)[..., None], q - p, 0.0)
        return jax.grad(lambda w: (z_of(w) * g).sum() / B)(params)

    with jax.debug_key_reuse(False):  # z_theta is evaluated twice, on the same noise
        found = jax.jit(expected)(state.generator)
    close(run(settings)[0], found)


@pytest.mark.slow
def test_parts_of_a_batch_add_up():
    at_once = run(dataclasses.replace(of(), aux_sample="reuse"))
    in_parts = run(dataclasses.replace(of(), aux_sample="reuse", parts=4))
    close(in_parts[0], at_once[0])
    close(in_parts[1], at_once[1])


def test_positions_may_be_chosen_among_some():
    among = jax.random.bernoulli(jax.random.key(5), 0.5, (64, 12)).at[:, 3].set(True)
    ratio, some = jnp.linspace(0.0, 1.0, 64), keys_of(64)
    mask = masking.exact_count_mask(some, ratio, 12, among)
    assert not (mask & ~among).any()
    np.testing.assert_array_equal(mask.sum(1), np.maximum(1, np.round(among.sum(1) * ratio)))
    settings = dataclasses.replace(MASK, kind="bernoulli")
    mask, _ = masking.sample_mask(keys_of(64), 12, settings, among)
    assert mask.any() and not (mask & ~among).any()
    # Each of them as often as any other.
    often = masking.random_subset(keys_of(3000), jnp.full(3000, 2), 4, jnp.ones((3000, 4), bool))
    np.testing.assert_allclose(often.mean(0), 0.5, atol=0.04)


def keys_of(number):
    return jax.random.split(jax.random.key(8), number)
