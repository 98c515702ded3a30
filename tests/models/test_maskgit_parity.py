"""The MaskGit transformer against PyTorch: logits, gradients and the golden vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dimo_jax import models
from dimo_jax.convert.networks import layouts, maskgit
from tests.helpers.golden import golden_state
from tests.helpers.torch_maskgit import TorchMaskGit

SIZES = {
    "name": "maskgit",
    "num_tokens": 9,
    "codebook_size": 11,
    "num_classes": 5,
    "width": 24,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 40,
    "dropout": 0.1,
    "predict_mask_id": True,
}
GOLDEN_SIZES = {
    **SIZES, "num_tokens": 16, "codebook_size": 32, "num_classes": 10, "width": 96,
    "heads": 2, "mlp_dim": 384,
}  # fmt: skip


def random_state(config, seed=0):
    """Weights of the size that keeps activations near 1; nothing is left at 0 or 1."""
    numbers = np.random.default_rng(seed)
    shapes = {k: tuple(x.shape) for k, x in TorchMaskGit(**config).state_dict().items()}

    def draw(key, shape):
        if len(shape) == 1:
            return (0 if key.endswith("bias") else 1) + 0.3 * numbers.normal(size=shape)
        return numbers.normal(size=shape) / (2 * np.sqrt(shape[-1]))

    return {k: draw(k, shape).astype(np.float32) for k, shape in shapes.items()}


def in_torch(config, state):
    network = TorchMaskGit(**config)
    network.load_state_dict({k: torch.from_numpy(x) for k, x in state.items()})
    return network.eval()


def in_jax(config, state):
    """Its apply, compiled as a whole (faster than op by op), and its parameters."""
    network = models.build(config)
    like = jax.eval_shape(network.init, jax.random.key(0))
    params = layouts.to_params(maskgit.entries(config), state, like)
    apply = jax.jit(network.apply, static_argnames="perturb")
    return apply, jax.tree.map(jnp.asarray, params)


def inputs(config):
    """Every token id; the null class in the last row."""
    K, L = config["codebook_size"], config["num_tokens"]
    tokens = (np.arange(2 * L) * 7 + 3) % (K + 1)
    return tokens.reshape(2, L).astype(np.int32), np.array([1, config["num_classes"]], np.int32)


def noise(config):
    shape = (2, config["num_tokens"], config["width"])
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("perturbed", [False, True])
def test_logits_are_pytorchs(perturbed):
    state, (tokens, labels), n = random_state(SIZES), inputs(SIZES), noise(SIZES)
    with torch.no_grad():
        expected = in_torch(SIZES, state)(
            torch.from_numpy(tokens),
            torch.from_numpy(labels),
            perturb=(lambda e: 0.1 * torch.from_numpy(n) + 0.99**0.5 * e) if perturbed else None,
        ).numpy()
    apply, params = in_jax(SIZES, state)
    perturb = (lambda e: 0.1 * n + 0.99**0.5 * e) if perturbed else None
    found = apply(params, jnp.asarray(tokens), jnp.asarray(labels), perturb=perturb)
    assert found.shape == (2, 9, 12) and expected.std() > 0.3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_gradients_are_pytorchs_for_every_tensor():
    state, (tokens, labels) = random_state(SIZES), inputs(SIZES)
    cotangent = np.random.default_rng(3).normal(size=(2, 9, 12)).astype(np.float32)
    reference = in_torch(SIZES, state)
    logits = reference(torch.from_numpy(tokens), torch.from_numpy(labels))
    (logits * torch.from_numpy(cotangent)).sum().backward()
    apply, params = in_jax(SIZES, state)

    def total(p):
        return (apply(p, jnp.asarray(tokens), jnp.asarray(labels)) * cotangent).sum()

    # The table moves values only, so gradients go through it as weights do.
    found = layouts.to_state(maskgit.entries(SIZES), jax.jit(jax.grad(total))(params))
    for key, tensor in reference.named_parameters():
        expected = tensor.grad.numpy()
        error = np.linalg.norm(found[key] - expected) / np.linalg.norm(expected)
        assert error < 1e-4, key


GOLDEN_LOGITS = {
    (0, 0, 0): -7.554738,
    (0, 0, 32): 1.630789,
    (0, 7, 5): -1.917438,
    (1, 0, 0): 0.868895,
    (1, 15, 31): -2.430140,
    (1, 15, 32): -2.163756,
}


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_golden_vector(library):
    shapes = {k: tuple(x.shape) for k, x in TorchMaskGit(**GOLDEN_SIZES).state_dict().items()}
    assert len(shapes) == 41
    assert [entry.key for entry in maskgit.entries(GOLDEN_SIZES)] == list(shapes)
    state = golden_state(shapes)
    assert sum(x.size for x in state.values()) == 258_988
    tokens, labels = ((np.arange(32) * 7 + 3) % 33).reshape(2, 16), np.array([3, 10])
    if library == "jax":
        apply, params = in_jax(GOLDEN_SIZES, state)
        logits = np.asarray(apply(params, jnp.asarray(tokens), jnp.asarray(labels)))
    else:
        reference = in_torch(GOLDEN_SIZES, state)
        with torch.no_grad():
            logits = reference(torch.from_numpy(tokens), torch.from_numpy(labels)).numpy()
    assert logits.shape == (2, 16, 33)
    assert abs(logits.mean() + 0.1643498) < 1e-6 and abs(logits.std() - 2.9277263) < 1e-6
    for place, expected in GOLDEN_LOGITS.items():
        assert abs(logits[place] - expected) < 1e-5, place


def test_the_number_of_heads_is_in_no_shape_and_changes_the_logits():
    state, (tokens, labels) = random_state(SIZES), inputs(SIZES)
    four, eight = (
        apply(params, jnp.asarray(tokens), jnp.asarray(labels))
        for apply, params in (in_jax({**SIZES, "heads": heads}, state) for heads in (4, 8))
    )
    assert np.abs(four - eight).max() > 0.01
