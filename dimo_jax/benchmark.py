"""How fast this machine runs a config: the training step, the samplers, the decoder.

python -m dimo_jax.benchmark --config=configs/imagenet.py --peak_tflops=989 --output=train.json
python -m dimo_jax.benchmark --config=configs/imagenet.py --what=sample --batch_size=1,8,64
python -m dimo_jax.benchmark --config=configs/imagenet.py --what=teacher_sample --steps=8,16

train is the distillation step; sample the one-step generator, and its parts: network, token
sampling, decoder; teacher_sample the teacher by the sampler of its authors; decode the tokenizer's
decoder. Where the config names no bundle, weights are random. Figures are medians over repetitions,
with quartiles; compilation is apart. The result is JSON, on stdout or in --output. MFU is the share
of a peak that model operations by formula (evaluation/flops.py) reach: of the bfloat16 peak in
parallel/devices.py, or of --peak_tflops, which a CPU or an unlisted device needs.
"""

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
from absl import flags
from ml_collections import config_flags

from dimo_jax import cli, files, validation
from dimo_jax.errors import InputError
from dimo_jax.evaluation import report
from dimo_jax.parallel import devices, distributed
from dimo_jax.runs import drawing, sampler_speed, speed
from dimo_jax.training.progress import Progress

# Its own, not absl's global ones: other commands define flags of the same names.
FLAGS = flags.FlagValues()

config_flags.DEFINE_config_file("config", None, "e.g. configs/imagenet.py:smoke", flag_values=FLAGS)
flags.DEFINE_enum(
    "what",
    "train",
    ["train", "sample", "teacher_sample", "decode"],
    "what is timed",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "batch_size",
    None,
    "one or more, 1,8,64; default: for train config.distill.batch_size, else 1,8 and as many as "
    "dimo_jax.sample draws at a time",
    flag_values=FLAGS,
)
flags.DEFINE_list("steps", None, "teacher_sample: of its sampler; default 8,16", flag_values=FLAGS)
flags.DEFINE_float(
    "guidance", None, "teacher_sample: default config.distill.guidance", flag_values=FLAGS
)
flags.DEFINE_integer("repetitions", 10, "that count", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("warmup", 2, "repetitions before them", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer(
    "calls", 5, "train: steps in a repetition, between two waits", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_float(
    "peak_tflops", None, "peak of one device, in TFLOP/s, for MFU", flag_values=FLAGS
)
flags.DEFINE_string("profile", None, "train: a folder for a trace of more steps", flag_values=FLAGS)
flags.DEFINE_string("output", None, "a JSON file; default: standard output", flag_values=FLAGS)
flags.mark_flags_as_required(["config"], flag_values=FLAGS)
cli.define_process_flags(FLAGS)

# Flag -> the only choice of --what that it is for.
_OWN_FLAGS = {"steps": "teacher_sample", "guidance": "teacher_sample", "profile": "train"}
_SETTINGS = ("compute_dtype", "remat", "scan_layers", "attention", "fast_compile")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found = report.environment()
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


def peak() -> dict[str, Any]:
    """The peak that MFU is measured against, and who states it."""
    known = devices.find(jax.devices()[0].device_kind)
    if FLAGS.peak_tflops is not None:
        if FLAGS.peak_tflops <= 0:
            raise InputError(f"--peak_tflops={FLAGS.peak_tflops} must be above 0")
        return {"tflop_per_second_per_device": FLAGS.peak_tflops, "source": "--peak_tflops"}
    if known is None:
        return {"tflop_per_second_per_device": None, "source": "none; give --peak_tflops"}
    source = f"{known.name}, dense bfloat16, by its maker"
    return {"tflop_per_second_per_device": known.bf16_tflops, "source": source}


def _results(
    config: dict[str, Any],
    models: speed.Models,
    clock: speed.Clock,
    sizes: list[int],
    steps: list[int],
) -> Iterator[dict[str, Any]]:
    """One for each batch size, and for each number of steps."""
    if FLAGS.what == "train":
        for size in sizes:
            changed = copy.deepcopy(config)
            changed["distill"]["batch_size"] = size
            yield speed.train(changed, models, clock)
    elif FLAGS.what == "teacher_sample":
        yield from sampler_speed.teacher_sample(config, models, clock, sizes, steps, FLAGS.guidance)
    else:
        function = {"sample": sampler_speed.sample, "decode": sampler_speed.decode}[FLAGS.what]
        yield from function(config, models, clock, sizes)


def _own_sizes(config: dict[str, Any], num_tokens: int) -> list[int]:
    """The batch sizes that are timed where none are asked for."""
    if FLAGS.what == "train":
        return [config["distill"]["batch_size"]]
    return sorted({1, 8, drawing.images_at_once(num_tokens, None)})


def _measure(config: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """All that is written."""
    sizes = cli.numbers(FLAGS, "batch_size", int, [])
    steps = cli.numbers(FLAGS, "steps", int, [8, 16])
    stated, models = peak(), speed.open_models(config)
    sizes = sizes or _own_sizes(config, models.network.num_tokens)
    clock = speed.Clock(
        FLAGS.repetitions,
        FLAGS.warmup,
        FLAGS.calls,
        stated["tflop_per_second_per_device"],
        note,
        FLAGS.profile or "",
    )
    if clock.peak_tflops is None:
        note("no MFU: the peak of this device is not known; give --peak_tflops")
    shapes = jax.eval_shape(models.network.init, jax.random.key(0))
    results = []
    for result in _results(config, models, clock, sizes, steps):
        results.append(result)
        words = [f"{n} {result[n]}" for n in ("num_steps", "batch_size") if n in result]
        note(f"{', '.join(words)}: {result['images_per_second']:.4g} images/s")
    return {
        "what": FLAGS.what,
        "config": {
            "file": config_flags.get_config_filename(FLAGS["config"]),
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


def main() -> None:
    """Flags in, JSON out."""
    for name, what in _OWN_FLAGS.items():
        if FLAGS[name].value is not None and what != FLAGS.what:
            raise InputError(f"--{name} is for --what={what}, not for --what={FLAGS.what}")
    config = FLAGS.config.to_dict()
    validation.validate(config, starts=False)
    if config["compilation_cache"]:
        jax.config.update("jax_compilation_cache_dir", config["compilation_cache"])
    cli.start_processes(FLAGS)
    if jax.process_count() > 1 and FLAGS.what != "train":
        raise InputError(f"--what={FLAGS.what} is timed in one process; start it once")
    with Progress("benchmark", silent=not distributed.is_lead()) as progress:
        text = json.dumps(_measure(config, progress.note), indent=1, default=list) + "\n"
    if not distributed.is_lead():
        return
    if FLAGS.output:
        print(files.write_file(FLAGS.output, text.encode()))
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    cli.run(main, FLAGS)
