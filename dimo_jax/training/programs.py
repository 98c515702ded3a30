"""The two training steps as programs on a mesh: what runs, what is planned and what is timed.

A program needs shapes only. The trainings feed it arrays, `plan` compiles it for machines that are
not there, `benchmark` times it: all three look at the same one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dimo_jax import config as configs
from dimo_jax.common import trees
from dimo_jax.conditions import labels, prompts, text_encoder
from dimo_jax.config import mixture
from dimo_jax.method.dimo import distill, distill_state
from dimo_jax.method.masked import pretrain
from dimo_jax.method.mixture import step as mixture_step
from dimo_jax.models import Network, joined
from dimo_jax.parallel import mesh
from dimo_jax.parallel.sharding import Layout
from dimo_jax.training import settings

Config = Mapping[str, Any]
# What a run is conditioned on. Both number their examples: classes, or prompts of a list.
Conditions = labels.LabelConditions | prompts.PromptConditions
# The same for a teacher that is trained; its text tower is trained with it.
DataConditions = labels.LabelConditions | prompts.PromptIds


@dataclasses.dataclass(frozen=True)
class Program:
    """One training step, jitted for a mesh.

    Attributes:
        name: of the stage and of its section in the config.
        create: params -> the state of step 0, jitted, born sharded.
        step: (state, teacher, batch) -> (state, metrics), jitted, donating the state; without
            the teacher where there is none.
        params: shapes, dtypes and shardings of what `create` takes.
        state: those of the state.
        teacher: those of the frozen teacher; None without one.
        batch: those of a batch.
        layout: the mesh and its rules.
    """

    name: str
    create: Callable[[Any], Any]
    step: Any
    params: Any
    state: Any
    teacher: Any
    batch: Any
    layout: Layout

    def lower(self) -> Any:
        """Return the step lowered for its mesh: .compile() gives the program that would run."""
        fixed = () if self.teacher is None else (self.teacher,)
        return self.step.lower(self.state, *fixed, self.batch)


def pretrained_network(config: Config, network: Network, layout: Layout | None = None) -> Network:
    """Return what the teacher's own training trains: with text, the network and its text tower.

    Args:
        config: a complete config.
        network: the teacher's.
        layout: of the mesh that parameters are sharded over; None where they are replicated.

    Raises:
        InputError: the sizes of the tower are wrong.
    """
    if not configs.takes_text(config):
        return network
    encoder = text_encoder.encoder_network(config)
    micro = config["prompts"]["micro_conditions"]
    return joined.join(network, encoder, micro, settings.compute_of(config, layout).gather)


def pretrain_program(config: Config, network: Network, layout: Layout) -> Program:
    """Return the teacher's own training step.

    Args:
        config: a complete config.
        network: the teacher's.
        layout: the mesh and its rules.

    Raises:
        InputError: if the batch does not divide, or a leaf is covered by no rule.
    """
    section, size = config["pretrain"], config["pretrain"]["batch_size"]
    mesh.check_batch("config.pretrain.batch_size", size, section["parts"], layout.mesh)
    network = pretrained_network(config, settings.on_mesh(network, config, layout), layout)
    params = jax.eval_shape(network.init, jax.random.key(0))
    optimizer, rate = settings.optimizer_of(config, "pretrain", section["num_steps"], params)
    step = pretrain.make_step(
        _frozen(network.apply, section),
        optimizer,
        settings.denoise_settings(section, network.mask_id),
        dropout=section["dropout"],
        ema_decay=section["ema_decay"],
        ema_warmup=section["ema_warmup"],
        parts=section["parts"],
        loss_bins=config["logging"]["loss_bins"],
    )
    return _program(
        "pretrain",
        config,
        layout,
        lambda given: pretrain.create_state(given, optimizer),
        _with_rates(step, {"teacher_learning_rate": rate}),
        params,
        None,
        _abstract_batch(_data_batch(network, size), layout),
    )


def distill_program(
    config: Config,
    network: Network,
    teacher_network: Network,
    teacher_params: Any,
    layout: Layout,
) -> Program:
    """Return the distillation's step, of the method that the config names.

    Args:
        config: a complete config.
        network: of generator and auxiliary; for a mixture that of settings.generator_network.
        teacher_network: the teacher's network, usually the same.
        teacher_params: its parameters, or their shapes.
        layout: the mesh and its rules.

    Raises:
        InputError: if the batch does not divide, or a leaf is covered by no rule.
    """
    section, size = config["distill"], config["distill"]["batch_size"]
    mesh.check_batch("config.distill.batch_size", size, section["parts"], layout.mesh)
    num_steps, updates = section["num_steps"], section["auxiliary"]["updates"]
    network = settings.on_mesh(network, config, layout)
    teacher_network = settings.on_mesh(teacher_network, config, layout)
    params = jax.eval_shape(network.init, jax.random.key(0))
    teacher = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), config["teacher"]["dtype"]), teacher_params
    )
    if mixture.is_chosen(config):
        return _mixture_program(config, network, teacher_network, params, teacher, layout)
    generator, generator_rate = settings.optimizer_of(
        config, "distill.generator", num_steps, params
    )
    auxiliary, aux_rate = settings.optimizer_of(
        config, "distill.auxiliary", num_steps * updates, params
    )
    step = distill.make_step(
        _frozen(network.apply, section["generator"]),
        teacher_network.apply,
        generator,
        auxiliary,
        settings.distill_settings(config, network),
        apply_auxiliary=_frozen(network.apply, section["auxiliary"]),
    )
    rates = {
        "generator_learning_rate": generator_rate,
        "aux_learning_rate": lambda number: aux_rate(number * updates),
    }
    batch = _distill_batch(config, network)
    return _program(
        "distill",
        config,
        layout,
        lambda given: distill_state.create_state(given, generator, auxiliary),
        _with_rates(step, rates),
        params,
        teacher,
        _abstract_batch(batch, layout),
    )


def _mixture_program(
    config: Config,
    network: Network,
    teacher_network: Network,
    params: Any,
    teacher: Any,
    layout: Layout,
) -> Program:
    """Return the Di4C step, of networks as they are computed on the mesh."""
    section = config["distill"]
    optimizer, rate = settings.optimizer_of(
        config, "distill.generator", section["num_steps"], params
    )
    mixture = mixture_step.make_step(
        network.apply,
        teacher_network.apply,
        optimizer,
        settings.mixture_settings(config, network),
        _frozen(network.apply, section["generator"]),
    )
    return _program(
        "distill",
        config,
        layout,
        lambda given: mixture_step.create_state(given, optimizer),
        _with_rates(mixture, {"generator_learning_rate": rate}),
        params,
        teacher,
        _abstract_batch(_data_batch(network, section["batch_size"]), layout),
    )


def _data_batch(network: Network, size: int) -> pretrain.PretrainBatch:
    """Return a batch of data tokens, all 0."""
    number = jnp.zeros((size,), jnp.int32)
    tokens = jnp.zeros((size, network.num_tokens), jnp.int32)
    condition = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), network.condition)
    return pretrain.PretrainBatch(jnp.int32(0), number, tokens, condition, condition)


def _distill_batch(config: Config, network: Network) -> distill_state.DistillBatch:
    """Return the shapes of a step's batch."""
    size, updates = config["distill"]["batch_size"], fresh_updates(config)

    def of(*leading: int) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype), network.condition
        )

    number = jax.ShapeDtypeStruct((size,), jnp.int32)
    several = of(updates, size) if updates else None
    return distill_state.DistillBatch(
        jax.ShapeDtypeStruct((), jnp.int32), number, of(size), several, of(size)
    )


def fresh_updates(config: Config) -> int:
    """Update of the auxiliary in a step that have conditions of their own."""
    auxiliary = config["distill"]["auxiliary"]
    return auxiliary["updates"] if auxiliary["sample"] == "fresh" else 0


def _program(
    name: str,
    config: Config,
    layout: Layout,
    create: Callable[[Any], Any],
    step: Callable[..., Any],
    params: Any,
    teacher: Any,
    batch: Any,
) -> Program:
    state = layout.abstract(jax.eval_shape(create, params))
    placed = jax.tree.map(lambda x: x.sharding, state)
    return Program(
        name,
        jax.jit(create, out_shardings=placed),
        jax.jit(
            step,
            out_shardings=(placed, layout.whole),
            donate_argnums=0,
            compiler_options=_options(config, layout),
        ),
        layout.abstract(params),
        state,
        None if teacher is None else layout.abstract(teacher),
        batch,
        layout,
    )


def _frozen(apply: Callable[..., Any], section: Config) -> Callable[..., Any]:
    """Return the network without a gradient for what its optimizer leaves alone.

    That costs nothing.
    """
    patterns = section["optimizer"]["frozen"]

    def run(params: Any, *args: Any, **options: Any) -> Any:
        stopped = trees.map_named(
            lambda name, x: jax.lax.stop_gradient(x) if trees.matches(patterns, name) else x,
            params,
        )
        return apply(stopped, *args, **options)

    return run


def _abstract_batch(batch: Any, layout: Layout) -> Any:
    """Shapes and shardings: the axis B is the second one of aux_condition."""

    def of(name: str, x: Any) -> jax.ShapeDtypeStruct:
        spread = layout.stacked if name.startswith("aux_condition") else layout.batch
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=spread if x.ndim > 0 else layout.whole
        )

    return trees.map_named(of, batch)


def _options(config: Config, layout: Layout) -> dict[str, Any] | None:
    """XLA's options for a step on CPUs; a plan on a CPU is for the devices of its layout."""
    if layout.mesh.devices.flat[0].platform != "cpu":
        return None
    # It drops the barriers between blocks before they have served: models/blocks.py.
    options: dict[str, Any] = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    if config["fast_compile"]:
        options |= {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return options


def _with_rates(step: Callable, rates: Mapping[str, Callable]) -> Callable:
    """Return the step with learning rates among its metrics."""

    def run(state: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
        new, values = step(state, *args)
        return new, {**values, **{name: rate(state.step) for name, rate in rates.items()}}

    return run
