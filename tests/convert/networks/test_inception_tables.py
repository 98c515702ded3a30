"""Inception from its published state dict."""

import functools
import pickle

import jax
import numpy as np
import pytest
import torch

from dimo_jax import models
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.convert import checkpoint_files, sources
from dimo_jax.convert.networks import inception, layouts

SMALL = {"name": "inception", "num_logits": 10, "divisor": 16}


@functools.cache
def like(divisor):
    config = {**SMALL, "divisor": divisor, "num_logits": 10 if divisor > 1 else 1008}
    return jax.eval_shape(models.build(config).init, jax.random.key(0))


@pytest.fixture(scope="module")
def params():
    numbers = np.random.default_rng(0)
    return jax.tree.map(lambda x: numbers.normal(size=x.shape).astype(np.float32), like(16))


@pytest.fixture(scope="module")
def state(params):
    """A state dict as PyTorch writes it, with the counters of newer files."""
    state = layouts.to_state(inception.entries(), params)
    tensors = {k: torch.from_numpy(x) for k, x in state.items()}
    counters = {k: k.replace("running_var", "num_batches_tracked") for k in state}
    return tensors | {v: torch.tensor(0) for k, v in counters.items() if v != k}


def convert(path):
    state = checkpoint_files.read(path)
    name = sources.recognise(state)
    return name, *sources.convert(state, sources.SOURCES[name], sources.Options())


def assert_converts(path, params):
    name, config, found = convert(path)
    assert (name, config) == ("inception", SMALL)
    assert trees.differences(found, like(16)) == []
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_the_tensors_are_those_of_the_description():
    shapes = layouts.state_shapes(inception.entries(), like(1))
    assert len(shapes) == 566 - 94
    described = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.conv.weight": (192, 80, 3, 3),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5b.branch_pool.bn.running_mean": (32,),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6b.branch7x7_3.conv.weight": (192, 128, 7, 1),
        "Mixed_6c.branch7x7dbl_4.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.bn.weight": (192,),
        "Mixed_7b.branch3x3_2b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch3x3dbl_1.conv.weight": (448, 2048, 1, 1),
        "Mixed_7c.branch3x3dbl_3b.bn.running_var": (384,),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {k: shapes[k] for k in described} == described


def test_names_and_axes_by_hand(params, state):
    unit, prefix = params["Mixed_6b"]["branch7x7_2"], "Mixed_6b.branch7x7_2"
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    for theirs, ours in names.items():
        np.testing.assert_array_equal(state[f"{prefix}.bn.{theirs}"].numpy(), unit["bn"][ours])
    weight, kernel = state[f"{prefix}.conv.weight"].numpy(), unit["conv"]["kernel"]
    assert weight.shape == (8, 8, 1, 7) and weight[3, 5, 0, 2] == kernel[0, 2, 5, 3]
    assert state["fc.weight"][4, 100] == params["fc"]["kernel"][100, 4]


def test_a_pth_becomes_the_parameters(params, state, tmp_path):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_converts(path, params)


def test_counters_and_data_parallel_do_not_matter(state, tmp_path):
    kept = {k: x for k, x in state.items() if "tracked" not in k}
    torch.save({f"module.{k}": x for k, x in kept.items()}, tmp_path / "weights.pth")
    found = checkpoint_files.read(tmp_path / "weights.pth")
    assert list(found) == list(kept) and sources.recognise(found) == "inception"


def test_the_pickle_of_a_jax_port_is_refused_with_the_file_that_has_its_numbers(params, tmp_path):
    path = tmp_path / "inception_v3_weights_fid.pickle"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(params, protocol))
        with pytest.raises(InputError) as error:
            checkpoint_files.read(path)
        assert str(error.value) == (
            f"{path} is a pickle of something else, expected a file of torch.save; of Inception "
            "give pt_inception-2015-12-05-6726825d.pth"
        )


def test_another_head_is_read_and_another_network_refused(state):
    arrays = {k: x.numpy() for k, x in state.items() if "tracked" not in k}
    head = {"fc.weight": np.zeros((1000, 128)), "fc.bias": np.zeros(1000)}
    assert inception.config_from(arrays | head) == {**SMALL, "num_logits": 1000}
    del arrays["fc.bias"]
    first, other = "Conv2d_1a_3x3.conv.weight", "Mixed_6a.branch3x3.conv.weight"
    arrays |= {"AuxLogits.fc.bias": np.zeros(3), other: np.zeros(1)}
    with pytest.raises(InputError) as error:
        layouts.to_params(inception.entries(), arrays, like(16))
    assert str(error.value) == (
        "fc.bias is missing; AuxLogits.fc.bias is unknown; "
        "Mixed_6a.branch3x3.conv.weight is (1,), expected (24, 18, 3, 3)"
    )
    for key, message in ((first, "is missing; the sizes"), ("fc.weight", "is missing")):
        with pytest.raises(InputError, match=f"{key} {message}"):
            inception.config_from({k: x for k, x in arrays.items() if k != key})
