"""GenEval's detector at its full size, with random weights: beside transformers' Mask2Former.

python benchmarks/geneval_detector.py --check        (needs PyTorch and transformers; 4 GB)
python benchmarks/geneval_detector.py --size=512 --repetitions=3

--check compares logits at 96 to 448 pixels, and at 800 what is reported: the hundred objects of
pictures of several sizes, with their boxes, scores and masks. At 800 pixels some of the four
million bits of the attention's masks fall differently in two correct programs of float32, so the
logits differ more there. Without it both are timed in turns, one picture at a time: here from
pixels to objects, of which some are over the threshold; transformers' the network alone.
"""

import argparse
import functools
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import in_turns  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402

from dimo_jax import models  # noqa: E402
from dimo_jax.convert import sources  # noqa: E402
from dimo_jax.evaluation.features import detector, resize  # noqa: E402
from dimo_jax.models.mask2former import PUBLISHED, STRIDE  # noqa: E402
from tests.helpers import torch_detections, torch_mask2former  # noqa: E402

SMALL_SIZES = ((96, 96), (224, 224), (320, 448))
PICTURES = ((512, 512), (1024, 1024), (400, 640), (300, 900))
OBJECTS_OVER = 10  # the threshold that is timed: the probability of this one


def ours(network):
    """Return our network and its parameters, by way of the published file's layout."""
    source = sources.SOURCES["mask2former"]
    state = torch_mask2former.mmdet_state(network)
    config, params = sources.convert(state, source, sources.Options())
    return models.build(config), params


def picture(size):
    """Return a picture of waves and noise: its pixels are neither alike nor independent."""
    numbers = np.random.default_rng(sum(size))
    coarse = numbers.integers(0, 256, (9, 9, 3), np.uint8)
    smooth = resize.opencv_bilinear(coarse, *size).astype(int)
    return (smooth + numbers.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)


def prepared(image):
    """Return what transformers' network is given, and the size inside the padding."""
    height, width = detector.fitted(image.shape[:2])
    padded = [-(-length // STRIDE) * STRIDE for length in (height, width)]
    pixels = np.full((*padded, 3), detector.PADDING, np.float32)
    pixels[:height, :width] = resize.opencv_bilinear(image, height, width)
    normalised = (pixels - np.array(detector.MEAN)) / np.array(detector.STD)
    return normalised.astype(np.float32)[None], (height, width)


def check() -> None:
    """Print how far both are apart."""
    peer = torch_mask2former.build(PUBLISHED)
    network, params = ours(peer)
    apply = jax.jit(network.apply)
    for size in SMALL_SIZES:
        images = np.random.default_rng(1).normal(size=(1, *size, 3)).astype(np.float32)
        found = jax.device_get(apply(params, images))
        expected = torch_mask2former.forward(peer, images)
        classes, masks = (np.abs(a - b).max() for a, b in zip(found, expected, strict=True))
        print(
            f"{size}: class logits {classes:.1e} (std {expected[0].std():.2f}), mask logits "
            f"{masks:.1e} (std {expected[1].std():.2f}), signs that differ "
            f"{np.count_nonzero((found[1] > 0) != (expected[1] > 0))} of {expected[1].size:,}",
            flush=True,
        )
    detect = detector.ObjectDetector(network, params)
    for size in PICTURES:
        image = picture(size)
        pixels, fitted = prepared(image)
        classes, masks = torch_mask2former.forward(peer, pixels)
        expected = torch_detections.objects(classes[0], masks[0], pixels.shape[1:3], fitted, size)
        (found,) = detect([image], [-1.0])
        compare(size, found.found, expected)


def compare(size, found, expected) -> None:
    """Print how the objects of one picture differ, in pairs of the same class and box."""
    left, scores, pixels = list(expected), [], []
    for one in found:
        alike = [x for x in left if (x[0], tuple(x[2])) == (one.label, one.box)]
        if alike:
            # Of several queries with one box, the one of the nearest score.
            nearest = min(alike, key=lambda x: abs(x[1] - one.score))
            left = [x for x in left if x is not nearest]
            scores.append(abs(nearest[1] - one.score))
            pixels.append(np.count_nonzero(nearest[3] != one.mask))
    print(
        f"{size}: {len(scores)} of {len(expected)} objects with the same class and box, scores "
        f"within {max(scores):.1e}, mask pixels that differ {max(pixels)} of {size[0] * size[1]:,}",
        flush=True,
    )


def make_ours(size) -> in_turns.Program:
    """Make our detector, from pixels to objects."""
    network, params = ours(torch_mask2former.build(PUBLISHED))
    detect, image = detector.ObjectDetector(network, params), picture(size)
    found = detect([image], [-1.0])[0].found
    threshold = sorted((x.score for x in found), reverse=True)[OBJECTS_OVER]
    return in_turns.Program(
        lambda: [np.array([x.score for x in detect([image], [threshold])[0].found])],
        lambda: {"objects": len(detect([image], [threshold])[0].found)},
    )


def make_theirs(size, threads) -> in_turns.Program:
    """Make transformers' network, alone."""
    import torch

    torch.set_num_threads(threads)
    network, (pixels, _) = torch_mask2former.build(PUBLISHED), prepared(picture(size))
    return in_turns.Program(lambda: torch_mask2former.forward(network, pixels))


def main() -> None:
    """Compare or time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output")
    flags = parser.parse_args()
    if flags.check:
        return check()
    size = (flags.size, flags.size)
    makers = {
        "dimo_jax": functools.partial(make_ours, size),
        "transformers": functools.partial(make_theirs, size, flags.threads),
    }
    found = in_turns.measure(makers, flags.repetitions)
    in_turns.write({**in_turns.report(found.seconds), "facts": found.facts}, flags.output)


if __name__ == "__main__":
    main()
