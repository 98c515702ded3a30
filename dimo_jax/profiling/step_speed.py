"""How fast a config's training step is on this machine.

The weights are those of the bundles that the config names, else random: no time depends on them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dimo_jax import tokenizers
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import format_seconds
from dimo_jax.conditions import text_encoder
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.config import mixture
from dimo_jax.data import examples
from dimo_jax.models import Network
from dimo_jax.parallel import mesh, sharding
from dimo_jax.profiling import flops, timing
from dimo_jax.tokenizers import Tokenizer
from dimo_jax.training import (
    batches,
    load_conditions,
    load_models,
    programs,
    settings,
    traces,
)

Config = Mapping[str, Any]
Result = dict[str, Any]
_LONG_SECONDS = 5.0  # of a repetition, from which on it is reported
PROMPT = "a red ball on top of a blue cube"


@dataclasses.dataclass(frozen=True)
class Clock:
    """How everything is timed.

    Attributes:
        repetitions: that count.
        warmup: before them.
        calls: training steps in a repetition, between two waits of the host.
        peak_tflops: of one device, for MFU; None: none is stated, and there is no MFU.
        note: takes a line about what is going on.
        profile: of a trace of more training steps, after those that are timed.
    """

    repetitions: int
    warmup: int
    calls: int
    peak_tflops: float | int | None
    note: Callable[[str], None]
    profile: traces.Request | None = None

    def time(self, name: str, call: Callable[[], Any], calls: int = 1) -> timing.Times:
        """Seconds of a call; a note of each repetition that takes long has the name and an ETA."""
        total = self.warmup + self.repetitions

        def report(done: int, seconds: float) -> None:
            if seconds >= _LONG_SECONDS:
                left = format_seconds((total - done) * seconds)
                self.note(f"{name}: {seconds:.3g} s, {done} of {total}, ETA {left}")

        return timing.measure(
            call, repetitions=self.repetitions, warmup=self.warmup, calls=calls, report=report
        )

    def times(self, calls: Mapping[str, Callable[[], Any]]) -> dict[str, timing.Times]:
        """Seconds of each call, by name, one after the other."""
        return {name: self.time(name, call) for name, call in calls.items()}

    def rates(self, operations: int, seconds: float, num_devices: int) -> Result:
        """Model operations a second, of all devices together; MFU is their share of the peak."""
        tflops = operations / seconds / 1e12
        peak = self.peak_tflops and self.peak_tflops * num_devices
        return {
            "model_tflop": operations / 1e12,
            "model_tflop_per_second": tflops,
            "mfu": tflops / peak if peak else None,
        }


@dataclasses.dataclass(frozen=True)
class Models:
    """What is timed. Parameters are None where no bundle is named; encoder, without text."""

    network: Network
    params: Any
    tokenizer: Tokenizer
    tokenizer_params: Any
    encoder: text_encoder.TextEncoder | None = None

    def make_params(self, seed: int, shardings: Any) -> Any:
        """Return the network's parameters on the devices, as `shardings` (one, or a tree) says."""
        return _placed(self.params, self.network.init, seed, shardings)

    def make_tokenizer_params(self, seed: int, shardings: Any) -> Any:
        """Return the tokenizer's."""
        return _placed(self.tokenizer_params, self.tokenizer.init, seed, shardings)


def _placed(params: Any, init: Callable[..., Any], seed: int, shardings: Any) -> Any:
    if params is None:
        placed = jax.jit(init, out_shardings=shardings)(jax.random.key(seed))
    else:
        placed = mesh.put(params, shardings)
    # Else the first call that is timed waits for them.
    return jax.block_until_ready(placed)


def open_models(config: Config) -> Models:
    """Return the network and the tokenizer that a config describes or names.

    Raises:
        InputError: if a bundle cannot be read, or the two do not belong together.
    """
    if config["data"]["name"] == "joint":
        raise InputError("config.data.name is joint, which has no images; give a config of images")
    teacher = load_models.open_teacher(config)
    tokenizer, params = load_models.open_tokenizer(config, teacher)
    digest = None if params is None else tokenizers.fingerprint(tokenizer, params)
    network = load_models.open_network(config, teacher, tokenizer, digest)
    encoder = None
    if load_models.is_text(config):
        encoder = text_encoder.open_encoder(config, None if teacher is None else teacher.path)
    teacher_params = None if teacher is None else teacher.params
    return Models(network, teacher_params, tokenizer, params, encoder)


def with_prompts(config: Config) -> Config:
    """Return the config with a prompt, where a run with text names none.

    No time depends on them.
    """
    section = config["prompts"]
    if section["path"] or section["texts"]:
        return config
    return {**config, "prompts": {**section, "texts": (PROMPT,)}}


def train(config: Config, models: Models, clock: Clock) -> Result:
    """Return the distillation step with its batch, as the training runs it.

    Args:
        config: a complete config; distill.batch_size is that of all devices together.
        models: of that config.
        clock: how it is timed.

    Raises:
        InputError: if the batch does not divide, or what was timed computes no finite numbers.
    """
    network, layout = models.network, sharding.layout(config["mesh"])
    generator = settings.generator_network(network, config)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    program = programs.distill_program(config, generator, network, shapes, layout)
    size = config["distill"]["batch_size"]
    clock.note(f"compiles the step, batch {size}")
    step, compilation = timing.compiled(program.lower)
    clock.note(f"compiled in {compilation['compile_seconds']:.1f} s")
    teacher = models.make_params(config["seed"], layout.of(program.teacher))
    start = load_models.start_of(generator, teacher, config["seed"])
    start = jax.device_put(start, layout.of(program.params))
    teacher = jax.tree.map(lambda x, like: x.astype(like.dtype), teacher, program.teacher)
    state, values = program.create(start), {}
    del start  # the training holds it no longer either
    given = load_conditions.open_conditions(with_prompts(config), network, models.encoder)
    given.fill_cache()
    batch_of, number = _batches(config, network, given, layout), 0

    def call() -> Any:
        nonlocal state, values, number
        state, values = step(state, teacher, batch_of(number))
        number += 1
        return state, values

    times = clock.time("the step", call, clock.calls)
    if clock.profile:
        _record(clock.profile._replace(prefix=f"batch_{size}"), call, clock.note)
    learned = "divergence" if generator is network else "generator_loss"
    if not np.isfinite(float(values[learned])):
        raise InputError(
            f"the timed step has a {learned} of {float(values[learned])}; what it computes is no "
            "training, so correct config.distill or the teacher"
        )
    operations = flops.distill_step(config, network, layout)
    return {
        "batch_size": size,
        "parts": config["distill"]["parts"],
        "mesh": dict(layout.mesh.shape),
        **compilation,
        "step_seconds": times.report(),
        "steps_per_repetition": clock.calls,
        "images_per_second": size / times.median,
        **clock.rates(operations, times.median, layout.mesh.size),
        "program": timing.program_memory(step),
        **timing.peak_memory(jax.local_devices()),
    }


def _batches(
    config: Config, network: Network, conditions: programs.Conditions, layout: sharding.Layout
) -> Callable[[int], Any]:
    """Return the batches of a training; of data random tokens, on which no time depends."""
    if not mixture.is_chosen(config):
        return batches.of_conditions(config, conditions, layout)
    size = config["distill"]["batch_size"]
    shape = (size, network.num_tokens)
    tokens = np.random.default_rng(0).integers(network.codebook_size, size=shape, dtype=np.int32)
    some = examples.in_memory(tokens, np.zeros(size, np.int32))
    classes = LabelConditions(network.num_classes)
    return batches.of_data(config, "distill", layout, some, classes)


def _record(request: traces.Request, call: Callable[[], Any], note: Callable[[str], None]) -> None:
    """Make steps up to the end of what is recorded."""
    result = None
    with traces.Recorder(request, 0, note) as recorder:
        for number in range(request.window.end):
            with recorder.step(number, result):
                result = call()
        jax.block_until_ready(result)
