"""CLIP's two layouts, the JSON beside them, folders in parts, and the command from end to end."""

import json

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dimo_jax import bundles
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_tokenizer, clip_vocabulary
from dimo_jax.convert import __main__ as command
from dimo_jax.convert import sources
from dimo_jax.convert.formats import folders
from dimo_jax.convert.networks import clip as table
from dimo_jax.convert.networks import clip_json, layouts
from dimo_jax.evaluation.features import clip_features
from dimo_jax.models import clip
from tests.helpers.command_line import run_command

MERGES = ["l o", "lo w</w>", "e r</w>"]
TEXT = {"vocabulary": 517, "context": 9, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 12}
IMAGE = {"image_size": 8, "patch_size": 4, "width": 12, "depth": 2, "heads": 3, "mlp_dim": 20}
CONFIG = {
    "name": "clip", "activation": "quick_gelu", "projection": 6, "text": TEXT, "image": IMAGE,
}  # fmt: skip
OPEN_CLIP_JSON = {
    "model_cfg": {
        "embed_dim": 6,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 8, "patch_size": 4, "width": 12, "layers": 2, "head_width": 4,
        },
        "text_cfg": {
            "context_length": 9, "vocab_size": 517, "width": 8, "heads": 2, "layers": 1,
        },
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
    },
}  # fmt: skip
HF_TEXT = {
    "vocab_size": 517, "max_position_embeddings": 9, "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 12, "eos_token_id": 516,
}  # fmt: skip
# hidden_act and other fields with their default are not saved.
HF_JSON = {
    "model_type": "clip",
    "projection_dim": 6,
    "text_config": HF_TEXT,
    "vision_config": {
        "image_size": 8, "patch_size": 4, "hidden_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 20,
    },
}  # fmt: skip


def random_params(config=CONFIG):
    numbers = np.random.default_rng(0)
    shapes = jax.eval_shape(clip.build(config).init, jax.random.key(0))
    return jax.tree.map(lambda x: numbers.normal(size=x.shape).astype(np.float32), shapes)


def state_of(hugging_face, config=CONFIG):
    return layouts.to_state(table.entries(config, hugging_face), random_params(config))


def test_open_clips_names_and_axes_by_hand():
    params, state = random_params(), state_of(False)
    shapes = {
        "positional_embedding": (9, 8),
        "token_embedding.weight": (517, 8),
        "text_projection": (8, 6),
        "ln_final.bias": (8,),
        "visual.class_embedding": (12,),
        "visual.positional_embedding": (5, 12),
        "visual.proj": (12, 6),
        "visual.conv1.weight": (12, 3, 4, 4),
        "visual.ln_pre.weight": (12,),
        "visual.ln_post.bias": (12,),
        "transformer.resblocks.0.ln_1.weight": (8,),
        "visual.transformer.resblocks.1.attn.in_proj_weight": (36, 12),
        "visual.transformer.resblocks.1.attn.in_proj_bias": (36,),
        "visual.transformer.resblocks.1.attn.out_proj.weight": (12, 12),
        "transformer.resblocks.0.mlp.c_fc.weight": (12, 8),
        "transformer.resblocks.0.mlp.c_proj.weight": (8, 12),
    }
    assert {k: state[k].shape for k in shapes} == shapes and len(state) == 5 + 12 + 8 + 24
    block, prefix = params["image"]["block_1"], "visual.transformer.resblocks.1"
    # Row 24 + 7 is the value's head 1, place 3.
    rows = state[f"{prefix}.attn.in_proj_weight"]
    np.testing.assert_array_equal(rows[31], block["attention"]["value"]["kernel"][:, 1, 3])
    out = state[f"{prefix}.attn.out_proj.weight"]
    np.testing.assert_array_equal(out[:, 7], block["attention"]["out"]["kernel"][1, 3])
    np.testing.assert_array_equal(
        state[f"{prefix}.mlp.c_fc.weight"][5], block["mlp_in"]["kernel"][:, 5]
    )
    np.testing.assert_array_equal(state[f"{prefix}.ln_2.weight"], block["mlp_norm"]["scale"])


def test_both_layouts_hold_the_same_numbers():
    ours, theirs = state_of(False), state_of(True)
    assert sum(x.size for x in ours.values()) == sum(x.size for x in theirs.values())
    query, key, value = np.split(ours["transformer.resblocks.0.attn.in_proj_weight"], 3)
    layer = "text_model.encoder.layers.0"
    for name, part in (("q", query), ("k", key), ("v", value)):
        np.testing.assert_array_equal(theirs[f"{layer}.self_attn.{name}_proj.weight"], part)
    pairs = {
        "transformer.resblocks.0.attn.out_proj.weight": f"{layer}.self_attn.out_proj.weight",
        "transformer.resblocks.0.mlp.c_proj.weight": f"{layer}.mlp.fc2.weight",
        "transformer.resblocks.0.ln_1.bias": f"{layer}.layer_norm1.bias",
        "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
        "visual.ln_post.weight": "vision_model.post_layernorm.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    }
    for mine, other in pairs.items():
        np.testing.assert_array_equal(ours[mine], theirs[other])
    np.testing.assert_array_equal(ours["text_projection"].T, theirs["text_projection.weight"])
    np.testing.assert_array_equal(ours["visual.proj"].T, theirs["visual_projection.weight"])


@pytest.mark.parametrize("hugging_face", [True, False])
def test_a_round_trip_keeps_every_bit(hugging_face):
    state, described = state_of(hugging_face), HF_JSON if hugging_face else OPEN_CLIP_JSON
    buffers = {"text_model.embeddings.position_ids": np.arange(9)[None]}
    buffers |= {"logit_scale": np.float32(4.6), "attn_mask": np.zeros((9, 9))}
    options = sources.Options(described=described)
    assert sources.recognise(state) == "clip"
    config, params = sources.convert(state | buffers, sources.SOURCES["clip"], options)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, random_params())


def test_the_oldest_files_of_hugging_face():
    """Those of OpenAI's models have the towers twice, and an end token that is none."""
    repeated = {"text_config_dict": HF_TEXT, "vision_config_dict": HF_JSON["vision_config"]}
    old = {"model_type": "clip", "projection_dim": 6, **repeated}
    old["text_config"] = {"hidden_size": 512, "eos_token_id": 2}
    assert table.config_from(state_of(True), None, old) == CONFIG


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"text_config": {**HF_TEXT, "hidden_act": "gelu"}}, "has hidden_act gelu and quick_gelu"),
        ({"text_config": {**HF_TEXT, "eos_token_id": 7}}, "eos_token_id 7, which is not the last"),
        ({"text_config": {**HF_TEXT, "layer_norm_eps": 1e-6}}, "has layer_norm_eps 1e-06"),
        ({"text_config": {**HF_TEXT, "hidden_size": 16}}, "text_width 16 (the weights have 8)"),
        ({"projection_dim": 7}, "tells projection 7 (the weights have 6)"),
        ({"model_type": "siglip"}, "is of 'siglip'; expected open_clip's, or Hugging Face's"),
        ({"text_config": [3]}, "the JSON beside the weights has a field"),
    ],
)
def test_a_json_of_something_else_is_refused(change, complaint):
    with pytest.raises(InputError) as error:
        table.config_from(state_of(True), None, {**HF_JSON, **change})
    assert complaint.replace("text_width", "text width") in str(error.value)


@pytest.mark.parametrize(
    "tower, field, value",
    [("vision_cfg", "pool_type", "avg"), ("vision_cfg", "timm_model_name", "x"),
     ("text_cfg", "no_causal_mask", True)],
)  # fmt: skip
def test_other_networks_of_open_clip_are_refused(tower, field, value):
    model = OPEN_CLIP_JSON["model_cfg"]
    changed = {**model, tower: {**model[tower], field: value}}
    with pytest.raises(InputError, match=f"open_clip's {tower} has {field}: that is another"):
        clip_json.settings_of(changed)
    switched_off = {**model, tower: {**model[tower], field: None, "patch_dropout": 0.5}}
    assert clip_json.settings_of(switched_off)["projection"] == 6
    other = {**OPEN_CLIP_JSON, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    with pytest.raises(InputError, match="preprocess_cfg.mean is .0.5, 0.5, 0.5., expected"):
        clip_json.settings_of(other)


def test_heads_and_activation_must_be_told():
    state = state_of(False)
    with pytest.raises(InputError, match="--activation=quick_gelu for OpenAI's weights"):
        table.config_from(state)
    with pytest.raises(InputError, match="no published text tower has the width 8 .there are 512"):
        table.config_from(state, "gelu")
    with pytest.raises(InputError, match="--activation=gelu, but the JSON .* says quick_gelu"):
        table.config_from(state, "gelu", OPEN_CLIP_JSON)
    del state["visual.conv1.weight"]
    with pytest.raises(InputError, match="visual.conv1.weight is missing .the nearest key is vis"):
        table.config_from(state, None, OPEN_CLIP_JSON)
    with pytest.raises(InputError, match="token_embedding.weight is missing; the sizes"):
        table.config_from({"w": np.zeros(1)}, None, OPEN_CLIP_JSON)


def test_one_message_lists_every_difference():
    state = state_of(True)
    del state["text_model.final_layer_norm.bias"]
    state["logit_bias"] = np.zeros(1)
    state["vision_model.pre_layrnorm.weight"] = np.zeros(5)
    with pytest.raises(InputError) as error:
        sources.convert(state, sources.SOURCES["clip"], sources.Options(described=HF_JSON))
    assert str(error.value) == (
        "text_model.final_layer_norm.bias is missing; logit_bias is unknown; "
        "vision_model.pre_layrnorm.weight is (5,), expected (12,)"
    )


def as_torch(state, dtype=torch.float32):
    return {k: torch.from_numpy(x.copy()).to(dtype) for k, x in state.items()}


@pytest.fixture
def convert(monkeypatch, capsys, tmp_path):
    def convert(path, *flags, status=0):
        arguments = [f"--input={path}", f"--output={tmp_path / 'bundle'}", *flags]
        found, out, err = run_command(command, arguments, monkeypatch, capsys)
        assert found == status, err
        if status:
            assert not (tmp_path / "bundle").exists() and err.count("\n") == 1
            return err
        return bundles.load(tmp_path / "bundle", kind="clip")

    return convert


def write_json(path, content):
    path.write_text(json.dumps(content))


def write_parts(folder, state):
    """A folder whose tensors lie in two files, one of them Torch's, with their index."""
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:20], "rest.bin": names[20:]}
    save_file({k: state[k] for k in names[:20]}, folder / "model-00001-of-00002.safetensors")
    torch.save(as_torch({k: state[k] for k in names[20:]}), folder / "rest.bin")
    index = {"metadata": {}, "weight_map": {k: name for name, ks in parts.items() for k in ks}}
    write_json(folder / "model.safetensors.index.json", index)
    return index


def test_a_folder_in_parts_becomes_features(convert, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    write_parts(folder, state_of(True))
    write_json(folder / "config.json", HF_JSON)
    (folder / "merges.txt").write_bytes(clip_vocabulary.to_text(MERGES))
    bundle = convert(folder)
    assert bundle.model == CONFIG and bundle.provenance["source"] == "clip"
    jax.tree.map(np.testing.assert_array_equal, bundle.params, random_params())
    features, same = clip_features.load(bundle.path, batch_size=2)
    assert same.params_hash == bundle.params_hash
    rows = clip_tokenizer.open_clip(MERGES, context=9)(["low", "lower low", "x"])
    encode = jax.jit(bundle.build().encode_text)
    expected = np.asarray(encode(random_params(), rows)["projected"])
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(features.texts(["low", "lower low", "x"]), expected, atol=1e-5)


def test_a_text_tower_with_its_tokenizer_beside_it(convert, tmp_path):
    """Meissonic's folders."""
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / name).mkdir()
    config = {**CONFIG, "activation": "gelu", "image": None}
    described = {**HF_TEXT, "model_type": "clip_text_model", "hidden_act": "gelu"}
    write_json(tmp_path / "text_encoder" / "config.json", {**described, "projection_dim": 6})
    save_file(state_of(True, config), tmp_path / "text_encoder" / "model.safetensors")
    (tmp_path / "tokenizer" / "merges.txt").write_bytes(clip_vocabulary.to_text(MERGES))
    bundle = convert(tmp_path / "text_encoder", "--source=clip")
    assert bundle.model == config and bundle.build().encode_image is None
    jax.tree.map(np.testing.assert_array_equal, bundle.params, random_params(config))
    assert bundle.attachment("merges.txt") == clip_vocabulary.to_text(MERGES)
    (bundle.path / "merges.txt").write_bytes(clip_vocabulary.to_text(MERGES[:2]))
    with pytest.raises(InputError, match="merges.txt is not the file that the bundle was saved"):
        bundle.attachment("merges.txt")
    with pytest.raises(InputError, match="has no vocab.json; convert the checkpoint again"):
        bundle.attachment("vocab.json")


def test_a_file_of_half_precision_with_its_training_state(convert, tmp_path, monkeypatch):
    """HPS v2's: under state_dict, in float16; the heads are those of a published width."""
    monkeypatch.setitem(table._IMAGE_HEADS, 12, 3)
    monkeypatch.setitem(table._TEXT_HEADS, 8, 2)
    path = tmp_path / "HPS_v2_compressed.pt"
    state = as_torch(state_of(False), torch.float16)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": x for k, x in state.items()}}, path)
    (tmp_path / "merges.txt").write_bytes(clip_vocabulary.to_text(MERGES))
    bundle = convert(path, "--activation=gelu", f"--vocabulary={tmp_path / 'merges.txt'}")
    assert bundle.model == {**CONFIG, "activation": "gelu"}
    found = bundle.params["image"]["patch"]["kernel"]
    expected = random_params()["image"]["patch"]["kernel"].astype(np.float16)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_bad_folders_leave_nothing(convert, tmp_path, monkeypatch):
    folder = tmp_path / "clip"
    folder.mkdir()
    assert "has no weights; one of model.safetensors," in convert(folder, "--source=clip", status=2)
    index = write_parts(folder, state_of(True))
    write_json(folder / "config.json", HF_JSON)
    monkeypatch.setattr(clip_vocabulary, "_PACKAGES", ())
    assert "there is no vocabulary beside" in convert(folder, "--source=clip", status=2)
    (folder / "merges.txt").write_bytes(clip_vocabulary.to_text(MERGES[:1]))
    assert "has 1 merges, but the text tower has 517 ids" in convert(
        folder, "--source=clip", status=2
    )
    (folder / "config.json").write_text("{")
    assert "config.json is not JSON" in convert(folder, "--source=clip", status=2)
    path, names = folder / "model.safetensors.index.json", sorted(index["weight_map"])
    weight_map = index["weight_map"]
    for changed, complaint in (
        ({**weight_map, "extra": "rest.bin"}, "lists 1 tensors that its parts do not have, extra"),
        ({**weight_map, "extra": "../x.bin"}, "lists '../x.bin', expected a file beside it"),
        ({**weight_map, "extra": "y.bin"}, "lists 3 parts, of which y.bin is missing"),
        ({}, "has no weight_map of file names"),
        ({"a": 3}, "has no weight_map of file names"),
    ):
        write_json(path, {"weight_map": changed})
        assert complaint in convert(folder, "--source=clip", status=2)
    write_json(path, index)
    save_file({names[0]: np.zeros(3)}, folder / "z.safetensors")
    write_json(path, {"weight_map": {**weight_map, "x": "z.safetensors"}})
    assert f"repeats {names[0]} of another part" in convert(folder, "--source=clip", status=2)


def test_the_weights_of_a_folder_and_their_json(tmp_path):
    for name in ("open_clip_pytorch_model.bin", "pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(b"x")
        assert folders.weights(tmp_path).name == name
        assert folders.description(tmp_path / name) is None
    write_json(tmp_path / "open_clip_config.json", {"a": 1})
    write_json(tmp_path / "config.json", {"b": 1})
    assert folders.description(tmp_path / "open_clip_pytorch_model.bin") == {"a": 1}
    assert folders.description(tmp_path / "pytorch_model.bin") == {"b": 1}
    assert folders.description(tmp_path / "HPS_v2_compressed.pt") is None
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="config.json is not a JSON object"):
        folders.description(tmp_path / "model.safetensors")
