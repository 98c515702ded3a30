"""di4c's tiny student and teacher, and what the original modules gave with their weights.

golden/di4c_tiny.npz holds inputs, recorded random draws and outputs; the weights are functions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dimo_jax import models
from dimo_jax.convert.networks import layouts, maskgit
from tests.helpers import ROOT
from tests.helpers.golden import golden_state

TEACHER = {
    "name": "maskgit",
    "num_tokens": 16,
    "codebook_size": 32,
    "num_classes": 10,
    "width": 64,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 128,
    "dropout": 0.0,
    "predict_mask_id": True,
}
STUDENT = {**TEACHER, "mixture_dim": 512}


@functools.cache
def recorded():
    with np.load(ROOT / "tests" / "golden" / "di4c_tiny.npz") as file:
        return {key: file[key] for key in file.files}


def case(name):
    """{array: value} of one of its parts, integers as int32."""
    found = {
        k.removeprefix(f"{name}/"): x for k, x in recorded().items() if k.startswith(f"{name}/")
    }
    return {k: x.astype(np.int32) if x.dtype == np.int16 else x for k, x in found.items()}


@functools.cache
def network(config_name):
    """(network, its parameters, its state dict) of "teacher" or "student"."""
    built = models.build({"teacher": TEACHER, "student": STUDENT}[config_name])
    like = jax.eval_shape(built.init, jax.random.key(0))
    table = maskgit.entries(built.config)
    state = golden_state(layouts.state_shapes(table, like))
    if config_name == "student":
        state = {
            k: x * np.float32(4 if "mha.out_proj.weight" in k else 1) for k, x in state.items()
        }
    return built, jax.tree.map(jnp.asarray, layouts.to_params(table, state, like)), state


def labels(found):
    """Labels with the null class where the condition is dropped."""
    return np.where(found["drop"], TEACHER["num_classes"], found["labels"]).astype(np.int32)
