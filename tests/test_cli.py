"""What a command prints and with which status it ends."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from dimo_jax import cli
from dimo_jax.common.command_flags import Flags
from dimo_jax.common.errors import InputError
from tests.helpers import ROOT

CONFIG = """
from ml_collections import config_dict

def get_config(variant=""):
    if variant == "bad":
        raise ValueError("there is no variant 'bad'")
    return config_dict.ConfigDict({
        "seed": 0,
        "num_steps": 10,
        "optimizer": {"learning_rate": 1.0, "beta1": 0.5},
        "sizes": (8, 8),
    })
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command with --config and --steps; (status, stdout, stderr) and the flags' values."""
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "plain.py").write_text("def get_config():\n    return None\n")
    monkeypatch.chdir(tmp_path)

    def run(*arguments, body=lambda: None):
        values = Flags()
        config_flags.DEFINE_config_file("config", None, "help of config", flag_values=values)
        flags.DEFINE_integer("steps", 3, "help of steps", flag_values=values)
        seen = SimpleNamespace()

        def main():
            seen.config, seen.steps = values.config, values.steps
            body()

        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.run(main, values)
        printed = capsys.readouterr()
        return stopped.value.code, printed.out, printed.err, seen

    return run


def test_main_runs_with_parsed_flags_and_status_0(run):
    status, out, err, seen = run(
        "--config=config.py", "--config.optimizer.learning_rate=3", "--steps=7"
    )
    assert (status, out, err) == (0, "", "")
    assert (seen.steps, seen.config.optimizer.learning_rate) == (7, 3.0)
    assert type(seen.config.optimizer.learning_rate) is float


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stpes=4"], "there is no flag --stpes; nearest: --steps ("),
        (["--steps=x"], "--steps=x: invalid literal"),
        (["--steps"], "Missing value for flag --steps"),
        (["word"], "unexpected argument 'word'; every flag is written --name=value"),
        (
            ["--config=config.py", "--config.num_step=3"],
            "there is no field config.num_step; nearest: config.num_steps",
        ),
        (
            ["--config=config.py", "--config.optimizer.learning_rat=3"],
            "no field config.optimizer.learning_rat; nearest: config.optimizer.learning_rate",
        ),
        (
            ["--config=config.py", "--config.optimiser.beta1=3"],
            "no field config.optimiser.beta1; nearest: config.optimizer.beta1",
        ),
        (
            ["--config", "config.py", "--config.beta1=3"],
            "no field config.beta1; nearest: config.optimizer.beta1",
        ),
        (
            ["--config=config.py", "--config.learning_rat=3"],
            "no field config.learning_rat; nearest: config.optimizer.learning_rate",
        ),
        (
            ["--config=config.py", "--config.lr=3"],
            "no field config.lr; nearest: config.optimizer.learning_rate",
        ),
        (
            ["--config=config.py", "--config.optimizer.lrate=3"],
            "no field config.optimizer.lrate; nearest: config.optimizer.learning_rate",
        ),
        (
            ["--config=config.py", "--config.steps=3"],
            "no field config.steps; nearest: config.num_steps",
        ),
        (
            ["--config=config.py", "--config.l=3"],
            "no field config.l; no field is similar",
        ),
        (
            ["--config=config.py", "--config.qqqqqqqqqqqqqqqq=3"],
            "no field config.qqqqqqqqqqqqqqqq; no field is similar",
        ),
        (
            ["--config=config.py", "--config.sed=3", "--config.num_stesp=1"],
            "config.sed; nearest: config.seed; there is no field config.num_stesp; nearest: ",
        ),
        (["--config=config.py", "--config.num_steps=1.5"], "--config.num_steps=1.5: invalid"),
        (["--config=config.py", "--config.num_steps=many"], "--config.num_steps=many: invalid"),
        (["--config=config.py", "--config.sizes=(1,"], "--config.sizes=(1,"),
        (["--config=config.py", "--config.optimizer=3"], "--config.optimizer=3"),
        (["--config=config.py:bad"], "there is no variant 'bad' (config.py, line 6)"),
        (["--config=plain.py:some"], "get_config() takes 0 positional arguments"),
        (["--config=nowhere.py"], "No such file or directory: 'nowhere.py'"),
        (["--config.seed=3"], "field of a config, and no config is given; give --config=FILE"),
    ],
)
def test_bad_flags_give_one_line_and_status_2(run, arguments, message):
    status, out, err, seen = run(*arguments)
    assert (status, out, vars(seen)) == (2, "", {})
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err


def raising(error):
    def body():
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("no such\n  bundle"), 2, "error: no such bundle\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/x"),
            1,
            "error: the disk is full while writing /runs/x; free some space and run the same "
            "again\n",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "error: the disk is full; "),
        (ValueError("RESOURCE_EXHAUSTED: No space left on device"), 1, "error: the disk is full; "),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."),
            2,
            "error: the device's memory is too small (RESOURCE_EXHAUSTED: Out of memory "
            "allocating 1 bytes); a training takes less with more --config.distill.parts, ",
        ),
    ],
)
def test_errors_of_the_command(run, error, status, message):
    found, out, err, _ = run(body=raising(error))
    assert (found, out) == (status, "")
    assert err.startswith(message) and err.count("\n") == 1


def test_a_full_disk_is_seen_behind_another_error(run):
    def body():
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/runs/x")
        except OSError as error:
            raise RuntimeError("saving failed") from error

    status, _, err, _ = run(body=body)
    assert status == 1 and "/runs/x" in err


@pytest.mark.parametrize("error", [ZeroDivisionError("defect"), OSError(errno.EIO, "I/O")])
def test_a_defect_keeps_its_traceback(run, error):
    with pytest.raises(type(error)):
        run(body=raising(error))


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_has_the_modules_docstring_and_the_flags(run, flag):
    status, out, err, seen = run("--config=nowhere.py", flag)
    assert (status, err, vars(seen)) == (0, "", {})
    assert __doc__ in out and "help of steps" in out and "help of config" in out


@pytest.mark.parametrize(
    "words",
    [
        ["dimo_jax", "--help"],
        ["dimo_jax.main", "--help"],
        ["dimo_jax.main", "--config=configs/toy.py:pair", "--print_config"],
        ["launch.gke", "stop", "--name=a", "--dry-run"],
        ["launch.tpu_vm", "delete", "--name=a", "--zone=z", "--dry-run"],
    ],
)
def test_a_reader_that_has_gone_is_no_defect(words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", *words]
    ran = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")
