"""Google's decoding against a second writing of it in NumPy.

Axes: B batch, L tokens, V vocabulary, S steps.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from dimo_jax import samplers
from dimo_jax.common.errors import InputError
from dimo_jax.models import Network
from dimo_jax.samplers import google
from dimo_jax.samplers.google import GoogleSettings
from tests.helpers import mostly_slow

B, L, CODES, CLASSES = 5, 12, 6, 3
MASK_ID = CODES
LABELS = np.arange(B) % CLASSES
BASE = GoogleSettings(num_steps=4)


def network_weights():
    rng = np.random.default_rng(0)
    shapes = {
        "place": (L, CODES + 1),
        "label": (CLASSES, CODES + 1),
        "seen": (CODES + 1, L, CODES + 1),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def fake_apply(params, tokens, condition):
    """Logits, one for [MASK] too, that depend on the place, the label and every token."""
    seen = params["seen"][tokens].mean(axis=1)  # [B, L, V]
    return 2 * (params["place"][None] + params["label"][condition][:, None] + 2 * seen)


def network(apply=fake_apply):
    return Network({}, L, CODES, CLASSES, network_weights, apply)


def decode(settings, labels=LABELS, apply=fake_apply):
    """Not compiled as a whole: XLA would take seconds for each settings, the loop takes none."""
    params = jax.tree.map(jnp.asarray, network_weights())
    keys = jax.random.split(jax.random.key(0), len(labels))
    with jax.disable_jit():
        labels = jnp.asarray(labels, jnp.int32)
        return np.asarray(google.decode(network(apply), params, keys, labels, None, settings))


def numpy_decode(settings, labels, keys=None):
    """The original's loop, image by image, with explicit random numbers from JAX's keys."""
    params, S = network_weights(), settings.num_steps
    keys = jax.random.split(jax.random.key(0), len(labels)) if keys is None else keys
    images = []
    for image_key, label in zip(keys, labels, strict=True):
        grid = np.full(L, -1)
        for t in range(S):
            key_tokens, key_order = jax.random.split(jax.random.fold_in(image_key, t))
            seen = np.where(grid == -1, MASK_ID, grid)[None]
            logits = np.array(fake_apply(params, seen, np.array([label])))[0, :, :CODES]
            probs = scipy.special.softmax(logits.astype(np.float64) / settings.temperature, -1)
            for row in probs:
                order = np.argsort(-row)
                if settings.top_k:
                    row[order[settings.top_k :]] = 0
                before = np.cumsum(row[order]) / row.sum() - row[order] / row.sum()
                row[order[before >= settings.top_p]] = 0
                row /= row.sum()
            with np.errstate(divide="ignore"):
                noisy = np.log(probs) + np.asarray(jax.random.gumbel(key_tokens, (L, CODES)))
            unknown = grid == -1
            drawn = np.where(unknown, noisy.argmax(-1), grid)
            ratio = (t + 1) / S
            share = np.clip(np.cos(np.pi * ratio / 2), 1e-6, 1)
            # The nudge stands for float32, where cos(pi/3) is below a half.
            mask_len = np.floor(L * share - 1e-6)
            mask_len = int(max(1, min(unknown.sum() - 1, mask_len)))
            with np.errstate(divide="ignore"):
                confidence = np.log(probs[np.arange(L), drawn])
            gumbel = np.asarray(jax.random.gumbel(key_order, (L,)))
            confidence = confidence + settings.choice_temperature * (1 - ratio) * gumbel
            confidence[~unknown] = np.inf
            grid = np.where(confidence < np.sort(confidence)[mask_len], -1, drawn)
        images.append(drawn)
    return np.stack(images)


def test_mask_lengths_are_the_floor_of_a_cosine_in_float32():
    assert google.mask_lengths(8, 256) == (251, 236, 212, 181, 142, 97, 49, 0)
    assert google.mask_lengths(1, 256) == (0,)
    # 256 cos(pi/3) is 128, but not in the original's arithmetic.
    assert google.mask_lengths(12, 256)[7] == 127


OPTIONS = {
    "num_steps": {"num_steps": 7},
    "as many steps as tokens": {"num_steps": L},
    "choice_temperature": {"choice_temperature": 0.3},
    "temperature": {"temperature": 0.25},
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.5},
}


@pytest.mark.parametrize("option", ["base", *mostly_slow(OPTIONS)])
def test_decoding_is_the_numpy_loop(option):
    settings = dataclasses.replace(BASE, **OPTIONS.get(option, {}))
    tokens = decode(settings)
    np.testing.assert_array_equal(tokens, numpy_decode(settings, LABELS))
    assert tokens.max() < MASK_ID  # [MASK] has a logit here and is never drawn
    if option != "base":
        assert (tokens != decode(BASE)).any()


def grids_seen(settings, apply=fake_apply):
    grids = []

    def seeing(params, tokens, condition):
        grids.append(np.asarray(tokens))
        return apply(params, tokens, condition)

    return grids, decode(settings, apply=seeing)


@pytest.mark.parametrize(
    ("num_steps", "remaining"),
    [
        (1, [12]),
        (4, [12, 11, 8, 4]),
        (12, [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
    ],
)
def test_what_is_masked_before_each_call_and_what_is_known_stays(num_steps, remaining):
    grids, tokens = grids_seen(dataclasses.replace(BASE, num_steps=num_steps))
    assert [(grid == MASK_ID).sum(1).tolist() for grid in grids] == [[n] * B for n in remaining]
    for before, after in zip(grids, [*grids[1:], tokens], strict=True):
        known = before != MASK_ID
        np.testing.assert_array_equal(before[known], after[known])
    # The last prediction is returned whole: what it would have masked again is in it.
    assert (tokens != MASK_ID).all()


def test_ties_settle_at_once_and_a_lone_unknown_is_masked_again_until_the_last_step():
    def all_but_one_sure(params, tokens, condition):
        return jnp.zeros((B, L, CODES)).at[:, 1:, 2].set(1e4)

    settings = dataclasses.replace(BASE, num_steps=5, choice_temperature=0.0)
    grids, tokens = grids_seen(settings, all_but_one_sure)
    # The first cut-off is the confidence of all sure tokens; the later ones are infinite.
    assert [(grid == MASK_ID).sum(1).tolist() for grid in grids] == [[12] * B] + [[1] * B] * 4
    assert (tokens[:, 1:] == 2).all() and (tokens != MASK_ID).all()


def test_a_compiled_sample_in_batches_is_the_numpy_loop_on_the_documented_keys():
    labels = np.arange(7, dtype=np.int32) % CLASSES
    traces = []

    def apply(params, tokens, condition):
        traces.append(tokens.shape)
        return fake_apply(params, tokens, condition)

    net = network(apply)

    def sample(labels, settings, first_index=0, seed=1):
        return samplers.sample(
            net,
            jax.tree.map(jnp.asarray, network_weights()),
            jax.random.key(seed),
            labels,
            labels,
            settings,
            3,
            first_index,
        )

    keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(7)]
    # A sweep over steps and noise compiles once.
    for settings in (BASE, dataclasses.replace(BASE, num_steps=9, choice_temperature=1.0)):
        whole = sample(labels, settings)
        np.testing.assert_array_equal(whole, numpy_decode(settings, labels, keys))
        np.testing.assert_array_equal(sample(labels[4:], settings, first_index=4), whole[4:])
        assert (sample(labels, settings, seed=2) != whole).any()
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("choice_temperature", -1.0),
        ("temperature", 0.0),
        ("top_k", -1),
        ("top_p", 1.5),
    ],
)
def test_settings_out_of_range_name_the_field(field, value):
    with pytest.raises(InputError, match=f"^{field} is .*must be"):
        dataclasses.replace(BASE, **{field: value})


def test_more_steps_than_tokens_are_refused():
    with pytest.raises(InputError, match="num_steps is 13, but there are 12 tokens"):
        google.make_plan(GoogleSettings(num_steps=13), L)
