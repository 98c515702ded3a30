"""What is counted against sums worked out by hand, and against what XLA counts."""

import functools

import jax
import jax.numpy as jnp
import pytest

from configs import imagenet
from dimo_jax import models
from dimo_jax.parallel import sharding
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
TEXT = {"text_length": 20, "text_dim": 96, "pooled_dim": 64, "rope_dims": (16, 24, 24)}
TEXT |= {"name": "meissonic", "num_tokens": 64, "codebook_size": 700, "width": 512, "heads": 8}
TEXT |= {"mlp_dim": 1280, "depth": 1, "single_depth": 2}
# Products and sums of a block, and of all else, for one example: the positions times what each is
# multiplied with. Attention: four projections, then each position with each other one, twice.
NETWORKS = {
    "maskgit": (
        {"name": "maskgit", **SHARED, "dropout": 0.1, "predict_mask_id": True},
        257 * (4 * 512**2 + 2 * 257 * 512 + 2 * 512 * 1280),
        257 * 2 * 512**2 + 256 * (512**2 + 512 * 701),
    ),
    "google_maskgit": (
        {"name": "google_maskgit", **SHARED, "dropout": 0.1},
        257 * (4 * 512**2 + 2 * 257 * 512 + 2 * 512 * 1280),
        256 * (512**2 + 512 * 700),
    ),
    # 3 heads of 170 in 512: less than the width. The class modulates each block six times.
    "halton": (
        {"name": "halton", **SHARED, "heads": 3},
        257 * (4 * 512 * 510 + 2 * 257 * 510 + 3 * 512 * 1280) + 512 * 6 * 512,
        512 * 2 * 512 + 256 * 512 * 701,
    ),
    # Four tokens in one position, and four registers.
    "halton, merging": (
        {"name": "halton", **SHARED, "proj": 2, "registers": 4},
        68 * (4 * 512 * 512 + 2 * 68 * 512 + 3 * 512 * 1280) + 512 * 6 * 512,
        2 * 256 * 512**2 + 512 * 2 * 512 + 256 * 512 * 701,
    ),
}


def shapes(network, batch_size):
    tokens = jax.ShapeDtypeStruct((batch_size, network.num_tokens), jnp.int32)
    condition = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype), network.condition
    )
    return tokens, condition


def forward(config, batch_size=2):
    network, params = flops.counted(models.build(config))
    return flops.products(network.apply, params, *shapes(network, batch_size))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_forward_pass_has_the_operations_counted_by_hand_and_by_xla(name):
    config, block, rest = NETWORKS[name]
    assert forward(config) == 2 * 2 * (block + rest)
    assert forward({**config, "depth": 3}) == 2 * 2 * (3 * block + rest)
    network = models.build(config)
    params = jax.eval_shape(network.init, jax.random.key(0))
    analysis = jax.jit(network.apply).lower(params, *shapes(network, 2)).compile().cost_analysis()
    # XLA also counts norms, softmax and activations: a little more, never less.
    assert 1 < analysis["flops"] / (2 * 2 * (block + rest)) < 1.04


@pytest.mark.parametrize("merge", [True, False])
def test_a_network_with_text_has_the_operations_counted_by_hand(merge):
    inside = 16 if merge else 64
    positions = inside + 20
    attention = positions * (4 * 512**2 + 2 * positions * 512)
    # The streams' feed-forwards; six modulations of each of the two, from a vector.
    double = attention + positions * 2 * 512 * 1280 + 2 * 512 * 6 * 512
    # No output of the attention's own: one layer follows it and the feed-forward together.
    single = attention - positions * 512**2 + 512 * 3 * 512
    single += positions * (512 * 1280 + (512 + 1280) * 512)
    ends = 64 * (2 * 512**2 + 512 * 700) + (2 * 64 * 512**2 if merge else 0)
    ends += inside * 2 * 512**2 + 20 * 96 * 512 + 512 * 2 * 512
    # A time of 256 numbers; the pooled text of 64 with five sizes of 256 numbers.
    vector = 512 * (256 + 512) + 512 * (64 + 5 * 256 + 512)
    assert forward({**TEXT, "merge": merge}) == 2 * 2 * (double + 2 * single + ends + vector)


def test_the_published_256_px_model_has_the_operations_counted_by_hand():
    model = {
        "name": "maskgit", "num_tokens": 256, "codebook_size": 1024, "num_classes": 1000,
        "width": 768, "depth": 24, "heads": 16, "mlp_dim": 3072, "dropout": 0.1,
        "predict_mask_id": True,
    }  # fmt: skip
    # Per position 12 D^2 multiply-adds and 2 N D in each block, N = 257; the rest once.
    block = 257 * (12 * 768**2 + 2 * 257 * 768)
    rest = 2 * 257 * 768**2 + 256 * 768**2 + 256 * 768 * 1025
    assert forward(model, 1) == 2 * (24 * block + rest)


def test_how_a_run_computes_changes_no_count():
    """What is computed twice to save memory counts once; a kernel of its own, as its products."""
    config = NETWORKS["maskgit"][0]
    compute = models.Compute(remat="full", attention="cudnn", dtype="bfloat16")
    network, params = flops.counted(models.build(config, compute))
    given = (params, *shapes(network, 2))

    def gradient(apply):
        return jax.grad(lambda *x: apply(*x).sum())

    assert flops.products(gradient(network.apply), *given) == 3 * forward(config)
    again = models.build(config, models.Compute(remat="full")).apply
    assert flops.products(gradient(again), *given) > 3.5 * forward(config)


def test_convolutions_count_their_window():
    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def conv(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # 4 x 4 pixels of 5 channels, each from 3 x 3 x 3 numbers.
    assert flops.products(jax.jit(conv), image, kernel) == 2 * 2 * 4 * 4 * 5 * 27


def test_a_loop_counts_as_often_as_it_runs():
    rows, matrix = jnp.zeros((7, 3)), jnp.zeros((3, 3))
    once = 2 * 3 * 3

    def scan(x, m):
        return jax.lax.scan(lambda c, row: (m @ (c + row), 0), x[0], x)[0]

    def loop(x, m, steps):
        return jax.lax.fori_loop(0, steps, lambda _, c: scan(c, m)[None] * c, x)

    assert flops.products(scan, rows, matrix) == 7 * once
    assert flops.products(loop, rows, matrix, 5, while_length=5) == 5 * 7 * once
    with pytest.raises(ValueError, match="how often a `while` runs; give while_length"):
        flops.products(loop, rows, matrix, 5)
    # Of sums alone it may run as it likes.
    assert flops.products(lambda x, n: jax.lax.fori_loop(0, n, jnp.add, x), rows, 5) == 0
    dear, cheap = functools.partial(scan, rows), lambda m: m[0]
    assert flops.products(lambda m, b: jax.lax.cond(b, dear, cheap, m), matrix, True) == 7 * once


# 65 positions of width 64, two blocks with 128 inside, and 1025 outputs, of which the token table
# is frozen: no backward pass has its gradient.
BLOCK = 65 * (4 * 64**2 + 2 * 65 * 64 + 2 * 64 * 128)
PASS = 2 * 16 * (2 * BLOCK + 65 * 2 * 64**2 + 64 * (64**2 + 64 * 1025))
TABLE = 2 * 16 * 64 * 64 * 1025


def step(changes=(), frozen=True, **others):
    config = {**imagenet.get_config("smoke").to_dict(), **others}
    section = config["distill"] = {**config["distill"], "batch_size": 16, **dict(changes)}
    for part in ("generator", "auxiliary"):
        if not frozen:
            section[part]["optimizer"]["frozen"] = ()
    sizes = {"num_tokens": 64, "codebook_size": 1024, "num_classes": 1000}
    network = models.build({**config["model"], **sizes})
    return flops.distill_step(config, network, sharding.layout(config["mesh"]))


@pytest.mark.parametrize(
    ("guidance", "sample", "updates", "passes", "backward"),
    [
        (2.0, "fresh", 1, 4 + 2 + 4, 2),
        (1.0, "reuse", 1, 3 + 1 + 3, 2),
        (2.0, "reuse", 2, 3 + 2 + 6, 3),
        (2.0, "fresh", 2, 5 + 2 + 7, 3),
    ],
)
def test_a_step_costs_the_passes_of_its_docstring(guidance, sample, updates, passes, backward):
    auxiliary = imagenet.get_config("smoke").to_dict()["distill"]["auxiliary"]
    auxiliary.update(sample=sample, updates=updates)
    found = step({"guidance": guidance, "auxiliary": auxiliary})
    assert found == passes * PASS - backward * TABLE


def test_parts_and_remat_cost_a_step_nothing_and_what_is_not_frozen_its_gradient():
    assert step({"parts": 2}, remat="full", frozen=False) == 10 * PASS
