"""Bundles: what is saved is what is loaded, and anything else is refused in one sentence."""

import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization
from huggingface_hub import ModelCard

from dimo_jax import bundles, sample
from dimo_jax.bundles import card as bundles_card
from dimo_jax.common import files, temporaries, trees
from dimo_jax.common.errors import InputError
from tests.helpers.command_line import SAMPLER, run_command, save_tiny, tiny_network, tiny_params


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("bundles") / "export", provenance={"steps": 7})


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "export")


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config.update(changes)
    config = {name: value for name, value in config.items() if value is not KeyError}
    (path / "config.json").write_text(json.dumps(config))


def replace_params(path, data):
    """Other parameters, with the hash that belongs to them."""
    (path / "params.msgpack").write_bytes(data)
    edit_config(path, params_sha256=hashlib.sha256(data).hexdigest())


def test_loads_what_was_saved(saved):
    bundle = bundles.load(saved)
    assert (bundle.kind, bundle.path) == ("generator", saved)
    assert (bundle.model, bundle.sampler) == (tiny_network().config, SAMPLER)
    assert bundle.provenance == {"steps": 7}
    jax.tree.map(np.testing.assert_array_equal, bundle.params, tiny_params())
    assert bundle.params_hash == trees.fingerprint(tiny_params())
    assert bundle.build().config == bundle.model


def test_the_hash_in_the_config_is_the_files(saved):
    config = json.loads((saved / "config.json").read_text())
    digest = hashlib.sha256((saved / "params.msgpack").read_bytes()).hexdigest()
    assert config["params_sha256"] == digest


def test_a_generator_carries_its_tokenizer(saved):
    tokenizer = bundles.load_tokenizer(saved / "tokenizer", bundles.load(saved))
    assert (tokenizer.kind, tokenizer.params) == ("tokenizer", {})
    assert tokenizer.build().num_tokens == 64


def test_the_bytes_do_not_depend_on_the_order_of_keys():
    a, b = np.ones(2, np.float32), np.zeros(3, np.int32)
    assert bundles.params_bytes({"a": a, "b": b}) == bundles.params_bytes({"b": b, "a": a})


def test_another_dtype_is_another_tree_and_keeps_its_bits(tmp_path):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny_params())
    with pytest.raises(ValueError, match="dtype bfloat16, expected float32"):
        save_tiny(tmp_path / "half", params=half)
    again = serialization.msgpack_restore(bundles.params_bytes(half))
    assert trees.fingerprint(again) == trees.fingerprint(half) != trees.fingerprint(tiny_params())


def test_saving_again_replaces_the_whole_bundle(copy):
    save_tiny(copy, kind="teacher", tokenizer_params=None)
    assert bundles.load(copy).kind == "teacher"
    assert sorted(x.name for x in copy.iterdir()) == ["config.json", "params.msgpack"]
    assert [x.name for x in copy.parent.iterdir()] == ["export"]


def test_a_save_that_fails_leaves_the_old_bundle(copy, monkeypatch):
    before = (copy / "config.json").read_bytes()

    def fail(path, opened=temporaries.new_file):
        if path.name == "params.msgpack":
            raise OSError(28, "No space left on device", str(path))
        return opened(path)

    monkeypatch.setattr(temporaries, "new_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_tiny(copy, kind="teacher")
    assert (copy / "config.json").read_bytes() == before
    assert bundles.load(copy).kind == "generator"
    assert [x.name for x in copy.parent.iterdir()] == ["export"]


def test_saving_never_deletes_a_folder_of_other_things(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="would delete"):
        save_tiny(tmp_path / "work")
    assert (tmp_path / "work" / "notes.txt").read_text() == "mine"


def test_saving_checks_parameters_tokenizer_and_sampler(tmp_path):
    wrong = {**tiny_params(), "extra": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="unknown extra"):
        save_tiny(tmp_path / "a", params=wrong)
    with pytest.raises(ValueError, match="tokenizer_params are not"):
        save_tiny(tmp_path / "a", tokenizer={"config": {"name": "gray_levels"}, "hash": "0" * 64})
    with pytest.raises(ValueError, match="needs the sampler"):
        save_tiny(tmp_path / "a", sampler=None)
    assert not (tmp_path / "a").exists()


def test_parameters_that_are_not_finite_are_neither_saved_nor_loaded(copy, tmp_path):
    wrong = jax.tree.map(np.array, tiny_params())
    name = min(trees.named_leaves(wrong))
    leaf = trees.named_leaves(wrong)[name]
    leaf.flat[1] = np.nan
    words = rf"{name} \(1 of {leaf.size}\)"
    with pytest.raises(InputError, match=f"the generator has values .* finite numbers: {words}"):
        save_tiny(tmp_path / "a", params=wrong)
    assert not (tmp_path / "a").exists()
    replace_params(copy, bundles.params_bytes(wrong))
    with pytest.raises(InputError, match=f"export has values that are not .*: {words}"):
        bundles.load(copy)


def test_a_bundle_between_two_renames_is_pointed_out(copy):
    copy.rename(files.replaced(copy))
    with pytest.raises(InputError, match=f"{files.replaced(copy)} is its complete previous"):
        bundles.load(copy)


def remove_params(path):
    (path / "params.msgpack").unlink()


def truncate_params(path):
    data = (path / "params.msgpack").read_bytes()
    (path / "params.msgpack").write_bytes(data[: len(data) // 2])


def truncate_config(path):
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text[: len(text) // 2])


def flip_a_bit(path):
    data = bytearray((path / "params.msgpack").read_bytes())
    data[-1] ^= 1
    (path / "params.msgpack").write_bytes(bytes(data))


def other_width(path):
    config = json.loads((path / "config.json").read_text())
    edit_config(path, model={**config["model"], "width": 32})


def other_size(path):
    config = json.loads((path / "config.json").read_text())
    edit_config(path, model={**config["model"], "widht": 16})


def half_precision(path):
    replace_params(
        path, bundles.params_bytes(jax.tree.map(lambda x: x.astype(jnp.float16), tiny_params()))
    )


def missing_leaf(path):
    params = {name: x for name, x in tiny_params().items() if name != "output_bias"}
    replace_params(path, bundles.params_bytes({**params, "bias": np.zeros(2)}))


BAD = {
    "nothing there": (shutil.rmtree, "there is no bundle at"),
    "no parameters": (remove_params, "cannot read .*params.msgpack .*No such file"),
    "no config": (lambda p: (p / "config.json").unlink(), "cannot read .*config.json"),
    "parameters cut off": (truncate_params, "SHA-256 .*cut off"),
    "config cut off": (truncate_config, "config.json is not JSON"),
    "config not an object": (lambda p: (p / "config.json").write_text("[]"), "not a JSON object"),
    "one bit": (flip_a_bit, "SHA-256 .*copy the bundle again"),
    "unknown field": (lambda p: edit_config(p, simga=0.1), "unknown field simga"),
    "missing field": (lambda p: edit_config(p, provenance=KeyError), "missing field provenance"),
    "wrong type": (lambda p: edit_config(p, model=[1]), "model is of type list"),
    "other format": (lambda p: edit_config(p, format_version=9), "format_version 9; .* reads 1"),
    "other kind": (lambda p: edit_config(p, kind="teapot"), "kind is 'teapot', not one of"),
    "no sampler": (lambda p: edit_config(p, sampler=None), "a generator needs a sampler"),
    "half a tokenizer": (lambda p: edit_config(p, tokenizer={"hash": "x"}), "config and hash"),
    "another width": (other_width, r"block_0/mlp_in/kernel: shape \(16, 32\), expected \(32, 32\)"),
    "unknown size": (other_size, "widht"),
    "unknown network": (lambda p: edit_config(p, model={"name": "gan"}), "no network named 'gan'"),
    "half precision": (half_precision, "output_bias: dtype float16, expected float32"),
    "missing leaf": (missing_leaf, "missing output_bias .*unknown bias"),
    "not msgpack": (lambda p: replace_params(p, b"\xc1 nothing"), "not a tree of arrays"),
    "a tokenizer": (lambda p: shutil.copytree(p / "tokenizer", p, dirs_exist_ok=True), "tokenizer"),
    "no tokenizer": (lambda p: shutil.rmtree(p / "tokenizer"), "no tokenizer/ inside; give --tok"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_bundle_ends_the_command_with_one_sentence(fault, copy, monkeypatch, capsys):
    spoil, message = BAD[fault]
    spoil(copy)
    arguments = [f"--generator={copy}", f"--output={copy.parent / 'x.png'}"]
    status, out, err = run_command(sample, arguments, monkeypatch, capsys)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert re.search(message, err), err


def test_every_difference_is_listed(copy):
    other_width(copy)
    with pytest.raises(InputError) as stopped:
        bundles.load(copy)
    names = trees.named_leaves(tiny_params())
    wide = {name for name, x in names.items() if 16 in x.shape}
    assert all(f"{name}: shape" in str(stopped.value) for name in wide)
    assert len(wide) > 10


def test_the_tokenizer_must_be_the_one_of_the_training(copy):
    config = json.loads((copy / "config.json").read_text())
    edit_config(copy, tokenizer={**config["tokenizer"], "hash": "0" * 64})
    with pytest.raises(InputError, match="has the hash .* trained with 000000000000"):
        bundles.load_tokenizer(copy / "tokenizer", bundles.load(copy))
    other = {"name": "gray_levels", "image_size": 8, "num_levels": 16}
    bundles.save(copy / "tokenizer", kind="tokenizer", model=other, params={})
    with pytest.raises(InputError, match="64 tokens of 16 codes, but .* 64 tokens of 17 codes"):
        bundles.load_tokenizer(copy / "tokenizer", bundles.load(copy))
    assert bundles.load_tokenizer(copy / "tokenizer").build().codebook_size == 16


def test_a_kind_can_be_asked_for(saved):
    with pytest.raises(InputError, match="is a generator, not a teacher"):
        bundles.load(saved, kind="teacher")


class Payload:
    """Pickled, it makes the file of this name in whatever process reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_loading_runs_nothing_that_the_file_contains(copy):
    trace = copy.parent / "executed"
    pickled = pickle.dumps(Payload(trace))
    pickle.loads(pickled)
    trace.unlink()  # so the payload does work where a pickle is read
    leaf = msgpack.packb(((1,), "object", pickled), use_bin_type=True)
    for data in (pickled, msgpack.packb({"output_bias": msgpack.ExtType(1, leaf)})):
        replace_params(copy, data)
        with pytest.raises(InputError, match="not a tree of arrays"):
            bundles.load(copy)
    assert not trace.exists()


def test_pieces_are_flaxs_own_bytes():
    params = {
        "b": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(0, np.int8)},
        "a": np.float32(3.5) * np.ones((), np.float32),
        "empty": {},
    }
    pieces = list(bundles.params_pieces(params))
    assert b"".join(pieces) == serialization.msgpack_serialize(params, in_place=False)
    assert max(map(len, pieces)) < 100


def test_a_generator_has_a_model_card_that_the_hub_reads(copy):
    card = ModelCard((copy / "README.md").read_text())
    assert card.data.library_name == "dimo_jax" and card.data.license == "unknown"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert "maskgit" in card.data.tags and 'dimo_jax.load("hf://' in card.text
    assert "Nothing by the run" in card.text
    bundles_card.add_table(copy, bundles.read_config(copy), "| FID |\n| --- |\n| 6.9 |")
    assert "| 6.9 |" in (copy / "README.md").read_text()
    save_tiny(copy, provenance={"repository": "owner/teacher", "title": "Digits"})
    card = ModelCard((copy / "README.md").read_text())
    assert card.data.base_model == "owner/teacher" and "# Digits" in card.text


def test_an_edited_card_is_kept(copy):
    place = copy / "README.md"
    own = place.read_text().replace("license: unknown", "license: mit")
    place.write_text(own)
    bundles_card.add_table(copy, bundles.read_config(copy), "| 6.9 |")
    save_tiny(copy)
    assert place.read_text() == own
    place.write_text("notes")  # no card: it is not ours to replace
    with pytest.raises(InputError, match="README.md"):
        save_tiny(copy)
