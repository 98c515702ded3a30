"""For tests of the commands: running one in this process, and small bundles to run it on."""

import functools
import os
import subprocess
import sys

import jax
import pytest

from dimo_jax import bundles, cli, models, tokenizers

NETWORK = {
    "name": "maskgit",
    "num_tokens": 64,
    "codebook_size": 17,
    "num_classes": 10,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 32,
    "dropout": 0.0,
    "predict_mask_id": False,
}
SAMPLER = {"ratio": 0.6, "sigma": 0.1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


@pytest.fixture
def built_once(monkeypatch):
    """Lets all bundles of the tiny network share it, so that XLA compiles it once.

    A command builds its network once; a test file that runs twenty commands would wait for twenty.
    """

    def build(config):
        return tiny_network() if config == NETWORK else models.build(config)

    for kind in ("generator", "teacher"):
        monkeypatch.setitem(bundles.BUILDERS, kind, build)


def run_command(module, arguments, monkeypatch, capsys):
    """(exit status, stdout, stderr) of a command with its flags at their defaults first."""
    for name in module.FLAGS:
        module.FLAGS[name].unparse()
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.run(module.main, module.FLAGS)
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


def command(module, *arguments, optimized=False, **options):
    """A command as a process of its own, started; not optimized it compiles in half the time."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" or not optimized}
    return subprocess.Popen(
        [sys.executable, "-m", f"dimo_jax.{module}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def finish(process, status=0):
    """(stdout, stderr) of a process that is to end with that status."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return out, err


def run_printed(out, folder, monkeypatch):
    """Types the command that a run prints at its end into a shell in another folder."""
    (line,) = [line for line in out.splitlines() if line.startswith("images of it: ")]
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    command = line.partition(": ")[2]
    subprocess.run(command, shell=True, check=True, cwd=folder)
    assert (folder / "sample.png").is_file()


@functools.lru_cache
def tiny_network():
    return models.build(NETWORK)


@functools.lru_cache
def tiny_params():
    """Weights so large that the label changes the tokens, as it does after training."""
    params = jax.jit(tiny_network().init)(jax.random.key(3))
    params = jax.tree.map(lambda x: 3.0 * x, params)
    return {**params, "token_embedding": 10.0 * params["token_embedding"]}


def save_tiny(path, kind="generator", **fields):
    """A bundle for the digits' gray levels, with its tokenizer."""
    tokenizer = tokenizers.build({"name": "gray_levels"})
    fields = {
        "model": tiny_network().config,
        "params": tiny_params(),
        "sampler": SAMPLER if kind == "generator" else None,
        "tokenizer": {"config": tokenizer.config, "hash": tokenizers.fingerprint(tokenizer, {})},
        "tokenizer_params": {},
        **fields,
    }
    return bundles.save(path, kind=kind, **fields)
