"""GenEval's colours with a stand-in for CLIP that sees mean colours, and its crops."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dimo_jax.evaluation.features import clip_images
from dimo_jax.evaluation.features.clip_features import ClipFeatures
from dimo_jax.evaluation.features.detector import Found
from dimo_jax.evaluation.metrics import geneval_colors
from dimo_jax.models.clip import MEAN, STD

RGB = {
    "red": (255, 0, 0), "orange": (255, 128, 0), "yellow": (255, 255, 0), "green": (0, 160, 0),
    "blue": (0, 0, 255), "purple": (128, 0, 128), "pink": (255, 150, 200), "brown": (110, 60, 20),
    "black": (0, 0, 0), "white": (255, 255, 255),
}  # fmt: skip


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class MeanColors(ClipFeatures):
    """Vectors are mean colours, from the background's gray; a text's is that of its colour."""

    def __init__(self):
        self.asked = []

    def texts(self, texts, prefix=""):
        self.asked.append(list(texts))
        named = [next(c for c in RGB if f" {c} " in x or f" {c}-" in x) for x in texts]
        return unit(np.array([RGB[name] for name in named], np.float32) - 153)

    def images(self, images, prepare):
        assert prepare is clip_images.clip_pixels
        pixels = np.stack([prepare(image, 24) for image in images])
        return unit(255 * (pixels * np.array(STD) + np.array(MEAN)).mean((1, 2)) - 153)


def drawn(color, ground, box=(10, 14, 41, 45)):
    """A ball of a colour on a ground: (picture, the object)."""
    image = Image.new("RGB", (60, 80), RGB[ground])
    ImageDraw.Draw(image).ellipse(box, fill=RGB[color])
    mask = (np.asarray(image) != RGB[ground]).any(axis=-1)
    return image, Found(32, 0.9, (box[0], box[1], box[2] + 1, box[3] + 1), mask)


@pytest.mark.parametrize("color", RGB)
def test_a_ball_has_its_colour_on_any_ground(color):
    classify = geneval_colors.ColorClassifier(MeanColors())
    for ground in ("green", "blue", "white"):
        if ground != color:
            image, ball = drawn(color, ground)
            assert classify(image, "sports ball", [ball]) == [color]


def test_without_its_mask_the_ground_would_count():
    image, ball = drawn("red", "green", (10, 14, 13, 45))
    box = (0, 0, 60, 80)
    every = np.ones((80, 60), bool)
    classify = geneval_colors.ColorClassifier(MeanColors())
    some = [ball._replace(box=box), ball._replace(box=box, mask=every)]
    assert classify(image, "bench", some) == ["red", "green"]


def test_a_crop_is_pillows_composite():
    image, ball = drawn("pink", "blue")
    found = np.asarray(geneval_colors.crop(image, ball.box, ball.mask))
    assert found.shape == (32, 32, 3)
    assert tuple(found[0, 0]) == (153, 153, 153) and tuple(found[16, 16]) == RGB["pink"]
    expected = np.where(ball.mask[..., None], np.asarray(image), np.uint8(153))[14:46, 10:42]
    np.testing.assert_array_equal(found, expected)


def test_three_texts_a_colour_are_asked_for_once_a_class():
    features = MeanColors()
    classify = geneval_colors.ColorClassifier(features)
    image, ball = drawn("red", "white")
    for _ in range(2):
        assert classify(image, "cat", [ball, ball]) == ["red", "red"]
    (texts,) = features.asked
    assert len(texts) == 30 and texts[:4] == [
        "a photo of a red cat",
        "a photo of a red-colored cat",
        "a photo of a red object",
        "a photo of a orange cat",
    ]


def test_another_clip_is_warned_of():
    openai = {"image_size": 224, "patch_size": 14, "width": 1024, "depth": 24, "heads": 16}
    config = {"activation": "quick_gelu", "image": openai}
    assert geneval_colors.unusual(config) is None
    other = {"activation": "gelu", "image": {**openai, "patch_size": 32}}
    text = geneval_colors.unusual(other)
    assert "patch_size 32, not 14" in text and "activation gelu, not quick_gelu" in text
