"""For tests of evaluations: small pictures on disk, and a feature function that is plain to see."""

import zipfile

import numpy as np
from PIL import Image

from dimo_jax.evaluation.features.feature_store import Extractor


def random_pixels(num, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3), np.uint8)


def write_folder(path, pixels, suffix=".png", start=0):
    """Pictures 0.png, 1.png, ...: as text 10 stands before 2."""
    path.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels, start):
        Image.fromarray(image).save(path / f"{i}{suffix}")
    return path


def write_zip(path, folder, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"inside/{file.name}")
    return path


def damage(path, at=-40):
    """Turns some bytes around."""
    content = bytearray(path.read_bytes())
    for i in range(at, at + 8):
        content[i] ^= 0xFF
    path.write_bytes(content)


def plain_features(images):
    """Corners of each image for the features, other pixels for logits and spatial features."""
    x = images.astype(np.float32) / 255
    return {
        "2048": x[:, :2, :2].reshape(len(x), -1),
        "logits_unbiased": 4 * x[:, 2, :5, 0],
        "spatial": x[:, 3, :4].reshape(len(x), -1),
    }


def extractor(function=plain_features, **settings):
    """A feature network for tests that are not about the network."""
    return Extractor(function, {"weights": "plain", **settings}, batch_size=4)
