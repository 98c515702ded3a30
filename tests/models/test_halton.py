"""The Halton-MaskGIT transformer against PyTorch, the golden vector and its published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dimo_jax import models
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks import halton as table
from dimo_jax.convert.networks import layouts
from dimo_jax.models import halton
from dimo_jax.models.attention import attention_fn
from dimo_jax.models.network import Compute
from tests.helpers.golden import golden_state
from tests.helpers.torch_halton import TorchHalton

XLA = attention_fn(Compute())
# Three heads of 8 in 26: like "small", whose six heads do not divide its width either.
SIZES = {
    "name": "halton",
    "num_tokens": 16,
    "codebook_size": 11,
    "num_classes": 5,
    "width": 26,
    "depth": 2,
    "heads": 3,
    "mlp_dim": 40,
    "dropout": 0.0,
    "registers": 1,
    "proj": 1,
}
GOLDEN_SIZES = {
    **SIZES, "codebook_size": 50, "num_classes": 10, "width": 96, "heads": 5, "mlp_dim": 256,
}  # fmt: skip


def random_state(config, seed=0):
    numbers = np.random.default_rng(seed)
    shapes = {k: tuple(x.shape) for k, x in TorchHalton(**config).state_dict().items()}

    def draw(key, shape):
        if len(shape) == 1:
            return (0 if key.endswith("bias") else 1) + 0.3 * numbers.normal(size=shape)
        return numbers.normal(size=shape) / np.sqrt(np.prod(shape[1:]))

    state = {k: draw(k, shape).astype(np.float32) for k, shape in shapes.items()}
    return state | {"head.weight": state["tok_emb.weight"]}


def in_torch(config, state):
    network = TorchHalton(**config)
    network.load_state_dict({k: torch.from_numpy(x) for k, x in state.items()})
    return network.eval()


def in_jax(config, state):
    """Its apply, compiled as a whole (faster than op by op), and its parameters."""
    network = models.build(config)
    like = jax.eval_shape(network.init, jax.random.key(0))
    params = layouts.to_params(table.entries(config), state, like)
    apply = jax.jit(network.apply, static_argnames="perturb")
    return apply, jax.tree.map(jnp.asarray, params)


def inputs(config):
    """Every token id; the null class in the last row."""
    tokens = (np.arange(2 * 16) * 7 + 3) % (config["codebook_size"] + 1)
    return tokens.reshape(2, 16).astype(np.int32), np.array([3, config["num_classes"]], np.int32)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"registers": 3, "heads": 2},
        {"proj": 2},
    ],
)
def test_logits_are_pytorchs(change):
    config = {**SIZES, **change}
    state, (tokens, labels) = random_state(config), inputs(config)
    with torch.no_grad():
        expected = in_torch(config, state)(torch.from_numpy(tokens), torch.from_numpy(labels))
    assert expected.shape == (2, 16, 12) and expected.std() > 0.3
    apply, params = in_jax(config, state)
    found = apply(params, jnp.asarray(tokens), jnp.asarray(labels))
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_noise_comes_after_the_lookup_and_before_the_positions():
    state, (tokens, labels) = random_state(SIZES), inputs(SIZES)
    noise = np.random.default_rng(2).normal(size=(2, 16, 26)).astype(np.float32)
    with torch.no_grad():
        expected = in_torch(SIZES, state)(
            torch.from_numpy(tokens),
            torch.from_numpy(labels),
            perturb=lambda e: torch.from_numpy(noise) - 2 * e,
        )
    apply, params = in_jax(SIZES, state)
    args = (params, jnp.asarray(tokens), jnp.asarray(labels))
    found = apply(*args, perturb=lambda e: noise - 2 * e)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


GOLDEN_LOGITS = {
    (0, 0, 0): -3.824471,
    (0, 0, 50): -3.371417,
    (0, 7, 5): 1.807980,
    (1, 0, 0): -2.953111,
    (1, 15, 50): -2.993658,
}


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_golden_vector(library):
    shapes = {k: tuple(x.shape) for k, x in TorchHalton(**GOLDEN_SIZES).state_dict().items()}
    assert len(shapes) == 32
    assert {entry.key for entry in table.entries(GOLDEN_SIZES)} == set(shapes)
    state = golden_state(shapes)
    state["head.weight"] = state["tok_emb.weight"]
    tokens, labels = ((np.arange(32) * 7 + 3) % 51).reshape(2, 16), np.array([3, 10])
    if library == "jax":
        apply, params = in_jax(GOLDEN_SIZES, state)
        logits = np.asarray(apply(params, jnp.asarray(tokens), jnp.asarray(labels)))
    else:
        reference = in_torch(GOLDEN_SIZES, state)
        with torch.no_grad():
            logits = reference(torch.from_numpy(tokens), torch.from_numpy(labels)).numpy()
    assert logits.shape == (2, 16, 51)
    assert abs(logits.mean() - 0.2631962) < 1e-6 and abs(logits.std() - 3.9483198) < 1e-6
    for place, expected in GOLDEN_LOGITS.items():
        assert abs(logits[place] - expected) < 1e-5, place


@pytest.mark.parametrize(
    ("size", "totals"),
    [
        ("tiny", (23_031_425, 23_154_305)),
        ("small", (69_344_769, 69_508_609)),
        ("base", (142_224_641, 142_470_401)),
        ("large", (479_656_961, 479_984_641)),
        ("xlarge", (692_118_401, 692_487_041)),
    ],
)
def test_parameter_totals_are_the_published_ones(size, totals):
    sizes = halton.SIZES[size]
    assert sizes["mlp_dim"] == 256 * -(-int(8 * sizes["width"] / 3) // 256)
    for num_tokens, total in zip((256, 576), totals, strict=True):
        network = halton.build(
            num_tokens=num_tokens, codebook_size=16384, num_classes=1000, **sizes
        )
        # The tied output matrix counts once: here it is the token table itself.
        shapes = jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
        assert sum(x.size for x in shapes) == total


def test_dropout_acts_only_with_a_key():
    still = {**SIZES, "depth": 1}
    tokens, labels = (jnp.asarray(x) for x in inputs(still))
    apply, params = in_jax({**still, "dropout": 0.3}, random_state(still))
    one, two, again = (
        apply(params, tokens, labels, dropout_key=jax.random.key(seed)) for seed in (1, 2, 1)
    )
    without = apply(params, tokens, labels)
    plain = jax.jit(models.build(still).apply)
    unchanged = plain(params, tokens, labels, dropout_key=jax.random.key(0))
    np.testing.assert_array_equal(without, unchanged)
    assert not np.array_equal(one, without)
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, again)


def test_attention_drops_probabilities_too_and_not_only_outputs():
    attention = halton.Attention(heads=2, dropout=0.5, attention=XLA)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 8)), jnp.float32)
    still, variables = attention.init_with_output(jax.random.key(0), x, True)
    y = attention.apply(variables, x, False, rngs={"dropout": jax.random.key(1)})
    kept = np.asarray(y != 0)
    assert 0.2 < kept.mean() < 0.8
    assert np.abs(y - 2 * still)[kept].max() > 0.05


@pytest.mark.parametrize("proj", [1, 2])
def test_in_bfloat16_every_block_stays_in_bfloat16(proj):
    network = models.build({**SIZES, "proj": proj})
    like = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), like)
    tokens, labels = (jnp.asarray(x) for x in inputs(SIZES))
    assert jax.eval_shape(network.apply, params, tokens, labels).dtype == jnp.bfloat16


def test_every_parameter_has_a_gradient():
    config = {**SIZES, "depth": 1, "proj": 2}
    apply, params = in_jax(config, random_state(config))
    tokens, labels = (jnp.asarray(x) for x in inputs(config))
    gradient = jax.jit(jax.grad(lambda p: (apply(p, tokens, labels) ** 2).sum()))(params)
    assert [n for n, g in trees.named_leaves(gradient).items() if not np.any(g)] == []


def test_at_the_start_a_block_is_the_identity():
    x, label = jnp.arange(8.0).reshape(1, 2, 4), jnp.ones((1, 4))
    block = halton.Block(heads=2, mlp_dim=4, dropout=0.0, attention=XLA)
    y, _ = jax.jit(lambda key: block.init_with_output(key, x, label, True))(jax.random.key(0))
    np.testing.assert_array_equal(y, x)


def test_the_config_rebuilds_the_network():
    network = models.build(SIZES)
    assert network.config == SIZES and network.mask_id == 11
    required = {k: SIZES[k] for k in SIZES if k not in ("dropout", "registers", "proj")}
    assert models.build(required).config == SIZES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 27}, "heads is 27, expected 1 to 26"),
        ({"registers": 0}, "registers is 0"),
        ({"proj": 3}, "proj is 3, expected 1 or 2"),
        ({"proj": 2, "num_tokens": 9}, "num_tokens is 9, expected the square of an even number"),
        ({"proj": 2, "num_tokens": 8}, "num_tokens is 8, expected the square of an even number"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        models.build({**SIZES, **change})
