"""GenEval's rules: which detected objects count, and whether a picture is what its prompt asks for.

Source: Ghosh et al., arXiv 2310.11513; evaluate_images.py of its repository.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import shown
from dimo_jax.data.benchmark_prompts import GENEVAL_TAGS

# COCO's 80 in their order, a detector's labels, by GenEval's names.
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop"),
    *("computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven"),
    *("toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
COLORS = (
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
)
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # of scores, to be exceeded
MAX_OBJECTS = 16  # of a class
OVERLAP = 0.1  # share of both sizes that an offset must exceed
DIRECTION = 0.5  # share of an offset along an axis, to be exceeded

Box = Sequence[float | int]


Groups = Mapping[str, list[Any]]
# (name of a class, some of its objects) -> the colour of each.
Colors = Callable[[str, list[Any]], list[str]]


def threshold(tag: str) -> float:
    """Return the score that objects must exceed under a tag."""
    return COUNTING_THRESHOLD if tag == "counting" else THRESHOLD


def select(found: Sequence[Any], tag: str) -> dict[str, list[Any]]:
    """Return the objects that count, by the name of their class, the surest first.

    Args:
        found: all of a picture, each with label, score and box, as features.detector.Found.
        tag: of its prompt.

    Returns:
        Classes that have any, in the order of CLASSES.
    """
    groups = {}
    for label, name in enumerate(CLASSES):
        kept = [x for x in found if x.label == label and x.score > threshold(tag)]
        if kept:
            # Of equal scores the last comes first, as there.
            groups[name] = sorted(kept, key=lambda x: x.score)[::-1][:MAX_OBJECTS]
    return groups


def verdict(groups: Groups, metadata: Mapping[str, Any], colors: Colors) -> tuple[bool, str]:
    """Return whether a picture shows what its prompt asks for, and what it lacks.

    Args:
        groups: of `select`.
        metadata: of the prompt, see `check`.
        colors: classifies; asked only where the prompt names a colour.

    Returns:
        (correct, a line for each clause that is not fulfilled).
    """
    reasons: list[str] = []
    fulfilled: list[list[Any] | None] = []
    for clause in metadata.get("include", []):
        name, count = clause["class"], clause["count"]
        some = groups.get(name, [])[:count]
        lacking = _lacking(clause, some, fulfilled, colors)
        reasons += [lacking] if lacking else []
        # A clause that is not fulfilled is no target of a later one.
        fulfilled.append(None if lacking else some)
    for clause in metadata.get("exclude", []):
        name, num = clause["class"], len(groups.get(clause["class"], []))
        if num >= clause["count"]:
            reasons.append(f"{name}: {num} found, fewer than {clause['count']} expected")
    return not reasons, "\n".join(reasons)


def _lacking(
    clause: Mapping[str, Any],
    some: list[Any],
    fulfilled: Sequence[list[Any] | None],
    colors: Colors,
) -> str:
    """Say what a clause lacks; empty if nothing."""
    name, count = clause["class"], clause["count"]
    if len(some) < count:
        return f"{name}: {len(some)} found, {count} expected"
    if "color" in clause:
        seen = colors(name, some)
        if seen.count(clause["color"]) < count:
            return f"{name}: {clause['color']} expected, found {', '.join(seen)}"
    if "position" in clause:
        relation, index = clause["position"]
        targets = fulfilled[index]
        if targets is None:
            return f"{name}: {relation} of nothing, for its target is not there"
        for one in some:
            for other in targets:
                there = relations(one.box, other.box)
                if relation not in there:
                    return f"{name}: {relation} expected, found {' and '.join(there) or 'neither'}"
    return ""


def relations(box: Box, other: Box) -> list[str]:
    """Return how a box lies to another, of RELATIONS; none if they overlap too much, or two.

    Args:
        box: left, top, right, bottom.
        other: likewise.
    """
    offsets, reduced = [], []
    for axis in (0, 1):
        sizes = [abs(x[axis + 2] - x[axis]) for x in (box, other)]
        offset = (box[axis] + box[axis + 2] - other[axis] - other[axis + 2]) / 2
        rest = max(abs(offset) - OVERLAP * sum(sizes), 0)
        offsets.append(offset)
        reduced.append(math.copysign(rest, offset))
    if all(abs(x) < 1e-3 for x in reduced):
        return []
    # By the length of the offset itself, not of what is left of it.
    x, y = (rest / math.hypot(*offsets) for rest in reduced)
    holds = (x < -DIRECTION, x > DIRECTION, y < -DIRECTION, y > DIRECTION)
    return [name for name, here in zip(RELATIONS, holds, strict=True) if here]


def check(metadata: Mapping[str, Any], where: str) -> None:
    """Refuse a prompt's metadata that the rules cannot be applied to.

    Args:
        metadata: {"tag", "prompt", "include": [{"class", "count", "color"?, "position"?: [relation,
            index of an earlier clause]}], "exclude"?: [{"class", "count"}]}.
        where: it comes from.

    Raises:
        InputError: saying what is wrong.
    """
    if metadata.get("tag") not in GENEVAL_TAGS or not isinstance(metadata.get("prompt"), str):
        raise InputError(
            f"{where} has the tag '{shown(metadata.get('tag'))}', expected a prompt and one of "
            f"{', '.join(GENEVAL_TAGS)}"
        )
    include, exclude = (metadata.get(name, []) for name in ("include", "exclude"))
    lists = isinstance(include, list) and isinstance(exclude, list)
    if not lists or not include or not all(isinstance(x, dict) for x in [*include, *exclude]):
        raise InputError(f"{where} needs lists of objects as include and exclude; copy it again")
    for index, clause in enumerate([*include, *exclude]):
        if wrong := _fault(clause, min(index, len(include))):
            raise InputError(f"{where} asks for {wrong}; copy it again from GenEval's own list")


def _fault(clause: Mapping[str, Any], earlier: int) -> str | None:
    """Say what is wrong with a clause that `earlier` ones come before; None if nothing."""
    name, count = clause.get("class"), clause.get("count")
    if name not in CLASSES:
        return f"'{shown(name)}', which is none of the detector's {len(CLASSES)} classes"
    if type(count) is not int or count < 1:
        return f"'{shown(count)}' of {name}, expected a number from 1"
    if "color" in clause and clause["color"] not in COLORS:
        return f"the colour '{shown(clause['color'])}', expected one of {', '.join(COLORS)}"
    if "position" in clause:
        place = clause["position"]
        pair = isinstance(place, list) and len(place) == 2 and place[0] in RELATIONS
        if not pair or type(place[1]) is not int or not 0 <= place[1] < earlier:
            return (
                f"the position '{shown(place)}', expected one of {', '.join(RELATIONS)}, and the "
                "index of an object before it"
            )
    return None
