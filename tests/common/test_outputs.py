"""What a command may replace, and what it never touches: the same for all that write."""

import importlib
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from dimo_jax import bundles, models
from dimo_jax.convert import sources
from dimo_jax.convert.networks import layouts
from tests.helpers import ROOT
from tests.helpers.command_line import run_command, save_tiny

CONVERT, OF = "convert.__main__", ("--heads=4",)
HALTON = {
    "name": "halton", "num_tokens": 16, "codebook_size": 30, "num_classes": 10, "width": 24,
    "depth": 1, "heads": 4, "mlp_dim": 256,
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A published checkpoint, as small as they come."""
    network = models.build(HALTON)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    state = layouts.to_state(sources.halton.entries(network.config), params)
    path = tmp_path_factory.mktemp("published") / "plain.pth"
    torch.save({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, path)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name, *arguments, status=0):
        module = importlib.import_module(f"dimo_jax.{name}")
        found, out, err = run_command(module, arguments, monkeypatch, capsys)
        assert found == status, err
        assert not status or err.count("\n") == 1, err
        return err if status else out

    return run


def tree(folder: Path):
    """Every file and link under a folder, by name."""
    return {
        str(x.relative_to(folder)): os.readlink(x) if x.is_symlink() else x.read_bytes()
        for x in sorted(folder.rglob("*"))
        if x.is_file() or x.is_symlink()
    }


def test_the_folder_of_a_project_is_never_replaced(plain, tmp_path, run, monkeypatch):
    here = tmp_path / "A"
    (here / "sub").mkdir(parents=True)
    (here / "config.json").write_text("{}")
    (here / "thesis.txt").write_text("x")
    monkeypatch.chdir(here)
    before = tree(tmp_path)
    for output in (".", "", here, f"{here}/", here / "sub" / "..", tmp_path / "A"):
        err = run(CONVERT, "--heads=4", f"--input={plain}", f"--output={output}", status=2)
        assert "would delete" in err or "--output= is empty" in err
    assert tree(tmp_path) == before and (here / "sub").is_dir()


def begun(folder):
    """The work directory of a run."""
    save_tiny(folder / "export")
    (folder / "checkpoints").mkdir()
    (folder / "config.json").write_text(json.dumps({"title": "a run", "seed": 0}))


def hugging_face(folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "Transformer2DModel"}))
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")


def bundle_with_a_thesis(folder):
    save_tiny(folder)
    (folder / "thesis.txt").write_text("x")


def bundle_with_a_thesis_in_its_tokenizer(folder):
    save_tiny(folder)
    (folder / "tokenizer" / "thesis.txt").write_text("x")


def bundle_of_another_version(folder):
    save_tiny(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 2}))


def bundle_that_claims_a_thesis(folder):
    """Names the user's file as one of its own, with another content."""
    save_tiny(folder)
    config = json.loads((folder / "config.json").read_text())
    config["provenance"]["attachments"] = {"thesis.txt": "0" * 64}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "thesis.txt").write_text("x")


@pytest.mark.parametrize(
    "make",
    [
        begun,
        hugging_face,
        bundle_with_a_thesis,
        bundle_with_a_thesis_in_its_tokenizer,
        bundle_of_another_version,
        bundle_that_claims_a_thesis,
    ],
)
def test_what_is_not_wholly_a_bundle_stays(make, plain, tmp_path, run):
    make(tmp_path / "there")
    before = tree(tmp_path)
    err = run(
        CONVERT,
        "--heads=4",
        f"--input={plain}",
        f"--output={tmp_path / 'there'}",
        status=2,
    )
    assert "would delete; name a new folder" in err
    assert tree(tmp_path) == before


def test_a_bundle_is_replaced_with_what_it_carries(plain, tmp_path, run):
    save_tiny(tmp_path / "there", attachments={"merges.txt": b"a b"})
    run(CONVERT, *OF, f"--input={plain}", f"--output={tmp_path / 'there'}")
    assert bundles.load(tmp_path / "there").model["name"] == "halton"
    assert sorted(tree(tmp_path)) == ["there/config.json", "there/params.msgpack"]


def test_an_output_is_no_input_and_neither_around_nor_inside_one(plain, tmp_path, run, monkeypatch):
    source = tmp_path / "published" / "plain.pth"
    source.parent.mkdir()
    source.write_bytes(plain.read_bytes())
    save_tiny(tmp_path / "export")
    (tmp_path / "link").symlink_to(tmp_path / "export")
    before = tree(tmp_path)
    own = ("--source=halton",)
    for name, arguments, what in [
        (CONVERT, (f"--input={source}", f"--output={source}", *own), "is the input"),
        (CONVERT, (f"--input={source}", f"--output={source.parent}", *own), "holds"),
        (CONVERT, (f"--input={source.parent}", f"--output={source.parent / 'x'}"),
         "lies in"),
        ("export", (f"--bundle={tmp_path / 'link'}", f"--output={tmp_path / 'export' / 'x'}",
                    "--format=msgpack"), "lies in"),
        ("export", (f"--bundle={tmp_path / 'export'}", "--format=msgpack",
                    f"--output={tmp_path / 'link' / 'params.msgpack'}"), "lies in"),
        ("sample", (f"--generator={tmp_path / 'export'}", f"--output={tmp_path / 'link' / 'x'}"),
         "lies in"),
        ("sample", (f"--generator={tmp_path / 'export'}", f"--output={tmp_path / 'link'}"), "is"),
        ("evaluate", (f"--samples={source.parent}", f"--output={source.parent}", "--features=f"),
         "is the input"),
        ("evaluate", (f"--samples={source.parent}", f"--output={source.parent / 'e'}",
                      "--features=f"), "lies in"),
    ]:  # fmt: skip
        err = run(name, *arguments, status=2)
        assert f" {what} " in err and "name another place" in err, err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("main", ["--config=configs/toy.py:pair", "--workdir="]),
        (CONVERT, ["--input=x", "--output="]),
        ("export", ["--bundle=x", "--format=msgpack", "--output="]),
        ("export", ["--workdir=", "--format=msgpack", "--output=x"]),
        ("sample", ["--generator=x", "--output="]),
        ("evaluate", ["--samples=x", "--features=x", "--output="]),
        ("evaluate", ["--compare", "x", "y", "--output="]),
        ("evaluate", ["--samples=x", "--features=x", "--output=y", "--make_reference="]),
        ("plan", ["--config=configs/toy.py:pair", "--topology=cpu:1", "--output="]),
        ("benchmark", ["--config=configs/toy.py:pair", "--output="]),
    ],
)
def test_an_empty_place_is_refused_by_every_command(name, arguments, tmp_path, run, monkeypatch):
    arguments = [x.replace("=configs", f"={ROOT}/configs") for x in arguments]
    monkeypatch.chdir(tmp_path)
    err = run(name, *arguments, status=2)
    flag = next(x for x in arguments if x.endswith("="))
    assert f"{flag} is empty" in err and "unset" in err
    assert tree(tmp_path) == {}


def test_a_link_is_followed_and_stays(plain, tmp_path, run):
    (tmp_path / "disk").mkdir()
    save_tiny(tmp_path / "disk" / "model")
    (tmp_path / "disk" / "x.png").write_bytes(b"old")
    (tmp_path / "model").symlink_to("disk/model")
    (tmp_path / "x.png").symlink_to("disk/x.png")
    run(CONVERT, *OF, f"--input={plain}", f"--output={tmp_path / 'model'}")
    assert (tmp_path / "model").is_symlink()
    assert bundles.load(tmp_path / "disk" / "model").model["name"] == "halton"
    save_tiny(tmp_path / "g")
    run("sample", f"--generator={tmp_path / 'g'}", f"--output={tmp_path / 'x.png'}", "--labels=1")
    assert (tmp_path / "x.png").is_symlink()
    assert (tmp_path / "disk" / "x.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["disk", "g", "model", "x.png"]
    assert sorted(x.name for x in (tmp_path / "disk").iterdir()) == ["model", "x.png"]


def test_a_link_that_leads_nowhere_is_refused_before_the_work(plain, tmp_path, run):
    (tmp_path / "disk").symlink_to(tmp_path / "not" / "mounted")
    save_tiny(tmp_path / "g")
    before = tree(tmp_path)
    for name, arguments in [
        (CONVERT, (*OF, f"--input={plain}", f"--output={tmp_path / 'disk'}")),
        (CONVERT, (*OF, f"--input={plain}", f"--output={tmp_path / 'disk' / 'model'}")),
        ("export", (f"--bundle={tmp_path / 'g'}", "--format=msgpack",
                    f"--output={tmp_path / 'disk'}")),
        ("sample", (f"--generator={tmp_path / 'g'}", f"--output={tmp_path / 'disk' / 'x.npz'}")),
        ("sample", (f"--generator={tmp_path / 'g'}", f"--output={tmp_path / 'disk'}")),
    ]:  # fmt: skip
        err = run(name, *arguments, status=2)
        assert "disk is a link to" in err and "which is not there" in err
    assert tree(tmp_path) == before


def test_a_device_is_not_replaced_by_a_file(tmp_path, run):
    save_tiny(tmp_path / "g")
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe",):
        err = run(
            "export", f"--bundle={tmp_path / 'g'}", "--format=msgpack", f"--output={place}",
            status=2,
        )  # fmt: skip
        assert "it is no regular file" in err
    assert (tmp_path / "pipe").is_fifo()


def test_the_ranges_of_a_sample_are_removed_and_nothing_else(tmp_path, run):
    save_tiny(tmp_path / "g")
    (tmp_path / "x.npz.parts").mkdir()
    (tmp_path / "x.npz.parts" / "thesis.txt").write_text("x")
    before = tree(tmp_path)
    arguments = (f"--generator={tmp_path / 'g'}", f"--output={tmp_path / 'x.npz'}", "--num=8")
    assert "x.npz.parts holds thesis.txt" in run("sample", *arguments, status=2)
    assert tree(tmp_path) == before
