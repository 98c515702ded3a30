"""GenEval's colours: which of ten CLIP sees in an object cut out of its picture.

Source: evaluate_images.py of Ghosh et al., arXiv 2310.11513.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from dimo_jax.evaluation.features import clip_images
from dimo_jax.evaluation.features.clip_features import ClipFeatures
from dimo_jax.evaluation.metrics.geneval_rules import COLORS

TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
BACKGROUND = (153, 153, 153)  # in the place of what does not belong to the object
# The image tower of OpenAI's ViT-L/14, with quick GELU.
_TOWER = {"image_size": 224, "patch_size": 14, "width": 1024, "depth": 24}


class ColorClassifier:
    """CLIP as a classifier of colours.

    Args:
        features: of OpenAI's ViT-L/14.
    """

    def __init__(self, features: ClipFeatures):
        self._features = features
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, image: Image.Image, name: str, objects: Sequence[Any]) -> list[str]:
        """Return the colours of objects.

        Args:
            image: RGB.
            name: of their class.
            objects: with a box and a mask each, as features.detector.Found.
        """
        crops = [crop(image, x.box, x.mask) for x in objects]
        found = self._features.images(crops, clip_images.clip_pixels)
        return [COLORS[i] for i in np.argmax(found @ self._weights(name).T, axis=1)]

    def _weights(self, name: str) -> Float[np.ndarray, "C P"]:
        """Return unit vectors of the colours of a class: the mean over the templates."""
        if name not in self._known:
            texts = [x.format(color=color, name=name) for color in COLORS for x in TEMPLATES]
            found = self._features.texts(texts).reshape(len(COLORS), len(TEMPLATES), -1).mean(1)
            self._known[name] = found / np.linalg.norm(found, axis=1, keepdims=True)
        return self._known[name]


def crop(
    image: Image.Image, box: tuple[int, int, int, int], mask: Bool[np.ndarray, "H W"]
) -> Image.Image:
    """Return an object's box, with BACKGROUND where its mask is not."""
    blank = Image.new("RGB", image.size, BACKGROUND)
    return Image.composite(image, blank, Image.fromarray(mask)).crop(box)


def unusual(clip: Mapping[str, Any]) -> str | None:
    """Say how a CLIP differs from the one of GenEval's colours; None if it does not.

    Args:
        clip: the network's config.
    """
    wrong = [
        f"{name} {clip['image'][name]}, not {expected}"
        for name, expected in _TOWER.items()
        if clip["image"][name] != expected
    ]
    if clip["activation"] != "quick_gelu":
        wrong.append(f"activation {clip['activation']}, not quick_gelu")
    if not wrong:
        return None
    return (
        f"the colours are not GenEval's, whose CLIP is OpenAI's ViT-L/14: this one has "
        f"{', '.join(wrong)}"
    )
