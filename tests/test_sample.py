"""dimo_jax.sample: bundles in, pictures out, and each flag does what it says."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from dimo_jax import bundles, models, samplers
from dimo_jax.common.errors import InputError
from dimo_jax.generation import drawing
from dimo_jax.models import joined
from dimo_jax.samplers import maskgit, one_step
from tests.helpers.command_line import (
    NETWORK,
    SAMPLER,
    built_once,
    save_tiny,
    tiny_network,
    tiny_params,
)
from tests.helpers.sample_command import generator, run

__all__ = ["built_once", "generator", "run"]  # fixtures


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("sample") / "teacher", kind="teacher")


@pytest.fixture
def arrays(run, tmp_path):
    """What a .npz of these flags holds; the same batch size throughout compiles once."""

    def arrays(bundle, *arguments):
        output = tmp_path / "samples.npz"
        run(f"--generator={bundle}", f"--output={output}", "--batch_size=8", *arguments)
        with np.load(output) as data:
            return dict(data)

    return arrays


def test_a_grid_has_a_row_for_each_label(run, generator, tmp_path):
    output = tmp_path / "new" / "grid.png"
    flags = [f"--generator={generator}", "--labels=7,2", "--num_per_label=3", "--batch_size=8"]
    out = run(*flags, f"--output={output}")
    assert out == f"6 images, seed 0: {output}\n"
    picture = np.asarray(Image.open(output))
    assert picture.shape[0] == 2 * 42 + 2 and 3 * 42 + 2 < picture.shape[1] < 3 * 42 + 40
    run(*flags[:1], *flags[2:], f"--output={tmp_path / 'x.npz'}", "--labels=7,2")
    with np.load(tmp_path / "x.npz") as data:
        assert data["labels"].tolist() == [7, 7, 7, 2, 2, 2]
        pixels = data["arr_0"][..., :1]
    # Tiles of 8 x 8 pixels, five times enlarged, two pixels apart, at the right end of the picture.
    for i, (row, column) in enumerate(np.ndindex(2, 3)):
        top, left = 2 + 42 * row, picture.shape[1] - 126 + 42 * column
        tile = picture[top + 2 : top + 40 : 5, left + 2 : left + 40 : 5, 0]
        np.testing.assert_array_equal(tile, pixels[i, :, :, 0])


def test_the_arrays_are_the_images_of_the_tokens(arrays, generator):
    data = arrays(generator, "--num=5")
    assert data["labels"].tolist() == [0, 1, 2, 3, 4]
    assert (data["arr_0"].dtype, data["arr_0"].shape) == (np.uint8, (5, 8, 8, 3))
    levels = np.floor(data["tokens"].reshape(5, 8, 8, 1) * 255 / 16 + 0.5)
    np.testing.assert_array_equal(data["arr_0"][..., :1], levels)
    assert len(np.unique(data["tokens"])) > 10


def test_num_goes_through_the_classes_in_turn(arrays, generator):
    assert arrays(generator, "--num=12")["labels"].tolist() == [*range(10), 0, 1]


def test_labels_default_to_all_classes(arrays, generator):
    labels = arrays(generator, "--num_per_label=2")["labels"]
    assert labels.tolist() == [i // 2 for i in range(20)]


def test_a_folder_gets_a_picture_for_each_image(run, arrays, generator, tmp_path):
    folder = tmp_path / "pictures"
    run(f"--generator={generator}", f"--output={folder}/", "--num=12", "--batch_size=8")
    names = sorted(x.name for x in folder.glob("*.png"))
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["sampler"]["name"] and settings["rounding"]
    assert names[:2] + names[-1:] == ["00_label0.png", "01_label1.png", "11_label1.png"]
    pixels = arrays(generator, "--num=12")["arr_0"]
    for name, image in zip(names, pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / name)), image[..., 0])
    err = run(f"--generator={generator}", f"--output={folder}", status=2)
    assert "holds 00_label0.png, which writing would delete; name a new folder" in err


def test_images_depend_on_seed_index_and_label_alone(arrays, generator):
    base = arrays(generator, "--num=10")
    longer = arrays(generator, "--num=15", "--batch_size=16")
    np.testing.assert_array_equal(longer["arr_0"][:10], base["arr_0"])
    assert (arrays(generator, "--num=10", "--seed=1")["arr_0"] != base["arr_0"]).any()
    ones = arrays(generator, "--labels=1", "--num_per_label=2")
    np.testing.assert_array_equal(ones["arr_0"][1], base["arr_0"][1])
    assert (ones["arr_0"][0] != base["arr_0"][0]).any()


@pytest.fixture
def settings_of(run, tmp_path, monkeypatch):
    """The settings that a command samples with, without sampling."""

    def settings_of(bundle, *arguments):
        seen = []

        def record(network, params, key, condition, null, settings, *_):
            seen.append(settings)
            return np.zeros((4, 64), np.int32)

        with monkeypatch.context() as patch:
            patch.setattr(samplers, "sample", record)
            output = tmp_path / "x.npz"
            run(f"--generator={bundle}", f"--output={output}", "--num=4", *arguments)
        return seen[0]

    return settings_of


def test_flags_override_a_generators_own_settings(settings_of, generator):
    own = one_step.settings_from(SAMPLER, tiny_network())
    assert settings_of(generator) == own
    for name, value in {"temperature": 3.0, "top_k": 2, "top_p": 0.2}.items():
        changed = settings_of(generator, f"--{name}={value}")
        assert changed == dataclasses.replace(own, **{name: value})


def test_flags_set_a_teachers_decoding(settings_of, teacher):
    plain = maskgit.MaskGitSettings(num_steps=3)
    assert settings_of(teacher, "--steps=3") == plain
    options = {
        "schedule": "cosine",
        "randomize": "warm_up",
        "choice_temperature": 2.0,
        "guidance": 2.5,
        "guidance_schedule": "constant",
        "temperature": 0.8,
        "top_k": 9,
        "top_p": 0.95,
    }
    for name, value in options.items():
        changed = settings_of(teacher, "--steps=3", f"--{name}={value}")
        assert changed == dataclasses.replace(plain, **{name: value})


def test_a_teachers_own_sampler_is_the_default_and_flags_come_first(settings_of, tmp_path):
    own = {"num_steps": 3, "guidance": 2.0}
    bundle = save_tiny(tmp_path / "t", kind="teacher", sampler=own)
    expected = maskgit.MaskGitSettings(num_steps=3, guidance=2.0)
    assert settings_of(bundle) == expected
    changed = settings_of(bundle, "--steps=2")
    assert changed == dataclasses.replace(expected, num_steps=2)


def test_a_teacher_is_decoded_with_its_labels_and_the_null_label(arrays, teacher):
    labels = np.arange(4, dtype=np.int32)
    settings = maskgit.MaskGitSettings(num_steps=2, guidance=3.0)
    expected = samplers.sample(
        tiny_network(),
        tiny_params(),
        jax.random.key(5),
        labels,
        np.full_like(labels, 10),
        settings,
        4,
    )
    data = arrays(teacher, "--num=4", "--steps=2", "--guidance=3", "--seed=5")
    np.testing.assert_array_equal(data["tokens"], expected)
    np.testing.assert_array_equal(data["labels"], labels)


def test_the_tokenizer_can_stand_elsewhere(run, generator, tmp_path):
    (tmp_path / "far").mkdir()
    alone = save_tiny(tmp_path / "alone", tokenizer_params=None)
    output = tmp_path / "x.png"
    run(
        f"--generator={alone}",
        f"--tokenizer={generator}/tokenizer",
        f"--output={output}",
        "--num=2",
        "--batch_size=8",
    )
    assert output.is_file()
    err = run(f"--generator={alone}", f"--output={output}", status=2)
    assert "has no tokenizer/ inside; give --tokenizer=BUNDLE, the bundle of gray_levels" in err


def test_a_generator_of_two_steps_makes_both_or_the_first(run, arrays, generator, tmp_path):
    sampler = SAMPLER | {"step_ratios": [0.5], "step_sigma": 0.0, "redraw": False}
    two = save_tiny(tmp_path / "two", sampler=sampler)
    found = arrays(two, "--num=8")
    recorded = json.loads(str(found["settings"]))["sampler"]
    assert recorded == {"name": "few_steps", **sampler, "num_steps": 2}
    np.testing.assert_array_equal(arrays(two, "--num=8", "--steps=2")["tokens"], found["tokens"])
    first = arrays(two, "--num=8", "--steps=1")
    assert json.loads(str(first["settings"]))["sampler"]["name"] == "one_step"
    np.testing.assert_array_equal(first["tokens"], arrays(generator, "--num=8")["tokens"])
    assert (first["tokens"] != found["tokens"]).any()
    flags = [f"--generator={two}", f"--output={tmp_path / 'x.png'}", "--batch_size=8"]
    assert "num_steps is 3; it must be 1 to 2, as many" in run(*flags, "--steps=3", status=2)
    assert "--guidance is for a teacher" in run(*flags, "--guidance=2", status=2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels=1,10"], "--labels has 10; labels are whole numbers from 0 to 9"),
        (["--labels=-1"], "--labels has -1; labels"),
        (["--labels=" + 5000 * "9"], "--labels has 999"),
        (["--labels="], "--labels is empty"),
        (["--labels=1", "--num=3"], "exclude each other"),
        (["--num=0"], "flag --num=0"),
        (["--seed=-1"], "flag --seed=-1"),
        (["--batch_size=0"], "flag --batch_size=0"),
        (["--output=x.jpg"], "must end in .png or .npz"),
        (["--num_per_label=1000"], "more than most programs show (32,767 along a side"),
        (["--output="], "--output= is empty"),
        (["--temperature=0"], "temperature is 0.0; it must be above 0"),
        (["--steps=2"], "num_steps is 2; it must be 1, as many as the generator was distilled for"),
        (["--sampler=halton"], "--sampler is for a teacher"),
        (["--option=theta=0.5"], "--option is for a teacher"),
        (["--sigma=2"], "sigma is 2.0; it must be in [0, 1]"),
        (
            ["--batch_size=12"],
            "--batch_size=12 is not divisible by the 8 devices; give --batch_size=16",
        ),
        (["--guidance=2"], "--guidance is for a teacher"),
        (["--lables=1"], "nearest: --labels"),
        (["--output=/dev/null/x.png"], "cannot write /dev/null/x.png: "),
    ],
)
def test_wrong_flags_of_a_generator(run, generator, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    arguments = [f"--generator={generator}", "--output=x.png", "--batch_size=8", *flags]
    err = run(*arguments, status=2)
    assert message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "is a teacher, which needs --steps=N"),
        (["--steps=0"], "num_steps is 0; it must be at least 1"),
        (["--steps=2", "--schedule=sine"], "schedule is 'sine'; it must be one of root, linear"),
        (["--steps=2", "--randomize=no"], "randomize is 'no'"),
        (["--steps=2", "--ratio=0.5"], "--ratio is for a one-step generator"),
        (["--steps=2", "--option=theta"], "--option=theta is not name=value"),
        (
            ["--steps=2", "--sampler=halton", "--schedule=linear"],
            "'halton' has no setting schedule",
        ),
        (["--steps=2", "--option=guidance=high"], "does not take these"),
    ],
)
def test_wrong_flags_of_a_teacher(run, teacher, tmp_path, flags, message):
    output = tmp_path / "x.png"
    assert message in run(f"--generator={teacher}", f"--output={output}", *flags, status=2)


def test_other_kinds_and_other_sizes_are_refused(run, generator, tmp_path):
    output = f"--output={tmp_path / 'x.png'}"
    err = run(f"--generator={generator}/tokenizer", output, status=2)
    assert "is a tokenizer; give a generator's or teacher's bundle" in err
    network = models.build({"name": "exact_posterior", "num_tokens": 2, "codebook_size": 4})
    toy = bundles.save(
        tmp_path / "toy",
        kind="teacher",
        model=network.config,
        params=network.init(jax.random.key(0)),
    )
    flags = [f"--generator={toy}", f"--tokenizer={generator}/tokenizer", "--steps=1", output]
    assert "2 tokens of 4 codes" in run(*flags, status=2)


def test_a_sampler_for_another_program_is_refused(tmp_path):
    path = save_tiny(tmp_path / "t", kind="teacher", sampler={"num_steps": 2, "halton": True})
    with pytest.raises(InputError, match="halton"):
        drawing.sampler_of(bundles.load(path), {})


def test_the_command_itself_ends_with_status_2_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "dimo_jax.sample", "--output=x.png"]
    result = subprocess.run(
        [*command, "--generator=nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr == "error: there is no bundle at nowhere: it is not a folder\n"


def test_the_network_is_computed_as_asked(generator):
    labels = np.arange(8, dtype=np.int32)
    seen = {}
    for dtype in ("float32", "bfloat16"):
        model, _ = drawing.open_pair(generator, compute_dtype=dtype)
        tokens = np.zeros((8, 64), np.int32)
        lowered = jax.jit(model.build().apply).lower(model.params, tokens, labels)
        seen[dtype] = "bf16" in lowered.as_text()
    assert seen == {"float32": False, "bfloat16": True}


def test_a_student_of_several_steps_has_its_own_settings_and_a_guide(
    arrays, run, teacher, tmp_path
):
    network = models.build({**NETWORK, "mixture_dim": 8})
    sampler = {"name": "maskgit", "num_steps": 3, "guidance": 2.0, "counts": "differences"}
    params = jax.jit(network.init)(jax.random.key(1))
    student = save_tiny(tmp_path / "student", model=network.config, params=params, sampler=sampler)
    own = arrays(student, "--num=8")
    assert json.loads(str(own["settings"]))["sampler"]["num_steps"] == 3
    guided = arrays(student, "--num=8", f"--guide={teacher}")
    assert (guided["tokens"] != own["tokens"]).any()
    output = f"--output={tmp_path / 'x.npz'}"
    err = run(f"--generator={student}", "--sigma=0.1", output, status=2)
    assert "--sigma is for a one-step generator" in err and "is sampled in steps" in err
    flags = [f"--guide={teacher}", "--guidance=1"]
    err = run(f"--generator={student}", output, *flags, status=2)
    assert "--guide is for the guidance of the sampler maskgit" in err
    with pytest.raises(InputError, match="another num_tokens"):
        joined.guided(network, models.build({**NETWORK, "num_tokens": 3}))


@pytest.mark.parametrize("options", [[], ["--sampler=halton"], ["--sampler=solver"]])
def test_every_sampler_decodes_a_teacher(arrays, teacher, options):
    tokens = arrays(teacher, "--num=8", "--steps=3", *options)["tokens"]
    assert tokens.shape == (8, 64) and 0 <= tokens.min() and tokens.max() < 17
    more = arrays(teacher, "--num=16", "--steps=3", *options)["tokens"]
    np.testing.assert_array_equal(more[:8], tokens)


def test_options_reach_the_sampler(settings_of, teacher):
    changed = settings_of(
        teacher,
        "--sampler=solver",
        "--steps=3",
        "--option=theta=0.3",
        "--option=method=theta_rk2",
    )
    assert (changed.theta, changed.method) == (0.3, "theta_rk2")


def test_a_generator_starts_as_the_flags_say(settings_of, generator):
    changed = settings_of(generator, "--ratio=0.25", "--sigma=0.5")
    assert (changed.ratio_low, changed.ratio_high, changed.sigma) == (0.25, 0.25, 0.5)
