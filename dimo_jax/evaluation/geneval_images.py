"""GenEval of a folder of images: objects, colours and verdicts, written resumably.

Every prompt has a file of results, which appears when all its images are done. Several processes
take prompts in turn on a disk that they share; the lead joins their files.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from dimo_jax.common import files, pictures, readers, resumable
from dimo_jax.common.errors import InputError
from dimo_jax.common.progress import Progress
from dimo_jax.common.resumable import Range
from dimo_jax.common.shown import listed
from dimo_jax.evaluation.features.detector import Objects
from dimo_jax.evaluation.metrics import geneval_rules
from dimo_jax.parallel import distributed, locks

PARTS_FOLDER = "geneval_parts"  # in the output
RESULTS_FILE = "results.jsonl"
_PART = re.compile(r"[0-9]+-[0-9a-f]{16}\.jsonl")
_OWN = re.compile(rf"{_PART.pattern}|{re.escape(resumable.SETTINGS_FILE)}")
_VERSION = 1  # raised when the same images get other results
# How many images the certainty is the mean of that is said early: of a wrong network it is near 0.
_FIRST_IMAGES = 20
_THREADS = 8  # Pillow lets go of the interpreter's lock while it decodes
_CALLS = 4  # of the detector, whose images are read at a time and done again after a kill

Detect = Callable[[Sequence[np.ndarray], Sequence[float]], list[Objects]]
# (an image, name of a class, objects of it) -> the colour of each.
Classify = Callable[[Image.Image, str, Sequence[Any]], list[str]]


class PromptImages(NamedTuple):
    """The images of one prompt.

    Attributes:
        folder: of the prompt, whose name is a number.
        metadata: GenEval's line of the prompt.
        names: of the images in its folder samples/, in order.
    """

    folder: Path
    metadata: Mapping[str, Any]
    names: tuple[str, ...]

    def path(self, name: str) -> Path:
        """Return the path of an image."""
        return self.folder / "samples" / name

    @property
    def asks_for_colors(self) -> bool:
        """Whether a clause names a colour."""
        return any("color" in clause for clause in self.metadata["include"])

    def identity(self) -> str:
        """Return 16 hexadecimal digits that change with the prompt and with any of its images."""
        facts = [(name, os.stat(self.path(name))) for name in self.names]
        lines = [[name, x.st_size, x.st_mtime_ns] for name, x in facts]
        text = json.dumps([dict(self.metadata), lines], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def find(folder: Path) -> list[PromptImages]:
    """Return the prompts of a folder as GenEval lays it down, in the order of their numbers.

    Args:
        folder: <number>/metadata.jsonl and <number>/samples/<number>.png; else is passed over.

    Raises:
        InputError: there is nothing like that; a prompt has no image, or metadata that no rule can
            be applied to.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the images' folder")
    inside = [x for x in folder.iterdir() if re.fullmatch("[0-9]+", x.name) and x.is_dir()]
    if not inside:
        raise InputError(
            f"{folder} is no folder of GenEval: expected 00000/metadata.jsonl and "
            "00000/samples/00000.png; dimo_jax.sample --prompts=geneval writes one"
        )
    return [_prompt(x) for x in sorted(inside, key=lambda x: (int(x.name), x.name))]


def _prompt(folder: Path) -> PromptImages:
    place = folder / "metadata.jsonl"
    metadata = readers.json_object(place)
    geneval_rules.check(metadata, str(place))
    samples = folder / "samples"
    every = samples.iterdir() if samples.is_dir() else ()
    names = [x.name for x in every if re.fullmatch(r"[0-9]+\.png", x.name)]
    if not names:
        raise InputError(f"{samples} has no images (00000.png); draw them again")
    return PromptImages(folder, metadata, tuple(sorted(names, key=lambda x: (len(x), x))))


def check_output(output: Path) -> None:
    """Refuse an output whose results another program wrote, before the work.

    Raises:
        InputError: that, or it cannot be written there.
    """
    parts = output / PARTS_FOLDER
    known = (parts / resumable.SETTINGS_FILE).is_file()
    other = resumable.foreign(parts, lambda name: known and bool(_OWN.fullmatch(name)))
    if other or (not known and (output / RESULTS_FILE).exists()):
        raise InputError(
            f"{output} holds {f'{PARTS_FOLDER}/{other}' if other else RESULTS_FILE}, which this "
            "command did not write; name another --output"
        )
    files.check_writable(parts / resumable.SETTINGS_FILE)


class GenevalStore:
    """The results of a folder's images.

    Args:
        prompts: of `find`.
        output: for results and parts of them.
        detect: an ObjectDetector, or a function of a test.
        classify: a ColorClassifier; None where no prompt asks for colours.
        settings: plain values that decide the results: hashes of the networks.
        batch_size: images in a call of the detector.
    """

    def __init__(
        self,
        prompts: Sequence[PromptImages],
        output: Path,
        detect: Detect,
        classify: Classify | None,
        settings: Mapping[str, Any],
        batch_size: int = 1,
    ):
        self._detect, self._classify, self._batch_size = detect, classify, batch_size
        self._surest: list[float] = []
        self._prompts: dict[Range, PromptImages] = {}
        self._output, self._folder, start = output, output / PARTS_FOLDER, 0
        for prompt in prompts:
            self._prompts[start, start + len(prompt.names)] = prompt
            start += len(prompt.names)
        self._settings = {"version": _VERSION, **settings}
        paths = {
            part: self._folder / f"{prompt.folder.name}-{prompt.identity()}.jsonl"
            for part, prompt in self._prompts.items()
        }
        self._store = resumable.Store(paths, "images")

    def fill(self, progress: Progress) -> Path | None:
        """Score what is missing and join all results; every process of a run calls it.

        A prompt with an image that cannot be read is left out: all others are done before it is
        reported.

        Args:
            progress: says how far it is.

        Returns:
            The file of results on the lead process, on the others None.

        Raises:
            InputError: images that cannot be read, or results in the output of other settings.
        """
        self._begin()
        errors: list[str] = []

        def made(left: list[Range]) -> Iterator[int]:
            for some in self._chunks(left):
                yield self._score(some, errors, progress.note)

        self._store.fill(made, progress, (jax.process_index(), jax.process_count()))
        everywhere = distributed.agree(not errors)
        if errors:
            raise InputError(
                f"{listed(errors)}. The results of the other images are kept in {self._folder}; "
                "the same command goes on from there"
            )
        if not everywhere:
            raise InputError("another process cannot use some of its images; see its message")
        return self._join()

    def _begin(self) -> None:
        """Compare the settings with those of results that are there; record them if none are."""
        place = self._output / PARTS_FOLDER / resumable.SETTINGS_FILE
        begun = resumable.compare(place, self._settings, str(place.parent))
        distributed.barrier("geneval settings")
        if not begun and distributed.is_lead():
            resumable.record(place, self._settings)

    def _chunks(self, left: Sequence[Range]) -> Iterator[list[Range]]:
        """Yield prompts with images for a few calls of the detector."""
        some: list[Range] = []
        for part in left:
            some.append(part)
            if sum(stop - start for start, stop in some) >= _CALLS * self._batch_size:
                yield some
                some = []
        if some:
            yield some

    def _score(self, some: Sequence[Range], errors: list[str], note: Callable[[str], None]) -> int:
        """Write the results of some prompts; return of how many images."""
        read: dict[Range, list[Image.Image]] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            reading = {part: pool.submit(_read, self._prompts[part]) for part in some}
            for part, result in reading.items():
                try:
                    read[part] = result.result()
                except InputError as error:
                    errors.append(str(error))
                    note(str(error))
        thresholds = [
            geneval_rules.threshold(self._prompts[part].metadata["tag"])
            for part, images in read.items()
            for _ in images
        ]
        pixels = [np.asarray(image) for images in read.values() for image in images]
        found = iter(self._detect(pixels, thresholds))
        for part, images in read.items():
            objects = [next(found) for _ in images]
            self._note_certainty([x.surest for x in objects], note)
            every = zip(self._prompts[part].names, images, objects, strict=True)
            lines = [self._line(self._prompts[part], *one) for one in every]
            files.write_file(self._store.paths[part], "".join(lines).encode())
        return len(pixels)

    def _note_certainty(self, surest: Sequence[float], note: Callable[[str], None]) -> None:
        if len(self._surest) < _FIRST_IMAGES:
            self._surest += surest
            if len(self._surest) >= _FIRST_IMAGES:
                mean = np.mean(self._surest)
                note(
                    f"the surest object of an image has a probability of {mean:.2f}, the mean over "
                    f"the first {len(self._surest)}; near 0 the detector or its weights are wrong"
                )

    def _line(self, prompt: PromptImages, name: str, image: Image.Image, objects: Objects) -> str:
        """Return the result of one image, in the form of GenEval's evaluate_images.py."""
        metadata = prompt.metadata

        def colors(class_name: str, some: list[Any]) -> list[str]:
            if self._classify is None:
                raise InputError(f"{prompt.folder} asks for colours; give --clip")
            return self._classify(image, class_name, some)

        groups = geneval_rules.select(objects.found, metadata["tag"])
        correct, reason = geneval_rules.verdict(groups, metadata, colors)
        boxes = {k: [[*x.box, x.score] for x in some] for k, some in groups.items()}
        fields = {
            "filename": f"{prompt.folder.name}/samples/{name}",
            "tag": metadata["tag"],
            "prompt": metadata["prompt"],
            "correct": correct,
            "reason": reason,
            # As text: the columns of the original's table.
            "metadata": json.dumps(dict(metadata)),
            "details": json.dumps(boxes),
        }
        return json.dumps(fields) + "\n"

    def _join(self) -> Path | None:
        """Write the file of results out of those of the prompts, on the lead process."""
        paths = self._store.paths.values()
        locks.check_shared("geneval", paths, self._folder, "--output")
        if not distributed.is_lead():
            return None
        for path in {x for x in self._folder.iterdir() if _PART.fullmatch(x.name)} - set(paths):
            path.unlink()  # of images that have changed since
        content = b"".join(readers.content(path) for path in paths)
        files.write_file(self._output / RESULTS_FILE, content)
        return self._output / RESULTS_FILE


def _read(prompt: PromptImages) -> list[Image.Image]:
    places = (prompt.path(name) for name in prompt.names)
    return [
        pictures.decode(pictures.read(place), str(place), rgb=True, upright=True).image
        for place in places
    ]
