"""Times a config's training step, its data, samplers or decoder on this machine."""

import copy
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl.flags import FlagValues
from ml_collections import config_flags

from dimo_jax import cli
from dimo_jax.common import files, versions
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.config import validation
from dimo_jax.generation import drawing
from dimo_jax.parallel import distributed
from dimo_jax.profiling import data_speed, devices, sampler_speed, step_speed
from dimo_jax.runs import banner, training_sets
from dimo_jax.training import traces

# Flag -> the only choice of --what that it is for.
_OWN_FLAGS = {
    **{"steps": "teacher_sample", "guidance": "teacher_sample", "profile": "train"},
    "step_seconds": "data",
}
_SETTINGS = ("compute_dtype", "remat", "scan_layers", "attention", "fast_compile")


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    found = versions.environment()
    return {
        "device_kind": found["device"]["kind"],
        "device_count": found["device"]["count"],
        "platform": found["device"]["platform"],
        "process_count": jax.process_count(),
        "processor": _processor(),
        "processor_threads": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **found["versions"],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    named = (x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    return next(named, platform.machine())


def peak(peak_tflops: float | None) -> dict[str, Any]:
    """Return the peak that MFU is measured against, and who states it."""
    known = devices.find(jax.devices()[0].device_kind)
    if peak_tflops is not None:
        if peak_tflops <= 0:
            raise InputError(f"--peak_tflops={peak_tflops} must be above 0")
        return {"tflop_per_second_per_device": peak_tflops, "source": "--peak_tflops"}
    if known is None:
        return {"tflop_per_second_per_device": None, "source": "none; give --peak_tflops"}
    source = f"{known.name}, dense bfloat16, by its maker"
    return {"tflop_per_second_per_device": known.bf16_tflops, "source": source}


def _results(
    flags: FlagValues,
    config: dict[str, Any],
    models: step_speed.Models,
    clock: step_speed.Clock,
    sizes: list[int],
    steps: list[int],
) -> Iterator[dict[str, Any]]:
    """Yield one for each batch size, and for each number of steps."""
    if flags.what == "train":
        for size in sizes:
            changed = copy.deepcopy(config)
            changed["distill"]["batch_size"] = size
            yield step_speed.train(changed, models, clock)
    elif flags.what == "data":
        examples, texts = training_sets.examples_to_read(config, models.network)
        conditions = data_speed.conditions_of(config, models, texts)
        for size in sizes:
            changed = {**config, "pretrain": {**config["pretrain"], "batch_size": size}}
            yield data_speed.read(changed, models, examples, conditions, clock, flags.step_seconds)
    elif flags.what == "teacher_sample":
        yield from sampler_speed.teacher_sample(config, models, clock, sizes, steps, flags.guidance)
    else:
        function = {"sample": sampler_speed.sample, "decode": sampler_speed.decode}[flags.what]
        yield from function(config, models, clock, sizes)


def _own_sizes(what: str, config: dict[str, Any], num_tokens: int) -> list[int]:
    """Return the batch sizes that are timed where none are given."""
    if what in ("train", "data"):
        return [config["distill" if what == "train" else "pretrain"]["batch_size"]]
    return sorted({1, 8, drawing.images_at_once(num_tokens, None)})


def _measure(
    flags: FlagValues, config: dict[str, Any], note: Callable[[str], None]
) -> dict[str, Any]:
    """Return all that is written."""
    sizes = cli.numbers(flags, "batch_size", int, [])
    steps = cli.numbers(flags, "steps", int, [8, 16])
    stated, models = peak(flags.peak_tflops), step_speed.open_models(config)
    sizes = sizes or _own_sizes(flags.what, config, models.network.num_tokens)
    clock = step_speed.Clock(
        flags.repetitions,
        flags.warmup,
        flags.calls,
        stated["tflop_per_second_per_device"],
        note,
        _trace(flags),
    )
    banner.show(banner.machine_lines())
    if clock.peak_tflops is None and flags.what != "data":
        note("no MFU: the peak of this device is not known; give --peak_tflops")
    shapes = jax.eval_shape(models.network.init, jax.random.key(0))
    results = []
    for result in _results(flags, config, models, clock, sizes, steps):
        results.append(result)
        words = [f"{n} {result[n]}" for n in ("num_steps", "batch_size") if n in result]
        note(f"{', '.join(words)}: {result['images_per_second']:.4g} images/s")
    return {
        "what": flags.what,
        "config": {
            "file": config_flags.get_config_filename(flags["config"]),
            "title": config["title"],
            "arguments": sys.argv[1:],
            **{name: config[name] for name in _SETTINGS},
            "teacher_dtype": config["teacher"]["dtype"],
            "weights": {
                name: config[name]["bundle"] or "random" for name in ("teacher", "tokenizer")
            },
        },
        "model": {
            **models.network.config,
            "num_parameters": sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)),
        },
        "tokenizer": models.tokenizer.config,
        "machine": machine(),
        "peak": stated,
        "results": results,
    }


def _trace(flags: FlagValues) -> traces.Request | None:
    """Return what --profile requests; the sessions are named by the batch."""
    if flags.profile is None:
        return None
    window = traces.window(flags.profile)
    if not flags.output:
        raise InputError("--profile writes into a folder beside --output; give that too")
    return traces.Request(window, files.path(flags.output).parent / "profile", "batch")


def run(flags: FlagValues) -> None:
    """Measure, and write JSON.

    Args:
        flags: those of dimo_jax.benchmark.

    Raises:
        InputError: a flag or a field of the config cannot be used.
    """
    for name, what in _OWN_FLAGS.items():
        if flags[name].value is not None and what != flags.what:
            raise InputError(f"--{name} is for --what={what}, not for --what={flags.what}")
    _trace(flags)
    if flags.output:
        files.check_writable(flags.output)
    config = flags.config.to_dict()
    validation.validate(config, starts=False)
    config = training_sets.resolved(config)
    if config["compilation_cache"]:
        jax.config.update("jax_compilation_cache_dir", config["compilation_cache"])
    cli.start_processes(flags)
    if jax.process_count() > 1 and flags.what not in ("train", "data"):
        raise InputError(f"--what={flags.what} is timed in one process; start it once")
    with Progress("benchmark", silent=not distributed.is_lead()) as progress:
        text = json.dumps(_measure(flags, config, progress.note), indent=1, default=list) + "\n"
    if not distributed.is_lead():
        return
    if flags.output:
        print(files.write_file(flags.output, text.encode()))
    else:
        sys.stdout.write(text)
