"""How fast images are drawn on this machine: in one step, by the teacher's steps, and decoded.

A batch is spread over this process's devices where they divide it, as `sample` does, else it is
drawn on one. Times are from labels on the devices to images on the devices. B batch, L tokens, V
vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dimo_jax.evaluation import flops, timing
from dimo_jax.method import generate
from dimo_jax.parallel import mesh
from dimo_jax.runs.decoding import teacher_decoding
from dimo_jax.runs.speed import Clock, Config, Models, Result
from dimo_jax.samplers import one_step
from dimo_jax.training import rng, settings


class _Batch:
    """A batch of one size on the devices that draw it, with the compiled decoder.

    Attributes:
        devices: that draw it.
        keys: [B].
        labels: [B] int32, the classes in turn.
        tokens: [B, L] int32, random codes.
        whole: the sharding of what every device has.
        compilation: what each program took to compile, and what memory it needs, by its name.
        decoder: tokens -> images.
        decoder_operations: of a call, by count.
    """

    def __init__(self, config: Config, models: Models, clock: Clock, size: int):
        seed, network = config["seed"], models.network
        grid = mesh.of_this_process(size)
        self.devices = list(grid.devices.flat)
        self.whole = NamedSharding(grid, PartitionSpec())
        numbers = np.arange(size, dtype=np.int32)
        codes = np.random.default_rng(seed).integers(
            network.codebook_size, size=(size, network.num_tokens), dtype=np.int32
        )
        self.keys, self.labels, self.tokens = jax.device_put(
            (
                rng.example_keys(jax.random.key(seed), jnp.asarray(numbers)),
                numbers % np.int32(network.num_classes),
                codes,
            ),
            NamedSharding(grid, PartitionSpec("data")),
        )
        self.size, self._clock, self.compilation = size, clock, {}
        params = models.make_tokenizer_params(seed, self.whole)
        self.decoder = self.compiled("decoder", models.tokenizer.decode, (params,), self.tokens)
        self.decoder_operations = flops.products(models.tokenizer.decode, params, self.tokens)

    def compiled(
        self, name: str, function: Callable[..., Any], fixed: tuple, *args: Any
    ) -> Callable[..., Any]:
        """The function compiled for `fixed` and arguments like `args`; called with the latter."""
        self._clock.note(f"compiles the {name}, batch {self.size}")
        jitted = jax.jit(function)
        program, seconds = timing.compiled(lambda: jitted.lower(*fixed, *args))
        self.compilation[name] = {**seconds, **timing.program_memory(program)}
        return lambda *given: program(*fixed, *given)

    def result(self, times: dict[str, timing.Times], main: str, operations: int) -> Result:
        """What is reported of the batch.

        Args:
            times: by part; "whole" is from labels to images.
            main: the part that `operations` are of.
            operations: of that part, for the whole batch.
        """
        return {
            "batch_size": self.size,
            "num_devices": len(self.devices),
            "latency_seconds": {name: x.report() for name, x in times.items()},
            "images_per_second": self.size / times["whole"].median,
            "rates_of": main,
            **self._clock.rates(operations, times[main].median, len(self.devices)),
            "compilation": dict(self.compilation),
            **timing.peak_memory(self.devices),
        }


def sample(config: Config, models: Models, clock: Clock, sizes: Sequence[int]) -> list[Result]:
    """The one-step generator, for each batch size: whole, and its three parts.

    The parts are programs of their own: "network" is x_init and the logits, "token_sampling" draws
    from them, "decoder" makes images. In "whole" the first two are one program, as in `sample`.

    Args:
        config: a complete config.
        models: of that config; the teacher's weights stand for the generator's.
        clock: how it is timed.
        sizes: of the batches.
    """
    network, results = models.network, []
    chosen = one_step.settings_from(settings.sampler_of(config), network)

    def logits(params: Any, keys: Any, labels: Any) -> Any:
        start = generate.initial_state(keys, chosen)
        return generate.generator_logits(network.apply, params, start, labels, chosen.sigma)

    def draw(keys: Any, z: Any) -> Any:
        return generate.sample_tokens(keys, z, chosen.temperature, chosen.top_k, chosen.top_p)

    def tokens(params: Any, keys: Any, labels: Any) -> Any:
        return generate.generate(network.apply, params, keys, labels, chosen)

    for size in sizes:
        batch = _Batch(config, models, clock, size)
        params = models.make_params(config["seed"], batch.whole)
        inputs = (batch.keys, batch.labels)
        generator = batch.compiled("generator", tokens, (params,), *inputs)
        only_network = batch.compiled("network", logits, (params,), *inputs)
        z = only_network(*inputs)
        drawing = batch.compiled("token_sampling", draw, (), batch.keys, z)
        times = {
            "whole": clock.time(lambda b=batch, g=generator, i=inputs: b.decoder(g(*i))),
            "network": clock.time(lambda n=only_network, i=inputs: n(*i)),
            "token_sampling": clock.time(lambda d=drawing, b=batch, z=z: d(b.keys, z)),
            "decoder": clock.time(lambda b=batch: b.decoder(b.tokens)),
        }
        operations = size * flops.forward(network.config)
        results.append(batch.result(times, "network", operations))
    return results


def teacher_sample(
    config: Config,
    models: Models,
    clock: Clock,
    sizes: Sequence[int],
    steps: Sequence[int],
    guidance: float | None = None,
) -> list[Result]:
    """The teacher by the sampler of its authors, for each batch size and number of steps.

    Args:
        config: a complete config.
        models: of that config.
        clock: how it is timed.
        sizes: of the batches.
        steps: of the sampler.
        guidance: scale; 1 leaves the unconditional branch out. None: config.distill.guidance, and
            1 for a network without a null class.

    Raises:
        InputError: guidance without a null class, or steps that the sampler does not take.
    """
    network, results = models.network, []
    decoding = teacher_decoding(config, network, steps, guidance)
    for size in sizes:
        batch = _Batch(config, models, clock, size)
        params = jax.tree.map(
            lambda x: x.astype(config["teacher"]["dtype"]),
            models.make_params(config["seed"], batch.whole),
        )
        null = jax.device_put(np.full(size, network.num_classes, np.int32), batch.labels.sharding)
        inputs = (batch.keys, batch.labels, null)
        placed = jax.device_put(decoding.plans, batch.whole)
        # The plan is an argument: all numbers of steps share one program.
        sampler = batch.compiled(
            "sampler", decoding.tokens, (params,), *inputs, *jax.tree.leaves(placed[0])
        )
        decoder = clock.time(lambda b=batch: b.decoder(b.tokens))
        for plan in placed:
            draw = lambda s=sampler, i=inputs, p=plan: s(*i, *jax.tree.leaves(p))  # noqa: E731
            times = {
                "whole": clock.time(lambda b=batch, d=draw: b.decoder(d())),
                "tokens": clock.time(draw),
                "decoder": decoder,
            }
            number = int(plan.num_steps)
            guided = decoding.guidance != 1
            operations = size * flops.decoding(network.config, number, guided)
            found = {
                "sampler": decoding.name, "num_steps": number, "guidance": decoding.guidance
            }  # fmt: skip
            results.append(found | batch.result(times, "tokens", operations))
    return results


def decode(config: Config, models: Models, clock: Clock, sizes: Sequence[int]) -> list[Result]:
    """The tokenizer's decoder alone, for each batch size.

    Args:
        config: a complete config.
        models: of that config.
        clock: how it is timed.
        sizes: of the batches.
    """
    results = []
    for size in sizes:
        batch = _Batch(config, models, clock, size)
        times = {"whole": clock.time(lambda b=batch: b.decoder(b.tokens))}
        results.append(batch.result(times, "whole", batch.decoder_operations))
    return results
