"""Di4C's training step as a program on a mesh, and what its configs and messages say."""

import importlib

import jax
import numpy as np
import pytest

from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.config import stage_settings, validation
from dimo_jax.data import examples
from dimo_jax.parallel import mesh, sharding
from dimo_jax.samplers import of_generator
from dimo_jax.samplers.maskgit import MaskGitSettings
from dimo_jax.training import batches, load_models, programs, settings

SMALL = {
    **{"model.width": 16, "model.depth": 1, "model.heads": 2, "model.mlp_dim": 16},
    **{"distill.batch_size": 8, "distill.mixture.replicas": 4, "distill.mixture.width": 8},
    **{"distill.generator.optimizer.warmup_steps": 0, "mesh.min_shard_elements": 0},
    "fast_compile": True,
}


def config_of(name="digits", **changes):
    config = importlib.import_module(f"configs.{name}").get_config("di4c")
    config.update_from_flattened_dict({**(SMALL if name == "digits" else {}), **changes})
    return config.to_dict()


def trained(config, devices, num_steps=2):
    """State and metrics on the host after some steps of random tokens."""
    layout = sharding.layout({**config["mesh"], "data": devices}, jax.devices()[:devices])
    teacher_network = settings.network_of(config, 6, 17)
    network = settings.generator_network(teacher_network, config)
    shapes = jax.eval_shape(teacher_network.init, jax.random.key(0))
    draw = np.random.default_rng(1)
    teacher = jax.tree.map(lambda x: draw.normal(0, 0.3, x.shape).astype(x.dtype), shapes)
    program = programs.distill_program(config, network, teacher_network, teacher, layout)
    start = load_models.start_of(network, teacher, seed=3)
    state = program.create(mesh.put(start, layout.of(program.params)))
    tokens = draw.integers(17, size=(20, 6), dtype=np.int32)
    some = examples.in_memory(tokens, np.arange(20, dtype=np.int32) % 10)
    batch_of = batches.of_data(config, "distill", layout, some, LabelConditions(10))
    fixed = mesh.put(teacher, layout.of(program.teacher))
    for number in range(num_steps):
        state, metrics = program.step(state, fixed, batch_of(number))
    return start, mesh.gather(state), mesh.gather(metrics)


@pytest.fixture(scope="module")
def one_device():
    return trained(config_of(), 1)


def test_the_student_starts_as_its_teacher_and_all_of_it_learns(one_device):
    start, state, metrics = one_device
    first, found = trees.named_leaves(start), trees.named_leaves(state.generator)
    assert {name.split("/")[0] for name in found if "mixture" in name} == {
        "mixture_in",
        "mixture_out",
    }
    still = [name for name, x in found.items() if (x == first[name]).all()]
    assert not [name for name in still if not name.endswith("key/bias")], still
    assert all(np.isfinite(x) for x in metrics.values())
    parts = ("distillation_loss", "data_loss", "consistency_loss")
    assert metrics["generator_loss"] == pytest.approx(sum(metrics[x] for x in parts), rel=1e-5)


@pytest.mark.slow
def test_devices_and_parts_change_nothing(one_device):
    config = config_of(**{"distill.parts": 2, "distill.mixture.parts": 2})
    _, state, metrics = trained(config, 4)
    _, expected, expected_metrics = one_device
    for name, value in expected_metrics.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
    # Adam divides by the root of a gradient's square, so that one of 0 moves by its noise.
    for name, want in trees.named_leaves(expected.generator).items():
        got = trees.named_leaves(state.generator)[name]
        if not name.endswith("key/bias"):
            np.testing.assert_allclose(got, want, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("name", ["digits", "imagenet"])
def test_the_shipped_configs_are_valid_and_sample_in_several_steps(name):
    config = config_of(name)
    validation.validate(config, starts=False)
    network = settings.generator_network(settings.network_of(config, 16, 17), config)
    entries = settings.samplers_of(config)
    chosen = [of_generator(network, entry) for entry in entries]
    assert all(isinstance(x, MaskGitSettings) and x.counts == "differences" for x in chosen)
    assert [x.num_steps for x in chosen] == list(config["distill"]["mixture"]["steps"])
    assert entries[0] == settings.sampler_of(config)


def test_how_it_is_sampled_and_in_what_parts_is_no_other_training():
    made = stage_settings(config_of(), "distill")
    changes = {"distill.mixture.parts": 2, "distill.mixture.steps": (3,)}
    assert stage_settings(config_of(**changes), "distill") == made
    assert stage_settings(config_of(**{"distill.mixture.delta": 0.1}), "distill") != made
    evaluated = stage_settings(config_of(), "evaluation")
    assert stage_settings(config_of(**changes), "evaluation") != evaluated
    plain = importlib.import_module("configs.digits").get_config().to_dict()
    assert not [x for x in stage_settings(plain, "distill") if "mixture" in x or "method" in x]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.mixture.parts": 3}, "replicas is 4, not divisible by .*parts 3"),
        ({"data.name": "labels"}, "learns from pictures by class, and config.data.name is labels"),
        ({"distill.mask.schedule": "linear"}, "config.distill.mask is linear from 0.0 to 1.0"),
        ({"distill.mixture.delta": 1.0}, "config.distill.mixture.delta is 1.0; it must be"),
        ({"distill.mixture.replicas": 1}, "config.distill.mixture.replicas is 1; it must be"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        validation.validate(config_of(**changes))
