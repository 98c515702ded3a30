"""How JAX's backend starts: refusals in one sentence, no noise, and what is left unused."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from dimo_jax.parallel import backend

START = "from dimo_jax.parallel import backend; backend.start(); import jax; print(jax.devices())"


def start(**environment):
    """(exit status, stdout, stderr) of a process that starts the backend, as a command does."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_PLATFORMS", "TPU_"))}
    code = (
        "from dimo_jax import cli\nfrom dimo_jax.common.command_flags import Flags\n"
        f"def main():\n    {START}\ncli.run(main, Flags())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True
    )
    return found.returncode, found.stdout, found.stderr


@pytest.mark.parametrize(
    ("platforms", "todo"),
    [
        ("cuda", "it needs an NVIDIA GPU and pip install -e '.[cuda13]'"),
        ("tpu", "it needs a TPU VM and pip install -e '.[tpu]'"),
        ("nonsense", "the names are cpu, cuda and tpu; or unset JAX_PLATFORMS"),
    ],
)
@pytest.mark.skipif(bool(backend.accelerator()), reason="needs a machine without accelerators")
def test_a_platform_that_is_not_here_is_one_sentence(platforms, todo):
    status, out, err = start(JAX_PLATFORMS=platforms)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: JAX_PLATFORMS={platforms}, and JAX cannot use that here (")
    assert todo in err and err.count("\n") == 1


def test_one_process_of_two_says_it_alike_and_ends():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    code = (
        "from dimo_jax import cli\nfrom dimo_jax.common.command_flags import Flags\n"
        "flags = Flags()\ncli.define_process_flags(flags)\n"
        "cli.run(lambda: cli.start_processes(flags), flags)"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"--coordinator=localhost:{port}", "--num_processes=2",
             f"--process_id={index}"],
            env={**os.environ, "JAX_PLATFORMS": "nonsense"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    for process in both:
        err = process.communicate(timeout=100)[1]
        assert process.returncode == 2, err
        assert "error: JAX_PLATFORMS=nonsense, and JAX cannot use that here" in err
        assert "Traceback" not in err


@pytest.mark.skipif(bool(backend.accelerator()), reason="needs a machine without accelerators")
def test_libtpu_does_not_report_that_there_is_no_tpu():
    pytest.importorskip("libtpu")
    status, out, err = start()
    assert (status, err) == (0, "") and "Cpu" in out


def test_float64_is_switched_off_and_said(capsys):
    assert start(JAX_PLATFORMS="cpu", JAX_ENABLE_X64="1")[2].startswith("warning: JAX_ENABLE_X64")
    jax.config.update("jax_enable_x64", True)
    try:
        backend.prepare()
        assert jax.numpy.arange(1.0).dtype == jax.numpy.float32
    finally:
        jax.config.update("jax_enable_x64", False)
    assert capsys.readouterr().err.count("\n") == 1
    backend.prepare()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("gpu", "platforms", "plugin", "expected"),
    [
        ("/dev/nvidia0", None, False, ("an NVIDIA GPU (/dev/nvidia0) is present", "'.[cuda13]'")),
        ("/dev/nvidia0", "cpu", False, ("NVIDIA GPU", "JAX_PLATFORMS=cpu says so; unset it")),
        ("/dev/nvidia0", None, True, ("NVIDIA GPU", "nvidia-smi shows whether the driver")),
        (None, None, False, ("a TPU is present", "'.[tpu]'")),
        (None, None, True, ("a TPU is present", "is another process using it")),
    ],
)
def test_an_accelerator_that_is_not_used_is_a_sentence(
    monkeypatch, gpu, platforms, plugin, expected
):
    monkeypatch.setattr(backend, "nvidia_found", lambda: gpu)
    monkeypatch.setattr(backend, "tpu_found", lambda: not gpu)
    monkeypatch.setattr(backend, "find_spec", lambda name: plugin or None)
    text = backend.unused_accelerator({"JAX_PLATFORMS": platforms} if platforms else {})
    assert all(part in text for part in (*expected, "not used, the CPU is"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert backend.unused_accelerator({}) == ""


def test_no_accelerator_no_sentence(monkeypatch):
    monkeypatch.setattr(backend, "nvidia_found", lambda: None)
    monkeypatch.setattr(backend, "tpu_found", lambda: False)
    assert backend.unused_accelerator({}) == ""


def test_the_files_of_a_driver_are_found(monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "NVIDIA_FILES", (str(tmp_path / "nvidia0"),))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert backend.nvidia_found() is None
    tool = Path(tmp_path / "nvidia-smi")
    tool.touch(mode=0o755)
    assert backend.nvidia_found() == str(tool)
    (tmp_path / "nvidia0").touch()
    assert backend.nvidia_found() == str(tmp_path / "nvidia0")
