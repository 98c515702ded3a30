"""Images of a bundle: a generator's in its one step, a teacher's by its authors' decoding.

An image depends on the seed, its place in the order and its label, not on how many are drawn, in
what batches, on how many devices or by how many processes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from numpy import ndarray

from dimo_jax import bundles, models, samplers
from dimo_jax.common import images, trees
from dimo_jax.common.errors import InputError, about
from dimo_jax.common.files import AnyPath
from dimo_jax.generation.sample_files import write_samples
from dimo_jax.models import joined
from dimo_jax.tokenizers.tokenizer import Tokenizer, decode_in_chunks

# In a batch where no size is given: 64 grids of 16x16, 8 of Meissonic's 64x64, whose logits
# alone take a gigabyte.
TOKENS_AT_ONCE = 1 << 15


def open_pair(
    path: AnyPath | str | bundles.Bundle,
    tokenizer: AnyPath | str | bundles.Bundle | None = None,
    compute_dtype: str = "float32",
    guide: AnyPath | str | None = None,
) -> tuple[bundles.Bundle, bundles.Bundle]:
    """Return a generator or teacher and its tokenizer, with parameters on the device.

    Args:
        path: of the bundle, or of a run; or the bundle.
        tokenizer: see `open_tokenizer`; or its bundle.
        compute_dtype: of the token network, "float32" or "bfloat16".
        guide: bundle of the teacher that the guidance leads away from; None: from the network's
            own logits without a condition.

    Raises:
        InputError: one of them cannot be read, is of another kind, or they do not belong together.
    """
    model = path if isinstance(path, bundles.Bundle) else bundles.load(path)
    if model.kind not in ("generator", "teacher"):
        raise InputError(f"{model.path} is a {model.kind}; give a generator's or teacher's bundle")
    if guide is not None:
        model = _guided(model, bundles.load(guide, "teacher"))
    is_open = isinstance(tokenizer, bundles.Bundle)
    found = tokenizer if is_open else open_tokenizer(model, tokenizer)
    if compute_dtype != "float32":
        model = dataclasses.replace(model, compute=models.Compute(compute_dtype, attention="auto"))
    # Once: from the host's memory every batch would send them to the device again.
    model, found = (dataclasses.replace(x, params=jax.device_put(x.params)) for x in (model, found))
    return model, found


def _guided(model: bundles.Bundle, guide: bundles.Bundle) -> bundles.Bundle:
    """Return a bundle in memory of a network and its guide; see models.joined.guided."""
    hashes = [x.tokenizer and x.tokenizer["hash"] for x in (model, guide)]
    if None not in hashes and hashes[0] != hashes[1]:
        raise InputError(f"{guide.path} and {model.path} were trained with different tokenizers")
    params = {joined.NETWORK: model.params, joined.GUIDE: guide.params}
    config = {"name": "guided", joined.NETWORK: model.model, joined.GUIDE: guide.model}
    found = dataclasses.replace(
        model, model=config, params=params, params_hash=trees.fingerprint(params)
    )
    with about(f"--guide={guide.path}"):
        found.build()
    return found


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
    chosen = path or own
    if chosen is None:
        about = model.tokenizer or {"config": {}, "hash": ""}
        known = f" of {about['config'].get('name')}" if about["hash"] else ""
        hashed = f" with the hash {about['hash'][:12]}..." if about["hash"] else ""
        raise InputError(
            f"{model.path} has no {bundles.TOKENIZER_FOLDER}/ inside; give --tokenizer=BUNDLE, the "
            f"bundle{known}{hashed} that its tokens belong to"
        )
    return bundles.load_tokenizer(chosen, model)


def images_at_once(num_tokens: int, given: int | None, num: int | None = None) -> int:
    """Return the size of a batch, which is always filled up.

    What is in it beyond `num` is drawn in vain.

    Args:
        num_tokens: L.
        given: the size requested; None: 64, of long grids fewer (TOKENS_AT_ONCE).
        num: images that there are to draw at all; None: many.

    Returns:
        At most `given`; without it a multiple of this process's devices.
    """
    size = given or min(64, max(1, TOKENS_AT_ONCE // num_tokens))
    needed = size if num is None else min(size, num)
    devices = jax.local_device_count()
    spread = devices * math.ceil(needed / devices)
    return spread if given is None else min(given, spread)


def is_one_step(model: bundles.Bundle) -> bool:
    """Return whether a bundle is Di[M]O's generator, whose steps its training decides, usually one.

    Others are sampled in any number.
    """
    return model.kind == "generator" and "name" not in (model.sampler or {})


def sampler_of(model: bundles.Bundle, overrides: Mapping[str, Any]) -> Any:
    """Return the settings that a bundle is sampled with.

    Args:
        model: a bundle of kind "generator" or "teacher".
        overrides: settings to use in place of the bundle's; "name" is the sampler's.

    Returns:
        Settings of a sampler in samplers.SAMPLERS: of "one_step" for a one-step generator.

    Raises:
        InputError: a setting is unknown, missing or out of range, or has no use for a guide.
    """
    entry, network = {**(model.sampler or {}), **overrides}, model.build()
    if is_one_step(model):
        chosen = samplers.of_generator(network, entry)
    elif "num_steps" not in entry:
        raise InputError(f"{model.path} is a teacher, which needs --steps=N, e.g. --steps=8")
    else:
        chosen = samplers.settings_for(network, entry)
    is_maskgit = samplers.name_of(chosen) == "maskgit"
    if network.guide and not (is_maskgit and getattr(chosen, "guidance", 1) != 1):
        raise InputError(
            f"--guide is for the guidance of the sampler maskgit, and {model.path} is sampled "
            "without; give --sampler=maskgit --guidance=S, S above 1"
        )
    return chosen


def described(model: bundles.Bundle, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return as plain values all settings that a bundle is sampled with, "name" among them."""
    settings = sampler_of(model, overrides)
    name = samplers.name_of(settings)
    if name == "one_step":
        # The settings hold sizes of the network too.
        entry, steps = {**(model.sampler or {}), **overrides}, settings.num_steps
        entry |= {"num_steps": steps} if "step_ratios" in entry else {}
        return {"name": name if steps == 1 else "few_steps", **entry}
    return {"name": name, **dataclasses.asdict(settings)}


class ImageModel(NamedTuple):
    """A token network and the tokenizer that its tokens belong to."""

    network: models.Network
    params: Any
    tokenizer: Tokenizer
    tokenizer_params: Any


class Drawn(NamedTuple):
    """Some images.

    Attributes:
        tokens: [N, L] int32.
        pixels: float32 in [0, 1].
    """

    tokens: Int[ndarray, "N L"]
    pixels: Float[ndarray, "N H W C"]


def draw(
    model: ImageModel,
    sampler: Any,
    key: Key[Array, "..."],
    condition: Any,
    null_condition: Any,
    batch_size: int,
    first_index: int = 0,
) -> Drawn:
    """Draw images: in training, in its evaluation and of bundles alike.

    Args:
        model: of any kind of condition.
        sampler: settings of any sampler, which choose it; see samplers.sample.
        key: of the whole set, image i has fold_in(key, first_index + i); or one for each image.
        condition: pytree of arrays with a leading axis N.
        null_condition: the same for "no condition"; None where the sampler has no guidance.
        batch_size: images in a batch, always filled up.
        first_index: the first image's index.

    Raises:
        InputError: the settings do not fit the number of tokens.
    """
    tokens = samplers.sample(
        model.network,
        model.params,
        key,
        condition,
        null_condition,
        sampler,
        batch_size,
        first_index,
    )
    pixels = decode_in_chunks(model.tokenizer, model.tokenizer_params, tokens, batch_size)
    return Drawn(tokens, pixels)


def model_of(model: bundles.Bundle, tokenizer: bundles.Bundle) -> ImageModel:
    """Return the network of a bundle with its tokenizer's."""
    return ImageModel(model.build(), model.params, tokenizer.build(), tokenizer.params)


def draw_labels(
    model: bundles.Bundle,
    tokenizer: bundles.Bundle,
    labels: Int[ndarray, "N"],
    seed: int,
    batch_size: int,
    overrides: Mapping[str, Any],
    first_index: int = 0,
) -> Drawn:
    """Draw images of labels, by the one step of a generator or a teacher's decoding.

    Args:
        model: a bundle of kind "generator" or "teacher".
        tokenizer: its tokenizer's.
        labels: int32, in [0, num_classes).
        seed: image i has the key fold_in(key(seed), first_index + i).
        batch_size: images in a batch.
        overrides: as for `sampler_of`.
        first_index: the first image's index.

    Raises:
        InputError: as `sampler_of`.
    """
    found, sampler = model_of(model, tokenizer), sampler_of(model, overrides)
    null = np.full_like(labels, found.network.num_classes)
    return draw(found, sampler, jax.random.key(seed), labels, null, batch_size, first_index)


def image_size(tokenizer: bundles.Bundle) -> tuple[int, int]:
    """Height and width of the images of a tokenizer's bundle; none is decoded."""
    network = tokenizer.build()
    tokens = jax.ShapeDtypeStruct((1, network.num_tokens), np.int32)
    return jax.eval_shape(network.decode, tokenizer.params, tokens).shape[1:3]


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
    draw_range: Callable[[int, int], Drawn] | None = None,
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
        draw_range: draws the images [start, stop) of a network with text, whose labels are the
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

    def draw_some(start: int, stop: int) -> tuple[UInt8[ndarray, "n H W C"], Int[ndarray, "n L"]]:
        if draw_range is None:
            some = labels[start:stop]
            drawn = draw_labels(model, tokenizer, some, seed, batch_size, overrides, start)
        else:
            drawn = draw_range(start, stop)
        return images.to_uint8(drawn.pixels), drawn.tokens

    named = "labels" if draw_range is None else "prompts"
    return write_samples(output, labels, settings, draw_some, named)
