"""What a step costs in network passes, counted in the compiled program."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from dimo_jax import models
from dimo_jax.method.dimo import distill, distill_state, generate
from tests.method.dimo.test_distill import BASE

pytestmark = pytest.mark.slow

# Wide enough that the products are nearly all of the work.
SIZES = {
    "name": "maskgit",
    "num_tokens": 16,
    "codebook_size": 30,
    "num_classes": 3,
    "width": 128,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 512,
    "dropout": 0.0,
    "predict_mask_id": False,
}
SIZE = 8


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        # Generator 3 (a backward pass is two forward ones), teacher 1, auxiliary 3: its forward
        # pass for the divergence serves its own loss.
        ({"aux_sample": "reuse"}, 7),
        # The teacher twice.
        ({"aux_sample": "reuse", "guidance": 2.0}, 8),
        # The auxiliary's own sample: one pass more of the generator, and one of its own.
        ({"guidance": 2.0}, 10),
        ({"aux_updates": 2}, 13),
        # A generator of two steps: its first one for each of its samples.
        ({"aux_sample": "reuse", "step_ratios": (0.5,)}, 8),
        ({"guidance": 2.0, "step_ratios": (0.5,)}, 12),
    ],
)
def test_a_step_costs_the_passes_it_says(changes, passes):
    changes, ratios = dict(changes), changes.get("step_ratios", ())
    changes.pop("step_ratios", None)
    network = models.build(SIZES)
    params = jax.eval_shape(network.init, jax.random.key(0))
    settings = dataclasses.replace(
        BASE,
        generator=generate.GeneratorSettings(16, 30, 30, 0.6, 0.6, 0.1, 1.0, step_ratios=ratios),
        aux=dataclasses.replace(BASE.aux, mask_id=30),
        **changes,
    )
    optimizer = optax.sgd(1.0)
    state = jax.eval_shape(lambda p: distill_state.create_state(p, optimizer, optimizer), params)
    number = jnp.zeros((SIZE,), jnp.int32)
    batch = distill_state.DistillBatch(
        jnp.int32(0), number, number, jnp.zeros((settings.aux_updates, SIZE), jnp.int32), number
    )
    step = distill.make_step(network.apply, network.apply, optimizer, optimizer, settings)
    tokens = jnp.zeros((SIZE, 16), jnp.int32)
    one = flops(lambda p: network.apply(p, tokens, number), params)
    assert flops(step, state, params, batch) / one == pytest.approx(passes, rel=0.06)
