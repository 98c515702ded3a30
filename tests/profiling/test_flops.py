"""The formulas against what XLA counts in the compiled networks."""

import jax
import jax.numpy as jnp
import pytest

from configs import imagenet
from dimo_jax import models
from dimo_jax.common.errors import InputError
from dimo_jax.profiling import flops

# Wide, so that the products are nearly all of the work; compiled, but never run.
SHARED = {
    "num_tokens": 256,
    "codebook_size": 700,
    "num_classes": 10,
    "width": 512,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 1280,
}
NETWORKS = {
    "maskgit": {"name": "maskgit", **SHARED, "dropout": 0.1, "predict_mask_id": True},
    "google_maskgit": {"name": "google_maskgit", **SHARED, "dropout": 0.1},
    # 3 heads of 170 in 512: less than the width.
    "halton": {"name": "halton", **SHARED, "heads": 3},
    "halton, merging": {"name": "halton", **SHARED, "proj": 2, "registers": 4},
}
TEXT = {"text_length": 20, "text_dim": 96, "pooled_dim": 64, "rope_dims": (16, 24, 24)}
TEXT |= {"name": "meissonic", "num_tokens": 64, "width": 512, "heads": 8, "mlp_dim": 1280}
TEXT |= {"depth": 1, "single_depth": 2}


def shapes(network, batch_size):
    params = jax.eval_shape(network.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((batch_size, network.num_tokens), jnp.int32)
    condition = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype), network.condition
    )
    return params, tokens, condition


@pytest.mark.parametrize("name", NETWORKS)
def test_a_formula_is_what_xla_counts(name):
    network = models.build(NETWORKS[name])
    given, found = shapes(network, 2), flops.forward(network.config)
    analysis = jax.jit(network.apply).lower(*given).compile().cost_analysis()
    # XLA also counts norms, softmax and activations: a little more, never less.
    assert 1 < analysis["flops"] / (2 * found) < 1.04
    # Without those the two are the same number, at any depth.
    assert flops.products(network.apply, *given) == 2 * found
    deep = models.build({**NETWORKS[name], "depth": 3})
    assert flops.products(deep.apply, *shapes(deep, 2)) == 2 * flops.forward(deep.config)


@pytest.mark.parametrize("merge", [True, False])
def test_the_formula_of_a_network_with_text_is_what_is_traced(merge):
    network = models.build({**TEXT, "merge": merge})
    assert flops.products(network.apply, *shapes(network, 2)) == 2 * flops.forward(network.config)


def test_the_published_256_px_model_has_the_operations_counted_by_hand():
    model = {
        "name": "maskgit", "num_tokens": 256, "codebook_size": 1024, "num_classes": 1000,
        "width": 768, "depth": 24, "heads": 16, "mlp_dim": 3072, "dropout": 0.1,
        "predict_mask_id": True,
    }  # fmt: skip
    # Per position 12 D^2 multiply-adds and 2 N D in each block, N = 257; the rest once.
    block = 257 * (12 * 768**2 + 2 * 257 * 768)
    rest = 2 * 257 * 768**2 + 256 * 768**2 + 256 * 768 * 1025
    assert flops.forward(model) == 2 * (24 * block + rest)


def test_convolutions_count_their_window_and_loops_are_refused():
    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def conv(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # 4 x 4 pixels of 5 channels, each from 3 x 3 x 3 numbers.
    assert flops.products(jax.jit(conv), image, kernel) == 2 * 2 * 4 * 4 * 5 * 27
    with pytest.raises(ValueError, match="scan"):
        flops.products(lambda x: jax.lax.scan(lambda c, y: (c, y @ y.T), 0, x), image[..., 0])


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, (4, 2, 4)),
        ({"guidance": 1.0}, (4, 1, 4)),
        ({"sample": "reuse"}, (3, 2, 3)),
        ({"sample": "reuse", "updates": 2}, (3, 2, 6)),
        ({"updates": 2}, (5, 2, 7)),
    ],
)
def test_a_step_costs_the_passes_of_its_docstring(changes, passes):
    config = imagenet.get_config("smoke").to_dict()
    for name, value in changes.items():
        section = config["distill"] if name == "guidance" else config["distill"]["auxiliary"]
        section[name] = value
    assert tuple(flops.distill_passes(config).values()) == passes
    model, teacher = NETWORKS["maskgit"], NETWORKS["google_maskgit"]
    trained, frozen = flops.forward(model), flops.forward(teacher)
    expected = (passes[0] + passes[2]) * trained + passes[1] * frozen
    assert flops.distill_step(config, model, teacher) == config["distill"]["batch_size"] * expected


def test_training_a_teacher_costs_three_passes_and_decoding_one_or_two_a_step():
    config, model = imagenet.get_config().to_dict(), NETWORKS["maskgit"]
    one = flops.forward(model)
    assert flops.pretrain_step(config, model) == 3 * 64 * one
    assert flops.decoding(model, 8, guided=False) == 8 * one
    assert flops.decoding(model, 8, guided=True) == 16 * one


def test_a_network_without_a_formula_is_named():
    with pytest.raises(InputError, match="'classifier'; there is one for google_maskgit, halton"):
        flops.forward({"name": "classifier"})
