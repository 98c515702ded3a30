"""The table of Halton-MaskGIT checkpoints, against the keys and shapes that are published."""

import jax
import numpy as np
import pytest

from dimo_jax import models
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks import halton, layouts
from dimo_jax.models.halton import SIZES

SMALL = {
    "name": "halton",
    "num_tokens": 16,
    "codebook_size": 7,
    "num_classes": 3,
    "width": 10,
    "depth": 2,
    "heads": 3,
    "mlp_dim": 12,
    "dropout": 0.0,
    "registers": 1,
    "proj": 1,
}
RELEASED = {**SMALL, "num_tokens": 256, "codebook_size": 16384, "num_classes": 1000}


def published_shapes(config):
    h, H = config["width"], config["mlp_dim"]
    q = config["heads"] * (h // config["heads"])
    rows = config["codebook_size"] + 1
    shapes = {
        "cls_emb.weight": (config["num_classes"] + 1, h),
        "tok_emb.weight": (rows, h),
        "pos_emb.weight": (config["num_tokens"], h),
        "reg_tokens.weight": (config["registers"], h),
        "last_norm.norm_final.weight": (h,),
        "last_norm.norm_final.bias": (h,),
        "last_norm.mlp.1.weight": (2 * h, h),
        "last_norm.mlp.1.bias": (2 * h,),
        "head.weight": (rows, h),
        "head.bias": (rows,),
    }
    if config["proj"] > 1:
        shapes |= {"in_proj.weight": (h, h, 2, 2), "out_proj.weight": (4 * h, h, 1, 1)}
    for i in range(config["depth"]):
        layer = {
            "mlp.1.weight": (6 * h, h),
            "mlp.1.bias": (6 * h,),
            "ln1.weight": (h,),
            "ln2.weight": (h,),
            "attn.wq.weight": (q, h),
            "attn.wk.weight": (q, h),
            "attn.wv.weight": (q, h),
            "attn.wo.weight": (h, q),
            "ff.w1.weight": (H, h),
            "ff.w2.weight": (h, H),
            "ff.w3.weight": (H, h),
        }
        shapes |= {f"transformer.layers.{i}.{key}": shape for key, shape in layer.items()}
    return shapes


def state_of(config):
    numbers = np.random.default_rng(0)
    shapes = published_shapes(config)
    state = {k: numbers.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    return state | {"head.weight": state["tok_emb.weight"].copy()}


def like(config):
    return jax.eval_shape(models.build(config).init, jax.random.key(0))


def test_the_table_is_the_published_checkpoint():
    config = {**RELEASED, **SIZES["small"]}
    params, table = like(config), halton.entries(config)
    assert len(table) == 142
    shapes = layouts.state_shapes(table, params)
    assert shapes == published_shapes(config)
    # Six heads do not divide 512.
    assert shapes["transformer.layers.11.attn.wq.weight"] == (510, 512)
    paths = sorted("/".join(path) for entry in table for path in entry.paths)
    assert paths == sorted(trees.named_leaves(params))


@pytest.mark.parametrize("size", SIZES)
def test_the_config_of_a_released_size_comes_from_its_shapes(size):
    config = {**RELEASED, **SIZES[size]}
    shapes = published_shapes(config)
    state = {key: jax.ShapeDtypeStruct(shape, np.float32) for key, shape in shapes.items()}
    assert halton.config_from(state) == config


@pytest.mark.parametrize("change", [{}, {"proj": 2, "registers": 2}])
def test_a_round_trip_gives_the_same_bits(change):
    config = {**SMALL, **change}
    state = state_of(config)
    assert halton.config_from(state, heads=3) == config
    params = layouts.to_params(halton.entries(config), state, like(config))
    assert trees.differences(params, like(config)) == []
    back = layouts.to_state(halton.entries(config), params)
    assert {k: x.tobytes() for k, x in back.items()} == {k: x.tobytes() for k, x in state.items()}


def test_the_output_matrix_must_repeat_the_token_table():
    state = state_of(SMALL)
    state["head.weight"][0, 0] += 1
    with pytest.raises(InputError, match="head.weight differs from tok_emb.weight"):
        layouts.to_params(halton.entries(SMALL), state, like(SMALL))


def test_half_a_projection_is_a_missing_key():
    state = state_of({**SMALL, "proj": 2})
    del state["in_proj.weight"]
    config = halton.config_from(state, heads=3)
    with pytest.raises(InputError, match="^in_proj.weight is missing$"):
        layouts.to_params(halton.entries(config), state, like(config))


def test_another_number_of_heads_shows_where_it_changes_a_shape():
    state = state_of(SMALL)
    config = halton.config_from(state, heads=4)
    with pytest.raises(InputError, match=r"attn.wq.weight is \(9, 10\), expected \(8, 10\)"):
        layouts.to_params(halton.entries(config), state, like(config))


def test_what_gives_no_size_is_explained():
    state = state_of(SMALL)
    with pytest.raises(InputError, match="width 10, expected one of 384, 512, 768, 1024, 1152: "):
        halton.config_from(state)
    del state["reg_tokens.weight"]
    with pytest.raises(InputError, match="^reg_tokens.weight is missing; the sizes"):
        halton.config_from(state, heads=3)
