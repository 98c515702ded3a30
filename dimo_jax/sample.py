"""Images from a bundle on disk.

python -m dimo_jax.sample --generator=runs/digits/export --labels=0,1,2 --output=grid.png
python -m dimo_jax.sample --generator=runs/digits/export --num=1000 --output=samples.npz
python -m dimo_jax.sample --generator=TEACHER --tokenizer=TOKENIZER --steps=8 --output=folder/

A teacher's bundle is sampled with MaskGit decoding, which needs --steps. An image depends on the
seed, its place in the order and its label, not on how many are drawn or in what batches.
"""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from dimo_jax import bundles, cli, files, images
from dimo_jax.errors import InputError
from dimo_jax.samplers import batches, maskgit, one_step

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
flags.DEFINE_integer("batch_size", 64, "images in a batch", lower_bound=1, flag_values=FLAGS)
# No defaults from here on: they stand in the bundle, and for a teacher in MaskGitSettings.
flags.DEFINE_float("temperature", None, "divides the logits", flag_values=FLAGS)
flags.DEFINE_integer("top_k", None, "0 for all tokens", flag_values=FLAGS)
flags.DEFINE_float("top_p", None, "1 for all tokens", flag_values=FLAGS)
flags.DEFINE_integer("steps", None, "teacher: network calls", flag_values=FLAGS)
flags.DEFINE_string(
    "schedule", None, f"teacher: {', '.join(maskgit.UNMASK_SCHEDULES)}", flag_values=FLAGS
)
flags.DEFINE_string(
    "randomize", None, f"teacher: order, {', '.join(maskgit.RANDOMIZE)}", flag_values=FLAGS
)
flags.DEFINE_float("choice_temperature", None, "teacher: noise of the order", flag_values=FLAGS)
flags.DEFINE_float("guidance", None, "teacher: s in u + s (c - u)", flag_values=FLAGS)
flags.DEFINE_string(
    "guidance_schedule",
    None,
    f"teacher: {', '.join(maskgit.GUIDANCE_SCHEDULES)}",
    flag_values=FLAGS,
)
flags.mark_flags_as_required(["generator", "output"], flag_values=FLAGS)

_TEACHER_FLAGS = {
    "steps": "num_steps",
    "schedule": "schedule",
    "randomize": "randomize",
    "choice_temperature": "choice_temperature",
    "guidance": "guidance",
    "guidance_schedule": "guidance_schedule",
}
_ALL_FLAGS = ("temperature", "top_k", "top_p")


def draw_tokens(
    model: bundles.Bundle,
    labels: Int[ndarray, "N"],
    seed: int,
    batch_size: int,
    overrides: Mapping[str, Any],
) -> Int[ndarray, "N L"]:
    """Tokens for labels, by the one step of a generator or a teacher's decoding.

    Args:
        model: a bundle of kind "generator" or "teacher".
        labels: int32, in [0, num_classes).
        seed: image i has the key fold_in(key(seed), i).
        batch_size: images in a batch.
        overrides: sampler settings to use in place of the bundle's.

    Returns:
        [N, L] int32.

    Raises:
        InputError: a setting is unknown, missing or out of range.
    """
    network, key = model.build(), jax.random.key(seed)
    sampler = {**(model.sampler or {}), **overrides}
    if model.kind == "generator":
        settings = one_step.settings_from(sampler, network)
        return one_step.sample(network.apply, model.params, key, labels, settings, batch_size)
    if "num_steps" not in sampler:
        raise InputError(f"{model.path} is a teacher, which needs --steps=N, e.g. --steps=8")
    try:
        settings = maskgit.MaskGitSettings(**sampler)
    except TypeError as error:
        raise InputError(f"{model.path} has a sampler for another program: {error}") from error
    null = np.full_like(labels, network.num_classes)
    return maskgit.sample(
        network.apply,
        model.params,
        key,
        labels,
        null,
        settings,
        network.num_tokens,
        network.mask_id,
        batch_size,
    )


def decode_images(
    tokenizer: bundles.Bundle, tokens: Int[ndarray, "N L"], batch_size: int
) -> Float[ndarray, "N H W C"]:
    """Images in [0, 1] of any number of token grids.

    Args:
        tokenizer: its bundle.
        tokens: [N, L].
        batch_size: images in a call.

    Returns:
        [N, H, W, C] float32.
    """
    built = tokenizer.build()
    return batches.in_batches(
        lambda _, part: built.decode(tokenizer.params, part),
        jax.random.key(0),
        tokens,
        batch_size,
    )


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


def check_output(path: Path) -> None:
    """Refuses an output that cannot be written, before the work and not after it."""
    if not path.name:
        raise InputError(f"--output={FLAGS.output} names nothing; give a file or a new folder")
    if path.suffix not in (".png", ".npz", ""):
        raise InputError(f"--output={path} must end in .png or .npz, or be a folder")
    if path.suffix and path.is_dir():
        raise InputError(f"--output={path} is a folder")
    if not path.suffix and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"--output={path} must be a new or empty folder")


def write(
    path: Path,
    pixels: UInt8[ndarray, "N H W C"],
    tokens: Int[ndarray, "N L"],
    labels: Int[ndarray, "N"],
    per_row: int | None,
) -> None:
    """Writes what was drawn in the form that the path's ending asks for.

    Args:
        path: .png for one grid, .npz for the arrays images, tokens and labels, else a folder with
            a PNG for each image.
        pixels: the images.
        tokens: their tokens.
        labels: their labels.
        per_row: images of a grid's row, all of one label, which stands beside it; None for a
            square without names.
    """
    if path.suffix == ".png":
        columns = per_row or math.ceil(math.sqrt(len(pixels)))
        names = [str(x) for x in labels[::per_row]] if per_row else None
        images.save_png(path, images.grid(pixels, columns, names))
    elif path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=pixels, tokens=tokens, labels=labels)
        files.write_file(path, buffer.getvalue())
    else:
        digits = len(str(len(pixels) - 1))
        names = [f"{i:0{digits}d}_label{label}.png" for i, label in enumerate(labels)]
        pictures = zip(names, map(images.encode_png, pixels), strict=True)
        files.write_folder(path, dict(pictures))


def _overrides(model: bundles.Bundle) -> dict[str, Any]:
    """The sampler settings given as flags."""
    teacher = {field: FLAGS[flag].value for flag, field in _TEACHER_FLAGS.items()}
    given = [flag for flag in _TEACHER_FLAGS if FLAGS[flag].value is not None]
    if given and model.kind == "generator":
        raise InputError(f"--{given[0]} is for a teacher; {model.path} is a one-step generator")
    values = teacher | {name: FLAGS[name].value for name in _ALL_FLAGS}
    return {name: value for name, value in values.items() if value is not None}


def main() -> None:
    """Flags in, pictures out."""
    output = Path(FLAGS.output)
    check_output(output)
    model = bundles.load(FLAGS.generator)
    if model.kind not in ("generator", "teacher"):
        raise InputError(f"{model.path} is a {model.kind}; give a generator's or teacher's bundle")
    overrides = _overrides(model)
    labels = chosen_labels(FLAGS.labels, FLAGS.num, FLAGS.num_per_label, model.build().num_classes)
    tokenizer = bundles.load_tokenizer(
        FLAGS.tokenizer or model.path / bundles.TOKENIZER_FOLDER, model
    )
    tokens = draw_tokens(model, labels, FLAGS.seed, FLAGS.batch_size, overrides)
    pixels = images.to_uint8(decode_images(tokenizer, tokens, FLAGS.batch_size))
    write(output, pixels, tokens, labels, None if FLAGS.num else FLAGS.num_per_label)
    print(f"{len(labels)} images, seed {FLAGS.seed}: {output}")


if __name__ == "__main__":
    cli.run(main, FLAGS)
