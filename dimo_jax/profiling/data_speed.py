"""Whether reading the examples of a teacher's training keeps up with its steps."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from dimo_jax import config as configs
from dimo_jax.conditions import text_encoder
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.conditions.prompts import PromptIds
from dimo_jax.data.examples import Examples
from dimo_jax.parallel import sharding
from dimo_jax.profiling import timing
from dimo_jax.profiling.step_speed import Clock, Models, Result
from dimo_jax.training import batches, programs


def conditions_of(
    config: Mapping[str, Any], models: Models, texts: Sequence[str]
) -> programs.DataConditions:
    """Return the conditions of examples: their classes, or the ids of their captions.

    Args:
        config: a complete config.
        models: of that config.
        texts: a caption for each example; none: they have classes.
    """
    if not texts:
        return LabelConditions(models.network.num_classes)
    # With the words of these captions, as a training has them.
    encoder = text_encoder.open_encoder(config, None, texts)
    return PromptIds(texts, encoder.tokenizer, config["prompts"]["negative"])


def read(
    config: Mapping[str, Any],
    models: Models,
    examples: Examples,
    conditions: programs.DataConditions,
    clock: Clock,
    step_seconds: float | None,
) -> Result:
    """Time batches one after the other, from the disk to the devices, and the step that needs them.

    In a training a batch is read while the steps before it run, so that a step waits only where
    reading takes longer than a step.

    Args:
        config: a complete config; pretrain.batch_size is that of all devices together.
        models: of that config.
        examples: what is read.
        conditions: theirs, of `conditions_of`.
        clock: how it is timed; the files are read in the order of a training.
        step_seconds: of a step, e.g. on other hardware; None: it is timed here.

    Raises:
        InputError: the batch does not divide, or an example is damaged.
    """
    layout, size = sharding.layout(config["mesh"]), config["pretrain"]["batch_size"]
    batch_of = batches.of_data(config, "pretrain", layout, examples, conditions)
    numbers = itertools.count()
    times = clock.time("reading a batch", lambda: batch_of(next(numbers)), clock.calls)
    needed, source = step_seconds, "--step_seconds"
    if needed is None:
        needed, source = _step(config, models, layout, batch_of, clock), "timed here"
    share = times.median / needed
    clock.note(
        f"a batch of {size} is read in {times.median:.3g} s, {share:.2g} of a step's {needed:.3g} "
        f"s: {'the steps wait' if share >= 1 else 'no step waits'}"
    )
    rate = size / times.median
    return {
        "batch_size": size,
        "num_examples": examples.num,
        "batch_seconds": times.report(),
        "batches_per_repetition": clock.calls,
        "images_per_second": rate,
        "tokens_per_second": rate * models.network.num_tokens,
        "step_seconds": needed,
        "step_seconds_source": source,
        "share_of_a_step": share,
        "steps_wait": share >= 1,
    }


def _step(
    config: Mapping[str, Any],
    models: Models,
    layout: sharding.Layout,
    batch_of: Callable[[int], Any],
    clock: Clock,
) -> float:
    """Return the seconds of a step of the teacher's training on a batch that is there."""
    program = programs.pretrain_program(config, models.network, layout)
    clock.note("compiles the step")
    step, _ = timing.compiled(program.lower)
    trained = programs.pretrained_network(config, models.network, layout)
    # Of the joint network of text and its tower there is no bundle; no time depends on values.
    used = dataclasses.replace(
        models, network=trained, params=None if configs.takes_text(config) else models.params
    )
    state = program.create(used.make_params(config["seed"], layout.of(program.params)))
    batch = jax.block_until_ready(batch_of(0))

    def call() -> Any:
        nonlocal state
        state, values = step(state, batch)
        return values

    return clock.time("a step", call, clock.calls).median
