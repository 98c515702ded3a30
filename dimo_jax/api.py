"""Models for notebooks and scripts; `dimo_jax.load` opens one.

generator = dimo_jax.load("runs/digits/export")
images = generator(labels=[3, 1, 4], seed=0)
teacher = dimo_jax.load("runs/digits/teacher")
images = teacher(labels=[3], steps=8, guidance=2.0)
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from jaxtyping import Int, UInt8

from dimo_jax import bundles
from dimo_jax.bundles import places
from dimo_jax.common import files, hub, images
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.shown import shown
from dimo_jax.conditions import text_encoder
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER
from dimo_jax.conditions.text_encoder import TextEncoder
from dimo_jax.generation import drawing, text_drawing
from dimo_jax.generation.drawing import Drawn
from dimo_jax.models import Network
from dimo_jax.parallel import backend
from dimo_jax.runs import snapshots
from dimo_jax.samplers import one_step

EXPORTED = ".stablehlo"
_SEEDS = 2**32
Labels = Sequence[int] | np.ndarray


class ImageModel:
    """A generator or teacher with its tokenizer and, where it takes text, its text encoder.

    Args:
        bundle: of the token network, of drawing.open_pair.
        tokenizer: likewise.
        encoder: where its bundle lies, or itself; None: text_encoder/ in the bundle or beside it.

    Attributes:
        bundle: what the network was read from: its sampler, its provenance, its path.
        tokenizer: its tokenizer's bundle.
        network: the token network; network.apply(params, tokens, condition) gives logits.
        params: its parameters, on the device.
    """

    def __init__(
        self,
        bundle: bundles.Bundle,
        tokenizer: bundles.Bundle,
        encoder: TextEncoder | AnyPath | str | None = None,
    ):
        self.bundle, self.tokenizer, self._encoder = bundle, tokenizer, encoder
        self.network: Network = bundle.build()
        self.params = bundle.params
        self.takes_text = text_drawing.takes_text(bundle)

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """Return the text encoder, which is read when it is first needed.

        Raises:
            InputError: there is none, or it is not the network's.
        """
        if isinstance(self._encoder, TextEncoder):
            return self._encoder
        expected = self.bundle.provenance.get(TEXT_ENCODER_FOLDER)
        return text_encoder.load_encoder(self._encoder, self.bundle.path, expected)

    def __call__(
        self,
        labels: Labels | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        **sampler: Any,
    ) -> UInt8[np.ndarray, "N H W 3"]:
        """Draw an image of each label or prompt; the images are those of dimo_jax.sample.

        Args:
            labels: of a network of classes.
            prompts: of a network with text.
            seed: of all randomness, in 0 .. 2^32 - 1.
            batch_size: images in a batch, which is filled up; None: as drawing.images_at_once.
            **sampler: in place of the bundle's settings: temperature, top_k, top_p; of a generator
                ratio and sigma; of a teacher steps (or num_steps), guidance and any other of its
                sampler, with text negative_prompt too.

        Raises:
            InputError: a label, prompt, seed or setting cannot be used.
        """
        drawn = self.draw(labels, prompts, seed=seed, batch_size=batch_size, **sampler)
        return images.in_rgb(images.to_uint8(drawn.pixels))

    def tokens(
        self,
        labels: Labels | None = None,
        prompts: Sequence[str] | None = None,
        **options: Any,
    ) -> Int[np.ndarray, "N L"]:
        """Draw tokens, int32: those of the images that a call with the same arguments returns."""
        return self.draw(labels, prompts, **options).tokens

    def draw(
        self,
        labels: Labels | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        first_index: int = 0,
        **sampler: Any,
    ) -> Drawn:
        """Draw tokens and pixels, float32 in [0, 1] and of as many channels as the tokenizer has.

        Args:
            labels: as for a call.
            prompts: as for a call.
            seed: as for a call.
            batch_size: as for a call.
            first_index: the first image's index in a larger set.
            **sampler: as for a call.

        Raises:
            InputError: as a call.
        """
        _check_seed(seed)
        given, other = (prompts, labels) if self.takes_text else (labels, prompts)
        if given is None or other is not None:
            one, two = ("prompts", "labels") if self.takes_text else ("labels", "prompts")
            raise InputError(f"{self.bundle.path} takes {one}: give {one}=[...], and no {two}")
        if "steps" in sampler:
            sampler["num_steps"] = sampler.pop("steps")
        negative = {"negative_prompt": sampler.pop("negative_prompt", "")}
        if not self.takes_text:
            if negative["negative_prompt"]:
                raise InputError(f"negative_prompt is for prompts; {self.bundle.path} has classes")
            numbers = check_labels(given, self.network.num_classes)
            size = batch_size or self._batch_size(len(numbers))
            pair = self.bundle, self.tokenizer
            return drawing.draw_labels(*pair, numbers, seed, size, sampler, first_index)
        texts = _texts(given)
        size = batch_size or self._batch_size(len(texts))
        drawn = self.text_images(seed=seed, batch_size=size, overrides=sampler, **negative)
        return drawn.draw([(text, first_index + i, 0) for i, text in enumerate(texts)])

    def _batch_size(self, num: int) -> int:
        return drawing.images_at_once(self.network.num_tokens, None, num)

    def text_images(self, **options: Any) -> text_drawing.TextImages:
        """Return what draws images of prompts; see text_drawing.TextImages for the options."""
        return text_drawing.TextImages(self.bundle, self.tokenizer, self.encoder, **options)

    def __repr__(self) -> str:
        """Say what it is: kind, network, size, sampler, place."""
        network, tokenizer = self.network, self.tokenizer.build()
        num = sum(x.size for x in jax.tree.leaves(self.params))
        height, width = tokenizer.image_shape[:2]
        drawn = "prompts" if self.takes_text else f"{network.num_classes} classes"
        num_steps = one_step.num_steps(self.bundle.sampler or {})
        has_own = drawing.is_one_step(self.bundle)
        steps = ("one step" if num_steps == 1 else f"{num_steps} steps") if has_own else "steps"
        return (
            f"<{self.bundle.kind} of {drawn} in {steps}: {network.config['name']}, {num:,} "
            f"parameters, {height}x{width} pixels of {network.num_tokens} tokens, "
            f"{self.bundle.path}>"
        )


class ExportedModel:
    """A generator of classes as dimo_jax.export --format=stablehlo wrote it: one function.

    Args:
        path: the file.

    Raises:
        InputError: it is no such file.
    """

    def __init__(self, path: AnyPath):
        self.path = path
        try:
            self._exported = jax_export.deserialize(bytearray(path.read_bytes()))
            height, width, _ = self._exported.out_avals[0].shape[1:]
            self._shape = int(height), int(width)
        except Exception as error:  # flatbuffers and XLA raise whatever they stumble over
            raise InputError(
                f"{path} is no exported generator ({shown(error)}); write it again with python -m "
                "dimo_jax.export --format=stablehlo"
            ) from error

    def __call__(self, labels: Labels, *, seed: int = 0) -> UInt8[np.ndarray, "N H W 3"]:
        """Draw an image of each label; how is in the file. The images are those of the bundle.

        Raises:
            InputError: a label is negative or no whole number.
        """
        _check_seed(seed)
        numbers = check_labels(labels, None)
        found = self._exported.call(np.array([0, seed], np.uint32), numbers)
        return images.in_rgb(images.to_uint8(np.asarray(found)))

    def __repr__(self) -> str:
        """Say what it is."""
        height, width = self._shape
        return f"<exported generator of classes: {height}x{width} pixels, {self.path}>"


def load(
    place: AnyPath | str,
    *,
    tokenizer: AnyPath | str | None = None,
    text_encoder: AnyPath | str | None = None,
    guide: AnyPath | str | None = None,
    step: int | str | None = None,
    compute_dtype: str = "float32",
) -> ImageModel | ExportedModel:
    """Open a model, ready to draw images.

    Args:
        place: the bundle of a generator or teacher; a run of dimo_jax.main, finished or not, for
            its generator; or a .stablehlo file of dimo_jax.export, for which the other arguments
            have no use. All of them may lie on the Hub: `hf://owner/repo[@revision][/path]`.
        tokenizer: bundle of its tokenizer; None: the one inside it.
        text_encoder: bundle of its text encoder; None: the one inside it or beside it.
        guide: bundle of a teacher that guidance leads away from; see drawing.open_pair.
        step: of a run the checkpoint: a number, "newest" or "best"; None: the finished generator,
            of an unfinished run the newest.
        compute_dtype: of the token network, "float32" or "bfloat16".

    Raises:
        InputError: it cannot be read, is something else, or its parts do not belong together.
    """
    path = files.path(hub.local(place))
    backend.start()
    if path.suffix == EXPORTED and path.is_file():
        return ExportedModel(path)
    options = {"source": path, "tokenizer": tokenizer, "encoder": text_encoder}
    if places.run_config(path) or step is not None:
        options = of_run(path, None if step is None else str(step), tokenizer, text_encoder)
    return open_model(**options, compute_dtype=compute_dtype, guide=guide)


def of_run(
    workdir: AnyPath,
    step: str | None,
    tokenizer: AnyPath | str | None,
    encoder: AnyPath | str | None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Return what `open_model` opens of a run: its finished generator, or that of a checkpoint.

    Args:
        workdir: of dimo_jax.main.
        step: as snapshots.generator_of.
        tokenizer: in place of the run's own.
        encoder: of text, likewise.
        note: gets a line on which checkpoint it is.

    Raises:
        InputError: there is none, it cannot be read, or the run has no images.
    """
    found = snapshots.generator_of(workdir, step)
    if not isinstance(found, snapshots.Snapshot):
        return {"source": found, "tokenizer": tokenizer, "encoder": encoder}
    if found.tokenizer is None:
        raise InputError(f"--workdir={workdir} is a run without images; nothing can be drawn")
    if note is not None:
        note(f"the averaged generator of step {found.step} of {workdir}")
    return {
        "source": found.generator,
        "tokenizer": tokenizer or found.tokenizer,
        "encoder": encoder or found.encoder,
    }


def open_model(
    source: AnyPath | str | bundles.Bundle,
    *,
    tokenizer: Any = None,
    encoder: Any = None,
    compute_dtype: str = "float32",
    guide: AnyPath | str | None = None,
) -> ImageModel:
    """Open a bundle on disk or in memory; see drawing.open_pair and ImageModel."""
    model, codec = drawing.open_pair(source, tokenizer, compute_dtype, guide)
    return ImageModel(model, codec, encoder)


def check_labels(
    given: Sequence[Any] | np.ndarray, num_classes: int | None, name: str = "labels"
) -> Int[np.ndarray, "N"]:
    """Return labels as int32.

    Args:
        given: whole numbers.
        num_classes: they must be below it; None: any.
        name: what they are called where they were given.

    Raises:
        InputError: there is none, or one is something else.
    """
    most = 2**31 if num_classes is None else num_classes
    found = []
    for label in given:
        try:
            number = operator.index(label)
        except TypeError:
            number = -1
        if not 0 <= number < most:
            raise InputError(
                f"{name} has {shown(str(label))}; labels are whole numbers from 0 to {most - 1}"
            )
        found.append(number)
    if not found:
        raise InputError(f"{name} is empty; give one for each image")
    return np.asarray(found, np.int32)


def _texts(given: Any) -> list[str]:
    if isinstance(given, str) or not all(isinstance(x, str) for x in given):
        raise InputError('prompts must be a list of texts, e.g. prompts=["a red ball"]')
    if not given:
        raise InputError("prompts is empty; give one for each image")
    return list(given)


def _check_seed(seed: int) -> None:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < _SEEDS:
        raise InputError(f"seed is {seed!r}; it must be a whole number from 0 to {_SEEDS - 1}")
