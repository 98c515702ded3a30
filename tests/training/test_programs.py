"""The real training steps on meshes of 8 devices, against one device."""

import importlib
import re

import jax
import numpy as np
import optax
import pytest

from dimo_jax import models
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_tokenizer
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.conditions.prompts import PromptIds
from dimo_jax.data.examples import in_memory
from dimo_jax.parallel import mesh, sharding
from dimo_jax.training import batches, programs, settings

SMALL_TEXT = {
    "model.vocabulary": 31, "model.width": 32, "model.depth": 1, "model.single_depth": 1,
    "model.heads": 2, "model.rope_dims": (4, 6, 6), "model.mlp_dim": 64, "model.text_length": 8,
    "model.text_dim": 32, "model.pooled_dim": 32, "text_encoder.projection": 32,
    "text_encoder.text.vocabulary": 514, "text_encoder.text.context": 8,
    "text_encoder.text.width": 32, "text_encoder.text.heads": 2, "text_encoder.text.mlp_dim": 64,
    "pretrain.batch_size": 16, "pretrain.optimizer.warmup_steps": 0,
    "pretrain.condition_drop": 0.5, "pretrain.optimizer.beta1": 0.9,
}  # fmt: skip

# On one worker, which makes the fixtures once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("programs")]

NUM_TOKENS, CODES = 16, 30
MESHES = {"8x1": (8, 1), "4x2": (4, 2), "1x8": (1, 8)}
# Adam's first moment after one step is this share of the gradient.
SHARE = 1 - 0.9


def tiny(**changes):
    config = importlib.import_module("configs.imagenet").get_config("smoke")
    config.model.update(width=32, depth=2, heads=2, mlp_dim=64)
    config.data.num_classes = 6
    config.compute_dtype = "float32"
    config.distill.batch_size = config.pretrain.batch_size = 16
    for section in (config.distill.generator, config.distill.auxiliary, config.pretrain):
        section.optimizer.update(warmup_steps=0, clip_norm=0.0)
    config.mesh.min_shard_elements = 0
    config.update_from_flattened_dict(changes)
    return config.to_dict()


def layout_of(config, data, fsdp):
    section = {**config["mesh"], "data": data, "fsdp": fsdp}
    return sharding.layout(section, jax.devices()[: data * fsdp])


def network_of(config):
    return settings.network_of(config, NUM_TOKENS, CODES)


def start_of(network, seed):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: draw.normal(0, 0.2, x.shape).astype(x.dtype), shapes)


def distil(config, layout, num_steps=1):
    """The program, and host copies of its state and metrics after some steps."""
    network = network_of(config)
    teacher = start_of(network, 1)
    program = programs.distill_program(config, network, network, teacher, layout)
    state = program.create(mesh.put(start_of(network, 2), layout.of(program.params)))
    fixed = mesh.put(teacher, layout.of(program.teacher))
    batch_of = batches.of_conditions(config, LabelConditions(network.num_classes), layout)
    for number in range(num_steps):
        state, metrics = program.step(state, fixed, batch_of(number))
    for name, leaf in trees.named_leaves(state).items():
        expected = trees.named_leaves(program.state)[name].sharding
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), name
    return program, mesh.gather(state), mesh.gather(metrics)


def compare(found, expected, tolerance):
    for name, want in trees.named_leaves(expected).items():
        got = trees.named_leaves(found)[name]
        np.testing.assert_allclose(
            got, want, atol=tolerance * max(np.abs(want).max(), 1e-3), err_msg=name
        )


@pytest.fixture(scope="module")
def one_device():
    config = tiny()
    return distil(config, layout_of(config, 1, 1))


@pytest.mark.parametrize("shape", MESHES)
def test_a_mesh_gives_the_gradients_of_one_device(one_device, shape):
    config = tiny()
    program, state, metrics = distil(config, layout_of(config, *MESHES[shape]))
    _, expected, expected_metrics = one_device
    for name in ("generator_opt", "aux_opt"):
        moments, wanted = (
            jax.tree.map(lambda m: m / SHARE, optax.tree.get(getattr(s, name), "mu"))
            for s in (state, expected)
        )
        compare(moments, wanted, 1e-5)
    for name, value in expected_metrics.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert program.step._cache_size() == 1


def test_frozen_leaves_never_move_and_nothing_large_is_whole(one_device):
    config = tiny()
    layout = layout_of(config, 1, 8)
    program, state, _ = distil(config, layout, num_steps=2)
    start = trees.named_leaves(start_of(network_of(config), 2))
    for network in ("generator", "auxiliary", "ema"):
        leaves = trees.named_leaves(getattr(state, network))
        for name in ("token_embedding", "position_embedding", "output_bias"):
            np.testing.assert_array_equal(leaves[name], start[name])
        assert (leaves["block_0/mlp_in/kernel"] != start["block_0/mlp_in/kernel"]).any()
    whole = [
        name
        for name, leaf in trees.named_leaves(program.state).items()
        if leaf.ndim > 1 and "fsdp" not in leaf.sharding.spec
    ]
    # 17 positions of 39 ids: no dimension of that table divides by 8.
    assert whole and all(name.endswith(("output_bias", "/bias")) for name in whole), whole
    assert program.step._cache_size() == 1


def test_the_options_of_a_run_change_nothing_on_a_mesh(one_device):
    config = tiny(
        **{
            "distill.parts": 2,
            "remat": "full",
            "scan_layers": True,
            "distill.generator.optimizer.name": "adam",
        }
    )
    _, state, _ = distil(config, layout_of(config, 2, 2))
    compare(
        optax.tree.get(state.generator_opt, "mu"),
        optax.tree.get(one_device[1].generator_opt, "mu"),
        1e-5,
    )


def test_a_teacher_kept_in_bfloat16_is_half_as_large():
    config = tiny(**{"teacher.dtype": "bfloat16"})
    network = network_of(config)
    program = programs.distill_program(
        config, network, network, start_of(network, 1), layout_of(config, 1, 1)
    )
    assert {str(x.dtype) for x in jax.tree.leaves(program.teacher)} == {"bfloat16"}
    assert {str(x.dtype) for x in jax.tree.leaves(program.state.generator)} == {"float32"}


def test_as_many_updates_as_examples_are_told_apart():
    config = tiny(**{"distill.batch_size": 2, "distill.auxiliary.updates": 2})
    network = network_of(config)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    layout = layout_of(config, 2, 1)
    batch = programs.distill_program(config, network, network, shapes, layout).batch
    assert batch.aux_condition.sharding == layout.stacked
    assert batch.condition.sharding == batch.index.sharding == layout.batch
    assert batch.seed.sharding == layout.whole


def test_a_batch_that_does_not_divide_stops_before_anything_is_compiled():
    config = tiny(**{"distill.batch_size": 12, "pretrain.batch_size": 12})
    layout, network = layout_of(config, 4, 2), network_of(config)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(InputError, match="config.distill.batch_size=12.*8 or 16"):
        programs.distill_program(config, network, network, shapes, layout)
    with pytest.raises(InputError, match="config.pretrain.batch_size=12"):
        programs.pretrain_program(config, network, layout)


def test_the_teachers_training_is_the_same_on_a_mesh():
    config = tiny()
    tokens = np.random.default_rng(0).integers(0, CODES, (40, NUM_TOKENS)).astype(np.int32)
    examples = in_memory(tokens, np.arange(40, dtype=np.int32) % 6)
    found = []
    for shape in ((1, 1), (2, 4)):
        layout, network = layout_of(config, *shape), network_of(config)
        program = programs.pretrain_program(config, network, layout)
        state = program.create(mesh.put(start_of(network, 2), layout.of(program.params)))
        batch_of = batches.of_data(config, "pretrain", layout, examples, LabelConditions(6))
        state, _ = program.step(state, batch_of(3))
        found.append(optax.tree.get(mesh.gather(state).opt_state, "mu"))
    compare(*found, 1e-5)


def test_a_teacher_and_its_text_tower_are_trained_alike_on_a_mesh():
    config = importlib.import_module("configs.emoji").get_config("text")
    config.mesh.min_shard_elements = 0
    config.update_from_flattened_dict(SMALL_TEXT)
    config = config.to_dict()
    sizes = (NUM_TOKENS, CODES)
    tokens = np.random.default_rng(0).integers(0, CODES, (40, NUM_TOKENS)).astype(np.int32)
    examples = in_memory(tokens, np.arange(40, dtype=np.int32))
    texts = PromptIds([f"emoji {x}" for x in range(40)], clip_tokenizer.open_clip([], 8), "")
    found = []
    for shape in ((1, 1), (2, 4)):
        layout, network = layout_of(config, *shape), settings.network_of(config, *sizes)
        joint = programs.pretrained_network(config, network)
        program = programs.pretrain_program(config, network, layout)
        batch_of = batches.of_data(config, "pretrain", layout, examples, texts)
        state = program.create(mesh.put(start_of(joint, 2), layout.of(program.params)))
        state, _ = program.step(state, batch_of(3))
        found.append(optax.tree.get(mesh.gather(state).opt_state, "mu"))
    compare(*found, 1e-4)
    assert np.abs(found[0]["text_encoder"]["text"]["token_embedding"]).max() > 0


def test_only_transformers_are_told_how_to_compute():
    network = models.build({"name": "exact_posterior", "num_tokens": 2, "codebook_size": 4})
    config = tiny()
    again = settings.on_mesh(network, config, layout_of(config, 1, 1))
    assert again.config == network.config


def test_a_blocks_gradient_is_not_computed_again_from_all_blocks_above_it():
    """On CPUs the loop over [B, N, D] with the most arguments has as many at any depth."""
    most = []
    for depth in (2, 5):
        config = tiny(**{"model.depth": depth})
        program = programs.pretrain_program(config, network_of(config), layout_of(config, 1, 1))
        text = program.lower().compile().as_text()
        stream = re.findall(r"= f32\[(?:16,17|272),32\]\S* fusion\(([^)]*)\), kind=kLoop", text)
        most.append(max(arguments.count("%") for arguments in stream))
    assert most[0] == most[1]
