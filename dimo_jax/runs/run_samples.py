"""What a finished run is judged by: sets of samples of its generator and of its teacher."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dimo_jax import bundles, files
from dimo_jax.errors import InputError
from dimo_jax.evaluation.protocol import balanced_labels
from dimo_jax.files import AnyPath
from dimo_jax.runs import drawing


class SampleSet(NamedTuple):
    """One set of samples: a row of the result.

    Attributes:
        model: "generator" or "teacher".
        steps: network calls of its sampler.
        bundle: of the model.
        tokenizer: its tokenizer's bundle.
        overrides: of its sampler's settings.
    """

    model: str
    steps: int
    bundle: AnyPath
    tokenizer: AnyPath
    overrides: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For files: generator_1_temperature_3.0, teacher_8_guidance_2.0."""
        values = [f"{name}_{value}" for name, value in sorted(self.overrides.items())]
        given = [text for text in values if not text.startswith("num_steps_")]
        return "_".join([self.model, str(self.steps), *given])


def sets_of(
    workdir: AnyPath,
    steps: Sequence[int],
    temperatures: Sequence[float | int] = (),
    teacher: Mapping[str, Any] | None = None,
) -> list[SampleSet]:
    """The sets that a run is judged by.

    Args:
        workdir: of dimo_jax.main.
        steps: 1 is the generator; any other number is the teacher by its authors' sampler.
        temperatures: of the generator, a set for each; empty for the bundle's own.
        teacher: further settings of the teacher's sampler, e.g. {"guidance": 2.0}.

    Raises:
        InputError: the run, or a bundle that is needed, is not there.
    """
    path = workdir / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        teacher_path = files.path(config["teacher"]["bundle"] or workdir / "teacher")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--workdir={workdir} is no run: {path} cannot be read ({error}); give the folder "
            "that dimo_jax.main was given"
        ) from error
    found, export = [], workdir / "export"
    # The run's own copy: a converted teacher may lie without one.
    tokenizer = export / bundles.TOKENIZER_FOLDER
    for number in steps:
        if number == 1:
            own = [{"temperature": float(x)} for x in temperatures] or [{}]
            found += [SampleSet("generator", 1, export, tokenizer, x) for x in own]
        else:
            chosen = {"num_steps": number, **(teacher or {})}
            found.append(SampleSet("teacher", number, teacher_path, tokenizer, chosen))
    for one in found:
        for path in (one.bundle, one.tokenizer):
            if not (path / bundles.CONFIG_FILE).is_file():
                raise InputError(
                    f"there is no bundle at {path}: the run in {workdir} is not finished; start "
                    "the same training command again"
                )
    return found


class Drawn(NamedTuple):
    """A set whose samples are on disk.

    Attributes:
        asked: what they are.
        path: the .npz.
        sampler: all settings they were drawn with.
    """

    asked: SampleSet
    path: AnyPath
    sampler: dict[str, Any]


def draw(
    asked: Sequence[SampleSet], folder: AnyPath, *, num: int, seed: int, batch_size: int
) -> Iterator[Drawn]:
    """Draws one set after the other; what is on disk already is not drawn again.

    Args:
        asked: of `sets_of`.
        folder: of the .npz files, <name>_<num>_<seed>.npz.
        num: samples in a set, the classes in turn.
        seed: of every set, so that all have the same labels and keys.
        batch_size: images in a batch.

    Yields:
        Each set once it is complete; the caller may remove its file before it asks for the next.

    Raises:
        InputError: a bundle cannot be read, or its sampler does not take the settings.
    """
    for one in asked:
        model, tokenizer = drawing.open_pair(one.bundle, one.tokenizer)
        path = folder / f"{one.name}_{num}_{seed}.npz"
        if not path.exists():
            drawing.draw_set(
                model,
                tokenizer,
                balanced_labels(num, model.build().num_classes),
                path,
                seed=seed,
                batch_size=batch_size,
                overrides=one.overrides,
            )
        yield Drawn(one, path, drawing.described(model, one.overrides))


def image_bytes(asked: SampleSet) -> int:
    """Bytes of one sample in an .npz, where gray stands in all three channels."""
    bundle = bundles.load_tokenizer(asked.tokenizer)
    tokenizer = bundle.build()
    grid = jax.ShapeDtypeStruct((1, tokenizer.num_tokens), np.int32)
    _, height, width, _ = jax.eval_shape(tokenizer.decode, bundle.params, grid).shape
    return 3 * height * width
