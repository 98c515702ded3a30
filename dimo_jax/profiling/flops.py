"""Floating-point operations, counted in what a function traces to.

Counted are matrix products and convolutions, a product and a sum as two operations. Norms, softmax,
activations and optimizers are not: they are few, and no device's peak is stated for them. A
gradient that nothing needs, such as a frozen parameter's, is no operation.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dimo_jax import models
from dimo_jax.models import Network
from dimo_jax.parallel.sharding import Layout
from dimo_jax.training import programs, settings

# How a run is computed while it is counted. Without remat, so that MFU says how fast the model is
# trained and not how busy the device is; without kernels that a trace shows as one call; with one
# trace for all layers, which takes seconds where 24 take a minute.
_COUNTED = {"remat": "none", "attention": "xla", "scan_layers": True}


def counted(network: Network) -> tuple[Network, Any]:
    """Return a network as it is counted, and the shapes of its parameters.

    Args:
        network: however it is computed.
    """
    plain = models.build(network.config, models.Compute(**_COUNTED))
    return plain, jax.eval_shape(plain.init, jax.random.key(0))


def distill_step(config: Mapping[str, Any], network: Network, layout: Layout) -> int:
    """Count the operations of one step of the distillation, on all devices together.

    Args:
        config: a complete config.
        network: the teacher's.
        layout: the mesh and its rules.
    """
    # In bfloat16 a bias's gradient is a product; in parts a mixture is computed twice.
    mixture = {**config["distill"]["mixture"], "parts": 1}
    section = {**config["distill"], "mixture": mixture}
    config = {**config, **_COUNTED, "compute_dtype": "float32", "distill": section}
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    generator = settings.generator_network(network, config)
    program = programs.distill_program(config, generator, network, shapes, layout)
    return products(program.step, program.state, program.teacher, program.batch)


def products(function: Callable[..., Any], *args: Any, while_length: int | None = None) -> int:
    """Count the operations of the matrix products and convolutions that a function traces to.

    Nothing is computed and no array is made. A scan counts as often as it runs, a branch as the
    dearest of its kind.

    Args:
        function: of arrays.
        *args: its arguments, arrays or shapes.
        while_length: how often each `while` with products in it runs, which its trace does not say.

    Raises:
        ValueError: there is such a loop, and `while_length` is not given.
    """
    # Not as part of another function, where options of the compiler are refused.
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    return _in_jaxpr(jitted.trace(*args).jaxpr.jaxpr, while_length)


def _in_jaxpr(jaxpr: Any, while_length: int | None) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            per_output = math.prod(shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * per_output
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * (kernel.size // outputs)
        inner = [
            _in_jaxpr(getattr(value, "jaxpr", value), while_length)
            for value in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr)
            if _is_jaxpr(value)
        ]
        if name == "while" and any(inner) and while_length is None:
            raise ValueError("a trace does not say how often a `while` runs; give while_length")
        length = {"scan": params.get("length"), "while": while_length or 0}.get(name, 1)
        total += length * (max(inner) if name == "cond" else sum(inner))
    return total


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
