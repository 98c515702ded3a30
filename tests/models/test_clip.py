"""CLIP against open_clip and transformers on random weights, the golden vector and full sizes."""

from tests.helpers import torch_peers  # noqa: F401

# isort: split
import math

import jax
import jax.numpy as jnp
import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks import clip as table
from dimo_jax.convert.networks import layouts
from dimo_jax.models import clip
from tests.helpers.golden import golden_state

# Three heads of 16 in one tower and five of 8 in the other; 4 x 4 patches.
CONFIG = {
    "name": "clip",
    "activation": "gelu",
    "projection": 24,
    "text": {
        "vocabulary": 60, "context": 12, "width": 40, "depth": 3, "heads": 5, "mlp_dim": 100,
    },
    "image": {
        "image_size": 28, "patch_size": 7, "width": 48, "depth": 2, "heads": 3, "mlp_dim": 120,
    },
}  # fmt: skip
START, END = 58, 59
# Texts of several lengths, one cut off, one whose padding repeats the end.
TOKENS = np.array(
    [
        [START, 5, 9, 31, 2, END, 0, 0, 0, 0, 0, 0],
        [START, *range(10, 20), END],
        [START, END, *[END] * 10],
    ],
    np.int32,
)


def random_state(shapes, seed=0):
    """Matrices that keep the size of signals, norms and biases that are felt."""
    numbers = np.random.default_rng(seed)

    def draw(key, shape):
        if key == "logit_scale":
            return np.array(2.5)
        if len(shape) == 1:
            middle = 1.0 if key.endswith("weight") else 0.0
            return middle + 0.3 * numbers.normal(size=shape)
        return numbers.normal(size=shape) / (1 if "embed" in key else math.sqrt(shape[-1]))

    return {key: draw(key, tuple(x.shape)).astype(np.float32) for key, x in shapes.items()}


def pixels():
    return np.random.default_rng(7).normal(size=(3, 28, 28, 3)).astype(np.float32)


def ours(state, config, hugging_face):
    """(the network, what it gives for TOKENS and pixels()) with the weights of a state dict."""
    network = clip.build(config)
    like = jax.eval_shape(network.init, jax.random.key(0))
    kept = {k: x for k, x in state.items() if k != "logit_scale"}
    params = layouts.to_params(table.entries(config, hugging_face), kept, like)
    text = jax.jit(network.encode_text)(params, TOKENS)
    image = jax.jit(network.encode_image)(params, pixels())
    return {"text": jax.device_get(text), "image": jax.device_get(image)}


def load(module, seed=0):
    state = random_state({k: x for k, x in module.state_dict().items()}, seed)
    module.load_state_dict({k: torch.from_numpy(x) for k, x in state.items()})
    module.eval()
    return state


def as_torch(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def assert_near(found, expected):
    """To 1e-5, of values that are alive and of rows that differ."""
    expected = expected.numpy() if isinstance(expected, torch.Tensor) else expected
    assert np.abs(expected).std() > 0.3 and np.abs(expected[0] - expected[1]).mean() > 0.1
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_features_are_open_clips(activation):
    config = {**CONFIG, "activation": activation}
    vision = {"image_size": 28, "patch_size": 7, "width": 48, "layers": 2, "head_width": 16}
    text = {"context_length": 12, "vocab_size": 60, "width": 40, "layers": 3, "heads": 5}
    peer = CLIP(
        24,
        {**vision, "mlp_ratio": 2.5},
        {**text, "mlp_ratio": 2.5},
        quick_gelu=activation == "quick_gelu",
    )
    state = load(peer)
    with torch.no_grad():
        expected = peer.encode_text(torch.from_numpy(TOKENS).long())
        expected_image = peer.encode_image(as_torch(pixels()))
    described = {"embed_dim": 24, "quick_gelu": activation == "quick_gelu"}
    described |= {"vision_cfg": {**vision, "mlp_ratio": 2.5}, "text_cfg": {**text}}
    assert table.config_from(state, None, described) == config
    found = ours(state, config, False)
    assert_near(found["text"]["projected"], expected)
    assert_near(found["image"]["projected"], expected_image)


def test_all_outputs_are_transformers():
    text = {"vocab_size": 60, "max_position_embeddings": 12, "hidden_size": 40}
    text |= {"num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 100}
    text |= {"hidden_act": "gelu", "eos_token_id": END, "bos_token_id": START, "pad_token_id": 0}
    vision = {"image_size": 28, "patch_size": 7, "hidden_size": 48, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 3, "intermediate_size": 120, "hidden_act": "gelu"}
    described = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    peer = CLIPModel(described)
    state = load(peer, seed=1)
    with torch.no_grad():
        hidden = peer.text_model(torch.from_numpy(TOKENS).long(), output_hidden_states=True)
        image = peer.vision_model(as_torch(pixels()))
        projected = peer.text_projection(hidden.pooler_output)
        projected_image = peer.visual_projection(image.pooler_output)
    state = {k: x for k, x in state.items() if "position_ids" not in k}
    assert table.config_from(state, None, described.to_dict()) == CONFIG
    found = ours(state, CONFIG, True)
    assert_near(found["text"]["hidden"], hidden.last_hidden_state)
    assert_near(found["text"]["penultimate"], hidden.hidden_states[-2])
    assert_near(found["text"]["pooled"], hidden.pooler_output)
    assert_near(found["text"]["projected"], projected)
    assert_near(found["image"]["pooled"], image.pooler_output)
    assert_near(found["image"]["projected"], projected_image)


def text_alone(**sizes):
    return {**CONFIG, "image": None, "text": {**CONFIG["text"], **sizes}}


def test_the_text_tower_alone_gives_the_golden_vector():
    """Computed once with transformers' CLIPTextModelWithProjection, the encoder of Meissonic."""
    sizes = {"vocabulary": 100, "context": 77, "width": 64, "heads": 4, "mlp_dim": 256}
    config = {**text_alone(**sizes), "projection": 48}
    network = clip.build(config)
    assert network.encode_image is None and network.context == 77
    like = jax.eval_shape(network.init, jax.random.key(0))
    entries = table.entries(config, True)
    state = golden_state(layouts.state_shapes(entries, like))
    assert len(state) == 53
    params = layouts.to_params(entries, state, like)
    tokens = np.zeros((1, 77), np.int32)
    tokens[0, :5] = 98, 7, 12, 31, 99
    found = jax.device_get(jax.jit(network.encode_text)(params, tokens))
    states, projected = found["penultimate"], found["projected"]
    np.testing.assert_allclose(
        [states.mean(), states.std(), states[0, 0, 0], states[0, 4, 63], states[0, 76, 10]],
        [-0.1291031, 1.2268329, 1.176904, -1.876431, -1.050752],
        atol=2e-6,
    )
    np.testing.assert_allclose(
        [projected.mean(), projected[0, 0], projected[0, 47]],
        [0.1809888, 0.210349, 0.945004],
        atol=2e-6,
    )


def test_it_computes_in_the_parameters_dtype():
    network = clip.build(text_alone(depth=1))
    params = jax.eval_shape(network.init, jax.random.key(0))
    numbers = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.1 * numbers.normal(size=x.shape).astype("f4"), params)
    # A network of random norms is no network.
    params["text"]["last_norm"]["scale"] += 1
    tokens, encode = jnp.asarray(TOKENS[:1]), jax.jit(network.encode_text)
    # Shorter rows than the context, as of prompts that are known to be short.
    short = encode(params, tokens[:, :7])
    np.testing.assert_allclose(short["projected"], encode(params, tokens)["projected"], atol=1e-6)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    found = encode(half, tokens[:, :7])
    assert {x.dtype for x in found.values()} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(found["hidden"].astype(np.float32), short["hidden"], atol=0.05)


def test_products_are_of_the_highest_precision():
    network = clip.build(CONFIG)
    params = jax.eval_shape(network.init, jax.random.key(0))
    text = str(jax.make_jaxpr(network.encode_text)(params, TOKENS))
    image = str(jax.make_jaxpr(network.encode_image)(params, pixels()))
    highest = "Precision.HIGHEST, Precision.HIGHEST"
    # Of a block: three projections, scores, values, out, and two of the feed-forward.
    assert text.count(highest) == text.count("dot_general[") == 3 * 8 + 1
    assert image.count(highest) == image.count("dot_general[") + 1 == 2 * 8 + 1 + 1


def shapes_in_full(config, hugging_face):
    """The state dict of a network, from one that is two blocks deep: they are alike."""
    towers = {k: v and {**v, "depth": 2} for k, v in config.items() if k in ("text", "image")}
    like = jax.eval_shape(clip.build({**config, **towers}).init, jax.random.key(0))
    for name in like.keys() & towers.keys():
        blocks = range(config[name]["depth"])
        like[name] |= {f"block_{i}": like[name]["block_0"] for i in blocks}
    return layouts.state_shapes(table.entries(config, hugging_face), like)


def on_meta(name):
    """(the state dict of a published network without its memory, its configuration)."""
    described = open_clip.get_model_config(name)
    with torch.device("meta"):
        peer = CLIP(**described)
    return peer.state_dict(), described


# (text: width, depth, heads), (image: patch, width, depth, heads, mlp_dim), projection
PUBLISHED = {
    "ViT-B-32-quickgelu": ((512, 12, 8), (32, 768, 12, 12, 3072), 512),
    "ViT-L-14-quickgelu": ((768, 12, 12), (14, 1024, 24, 16, 4096), 768),
    "ViT-H-14": ((1024, 24, 16), (14, 1280, 32, 16, 5120), 1024),
    "ViT-g-14": ((1024, 24, 16), (14, 1408, 40, 16, 6144), 1024),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_the_published_networks(name):
    state, described = on_meta(name)
    (width, depth, heads), image, projection = PUBLISHED[name]
    activation = "quick_gelu" if "quickgelu" in name else "gelu"
    expected = {
        "name": "clip",
        "activation": activation,
        "projection": projection,
        "text": {
            "vocabulary": 49408,
            "context": 77,
            "width": width,
            "depth": depth,
            "mlp_dim": 4 * width,
            "heads": heads,
        },
        "image": {
            "image_size": 224,
            **dict(zip(("patch_size", "width", "depth", "heads", "mlp_dim"), image, strict=True)),
        },
    }
    assert table.config_from(state, None, described) == expected
    assert table.config_from(state, activation) == expected
    if name == "ViT-H-14":
        shapes = shapes_in_full(expected, False)
        published = {k: tuple(x.shape) for k, x in state.items()}
        assert shapes | {"logit_scale": ()} == published
        assert sum(math.prod(shape) for shape in published.values()) == 986_109_441


def test_meissonics_text_encoder_in_full():
    described = CLIPTextConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        projection_dim=1024,
        hidden_act="gelu",
        eos_token_id=2,
    )
    with torch.device("meta"):
        state = CLIPTextModelWithProjection(described).state_dict()
    state = {k: x for k, x in state.items() if "position_ids" not in k}
    config = table.config_from(state, None, described.to_dict())
    assert config["image"] is None and config["projection"] == 1024
    shapes = shapes_in_full(config, True)
    assert shapes == {k: tuple(x.shape) for k, x in state.items()}
    assert sum(math.prod(shape) for shape in shapes.values()) == 354_032_640


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"activation": "relu"}, "activation is 'relu', not gelu or quick_gelu"),
        ({"projection": 0}, "projection is 0, expected a number from 1"),
        ({"extra": 1}, "clip has an unknown extra"),
        ({"name": "clap"}, "name is 'clap'"),
        (
            {"text": {**CONFIG["text"], "heads": 3}},
            "text.width 40 is not divisible by text.heads 3",
        ),
        ({"text": {"width": 40}}, "text lacks vocabulary; text lacks context"),
        ({"text": None}, "text lacks vocabulary"),
        ({"image": {**CONFIG["image"], "patch_size": 5}}, "image.image_size 28 is not divisible"),
        ({"image": {**CONFIG["image"], "width": "48"}}, "image.width is '48'"),
    ],
)
def test_other_configurations_are_refused(change, complaint):
    with pytest.raises(InputError) as error:
        clip.build({**CONFIG, **change})
    assert complaint in str(error.value)
