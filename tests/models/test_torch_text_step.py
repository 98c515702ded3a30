"""One Di[M]O step with text as the condition against PyTorch: both gradients, for every tensor.

As test_torch_step.py, whose random numbers it takes, with the choices of the released text-to-image
code: guidance 4 against a negative prompt, sigma 0.3, half of the tokens masked at the start. Axes:
B batch, L tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import imagenet
from dimo_jax import models
from dimo_jax.convert.networks import layouts
from dimo_jax.convert.networks import meissonic as table
from dimo_jax.method.dimo import distill, distill_state
from dimo_jax.training import settings as training_settings
from tests.models.test_meissonic import SIZES as LARGER
from tests.models.test_meissonic import in_jax, in_torch, inputs, random_state, torch_inputs
from tests.models.test_torch_step import INDEX, SEED, STEP, B, Draws, L, keep_gradient

SIZES = {**LARGER, "single_depth": 1}  # compiling the step is most of the time
CODES = SIZES["codebook_size"]


def settings_of(network):
    config = imagenet.get_config("default").to_dict()
    config["distill"].update(guidance=4.0, sigma=0.3, ratio=(0.5, 0.5))
    for mask in (config["distill"]["mask"], config["distill"]["auxiliary"]["mask"]):
        mask.update(schedule="cosine", min_ratio=0.02, max_ratio=0.98)
    return training_settings.distill_settings(config, network)


def conditions():
    """The generator's, the auxiliary's and the negative prompt's; each example has its own."""
    _, both = inputs({**SIZES, "num_tokens": 4}, 2)
    numbers = np.random.default_rng(5)

    def draw():
        return {
            name: jnp.asarray(numbers.normal(size=(B, *x.shape[1:])), jnp.float32)
            for name, x in both.items()
        }

    return [{**draw(), "micro": jnp.tile(both["micro"][:1], (B, 1))} for _ in range(3)]


def states():
    """Teacher, generator and auxiliary: one set of weights and two changes of it."""
    numbers = np.random.default_rng(6)
    first = random_state(single_depth=1)

    def changed():
        return {
            k: (x * (1 + 0.2 * numbers.normal(size=x.shape))).astype(np.float32)
            for k, x in first.items()
        }

    return [first, changed(), changed()]


def torch_step(teacher, generator, auxiliary, draws, every):
    """Leaves the gradients in the networks' parameters; gives the auxiliary's loss."""
    condition, fresh, negative = every

    def logits(network, tokens, condition, perturb=None):
        # The time is 0 to all of them.
        return network(*torch_inputs(SIZES, tokens.numpy(), condition), perturb=perturb)

    def one_step(start, noise, condition):
        return logits(generator, start, condition, lambda e: (1 - 0.3**2) ** 0.5 * e + 0.3 * noise)

    start, noise = draws.start("generator")
    assert ((start == CODES).sum(1) == L // 2).all()
    z = one_step(start, noise, condition)
    tokens, mask = draws.tokens("generator", z), draws.mask("generator")
    x_t = torch.where(mask, CODES, tokens)
    with torch.no_grad():
        conditional, unconditional = logits(teacher, x_t, condition), logits(teacher, x_t, negative)
        log_p = (unconditional + 4 * (conditional - unconditional)).log_softmax(-1)
        z_psi = logits(auxiliary, x_t, condition)
    z_psi.requires_grad_()
    divergence = (log_p.exp() * (log_p - z_psi.log_softmax(-1))).sum(-1)
    (g,) = torch.autograd.grad((mask / B * divergence).sum(), z_psi)
    z.backward(g)

    start, noise = draws.start("aux0")
    with torch.no_grad():
        tokens = draws.tokens("aux0", one_step(start, noise, fresh))
    mask = draws.mask("aux0")
    judged = logits(auxiliary, torch.where(mask, CODES, tokens), fresh)
    loss = torch.nn.functional.cross_entropy(judged[mask], tokens[mask], label_smoothing=0.1)
    loss.backward()
    return loss.item()


@pytest.mark.slow
def test_both_gradients_are_pytorchs_for_every_tensor():
    network = models.build(SIZES)
    settings, every = settings_of(network), conditions()
    condition, fresh, negative = every
    teacher, generator, auxiliary = (in_jax(SIZES, state) for state in states())
    state = distill_state.create_state(generator, keep_gradient(), keep_gradient())
    state = state.replace(auxiliary=auxiliary, step=jnp.int32(STEP))
    batch = distill_state.DistillBatch(
        seed=jnp.int32(SEED),
        index=jnp.asarray(INDEX),
        condition=condition,
        aux_condition=jax.tree.map(lambda x: x[None], fresh),
        null_condition=negative,
    )
    step = distill.make_step(
        network.apply, network.apply, keep_gradient(), keep_gradient(), settings
    )
    new, metrics = jax.jit(step)(state, teacher, batch)
    found = [layouts.to_state(table.entries(SIZES), g) for g in (new.generator_opt, new.aux_opt)]

    frozen, *trained = (in_torch(SIZES, state) for state in states())
    loss = torch_step(frozen, *trained, Draws(settings), every)
    assert float(metrics["aux_loss"]) == pytest.approx(loss, rel=1e-5)
    errors = {}
    for role, module, gradients in zip(("generator", "auxiliary"), trained, found, strict=True):
        for key, tensor in module.named_parameters():
            expected = tensor.grad.numpy()
            size, difference = np.linalg.norm(expected), np.linalg.norm(gradients[key] - expected)
            assert size > 1e-6, f"{role} {key}"
            errors[f"{role} {key}"] = difference / size
    worst = max(errors, key=errors.get)
    print(f"\nworst of {len(errors)} tensors {worst}, {errors[worst]:.1e}")
    assert errors[worst] < 1e-4, worst
