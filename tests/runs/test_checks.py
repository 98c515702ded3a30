"""What a run's config can get wrong besides its fields, found before anything is written."""

import importlib

import jax
import numpy as np
import pytest

from dimo_jax import bundles, models, tokenizers
from dimo_jax.common.errors import InputError
from tests.helpers import inception_weights
from tests.helpers.command_line import NETWORK, save_tiny
from tests.helpers.opened_runs import CLASSES, DIGITS, PATCH, TEXT, TOY, opened

GENERATOR = "distill.generator.optimizer.frozen"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Files and folders that a config may name by mistake."""
    root = tmp_path_factory.mktemp("named")
    (root / "file").write_text("x")
    (root / "empty").mkdir()
    (root / "blank.txt").write_text("\n \n")
    save_tiny(root / "teacher", kind="teacher")
    gray = tokenizers.build({"name": "gray_levels"})
    bundles.save(root / "gray", kind="tokenizer", model=gray.config, params={})
    other = {"config": gray.config, "hash": "0" * 64}
    save_tiny(root / "other_hash", kind="teacher", tokenizer=other, tokenizer_params=None)
    few = models.build({**NETWORK, "num_classes": 3})
    params = jax.jit(few.init)(jax.random.key(0))
    save_tiny(root / "three", kind="teacher", model=few.config, params=params)
    inception_weights.save_bundle(root / "inception", 16)
    np.savez(root / "stats.npz", mu=np.zeros(7), sigma=np.eye(7))
    np.savez(root / "fits.npz", mu=np.zeros(128), sigma=np.eye(128))
    np.savez(root / "images.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    return root


INTERIM = {
    "interim.every_steps": 5,
    "interim.features": "inception",
    "interim.reference": "stats.npz",
}
# (config, changes with paths inside `place`, words of the message)
WRONG = [
    (DIGITS, {GENERATOR: ("nothing",)}, f"config.{GENERATOR}: 'nothing' matches no parameter"),
    (TOY, {GENERATOR: ("nothing",)}, f"config.{GENERATOR}: 'nothing' matches no parameter"),
    (CLASSES, {GENERATOR: ("nothing",)}, f"config.{GENERATOR}: 'nothing' matches no parameter"),
    (TEXT, {GENERATOR: ("nothing",)}, f"config.{GENERATOR}: 'nothing' matches no parameter"),
    (
        DIGITS,
        {"distill.auxiliary.optimizer.frozen": ("x^",)},
        "config.distill.auxiliary.optimizer.frozen: 'x^' matches no parameter",
    ),
    (
        DIGITS,
        {"pretrain.optimizer.frozen": (".*",)},
        "config.pretrain.optimizer.frozen: .* match every parameter",
    ),
    (DIGITS, {"mesh.rules": ()}, "config.mesh.rules say nothing of"),
    (DIGITS, {"mesh.rules": ((".*", ("data", "data", None)),)}, "config.mesh.rules give"),
    (DIGITS, {"mesh.data": 3}, "config.mesh.data=3 and config.mesh.fsdp=1 do not make up the 8"),
    (DIGITS, {"mesh.fsdp": -1}, "config.mesh.data=-1 and config.mesh.fsdp=-1"),
    (DIGITS, {"pretrain.batch_size": 12}, "config.pretrain.batch_size=12 does not divide by 8"),
    (DIGITS, {"distill.batch_size": 12}, "config.distill.batch_size=12 does not divide by 8"),
    (TOY, {"distill.batch_size": 12}, "config.distill.batch_size=12 does not divide by 8"),
    (CLASSES, {"distill.batch_size": 12}, "config.distill.batch_size=12 does not divide by 8"),
    (DIGITS, {"tokenizer.image_size": 16}, "config.tokenizer takes images of (16, 16, 1)"),
    (DIGITS, {"tokenizer": {"bundle": "", "name": "vqgan"}}, "config.tokenizer takes images of"),
    (PATCH, {"tokenizer.channels": 3}, "config.tokenizer takes images of (8, 8, 3)"),
    (PATCH, {"tokenizer.patch_size": 3}, "config.tokenizer: patch_size of 'patches' is 3"),
    (PATCH, {"tokenizer.codebook_size": 100_000}, "config.tokenizer: codebook_size is 100000"),
    (CLASSES, {"tokenizer.ch": 33}, "config.tokenizer: "),
    (CLASSES, {"tokenizer.attn_levels": (9,)}, "config.tokenizer: attn_levels"),
    (DIGITS, {"classifier.channels": (2,) * 5}, "config.classifier.channels: a classifier with 5"),
    (DIGITS, {"distill.top_k": 18}, "config.distill.top_k is 18, more than the 17 codes"),
    (DIGITS, {"distill.teacher.top_k": 18}, "config.distill.teacher.top_k is 18, more than"),
    (DIGITS, {"sampler.top_k": 18}, "config.sampler.top_k is 18, more than the 17 codes"),
    (TOY, {"sampler.top_k": 17}, "config.sampler.top_k is 17, more than the 16 codes"),
    (DIGITS, {"teacher.bundle": "nowhere"}, "config.teacher.bundle: there is no bundle at"),
    (DIGITS, {"teacher.bundle": "file"}, "config.teacher.bundle: "),
    (DIGITS, {"teacher.bundle": "empty"}, "config.teacher.bundle: cannot read"),
    (DIGITS, {"teacher.bundle": "gray"}, "config.teacher.bundle: "),
    (DIGITS, {"teacher.bundle": "three"}, "3 classes, config.data.num_classes is 10"),
    (DIGITS, {"teacher.bundle": "other_hash"}, "another tokenizer than config.tokenizer"),
    (
        PATCH,
        {"teacher.bundle": "teacher"},
        "64 tokens of 17 codes, the tokenizer 16 of 128; set config.tokenizer to match",
    ),
    (DIGITS, {"tokenizer.bundle": "nowhere"}, "config.tokenizer.bundle: there is no bundle at"),
    (DIGITS, {"tokenizer.bundle": "teacher"}, "config.tokenizer.bundle: "),
    (DIGITS, {"data.directory": "file"}, "config.data.directory="),
    (DIGITS, {"compilation_cache": "file"}, "config.compilation_cache="),
    (DIGITS, {"compilation_cache": "file/inside"}, "config.compilation_cache: "),
    (DIGITS, {"interim.every_steps": 5, "interim.features": "x"}, "config.interim.reference"),
    (DIGITS, {"interim.every_steps": 5, "interim.reference": "x"}, "config.interim.features"),
    (CLASSES, {"interim.every_steps": 5}, "config.interim.features and config.interim.reference"),
    (DIGITS, INTERIM, "config.interim.features takes RGB, and these images have 1 channel"),
    (CLASSES, INTERIM, "config.interim.reference="),
    (CLASSES, INTERIM | {"interim.features": "nowhere"}, "config.interim.features: there is no"),
    (CLASSES, INTERIM | {"interim.features": "gray"}, "config.interim.features: "),
    (CLASSES, INTERIM | {"interim.reference": "nowhere.npz"}, "config.interim.reference: "),
    (CLASSES, INTERIM | {"interim.reference": "images.npz"}, "config.interim.reference="),
    (TEXT, {"prompts.texts": (" ",)}, "config.prompts.texts has no prompts"),
    (
        TEXT,
        {"prompts.texts": (), "prompts.path": "nowhere.txt"},
        "config.prompts.path: there is no",
    ),
    (TEXT, {"prompts.texts": (), "prompts.path": "empty"}, "config.prompts.path: "),
    (TEXT, {"prompts.texts": (), "prompts.path": "blank.txt"}, "config.prompts.path: "),
    (TEXT, {"prompts.texts": (), "prompts.path": "stats.npz"}, "config.prompts.path: "),
    (TEXT, {"prompts.cache": "file"}, "config.prompts.cache="),
    (TEXT, {"text_encoder.bundle": "nowhere"}, "config.text_encoder.bundle: there is no bundle"),
    (TEXT, {"text_encoder.bundle": "gray"}, "config.text_encoder.bundle: "),
    (
        TEXT,
        {"text_encoder.projection": 8},
        "config.text_encoder: the text encoder gives",
    ),
    (TEXT, {"model.vocabulary": 32}, "config.model: vocabulary"),
    (TEXT, {"tokenizer.image_size": 20}, "config.model: num_tokens"),
    (TEXT, {"attention": "cudnn"}, "config.attention=cudnn needs an NVIDIA GPU"),
    (TEXT, {"attention": "pallas"}, "config.attention=pallas needs a TPU, and the devices are"),
]
PATHS = (
    *("teacher.bundle", "tokenizer.bundle", "text_encoder.bundle", "data.directory"),
    *("compilation_cache", "prompts.cache", "prompts.path", "interim.features"),
    "interim.reference",
)


@pytest.mark.parametrize(("base", "changes", "words"), WRONG)
def test_what_does_not_fit_is_found_at_the_start(base, changes, words, place, tmp_path):
    changes = {k: str(place / v) if k in PATHS else v for k, v in changes.items()}
    before = sorted(place.rglob("*"))
    with pytest.raises(InputError) as error:
        opened(base, changes, tmp_path / "run")
    message = str(error.value)
    assert words in message and "config." in message and "\n" not in message
    assert list(tmp_path.iterdir()) == [] and sorted(place.rglob("*")) == before


def test_a_work_directory_that_cannot_be_is_found_at_the_start(place):
    with pytest.raises(InputError, match="file"):
        opened(DIGITS, {}, place / "file" / "run")


@pytest.mark.parametrize("base", [DIGITS, PATCH, TOY, CLASSES, TEXT])
def test_what_fits_is_opened_and_nothing_is_written(base, tmp_path):
    run = opened(base, {}, tmp_path / "run")
    assert set(run.programs) >= {"distill"} and list(tmp_path.iterdir()) == []
    assert ("pretrain" in run.programs) == (base in (DIGITS, PATCH, TOY))


def test_bundles_and_files_that_fit_are_taken(place, tmp_path):
    changes = {"teacher.bundle": str(place / "teacher"), "tokenizer.bundle": str(place / "gray")}
    run = opened(DIGITS, changes, tmp_path / "run")
    assert run.network.config == NETWORK and set(run.programs) == {"distill"}
    changes = {k: str(place / v) if k in PATHS else v for k, v in INTERIM.items()}
    changes["interim.reference"] = str(place / "fits.npz")
    assert opened(CLASSES, changes, tmp_path / "run").distance.name == "fid"


def test_missing_scikit_learn_is_found_at_the_start(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "sklearn" else find(name, *a)
    )
    with pytest.raises(InputError, match="config.data.name=digits needs scikit-learn"):
        opened(DIGITS, {}, tmp_path / "run")
