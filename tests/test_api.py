"""dimo_jax.load: what it opens, and that its images are those of dimo_jax.sample."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dimo_jax
from dimo_jax import export, sample
from dimo_jax.common.errors import InputError
from dimo_jax.generation import drawing
from tests.helpers.command_line import run_command, save_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("api") / "export")


@pytest.fixture(scope="module")
def generator(place):
    return dimo_jax.load(place)


def test_the_package_imports_nothing_heavy_before_it_is_used():
    heavy = (
        "import sys, dimo_jax; print(*(x for x in ('jax', 'numpy', 'absl') if x in sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", heavy], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ""
    assert "load" in dir(dimo_jax)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        dimo_jax.lode  # noqa: B018


def test_its_images_are_those_of_the_command(place, generator, tmp_path, monkeypatch, capsys):
    output = tmp_path / "images.npz"
    flags = [f"--generator={place}", "--num=4", "--seed=5", "--top_k=3", f"--output={output}"]
    status, _, err = run_command(sample, flags, monkeypatch, capsys)
    assert status == 0, err
    with np.load(output) as drawn:
        expected, tokens = drawn["arr_0"], drawn["tokens"]
    images = generator(labels=[0, 1, 2, 3], seed=5, top_k=3)
    assert images.dtype == np.uint8 and images.shape == (4, 8, 8, 3)
    assert np.array_equal(images, expected)
    assert np.array_equal(generator.tokens(labels=np.arange(4), seed=5, top_k=3), tokens)
    assert not np.array_equal(generator([0, 1, 2, 3]), images)


def test_what_goes_on_from_there(generator, place):
    assert generator.network.num_classes == 10
    assert generator.params is generator.bundle.params
    assert repr(generator) == (
        f"<generator of 10 classes in one step: maskgit, {_size(generator)} parameters, 8x8 pixels "
        f"of 64 tokens, {place}>"
    )


def _size(model):
    return f"{sum(np.asarray(x).size for x in _leaves(model.params)):,}"


def _leaves(tree):
    return [x for v in tree.values() for x in _leaves(v)] if isinstance(tree, dict) else [tree]


def test_a_teacher_takes_its_sampler_s_settings(tmp_path, generator):
    place = save_tiny(tmp_path / "teacher", kind="teacher")
    teacher = dimo_jax.load(place)
    images = teacher(labels=[3], steps=2, guidance=2.0)
    expected = drawing.draw_labels(
        teacher.bundle, teacher.tokenizer, np.array([3], np.int32), 0, 1,
        {"num_steps": 2, "guidance": 2.0},
    )  # fmt: skip
    assert np.array_equal(images[..., :1], np.floor(expected.pixels * 255 + 0.5).astype(np.uint8))
    assert "10 classes in steps: maskgit" in repr(teacher)
    with pytest.raises(InputError, match="needs --steps=N"):
        teacher(labels=[3])


def test_an_exported_file_gives_the_same_images(place, generator, tmp_path, monkeypatch, capsys):
    output = tmp_path / "generator.stablehlo"
    flags = [f"--bundle={place}", "--format=stablehlo", f"--output={output}"]
    status, _, err = run_command(export, flags, monkeypatch, capsys)
    assert status == 0, err
    exported = dimo_jax.load(output)
    assert np.array_equal(exported(labels=[3, 1, 4], seed=7), generator(labels=[3, 1, 4], seed=7))
    assert repr(exported) == f"<exported generator of classes: 8x8 pixels, {output}>"
    output.write_bytes(output.read_bytes()[:1000])
    with pytest.raises(InputError, match="is no exported generator"):
        dimo_jax.load(output)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"labels": [10]}, "labels has 10; labels are whole numbers from 0 to 9"),
        ({"labels": np.array([0.5])}, "labels has 0.5"),
        ({"labels": []}, "labels is empty"),
        ({}, r"takes labels: give labels=\[...\], and no prompts"),
        ({"labels": [1], "prompts": ["a cat"]}, "takes labels"),
        ({"labels": [1], "seed": -1}, "seed is -1"),
        ({"labels": [1], "temprature": 2.0}, "temprature"),
        ({"labels": [1], "negative_prompt": "blur"}, "has classes"),
    ],
)
def test_bad_input_is_one_sentence(generator, arguments, message):
    with pytest.raises(InputError, match=message):
        generator(**arguments)


def test_a_picture_is_no_model(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="is a file, and a bundle is a folder"):
        dimo_jax.load(tmp_path / "x.png")
