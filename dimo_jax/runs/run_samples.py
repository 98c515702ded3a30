"""The sets of samples by which a finished run is measured: its generator's and its teacher's."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dimo_jax import bundles
from dimo_jax.bundles import places
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.conditions import text_encoder
from dimo_jax.conditions.labels import in_turn
from dimo_jax.config import mixture
from dimo_jax.generation import drawing
from dimo_jax.generation.text_drawing import TextImages
from dimo_jax.parallel import distributed
from dimo_jax.samplers import one_step
from dimo_jax.training import load_models


class Prompts(NamedTuple):
    """What the images of a run with text are of.

    Attributes:
        texts: taken in turn.
        encoder: path of the text encoder's bundle.
        negative: the teacher's negative prompt.
    """

    texts: Sequence[str]
    encoder: AnyPath
    negative: str


class SampleSet(NamedTuple):
    """One set of samples: a row of the result.

    Attributes:
        model: "generator" or "teacher".
        steps: network calls of its sampler.
        bundle: of the model.
        tokenizer: its tokenizer's bundle.
        overrides: of its sampler's settings.
        text: the prompts of a run with text; None: classes.
        checkpoint: step of the generator's, where it is not the finished one's.
    """

    model: str
    steps: int
    bundle: AnyPath
    tokenizer: AnyPath
    overrides: Mapping[str, Any]
    text: Prompts | None = None
    checkpoint: int | None = None

    @property
    def name(self) -> str:
        """For files: generator_1_temperature_3.0, teacher_8_guidance_2.0."""
        values = [f"{name}_{value}" for name, value in sorted(self.overrides.items())]
        given = [text for text in values if not text.startswith("num_steps_")]
        if self.checkpoint is not None:
            given.insert(0, f"checkpoint_{self.checkpoint}")
        return "_".join([self.model, str(self.steps), *given])


def sets_of(
    workdir: AnyPath,
    steps: Sequence[int],
    temperatures: Sequence[float | int] = (),
    teacher: Mapping[str, Any] | None = None,
    prompts: Sequence[str] | None = None,
    snapshot: tuple[AnyPath, int] | None = None,
) -> list[SampleSet]:
    """Return the sets that a run is measured by.

    Args:
        workdir: of dimo_jax.main.
        steps: 1 is the generator, in as many steps as it has; any other number is the teacher by
            its authors' sampler. Of a run of Di4C both have any number, and at 1 the generator.
        temperatures: of the generator, a set for each; empty for the bundle's own.
        teacher: further settings of the teacher's sampler, e.g. {"guidance": 2.0}.
        prompts: of a run with text, taken in turn.
        snapshot: bundle and step of a checkpoint's generator, in place of the finished one's.

    Raises:
        InputError: the run, or a bundle that is needed, is not there; prompts are missing, or given
            for classes.
    """
    config = load_models.run_config(workdir)
    named = config["teacher"].get("bundle")
    teacher_path = places.find(named, "teacher") if named else workdir / "teacher"
    with_text = load_models.is_text(config)
    if not with_text and prompts is not None:
        raise InputError(f"the run in {workdir} takes classes; leave --prompts away")
    found, export = [], snapshot[0] if snapshot else workdir / places.EXPORT_FOLDER
    text = _text_of(config, workdir, export, prompts) if with_text else None
    checkpoint = snapshot[1] if snapshot else None
    # The run's own copy: a converted teacher may lie without one.
    tokenizer = export / bundles.TOKENIZER_FOLDER
    in_steps = mixture.is_chosen(config)
    for number in steps:
        if number == 1 or in_steps:
            own = [{"temperature": float(x)} for x in temperatures] or [{}]
            calls, of_steps = number, {"num_steps": number} if in_steps else {}
            # Without the file it is refused below.
            if not in_steps and (export / bundles.CONFIG_FILE).is_file():
                calls = one_step.num_steps(bundles.read_config(export)["sampler"] or {})
            found += [
                SampleSet("generator", calls, export, tokenizer, of_steps | x, text, checkpoint)
                for x in own
            ]
        if number > 1:
            chosen = {"num_steps": number, **(teacher or {})}
            found.append(SampleSet("teacher", number, teacher_path, tokenizer, chosen, text))
    for one in found:
        for path in (one.bundle, one.tokenizer):
            if not (path / bundles.CONFIG_FILE).is_file():
                raise InputError(
                    f"there is no bundle at {path}: the run in {workdir} is not finished; start "
                    "the same training command again"
                )
    return found


def _text_of(
    config: Mapping[str, Any], workdir: AnyPath, export: AnyPath, prompts: Sequence[str] | None
) -> Prompts:
    if not prompts:
        raise InputError(
            f"the run in {workdir} takes text; give --prompts=FILE, or --prompts=coco (or hpsv2, "
            "geneval) with --metadata, the list of its prompts"
        )
    encoder = export
    if (export / bundles.CONFIG_FILE).is_file():  # else the run is not finished, which is said
        encoder = text_encoder.encoder_of(export)
    return Prompts(prompts, encoder, config["prompts"]["negative"])


class Drawn(NamedTuple):
    """A set whose samples are on disk.

    Attributes:
        requested: what they are.
        path: the .npz.
        sampler: all settings they were drawn with.
    """

    requested: SampleSet
    path: AnyPath
    sampler: dict[str, Any]


def draw(
    sets: Sequence[SampleSet], folder: AnyPath, *, num: int, seed: int, batch_size: int | None
) -> Iterator[Drawn]:
    """Draws one set after the other; what is on disk already is not drawn again.

    Args:
        sets: of `sets_of`.
        folder: of the .npz files, <name>_<num>_<seed>.npz.
        num: samples in a set, the classes or prompts in turn; those of prompts are the images of
            dimo_jax.sample --prompts.
        seed: of every set, so that all have the same labels and keys.
        batch_size: images in a batch; None: as drawing.images_at_once.

    Yields:
        Each set once it is complete; the caller may remove its file before it asks for the next.

    Raises:
        InputError: a bundle cannot be read, or its sampler does not take the settings.
    """
    said: set[str] = set()  # of the prompts, once and not for each set
    for one in sets:
        model, tokenizer = drawing.open_pair(one.bundle, one.tokenizer)
        path = folder / f"{one.name}_{num}_{seed}.npz"
        if not path.exists():
            network = model.build()
            size = drawing.images_at_once(network.num_tokens, batch_size, num)
            options = {"seed": seed, "batch_size": size, "overrides": one.overrides}
            if one.text is None:
                labels, more = in_turn(num, network.num_classes), {}
            else:
                labels, more, cut = _of_prompts(model, tokenizer, one.text, num, options)
                if cut and cut not in said and distributed.is_lead():
                    said.add(cut)
                    with Progress("evaluate") as progress:
                        progress.note(cut)
            drawing.draw_set(model, tokenizer, labels, path, **options, **more)
        yield Drawn(one, path, drawing.described(model, one.overrides))


def _of_prompts(
    model: bundles.Bundle,
    tokenizer: bundles.Bundle,
    prompts: Prompts,
    num: int,
    options: Mapping[str, Any],
) -> tuple[Int[np.ndarray, "N"], dict[str, Any], str | None]:
    """Return the prompt of every image, options of drawing.draw_set, and a note on the prompts."""
    encoder = text_encoder.load_encoder(prompts.encoder, None)
    text = TextImages(model, tokenizer, encoder, **options, negative_prompt=prompts.negative)
    count = len(prompts.texts)

    def draw_range(start: int, stop: int) -> drawing.Drawn:
        numbered = [(i % count, i // count) for i in range(start, stop)]
        return text.draw([(prompts.texts[index], index, k) for index, k in numbered])

    numbers = np.arange(num, dtype=np.int32) % np.int32(count)
    texts = "\0".join(prompts.texts).encode("utf-8", "surrogatepass")
    about = {**text.settings, "prompts": hashlib.sha256(texts).hexdigest()}
    return numbers, {"draw_range": draw_range, "about": about}, text.describe_cut(prompts.texts)


def image_bytes(requested: SampleSet) -> int:
    """Bytes of one sample in an .npz, where gray stands in all three channels."""
    height, width = drawing.image_size(bundles.load_tokenizer(requested.tokenizer))
    return 3 * height * width
