"""`benchmark`: that what it times is what the package runs, and what it writes. No time decides."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import NETWORK, run_command

from configs import imagenet, meissonic
from dimo_jax import benchmark, bundles, models, samplers, tokenizers
from dimo_jax.errors import InputError
from dimo_jax.evaluation import flops, timing
from dimo_jax.models import Network
from dimo_jax.parallel import devices, sharding
from dimo_jax.runs import conditions, sampler_speed, speed
from dimo_jax.samplers import one_step
from dimo_jax.tokenizers import tokenizer
from dimo_jax.training import programs, settings

# On one worker, which makes the fixtures once.
pytestmark = pytest.mark.xdist_group("benchmark")

L, CODES, CLASSES, WIDTH, SEED = 16, 30, 10, 4, 3407
SIZES = {"num_tokens": L, "codebook_size": CODES, "num_classes": CLASSES}


EXTRA = {
    "maskgit": {"dropout": 0.0, "predict_mask_id": False},
    "halton": {},
    "google_maskgit": {"dropout": 0.0},
}


def params_of_a_table(seed=0):
    numbers = np.random.default_rng(seed)
    shapes = {
        "token_embedding": (CODES + 1, WIDTH),
        "class_embedding": (CLASSES + 1, CODES),
        "kernel": (WIDTH, CODES),
    }
    return {k: numbers.normal(size=x).astype(np.float32) for k, x in shapes.items()}


def a_table(family, has_null=True):
    """What stands for a network of a family: compiled in no time, and it depends on all it gets."""
    config = models.build({"name": family, **SIZES, "width": 8, "depth": 1, "heads": 2,
                           "mlp_dim": 16, **EXTRA[family]}).config  # fmt: skip

    def apply(params, tokens, condition, *, perturb=None, dropout_key=None):
        x = params["token_embedding"][tokens]
        x = x if perturb is None else perturb(x)
        return x @ params["kernel"] + params["class_embedding"][condition][:, None]

    def init(key):
        return jax.tree.map(jnp.asarray, params_of_a_table())

    return Network(config, L, CODES, CLASSES, init, apply, has_null)


def painter():
    """A tokenizer whose image shows its tokens."""
    return tokenizers.Tokenizer(
        {"name": "painter"}, (4, 4), CODES, (4, 4, 1), lambda key: {},
        lambda params, images: None,
        lambda params, tokens: tokens.reshape(-1, 4, 4, 1) / CODES,
    )  # fmt: skip


def opened(family="maskgit", has_null=True):
    return speed.Models(a_table(family, has_null), params_of_a_table(), painter(), {})


def small_config():
    config = imagenet.get_config("smoke").to_dict()
    config["distill"]["batch_size"] = 8
    return config


def train_config():
    """The cheapest step to compile: one branch of the teacher, one forward of the auxiliary."""
    config = small_config()
    config["distill"]["guidance"] = 1.0
    config["distill"]["auxiliary"].update(sample="reuse", label_smoothing=0.0)
    return config


class Recording(speed.Clock):
    """Calls once and keeps the result; every time is half a second."""

    def time(self, name, call, calls=1):
        self.seen.append(call())
        return timing.Times((0.5,))


@pytest.fixture
def clock():
    found = Recording(1, 0, 1, 2.0, lambda text: None)
    object.__setattr__(found, "seen", [])
    return found


def drawn(network, sampler, *args):
    """Tokens of 8 images by a sampler of the package, seed and labels as the benchmark's."""
    labels = np.arange(8, dtype=np.int32)
    return sampler(network.apply, params_of_a_table(), jax.random.key(SEED), labels, *args)


def test_sample_times_the_one_step_generator_and_its_parts(clock):
    config, found = small_config(), opened()
    (result,) = sampler_speed.sample(config, found, clock, [8])
    whole, logits, tokens, _ = clock.seen
    chosen = one_step.settings_from(settings.sampler_of(config), found.network)
    expected = drawn(found.network, one_step.sample, chosen, 8)
    np.testing.assert_array_equal(np.round(CODES * whole).reshape(8, L), expected)
    assert logits.shape == (8, L, CODES) and tokens.shape == (8, L)
    assert list(result["latency_seconds"]) == ["whole", "network", "token_sampling", "decoder"]
    assert result["num_devices"] == 8 and len(whole.sharding.device_set) == 8
    assert result["images_per_second"] == 16 and result["rates_of"] == "network"
    assert result["model_tflop"] == 8 * flops.forward(found.network.config) / 1e12
    # Half a second on 8 devices of 2 TFLOP/s each.
    assert result["mfu"] == pytest.approx(result["model_tflop"] / 0.5 / 16)
    assert set(result["compilation"]) == {"decoder", "generator", "network", "token_sampling"}


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
        expected = drawn(models_.network, sampler.sample, null, chosen, L, CODES, 8)
        np.testing.assert_array_equal(tokens_, expected)
        assert (result["sampler"], result["num_steps"]) == (name, steps)
        assert result["guidance"] == (guidance or 1.0)
        passes = 8 * steps * (2 if guidance == 3 else 1)
        assert result["model_tflop"] == passes * flops.forward(models_.network.config) / 1e12
    assert list(found[0]["latency_seconds"]) == ["whole", "tokens", "decoder"]
    # One program for all numbers of steps.
    assert found[0]["compilation"] == found[1]["compilation"]


def a_text_table():
    """Likewise with text: a table that the prompt's pooled features are added to."""
    plain, config = a_table("maskgit"), meissonic.get_config("smoke").to_dict()
    encoder = conditions.open_encoder(config, None)
    model = settings.network_of(config, L, CODES)

    def apply(params, tokens, condition, *, perturb=None, dropout_key=None):
        added = 100 * jnp.pad(condition["pooled"], ((0, 0), (0, CODES - 16)))
        return plain.apply(params, tokens, jnp.zeros(len(tokens), int)) + added[:, None]

    network = Network(model.config, L, CODES, 0, plain.init, apply, condition=model.condition)
    return config, speed.Models(network, params_of_a_table(), painter(), {}, encoder)


def test_the_text_encoder_is_timed_apart_and_is_part_of_the_whole(clock):
    config, found = a_text_table()
    (result,) = sampler_speed.sample(config, found, clock, [8])
    features, whole, *_ = clock.seen
    assert list(result["latency_seconds"]) == [
        "condition_encoder", "whole", "network", "token_sampling", "decoder"
    ]  # fmt: skip
    expected = found.encoder.conditions(found.network, 8)([speed.PROMPT] * 8)
    for name, want in expected.items():
        np.testing.assert_allclose(features[name], want, rtol=1e-4, atol=1e-4)
    chosen = one_step.settings_from(settings.sampler_of(config), found.network)
    key = jax.random.key(config["seed"])
    tokens = one_step.sample(found.network.apply, found.params, key, expected, chosen, 8)
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
        speed.timing, "measure", functools.partial(timing.measure, clock=lambda: next(now))
    )
    found = speed.Clock(2, 1, 1, None, notes.append).time("decoder", lambda: 0)
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
    return speed.Models(NARROW, jax.tree.map(draw, shapes), painter(), {})


def test_training_is_timed_as_it_runs_on_the_mesh(clock, step, monkeypatch):
    monkeypatch.setattr(timing, "compiled", lambda lower: step)
    found = narrow(0.3)
    result = speed.train(train_config(), found, clock)
    ((state, values),) = clock.seen
    assert int(state.step) == 1 and float(values["generator_grad_norm"]) > 0
    kernel = lambda tree: np.asarray(tree["last"]["kernel"])  # noqa: E731
    # Trained from the given weights, which Adam's first step moves by its rate and no more.
    assert 0 < np.abs(kernel(state.generator) - kernel(found.params)).max() < 2e-5
    assert result["passes"] == {"generator": 3, "teacher": 1, "auxiliary": 3}
    assert result["mesh"] == {"data": 8, "fsdp": 1} and result["images_per_second"] == 16
    operations = 7 * 8 * flops.forward(NARROW.config)
    assert result["model_tflop"] == operations / 1e12
    assert result["mfu"] == pytest.approx(operations / 0.5 / (8 * 2e12))
    # The state is given back in its own place: nearly all that goes in and comes out.
    assert result["program"]["donated_bytes"] > 0.8 * result["program"]["outputs_bytes"] > 0
    assert result["compile_seconds"] == step[1]["compile_seconds"] > 0


def test_a_step_that_computes_no_numbers_is_refused(clock, step, monkeypatch):
    monkeypatch.setattr(timing, "compiled", lambda lower: step)
    with pytest.raises(InputError, match="divergence of nan"):
        speed.train(train_config(), narrow(np.nan), clock)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command on small models."""
    monkeypatch.setattr(speed, "open_models", lambda config: opened())

    def run(*arguments, config="configs/imagenet.py:smoke"):
        # Overrides of the config's fields become flags, once for each parsing.
        for name in [name for name in benchmark.FLAGS if name.startswith("config.")]:
            delattr(benchmark.FLAGS, name)
        every = [f"--config={config}", "--repetitions=2", "--warmup=0", *arguments]
        return run_command(benchmark, every, monkeypatch, capsys)

    return run


def test_the_command_writes_what_was_measured_and_on_what(tmp_path, run):
    path = tmp_path / "new" / "sizes.json"
    status, out, err = run("--what=decode", "--batch_size=1,8", "--peak_tflops=4",
                           f"--output={path}")  # fmt: skip
    assert (status, out) == (0, f"{path}\n"), err
    assert "compiles the decoder, batch 8" in err and "batch_size 1: " in err
    found = json.loads(path.read_text())
    assert found["what"] == "decode" and found["config"]["file"] == "configs/imagenet.py:smoke"
    assert found["config"]["title"] == "ImageNet smoke test: random weights"
    assert found["config"]["compute_dtype"] == "bfloat16"
    assert found["config"]["weights"] == {"teacher": "random", "tokenizer": "random"}
    assert found["machine"]["device_kind"] == "cpu" and found["machine"]["device_count"] == 8
    assert found["machine"]["jax"] == jax.__version__ and found["machine"]["python"]
    assert found["peak"] == {"tflop_per_second_per_device": 4.0, "source": "--peak_tflops"}
    assert found["model"]["name"] == "maskgit"
    assert found["model"]["num_parameters"] == 31 * 4 + 11 * 30 + 4 * 30
    assert [result["batch_size"] for result in found["results"]] == [1, 8]
    for result in found["results"]:
        times = result["latency_seconds"]["whole"]
        assert 0 < times["least"] <= times["lower_quartile"] <= times["median"]
        assert times["repetitions"] == 2 and result["device_peak_bytes"] is None
        assert result["images_per_second"] == pytest.approx(result["batch_size"] / times["median"])
        assert result["compilation"]["decoder"]["compile_seconds"] > 0


def test_without_an_output_the_result_is_all_of_stdout(run):
    status, out, err = run("--what=decode", "--batch_size=3")
    assert status == 0 and "give --peak_tflops" in err
    (result,) = json.loads(out)["results"]
    assert result["mfu"] is None and result["num_devices"] == 1


@pytest.mark.parametrize("what", ["sample", "teacher_sample", "train"])
def test_each_choice_goes_to_its_measurement(run, monkeypatch, what):
    calls = []

    def measured(config, models_, clock, *given):
        calls.append((config["distill"]["batch_size"], clock, given))
        result = {"batch_size": 1, "images_per_second": 2.0}
        return result if what == "train" else [result]

    monkeypatch.setattr(speed if what == "train" else sampler_speed, what, measured)
    extra = ["--steps=4,2"] if what == "teacher_sample" else []
    status, out, err = run(f"--what={what}", "--batch_size=2,6", "--calls=7", *extra)
    assert status == 0, err
    sizes, _, given = zip(*calls, strict=True)
    expected = {
        "train": ((2, 6), ((), ())),
        "sample": ((4,), (([2, 6],),)),
        "teacher_sample": ((4,), (([2, 6], [4, 2], None),)),
    }
    assert (sizes, given) == expected[what]
    assert (calls[0][1].repetitions, calls[0][1].warmup, calls[0][1].calls) == (2, 0, 7)
    assert len(json.loads(out)["results"]) == len(calls)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--what=sample", "--batch_size=1,x"], "--batch_size=1,x must be whole numbers above 0"),
        (["--what=decode", "--batch_size=0"], "--batch_size=0 must be whole numbers above 0"),
        (["--what=teacher_sample", "--steps="], "--steps= must be whole numbers"),
        (["--what=train", "--steps=8"], "--steps is for --what=teacher_sample, not for --what=tr"),
        (["--what=decode", "--profile=x"], "--profile is for --what=train, not for --what=decode"),
        (["--what=all"], "should be one of"),
        (["--batch_size=12"], "does not divide by 8 devices; the nearest that fits: 8 or 16"),
        (["--peak_tflops=0"], "--peak_tflops=0.0 must be above 0"),
        (["--config.distill.sigma=2"], "config.distill.sigma is 2"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(run, arguments, words):
    status, out, err = run(*arguments)
    last = err.splitlines()[-1]
    assert status == 2 and out == "" and last.startswith("error: ") and words in last, err


def test_too_little_memory_is_said_and_what_helps(run, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    monkeypatch.setattr(speed, "train", full)
    status, _, err = run()
    assert status == 2 and "memory is too small for this; give a smaller --batch_size" in err


def test_the_peak_of_a_known_device_is_its_makers(run, monkeypatch):
    class Device:
        device_kind = "TPU v5 lite"

    run("--what=decode", "--batch_size=1")
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert benchmark.peak()["tflop_per_second_per_device"] == devices.DEVICES["v5e"].bf16_tflops


def test_the_bundles_that_are_named_are_what_is_timed(tmp_path):
    numbers, network = np.random.default_rng(5), models.build(NETWORK)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda x: numbers.normal(size=x.shape).astype(np.float32), shapes)
    bundles.save(tmp_path / "teacher", kind="teacher", model=NETWORK, params=params)
    gray = tokenizers.build({"name": "gray_levels"})
    bundles.save(tmp_path / "gray", kind="tokenizer", model=gray.config, params={})
    config = small_config()
    config["teacher"]["bundle"] = str(tmp_path / "teacher")
    config["tokenizer"] = {"bundle": str(tmp_path / "gray"), "name": "vqgan"}
    with pytest.raises(InputError, match="has 10 classes, config.data.num_classes is 1000"):
        speed.open_models(config)
    config["data"]["num_classes"] = 10
    found = speed.open_models(config)
    assert found.network.config == NETWORK and found.tokenizer.config == gray.config
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    jax.tree.map(np.testing.assert_array_equal, found.make_params(0, place), params)
    config["tokenizer"] = {"bundle": "", "name": "gray_levels", "image_size": 4}
    with pytest.raises(InputError, match="64 tokens of 17 codes, the tokenizer 16 of 17; set con"):
        speed.open_models(config)
    config["data"]["name"] = "joint"
    with pytest.raises(InputError, match="joint, which has no images"):
        speed.open_models(config)


def test_without_bundles_the_configs_own_models_are_made():
    found = speed.open_models(small_config())
    assert (found.network.num_tokens, found.network.config["width"]) == (64, 64)
    assert found.params is None and found.tokenizer.config["name"] == "vqgan"
