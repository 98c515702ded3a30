"""Meissonic's folder: to bundles and back, as it is published and as it may be damaged."""

from tests.helpers import torch_peers  # noqa: F401

# isort: split

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from diffusers import AmusedScheduler, VQModel
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from dimo_jax import bundles, models, tokenizers
from dimo_jax.common import trees
from dimo_jax.conditions import text_encoder, transformers_tokenizer
from dimo_jax.convert import __main__ as command
from dimo_jax.convert.networks import layouts, meissonic, vq_model
from tests.convert.networks import test_clip_tables as clip
from tests.helpers.command_line import run_command

NETWORK = {
    "name": "meissonic", "num_tokens": 16, "codebook_size": 11, "vocabulary": 15, "width": 16,
    "depth": 2, "single_depth": 1, "heads": 2, "mlp_dim": 64, "text_length": 77, "text_dim": 12,
    "pooled_dim": 7, "rope_dims": [2, 4, 2], "merge": True, "timestep": "zero",
}  # fmt: skip
TOKENIZER = {
    "name": "vq_model", "image_size": 64, "ch": 32, "ch_mult": [1, 2, 2, 2, 3],
    "num_res_blocks": 1, "z_channels": 8, "embed_dim": 8, "n_embed": 11,
}  # fmt: skip
# As they are published, but for the sizes and what diffusers adds by itself.
TRANSFORMER_JSON = {
    "_class_name": "Transformer2DModel", "_diffusers_version": "0.30.2", "attention_head_dim": 8,
    "axes_dims_rope": [2, 4, 2], "codebook_size": 11, "downsample": True, "guidance_embeds": False,
    "in_channels": 64, "joint_attention_dim": 12, "num_attention_heads": 2, "num_layers": 2,
    "num_single_layers": 1, "patch_size": 1, "pooled_projection_dim": 7, "upsample": True,
    "vocab_size": 15,
}  # fmt: skip
VQ_JSON = {
    "_class_name": "VQModel", "_diffusers_version": "0.30.2", "act_fn": "silu",
    "block_out_channels": [32, 64, 64, 64, 96], "down_block_types": ["DownEncoderBlock2D"] * 5,
    "force_upcast": True, "in_channels": 3, "latent_channels": 8, "layers_per_block": 1,
    "lookup_from_codebook": True, "mid_block_add_attention": False, "norm_num_groups": 32,
    "norm_type": "group", "num_vq_embeddings": 11, "out_channels": 3, "sample_size": 32,
    "scaling_factor": 0.18215, "up_block_types": ["UpDecoderBlock2D"] * 5, "vq_embed_dim": None,
}  # fmt: skip
PARTS = {
    "transformer": (models.build(NETWORK), meissonic.entries(NETWORK), TRANSFORMER_JSON),
    "vqvae": (tokenizers.build(TOKENIZER), vq_model.entries(TOKENIZER), VQ_JSON),
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
ENCODER = {**clip.CONFIG, "activation": "gelu", "image": None}


@functools.cache
def state_of(name):
    model, table, _ = PARTS[name]
    numbers = np.random.default_rng(0)
    shapes = layouts.state_shapes(table, jax.eval_shape(model.init, jax.random.key(0)))
    return {k: numbers.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}


def params_of(name):
    model, table, _ = PARTS[name]
    return layouts.to_params(table, state_of(name), jax.eval_shape(model.init, jax.random.key(0)))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "Meissonic"
    for name, (_, _, fields) in PARTS.items():
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(fields))
        save_file(state_of(name), root / name / WEIGHTS, metadata={"format": "pt"})
    return root


@pytest.fixture
def run(monkeypatch, capsys):
    def run(path, output, *flags, status=0):
        arguments = [f"--input={path}", f"--output={output}", *flags]
        found, out, err = run_command(command, arguments, monkeypatch, capsys)
        assert found == status, err
        if not status and "--to=diffusers" in flags:
            assert f"convert: writes {output}" in err  # gigabytes take a while
        return err if status else out

    return run


def assert_same(found, expected):
    assert trees.differences(found, expected) == []
    jax.tree.map(np.testing.assert_array_equal, found, expected)


MEISSONIC = ("--source=meissonic", "--image_size=64")
ALONE = ("--to=diffusers", "--text_encoder=none")


def test_a_folder_becomes_a_teacher_and_its_tokenizer_and_goes_back(folder, tmp_path, run):
    out = run(folder, tmp_path / "b", *MEISSONIC)
    teacher = bundles.load(tmp_path / "b" / "transformer", kind="teacher")
    tokenizer = bundles.load_tokenizer(tmp_path / "b" / "vqvae", teacher)
    assert (teacher.model, tokenizer.model) == (NETWORK, TOKENIZER)
    assert_same(teacher.params, params_of("transformer"))
    assert_same(tokenizer.params, params_of("vqvae"))
    assert teacher.sampler == {"num_steps": 64, "guidance": 9.0, "choice_temperature": 2.0}
    assert teacher.provenance["source"] == "meissonic" and len(teacher.provenance["sha256"]) == 64
    total = sum(x.size for x in state_of("transformer").values())
    assert f"meissonic: a teacher of {total:,} parameters in " in out
    assert f" tensors: {tmp_path / 'b' / 'transformer'}" in out

    err = run(tmp_path / "b", tmp_path / "back", "--to=diffusers", status=2)
    assert "lacks its text_encoder" in err and not (tmp_path / "back").exists()
    run(tmp_path / "b", tmp_path / "back", *ALONE)
    for name, (_, _, fields) in PARTS.items():
        found = load_file(tmp_path / "back" / name / WEIGHTS)
        assert found.keys() == state_of(name).keys()
        for key, value in state_of(name).items():
            assert found[key].tobytes() == value.tobytes() and found[key].dtype == np.float32, key
        assert json.loads((tmp_path / "back" / name / "config.json").read_text()) == fields
        with safe_open(tmp_path / "back" / name / WEIGHTS, "numpy") as file:
            # Without the format diffusers 0.30 refuses the file.
            assert file.metadata() == {"format": "pt", "written_by": "dimo_jax"}
    module = VQModel.from_pretrained(tmp_path / "back" / "vqvae", local_files_only=True)
    theirs = module.state_dict()
    for key, value in state_of("vqvae").items():
        np.testing.assert_array_equal(theirs[key].numpy(), value)


def test_a_folder_needs_no_source(folder, tmp_path, run):
    run(folder, tmp_path / "b", "--image_size=64")
    teacher = bundles.load(tmp_path / "b" / "transformer", kind="teacher")
    assert bundles.load_tokenizer(tmp_path / "b" / "vqvae", teacher).model == TOKENIZER
    run(folder / "vqvae", tmp_path / "one", "--image_size=64")
    assert bundles.load(tmp_path / "one").provenance["source"] == "vq_model"


@pytest.fixture
def whole_folder(folder):
    """With text encoder and tokenizer."""
    for name in ("text_encoder", "tokenizer"):
        (folder / name).mkdir()
    # The published file names the end token by its old id, 2.
    described = {**clip.HF_TEXT, "model_type": "clip_text_model", "hidden_act": "gelu"}
    described |= {"projection_dim": 6, "eos_token_id": 2}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(described))
    save_file(clip.state_of(True, ENCODER), folder / "text_encoder" / "model.safetensors")
    made = transformers_tokenizer.from_merges(clip.MERGES, 9)
    for name, content in transformers_tokenizer.to_folder(made, 9).items():
        (folder / "tokenizer" / name).write_bytes(content)
    return folder


def test_the_text_encoder_beside_them_comes_along(whole_folder, tmp_path, run):
    shutil.rmtree(whole_folder / "vqvae")
    run(whole_folder, tmp_path / "b", *MEISSONIC)
    bundle = bundles.load(tmp_path / "b" / "text_encoder", kind="clip")
    files = {"tokenizer.json": transformers_tokenizer.from_merges(clip.MERGES, 9)}
    # The encoder's prompts have 9 ids, and so the transformer's.
    teacher = bundles.load(tmp_path / "b" / "transformer", kind="teacher")
    assert teacher.model == {**NETWORK, "text_length": 9}
    assert bundle.model == ENCODER and bundle.attachments == files
    assert_same(bundle.params, clip.random_params(ENCODER))


@pytest.mark.parametrize("kind", ["teacher", "generator"])
def test_the_whole_folder_goes_back_for_its_libraries(kind, whole_folder, tmp_path, run):
    """Every part is loaded with nothing else at hand, as the authors' scripts do."""
    source = {"teacher": "meissonic", "generator": "dimo"}[kind]
    run(whole_folder, tmp_path / "b", f"--source={source}", "--image_size=64")
    # A generator's bundle holds its tokenizer, and its text encoder lies beside it.
    place = tmp_path / "b" if kind == "teacher" else tmp_path / "b" / "transformer"
    back = tmp_path / "back"
    out = run(place, back, "--to=diffusers")
    names = ["scheduler", "text_encoder", "tokenizer", "transformer", "vqvae"]
    names += ["README.md", "model_index.json", "pipeline.py"] * (kind == "generator")
    assert sorted(x.name for x in back.iterdir()) == sorted(names)
    total = sum(x.size for x in clip.state_of(True, ENCODER).values())
    assert f"{total:,} parameters: {back / 'text_encoder'}" in out

    options = {"pretrained_model_name_or_path": back, "local_files_only": True}
    module, info = CLIPTextModelWithProjection.from_pretrained(
        **options, subfolder="text_encoder", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    theirs = module.state_dict()
    for key, value in clip.state_of(True, ENCODER).items():
        np.testing.assert_array_equal(theirs[key].numpy(), value)
    assert module.config.hidden_act == "gelu" and module.config.projection_dim == 6
    # 2: the end is where the id is largest, as this network finds it.
    assert (module.config.eos_token_id, module.config.bos_token_id) == (2, 0)

    peer = CLIPTokenizer.from_pretrained(**options, subfolder="tokenizer")
    texts = ["LOW  lower", "", "schön", "low " * 9, "low!", "“low”"]
    expected = peer(texts, padding="max_length", truncation=True).input_ids
    whose = CLIPTokenizer.from_pretrained(whole_folder / "tokenizer", local_files_only=True)
    assert whose(texts, padding="max_length", truncation=True).input_ids == expected
    encoder = text_encoder.load_encoder(None, tmp_path / "b" / "transformer")
    np.testing.assert_array_equal(encoder.tokenizer(texts), expected)
    assert expected[4] == [515, 513, 0, 516, 0, 0, 0, 0, 0]

    scheduler = AmusedScheduler.from_pretrained(**options, subfolder="scheduler")
    assert scheduler.config.mask_token_id == NETWORK["vocabulary"] - 1
    assert scheduler.config.masking_schedule == "cosine"

    # What came back converts again, to the same.
    run(back, tmp_path / "again", *MEISSONIC)
    bundle = bundles.load(tmp_path / "again" / "text_encoder")
    assert bundle.model == ENCODER
    assert_same(bundle.params, clip.random_params(ENCODER))


def test_the_number_of_tokens_is_that_of_the_vq_model(folder, tmp_path, run):
    """With fewer levels it has more of them than the published one."""
    config = {**TOKENIZER, "ch_mult": [1, 2, 3]}
    table = vq_model.entries(config)
    shapes = layouts.state_shapes(
        table, jax.eval_shape(tokenizers.build(config).init, jax.random.key(0))
    )
    state = {k: np.ones(shape, np.float32) for k, shape in shapes.items()}
    save_file(state, folder / "vqvae" / WEIGHTS)
    (folder / "vqvae" / "config.json").write_text(json.dumps(vq_model.config_json(config)))
    run(folder, tmp_path / "b", "--source=dimo", "--image_size=64")
    found = bundles.load(tmp_path / "b" / "transformer", kind="generator")
    assert found.model["num_tokens"] == 16 * 16
    assert bundles.load_tokenizer(tmp_path / "b" / "vqvae", found).model == config


def test_a_generator_takes_its_tokenizer_along_and_goes_back_with_it(folder, tmp_path, run):
    run(folder, tmp_path / "b", "--source=dimo", "--image_size=64")
    run(tmp_path / "b" / "transformer", tmp_path / "back", *ALONE)
    for name in PARTS:
        found = load_file(tmp_path / "back" / name / WEIGHTS)
        for key, value in state_of(name).items():
            np.testing.assert_array_equal(found[key], value)


def test_the_released_generator_is_a_folder_with_a_transformer_alone(folder, tmp_path, run):
    shutil.rmtree(folder / "vqvae")
    run(folder, tmp_path / "b", "--source=dimo", "--image_size=64")
    generator = bundles.load(tmp_path / "b" / "transformer", kind="generator")
    assert (generator.sampler["ratio"], generator.sampler["sigma"]) == (0.5, 0.3)
    assert generator.model["timestep"] == "zero" and generator.tokenizer is None
    assert_same(generator.params, params_of("transformer"))


@pytest.mark.parametrize("index", ["safetensors.index.json", "fp16.safetensors.index.json"])
def test_parts_with_an_index_and_float16(folder, tmp_path, run, index):
    half, state = "fp16" in index, state_of("transformer")
    place = folder / "transformer"
    (place / WEIGHTS).unlink()
    dtype = np.float16 if half else np.float32
    keys = [list(state)[0::2], list(state)[1::2]]
    names = [
        f"diffusion_pytorch_model{'.fp16' * half}-0000{i}-of-00002.safetensors" for i in (1, 2)
    ]
    for name, own in zip(names, keys, strict=True):
        save_file({k: state[k].astype(dtype) for k in own}, place / name)
    weight_map = {k: name for name, own in zip(names, keys, strict=True) for k in own}
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (place / f"diffusion_pytorch_model.{index}").write_text(text)
    run(place, tmp_path / "b", *MEISSONIC)
    expected = jax.tree.map(lambda x: x.astype(dtype).astype("f"), params_of("transformer"))
    assert_same(bundles.load(tmp_path / "b").params, expected)
    (place / names[1]).unlink()
    err = run(place, tmp_path / "c", *MEISSONIC, status=2)
    assert names[1] in err and "missing" in err and not (tmp_path / "c").exists()


def test_float32_comes_before_float16(folder, tmp_path, run):
    wrong = {k: (x + 1).astype(np.float16) for k, x in state_of("transformer").items()}
    place = folder / "transformer"
    save_file(wrong, place / "diffusion_pytorch_model.fp16.safetensors")
    run(place, tmp_path / "b", *MEISSONIC)
    assert_same(bundles.load(tmp_path / "b").params, params_of("transformer"))
    (place / WEIGHTS).unlink()
    run(place, tmp_path / "b", *MEISSONIC)
    leaf = bundles.load(tmp_path / "b").params["token_embedding"]
    np.testing.assert_array_equal(leaf, wrong["embed.embeddings.weight"].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("transformer", {"guidance_embeds": True}, "guidance_embeds True (expected False)"),
        ("transformer", {"upsample": False}, "upsample False (expected True)"),
        ("transformer", {"num_layers": None}, "num_layers"),
        ("transformer", {"num_layers": 3}, "transformer_blocks.2.norm1.linear.weight is missing"),
        ("transformer", {"num_layers": 1}, "transformer_blocks.1.norm1.linear.weight is unknown"),
        ("transformer", {"attention_head_dim": 10}, "rope_dims of the network meissonic"),
        ("vqvae", {"mid_block_add_attention": True}, "mid_block_add_attention True (expected"),
        ("vqvae", {"norm_type": "spatial"}, "norm_type 'spatial' (expected 'group')"),
        ("vqvae", {"block_out_channels": [32, 48]}, "block_out_channels [32, 48] (expected mult"),
        ("vqvae", {"num_vq_embeddings": 12}, "embedding.weight is (11, 8), expected (12, 8)"),
    ],
)
def test_another_network_is_refused(folder, tmp_path, run, name, change, message):
    fields = {k: v for k, v in {**PARTS[name][2], **change}.items() if v is not None}
    (folder / name / "config.json").write_text(json.dumps(fields))
    assert message in run(folder / name, tmp_path / "b", *MEISSONIC, status=2)
    assert not (tmp_path / "b").exists()


def test_what_is_missing_is_named(folder, tmp_path, run):
    run(tmp_path / "b", tmp_path / "b", *MEISSONIC, status=2)
    (folder / "vqvae" / WEIGHTS).unlink()
    assert f"{folder / 'vqvae'} has no weights" in run(folder, tmp_path / "b", *MEISSONIC, status=2)
    save_file(state_of("vqvae"), folder / "vqvae" / WEIGHTS)
    (folder / "vqvae" / "config.json").write_text("{")
    assert "is not JSON" in run(folder, tmp_path / "b", *MEISSONIC, status=2)
    assert "expected the square of an even number" in run(
        folder / "transformer", tmp_path / "b", "--source=meissonic", "--image_size=48", status=2
    )
