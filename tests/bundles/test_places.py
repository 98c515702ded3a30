"""What is opened where a user names a run, published weights or nothing in place of a bundle."""

import json
import shlex

import pytest

from dimo_jax import bundles, config, export, sample
from dimo_jax.bundles import places
from dimo_jax.common.errors import InputError
from dimo_jax.convert import __main__ as convert
from tests.helpers.command_line import built_once, run_command, save_tiny  # noqa: F401


@pytest.fixture
def run(tmp_path):
    """A finished run's folder, as far as bundles go."""
    workdir = tmp_path / "a run"
    save_tiny(workdir / "export")
    save_tiny(workdir / "teacher", kind="teacher")
    settings = config.default_config().to_dict()
    (workdir / "config.json").write_text(json.dumps(settings))
    return workdir


@pytest.mark.parametrize(
    ("kind", "part"),
    [(None, "export"), ("generator", "export"), ("teacher", "teacher"),
     ("tokenizer", "export/tokenizer")],
)  # fmt: skip
def test_a_run_stands_for_its_part(run, kind, part):
    assert bundles.load(run, kind=kind).path == run / part
    assert bundles.load(run / part, kind=kind).path == run / part


@pytest.mark.usefixtures("built_once")
def test_the_commands_take_a_run(run, tmp_path, monkeypatch, capsys):
    for module, flags in [
        (sample, [f"--generator={run}", "--num=8", f"--output={tmp_path / 'x.npz'}"]),
        (sample, [f"--generator={run}", "--num=8", f"--output={tmp_path / 'y.npz'}",
                  f"--tokenizer={run}"]),
        (export, [f"--bundle={run}", "--format=msgpack", f"--output={tmp_path / 'x.msgpack'}"]),
    ]:  # fmt: skip
        status, _, err = run_command(module, flags, monkeypatch, capsys)
        assert status == 0, err
    own = (run / "export" / "params.msgpack").read_bytes()
    assert (tmp_path / "x.msgpack").read_bytes() == own


def test_a_run_that_has_not_ended_is_named_with_what_to_do(run):
    (run / "export").rename(run / "elsewhere")
    command = shlex.quote(f"{run}")
    with pytest.raises(InputError, match="is no finished run, for it has no export/") as caught:
        bundles.load(run)
    assert f"--workdir={command} to its end" in str(caught.value)
    (run / "teacher").rename(run / "nowhere")
    with pytest.raises(InputError, match="without a teacher of its own"):
        bundles.load(run, kind="teacher")
    with pytest.raises(InputError, match="has no features; give a features's bundle"):
        bundles.load(run, kind="features")


@pytest.mark.parametrize("name", ["MaskGIT 256.pth", "model.safetensors", "grid.png"])
def test_a_file_is_to_be_converted_first(tmp_path, name, monkeypatch, capsys):
    (tmp_path / name).write_bytes(b"x")
    status, _, err = run_command(
        sample, [f"--generator={tmp_path / name}", "--output=x.png"], monkeypatch, capsys
    )
    assert status == 2 and "is a file, and a bundle is a folder; convert it first: python" in err
    words = shlex.split(err[err.index("python -m") :])
    assert words[2] == "dimo_jax.convert"
    # The flags are the command's own.
    assert convert.FLAGS(["convert", *words[3:]]) == ["convert"]
    assert convert.FLAGS.input == str(tmp_path / name)


def test_a_bundle_is_not_converted_again(run, tmp_path, monkeypatch, capsys):
    flags = [f"--input={run / 'export'}", f"--output={tmp_path / 'out'}"]
    status, _, err = run_command(convert, flags, monkeypatch, capsys)
    assert status == 2 and "is a bundle already" in err and not (tmp_path / "out").exists()


def test_a_published_folder_is_to_be_converted_first(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="holds published weights and is no bundle; convert it"):
        places.find(tmp_path)


@pytest.mark.parametrize("content", [b"[1]", b"\xff", b'{"format_version": 1}', b""])
def test_other_folders_are_left_to_the_reader_of_bundles(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert places.find(tmp_path) == tmp_path
    assert places.find(tmp_path / "nothing") == tmp_path / "nothing"
