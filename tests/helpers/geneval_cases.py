"""Random detections for GenEval's rules, the same in every version of Python."""

import random
from typing import NamedTuple

from dimo_jax.evaluation.metrics import geneval_rules

# One prompt of each tag, and of counting and position another; as evaluation_metadata.jsonl has
# such.
PROMPTS = (
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}]},
    {
        "tag": "two_object",
        "include": [{"class": "cow", "count": 1}, {"class": "tv remote", "count": 1}],
    },
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
    },
    {
        "tag": "counting",
        "include": [{"class": "oven", "count": 4}],
        "exclude": [{"class": "oven", "count": 5}],
    },
    {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]},
    {
        "tag": "position",
        "include": [
            {"class": "dog", "count": 1},
            {"class": "tie", "count": 1, "position": ["right of", 0]},
        ],
    },
    {
        "tag": "position",
        "include": [
            {"class": "apple", "count": 1},
            {"class": "bed", "count": 1, "position": ["above", 0]},
        ],
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "cup", "count": 1, "color": "green"},
            {"class": "pizza", "count": 1, "color": "red"},
        ],
    },
)


class Object(NamedTuple):
    label: int
    score: float
    box: tuple[int, int, int, int]
    color: str


def draw(index, numbers=None):
    """(metadata, objects) of a case."""
    numbers = numbers or random.Random(index)
    metadata = {**PROMPTS[index % len(PROMPTS)], "prompt": f"case {index}"}
    names = sorted({clause["class"] for clause in metadata["include"]})
    found = []
    for name in [*names, "person"]:
        for _ in range(int(numbers.random() * 6)):
            left, top, width, height = (int(numbers.random() * 200) for _ in range(4))
            lowest = 0.7 if metadata["tag"] == "counting" else 0.2
            score = lowest + (1 - lowest) * numbers.random()
            color = ("red", "green")[numbers.random() < 0.5]
            box = (left, top, left + width + 1, top + height + 1)
            found.append(Object(geneval_rules.CLASSES.index(name), score, box, color))
    return metadata, found
