"""What a run would do, stage by stage, with everything checked and nothing written."""

import math
from collections.abc import Iterator
from typing import Any

import jax

from dimo_jax import config as configs
from dimo_jax.common import files
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.parallel import distributed
from dimo_jax.runs.image_setup import ImageRun
from dimo_jax.runs.joint_run import JointRun
from dimo_jax.training import stages
from dimo_jax.training.checkpoints import Checkpoints
from dimo_jax.training.programs import Program

_UNITS = ("B", "kB", "MB", "GB", "TB")


def show(run: ImageRun | JointRun) -> None:
    """Trace the run's training steps and print what it would do, a fact on each line.

    Args:
        run: loaded, and thereby checked.

    Raises:
        InputError: a step cannot be traced, or the disk has too little room.
    """
    with Progress("dry run", silent=not distributed.is_lead()) as progress:
        for name, program in run.programs.items():
            progress.note(f"traces a step of {name}")
            fixed = () if program.teacher is None else (program.teacher,)
            program.step.eval_shape(program.state, *fixed, program.batch)
    if not distributed.is_lead():
        return
    staged = [_stage(run, name, program) for name, program in run.programs.items()]
    needed = sum(num_bytes for _, num_bytes in staged) + 2 * _bytes(run.programs["distill"].params)
    free = files.free_bytes(run.workdir)
    lines = [f"dry run of {run.config['title']!r}: all is checked, nothing is written"]
    lines += [*_facts(run), *(line for line, _ in staged), *_ends(run)]
    left = "" if free is None else f", {size(free)} free"
    lines.append(f"disk: about {size(needed)} for checkpoints and bundles{left}")
    print("\n".join(lines))
    if free is not None and free < needed:
        raise InputError(
            f"{run.workdir} has {size(free)} free, and the run takes about {size(needed)}: "
            f"checkpoints of {' and '.join(run.programs)}, config.checkpoint.keep="
            f"{run.config['checkpoint']['keep']} each; free some space, or name another --workdir"
        )


def size(num_bytes: int) -> str:
    """Return a number of bytes for people: '1.2 GB', of 1000."""
    power = min(int(math.log(max(num_bytes, 1), 1000)), len(_UNITS) - 1)
    return f"{num_bytes / 1000**power:.3g} {_UNITS[power]}"


def _facts(run: ImageRun | JointRun) -> Iterator[str]:
    """Yield what the run is made of."""
    config, mesh = run.config, run.layout.mesh
    shape = " x ".join(f"{name} {number}" for name, number in mesh.shape.items())
    yield (
        f"devices: {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh {shape}, "
        f"{jax.process_count()} process{'es' if jax.process_count() > 1 else ''}"
    )
    plain = configs.flat(configs.default_config().to_dict())
    found = configs.flat(config)
    changed = sum(path not in plain or plain[path] != found[path] for path in found)
    yield f"config: {len(found)} fields, {changed} differ from the default (--print_config)"
    network = run.generator_network
    if isinstance(run, ImageRun):
        yield f"data: {_data(run)}"
        yield (
            f"tokenizer: {run.tokenizer.config['name']}, images of "
            f"{' x '.join(map(str, run.tokenizer.image_shape))} as {network.num_tokens} tokens of "
            f"{network.codebook_size} codes"
        )
    else:
        yield (
            f"data: the joint {config['data']['joint']}, {network.num_tokens} tokens of "
            f"{network.codebook_size} values"
        )
    params = run.programs["distill"].params
    number = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    yield (
        f"network: {network.config['name']}, {number:,} parameters, {size(_bytes(params))} in "
        f"float32, computed in {config['compute_dtype']}"
    )


def _data(run: ImageRun) -> str:
    name = run.config["data"]["name"]
    if run.pictures is not None:
        what = "train and to evaluate on" if run.reports else "train on"
        texts = "" if run.encoder is None else f", {run.conditions.num:,} texts of them"
        return f"{run.pictures.source or name}, with images to {what}{texts}"
    if run.encoder is not None:
        return f"{run.conditions.num:,} prompts, no images"
    return f"{run.conditions.num:,} classes, no images"


def _stage(run: ImageRun | JointRun, name: str, program: Program) -> tuple[str, int]:
    """Return a line on a stage, and what it will take on the disk."""
    config, section = run.config, run.config[name]
    keep, every = config["checkpoint"]["keep"], config["checkpoint"]["save_every_steps"]
    state, num_steps = _bytes(program.state), section["num_steps"]
    start = _start(stages.checkpoints_of(run.workdir, name), keep)
    begins = f"goes on at step {start:,}" if start else "begins"
    fixed = program.teacher
    held = _device_bytes(program.state) + (0 if fixed is None else _device_bytes(fixed))
    parts = f" in {section['parts']} parts" if section["parts"] > 1 else ""
    written = max(1, min(keep, -(-num_steps // every)))
    text = (
        f"{name}: {begins}, {num_steps:,} steps of {section['batch_size']:,} examples{parts}; "
        f"{size(held)} on each device before activations; a checkpoint of {size(state)} every "
        f"{every:,} steps, {written} kept"
    )
    # While one is written the oldest is still there.
    return text, (written + 1) * state


def _ends(run: ImageRun | JointRun) -> Iterator[str]:
    """Yield what comes after the trainings."""
    params = size(_bytes(run.programs["distill"].params))
    yield f"export: the averaged generator, {params}, in {run.workdir / 'export'}"
    section = run.config["evaluation"]
    if isinstance(run, JointRun):
        yield f"evaluation: total variation of {section['num_samples']:,} samples"
    elif run.reports:
        orders = len(section["choice_temperatures"]) + section["random_order"]
        yield (
            f"evaluation: {len(section['guidances']) * orders} samplers of the teacher at "
            f"{_listed(section['sweep_steps'])} steps on {section['sweep_num_samples']:,} images; "
            f"then the teacher at {_listed(section['teacher_steps'])} steps and the generator on "
            f"{section['num_samples']:,} images with {len(section['seeds'])} seeds"
        )


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers))


def _start(directory: AnyPath, keep: int) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    if not directory.exists():
        return 0
    checkpoints = Checkpoints(directory, keep)
    try:
        return checkpoints.latest() or 0
    finally:
        checkpoints.close()


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _device_bytes(tree: Any) -> int:
    """Count the bytes of one device, by the shardings of the leaves."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
