"""Draws images from a bundle, of classes or of prompts, into a grid, a file or a folder."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl.flags import FlagValues
from jaxtyping import Int, UInt8
from numpy import ndarray

from dimo_jax import api, bundles, cli
from dimo_jax.bundles import places
from dimo_jax.common import files, images, overlaps
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.data import benchmark_prompts
from dimo_jax.generation import benchmark_files, drawing, sample_files
from dimo_jax.parallel import distributed, locks
from dimo_jax.runs import banner

_GENERATOR_FLAGS = ("ratio", "sigma")
_TEACHER_FLAGS = {
    "steps": "num_steps",
    "schedule": "schedule",
    "randomize": "randomize",
    "choice_temperature": "choice_temperature",
    "guidance": "guidance",
    "guidance_schedule": "guidance_schedule",
}
_TEXT_FLAGS = ("prompt", "prompts", "metadata", "prompt_field", "text_encoder")
_DIGITS = 20  # of a longer number Python makes no int
_ALL_FLAGS = ("temperature", "top_k", "top_p")


def chosen_labels(
    labels: list[str] | None, num: int | None, num_per_label: int, num_classes: int
) -> Int[ndarray, "N"]:
    """Return the label of every image.

    Args:
        labels: as typed; None for every class.
        num: images in all, classes in turn; None for `num_per_label` of each label.
        num_per_label: images of each label, one after the other.
        num_classes: labels must be below it.

    Returns:
        [N] int32.

    Raises:
        InputError: a label is not a class, or both `labels` and `num` are given.
    """
    if num is not None:
        if labels is not None:
            raise InputError("--labels and --num exclude each other; use --num_per_label")
        return np.arange(num, dtype=np.int32) % np.int32(num_classes)
    if labels is None:
        return np.repeat(np.arange(num_classes, dtype=np.int32), num_per_label)
    typed = [int(x) if x.strip().isdecimal() and len(x) < _DIGITS else x for x in labels]
    return np.repeat(api.check_labels(typed, num_classes, "--labels"), num_per_label)


def check_output(path: AnyPath) -> None:
    """Refuse an output that cannot be written, before the work and not after it."""
    if path.suffix not in (".png", ".npz", ""):
        raise InputError(f"--output={path} must end in .png or .npz, or be a folder")
    if path.suffix != ".png":
        sample_files.check_ranges(path)
    if path.suffix:
        files.check_writable(path)
        return
    # In an object store the pictures are there one by one, while the same command had the parts.
    joining = files.is_remote(path) and sample_files.folder_of(path).exists()
    files.check_folder(path, lambda _: None if joining else files.anything(path))


def _value(text: str) -> Any:
    """Return an option's value: a number, true or false, or the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _overrides(flags: FlagValues, model: bundles.Bundle) -> dict[str, Any]:
    """Return the sampler settings given as flags."""
    teacher = {field: flags[flag].value for flag, field in _TEACHER_FLAGS.items()}
    teacher["name"] = flags.sampler
    for option in flags.option:
        name, equals, text = option.partition("=")
        if not equals:
            raise InputError(f"--option={option} is not name=value")
        teacher[name] = _value(text)
    own = {name: flags[name].value for name in _GENERATOR_FLAGS}
    one_step = drawing.is_one_step(model)
    others = [flag for flag in _TEACHER_FLAGS if flag != "steps"]
    foreign, whose, here = (
        ((*others, "sampler", "guide"), "a teacher", "is a one-step generator")
        if one_step
        else (_GENERATOR_FLAGS, "a one-step generator", "is sampled in steps")
    )
    given = [flag for flag in foreign if flags[flag].value is not None]
    given += ["option"] if flags.option and one_step else []
    if given:
        raise InputError(f"--{given[0]} is for {whose}; {model.path} {here}")
    values = teacher | own | {name: flags[name].value for name in _ALL_FLAGS}
    return {name: value for name, value in values.items() if value is not None}


def run(flags: FlagValues) -> None:
    """Draw what the flags describe, and say where it is.

    Args:
        flags: those of dimo_jax.sample.

    Raises:
        InputError: a flag, or a model that it names, cannot be used.
    """
    output = files.path(flags.output)
    if not output.name:
        raise InputError(f"--output={flags.output} names nothing; give a file or a new folder")
    kinds = {"generator": None, "guide": "teacher", "tokenizer": "tokenizer"}
    kinds |= {"text_encoder": "clip"}
    read = [places.find(place, k) for x, k in kinds.items() if (place := flags[x].value)]
    read += places.parts_of_run(files.path(flags.workdir)) if flags.workdir else []
    overlaps.refuse(output, [*read, flags.metadata])
    # By every process before any of them writes, which none does before all have started.
    if flags.prompts:
        benchmark_files.check_output(files.local(output))
    else:
        check_output(output)
    cli.start_alike(flags)
    devices = jax.local_device_count()
    if flags.batch_size and flags.batch_size % devices:
        raise InputError(
            f"--batch_size={flags.batch_size} is not divisible by the {devices} devices; give "
            f"--batch_size={devices * math.ceil(flags.batch_size / devices)}"
        )
    opened = _source(flags)
    model = api.open_model(**opened, compute_dtype=flags.compute_dtype, guide=flags.guide)
    foreign = ("labels", "num") if model.takes_text else _TEXT_FLAGS
    given = [name for name in foreign if flags[name].value]
    if given:
        what = "prompts" if model.takes_text else "classes"
        raise InputError(f"--{given[0]} is not for {model.bundle.path}, which takes {what}")
    draw = _draw_prompts if model.takes_text else _draw_labels
    num = draw(flags, model, output)
    if distributed.is_lead():
        print(f"{num} images, seed {flags.seed}: {output}")


def _source(flags: FlagValues) -> dict[str, Any]:
    """Return model, tokenizer and text encoder: paths, or of a checkpoint what was read of it."""
    if flags.generator is not None and flags.workdir is not None:
        raise InputError("--generator and --workdir exclude each other; give one of the two")
    parts = flags.tokenizer, flags.text_encoder
    if flags.workdir is None:
        if flags.step is not None:
            raise InputError("--step is a checkpoint of --workdir; give that too")
        return {"source": flags.generator, "tokenizer": parts[0], "encoder": parts[1]}
    with Progress("sample", silent=not distributed.is_lead()) as progress:
        return api.of_run(files.path(flags.workdir), flags.step, *parts, progress.note)


def _draw_labels(flags: FlagValues, model: api.ImageModel, output: AnyPath) -> int:
    """Draw images of classes; return how many."""
    network, tokenizer = model.network, model.tokenizer
    labels = chosen_labels(flags.labels, flags.num, flags.num_per_label, network.num_classes)
    batch_size = drawing.images_at_once(network.num_tokens, flags.batch_size, len(labels))
    overrides = _overrides(flags, model.bundle)
    drawing.sampler_of(model.bundle, overrides)  # refuses them before anything is drawn
    columns = math.ceil(math.sqrt(len(labels))) if flags.num else flags.num_per_label
    names = None if flags.num else [str(x) for x in labels[::columns]]
    if output.suffix == ".png":
        images.check_grid(
            *images.grid_size(len(labels), columns, drawing.image_size(tokenizer), names),
            "give fewer --labels or --num_per_label, or an --output that is an .npz or a folder",
        )
    banner.show(banner.machine_lines())
    if output.suffix != ".png":
        drawing.draw_set(
            model.bundle,
            tokenizer,
            labels,
            output,
            seed=flags.seed,
            batch_size=batch_size,
            overrides=overrides,
            named_labels=flags.labels,
        )
    elif distributed.is_lead():

        def draw(start: int, stop: int) -> UInt8[ndarray, "B H W C"]:
            some, at = labels[start:stop], {"first_index": start, "batch_size": batch_size}
            return images.to_uint8(model.draw(some, seed=flags.seed, **at, **overrides).pixels)

        pixels = _batch_by_batch(draw, len(labels), batch_size)
        images.save_png(output, images.grid(pixels, columns, names))
    return len(labels)


def _batch_by_batch(
    draw: Callable[[int, int], UInt8[ndarray, "B H W C"]], num: int, batch_size: int
) -> UInt8[ndarray, "N H W C"]:
    """Return all images of a grid, from draw(start, stop)."""
    drawn = []
    with Progress("sample") as progress:
        for start in range(0, num, batch_size):
            progress.update(start, num, "images")
            drawn.append(draw(start, min(start + batch_size, num)))
        progress.update(num, num, "images")
    return np.concatenate(drawn)


def _draw_prompts(flags: FlagValues, model: api.ImageModel, output: AnyPath) -> int:
    """Draw images of prompts; return how many."""
    if bool(flags.prompt) == bool(flags.prompts):
        raise InputError(
            f"{model.bundle.path} takes prompts: give --prompt=TEXT, or --prompts=FILE"
        )
    found = benchmark_prompts.requested(flags.prompts, flags.metadata, flags.prompt_field)
    if flags.prompt and output.suffix != ".png":
        raise InputError(f"--output={output} must end in .png; --prompts=FILE fills a folder")
    if flags.prompts and output.suffix == ".png":
        raise InputError(f"--output={output} is a picture's name, and --prompts fills a folder")
    texts = [prompt.text for prompt in found.prompts] if found else flags.prompt
    per_prompt = flags.num_per_prompt or (4 if flags.prompts == "geneval" else 1)
    num = per_prompt * len(texts)
    if found is None:
        images.check_grid(
            *images.grid_size(num, per_prompt, drawing.image_size(model.tokenizer)),
            "give fewer --prompt or --num_per_prompt, or --prompts=FILE, which fills a folder",
        )
    batch_size = drawing.images_at_once(model.network.num_tokens, flags.batch_size, num)
    drawn = model.text_images(
        seed=flags.seed,
        batch_size=batch_size,
        overrides=_overrides(flags, model.bundle),
        negative_prompt=flags.negative_prompt,
    )
    banner.show(banner.machine_lines())
    with Progress("sample", silent=not distributed.is_lead()) as progress:
        for note in (found and found.note, drawn.describe_cut(texts)):
            if note:
                progress.note(note)
    if found is None:
        items = [(text, i, k) for i, text in enumerate(flags.prompt) for k in range(per_prompt)]
        if distributed.is_lead():
            pixels = _batch_by_batch(lambda i, j: drawn(items[i:j]), num, batch_size)
            images.save_png(output, images.grid(pixels, per_prompt))
        return num
    with locks.held(sample_files.lock_of(output), str(output)):
        benchmark_files.write_benchmark(
            found.layout,
            found.prompts,
            drawn,
            files.local(output),
            per_prompt,
            flags.seed,
            drawn.settings,
            batch_size,
            (jax.process_index(), jax.process_count()),
        )
        distributed.barrier("sampled")
    return num
