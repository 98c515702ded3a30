"""benchmarks/one_card: what is measured of one card is kept, and what fails is a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import one_card
from one_card import GIB, Part


def script(tmp_path, body):
    """A command that is called with --output=FILE and counts its calls."""
    path = tmp_path / "part.py"
    path.write_text(
        f"import json, sys\nopen({str(tmp_path / 'calls')!r}, 'a').write('x')\n"
        f"output = sys.argv[-1].removeprefix('--output=')\n{body}"
    )
    return (sys.executable, str(path))


def calls(tmp_path):
    return len((tmp_path / "calls").read_text())


def test_a_part_that_is_done_is_not_measured_again(tmp_path):
    command = script(tmp_path, "json.dump({'figure': 4}, open(output, 'w'))")
    first = one_card.measure(Part("one", command), tmp_path, 60)
    again = one_card.measure(Part("one", command), tmp_path, 60)
    assert first == again and first["result"] == {"figure": 4} and calls(tmp_path) == 1
    other = one_card.measure(Part("one", (*command, "--batch_size=2")), tmp_path, 60)
    assert calls(tmp_path) == 2 and other["command"].endswith("--batch_size=2")


def test_a_part_that_fails_is_a_sentence_and_is_tried_again(tmp_path):
    command = script(tmp_path, "sys.exit('error: the memory is too small')")
    for number in (1, 2):
        found = one_card.measure(Part("one", command), tmp_path, 60)
        assert found["not_measured"] == "error: the memory is too small (exit status 1)"
        assert "result" not in found and calls(tmp_path) == number
    script(tmp_path, "json.dump(3, open(output, 'w'))")
    assert one_card.measure(Part("one", command), tmp_path, 60)["result"] == 3


def test_a_part_that_takes_too_long_is_ended(tmp_path):
    command = script(tmp_path, "import time\ntime.sleep(60)")
    found = one_card.measure(Part("one", command), tmp_path, 1)
    assert found["not_measured"] == "it took longer than 1 s" and found["seconds"] < 20


def test_a_plan_that_does_not_fit_is_a_result(tmp_path):
    command = script(tmp_path, "json.dump({'fits': False}, open(output, 'w')); sys.exit(2)")
    assert one_card.measure(Part("plan", command), tmp_path, 60)["result"] == {"fits": False}


def test_the_table_has_measured_and_predicted_and_pytorch_side_by_side():
    times = lambda median: {"median": median, "lower_quartile": median}  # noqa: E731
    trained = {
        "step_seconds": times(0.5), "mfu": 0.4, "images_per_second": 128.0,
        "device_peak_bytes": 30 * GIB,
    }  # fmt: skip
    drawn = {
        "latency_seconds": {"whole": times(0.01)}, "images_per_second": 100.0, "mfu": 0.1,
        "device_peak_bytes": 2 * GIB,
    }  # fmt: skip
    predicted = {"step_seconds": 0.25, "is_bound": True}
    records = {
        "train_64": {"result": {"results": [trained]}},
        "train_256": {"not_measured": "out of memory"},
        "torch_64": {"result": {
            "step": {
                "seconds": {"torch_cuda": times(0.75)},
                "facts": {"torch_cuda": {"device_peak_bytes": 40 * GIB}},
            },
        }},
        "plan_64": {"result": {"memory": {"peak_bytes": 28 * GIB}, "predicted": predicted}},
        "plan_256": {"result": {"memory": {}}},
        "sample_1": {"result": {"results": [drawn]}},
        "teacher_sample_64": {"result": {"results": [
            {**drawn, "num_steps": 8}, {**drawn, "num_steps": 16},
        ]}},
    }  # fmt: skip
    small, large, one, *teacher = one_card.table(records, [64, 256])
    assert small == {
        "what": "training step", "batch_size": 64, "step_seconds": times(0.5), "mfu": 0.4,
        "images_per_second": 128.0, "peak_gib": 30.0, "torch_step_seconds": times(0.75),
        "torch_peak_gib": 40.0, "torch_over_dimo_jax": 1.5, "predicted_peak_gib": 28.0,
        "predicted_is_bound": True, "predicted_seconds": 0.25, "measured_over_predicted": 2.0,
    }  # fmt: skip
    assert large["batch_size"] == 256 and "step_seconds" not in large
    assert (one["what"], one["batch_size"], one["steps"]) == ("one step", 1, 1)
    assert [(x["what"], x["batch_size"], x["steps"]) for x in teacher] == [
        ("teacher", 64, 8), ("teacher", 64, 16)
    ]  # fmt: skip


def commands(kind, *given):
    arguments = one_card.parser().parse_args(given)
    arguments.options = []
    return {x.name: x for x in one_card.parts(arguments, kind)}


def test_what_runs_on_a_gpu():
    found = commands("NVIDIA H100 80GB HBM3", "--torch_python=other/python")
    assert list(found) == [
        "train_64", "train_256", "sample_1", "teacher_sample_1", "sample_64", "teacher_sample_64",
        "torch_64", "torch_256", "plan_64", "plan_256",
    ]  # fmt: skip
    assert "--topology=h100:1" in found["plan_256"].command
    assert "--config.distill.batch_size=256" in found["plan_256"].command
    assert found["torch_64"].command[0] == "other/python"
    assert {"--config=full", "--device=cuda", "--dtype=bfloat16"} <= {*found["torch_64"].command}
    # The card is left to what is measured, and that may take nearly all of it.
    assert found["torch_64"].environment == found["plan_64"].environment == {"JAX_PLATFORMS": "cpu"}
    assert found["train_64"].environment == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    assert not any(part.impossible for part in found.values())


@pytest.mark.parametrize(
    ("kind", "given", "name", "words"),
    [
        ("NVIDIA T4", [], "plan_64", "there is no plan for the device NVIDIA T4"),
        ("cpu", [], "torch_64", "there is no PyTorch"),
        ("cpu", ["--torch_python=p", "--config=configs/meissonic.py"], "torch_64",
         "torch_step.py has no network for configs/meissonic.py"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_says_why(tmp_path, kind, given, name, words):
    found = one_card.measure(commands(kind, *given)[name], tmp_path, 60)
    assert words in found["not_measured"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The command on this processor: (its file, its folder, how to start it again)."""
    folder = tmp_path_factory.mktemp("card")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PYTHON": sys.executable, "TORCH_PYTHON": sys.executable}
    environment["JAX_PLATFORMS"] = "cpu"

    def run(*more):
        command = (
            *(str(ROOT / "benchmarks" / "one_card.sh"), f"--output={folder}"),
            *("--config=configs/imagenet.py:smoke", "--batch_sizes", "2", "--repetitions=1", *more),
        )
        return subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )

    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}/one_card.json\n"
    return json.loads((folder / "one_card.json").read_text()), folder, run


@pytest.mark.slow
@pytest.mark.long
def test_the_command_ends_in_one_file_with_every_figure(finished):
    found, _, _ = finished
    assert found["not_measured"] == {} and found["device_kind"] == "cpu"
    assert [(x["what"], x["batch_size"], x.get("steps")) for x in found["table"]] == [
        ("training step", 2, None), ("one step", 1, 1), ("one step", 2, 1), ("teacher", 1, 8),
        ("teacher", 1, 16), ("teacher", 2, 8), ("teacher", 2, 16),
    ]  # fmt: skip
    train, *samples = found["table"]
    assert train["step_seconds"]["median"] > 0 and train["torch_step_seconds"]["median"] > 0
    assert train["predicted_peak_gib"] > 0
    assert all(x["latency_seconds"]["median"] > 0 for x in samples)


@pytest.mark.slow
@pytest.mark.long
def test_the_command_again_measures_what_is_missing_and_nothing_else(finished):
    _, folder, run = finished
    (Path(folder) / "parts" / "plan_2.json").unlink()
    done = run()
    started = [line for line in done.stderr.splitlines() if " -m " in line or "--only" in line]
    assert len(started) == 1 and started[0].startswith("plan_2: "), done.stderr


@pytest.mark.slow
@pytest.mark.long
def test_a_misspelt_flag_is_refused(finished):
    _, _, run = finished
    done = run("--repetition_s=3")
    assert done.returncode == 2 and "--repetition_s=3 is no flag of this program" in done.stderr
