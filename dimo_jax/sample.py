"""Images from a bundle on disk.

python -m dimo_jax.sample --generator=runs/digits/export --labels=0,1,2 --output=grid.png
python -m dimo_jax.sample --generator=runs/digits/export --num=50000 --output=samples.npz
python -m dimo_jax.sample --generator=TEACHER --tokenizer=TOKENIZER --steps=8 --output=folder/

python -m dimo_jax.sample --generator=STUDENT --prompt="a red ball on a blue cube" --output=out.png
python -m dimo_jax.sample --generator=STUDENT --prompts=geneval \
    --metadata=evaluation_metadata.jsonl --output=geneval/

A teacher's bundle is sampled with its authors' decoding (or --sampler=...), which needs --steps.
An image depends on the seed, its place in the order and its label, not on how many are drawn, in
what batches, on how many devices or by how many processes. A .npz holds arr_0 (uint8 [N, H, W, 3]),
labels, tokens and settings; it and a folder are drawn in ranges, so that the same command goes on
after a kill. On several machines each is started with the same command, as dimo_jax.main is.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8
from numpy import ndarray

from dimo_jax import bundles, cli, files, images, parts, samplers
from dimo_jax.errors import InputError
from dimo_jax.evaluation import benchmark_files, prompts
from dimo_jax.files import AnyPath
from dimo_jax.parallel import distributed
from dimo_jax.runs import conditions, drawing, text_drawing
from dimo_jax.training.progress import Progress

# Its own, not absl's global ones: other commands define flags of the same names.
FLAGS = flags.FlagValues()

flags.DEFINE_string("generator", None, "bundle of a generator, or a teacher", flag_values=FLAGS)
flags.DEFINE_string("tokenizer", None, "its bundle; default GENERATOR/tokenizer", flag_values=FLAGS)
flags.DEFINE_string("output", None, "x.png (grid), x.npz, or a folder of PNGs", flag_values=FLAGS)
flags.DEFINE_list("labels", None, "a row for each; default: all classes", flag_values=FLAGS)
flags.DEFINE_integer("num_per_label", 8, "images in a row", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "num",
    None,
    "images in all, the classes in turn, without rows",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "seed", 0, "of all randomness", lower_bound=0, upper_bound=2**32 - 1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "batch_size",
    None,
    "images in a batch, if there are as many; default: 64, of grids of more than 512 tokens fewer",
    lower_bound=1,
    flag_values=FLAGS,
)
# No defaults from here on: they stand in the bundle, and for a teacher in its sampler's settings.
flags.DEFINE_float("temperature", None, "divides the logits", flag_values=FLAGS)
flags.DEFINE_integer("top_k", None, "0 for all tokens", flag_values=FLAGS)
flags.DEFINE_float("top_p", None, "1 for all tokens", flag_values=FLAGS)
flags.DEFINE_float("ratio", None, "generator: share of [MASK] at the start", flag_values=FLAGS)
flags.DEFINE_float("sigma", None, "generator: noise on the embeddings", flag_values=FLAGS)
flags.DEFINE_enum(
    "sampler", None, list(samplers.SAMPLERS), "teacher: how it is decoded", flag_values=FLAGS
)
flags.DEFINE_integer("steps", None, "teacher: steps of the sampler", flag_values=FLAGS)
flags.DEFINE_string("schedule", None, "teacher: tokens written in each step", flag_values=FLAGS)
flags.DEFINE_string("randomize", None, "teacher: noise of the order", flag_values=FLAGS)
flags.DEFINE_float("choice_temperature", None, "teacher: noise of the order", flag_values=FLAGS)
flags.DEFINE_float("guidance", None, "teacher: s in u + s (c - u)", flag_values=FLAGS)
flags.DEFINE_string("guidance_schedule", None, "teacher: linear or constant", flag_values=FLAGS)
flags.DEFINE_multi_string(
    "option", [], "teacher: any other setting of the sampler, as name=value", flag_values=FLAGS
)
# For a network with text.
flags.DEFINE_multi_string("prompt", [], "a row of images for each", flag_values=FLAGS)
flags.DEFINE_enum(
    "prompts", None, list(prompts.READERS), "a benchmark's folder layout", flag_values=FLAGS
)
flags.DEFINE_string("metadata", None, "the benchmark's own list of prompts", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_per_prompt",
    None,
    "images of a prompt; default: 4 for geneval, else 1",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "text_encoder", None, "its bundle; default: text_encoder/ beside GENERATOR", flag_values=FLAGS
)
flags.DEFINE_string("negative_prompt", "", "teacher: what guidance leaves", flag_values=FLAGS)
flags.DEFINE_enum(
    "compute_dtype",
    "float32",
    ["float32", "bfloat16"],
    "of the token network; parameters and logits are float32 in any case",
    flag_values=FLAGS,
)
flags.mark_flags_as_required(["generator", "output"], flag_values=FLAGS)
cli.define_process_flags(FLAGS)

_GENERATOR_FLAGS = ("ratio", "sigma")
_TEACHER_FLAGS = {
    "steps": "num_steps",
    "schedule": "schedule",
    "randomize": "randomize",
    "choice_temperature": "choice_temperature",
    "guidance": "guidance",
    "guidance_schedule": "guidance_schedule",
}
_ALL_FLAGS = ("temperature", "top_k", "top_p")


def chosen_labels(
    labels: list[str] | None, num: int | None, num_per_label: int, num_classes: int
) -> Int[ndarray, "N"]:
    """The label of every image.

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
    named = [str(i) for i in range(num_classes)] if labels is None else labels
    wrong = [x for x in named if not x.strip().isdecimal() or int(x) >= num_classes]
    if wrong or not named:
        raise InputError(
            f"--labels has {', '.join(map(repr, wrong)) or 'nothing'}; labels are whole numbers "
            f"from 0 to {num_classes - 1}"
        )
    return np.repeat(np.asarray(named, np.int32), num_per_label)


def check_output(path: AnyPath) -> None:
    """Refuses an output that cannot be written, before the work and not after it."""
    if not path.name:
        raise InputError(f"--output={FLAGS.output} names nothing; give a file or a new folder")
    if path.suffix not in (".png", ".npz", ""):
        raise InputError(f"--output={path} must end in .png or .npz, or be a folder")
    if path.suffix and path.is_dir():
        raise InputError(f"--output={path} is a folder")
    if path.suffix or not path.exists():
        files.check_writable(path)
        return
    # In an object store the pictures are there one by one, while the same command had the parts.
    joining = files.is_remote(path) and parts.folder_of(path).exists()
    if not path.is_dir() or (any(path.iterdir()) and not joining):
        raise InputError(f"--output={path} must be a new or empty folder")


def _value(text: str) -> Any:
    """An option's value: a number, true or false, or the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _overrides(model: bundles.Bundle) -> dict[str, Any]:
    """The sampler settings given as flags."""
    teacher = {field: FLAGS[flag].value for flag, field in _TEACHER_FLAGS.items()}
    teacher["name"] = FLAGS.sampler
    for option in FLAGS.option:
        name, equals, text = option.partition("=")
        if not equals:
            raise InputError(f"--option={option} is not name=value")
        teacher[name] = _value(text)
    own = {name: FLAGS[name].value for name in _GENERATOR_FLAGS}
    foreign, whose, here = (
        ((*_TEACHER_FLAGS, "sampler"), "a teacher", "is a one-step generator")
        if model.kind == "generator"
        else (_GENERATOR_FLAGS, "a generator", "is a teacher")
    )
    given = [flag for flag in foreign if FLAGS[flag].value is not None]
    given += ["option"] if FLAGS.option and model.kind == "generator" else []
    if given:
        raise InputError(f"--{given[0]} is for {whose}; {model.path} {here}")
    values = teacher | own | {name: FLAGS[name].value for name in _ALL_FLAGS}
    return {name: value for name, value in values.items() if value is not None}


def main() -> None:
    """Flags in, pictures out."""
    output = files.path(FLAGS.output)
    if not FLAGS.prompts:
        check_output(output)
    cli.start_alike(FLAGS)
    devices = jax.local_device_count()
    if FLAGS.batch_size and FLAGS.batch_size % devices:
        raise InputError(
            f"--batch_size={FLAGS.batch_size} is not divisible by the {devices} devices; give "
            f"--batch_size={devices * math.ceil(FLAGS.batch_size / devices)}"
        )
    model, tokenizer = drawing.open_pair(FLAGS.generator, FLAGS.tokenizer, FLAGS.compute_dtype)
    with_text = text_drawing.takes_text(model)
    foreign = ("labels", "num") if with_text else ("prompt", "prompts", "metadata", "text_encoder")
    given = [name for name in foreign if FLAGS[name].value]
    if given:
        what = "prompts" if with_text else "classes"
        raise InputError(f"--{given[0]} is not for {model.path}, which takes {what}")
    draw = _draw_prompts if with_text else _draw_labels
    num = draw(model, tokenizer, output)
    if distributed.is_lead():
        print(f"{num} images, seed {FLAGS.seed}: {output}")


def _draw_labels(model: bundles.Bundle, tokenizer: bundles.Bundle, output: AnyPath) -> int:
    """Images of classes; returns how many."""
    network = model.build()
    labels = chosen_labels(FLAGS.labels, FLAGS.num, FLAGS.num_per_label, network.num_classes)
    batch_size = drawing.images_at_once(network.num_tokens, FLAGS.batch_size, len(labels))
    overrides = _overrides(model)
    drawing.sampler_of(model, overrides)  # refuses them before anything is drawn
    if output.suffix != ".png":
        drawing.draw_set(
            model,
            tokenizer,
            labels,
            output,
            seed=FLAGS.seed,
            batch_size=batch_size,
            overrides=overrides,
            named_labels=FLAGS.labels,
        )
    elif distributed.is_lead():

        def draw(start: int, stop: int) -> UInt8[ndarray, "B H W C"]:
            some = labels[start:stop]
            tokens = drawing.draw_tokens(model, some, FLAGS.seed, batch_size, overrides, start)
            return images.to_uint8(drawing.decode_images(tokenizer, tokens, batch_size))

        pixels = _batch_by_batch(draw, len(labels), batch_size)
        columns = math.ceil(math.sqrt(len(pixels))) if FLAGS.num else FLAGS.num_per_label
        names = None if FLAGS.num else [str(x) for x in labels[::columns]]
        images.save_png(output, images.grid(pixels, columns, names))
    return len(labels)


def _batch_by_batch(
    draw: Callable[[int, int], UInt8[ndarray, "B H W C"]], num: int, batch_size: int
) -> UInt8[ndarray, "N H W C"]:
    """All images of a grid, from draw(start, stop)."""
    drawn = []
    with Progress("sample") as progress:
        for start in range(0, num, batch_size):
            progress.update(start, num, "images")
            drawn.append(draw(start, min(start + batch_size, num)))
        progress.update(num, num, "images")
    return np.concatenate(drawn)


def _draw_prompts(model: bundles.Bundle, tokenizer: bundles.Bundle, output: AnyPath) -> int:
    """Images of prompts; returns how many."""
    if bool(FLAGS.prompt) == bool(FLAGS.prompts):
        raise InputError(f"{model.path} takes prompts: give --prompt=TEXT, or --prompts=LAYOUT")
    found = prompts.asked(FLAGS.prompts, FLAGS.metadata)
    if FLAGS.prompt and output.suffix != ".png":
        raise InputError(f"--output={output} must end in .png; --prompts=plain fills a folder")
    per_prompt = FLAGS.num_per_prompt or (4 if FLAGS.prompts == "geneval" else 1)
    num = per_prompt * len(found or FLAGS.prompt)
    batch_size = drawing.images_at_once(model.build().num_tokens, FLAGS.batch_size, num)
    drawn = text_drawing.TextImages(
        model,
        tokenizer,
        conditions.load_encoder(FLAGS.text_encoder, model.path),
        seed=FLAGS.seed,
        batch_size=batch_size,
        overrides=_overrides(model),
        negative_prompt=FLAGS.negative_prompt,
    )
    if found is None:
        items = [(text, i, k) for i, text in enumerate(FLAGS.prompt) for k in range(per_prompt)]
        if distributed.is_lead():
            pixels = _batch_by_batch(lambda i, j: drawn(items[i:j]), num, batch_size)
            images.save_png(output, images.grid(pixels, per_prompt))
        return num
    with Progress("sample", silent=not distributed.is_lead()) as progress:
        benchmark_files.write_benchmark(
            FLAGS.prompts,
            found,
            drawn,
            files.local(output),
            per_prompt,
            FLAGS.seed,
            drawn.settings,
            batch_size,
            (jax.process_index(), jax.process_count()),
            lambda done, total: progress.update(done, total, "images"),
        )
    distributed.barrier("sampled")
    return num


if __name__ == "__main__":
    cli.run(main, FLAGS)
