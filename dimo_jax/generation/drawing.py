"""Images of a bundle: a generator's in one step, a teacher's by its authors' decoding.

An image depends on the seed, its place in the order and its label, not on how many are drawn, in
what batches, on how many devices or by how many processes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from numpy import ndarray

from dimo_jax import bundles, models, samplers
from dimo_jax.common import images
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.generation.sample_files import write_samples
from dimo_jax.samplers import one_step
from dimo_jax.tokenizers.tokenizer import decode_in_chunks

# In a batch where no size is asked for: 64 grids of 16x16, 8 of Meissonic's 64x64, whose logits
# alone take a gigabyte.
TOKENS_AT_ONCE = 1 << 15


def open_pair(
    path: AnyPath | str | bundles.Bundle,
    tokenizer: AnyPath | str | bundles.Bundle | None = None,
    compute_dtype: str = "float32",
) -> tuple[bundles.Bundle, bundles.Bundle]:
    """Return a generator or teacher and its tokenizer, with parameters on the device.

    Args:
        path: of the bundle, or of a run; or the bundle.
        tokenizer: see `open_tokenizer`; or its bundle.
        compute_dtype: of the token network, "float32" or "bfloat16".

    Raises:
        InputError: one of them cannot be read, is of another kind, or they do not belong together.
    """
    model = path if isinstance(path, bundles.Bundle) else bundles.load(path)
    if model.kind not in ("generator", "teacher"):
        raise InputError(f"{model.path} is a {model.kind}; give a generator's or teacher's bundle")
    is_open = isinstance(tokenizer, bundles.Bundle)
    found = tokenizer if is_open else open_tokenizer(model, tokenizer)
    if compute_dtype != "float32":
        model = dataclasses.replace(model, compute=models.Compute(dtype=compute_dtype))
    # Once: from the host's memory every batch would send them to the device again.
    return tuple(dataclasses.replace(x, params=jax.device_put(x.params)) for x in (model, found))


def open_tokenizer(model: bundles.Bundle, path: AnyPath | str | None = None) -> bundles.Bundle:
    """Return the tokenizer that a generator's or teacher's tokens belong to.

    Args:
        model: the generator or teacher.
        path: of the tokenizer's bundle; None: the one inside the model's, or Meissonic's vqvae/
            beside it.

    Raises:
        InputError: there is none, or it is another than the model was trained with.
    """
    inside = model.path / bundles.TOKENIZER_FOLDER
    beside = model.path.parent / bundles.VQVAE_FOLDER
    own = next((place for place in (inside, beside) if place.exists()), None)
    if not path and own is None:
        about = model.tokenizer or {"config": {}, "hash": ""}
        known = f" of {about['config'].get('name')}" if about["hash"] else ""
        hashed = f" with the hash {about['hash'][:12]}..." if about["hash"] else ""
        raise InputError(
            f"{model.path} has no {bundles.TOKENIZER_FOLDER}/ inside; give --tokenizer=BUNDLE, the "
            f"bundle{known}{hashed} that its tokens belong to"
        )
    return bundles.load_tokenizer(path or own, model)


def images_at_once(num_tokens: int, given: int | None, num: int | None = None) -> int:
    """Return the size of a batch, which is always filled up.

    What is in it beyond `num` is drawn in vain.

    Args:
        num_tokens: L.
        given: what was asked for; None: 64, of long grids fewer (TOKENS_AT_ONCE).
        num: images that there are to draw at all; None: many.

    Returns:
        At most `given`; without it a multiple of this process's devices.
    """
    size = given or min(64, max(1, TOKENS_AT_ONCE // num_tokens))
    needed = size if num is None else min(size, num)
    devices = jax.local_device_count()
    spread = devices * math.ceil(needed / devices)
    return spread if given is None else min(given, spread)


def sampler_of(model: bundles.Bundle, overrides: Mapping[str, Any]) -> Any:
    """Return the settings that a bundle is sampled with.

    Args:
        model: a bundle of kind "generator" or "teacher".
        overrides: settings to use in place of the bundle's; "name" is the sampler's.

    Returns:
        Settings of a sampler in samplers.SAMPLERS: of "one_step" for a generator.

    Raises:
        InputError: a setting is unknown, missing or out of range.
    """
    entry = {**(model.sampler or {}), **overrides}
    if model.kind == "generator":
        return one_step.settings_from(entry, model.build())
    if "num_steps" not in entry:
        raise InputError(f"{model.path} is a teacher, which needs --steps=N, e.g. --steps=8")
    return samplers.settings_for(model.build(), entry)


def described(model: bundles.Bundle, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return as plain values all settings that a bundle is sampled with, "name" among them."""
    settings = sampler_of(model, overrides)
    name = samplers.name_of(settings)
    if name == "one_step":
        # The settings hold sizes of the network too.
        return {"name": name, **(model.sampler or {}), **overrides}
    return {"name": name, **dataclasses.asdict(settings)}


def draw_tokens(
    model: bundles.Bundle,
    labels: Int[ndarray, "N"],
    seed: int,
    batch_size: int,
    overrides: Mapping[str, Any],
    first_index: int = 0,
) -> Int[ndarray, "N L"]:
    """Tokens for labels, by the one step of a generator or a teacher's decoding.

    Args:
        model: a bundle of kind "generator" or "teacher".
        labels: int32, in [0, num_classes).
        seed: image i has the key fold_in(key(seed), first_index + i).
        batch_size: images in a batch.
        overrides: as for `sampler_of`.
        first_index: the first image's index.

    Returns:
        [N, L] int32.

    Raises:
        InputError: as `sampler_of`.
    """
    null = np.full_like(labels, model.build().num_classes)
    key = jax.random.key(seed)
    return draw_conditions(model, key, labels, null, batch_size, overrides, first_index)


def draw_conditions(
    model: bundles.Bundle,
    key: Key[Array, "..."],
    condition: Any,
    null_condition: Any,
    batch_size: int,
    overrides: Mapping[str, Any],
    first_index: int = 0,
) -> Int[ndarray, "N L"]:
    """Tokens for any kind of condition.

    Args:
        model: a bundle of kind "generator" or "teacher".
        key: of the whole set, or one for each image; see samplers.batches.
        condition: pytree of arrays with a leading axis N.
        null_condition: the same for "no condition", which a generator does not look at.
        batch_size: images in a batch.
        overrides: as for `sampler_of`.
        first_index: the first image's index.

    Returns:
        [N, L] int32.

    Raises:
        InputError: as `sampler_of`.
    """
    settings = sampler_of(model, overrides)
    return samplers.sample(
        model.build(),
        model.params,
        key,
        condition,
        null_condition,
        settings,
        batch_size,
        first_index,
    )


def image_size(tokenizer: bundles.Bundle) -> tuple[int, int]:
    """Height and width of the images of a tokenizer's bundle; none is decoded."""
    network = tokenizer.build()
    tokens = jax.ShapeDtypeStruct((1, network.num_tokens), np.int32)
    return jax.eval_shape(network.decode, tokenizer.params, tokens).shape[1:3]


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
    return decode_in_chunks(tokenizer.build(), tokenizer.params, tokens, batch_size)


def draw_set(
    model: bundles.Bundle,
    tokenizer: bundles.Bundle,
    labels: Int[ndarray, "N"],
    output: AnyPath,
    *,
    seed: int,
    batch_size: int,
    overrides: Mapping[str, Any],
    named_labels: list[str] | None = None,
    tokens_of: Callable[[int, int], Int[ndarray, "n L"]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> int:
    """Draw what is missing of a file or folder, range by range, then join.

    Args:
        model: a bundle of kind "generator" or "teacher".
        tokenizer: its tokenizer's.
        labels: int32 [N].
        output: an .npz file or a folder; see generation.sample_files.
        seed: of the images.
        batch_size: images in a batch.
        overrides: as for `sampler_of`.
        named_labels: as typed, for the record.
        tokens_of: draws the images [start, stop) of a network with text, whose labels are the
            numbers of prompts; None: the labels are classes.
        about: further plain values that decide the images.

    Returns:
        How many images were there already.

    Raises:
        InputError: as `sampler_of`; the place was begun with other settings.
    """
    computed = {} if model.compute is None else {"compute_dtype": model.compute.dtype}
    settings = {
        "model": model.params_hash,
        "tokenizer": tokenizer.params_hash,
        "sampler": described(model, overrides),
        "seed": seed,
        "labels": named_labels,
        "rounding": "to the nearest level, half up",
        **computed,
        **(about or {}),
    }
    named = "labels" if tokens_of is None else "prompts"
    if tokens_of is None:

        def tokens_of(start: int, stop: int) -> Int[ndarray, "n L"]:
            return draw_tokens(model, labels[start:stop], seed, batch_size, overrides, start)

    def draw(start: int, stop: int) -> tuple[UInt8[ndarray, "n H W C"], Int[ndarray, "n L"]]:
        tokens = tokens_of(start, stop)
        return images.to_uint8(decode_images(tokenizer, tokens, batch_size)), tokens

    return write_samples(output, labels, settings, draw, named)
