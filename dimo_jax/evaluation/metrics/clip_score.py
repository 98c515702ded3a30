"""CLIP score: the cosine between an image and its prompt, in the forms that papers report.

Scores of different forms, networks or prompts are not comparable; a result names all of them.
Axes: N images, each with one prompt.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features import clip_images
from dimo_jax.evaluation.features.clip_features import ClipFeatures, Picture


@dataclasses.dataclass(frozen=True)
class Form:
    """One definition of the score.

    Attributes:
        prefix: words in front of every prompt.
        squared: whether images are first cut to their middle square and resized to 256 pixels.
        factor: of the mean cosine.
        floor: the least score.
    """

    prefix: str = ""
    squared: bool = False
    factor: float = 1.0
    floor: float = -float("inf")


FORMS = {
    # Di[M]O's tables: GigaGAN's code, with the prefix of Hessel et al., arXiv 2104.08718, but
    # neither their factor 2.5 nor their floor. Network: ViT-g-14 laion2b_s12b_b42k.
    "dimo": Form(prefix="A photo depicts", squared=True),
    # T2IBenchmark's, with OpenAI's ViT-B/32.
    "plain": Form(),
    # torchmetrics' CLIPScore: the floor is that of the mean, not of each image.
    "torchmetrics": Form(factor=100.0, floor=0.0),
}


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """A score and its parts.

    Attributes:
        value: of all images.
        cosines: [N] float32, before factor and floor.
    """

    value: float
    cosines: Float[np.ndarray, "N"]


def score(
    features: ClipFeatures, images: Iterable[Picture], prompts: Sequence[str], form: str
) -> ClipScore:
    """Return the CLIP score of images that were made for prompts.

    Args:
        features: of the network that the form is used with.
        images: as many as prompts, in their order, or their files; a generator is read as it is
            needed.
        prompts: one for each image.
        form: a key of FORMS.

    Raises:
        InputError: an unknown form, or another number of images than of prompts.
    """
    if form not in FORMS:
        raise InputError(f"there is no CLIP score {form!r}; there are {', '.join(FORMS)}")
    found = FORMS[form]
    prepare = _squared if found.squared else clip_images.clip_pixels
    return aggregate(
        cosines(features.images(images, prepare), features.texts(prompts, found.prefix)), found
    )


def _squared(image: Image.Image, size: int) -> Float[np.ndarray, "S S 3"]:
    return clip_images.clip_pixels(clip_images.squared(image), size)


def cosines(
    images: Float[np.ndarray, "N P"], texts: Float[np.ndarray, "M P"]
) -> Float[np.ndarray, "N"]:
    """Return the product of each image's unit vector with its text's.

    Raises:
        InputError: there are not as many images as texts.
    """
    if len(images) != len(texts):
        raise InputError(f"there are {len(images)} images for {len(texts)} prompts; give one each")
    return np.einsum("np,np->n", images, texts)


def aggregate(found: Float[np.ndarray, "N"], form: Form) -> ClipScore:
    """Return one number out of the cosines: max(factor times their mean, floor), in float64."""
    mean = float(np.mean(found, dtype=np.float64))
    return ClipScore(max(form.factor * mean, form.floor), found)
