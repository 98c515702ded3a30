"""Meissonic's transformer against diffusers' parts, the golden vectors and its published sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dimo_jax import config as configs
from dimo_jax import models
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.convert.networks import layouts
from dimo_jax.convert.networks import meissonic as table
from dimo_jax.models import meissonic, waves
from dimo_jax.parallel import sharding
from tests.helpers.golden import golden, golden_state
from tests.helpers.torch_meissonic import TorchMeissonic, get_timestep_embedding

SIZES = {
    "name": "meissonic",
    "num_tokens": 16,
    "codebook_size": 11,
    "vocabulary": 15,
    "width": 32,
    "depth": 1,
    "single_depth": 2,
    "heads": 2,
    "mlp_dim": 128,
    "text_length": 5,
    "text_dim": 12,
    "pooled_dim": 7,
    "rope_dims": [4, 8, 4],
    "merge": True,
    "timestep": "zero",
}
GOLDEN_SIZES = {
    **SIZES, "num_tokens": 64, "codebook_size": 64, "vocabulary": 72, "width": 256, "depth": 2,
    "single_depth": 2, "heads": 2, "mlp_dim": 1024, "text_length": 7, "text_dim": 64,
    "pooled_dim": 256, "rope_dims": [16, 56, 56],
}  # fmt: skip


def like(config):
    return jax.eval_shape(models.build(config).init, jax.random.key(0))


@functools.cache
def random_state(**change):
    numbers = np.random.default_rng(0)
    with torch.device("meta"):
        state = TorchMeissonic({**SIZES, **change}).state_dict()

    def draw(key, shape):
        if len(shape) == 1:
            return (0 if key.endswith("bias") else 1) + 0.3 * numbers.normal(size=shape)
        return numbers.normal(size=shape) / np.sqrt(np.prod(shape[1:]))

    return {k: draw(k, tuple(x.shape)).astype(np.float32) for k, x in state.items()}


def in_torch(config, state):
    network = TorchMeissonic(config)
    network.load_state_dict({k: torch.from_numpy(x) for k, x in state.items()})
    return network.eval()


def in_jax(config, state):
    params = layouts.to_params(table.entries(config), state, like(config))
    return jax.tree.map(jnp.asarray, params)


def inputs(config, batch=2):
    """Tokens with [MASK] among them, and a condition."""
    numbers = np.random.default_rng(1)
    tokens = (np.arange(batch * config["num_tokens"]) * 7 + 3) % (config["codebook_size"] + 1)
    condition = {
        "states": numbers.normal(size=(batch, config["text_length"], config["text_dim"])),
        "pooled": numbers.normal(size=(batch, config["pooled_dim"])),
        "micro": np.array([[1024, 1024, 0, 0, 6], [512, 768, 16, 3, 5.25]])[:batch],
    }
    condition = {k: jnp.asarray(x, jnp.float32) for k, x in condition.items()}
    return jnp.asarray(tokens.reshape(batch, -1), jnp.int32), condition


def torch_inputs(config, tokens, condition, timestep=0.0):
    """As the original takes them: [MASK] is the table's last row."""
    ids = np.where(tokens == config["codebook_size"], config["vocabulary"] - 1, tokens)
    parts = (np.array(condition[k]) for k in ("states", "pooled", "micro"))
    time = np.broadcast_to(np.float32(timestep), len(ids)).copy()
    return [torch.from_numpy(x) for x in (ids, *parts, time)]


def logits_in_both(config, state, tokens, condition, timestep, noise=None):
    """Ours and PyTorch's; noise is [B, L, D], added where the generator's is."""
    perturbs = [None, None]
    if noise is not None:
        perturbs = [lambda e: noise - 2 * e, lambda e: torch.from_numpy(noise) - 2 * e]
    apply = jax.jit(models.build(config).apply, static_argnames="perturb")
    found = apply(in_jax(config, state), tokens, condition, perturb=perturbs[0])
    arguments = torch_inputs(config, tokens, condition, timestep)
    with torch.no_grad():
        expected = in_torch(config, state)(*arguments, perturb=perturbs[1]).numpy()
    assert found.shape == (2, 16, 11) and expected.std() > 0.3
    return found, expected


def test_logits_are_pytorchs_at_a_given_time_with_noise():
    tokens, condition = inputs(SIZES)
    condition["timestep"] = jnp.array([0.0, 0.4])
    noise = np.random.default_rng(2).normal(size=(2, 16, 32)).astype(np.float32)
    found, expected = logits_in_both(SIZES, random_state(), tokens, condition, [0.0, 0.4], noise)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_logits_are_pytorchs_without_merging_and_at_the_share_of_masked_tokens():
    config = {**SIZES, "merge": False, "timestep": "ratio"}
    tokens, condition = inputs(config)
    tokens = tokens.at[0, 3].set(11)
    share = np.asarray(tokens == 11).mean(1)
    assert 0 < share[1] < share[0] < 1
    found, expected = logits_in_both(
        config, random_state(merge=False), tokens, condition, share.astype("f")
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_gradients_are_pytorchs_with_remat_scan_and_gathering():
    state = random_state()
    tokens, condition = inputs(SIZES)
    weights = np.random.default_rng(3).normal(size=(2, 16, 11)).astype(np.float32)
    reference = in_torch(SIZES, state)
    logits = reference(*torch_inputs(SIZES, tokens, condition))
    (torch.from_numpy(weights) * logits).sum().backward()
    gathered = []

    def gather(tree):
        gathered.append(tuple(tree))
        return tree

    # Without these three: test_torch_text_step.py.
    network = models.build(SIZES, models.Compute(remat="full", scan_layers=True, gather=gather))

    def loss(params):
        return (weights * network.apply(params, tokens, condition)).sum()

    params = in_jax(SIZES, state)
    traced = jax.jit(jax.grad(loss)).trace(params)
    text = str(traced.jaxpr)
    # Two kinds of blocks, both ways.
    assert text.count(" scan[") >= 4 and ("remat" in text or "checkpoint" in text)
    found = layouts.to_state(table.entries(SIZES), traced.lower().compile()(params))
    for key, parameter in reference.named_parameters():
        expected = parameter.grad.numpy()
        assert np.abs(expected).max() > 1e-4, key
        np.testing.assert_allclose(
            found[key], expected, rtol=0, atol=3e-5 * np.abs(expected).max() + 1e-6, err_msg=key
        )
    # A block's parameters are gathered where it runs, and all others at the start.
    alone = {names[0] for names in gathered if len(names) == 1}
    assert alone == {"double_block_0", "single_block_0"}
    rest = {name for names in gathered if len(names) > 1 for name in names}
    assert rest == {name for name in params if "_block_" not in name}


GOLDEN_LOGITS = {  # timestep -> mean, deviation, and cells of [B, code, row, column]
    0: (-0.0207863, 1.0030594, (-0.446677, 1.489515, 0.702161, -1.407969)),
    31: (-0.0066927, 1.0122399, (-0.494680, 1.599385, 0.985468, -0.986637)),
}
GOLDEN_CELLS = [(0, 0, 0, 0), (0, 63, 3, 4), (1, 17, 7, 7), (1, 5, 0, 6)]


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_golden_vectors(library):
    with torch.device("meta"):
        shapes = {k: tuple(x.shape) for k, x in TorchMeissonic(GOLDEN_SIZES).state_dict().items()}
    assert len(shapes) == 119 and sum(map(math.prod, shapes.values())) == 8_268_800
    state = golden_state(shapes)
    ids = ((np.arange(128) * 11 + 5) % 72).reshape(2, 64).astype(np.int32)
    states = golden(201, (2, 7, 64)).astype(np.float32)
    pooled = golden(202, (2, 256)).astype(np.float32)
    micro = np.tile(np.float32((1024, 1024, 0, 0, 6)), (2, 1))
    if library == "jax":
        # Rows that no token has, 65 to 70, are among the ids: the module takes them as they are.
        names = ("name", "text_length", "text_dim", "pooled_dim", "timestep")
        sizes = {k: v for k, v in GOLDEN_SIZES.items() if k not in names}
        module = meissonic.MeissonicModule(**{**sizes, "rope_dims": (16, 56, 56)})
        params = in_jax(GOLDEN_SIZES, state)
        ids, states, pooled, micro = map(jnp.asarray, (ids, states, pooled, micro))
        run = jax.jit(
            lambda t: module.apply({"params": params}, ids, states, pooled, micro, t, None)
        )
    else:
        reference = in_torch(GOLDEN_SIZES, state)
        tensors = [torch.from_numpy(x) for x in (ids, states, pooled, micro)]
        run = torch.no_grad()(lambda t: reference(*tensors, torch.from_numpy(t)))
    for timestep, (mean, deviation, cells) in GOLDEN_LOGITS.items():
        logits = np.asarray(run(np.full(2, timestep, np.float32)))
        grid = logits.reshape(2, 8, 8, 64).transpose(0, 3, 1, 2)
        found = [grid.mean(), grid.std(), *(grid[place] for place in GOLDEN_CELLS)]
        # A frequency's last bit, in which libraries differ, counts 31,000 times.
        atol = 1e-5 if timestep == 0 else 1e-4 if library == "jax" else 3e-4
        np.testing.assert_allclose(found, [mean, deviation, *cells], rtol=0, atol=atol)


@pytest.mark.slow
def test_the_published_size():
    config = models.build({"name": "meissonic"}).config
    shapes = like(config)
    leaves = trees.named_leaves(shapes)

    def total(kind):
        return sum(math.prod(x.shape) for name, x in leaves.items() if kind in name)

    assert total("") == 1_006_946_304
    assert (total("double_block"), total("single_block")) == (528_919_552, 440_724_480)
    with torch.device("meta"):
        reference = TorchMeissonic(config)
    expected = {k: tuple(x.shape) for k, x in reference.state_dict().items()}
    assert len(expected) == 867
    assert layouts.state_shapes(table.entries(config), shapes) == expected
    # Of the default rules: nothing large is whole on every device by accident.
    section = {**configs.default_config().mesh.to_dict(), "data": 2, "fsdp": 4}
    placed = trees.named_leaves(sharding.layout(section).of(shapes))
    divided = {name for name, x in placed.items() if "fsdp" in x.spec}
    kernels = {name for name in leaves if not name.endswith(("bias", "scale"))}
    assert divided == kernels and max(leaves[n].size for n in leaves.keys() - kernels) < 10_000


def test_bfloat16_stays_bfloat16_inside_and_gives_float32():
    plain, low = models.build(SIZES), models.build(SIZES, models.Compute(dtype="bfloat16"))
    params, (tokens, condition) = like(SIZES), inputs(SIZES)
    cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    assert jax.eval_shape(plain.apply, cast, tokens, condition).dtype == jnp.bfloat16
    assert jax.eval_shape(low.apply, params, tokens, condition).dtype == jnp.float32


def test_times_and_places_are_formed_in_float32():
    half = jnp.full((1, 1), 63_000, jnp.float32)
    expected = get_timestep_embedding(
        torch.tensor([63_000.0]), 256, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    # A frequency's last bit, in which libraries differ, counts 63,000 times.
    np.testing.assert_allclose(waves.sinusoids(half), expected, rtol=0, atol=8e-3)
    x = np.random.default_rng(0).normal(size=(1, 21, 2, 16)).astype(np.float32)
    angles = waves.rotary(5, 4, (4, 8, 4))
    exact = waves.rotated(jnp.asarray(x), angles)
    low = waves.rotated(jnp.asarray(x, jnp.bfloat16), angles)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), exact, rtol=0, atol=0.04)
    np.testing.assert_array_equal(exact[:, :6], x[:, :6])  # text and the first image token


def test_the_condition_is_described_and_checked():
    network = models.build(SIZES)
    assert network.condition["states"].shape == (5, 12) and network.num_classes == 0
    tokens, condition = inputs(SIZES)
    with pytest.raises(InputError, match="takes text features: a dict of states, pooled, micro"):
        network.apply({}, tokens, jnp.zeros(2, jnp.int32))
    del condition["micro"]
    with pytest.raises(InputError, match="the condition has pooled, states; Meissonic takes"):
        network.apply({}, tokens, condition)


def test_the_config_rebuilds_the_network():
    assert models.build(SIZES).config == SIZES
    network = models.build({"name": "meissonic"})
    assert models.build(network.config).config == network.config
    assert (network.num_tokens, network.mask_id) == (4096, 8192)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads of the network meissonic is 5, expected a divisor of the width 32"),
        ({"rope_dims": [4, 4, 4]}, r"is \[4, 4, 4\], expected three even numbers whose sum is 32"),
        ({"rope_dims": [6, 5, 5]}, "expected three even numbers"),
        ({"num_tokens": 15}, "num_tokens .* is 15, expected a square number"),
        ({"num_tokens": 9}, "num_tokens .* is 9, expected the square of an even number"),
        ({"vocabulary": 11}, "is 11, expected more than the 11 codes, for"),
        ({"timestep": "one"}, "timestep .* is 'one', expected one of zero, ratio"),
        ({"dropout": 0.1}, "does not take these sizes"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        models.build({**SIZES, **change})
