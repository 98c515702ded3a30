"""For tests and benchmarks: random weights of the feature network, and images it tells apart."""

import math

import jax
import numpy as np
import torch

from dimo_jax import bundles, models
from dimo_jax.convert.networks import inception, layouts


def config(divisor=1):
    return {"name": "inception", "num_logits": 1008, "divisor": divisor}


def random_params(divisor=1):
    """He-normal kernels and mild statistics: signals stay alive through all 94 units."""
    numbers = np.random.default_rng(0)
    centre = {"scale": 1.0, "var": 1.0, "mean": 0.0, "bias": 0.0}
    shapes = jax.eval_shape(models.build(config(divisor)).init, jax.random.key(0))

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            value = numbers.normal(size=leaf.shape) * math.sqrt(2 / math.prod(leaf.shape[:-1]))
        else:
            value = centre[name] + 0.1 * numbers.uniform(-1, 1, leaf.shape)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def save_bundle(path, divisor=1):
    """A bundle of the network, as dimo_jax.convert writes it."""
    params = random_params(divisor)
    return bundles.save(path, kind="features", model=config(divisor), params=params)


def save_torch(path, params):
    """The weights of the full network in the file that torch-fidelity reads."""
    state = layouts.to_state(inception.entries(), params)
    torch.save({k: torch.from_numpy(np.array(x)) for k, x in state.items()}, path)
    return path


def textured_images(num, side, seed=0):
    """Images of few waves and some noise: of white noise all features would be nearly the same."""
    numbers = np.random.default_rng(seed)
    coarse = torch.from_numpy(numbers.normal(size=(num, 3, 4, 4)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").numpy()
    noise = numbers.normal(size=smooth.shape) * 25 * numbers.uniform(size=(num, 1, 1, 1))
    pixels = (128 + 90 * smooth + noise).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
