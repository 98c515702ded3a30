"""The one-step sampler: what a bundle says is what is sampled, one image at a time.

Axes: B batch, L tokens, V vocabulary, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax import samplers
from dimo_jax.common.errors import InputError
from dimo_jax.method.dimo.generate import GeneratorSettings
from dimo_jax.models.network import Network
from dimo_jax.samplers import one_step

L, CODES, CLASSES, WIDTH = 10, 6, 3, 4
SAMPLER = {"ratio": 0.6, "sigma": 0.3, "temperature": 0.7, "top_k": 0, "top_p": 1.0}
LATER = {"step_ratios": [0.5], "step_sigma": 0.0, "redraw": False}
traces = []


def fake_apply(params, tokens, condition, *, perturb=None, dropout_key=None):
    """Every logit depends on its own token, on the noise, and on the label."""
    traces.append(tokens.shape)
    embeddings = params["embedding"][tokens]
    if perturb is not None:
        embeddings = perturb(embeddings)
    return embeddings @ params["out"] + params["label"][condition][:, None]


NETWORK = Network({}, L, CODES, CLASSES, lambda key: params(), fake_apply)


def params():
    numbers = np.random.default_rng(0)
    shapes = {"embedding": (CODES + 1, WIDTH), "out": (WIDTH, CODES), "label": (CLASSES + 1, CODES)}
    return {n: jnp.asarray(numbers.normal(size=s), jnp.float32) for n, s in shapes.items()}


def sample(labels, batch_size, *, seed=0, first_index=0, **changes):
    settings = one_step.settings_from({**SAMPLER, **changes}, NETWORK)
    return samplers.sample(
        NETWORK,
        params(),
        jax.random.key(seed),
        np.asarray(labels, np.int32),
        None,
        settings,
        batch_size,
        first_index,
    )


LABELS = [0, 1, 2, 0, 1, 2, 0]


def test_an_image_does_not_depend_on_batch_size_or_on_where_a_call_begins():
    whole = sample(LABELS, 7)
    assert whole.shape == (7, L) and whole.dtype == np.int32
    assert 0 <= whole.min() and whole.max() < CODES
    np.testing.assert_array_equal(sample(LABELS, 3), whole)
    np.testing.assert_array_equal(sample(LABELS[5:], 3, first_index=5), whole[5:])
    assert len(np.unique(whole, axis=0)) == 7
    assert (sample(LABELS, 7, seed=1) != whole).any()


def test_several_steps_are_so_many_calls_and_each_image_is_still_its_own():
    several = sample(LABELS, 7, **(LATER | {"step_ratios": [0.5, 0.3]}))
    np.testing.assert_array_equal(
        sample(LABELS[2:], 3, first_index=2, **(LATER | {"step_ratios": [0.5, 0.3]})), several[2:]
    )
    assert (several != sample(LABELS, 7)).any()


def test_a_short_last_batch_and_a_second_call_trace_nothing_new():
    sample(LABELS, 3)
    traces.clear()
    sample(LABELS + LABELS, 3, seed=5)
    assert traces == []


def test_the_settings_are_the_bundles_and_the_networks():
    sizes = {"num_tokens": L, "codebook_size": CODES, "mask_id": CODES}
    sampler = {"ratio": 0.6, "sigma": 0.3, "temperature": 0.7, "top_k": 4, "top_p": 0.9}
    expected = GeneratorSettings(
        **sizes, ratio_low=0.6, ratio_high=0.6, sigma=0.3, temperature=0.7, top_k=4, top_p=0.9
    )
    assert one_step.settings_from(sampler, NETWORK) == expected
    later = {"step_ratios": [0.5, 0.25], "step_sigma": 0.1, "redraw": True}
    assert one_step.settings_from({**sampler, **later}, NETWORK) == dataclasses.replace(
        expected, step_ratios=(0.5, 0.25), step_sigma=0.1, redraw=True
    )
    ranged = one_step.settings_from({**sampler, "ratio": [0.2, 0.6]}, NETWORK)
    assert ranged == dataclasses.replace(expected, ratio_low=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 1.5}, "^ratio is 1.5; it must be"),
        ({"ratio": [0.6, 0.2]}, "^ratio is .*ascending pair"),
        ({"sigma": -0.1}, "^sigma is -0.1"),
        ({"temperature": 0.0}, "^temperature is 0.0; it must be above 0"),
        ({"top_k": -1}, "^top_k is -1"),
        ({"top_p": 0.0}, "^top_p is 0.0"),
        ({"top_q": 0.5}, "top_q"),
        ({"step_ratios": [0.5]}, "with more than one step step_ratios, step_sigma, redraw too"),
        (LATER | {"step_ratios": []}, r"^step_ratios is \[\]; it must be 1 to 63 numbers"),
        (LATER | {"step_ratios": [0.5] * 64}, "^step_ratios is"),
        (LATER | {"step_ratios": 0.5}, "^step_ratios is 0.5"),
        (LATER | {"step_ratios": [0.5, 0.0]}, "^step_ratios is"),
        (LATER | {"step_ratios": [True]}, "^step_ratios is"),
        (LATER | {"step_ratios": [float("nan")]}, "^step_ratios is"),
        (LATER | {"step_sigma": 1.5}, "^step_sigma is 1.5; it must be in"),
        (LATER | {"step_sigma": None}, "^step_sigma is"),
        (LATER | {"redraw": 1}, "^redraw is 1; it must be true or false"),
    ],
)
def test_wrong_settings_are_explained(change, message):
    with pytest.raises(InputError, match=message):
        one_step.settings_from({**SAMPLER, **change}, NETWORK)


def test_a_missing_setting_has_no_default():
    with pytest.raises(InputError, match="must have ratio, sigma"):
        one_step.settings_from({"ratio": 0.6}, NETWORK)
