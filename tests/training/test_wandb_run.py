"""Weights & Biases in its offline mode: what its files hold, over kills and resumes."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image

from dimo_jax import config as configs
from dimo_jax.common.errors import InputError, Interrupted
from dimo_jax.training import wandb_run
from dimo_jax.training.metrics import Metrics
from tests.helpers import wandb_files

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
KILLED = """
import os, sys, pathlib
from tests.training import test_wandb_run
metrics = test_wandb_run.started(pathlib.Path(sys.argv[1]))
first, end = map(int, sys.argv[2:])
metrics.rewind("pretrain", first - 1)
for step in range(first, end):
    metrics.write(step, {"loss": step / 4}, "pretrain")
print(os.getpid(), flush=True)
input()
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name in [x for x in os.environ if x.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "run", None)  # where a test broke it
    wandb.teardown()  # it reads the variables once
    yield
    wandb.teardown()


def config():
    found = configs.default_config().to_dict()
    found["pretrain"]["num_steps"] = 10
    return found


def started(workdir):
    metrics = Metrics(workdir, tensorboard=False)
    metrics.add(wandb_run.start(config(), workdir))
    return metrics


def services(pid):
    """The library's own processes that belong to a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"wandb-core") and str(pid).encode() in words:
            found.append(int(path.parent.name))
    return found


def losses(row):
    return {name: x for name, x in row.items() if name.endswith(("loss", "/step"))}


def test_it_has_the_records_lines_the_pictures_and_the_config(tmp_path):
    with started(tmp_path) as metrics:
        metrics.write(5, {"loss": 0.5, "rate": float("inf")}, "pretrain")
        metrics.write(10, {"loss": 0.25}, "pretrain")
        metrics.write(2, {"loss": 0.75}, "distill")
        metrics.write(2, {"interim/distance": 3.0}, "distill")
        metrics.images(2, {"samples": PICTURE, "gray": PICTURE[..., :1]}, "distill")
        assert services(os.getpid())
    assert not services(os.getpid())
    ((identity, sent_config, rows, status),) = wandb_files.runs(tmp_path)
    known = json.loads((tmp_path / "wandb.json").read_text())
    assert known == {"id": identity, "sent": 12} and status == 0
    assert sent_config["distill"]["guidance"] == 2.0 and sent_config["prompts"]["texts"] == []
    assert [step for step, _ in rows] == [5, 10, 12]
    assert rows[0][1] == {"pretrain/loss": 0.5, "pretrain/rate": float("inf"), "pretrain/step": 5}
    last = rows[2][1]
    assert (last["distill/step"], last["distill/loss"], last["distill/interim/distance"]) == (
        *(2, 0.75, 3.0),
    )
    for name in ("samples", "gray"):
        (picture,) = tmp_path.glob(f"wandb/offline-run-*/files/{last[f'distill/{name}/path']}")
        written = (tmp_path / "images" / "distill" / f"{name}_0000002.png").read_bytes()
        assert pixels(picture.read_bytes()) == pixels(written)
        found = hashlib.sha256(picture.read_bytes()).hexdigest()
        assert found == last[f"distill/{name}/sha256"]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tolist()


def killed(workdir, first, end):
    """Write some steps in a process of its own, which is killed; wait for the library's own."""
    command = [sys.executable, "-c", KILLED, str(workdir), str(first), str(end)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        assert services(process.pid)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while services(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not services(process.pid), "it outlives the run"


def test_killed_and_continued_it_is_one_run_whose_steps_only_grow(tmp_path):
    """Killed twice, the second time before it is where it was; then stopped; then at its end."""
    killed(tmp_path, 1, 601)  # so many that the library writes most of them out
    killed(tmp_path, 301, 351)
    with pytest.raises(Interrupted), started(tmp_path) as metrics:
        metrics.rewind("pretrain", 300)
        for step in range(301, 605):
            metrics.write(step, {"loss": step / 4}, "pretrain")
        raise Interrupted("stopped by SIGTERM", 143)
    with started(tmp_path) as metrics:
        metrics.rewind("pretrain", 601)
        for step in range(602, 607):
            metrics.write(step, {"loss": step / 4}, "pretrain")
    found = wandb_files.runs(tmp_path)
    known = json.loads((tmp_path / "wandb.json").read_text())
    assert {identity for identity, _, _, _ in found} == {known["id"]} and known["sent"] == 606
    assert [status for _, _, _, status in found][-2:] == [143, 0]
    rows = [row for _, _, rows, _ in found for row in rows]
    steps = [step for step, _ in rows]
    assert steps == sorted(set(steps)) and steps[:300] == list(range(1, 301))
    assert steps[-6:] == list(range(601, 607))
    assert [losses(row) for _, row in rows] == [
        {"pretrain/loss": step / 4, "pretrain/step": step} for step in steps
    ]


def test_turned_on_later_it_gets_what_the_record_has(tmp_path):
    with Metrics(tmp_path, tensorboard=False) as metrics:
        for step in (5, 10):
            metrics.write(step, {"loss": step / 4, "bad": float("nan")}, "pretrain")
    with started(tmp_path) as metrics:
        metrics.rewind("pretrain", 5)
        for step, stage in ((10, "pretrain"), (3, "distill")):
            metrics.write(step, {"loss": step / 4}, stage)
    ((_, _, rows, _),) = wandb_files.runs(tmp_path)
    assert [(step, losses(row)) for step, row in rows] == [
        (5, {"pretrain/loss": 1.25, "pretrain/step": 5}),
        (10, {"pretrain/loss": 2.5, "pretrain/step": 10}),
        (13, {"distill/loss": 0.75, "distill/step": 3}),
    ]


def test_its_failure_ends_it_and_not_the_run(tmp_path, capfd):
    with started(tmp_path) as metrics:
        (service,) = services(os.getpid())
        os.kill(service, signal.SIGKILL)
        deadline = time.monotonic() + 30
        step = 0
        while metrics._views and time.monotonic() < deadline:
            step += 1
            metrics.write(step, {"loss": 1.0}, "pretrain")
            time.sleep(0.01)
        metrics.write(step + 1, {"loss": 1.0}, "pretrain")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == step + 1
    err = capfd.readouterr().err
    assert err.count("nothing more is sent to Weights & Biases (") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "nobody is logged in to Weights & Biases; run `wandb login`, or set WANDB_API_KEY"),
        ({"WANDB_API_KEY": "short"}, "cannot be started (AuthenticationError: WANDB_API_KEY inval"),
        ({"WANDB_MODE": "sometimes"}, "cannot be started (ValidationError: "),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(tmp_path, monkeypatch, variables, words):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused:
        wandb_run.check()
    assert words in str(refused.value)


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    with pytest.raises(InputError, match=r"cannot be started \(.*127\.0\.0\.1:9.*offline"):
        wandb_run.start(config(), tmp_path)
    assert not services(os.getpid()) and not (tmp_path / "wandb.json").exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r'needs the package wandb.*pip install -e ".\[wandb\]"'):
        wandb_run.check()


def test_a_file_that_names_no_run_is_refused(tmp_path):
    (tmp_path / "wandb.json").write_text('{"id": 7, "sent": -1}')
    with pytest.raises(InputError, match="wandb.json does not name a run"):
        wandb_run.start(config(), tmp_path)
