"""GenEval's table, from the results file that its own detector script writes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.data import benchmark_prompts
from dimo_jax.data.benchmark_prompts import GENEVAL_TAGS

# Tag -> (its column, its prompts in evaluation_metadata.jsonl, 553 in all).
_TAGS = {
    "single_object": ("single", 80),
    "two_object": ("two", 99),
    "counting": ("counting", 80),
    "colors": ("colors", 94),
    "position": ("position", 100),
    "color_attr": ("attribution", 100),
}
_IMAGES_OF_PROMPT = 4


@dataclasses.dataclass(frozen=True)
class Summary:
    """Scores of a results file.

    Attributes:
        tags: {tag: (correct images, images)} in the order of prompts.GENEVAL_TAGS; those of the
            six that the file has.
        overall: mean of the six tags' shares, not of all images; None where a tag is missing.
        num_images: in all.
        num_prompts: different ones.
        images: share of all images that are correct.
        prompts: share of the prompts with at least one correct image.
        partial: what differs from GenEval's 553 prompts with four images each, in words; with any
            of it the scores are not comparable with published ones.
    """

    tags: Mapping[str, tuple[int, int]]
    overall: float | None
    num_images: int
    num_prompts: int
    images: float
    prompts: float
    partial: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for results.json; shares in 0..1."""
        shares = {f"geneval_{tag}": right / num for tag, (right, num) in self.tags.items()}
        return {
            **shares,
            "geneval_overall": self.overall,
            "geneval_images": self.num_images,
            "geneval_prompts": self.num_prompts,
            "geneval_correct_images": self.images,
            "geneval_correct_prompts": self.prompts,
            "geneval_partial": list(self.partial),
        }


def summarise(path: Path) -> Summary:
    """Return the scores of a results file.

    Args:
        path: the .jsonl of GenEval's evaluate_images.py: a line for each image with filename, tag,
            prompt, correct, and more that is not looked at.

    Raises:
        InputError: a line is malformed, has an unknown tag or repeats an image; or there is none.

    Source: Ghosh et al., arXiv 2310.11513; summary_scores.py of its repository.
    """
    tags: dict[str, list[bool]] = {tag: [] for tag in GENEVAL_TAGS}
    by_prompt: dict[tuple[str, str], list[bool]] = {}
    seen: set[str] = set()
    try:
        for where, found in benchmark_prompts.json_lines(path):
            name, tag, prompt, correct = _fields(where, found)
            if name in seen:
                raise InputError(f"{where} repeats {name}; give the file of one evaluation")
            seen.add(name)
            tags[tag].append(correct)
            by_prompt.setdefault((tag, prompt), []).append(correct)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    every = [correct for found in tags.values() for correct in found]
    if not every:
        raise InputError(f"{path} has no results; give the file of GenEval's evaluate_images.py")
    shares = [float(np.mean(found)) for found in tags.values() if found]
    return Summary(
        {tag: (sum(found), len(found)) for tag, found in tags.items() if found},
        float(np.mean(shares)) if len(shares) == len(tags) else None,
        len(every),
        len(by_prompt),
        float(np.mean(every)),
        float(np.mean([any(found) for found in by_prompt.values()])),
        tuple(_differences(by_prompt)),
    )


def _differences(by_prompt: Mapping[tuple[str, str], Sequence[bool]]) -> Iterator[str]:
    """Yield what differs from the benchmark: a line that is lost moves the mean unseen."""
    for tag, (_, expected) in _TAGS.items():
        found = sum(of_tag == tag for of_tag, _ in by_prompt)
        if found != expected:
            yield f"{found} of {expected} prompts of {tag}"
    other = {key[1]: len(x) for key, x in by_prompt.items() if len(x) != _IMAGES_OF_PROMPT}
    if other:
        prompt, num = next(iter(other.items()))
        yield (
            f"{len(other)} prompts without {_IMAGES_OF_PROMPT} images ({shown(prompt)!r} has {num})"
        )


def _fields(where: str, found: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    names = ("filename", "tag", "prompt", "correct")
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{where} lacks {', '.join(missing)}; expected {', '.join(names)}")
    values = tuple(found[name] for name in names)
    if not all(isinstance(value, str) for value in values[:3]) or not isinstance(values[3], bool):
        raise InputError(f"{where} has {values}, expected three texts, and true or false")
    if values[1] not in GENEVAL_TAGS:
        raise InputError(
            f"{where} has the tag {values[1]!r}, expected one of {', '.join(GENEVAL_TAGS)}"
        )
    return values


def in_words(summary: Summary) -> str:
    """Return the table as papers print it, two lines.

    Then the counts, and what is missing of it.
    """
    cells = {"overall": "-" if summary.overall is None else f"{summary.overall:.2f}"}
    for tag, (column, _) in _TAGS.items():
        right, num = summary.tags.get(tag, (0, 0))
        cells[column] = f"{right / num:.2f}" if num else "-"
    missing = [tag for tag in _TAGS if tag not in summary.tags]
    notes = [
        f"{summary.num_images} images of {summary.num_prompts} prompts; correct images "
        f"{summary.images:.2%}, prompts with a correct image {summary.prompts:.2%}"
    ]
    if summary.partial:
        notes.append(
            "PARTIAL, not comparable with published scores, which are of 553 prompts with 4 images "
            f"each; the file has {', '.join(summary.partial)}"
        )
    if missing:
        notes.append(f"no overall score: the file has no {', '.join(missing)}")
    widths = {name: max(len(name), 5) for name in cells}
    head = "  ".join(f"{name:>{widths[name]}}" for name in cells)
    row = "  ".join(f"{cell:>{widths[name]}}" for name, cell in cells.items())
    return "\n".join([head, row, *notes])
