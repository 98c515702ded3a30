"""One whole Di[M]O step against PyTorch: both gradients, for every parameter tensor.

The random numbers (x_init, embedding noise, draws, masks) come from the package's keys; all that is
computed from them is written in tests/helpers/torch_step.py from the paper's equations, with
autograd in place of closed forms, so that only the networks' state-dict keys are shared. Axes: B
batch, L tokens, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from configs import imagenet
from dimo_jax import models
from dimo_jax.common import rng
from dimo_jax.convert.networks import layouts, maskgit
from dimo_jax.method.dimo import distill, distill_state, generate
from dimo_jax.method.masked import masking
from dimo_jax.training import settings as training_settings
from tests.helpers.torch_step import torch_step
from tests.models.test_maskgit_parity import in_torch, random_state

B, L, CODES, CLASSES, WIDTH = 8, 16, 12, 5, 32
MASK_ID, NULL = CODES, CLASSES
SIZES = {
    "name": "maskgit",
    "num_tokens": L,
    "codebook_size": CODES,
    "num_classes": CLASSES,
    "width": WIDTH,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 64,
    "dropout": 0.1,
    "predict_mask_id": True,
}
SEED, STEP, INDEX = 3, 7, np.arange(B, dtype=np.int32) + 40
LABELS, FRESH_LABELS = np.arange(B, dtype=np.int32) % CLASSES, (np.arange(B) * 3 + 1) % CLASSES


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers that the step draws, as tensors."""

    settings: distill.DistillSettings
    labels, fresh_labels = torch.tensor(LABELS), torch.tensor(FRESH_LABELS)
    mask_id, null = MASK_ID, NULL

    def keys(self, name):
        return rng.example_keys(rng.stream_key(SEED, name, STEP), jnp.asarray(INDEX))

    def start(self, name):
        """x_init [B, L], and standard normal noise [B, L, D] for its embeddings."""
        tokens, keys = generate.initial_state(self.keys(f"{name}_init"), self.settings.generator)
        noise = jax.vmap(lambda key: jax.random.normal(key, (L, WIDTH)))(keys)
        return torch.tensor(np.asarray(tokens)), torch.tensor(np.asarray(noise))

    def tokens(self, name, logits):
        """x_theta ~ softmax(logits) at every position; SEED is one without ties in float noise."""
        gumbel = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))
        numbers = torch.tensor(np.asarray(gumbel(self.keys(f"{name}_sample"))))
        return (logits.detach() + numbers).argmax(-1)

    def mask(self, name):
        keys = self.keys(f"{name}_mask")
        if name != "generator":  # an auxiliary's own mask shares its stream with dropped labels
            keys = jax.vmap(jax.random.split)(keys)[:, 0]
        return torch.tensor(np.asarray(masking.sample_mask(keys, L, self.settings.mask)[0]))


def keep_gradient():
    """An optimizer that changes nothing and has the last gradient, unrounded, as its state."""
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)  # noqa: E731
    return optax.GradientTransformation(zeros, lambda g, state, params: (zeros(g), g))


def our_step(settings, states):
    """(generator's gradient, auxiliary's) as state dicts, and the metrics."""
    network, table = models.build(SIZES), maskgit.entries(SIZES)
    like = jax.eval_shape(network.init, jax.random.key(0))
    teacher, generator, auxiliary = (
        jax.tree.map(jnp.asarray, layouts.to_params(table, state, like)) for state in states
    )
    state = distill_state.create_state(generator, keep_gradient(), keep_gradient())
    state = state.replace(auxiliary=auxiliary, step=jnp.int32(STEP))
    batch = distill_state.DistillBatch(
        seed=jnp.int32(SEED),
        index=jnp.asarray(INDEX),
        condition=jnp.asarray(LABELS),
        aux_condition=jnp.asarray(FRESH_LABELS, jnp.int32)[None],
        null_condition=jnp.full((B,), NULL, jnp.int32),
    )
    step = distill.make_step(
        network.apply, network.apply, keep_gradient(), keep_gradient(), settings
    )
    new, metrics = jax.jit(step)(state, teacher, batch)
    return [layouts.to_state(table, g) for g in (new.generator_opt, new.aux_opt)], metrics


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["default", "paper"])
def test_both_gradients_are_pytorchs_for_every_tensor(variant):
    config = imagenet.get_config(variant).to_dict()
    settings = training_settings.distill_settings(config, models.build(SIZES))
    states = [random_state(SIZES, seed) for seed in (11, 12, 13)]
    found, metrics = our_step(settings, states)

    teacher, *trained = (in_torch(SIZES, state) for state in states)
    draws = Draws(settings)
    assert ((draws.start("generator")[0] == MASK_ID).sum(1) == round(0.6 * L)).all()
    loss = torch_step(variant, teacher, *trained, draws)
    assert float(metrics["aux_loss"]) == pytest.approx(loss.item(), rel=1e-6)
    errors = {}
    for role, network, gradients in zip(("generator", "auxiliary"), trained, found, strict=True):
        for key, tensor in network.named_parameters():
            expected = tensor.grad.numpy()
            size, difference = np.linalg.norm(expected), np.linalg.norm(gradients[key] - expected)
            # No tensor is without gradient: keys' biases are, but they share theirs with q and v.
            assert size > 1e-3, f"{role} {key}"
            errors[f"{role} {key}"] = difference / size
    worst = max(errors, key=errors.get)
    print(f"\n{variant}: worst of {len(errors)} tensors {worst}, {errors[worst]:.1e}")
    assert errors[worst] < 1e-4, worst
