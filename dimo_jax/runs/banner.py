"""The lines that a run begins with: machine, model, batches, places."""

import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dimo_jax import config as configs
from dimo_jax.common.files import AnyPath
from dimo_jax.models import Network
from dimo_jax.parallel import backend, distributed
from dimo_jax.parallel.sharding import Layout


def machine_lines() -> list[str]:
    """Return devices and versions, and a warning where an accelerator stays unused."""
    versions = f"dimo_jax {distributed.code_version()}, Python {platform.python_version()}"
    unused = backend.unused_accelerator()
    return [
        f"{backend.summary()}; {versions}, jax {jax.__version__}",
        *([f"warning: {unused}"] if unused else []),
    ]


def run_lines(
    config: Mapping[str, Any], network: Network, layout: Layout, workdir: AnyPath
) -> list[str]:
    """Return what a run trains, in which batches on which mesh, and where it can be watched.

    Args:
        config: a complete config.
        network: of generator and auxiliary.
        layout: of the run.
        workdir: its work directory.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    total = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
    mesh = " x ".join(f"{name}={size}" for name, size in layout.mesh.shape.items())
    stages = ("pretrain", "distill") if configs.trains_teacher(config) else ("distill",)
    batches = [_batch(name, config[name], layout.mesh.size) for name in stages]
    place, events = (shlex.quote(str(x)) for x in (workdir, workdir / "tensorboard"))
    lines = [
        f"mesh {mesh}; {', '.join(batches)}",
        f"{network.config['name']}, {total:,} parameters, computed in {config['compute_dtype']}",
        f"work directory {place}; the same command goes on from its last checkpoint",
    ]
    if config["logging"]["tensorboard"]:
        lines.append(f"watch it with: tensorboard --logdir {events}")
    return lines


def sample_command(made: AnyPath, with_text: bool, steps: int | None = None) -> str:
    """Return the command line that draws a few images of what a run made, for the same shell.

    Args:
        made: bundle of a generator, or of a teacher.
        with_text: whether it takes prompts.
        steps: of a teacher.
    """
    # Without an activated environment, as under make, `python` is another one.
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    what = ["--prompt=a red ball on a blue cube"] if with_text else ["--num=16"]
    if steps is not None:
        what.append(f"--steps={steps}")
    flags = [f"--generator={made}", *what, "--output=sample.png"]
    return shlex.join([python, "-m", "dimo_jax.sample", *flags])


def show(lines: list[str]) -> None:
    """Print lines on standard error, on process 0 alone."""
    if distributed.is_lead():
        print("\n".join(lines), file=sys.stderr, flush=True)


def _batch(name: str, section: Mapping[str, Any], num_devices: int) -> str:
    parts = section["parts"]
    size = section["batch_size"] // num_devices // parts
    in_parts = f" in {parts} parts" if parts > 1 else ""
    return f"{name} {section['batch_size']} a batch, {size} a device{in_parts}"
