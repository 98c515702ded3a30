import functools
import math
import types

import jax
import numpy as np
import pytest

from dimo_jax import tokenizers
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks import layouts, vqgan

MODEL_YAML = """
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 256
    n_embed: 1024
    ddconfig:
      double_z: false
      z_channels: 256
      resolution: 256
      in_channels: 3
      out_ch: 3
      ch: 128
      ch_mult: [1, 1, 2, 2, 4]
      num_res_blocks: 2
      attn_resolutions: [16]
      dropout: 0.0
    lossconfig:
      target: taming.modules.losses.DummyLoss
"""
SMALL = {
    "vqgan": {"ch_mult": [1, 2], "attn_levels": [1], "image_size": 32},
    "llamagen": {"ch_mult": [2, 1, 2], "attn_levels": [2], "image_size": 8},
}


@functools.cache
def published(name):
    """A config, and a stand-in for its checkpoint that has keys and shapes but no memory."""
    config = tokenizers.build({"name": name}).config
    shapes = layouts.state_shapes(vqgan.entries(config), like(config))
    return config, {k: types.SimpleNamespace(shape=shape) for k, shape in shapes.items()}


def like(config):
    return jax.eval_shape(tokenizers.build(config).init, jax.random.key(0))


def total(state, prefix=""):
    return sum(math.prod(x.shape) for key, x in state.items() if key.startswith(prefix))


def small(name):
    sizes = {"ch": 32, "num_res_blocks": 1, "z_channels": 8, "embed_dim": 4, "n_embed": 10}
    config = tokenizers.build({"name": name, **sizes, **SMALL[name]}).config
    rng = np.random.default_rng(0)
    shapes = layouts.state_shapes(vqgan.entries(config), like(config))
    return config, {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}


def test_tamings_tensors_are_those_of_the_description():
    state = published("vqgan")[1]
    assert len(state) == 343 and total(state) == 72_141_699
    assert total(state, "encoder.") == 29_298_176 and total(state, "decoder.") == 42_449_795
    assert total(state, "quant_conv.") == total(state, "post_quant_conv.") == 65_792
    described = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.2.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.4.block.0.nin_shortcut.bias": (512,),
        "encoder.down.3.downsample.conv.weight": (256, 256, 3, 3),
        "encoder.down.4.attn.1.proj_out.weight": (512, 512, 1, 1),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (256, 512, 3, 3),
        "quantize.embedding.weight": (1024, 256),
        "decoder.conv_in.weight": (512, 256, 3, 3),
        "decoder.mid.block_2.norm1.bias": (512,),
        "decoder.up.4.attn.2.norm.weight": (512,),
        "decoder.up.1.upsample.conv.weight": (128, 128, 3, 3),
        "decoder.up.3.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "decoder.up.1.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }
    assert {k: state[k].shape for k in described} == described
    absent = ("encoder.down.4.downsample.conv.weight", "decoder.up.0.upsample.conv.weight")
    assert not set(absent) & set(state)


def test_llamagens_tensors_are_those_of_the_description():
    state = published("llamagen")[1]
    assert total(state) == 71_883_403
    assert len(state) + 1 == 344  # the published count has the buffer codebook_used
    described = {
        "encoder.conv_blocks.4.res.0.nin_shortcut.weight": (512, 256, 1, 1),
        "encoder.conv_blocks.4.attn.1.k.weight": (512, 512, 1, 1),
        "encoder.mid.1.proj_out.bias": (512,),
        "quant_conv.weight": (8, 256, 1, 1),
        "post_quant_conv.weight": (256, 8, 1, 1),
        "quantize.embedding.weight": (16384, 8),
        "decoder.mid.0.conv1.weight": (512, 512, 3, 3),
        # Index 0 is the lowest resolution.
        "decoder.conv_blocks.0.attn.2.v.weight": (512, 512, 1, 1),
        "decoder.conv_blocks.0.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.conv_blocks.1.res.0.nin_shortcut.weight": (256, 512, 1, 1),
        "decoder.conv_blocks.4.res.2.conv2.weight": (128, 128, 3, 3),
    }
    assert {k: state[k].shape for k in described} == described


@pytest.mark.parametrize("name", SMALL)
def test_the_round_trip_is_bit_identical(name):
    config, state = small(name)
    table = vqgan.entries(config)
    params = layouts.to_params(table, state, like(config))
    assert trees.differences(params, like(config)) == []
    back = layouts.to_state(table, params)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert back[key].dtype == np.float32 and back[key].shape == value.shape
        assert back[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize("name", SMALL)
def test_sizes_are_read_from_the_shapes(name):
    config, state = small(name)
    extra = {"loss.discriminator.main.0.weight": np.zeros((64, 3, 4, 4), np.float32)}
    assert vqgan.config_from(extra | state, image_size=config["image_size"]) == config
    config, state = published(name)
    assert vqgan.config_from(state) == config
    assert vqgan.config_from(state, image_size=512) == {**config, "image_size": 512}


def test_model_yaml_gives_the_resolution_and_must_agree():
    config, state = published("vqgan")
    assert vqgan.config_from(state, MODEL_YAML) == config
    larger = MODEL_YAML.replace("resolution: 256", "resolution: 512").replace("[16]", "[32]")
    assert vqgan.config_from(state, larger) == {**config, "image_size": 512}
    assert vqgan.config_from(state, larger, image_size=256) == config
    other = MODEL_YAML.replace("n_embed: 1024", "n_embed: 16384").replace("[16]", "[16, 32]")
    message = r"says attn_levels \[3, 4\] and not \[4\], n_embed 16384 and not 1024"
    with pytest.raises(InputError, match=message):
        vqgan.config_from(state, other)


@pytest.mark.parametrize("text", ["", "model: {params: {embed_dim: 3}}", "a: [", "model: 3"])
def test_an_unreadable_model_yaml_is_refused(text):
    with pytest.raises(InputError, match="model.yaml cannot be read .* expected model.params"):
        vqgan.config_from(published("vqgan")[1], text)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder.conv_in.weight", None, "encoder.conv_in.weight is missing"),
        ("encoder.down.1.block.0.conv1.weight", None, "encoder.down.1.block.0.conv1.weight is mis"),
        ("quantize.embedding.weight", np.zeros(4), r"embedding.weight is \(4,\), expected 2 axes"),
        ("encoder.conv_in.weight", np.zeros((48, 3, 3, 3)), r"\[32, 64\] channels, .* 48"),
    ],
)
def test_sizes_that_cannot_be_read_are_refused(key, value, message):
    state = dict(small("vqgan")[1])
    del state[key]
    if value is not None:
        state[key] = value
    with pytest.raises(InputError, match=message):
        vqgan.config_from(state)


def test_another_network_is_refused():
    with pytest.raises(InputError, match="encoder.conv_in.weight is missing"):
        vqgan.config_from({"tok_emb.weight": np.zeros((3, 4))})


@pytest.mark.parametrize("name", SMALL)
def test_every_difference_is_in_one_message(name):
    config, state = small(name)
    attention = next(key for key in state if ".attn.0.q.bias" in key)
    del state[attention]
    state["decoder.conv_out.weight"] = np.zeros((4, 32, 3, 3), np.float32)
    state["quantize.extra"] = np.zeros(3, np.float32)
    found = vqgan.config_from(state, image_size=config["image_size"])
    assert found == config  # what is wrong elsewhere does not disturb the sizes
    with pytest.raises(InputError) as error:
        layouts.to_params(vqgan.entries(found), state, like(found))
    for part in (
        f"{attention} is missing",
        "quantize.extra is unknown",
        "decoder.conv_out.weight is (4, 32, 3, 3), expected (3, ",
    ):
        assert part in str(error.value)


def test_what_is_ignored():
    keys = [
        *("loss.perceptual_loss.net.slice1.0.weight", "loss.discriminator.main.2.bias"),
        *("quantize.codebook_used", "quantize.codebook_used2", "encoder.loss.weight"),
        "quantize.embedding.weight",
    ]
    assert [trees.matches(vqgan.IGNORED, key) for key in keys] == [True] * 3 + [False] * 3
