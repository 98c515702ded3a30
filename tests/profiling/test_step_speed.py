"""What the benchmark times is what the package runs. No time decides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import meissonic
from dimo_jax import models, samplers
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import text_encoder
from dimo_jax.models import Network
from dimo_jax.parallel import sharding
from dimo_jax.profiling import sampler_speed, step_speed, timing
from dimo_jax.samplers import one_step
from dimo_jax.tokenizers import tokenizer
from dimo_jax.training import programs, settings, traces
from tests.helpers.recorded import recorded_steps
from tests.helpers.timed_models import (
    CLASSES,
    CODES,
    EXTRA,
    SEED,
    SIZES,
    L,
    a_table,
    opened,
    painter,
    params_of_a_table,
    small_config,
)

# Operations of a forward pass for one image, by hand: one block of width 8 with 16 inside, 17
# positions, 30 codes. `halton` predicts [MASK] too, and its class modulates the block.
_ATTENTION, _FEED_FORWARD = 17 * (4 * 8**2 + 2 * 17 * 8), 17 * 8 * 16
OPERATIONS = {
    "google_maskgit": 2 * (_ATTENTION + 2 * _FEED_FORWARD + 16 * (8**2 + 8 * 30)),
    "halton": 2 * (_ATTENTION + 3 * _FEED_FORWARD + (6 + 2) * 8**2 + 16 * 8 * 31),
}
OPERATIONS["maskgit"] = OPERATIONS["google_maskgit"] + 2 * 17 * 2 * 8**2

# On one worker, which makes the fixtures once.
pytestmark = pytest.mark.xdist_group("benchmark")


def train_config():
    """The cheapest step to compile: one branch of the teacher, one forward of the auxiliary."""
    config = small_config()
    config["distill"]["guidance"] = 1.0
    config["distill"]["auxiliary"].update(sample="reuse", label_smoothing=0.0)
    return config


class Recording(step_speed.Clock):
    """Calls once and keeps the result; every time is half a second."""

    def time(self, name, call, calls=1):
        self.seen.append(call())
        return timing.Times((0.5,))


@pytest.fixture
def clock():
    found = Recording(1, 0, 1, 2.0, lambda text: None)
    object.__setattr__(found, "seen", [])
    return found


def drawn(network, null, chosen):
    """Tokens of 8 images by a sampler of the package, seed and labels as the benchmark's."""
    labels, params = np.arange(8, dtype=np.int32), params_of_a_table()
    return samplers.sample(network, params, jax.random.key(SEED), labels, null, chosen, 8)


def test_sample_times_the_one_step_generator_and_its_parts(clock):
    config, found = small_config(), opened()
    (result,) = sampler_speed.sample(config, found, clock, [8])
    whole, logits, tokens, _ = clock.seen
    chosen = one_step.settings_from(settings.sampler_of(config), found.network)
    expected = drawn(found.network, None, chosen)
    np.testing.assert_array_equal(np.round(CODES * whole).reshape(8, L), expected)
    assert logits.shape == (8, L, CODES) and tokens.shape == (8, L)
    assert list(result["latency_seconds"]) == ["whole", "network", "token_sampling", "decoder"]
    assert result["num_devices"] == 8 and len(whole.sharding.device_set) == 8
    assert result["images_per_second"] == 16 and result["rates_of"] == "network"
    assert result["model_tflop"] == 8 * OPERATIONS["maskgit"] / 1e12
    # Half a second on 8 devices of 2 TFLOP/s each.
    assert result["mfu"] == pytest.approx(result["model_tflop"] / 0.5 / 16)
    assert set(result["compilation"]) == {"decoder", "generator", "network", "token_sampling"}


def test_sample_times_every_step_of_a_generator_and_the_parts_of_one(clock):
    config, found = small_config(), opened()
    config["distill"]["steps"] = 3
    (result,) = sampler_speed.sample(config, found, clock, [8])
    chosen = one_step.settings_from(settings.sampler_of(config), found.network)
    assert chosen.num_steps == result["num_steps"] == 3
    expected = drawn(found.network, None, chosen)
    np.testing.assert_array_equal(np.round(CODES * clock.seen[0]).reshape(8, L), expected)
    assert result["model_tflop"] == 8 * OPERATIONS["maskgit"] / 1e12


@pytest.mark.parametrize(
    ("family", "name", "guidance"),
    [("maskgit", "maskgit", 3.0), ("halton", "halton", 1.0), ("google_maskgit", "google", None)],
)
def test_teacher_sample_times_the_familys_sampler_at_each_number_of_steps(
    clock, family, name, guidance
):
    models_, sampler = opened(family, has_null=name != "google"), samplers.SAMPLERS[name]
    found = sampler_speed.teacher_sample(small_config(), models_, clock, [8], [2, 5], guidance)
    tokens = clock.seen[2::2]  # after the decoder: whole and tokens, for each number of steps
    for result, tokens_, steps in zip(found, tokens, (2, 5), strict=True):
        extra = {} if name == "google" else {"guidance": guidance}
        chosen, null = sampler.settings(num_steps=steps, **extra), np.full(8, CLASSES, np.int32)
        expected = drawn(models_.network, null, chosen)
        np.testing.assert_array_equal(tokens_, expected)
        assert (result["sampler"], result["num_steps"]) == (name, steps)
        assert result["guidance"] == (guidance or 1.0)
        passes = 8 * steps * (2 if guidance == 3 else 1)
        assert result["model_tflop"] == passes * OPERATIONS[family] / 1e12
    assert list(found[0]["latency_seconds"]) == ["whole", "tokens", "decoder"]
    # One program for all numbers of steps.
    assert found[0]["compilation"] == found[1]["compilation"]


def a_text_table():
    """Likewise with text: a table that the prompt's pooled features are added to."""
    plain, config = a_table("maskgit"), meissonic.get_config("smoke").to_dict()
    encoder = text_encoder.open_encoder(config, None)
    model = settings.network_of(config, L, CODES)

    def apply(params, tokens, condition, *, perturb=None, dropout_key=None):
        added = 100 * jnp.pad(condition["pooled"], ((0, 0), (0, CODES - 16)))
        return plain.apply(params, tokens, jnp.zeros(len(tokens), int)) + added[:, None]

    network = Network(model.config, L, CODES, 0, plain.init, apply, condition=model.condition)
    return config, step_speed.Models(network, params_of_a_table(), painter(), {}, encoder)


def test_the_text_encoder_is_timed_apart_and_is_part_of_the_whole(clock):
    config, found = a_text_table()
    (result,) = sampler_speed.sample(config, found, clock, [8])
    features, whole, *_ = clock.seen
    assert list(result["latency_seconds"]) == [
        "condition_encoder", "whole", "network", "token_sampling", "decoder"
    ]  # fmt: skip
    micro = config["prompts"]["micro_conditions"]
    expected = found.encoder.conditions(found.network, 8, micro)([step_speed.PROMPT] * 8)
    for name, want in expected.items():
        np.testing.assert_allclose(features[name], want, rtol=1e-4, atol=1e-4)
    chosen = one_step.settings_from(settings.sampler_of(config), found.network)
    key = jax.random.key(config["seed"])
    tokens = samplers.sample(found.network, found.params, key, expected, None, chosen, 8)
    np.testing.assert_array_equal(np.round(CODES * whole).reshape(8, L), tokens)
    results = sampler_speed.teacher_sample(config, found, clock, [4], [2, 3])
    assert [x["sampler"] for x in results] == ["meissonic"] * 2 and results[0]["guidance"] == 4
    assert set(results[1]["latency_seconds"]) == {"whole", "tokens", "condition_encoder", "decoder"}


def test_what_a_part_is_given_is_there_before_it_is_timed(clock, monkeypatch):
    """Else the first call waits for the part before, which is no time of its own."""
    wait, waited = jax.block_until_ready, []

    def recorded(tree):
        waited.extend(x.shape for x in jax.tree.leaves(tree))
        return wait(tree)

    monkeypatch.setattr(jax, "block_until_ready", recorded)
    sampler_speed.sample(small_config(), opened(), clock, [8])
    assert (8, L, CODES) in waited  # the logits that tokens are drawn from
    assert waited.count((8,)) >= 2  # keys and labels


def test_what_takes_long_is_told_with_an_eta(monkeypatch):
    notes, now = [], iter([0.0, 90.0, 100.0, 104.0, 200.0, 275.0])
    monkeypatch.setattr(
        step_speed.timing, "measure", functools.partial(timing.measure, clock=lambda: next(now))
    )
    found = step_speed.Clock(2, 1, 1, None, notes.append).time("decoder", lambda: 0)
    assert found.seconds == (4.0, 75.0)
    assert notes == ["decoder: 90 s, 1 of 3, ETA 3:00 min", "decoder: 75 s, 3 of 3, ETA 0 s"]


def test_a_part_is_decoded_before_the_next_is_sent():
    """Else a processor holds the memory of all of them at once."""
    events = []

    class Waited(np.ndarray):
        def block_until_ready(self):
            events.append("wait")
            return self

    def decode(tokens):
        events.append("send")
        return 2 * tokens

    tokens = np.arange(6).reshape(3, 2).view(Waited)
    rows = [np.array([0, 1]), np.array([2, 2])]  # the last repeats, as tokenizer.chunks does
    found = sampler_speed.decoded(decode, tokens, rows)
    assert events == ["wait", "send", "wait", "send", "wait"]
    np.testing.assert_array_equal(found, 2 * tokens)


def test_the_teachers_guidance_is_that_of_the_training_where_none_is_given(clock):
    (result,) = sampler_speed.teacher_sample(small_config(), opened(), clock, [1], [1])
    assert result["guidance"] == 2.0
    with pytest.raises(InputError, match="no null class, which guidance needs; give --guidance=1"):
        sampler_speed.teacher_sample(
            small_config(), opened("google_maskgit", False), clock, [1], [1], 2.0
        )


def test_what_does_not_divide_by_the_devices_is_drawn_on_one(clock):
    (result,) = sampler_speed.decode(small_config(), opened(), clock, [3])
    assert result["num_devices"] == 1 and len(clock.seen[0].sharding.device_set) == 1
    assert clock.seen[0].shape == (3, 4, 4, 1) and result["images_per_second"] == 6


def test_large_images_are_decoded_as_sample_decodes_them(clock, monkeypatch):
    monkeypatch.setattr(tokenizer, "PIXELS_AT_ONCE", 40)  # two images of 4 x 4
    (result,) = sampler_speed.decode(small_config(), opened(), clock, [3])
    codes = np.random.default_rng(SEED).integers(CODES, size=(3, L), dtype=np.int32)
    np.testing.assert_array_equal(np.round(CODES * clock.seen[0]).reshape(3, L), codes)
    assert result["images_per_second"] == 6


NARROW = models.build({"name": "maskgit", **SIZES, "width": 8, "depth": 1, "heads": 2,
                       "mlp_dim": 16, **EXTRA["maskgit"]})  # fmt: skip


@pytest.fixture(scope="module")
def step():
    """The compiled step of the narrow network, for all tests that need it."""
    config, layout = train_config(), sharding.layout(train_config()["mesh"])
    shapes = jax.eval_shape(NARROW.init, jax.random.key(0))
    program = programs.distill_program(config, NARROW, NARROW, shapes, layout)
    return timing.compiled(program.lower)


def narrow(scale):
    shapes = jax.eval_shape(NARROW.init, jax.random.key(0))
    numbers = np.random.default_rng(1)
    draw = lambda x: (scale * numbers.normal(size=x.shape)).astype(np.float32)  # noqa: E731
    return step_speed.Models(NARROW, jax.tree.map(draw, shapes), painter(), {})


def test_training_is_timed_as_it_runs_on_the_mesh(clock, step, monkeypatch):
    monkeypatch.setattr(timing, "compiled", lambda lower: step)
    found = narrow(0.3)
    result = step_speed.train(train_config(), found, clock)
    ((state, values),) = clock.seen
    assert int(state.step) == 1 and float(values["generator_grad_norm"]) > 0
    kernel = lambda tree: np.asarray(tree["last"]["kernel"])  # noqa: E731
    # Trained from the given weights, which Adam's first step moves by its rate and no more.
    assert 0 < np.abs(kernel(state.generator) - kernel(found.params)).max() < 2e-5
    assert result["mesh"] == {"data": 8, "fsdp": 1} and result["images_per_second"] == 16
    # Generator 3, teacher 1, auxiliary 3; two backward passes leave the frozen token table out.
    operations = 8 * (7 * OPERATIONS["maskgit"] - 2 * 2 * 16 * 8 * 30)
    assert result["model_tflop"] == operations / 1e12
    assert result["mfu"] == pytest.approx(operations / 0.5 / (8 * 2e12))
    # The state is given back in its own place: nearly all that goes in and comes out.
    assert result["program"]["donated_bytes"] > 0.8 * result["program"]["outputs_bytes"] > 0
    assert result["compile_seconds"] == step[1]["compile_seconds"] > 0


def test_more_steps_are_recorded_after_those_that_are_timed(clock, step, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "compiled", lambda lower: step)
    request = traces.Request(traces.Window(1, 2), tmp_path, "batch")
    object.__setattr__(clock, "profile", request)
    step_speed.train(train_config(), narrow(0.3), clock)
    assert len(clock.seen) == 1
    (path,) = (tmp_path / "plugins/profile/batch_8_step_1").iterdir()
    assert recorded_steps(path, "batch_8") == [1, 2]


def test_a_step_that_computes_no_numbers_is_refused(clock, step, monkeypatch):
    monkeypatch.setattr(timing, "compiled", lambda lower: step)
    with pytest.raises(InputError, match="divergence of nan"):
        step_speed.train(train_config(), narrow(np.nan), clock)
