"""dimo_jax.export: what another program reads is what the bundle holds."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import serialization
from jax import export as jax_export
from safetensors import safe_open

from dimo_jax import bundles, export, sample
from dimo_jax.commands import export as formats
from dimo_jax.common import trees
from tests.helpers.command_line import (
    SAMPLER,
    built_once,
    run_command,
    save_tiny,
    tiny_params,
)

__all__ = ["built_once"]  # a fixture


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    save_tiny(path / "export")
    return path


@pytest.fixture
def run(monkeypatch, capsys, built_once):
    def run(*arguments, status=0, module=export):
        found, out, err = run_command(module, arguments, monkeypatch, capsys)
        assert found == status, err
        return err if status else out

    return run


def test_msgpack_is_the_parameter_tree_of_flax(run, workdir, tmp_path):
    output = tmp_path / "params.msgpack"
    out = run(f"--workdir={workdir}", "--format=msgpack", f"--output={output}")
    assert out.startswith("msgpack, ") and str(output) in out
    params = serialization.from_bytes(tiny_params(), output.read_bytes())
    jax.tree.map(np.testing.assert_array_equal, params, tiny_params())
    assert trees.differences(params, tiny_params()) == []


def test_safetensors_has_named_arrays_and_the_config(run, workdir, tmp_path):
    output = tmp_path / "model.safetensors"
    run(f"--bundle={workdir}/export", "--format=safetensors", f"--output={output}")
    expected = trees.named_leaves(tiny_params())
    with safe_open(output, framework="numpy") as file:
        config = json.loads(file.metadata()["config"])
        assert set(file.keys()) == set(expected)
        for name in file.keys():  # noqa: SIM118 - not a dict
            np.testing.assert_array_equal(file.get_tensor(name), expected[name])
    assert "block_0/attention/query/kernel" in expected
    assert config == json.loads((workdir / "export" / "config.json").read_text())


def test_safetensors_of_arrays_in_any_memory_order(workdir):
    bundle = bundles.load(workdir / "export")
    params = {
        "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        "fortran": np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)),
        "strided": np.arange(12, dtype=np.int32)[::2],
        "scalar": np.float32(3.5),
        "half": np.asarray(jax.numpy.arange(4, dtype=jax.numpy.bfloat16)),
    }
    strided = bundle.__class__(
        **{**vars(bundle), "params": params, "params_hash": trees.fingerprint(params)}
    )
    found = formats.read_safetensors(formats.safetensors(strided))
    formats.check_leaves(found, strided)
    for name, value in params.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name].astype(np.float32), value.astype(np.float32))


@pytest.mark.parametrize("format_name", ["msgpack", "safetensors"])
def test_an_export_that_reads_back_differently_is_refused(workdir, monkeypatch, format_name):
    read = getattr(formats, f"read_{format_name}")

    def wrong(data):
        return {name: leaf + (name == "output_bias") for name, leaf in read(data).items()}

    monkeypatch.setattr(formats, f"read_{format_name}", wrong)
    with pytest.raises(RuntimeError, match="reads back differently: values"):
        formats.exported(bundles.load(workdir / "export"), format_name)


LOADER = """
import sys
import jax
import numpy as np
from jax import export
path, seed, num, output = sys.argv[1:]
exported = export.deserialize(bytearray(open(path, "rb").read()))
images = exported.call(np.array([0, int(seed)], np.uint32), np.arange(int(num), dtype=np.int32))
np.save(output, images)
assert not [name for name in sys.modules if name.split(".")[0] in ("dimo_jax", "flax")]
print(sorted(exported.platforms), [str(x) for x in exported.in_avals])
"""


@pytest.mark.slow
@pytest.mark.long
def test_stablehlo_of_a_generator_of_two_steps_makes_both(tmp_path):
    later = {"step_ratios": [0.5], "step_sigma": 0.1, "redraw": False}
    two = bundles.load(save_tiny(tmp_path / "two", sampler=SAMPLER | later))
    call = jax_export.deserialize(bytearray(formats.exported(two, "stablehlo"))).call
    one = dataclasses.replace(two, sampler=SAMPLER)
    given = (np.array([0, 1], np.uint32), np.arange(5, dtype=np.int32))
    tokenizer = bundles.load(two.path / "tokenizer")
    for bundle, same in ((two, True), (one, False)):
        expected = jax.jit(formats.image_function(bundle, tokenizer))(*given)
        assert np.allclose(call(*given), expected, atol=1e-5) == same


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_parameters_alone_say_that_the_later_steps_are_not_in_them(
    built_once, tmp_path, form, monkeypatch, capsys
):
    later = {"step_ratios": [0.5, 0.25], "step_sigma": 0.1, "redraw": False}
    for name, sampler in (("one", SAMPLER), ("three", SAMPLER | later)):
        place = save_tiny(tmp_path / name, sampler=sampler)
        flags = [f"--bundle={place}", f"--format={form}", f"--output={tmp_path / 'x'}"]
        status, _, err = run_command(export, flags, monkeypatch, capsys)
        assert status == 0, err
        said = "of a generator of 3 steps, and not how it is sampled: mask ratios 0.5, 0.25 before"
        assert (said in err) == (name == "three")


@pytest.mark.slow
@pytest.mark.long
def test_stablehlo_of_a_students_sampler_takes_any_batch(tmp_path):
    sampler = {"name": "maskgit", "num_steps": 2, "guidance": 2.0, "counts": "differences"}
    student = bundles.load(save_tiny(tmp_path / "student", sampler=sampler))
    call = jax_export.deserialize(bytearray(formats.exported(student, "stablehlo"))).call
    given = (np.array([0, 1], np.uint32), np.arange(5, dtype=np.int32))
    tokenizer = bundles.load(student.path / "tokenizer")
    expected = jax.jit(formats.image_function(student, tokenizer))(*given)
    np.testing.assert_allclose(call(*given), expected, atol=1e-5)


@pytest.mark.slow
def test_stablehlo_gives_the_images_of_sample_without_the_packages_code(run, workdir, tmp_path):
    seed, num = 4294967295, 7
    output = tmp_path / "generator.stablehlo"
    run(f"--workdir={workdir}", "--format=stablehlo", f"--output={output}")
    loaded = subprocess.run(
        [sys.executable, "-c", LOADER, output, str(seed), str(num), tmp_path / "images.npy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout == "['cpu', 'cuda', 'tpu'] ['uint32[2]', 'int32[b]']\n"
    images = np.load(tmp_path / "images.npy")
    assert (images.dtype, images.shape) == (np.float32, (num, 8, 8, 1))
    flags = [f"--generator={workdir}/export", f"--num={num}", f"--seed={seed}"]
    run(*flags, f"--output={tmp_path / 'x.npz'}", "--batch_size=8", module=sample)
    with np.load(tmp_path / "x.npz") as data:
        np.testing.assert_array_equal(np.floor(images * 255 + 0.5), data["arr_0"][..., :1])
        assert len(np.unique(data["tokens"], axis=0)) == num


def test_a_function_that_gives_other_images_is_refused(workdir, monkeypatch):
    class Other:
        def call(self, key_data, labels):
            return np.zeros((len(labels), 8, 8, 1), np.float32)

    def ones(key_data, labels):
        return jax.numpy.ones((len(labels), 8, 8, 1))

    monkeypatch.setattr(formats, "image_function", lambda generator, tokenizer: ones)
    monkeypatch.setattr(formats, "stablehlo", lambda generator, tokenizer: b"")
    monkeypatch.setattr(jax_export, "deserialize", lambda data: Other())
    with pytest.raises(RuntimeError, match="other images"):
        formats.exported(bundles.load(workdir / "export"), "stablehlo")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either --workdir, of a run, or --bundle"),
        (["--workdir={0}", "--bundle={0}/export"], "give either"),
        (["--workdir={0}/export"], "/export is no run: "),
        (["--bundle={0}/nothing"], "there is no bundle at"),
        (["--bundle={0}/export/tokenizer"], "is a tokenizer; stablehlo is for a generator"),
        (["--bundle={0}/export", "--output={0}"], "is a folder; name a file"),
        (["--bundle={0}/export", "--format=onnx"], "msgpack|safetensors|stablehlo"),
    ],
)
def test_wrong_flags(run, workdir, tmp_path, flags, message):
    given = [flag.format(workdir) for flag in flags]
    arguments = ["--format=stablehlo", f"--output={tmp_path / 'x'}", *given]
    err = run(*arguments, status=2)
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_output_and_format_are_required(run, workdir):
    assert "--output" in run(f"--workdir={workdir}", "--format=msgpack", status=2)
    assert "--format" in run(f"--workdir={workdir}", "--output=x", status=2)
