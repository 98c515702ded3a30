"""What a run would need on machines that are not there, from the program that would run on them."""

import functools
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dimo_jax import models, samplers
from dimo_jax.common import rng
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import text_encoder
from dimo_jax.config import mixture
from dimo_jax.models import Network
from dimo_jax.parallel import mesh
from dimo_jax.parallel.sharding import Layout
from dimo_jax.profiling import collectives, flops, gpu_plans, gpu_targets, tpu_times
from dimo_jax.profiling.decoding import Decoding, teacher_decoding
from dimo_jax.profiling.devices import Device
from dimo_jax.training import load_models, programs, settings

GIB = 2**30
# What lowers a program, its floating-point operations, and the images of a call.
Program = tuple[Callable[[], Any], int, int]
# Shares of the peak that a step's time is given for: what cannot be beaten, and what is usual.
_UTILIZATIONS = (1.0, 0.5)
# XLA chooses among kernels by timing them, where there is a GPU.
_NO_GPU = {"xla_gpu_autotune_level": 0}
_OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG])")


class Sampling(NamedTuple):
    """The conditions of a sampler's images.

    Attributes:
        batch_size: images of one call.
        num_steps: of a teacher's sampler.
        guidance: of a teacher's sampler; None: the config's.
    """

    batch_size: int = 64
    num_steps: int = 8
    guidance: float | None = None


def plan(
    config: Mapping[str, Any],
    what: str,
    layout: Layout,
    device: Device | None,
    sampling: Sampling,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Compile one program of a run and read off what it needs.

    Args:
        config: a complete config.
        what: a key of PROGRAMS.
        layout: the mesh, of devices that may be absent.
        device: what one of them can do; None for a CPU.
        sampling: for what is no training.
        note: takes what is going on, in words.

    Returns:
        JSON values; see `text` for their meaning.
    """
    network = _network(config)
    lower, operations, images = PROGRAMS[what](config, network, layout, sampling)
    note(f"lowers the program for {layout.mesh.size} devices")
    began = time.monotonic()
    try:
        lowered = lower()
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise InputError(
            f"the attention of this program is cuDNN's, and: {error} Install it with: pip install "
            "-e '.[gpu_plan]', or plan with --config.attention=xla"
        ) from error
    note("compiles it, which takes minutes for an accelerator")
    gpu = gpu_targets.find(device)
    memory, text_of_program, refusal = _compile(lowered, _NO_GPU if gpu else None)
    encoder = _encoder_bytes(config, layout)
    memory = {**memory, "text_encoder_bytes": encoder, "peak_bytes": memory["peak_bytes"] + encoder}
    result = {
        "what": what,
        "devices": layout.mesh.size,
        "device": device.name if device else "CPU",
        "mesh": dict(layout.mesh.shape),
        "batch_size": images,
        "compile_seconds": round(time.monotonic() - began, 1),
        "memory": memory,
        "hbm_bytes": gpu.memory_bytes if gpu else round(device.hbm_gib * GIB) if device else None,
        "flops": operations,
        "collectives_bytes": collectives.bytes_by_kind(text_of_program) if text_of_program else {},
        "refusal": refusal,
    }
    if device:
        seconds = operations / layout.mesh.size / (device.bf16_tflops * 1e12)
        result["seconds_at_mfu"] = {str(share): seconds / share for share in _UTILIZATIONS}
        result["images_per_second_at_mfu"] = {
            str(share): images * share / seconds for share in _UTILIZATIONS
        }
    fits = refusal is None and (device is None or memory["peak_bytes"] <= result["hbm_bytes"])
    if gpu and device:
        result |= gpu_plans.facts(text_of_program, gpu, device, result)
        fits = result["mem_fraction"] is not None
    elif device and text_of_program:
        result |= tpu_times.facts(text_of_program, device, result)
    result["fits"] = fits
    settled = fits and not (gpu and result["mem_fraction"] > gpu_plans.DEFAULT_FRACTION)
    result["advice"] = [] if settled else _advice(config, what, memory, layout)
    if fits and not settled:
        result["advice"].insert(0, gpu_plans.MORE_MEMORY)
    return result


def text(result: Mapping[str, Any]) -> str:
    """Return a plan for people, a fact on each line."""
    memory, capacity = result["memory"], result["hbm_bytes"]
    encoder = memory["text_encoder_bytes"]
    shape = " x ".join(f"{name} {size}" for name, size in result["mesh"].items())
    lines = [
        f"{result['what']}: {result['devices']} x {result['device']}, mesh {shape}, "
        f"{result['batch_size']} images a call",
    ]
    if memory:
        of = f" of {capacity / GIB:.1f}" if capacity else ""
        lines.append(
            f"memory of a device, GiB: {memory['peak_bytes'] / GIB:.2f}{of} at the peak; "
            f"arguments {memory['arguments_bytes'] / GIB:.2f}, "
            f"temporaries {memory['temporaries_bytes'] / GIB:.2f}, "
            f"results that are no argument {memory['new_results_bytes'] / GIB:.2f}"
            + (f", text encoder {encoder / GIB:.2f}" if encoder else "")
        )
    lines.append(f"operations: {result['flops'] / 1e12:.3g} TFLOP a call on all devices together")
    for share, seconds in result.get("seconds_at_mfu", {}).items():
        rate = result["images_per_second_at_mfu"][share]
        lines.append(
            f"time at {float(share):.0%} of the peak: {seconds * 1e3:.3g} ms, {rate:.4g} images/s"
        )
    sent = result["collectives_bytes"]
    shown = ", ".join(f"{kind} {size / 2**20:.3g}" for kind, size in sent.items()) or "none"
    lines.append(f"received from other devices in a call, MiB a device: {shown}")
    if result.get("kernels"):
        lines += gpu_plans.lines(result)
    elif result.get("predicted"):
        lines += tpu_times.lines(result)
    verdict = "fits" if result["fits"] else "does not fit"
    if result["fits"] and result["advice"]:
        verdict = "fits in more memory than XLA takes by default"
    if result["refusal"]:
        verdict += f" ({result['refusal']})"
    lines.append(
        f"verdict: {verdict}" + (": " + "; or ".join(result["advice"]) if result["advice"] else "")
    )
    return "\n".join(lines)


def _network(config: Mapping[str, Any]) -> Network:
    """Return the run's network; a teacher that is still missing has the sizes of config.model."""
    teacher = load_models.open_teacher(config)
    tokenizer, _ = load_models.open_tokenizer(config, teacher)
    return load_models.open_network(config, teacher, tokenizer)


def _encoder_bytes(config: Mapping[str, Any], layout: Layout) -> int:
    """Return what a device keeps of the text encoder, beside the programs."""
    if not load_models.is_text(config) or config["prompts"]["cache"]:
        return 0
    network = text_encoder.encoder_network(config)
    params = jax.eval_shape(network.init, jax.random.key(0))
    parts = jax.tree.map(
        lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize,
        params,
        layout.of(params),
    )
    return sum(jax.tree.leaves(parts))


def _train(config: Mapping[str, Any], network: Network, layout: Layout, _: Sampling) -> Program:
    params = jax.eval_shape(network.init, jax.random.key(0))
    generator = settings.generator_network(network, config)
    program = programs.distill_program(config, generator, network, params, layout)
    operations = flops.distill_step(config, network, layout)
    return program.lower, operations, config["distill"]["batch_size"]


def _sample(
    config: Mapping[str, Any], network: Network, layout: Layout, sampling: Sampling
) -> Program:
    generator = settings.generator_network(network, config)
    if generator is not network:  # of several steps, by the sampler of a teacher
        own = config["distill"]["mixture"]
        sampling = sampling._replace(num_steps=own["steps"][0], guidance=own["guidance"])
        return _teacher_sample(config, generator, layout, sampling)
    network, params, index, condition = _sampler_inputs(
        config, network, layout, sampling.batch_size
    )
    chosen = samplers.of_generator(network, settings.sampler_of(config))
    sampler = samplers.prepare(chosen, network.num_tokens)

    def draw(network: Network, given: Any, number: jax.Array, condition: Any) -> jax.Array:
        keys = rng.example_keys(jax.random.key(0), number)
        return samplers.sample_batch(network, given, keys, condition, None, *sampler)

    jitted = jax.jit(functools.partial(draw, network), out_shardings=layout.batch)
    plain, shapes = flops.counted(network)
    operations = flops.products(functools.partial(draw, plain), shapes, index, condition)
    return lambda: jitted.lower(params, index, condition), operations, sampling.batch_size


def _teacher_sample(
    config: Mapping[str, Any], network: Network, layout: Layout, sampling: Sampling
) -> Program:
    network, params, index, condition = _sampler_inputs(
        config, network, layout, sampling.batch_size
    )
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, config["teacher"]["dtype"], sharding=x.sharding),
        params,
    )
    plain, shapes = flops.counted(network)
    decoding, plain_decoding = (
        teacher_decoding(config, each, [sampling.num_steps], sampling.guidance)
        for each in (network, plain)
    )
    # Constants, not arguments: the program's text then says how often its loop runs.
    leaves = jax.tree.leaves(decoding.plans[0])

    def draw(
        decoding: Decoding, given: Any, number: jax.Array, condition: Any, null: Any
    ) -> jax.Array:
        keys = rng.example_keys(jax.random.key(0), number)
        return decoding.tokens(given, keys, condition, null, *leaves)

    jitted = jax.jit(functools.partial(draw, decoding), out_shardings=layout.batch)
    operations = flops.products(
        functools.partial(draw, plain_decoding),
        *(shapes, index, condition, condition),
        while_length=int(decoding.plans[0].num_steps),
    )
    return (
        lambda: jitted.lower(params, index, condition, condition),
        operations,
        sampling.batch_size,
    )


def _sampler_inputs(
    config: Mapping[str, Any], network: Network, layout: Layout, batch_size: int
) -> tuple[Network, Any, jax.ShapeDtypeStruct, Any]:
    """Return the network as it computes on the mesh.

    Shapes of parameters, numbers, conditions there.
    """
    mesh.check_batch("--batch_size", batch_size, 1, layout.mesh)
    network = models.build(network.config, settings.compute_of(config, layout))
    params = layout.abstract(jax.eval_shape(network.init, jax.random.key(0)))
    index = jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=layout.batch)
    condition = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype, sharding=layout.batch),
        network.condition,
    )
    return network, params, index, condition


# The Di[M]O step, one-step generation, the teacher by the sampler of its authors.
PROGRAMS = {"train": _train, "sample": _sample, "teacher_sample": _teacher_sample}


def _compile(lowered: Any, options: Any) -> tuple[dict[str, int], str, str | None]:
    """Memory and text of the compiled program; or why the compiler refused."""
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        found = _OUT_OF_MEMORY.search(str(error))
        if not found:
            raise InputError(
                f"the program does not compile: {' '.join(str(error).split())[:600]}"
            ) from error
        scale = {"K": 2**10, "M": 2**20, "G": 2**30}
        used = round(float(found[1]) * scale[found[2]])
        memory = {
            "arguments_bytes": 0, "temporaries_bytes": 0, "new_results_bytes": 0,
            "peak_bytes": used,
        }  # fmt: skip
        return memory, "", f"the compiler found {found[1]}{found[2]} for {found[3]}{found[4]}"
    stats = compiled.memory_analysis()
    new_results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = {
        "arguments_bytes": stats.argument_size_in_bytes,
        "temporaries_bytes": stats.temp_size_in_bytes,
        "new_results_bytes": new_results,
        "peak_bytes": stats.argument_size_in_bytes
        + stats.temp_size_in_bytes
        + new_results
        + stats.generated_code_size_in_bytes,
    }
    return memory, compiled.as_text(), None


def _advice(
    config: Mapping[str, Any], what: str, memory: Mapping[str, int], layout: Layout
) -> list[str]:
    """Return the settings that need less, the ones that cost least first."""
    smaller = []
    if what != "train":
        smaller.append("give a smaller --batch_size")
    own = config["distill"]["mixture"]
    if what == "train" and mixture.is_chosen(config):
        parts = 2 * own["parts"]
        if own["replicas"] % parts == 0:
            smaller.append(f"--config.distill.mixture.parts={parts}")
    if what == "train" and config["remat"] != "full":
        smaller.append("--config.remat=full")
    if (
        what == "train"
        and config["distill"]["batch_size"] % (2 * layout.mesh.size * config["distill"]["parts"])
        == 0
    ):
        smaller.append(f"--config.distill.parts={2 * config['distill']['parts']}")
    if what == "train" and config["teacher"]["dtype"] == "float32":
        smaller.append("--config.teacher.dtype=bfloat16")
    if layout.mesh.shape["data"] > 1:
        smaller.append("a larger --config.mesh.fsdp, which divides parameters and moments")
    return smaller or ["more devices, or ones with more memory"]
