"""How fast images are drawn on this machine: in one step, by the teacher's steps, and decoded.

A batch is spread over this process's devices where they divide it, as `sample` does, else it is
drawn on one. Times are from labels on the devices to images on the devices. B batch, L tokens, V
vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dimo_jax import samplers
from dimo_jax.common import rng
from dimo_jax.method.dimo import generate
from dimo_jax.models import Network
from dimo_jax.parallel import mesh
from dimo_jax.profiling import flops, timing
from dimo_jax.profiling.decoding import teacher_decoding
from dimo_jax.profiling.step_speed import PROMPT, Clock, Config, Models, Result
from dimo_jax.tokenizers.tokenizer import chunks
from dimo_jax.training import load_models, settings


class _Batch:
    """A batch of one size on the devices that draw it, with the compiled decoder.

    Attributes:
        devices: that draw it.
        keys: [B].
        inputs: the conditions' inputs: labels [B] int32, the classes in turn; or the ids of a
            prompt.
        condition: () -> what the network is given for that: the labels; or the text encoder's
            features, each time anew.
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
        text = None
        if models.encoder is not None:
            micro = config["prompts"]["micro_conditions"]
            text = models.encoder.conditions(network, size, micro)
        inputs = text.ids([PROMPT] * size) if text else numbers % np.int32(network.num_classes)
        self.keys, self.inputs, self.tokens = jax.device_put(
            (rng.example_keys(jax.random.key(seed), jnp.asarray(numbers)), inputs, codes),
            NamedSharding(grid, PartitionSpec("data")),
        )
        self.size, self._clock, self.compilation = size, clock, {}
        self.condition = lambda: self.inputs
        if text is not None and models.encoder is not None:
            placed = jax.device_put(models.encoder.params, self.whole)
            encode = self.compiled("condition_encoder", text.features, (placed,), self.inputs)
            self.condition = lambda: encode(self.inputs)
        params = models.make_tokenizer_params(seed, self.whole)
        # As `sample` decodes: large images a few at a time.
        parts = chunks(models.tokenizer, size, size) if len(self.devices) == 1 else [slice(None)]
        decode = self.compiled("decoder", models.tokenizer.decode, (params,), self.tokens[parts[0]])
        self.decoder = lambda tokens: decoded(decode, tokens, parts)
        self.decoder_operations = flops.products(models.tokenizer.decode, params, self.tokens)

    def compiled(
        self, name: str, function: Callable[..., Any], fixed: tuple, *args: Any
    ) -> Callable[..., Any]:
        """Return the function compiled for `fixed` and arguments like `args`.

        Called with the latter.
        """
        self._clock.note(f"compiles the {name}, batch {self.size}")
        jitted = jax.jit(function)
        program, seconds = timing.compiled(lambda: jitted.lower(*fixed, *args))
        self.compilation[name] = {**seconds, **timing.program_memory(program)}
        return lambda *given: program(*fixed, *given)

    def encoder_times(self) -> dict[str, timing.Times]:
        """Return the text encoder's, where there is one."""
        if "condition_encoder" not in self.compilation:
            return {}
        return self._clock.times({"condition_encoder": self.condition})

    def result(self, times: dict[str, timing.Times], main: str, operations: int) -> Result:
        """Return what is reported of the batch.

        Args:
            times: by part; "whole" is from labels or prompts to images.
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


def decoded(decode: Callable[[Any], Any], tokens: Any, parts: Sequence[Any]) -> Any:
    """Images of tokens, part by part.

    Args:
        decode: tokens of a part -> its images.
        tokens: [B, L].
        parts: rows of each, as tokenizer.chunks gives them.

    Returns:
        [B, H, W, C].
    """
    # One has to be done before the next is sent, and the network before the first, as in `sample`:
    # a CPU gives each its gigabytes when it is sent.
    tokens = jax.block_until_ready(tokens)
    images = [jax.block_until_ready(decode(tokens[rows])) for rows in parts]
    return images[0] if len(images) == 1 else jnp.concatenate(images)[: len(tokens)]


def sample(
    config: Config,
    models: Models,
    clock: Clock,
    sizes: Sequence[int],
    steps: Sequence[int] = (),
) -> list[Result]:
    """Return the generator, for each batch size: whole, and its three parts.

    The parts are programs of their own: "condition_encoder" makes features of prompts, where there
    are some, "network" is x_init and the logits, "token_sampling" draws from them, "decoder" makes
    images. In "whole" network and sampling are one program, as in `sample`; of a generator of
    several steps that has so many calls, and the parts are those of one.

    Args:
        config: a complete config.
        models: of that config; the teacher's weights stand for the generator's.
        clock: how it is timed.
        sizes: of the batches.
        steps: of a generator of several steps, in place of its own number; then the parts are
            those of `teacher_sample`.
    """
    network, results = models.network, []
    generator = settings.generator_network(network, config)
    if generator is not network:  # of several steps, by the sampler of a teacher
        own, params = config["distill"]["mixture"], models.params
        start = params and load_models.start_of(generator, params, config["seed"])
        mixed = dataclasses.replace(models, network=generator, params=start)
        steps = steps or own["steps"][:1]
        return teacher_sample(config, mixed, clock, sizes, steps, own["guidance"])
    chosen = samplers.of_generator(network, settings.sampler_of(config))
    plain, shapes = flops.counted(network)

    def logits(network: Network, params: Any, keys: Any, condition: Any) -> Any:
        start = generate.initial_state(keys, chosen)
        return generate.generator_logits(network.apply, params, start, condition, chosen.sigma)

    def draw(keys: Any, z: Any) -> Any:
        return generate.sample_tokens(keys, z, chosen.temperature, chosen.top_k, chosen.top_p)

    def tokens(params: Any, keys: Any, condition: Any) -> Any:
        return samplers.sample_batch(network, params, keys, condition, None, chosen, None)

    for size in sizes:
        batch = _Batch(config, models, clock, size)
        params = models.make_params(config["seed"], batch.whole)
        inputs = jax.block_until_ready((batch.keys, batch.condition()))
        generator = batch.compiled("generator", tokens, (params,), *inputs)
        only_network = batch.compiled(
            "network", functools.partial(logits, network), (params,), *inputs
        )
        times = batch.encoder_times() | clock.times(
            {
                "whole": lambda b=batch, g=generator: b.decoder(g(b.keys, b.condition())),
                "network": lambda n=only_network, i=inputs: n(*i),
            }
        )
        # Large, and so there for this one alone.
        z = jax.block_until_ready(only_network(*inputs))
        drawing = batch.compiled("token_sampling", draw, (), batch.keys, z)
        times |= clock.times({"token_sampling": lambda d=drawing, b=batch, z=z: d(b.keys, z)})
        del z
        times |= clock.times({"decoder": lambda b=batch: b.decoder(b.tokens)})
        operations = flops.products(functools.partial(logits, plain), shapes, *inputs)
        several = {"num_steps": chosen.num_steps} if chosen.num_steps > 1 else {}
        results.append(several | batch.result(times, "network", operations))
    return results


def teacher_sample(
    config: Config,
    models: Models,
    clock: Clock,
    sizes: Sequence[int],
    steps: Sequence[int],
    guidance: float | None = None,
) -> list[Result]:
    """Return the teacher by the sampler of its authors, for each batch size and number of steps.

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
    plain, shapes = flops.counted(network)
    plain_decoding = teacher_decoding(config, plain, steps, guidance)
    for size in sizes:
        batch = _Batch(config, models, clock, size)
        params = jax.tree.map(
            lambda x: x.astype(config["teacher"]["dtype"]),
            models.make_params(config["seed"], batch.whole),
        )
        # Of a network with text another prompt is the null condition, and takes as long.
        null = batch.condition
        if models.encoder is None:
            empty = np.full(size, network.num_classes, np.int32)
            empty = jax.device_put(empty, batch.inputs.sharding)
            null = lambda e=empty: e  # noqa: E731
        inputs = jax.block_until_ready((batch.keys, batch.condition(), null()))
        placed = jax.device_put(decoding.plans, batch.whole)
        # The plan is an argument: all numbers of steps share one program.
        sampler = batch.compiled(
            "sampler", decoding.tokens, (params,), *inputs, *jax.tree.leaves(placed[0])
        )
        apart = batch.encoder_times() | clock.times(
            {"decoder": lambda b=batch: b.decoder(b.tokens)}
        )
        for plan in placed:
            draw = lambda *i, s=sampler, p=plan: s(*i, *jax.tree.leaves(p))  # noqa: E731
            times = clock.times(
                {
                    "whole": lambda b=batch, d=draw, n=null: b.decoder(
                        d(b.keys, b.condition(), n())
                    ),
                    "tokens": lambda d=draw, i=inputs: d(*i),
                }
            )
            number = int(plan.num_steps)
            operations = flops.products(
                plain_decoding.tokens,
                *(shapes, *inputs, *jax.tree.leaves(plan)),
                while_length=number,
            )
            found = {
                "sampler": decoding.name, "num_steps": number, "guidance": decoding.guidance
            }  # fmt: skip
            results.append(found | batch.result(times | apart, "tokens", operations))
    return results


def decode(config: Config, models: Models, clock: Clock, sizes: Sequence[int]) -> list[Result]:
    """Return the tokenizer's decoder alone, for each batch size.

    Args:
        config: a complete config.
        models: of that config.
        clock: how it is timed.
        sizes: of the batches.
    """
    results = []
    for size in sizes:
        batch = _Batch(config, models, clock, size)
        times = clock.times({"whole": lambda b=batch: b.decoder(b.tokens)})
        results.append(batch.result(times, "whole", batch.decoder_operations))
    return results
