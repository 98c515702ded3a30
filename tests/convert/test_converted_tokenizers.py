"""Which tokenizer a converted text tower has: that of its folder, or open_clip's."""

import json

import pytest
from safetensors.numpy import save_file

from dimo_jax import bundles
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_vocabulary, text_encoder, transformers_tokenizer
from dimo_jax.convert import __main__ as command
from dimo_jax.evaluation.features import clip_features
from tests.convert.networks import test_clip_tables as clip
from tests.convert.test_meissonic_folder import ENCODER
from tests.helpers.command_line import run_command


@pytest.fixture
def convert(monkeypatch, capsys):
    def convert(path, output, *flags):
        arguments = [f"--input={path}", f"--output={output}", *flags]
        status, out, err = run_command(command, arguments, monkeypatch, capsys)
        assert status == 0, err
        return err

    return convert


def test_a_bundle_without_its_folders_tokenizer_keeps_open_clips_ids(tmp_path, capfd):
    """Those that were converted before it was kept: what was trained with them goes on."""
    merges = {"merges.txt": clip_vocabulary.to_text(clip.MERGES)}
    options = {"kind": "clip", "model": ENCODER, "params": clip.random_params(ENCODER)}
    options["attachments"] = merges
    bundles.save(tmp_path / "x", provenance={"file": "model.safetensors"}, **options)
    found = text_encoder.load_encoder(tmp_path / "x").tokenizer
    assert found.identity == {} and found.files == merges
    assert found.ids(["low!"]) == [[513, 256]]
    note = f"{tmp_path / 'x'} carries open_clip's tokenizer: '!' and typographic signs have other"
    assert note in capfd.readouterr().err
    # One of random weights never had another.
    bundles.save(tmp_path / "y", provenance={"random": "x"}, **options)
    text_encoder.load_encoder(tmp_path / "y")
    assert "carries" not in capfd.readouterr().err


def test_a_folder_of_open_clip_keeps_its_ids_beside_the_files_of_the_other(tmp_path, convert):
    """LAION's have the weights and tokenizers of both."""
    folder = tmp_path / "laion"
    folder.mkdir()
    for name, content in transformers_tokenizer.to_folder(
        transformers_tokenizer.from_merges(clip.MERGES, 9), 9
    ).items():
        (folder / name).write_bytes(content)
    for kind, name in ((False, "open_clip_model.safetensors"), (True, "model.safetensors")):
        save_file(clip.state_of(kind), folder / name)
    (folder / "config.json").write_text(json.dumps(clip.HF_JSON))
    (folder / "open_clip_config.json").write_text(json.dumps(clip.OPEN_CLIP_JSON))
    out = []
    for name in ("open_clip_model.safetensors", "model.safetensors"):
        convert(folder / name, tmp_path / name, "--source=clip")
        bundle = bundles.load(tmp_path / name)
        out.append(list(bundle.attachments))
        # Scores are of open_clip's ids in any case.
        features, _ = clip_features.load(bundle.path)
        assert features.tokenizer.ids(["low!"]) == [[513, 256]]
    assert out == [["merges.txt"], ["tokenizer.json"]]


def test_a_tokenizer_of_more_ids_than_the_tower_is_refused(tmp_path):
    """Which would take the last row of the table for them."""
    files = {"tokenizer.json": transformers_tokenizer.from_merges([*clip.MERGES, "l low</w>"], 9)}
    options = {"kind": "clip", "model": ENCODER, "params": clip.random_params(ENCODER)}
    bundles.save(tmp_path / "x", attachments=files, **options)
    with pytest.raises(InputError, match="has a tokenizer of 518 ids and a text tower of 517"):
        text_encoder.load_encoder(tmp_path / "x")


@pytest.mark.parametrize("recorded", [["merges.txt"], {"../elsewhere": "0" * 64}, "x", None])
def test_only_files_of_a_known_name_are_read(tmp_path, recorded):
    options = {"kind": "clip", "model": ENCODER, "params": clip.random_params(ENCODER)}
    place = bundles.save(tmp_path / "x", provenance={"attachments": recorded}, **options)
    assert bundles.load(place).attachments == {}
    with pytest.raises(InputError, match="carries no tokenizer; convert the checkpoint again"):
        text_encoder.load_encoder(place)
