"""configs/meissonic.py: its smoke run from end to end, and what its variants change."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import meissonic
from dimo_jax import bundles, sample
from dimo_jax import config as configs
from dimo_jax.commands import export as formats
from dimo_jax.common import files, trees
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import text_encoder
from dimo_jax.conditions.prompts import PromptConditions
from dimo_jax.conditions.transformers_tokenizer import from_merges
from dimo_jax.config import validation
from dimo_jax.convert import __main__ as convert
from dimo_jax.parallel import distributed, sharding
from dimo_jax.runs import image_run
from dimo_jax.training import load_models, metrics
from tests.helpers.command_line import SAMPLER, command, finish, run_command, run_printed, save_tiny
from tests.test_sample_text import place  # noqa: F401  bundles as dimo_jax.convert leaves them

# On one worker, which makes the fixtures once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("meissonic_run")]

SMOKE = ["--config=configs/meissonic.py:smoke"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "meissonic"
    out, err = finish(command("main", *SMOKE, f"--workdir={workdir}"))
    return workdir, out, err


def test_the_smoke_run_leaves_a_generator_its_encoder_and_the_record(finished):
    workdir, out, err = finished
    assert "5 prompts of config.prompts.texts" in err
    assert "images of it: " in out
    last = [line for line in metrics.read(workdir) if line["stage"] == "distill"][-1]
    assert last["step"] == 6
    for name in ("divergence", "aux_loss", "generator_grad_norm", "aux_grad_norm"):
        assert np.isfinite(last[f"train/{name}"]) and last[f"train/{name}"] > 0, name
    pictures = sorted((workdir / "images" / "distill").iterdir())
    assert sum("teacher" in x.name for x in pictures) == 1
    # Four prompts, each in a column of four.
    shapes = {np.asarray(Image.open(x)).shape for x in pictures}
    assert len(shapes) == 1 and min(next(iter(shapes))[:2]) > 4 * 32
    encoder = bundles.load(workdir / "export" / "text_encoder", kind="clip")
    assert encoder.attachment("merges.txt") and "image" not in encoder.params
    digest = trees.fingerprint(encoder.params["text"])
    for name in ("export", "teacher"):
        found = bundles.load(workdir / name).provenance["text_encoder"]
        assert found == {"text_encoder": digest}


def test_the_command_at_the_end_runs_as_it_stands(finished, tmp_path, monkeypatch):
    run_printed(finished[1], tmp_path, monkeypatch)


def test_frozen_leaves_are_the_teachers_and_the_rest_moves(finished):
    workdir, _, _ = finished
    found = [bundles.load(workdir / name) for name in ("teacher", "export")]
    teacher, generator = (trees.named_leaves(bundle.params) for bundle in found)
    same = {name for name in teacher if (teacher[name] == generator[name]).all()}
    assert {name.split("/")[0] for name in same} >= {
        "token_embedding", "embed_norm", "embed_out", "head_in", "head_norm", "head_out",
    }  # fmt: skip
    moved = set(teacher) - same
    assert len(moved) > len(same) and "merge/kernel" in moved
    assert found[1].sampler["ratio"] == 0.5 and found[1].sampler["sigma"] == 0.3
    assert found[1].model["timestep"] == "zero"


def test_the_generator_is_sampled_with_a_prompt(finished, tmp_path, monkeypatch, capsys):
    workdir, _, _ = finished
    flags = [f"--generator={workdir}/export", "--prompt=a red ball", "--num_per_prompt=2"]
    flags += ["--batch_size=8", f"--output={tmp_path / 'out.png'}"]
    status, out, err = run_command(sample, flags, monkeypatch, capsys)
    assert status == 0, err
    assert out == f"2 images, seed 0: {tmp_path / 'out.png'}\n"
    # From its last checkpoint, with the text encoder that the config describes.
    flags[0], flags[-1] = f"--workdir={workdir}", f"--output={tmp_path / 'same.png'}"
    status, _, err = run_command(sample, [*flags, "--step=6"], monkeypatch, capsys)
    assert status == 0 and "the averaged generator of step 6" in err
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "out.png").read_bytes()


def test_a_generator_that_is_moved_is_complete_or_says_what_is_missing(
    finished, tmp_path, monkeypatch, capsys
):
    workdir, _, _ = finished
    moved, pictures = tmp_path / "elsewhere" / "model", []
    shutil.copytree(workdir / "export", moved)

    def draw(*more, status=0, of=moved):
        flags = [f"--generator={of}", "--prompt=a red ball", "--batch_size=8"]
        flags += [f"--output={tmp_path / 'x.png'}", *more]
        found, _, err = run_command(sample, flags, monkeypatch, capsys)
        assert found == status, err
        if not status:
            pictures.append((tmp_path / "x.png").read_bytes())
        return err

    def back(*more, status=0):
        flags = ["--to=diffusers", f"--input={moved}", f"--output={tmp_path / 'folder'}", *more]
        found, _, err = run_command(convert, flags, monkeypatch, capsys)
        assert found == status, err
        parts = tmp_path / "folder"
        return err, sorted(x.name for x in parts.iterdir()) if parts.exists() else []

    draw(of=workdir / "export")
    draw()
    (moved / "text_encoder").rename(tmp_path / "encoder")
    err = draw(status=2)
    assert "there is no text encoder at" in err and "give --text_encoder=BUNDLE" in err
    err, written = back(status=2)
    assert "lacks its text_encoder" in err and "give --text_encoder=BUNDLE, or" in err
    assert err.count("\n") == 1 and written == []
    # Another one than it was trained with.
    own = bundles.load(tmp_path / "encoder")
    for name, options in {
        "parameters": {"params": jax.tree.map(lambda x: x + 1, own.params)},
        "tokenizer": {"attachments": {"tokenizer.json": from_merges([], 16)}},
    }.items():
        options = {"params": own.params, "attachments": own.attachments, **options}
        bundles.save(tmp_path / name, kind="clip", model=own.model, **options)
        given = f"--text_encoder={tmp_path / name}"
        for err in (draw(given, status=2), back(given, status=2)[0]):
            assert f"has other {name} than the one that {moved} was trained with" in err
    draw(f"--text_encoder={tmp_path / 'encoder'}")
    assert pictures == pictures[:1] * 3
    shutil.rmtree(tmp_path / "folder", ignore_errors=True)
    err, written = back("--text_encoder=none")
    assert "left out, as --text_encoder=none says: text_encoder/ and tokenizer/" in err
    assert written == ["scheduler", "transformer", "vqvae"]
    shutil.rmtree(tmp_path / "folder")
    _, written = back(f"--text_encoder={tmp_path / 'encoder'}")
    names = ["scheduler", "text_encoder", "tokenizer", "transformer", "vqvae"]
    assert written == ["README.md", "model_index.json", "pipeline.py", *names]
    err, _ = back(f"--text_encoder={moved / 'tokenizer'}", status=2)
    assert "is one for vqvae/, not for text_encoder/" in err


def test_the_generator_goes_back_to_a_folder_of_diffusers_and_is_exported(finished, tmp_path):
    workdir, _, _ = finished
    flags = ["--to=diffusers", f"--input={workdir}/export", f"--output={tmp_path / 'folder'}"]
    finish(command("convert", *flags))
    found = sorted(x.relative_to(tmp_path / "folder").as_posix() for x in tmp_path.rglob("*.json"))
    assert found == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "transformer/config.json",
        "vqvae/config.json",
    ]
    bundle = bundles.load(workdir / "export")
    data = formats.exported(bundle, "safetensors")
    found = trees.named_leaves(bundle.params)
    for name, leaf in formats.read_safetensors(data).items():
        np.testing.assert_array_equal(leaf, found[name])
    with pytest.raises(InputError, match="takes text, and stablehlo is for generators of classes"):
        formats.exported(bundle, "stablehlo")


def smoke(**changes):
    config = meissonic.get_config("smoke")
    # The tests have eight devices, and the batch two parts.
    config.update_from_flattened_dict({"distill.batch_size": 16, **changes})
    return config.to_dict()


def opened(config, workdir):
    validation.validate(config)
    return image_run.load(config, files.path(workdir), sharding.layout(config["mesh"]))


@pytest.fixture
def given(place):  # noqa: F811
    return {"teacher.random": False, "teacher.bundle": str(place / "transformer")}


def test_tokenizer_and_encoder_are_taken_from_beside_the_teacher(given, place, tmp_path):  # noqa: F811
    run = opened(smoke(**given, **{"distill.timestep": "ratio"}), tmp_path)
    assert run.network.config["timestep"] == "ratio"  # the bundle says zero
    assert run.tokenizer.config == bundles.load(place / "vqvae").model
    assert isinstance(run.conditions, PromptConditions) and run.conditions.num == 5
    bundle = bundles.load(place / "text_encoder")
    assert run.conditions.identity()["text_encoder"] == trees.fingerprint(bundle.params["text"])
    condition, null = run.pictured
    assert condition["states"].shape == null["states"].shape == (16, 12, 8)
    assert (condition["states"][:4] == condition["states"][:1]).all()
    assert (condition["states"][4] != condition["states"][3]).any()
    assert (null["states"] == null["states"][:1]).all()
    run = opened(smoke(**given, **{"logging.picture_prompts": ("x", "y", "z")}), tmp_path)
    assert run.pictured[0]["pooled"].shape == (12, 6)
    # The whole on the mesh of all eight devices, as the run takes it.
    batch = run.conditions.batches(0, 8, 1, run.layout)(0)
    assert batch[0]["states"].shape == (8, 12, 8) and batch[1]["states"].shape == (1, 8, 12, 8)


def test_processes_must_have_the_same_prompts(given, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(distributed, "assert_same", compared.append)
    run = opened(smoke(**given), tmp_path)
    assert compared == [run.conditions.identity()]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"prompts.path": "nowhere.txt", "prompts.texts": ()}, "there is no nowhere.txt"),
        ({"prompts.texts": (" ",)}, "config.prompts.texts has no prompts"),
        ({"prompts.texts": ()}, "neither config.prompts.path nor .texts given; give one"),
        ({"prompts.path": "x.txt"}, "config.prompts.path and config.prompts.texts given; give one"),
        ({"text_encoder.bundle": "nowhere"}, "there is no bundle at nowhere"),
        ({"tokenizer.bundle": "nowhere"}, "there is no bundle at nowhere"),
        ({"distill.auxiliary.condition_drop": 0.1}, "condition_drop is for classes"),
        ({"distill.timestep": "step"}, "must be one of empty, zero, ratio"),
        (
            {"prompts.micro_conditions": (1.0,)},
            "micro_conditions is .1.0,.; it must be a tuple of 5",
        ),
        ({"logging.picture_steps": 0}, "picture_steps is 0; it must be a whole number, at least 1"),
    ],
)
def test_what_does_not_fit_is_one_sentence(given, tmp_path, changes, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        opened(smoke(**given, **changes), tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_neighbour_is_named(given, place, tmp_path):  # noqa: F811
    for name, complaint in (
        ("text_encoder", "there is no text encoder at"),
        ("vqvae", "no bundle"),
    ):
        root = tmp_path / name
        shutil.copytree(place, root)
        shutil.rmtree(root / name)
        config = smoke(**given | {"teacher.bundle": str(root / "transformer")})
        with pytest.raises(InputError, match=complaint):
            opened(config, tmp_path / "run")


@pytest.mark.parametrize("field", ["teacher.bundle", "distill.generator.bundle"])
def test_other_micro_conditions_than_a_bundle_was_trained_with_are_refused(
    given,
    place,  # noqa: F811
    tmp_path,
    field,
):
    root = tmp_path / "place"
    shutil.copytree(place, root)
    file = root / "transformer" / "config.json"
    about = json.loads(file.read_text())
    about["provenance"]["micro_conditions"] = [512, 512, 0, 0, 6]
    if field != "teacher.bundle":
        about |= {"kind": "generator", "sampler": SAMPLER}
    file.write_text(json.dumps(about))
    given = given | {field: str(root / "transformer")}
    with pytest.raises(InputError, match=r"with the micro-conditions \(512.0, 512.0, 0.0, 0.0, 6"):
        opened(smoke(**given), tmp_path / "run")
    own = {"prompts.micro_conditions": (512.0, 512.0, 0.0, 0.0, 6.0)}
    opened(smoke(**given, **own), tmp_path / "run")


def test_text_and_classes_are_not_taken_for_each_other(given, tmp_path):
    other = {"data.name": "labels", "data.num_classes": 3, "prompts.texts": ()}
    other |= {"tokenizer.bundle": "x"}
    with pytest.raises(InputError, match="takes text, and config.data.name is labels"):
        opened(smoke(**given, **other), tmp_path)
    classes = save_tiny(tmp_path / "classes", kind="teacher")
    with pytest.raises(InputError, match="takes classes, and config.data.name is prompts"):
        opened(smoke(**given | {"teacher.bundle": str(classes)}), tmp_path)
    with pytest.raises(InputError, match="which takes text, and config.data.name is labels"):
        opened(smoke(**other | {"teacher.random": True}), tmp_path)
    timed = {"model.name": "maskgit", "data.name": "labels", "prompts.texts": ()}
    config = configs.default_config()
    config.update_from_flattened_dict(
        {**timed, "distill.timestep": "zero", "teacher.random": True, "data.num_classes": 3}
    )
    with pytest.raises(InputError, match="timestep=zero is for networks with text"):
        opened(config.to_dict(), tmp_path)


def test_without_a_bundle_the_command_says_how_to_make_one(tmp_path):
    config = ["--config=configs/meissonic.py", "--config.prompts.path=x.txt"]
    _, err = finish(command("main", *config, f"--workdir={tmp_path / 'run'}"), status=2)
    assert "python -m dimo_jax.convert --source=meissonic --input=Meissonic/" in err
    assert err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_other_prompts_are_another_training_and_other_places_are_not(given):
    def of(**changes):
        return configs.stage_settings(smoke(**given, **changes), "distill")

    places = {"prompts.path": "x", "prompts.cache": "y", "text_encoder.bundle": "z"}
    assert of() == of(**places) != of(**{"prompts.negative": "x"})
    assert of()["prompts.micro_conditions"] and json.dumps(of())
    # Runs with classes go on with what they were begun with.
    labels = configs.stage_settings(configs.default_config().to_dict(), "distill")
    assert not [name for name in labels if name.startswith(("prompts", "text_encoder"))]


def test_the_variants_change_what_they_say():
    released, paper, small = (
        configs.flat(meissonic.get_config(name).to_dict()) for name in ("default", "paper", "512")
    )

    def changed(other):
        return {k for k in released if released[k] != other[k]}

    assert changed(paper) == {
        "distill.reduction", "distill.weighting", "distill.auxiliary.sample",
        "distill.auxiliary.label_smoothing",
    }  # fmt: skip
    assert changed(small) == {
        "title", "prompts.micro_conditions", "tokenizer.image_size", "model.merge"
    }  # fmt: skip
    with pytest.raises(ValueError, match="default, paper, 512, smoke"):
        meissonic.get_config("1024")


def test_the_defaults_are_the_released_networks_sizes():
    config = meissonic.get_config().to_dict()
    network = load_models.open_network(config, None, load_models.open_tokenizer(config, None)[0])
    encoder = text_encoder.encoder_network(config)
    for init, expected in ((network.init, 1_006_946_304), (encoder.init, 354_032_640)):
        shapes = jax.eval_shape(init, jax.random.key(0))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected
    small = meissonic.get_config("512").to_dict()
    assert load_models.open_tokenizer(small, None)[0].num_tokens == 1024
