"""`benchmark`: the command, what it writes, and what it refuses. No time decides."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import emoji
from dimo_jax import benchmark, bundles, models, tokenizers
from dimo_jax.commands import benchmark as timing
from dimo_jax.common.errors import InputError
from dimo_jax.generation import drawing
from dimo_jax.profiling import data_speed, devices, sampler_speed, step_speed
from dimo_jax.runs import training_sets
from tests.helpers import digit_tokens
from tests.helpers.command_line import NETWORK, run_command
from tests.helpers.timed_models import opened, small_config


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command on small models."""
    monkeypatch.setattr(step_speed, "open_models", lambda config: opened())

    def forget_overrides():
        """Overrides of the config's fields become flags, once for each parsing, and stay."""
        for name in [name for name in benchmark.FLAGS if name.startswith("config.")]:
            delattr(benchmark.FLAGS, name)

    def run(*arguments, config="configs/imagenet.py:smoke"):
        forget_overrides()
        every = [f"--config={config}", "--repetitions=2", "--warmup=0", *arguments]
        return run_command(benchmark, every, monkeypatch, capsys)

    yield run
    forget_overrides()


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

    monkeypatch.setattr(step_speed if what == "train" else sampler_speed, what, measured)
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


@pytest.mark.parametrize(("tokens_at_once", "expected"), [(1 << 15, [1, 8, 64]), (64, [1, 8])])
def test_the_largest_batch_is_that_of_sample(run, monkeypatch, tokens_at_once, expected):
    seen = []

    def measured(config, models_, clock, sizes):
        seen.extend(sizes)
        return []

    monkeypatch.setattr(sampler_speed, "sample", measured)
    monkeypatch.setattr(drawing, "TOKENS_AT_ONCE", tokens_at_once)
    status, _, err = run("--what=sample")
    assert (status, seen) == (0, expected), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--what=sample", "--batch_size=1,x"], "--batch_size=1,x must be whole numbers above 0"),
        (["--what=decode", "--batch_size=0"], "--batch_size=0 must be whole numbers above 0"),
        (["--what=teacher_sample", "--steps="], "--steps= must be whole numbers"),
        (["--what=train", "--steps=8"], "--steps is for --what=teacher_sample, not for --what=tr"),
        (["--profile=trace/"], "--profile=trace/ is not STEP:STEPS"),
        (["--profile=3:2"], "--profile writes into a folder beside --output; give that too"),
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

    monkeypatch.setattr(step_speed, "train", full)
    status, _, err = run()
    assert status == 2 and "memory is too small (RESOURCE_EXHAUSTED: " in err
    assert "allocating 1 bytes); give a smaller --batch_size" in err


def test_the_peak_of_a_known_device_is_its_makers(run, monkeypatch):
    class Device:
        device_kind = "TPU v5 lite"

    run("--what=decode", "--batch_size=1")
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert timing.peak(None)["tflop_per_second_per_device"] == devices.DEVICES["v5e"].bf16_tflops


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
        step_speed.open_models(config)
    config["data"]["num_classes"] = 10
    found = step_speed.open_models(config)
    assert found.network.config == NETWORK and found.tokenizer.config == gray.config
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    jax.tree.map(np.testing.assert_array_equal, found.make_params(0, place), params)
    config["tokenizer"] = {"bundle": "", "name": "gray_levels", "image_size": 4}
    with pytest.raises(InputError, match="64 tokens of 17 codes, the tokenizer 16 of 17; set con"):
        step_speed.open_models(config)
    config["data"]["name"] = "joint"
    with pytest.raises(InputError, match="joint, which has no images"):
        step_speed.open_models(config)


def test_without_bundles_the_configs_own_models_are_made():
    found = step_speed.open_models(small_config())
    assert (found.network.num_tokens, found.network.config["width"]) == (64, 64)
    assert found.params is None and found.tokenizer.config["name"] == "vqgan"


def test_data_is_read_and_compared_with_a_step(run, tmp_path, monkeypatch):
    used = dataclasses.replace(opened(), network=models.build(NETWORK), params=None)
    monkeypatch.setattr(step_speed, "open_models", lambda config: used)
    path = digit_tokens.write(tmp_path / "tokens", num=40)
    arguments = ["--what=data", f"--config.data.path={path}", "--batch_size=8", "--calls=3"]
    given = {"config": "configs/pictures.py:tiny"}
    status, out, err = run(*arguments, "--step_seconds=1e-9", **given)
    assert status == 0 and "the steps wait" in err, err
    (slow,) = json.loads(out)["results"]
    status, out, err = run(*arguments, "--step_seconds=1000", **given)
    assert status == 0 and "no step waits" in err, err
    (fast,) = json.loads(out)["results"]
    assert slow["steps_wait"] and not fast["steps_wait"]
    assert fast["step_seconds_source"] == "--step_seconds" and fast["num_examples"] == 40
    rate = 8 / fast["batch_seconds"]["median"]
    assert fast["images_per_second"] == pytest.approx(rate)
    assert fast["tokens_per_second"] == pytest.approx(64 * rate)
    status, _, err = run("--what=data", "--config.data.num_classes=10", **given)
    assert status == 2 and "give --config.data.path" in err
    status, out, err = run(*arguments, **given)
    (timed,) = json.loads(out)["results"]
    assert timed["step_seconds_source"] == "timed here" and timed["step_seconds"] > 0, err
    used = dataclasses.replace(used, network=models.build({**NETWORK, "codebook_size": 16}))
    status, _, err = run(*arguments, **given)
    assert status == 2 and "64 tokens of 17 codes, the network 64 of 16" in err


@pytest.mark.long
def test_captions_are_read_for_a_network_that_takes_text(tmp_path):
    path = digit_tokens.write(tmp_path / "texts", num=40, condition="text")
    sizes = {"vocabulary": 520, "context": 12, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 12}
    config = emoji.get_config("text")
    config.data.update(name="tokens", path=str(path), num_classes=-1, num_test=0)
    config.text_encoder.update(projection=6, text=sizes)
    config.pretrain.update(batch_size=8, parts=1)
    config = training_sets.resolved(config.to_dict())
    network = models.build(
        {
            **{"name": "meissonic", "num_tokens": 64, "codebook_size": 17, "vocabulary": 18},
            **{"width": 16, "depth": 1, "single_depth": 0, "heads": 2, "mlp_dim": 32},
            **{"text_length": 12, "text_dim": 8, "pooled_dim": 6, "rope_dims": [2, 4, 2]},
            **{"merge": False, "timestep": "ratio"},
        }
    )
    used = dataclasses.replace(opened(), network=network, params=None)
    examples, texts = training_sets.examples_to_read(config, network)
    assert len(texts) == examples.num == 40 and texts[3].startswith("the digit ")
    conditions = data_speed.conditions_of(config, used, texts)
    # Letters that the captions share are one id.
    (ids,) = conditions.features(np.array([3]))["ids"]
    assert 2 < (ids != ids[-1]).sum() < len(texts[3].replace(" ", ""))
    clock = step_speed.Clock(1, 0, 1, None, lambda line: None)
    found = data_speed.read(config, used, examples, conditions, clock, None)
    assert found["step_seconds_source"] == "timed here" and found["step_seconds"] > 0
    assert found["num_examples"] == 40 and found["tokens_per_second"] > 0
    with pytest.raises(InputError, match="has captions, and the network maskgit takes classes"):
        training_sets.examples_to_read(config, models.build(NETWORK))
