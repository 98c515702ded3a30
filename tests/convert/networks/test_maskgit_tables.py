"""The table of MaskGit-PyTorch checkpoints, against the keys and shapes that are published."""

import jax
import numpy as np
import pytest

from dimo_jax import models
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.convert import sources
from dimo_jax.convert.networks import layouts, maskgit

SMALL = {
    "name": "maskgit",
    "num_tokens": 4,
    "codebook_size": 7,
    "num_classes": 3,
    "width": 12,
    "depth": 2,
    "heads": 3,
    "mlp_dim": 20,
    "dropout": 0.1,
    "predict_mask_id": True,
}
BIG = {
    **SMALL, "num_tokens": 256, "codebook_size": 1024, "num_classes": 1000, "width": 768,
    "depth": 24, "heads": 16, "mlp_dim": 3072,
}  # fmt: skip


def published_shapes(config):
    D, H, N = config["width"], config["mlp_dim"], config["num_tokens"] + 1
    V = config["codebook_size"] + config["num_classes"] + 2
    linears = {"first_layer.2": (D, D), "first_layer.6": (D, D), "last_layer.2": (D, D)}
    norms = ["first_layer.0", "first_layer.4", "last_layer.0", "last_layer.4"]
    shapes = {"pos_emb": (1, N, D), "bias": (N, V), "tok_emb.weight": (V, D)}
    for i in range(config["depth"]):
        layer = f"transformer.layers.{i}"
        shapes[f"{layer}.0.fn.mha.in_proj_weight"] = (3 * D, D)
        shapes[f"{layer}.0.fn.mha.in_proj_bias"] = (3 * D,)
        linears[f"{layer}.0.fn.mha.out_proj"] = (D, D)
        linears[f"{layer}.1.fn.net.0"] = (H, D)
        linears[f"{layer}.1.fn.net.3"] = (D, H)
        norms += [f"{layer}.0.norm", f"{layer}.1.norm"]
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (D,), f"{name}.bias": (D,)}
    return shapes


def published_mixture():
    """The four tensors that di4c's student has besides."""
    first, second = "latent_projection.0", "latent_projection.2"
    shapes = {f"{first}.weight": (512, 128), f"{first}.bias": (512,)}
    return shapes | {f"{second}.weight": (768, 512), f"{second}.bias": (768,)}


def small_state():
    numbers = np.random.default_rng(0)
    shapes = published_shapes(SMALL)
    return {k: numbers.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def like(config):
    return jax.eval_shape(models.build(config).init, jax.random.key(0))


@pytest.mark.parametrize(
    ("num_tokens", "mixture_dim", "total"),
    [(256, 0, 174_160_874), (1024, 0, 176_306_666), (256, 512, 174_620_906)],
)
def test_the_table_is_the_published_checkpoint(num_tokens, mixture_dim, total):
    config = {**BIG, "num_tokens": num_tokens, "mixture_dim": mixture_dim}
    params = like(config)
    table = maskgit.entries(config)
    more = published_mixture() if mixture_dim else {}
    assert len(table) == 305 + len(more)
    shapes = layouts.state_shapes(table, params)
    assert shapes == published_shapes(config) | more
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == total
    assert sum(x.size for x in jax.tree.leaves(params)) == total
    paths = sorted("/".join(path) for entry in table for path in entry.paths)
    assert paths == sorted(trees.named_leaves(params))


def test_a_round_trip_gives_the_same_bits():
    state = small_state()
    params = layouts.to_params(maskgit.entries(SMALL), state, like(SMALL))
    assert trees.differences(params, like(SMALL)) == []
    back = layouts.to_state(maskgit.entries(SMALL), params)
    assert list(back) == [entry.key for entry in maskgit.entries(SMALL)]
    assert {k: x.tobytes() for k, x in back.items()} == {k: x.tobytes() for k, x in state.items()}


def test_attention_rows_are_query_key_value_and_within_each_head_by_head():
    state = small_state()
    params = layouts.to_params(maskgit.entries(SMALL), state, like(SMALL))
    attention = params["block_1"]["attention"]
    weight = state["transformer.layers.1.0.fn.mha.in_proj_weight"]
    bias = state["transformer.layers.1.0.fn.mha.in_proj_bias"]
    out = state["transformer.layers.1.0.fn.mha.out_proj.weight"]
    for part, name in enumerate(("query", "key", "value")):
        for head in range(3):
            rows = slice(12 * part + 4 * head, 12 * part + 4 * (head + 1))
            np.testing.assert_array_equal(attention[name]["kernel"][:, head], weight[rows].T)
            np.testing.assert_array_equal(attention[name]["bias"][head], bias[rows])
    np.testing.assert_array_equal(attention["out"]["kernel"][2], out[:, 8:12].T)


def test_the_config_comes_from_the_shapes():
    assert maskgit.config_from(small_state(), heads=3, num_classes=3) == SMALL
    shapes = layouts.state_shapes(maskgit.entries(BIG), like(BIG))
    big = {key: jax.ShapeDtypeStruct(shape, np.float32) for key, shape in shapes.items()}
    assert maskgit.config_from(big) == BIG
    assert maskgit.config_from(small_state(), heads=6, num_classes=2)["codebook_size"] == 8


def test_a_mixture_is_recognised_and_its_four_tensors_are_all_there_or_none():
    narrow = {"latent_projection.2.weight": (12, 512), "latent_projection.2.bias": (12,)}
    shapes = published_mixture() | narrow
    state = small_state() | {k: np.zeros(x, np.float32) for k, x in shapes.items()}
    config = maskgit.config_from(state, heads=3, num_classes=3)
    assert config == {**SMALL, "mixture_dim": 512}
    assert sources.recognise(state) == "di4c" and sources.recognise(small_state()) == "maskgit"
    del state["latent_projection.2.bias"]
    with pytest.raises(InputError, match=r"^latent_projection.2.bias is missing$"):
        layouts.to_params(maskgit.entries(config), state, like(config))


def test_a_layer_that_is_missing_in_part_is_listed():
    state = small_state()
    del state["transformer.layers.0.1.norm.bias"], state["transformer.layers.1.0.norm.weight"]
    config = maskgit.config_from(state, heads=3, num_classes=3)
    with pytest.raises(InputError, match="0.1.norm.bias is missing; .*1.0.norm.weight is missing$"):
        layouts.to_params(maskgit.entries(config), state, like(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_emb": None}, "^pos_emb is missing; the sizes"),
        ({"pos_emb": (5, 12)}, r"^pos_emb is \(5, 12\), expected 3 axes"),
        ({"tok_emb.weight": (5, 12)}, "^tok_emb.weight has 5 rows, expected more than 5"),
    ],
)
def test_what_gives_no_size_is_explained(change, message):
    state = small_state()
    for key, shape in change.items():
        del state[key]
        if shape is not None:
            state[key] = np.zeros(shape, np.float32)
    with pytest.raises(InputError, match=message):
        maskgit.config_from(state, heads=3, num_classes=3)
