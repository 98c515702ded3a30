"""The lines that a run begins with."""

import shlex
from pathlib import Path

import jax
import pytest

from configs import toy
from dimo_jax.parallel import backend, distributed, sharding
from dimo_jax.runs import banner
from dimo_jax.training import settings


@pytest.fixture
def config():
    config = toy.get_config("pair").to_dict()
    config["mesh"].update(data=4, fsdp=2)
    config["pretrain"]["batch_size"] = 96
    config["distill"].update(batch_size=64, parts=2)
    return config


def test_a_run_says_what_it_trains_on_which_mesh_and_where(config):
    network = settings.network_of(config, 2, 4)
    total = sum(x.size for x in jax.tree.leaves(jax.jit(network.init)(jax.random.key(0))))
    workdir = Path("runs/a run")
    lines = banner.run_lines(config, network, sharding.layout(config["mesh"]), workdir)
    text = "\n".join(lines)
    assert "mesh data=4 x fsdp=2; " in text
    assert "pretrain 96 a batch, 12 a device, distill 64 a batch, 4 a device in 2 parts" in text
    assert f"maskgit, {total:,} parameters, computed in float32" in text
    assert "work directory 'runs/a run';" in text
    command = text[text.index("tensorboard --") :].splitlines()[0]
    assert shlex.split(command) == ["tensorboard", "--logdir", "runs/a run/tensorboard"]
    config["logging"]["tensorboard"] = False
    config["teacher"]["random"] = True
    text = "\n".join(
        banner.run_lines(config, network, sharding.layout(config["mesh"]), Path("runs/a"))
    )
    assert "tensorboard" not in text and "pretrain" not in text and "directory runs/a;" in text


def test_the_machine_is_one_line_and_a_warning_another(monkeypatch, capsys):
    monkeypatch.setattr(backend, "unused_accelerator", lambda: "")
    (line,) = banner.machine_lines()
    assert line.startswith("8 x CPU, 1 process; dimo_jax ") and f"jax {jax.__version__}" in line
    monkeypatch.setattr(backend, "unused_accelerator", lambda: "a TPU is present and not used")
    assert banner.machine_lines() == [line, "warning: a TPU is present and not used"]
    banner.show([line])
    assert capsys.readouterr() == ("", f"{line}\n")
    monkeypatch.setattr(distributed, "is_lead", lambda: False)
    banner.show([line])
    assert capsys.readouterr() == ("", "")
