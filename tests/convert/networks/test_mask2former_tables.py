"""Mask2Former's files of mmdet 2.x and 3.x, and those that are another detector's."""

import math

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dimo_jax import bundles, models
from dimo_jax.common.errors import InputError
from dimo_jax.convert import __main__ as command
from dimo_jax.convert import checkpoint_files, sources
from dimo_jax.convert.networks import layouts, mask2former
from dimo_jax.models.mask2former import PUBLISHED
from tests.helpers.command_line import run_command

CONFIG = {
    "name": "mask2former",
    "num_classes": 3,
    "num_queries": 6,
    "width": 32,
    "heads": 2,
    "swin": {"width": 4, "depth": [1, 1, 2, 1], "heads": [1, 2, 2, 4], "window": 3},
    "pixel_decoder": {"depth": 2, "mlp_dim": 12},
    "decoder": {"depth": 3, "mlp_dim": 20},
}
# The parts of a layer: in files of 2.x, and of 3.x.
THIRD = (
    ("encoder.layers.{}.attentions.0.", "encoder.layers.{}.self_attn."),
    ("transformer_decoder.layers.{}.attentions.0.", "transformer_decoder.layers.{}.cross_attn."),
    ("transformer_decoder.layers.{}.attentions.1.", "transformer_decoder.layers.{}.self_attn."),
    (".layers.{}.ffns.0.", ".layers.{}.ffn."),
)


@pytest.fixture(scope="module")
def params():
    numbers = np.random.default_rng(0)
    like = jax.eval_shape(models.build(CONFIG).init, jax.random.key(0))
    return jax.tree.map(lambda x: numbers.normal(size=x.shape).astype(np.float32), like)


@pytest.fixture(scope="module")
def second(params):
    """A state dict of mmdet 2.x, with the buffers of its windows."""
    state = layouts.to_state(mask2former.entries(CONFIG, {}), params)
    tables = [key for key in state if key.endswith("bias_table")]
    index = np.zeros((9, 9), np.int64)
    return state | {key.replace("bias_table", "index"): index for key in tables}


@pytest.fixture(scope="module")
def third(second):
    state = {}
    for key, value in second.items():
        for i in range(3):
            for old, new in THIRD:
                key = key.replace(old.format(i), new.format(i))
        state[key] = value
    return state


def convert(state):
    name = sources.recognise(state)
    return name, *sources.convert(state, sources.SOURCES[name], sources.Options())


def test_both_spellings_become_the_same_parameters(params, second, third):
    assert "panoptic_head.transformer_decoder.layers.2.cross_attn.attn.in_proj_weight" in third
    for state in (second, third):
        name, config, found = convert(state)
        assert (name, config) == ("mask2former", CONFIG)
        jax.tree.map(np.testing.assert_array_equal, found, params)


def test_names_and_axes_by_hand(params, second):
    shapes = {
        "backbone.patch_embed.projection.weight": (4, 3, 4, 4),
        "backbone.stages.2.blocks.1.attn.w_msa.qkv.weight": (48, 16),
        "backbone.stages.3.blocks.0.attn.w_msa.relative_position_bias_table": (25, 4),
        "backbone.stages.1.downsample.reduction.weight": (16, 32),
        "backbone.norm3.bias": (32,),
        "panoptic_head.pixel_decoder.input_convs.0.conv.weight": (32, 32, 1, 1),
        "panoptic_head.pixel_decoder.encoder.layers.1.attentions.0.sampling_offsets.bias": (48,),
        "panoptic_head.pixel_decoder.output_convs.0.conv.weight": (32, 32, 3, 3),
        "panoptic_head.transformer_decoder.layers.0.attentions.1.attn.in_proj_bias": (96,),
        "panoptic_head.transformer_decoder.layers.2.ffns.0.layers.0.0.weight": (20, 32),
        "panoptic_head.cls_embed.weight": (4, 32),
        "panoptic_head.mask_embed.4.weight": (32, 32),
    }
    assert {key: second[key].shape for key in shapes} == shapes
    qkv = second["backbone.stages.2.blocks.1.attn.w_msa.qkv.weight"]
    block = params["backbone"]["stage_2_block_1"]
    assert qkv[40, 7] == block["attention"]["qkv"]["kernel"][7, 40]
    joint = second["panoptic_head.transformer_decoder.layers.1.attentions.0.attn.in_proj_weight"]
    assert joint[32 + 20, 5] == params["layer_1"]["cross_attention"]["key"]["kernel"][5, 1, 4]


def test_the_published_file_has_its_tensors():
    network = models.build(PUBLISHED)
    assert network.config == PUBLISHED
    like = jax.eval_shape(network.init, jax.random.key(0))
    shapes = layouts.state_shapes(mask2former.entries(PUBLISHED, {}), like)
    assert len(shapes) == 649 - 24  # without the buffers
    assert sum(map(math.prod, shapes.values())) == 68_739_547


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_mmcv_becomes_a_bundle(params, second, tmp_path, zipped, monkeypatch, capsys):
    tensors = {k: torch.from_numpy(x) for k, x in second.items()}
    content = {"meta": {"epoch": 50, "CLASSES": ("person",)}, "state_dict": tensors}
    path, output = tmp_path / "mask2former.pth", tmp_path / "bundle"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    flags = ["--source=mask2former", f"--input={path}", f"--output={output}"]
    status, out, err = run_command(command, flags, monkeypatch, capsys)
    assert status == 0 and "mask2former: a detector of" in out, err
    bundle = bundles.load(output, kind="detector")
    assert bundle.model == CONFIG and bundle.provenance["source"] == "mask2former"
    jax.tree.map(np.testing.assert_array_equal, bundle.params, params)


def test_what_is_missing_or_unknown_is_named(second):
    state = {k: x for k, x in second.items() if k != "backbone.norm1.weight"}
    state |= {"panoptic_head.extra": np.zeros(1), "panoptic_head.mask_embed.0.bias": np.zeros(3)}
    with pytest.raises(InputError) as error:
        convert(state)
    assert str(error.value) == (
        "backbone.norm1.weight is missing; panoptic_head.extra is unknown; "
        "panoptic_head.mask_embed.0.bias is (3,), expected (32,)"
    )


def test_panoptic_weights_are_refused(second):
    state = second | {"panoptic_head.cls_embed.weight": np.zeros((134, 32))}
    with pytest.raises(InputError, match="133 classes, those of panoptic .* no -panoptic"):
        convert(state)


@pytest.mark.parametrize("key", mask2former.FACEBOOK)
def test_facebooks_weights_are_refused_as_another_detector(key, tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.safetensors"
    save_file({key: np.zeros((6, 32), np.float32)}, path)
    assert sources.recognise(checkpoint_files.read(path)) == "mask2former"
    flags = [f"--input={path}", f"--output={tmp_path / 'bundle'}"]
    status, _, err = run_command(command, flags, monkeypatch, capsys)
    assert status == 2 and "Traceback" not in err and not (tmp_path / "bundle").exists()
    assert "Facebook's own weights, of another training" in err and "743b7d99.pth" in err
