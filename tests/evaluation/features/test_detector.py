"""Objects out of a network's logits: against PyTorch's steps of mmdet 2.x, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from dimo_jax.evaluation.features import detector
from dimo_jax.models.mask2former import Detector
from tests.helpers import torch_detections


def network(classes, masks):
    """A detector that sees the same in every picture, and notes what it is given."""
    seen = []

    def apply(params, images):
        seen.append(images.shape)
        rows = len(images)
        return (
            jnp.broadcast_to(jnp.asarray(classes)[None], (rows, *classes.shape)),
            jnp.broadcast_to(jnp.asarray(masks)[None], (rows, *masks.shape)),
        )

    return Detector({"num_classes": classes.shape[1] - 1}, lambda key: {}, apply), seen


@pytest.mark.parametrize("size", [(40, 64), (100, 100)])
def test_objects_are_those_of_mmdets_steps(size, monkeypatch):
    monkeypatch.setattr(detector, "LONGER", 133)
    monkeypatch.setattr(detector, "SHORTER", 80)
    numbers = np.random.default_rng(0)
    fitted = detector.fitted(size)
    padded = tuple(-(-length // 32) * 32 for length in fitted)
    coarse = torch.from_numpy(numbers.normal(size=(1, 24, 4, 4)).astype(np.float32))
    quarter = [length // 4 for length in padded]
    masks = 5 * interpolate(coarse, quarter, mode="bicubic")[0].numpy()
    masks[0] = -1  # of nothing, though its class is sure
    classes = 2 * numbers.normal(size=(24, 9)).astype(np.float32)
    classes[0, 0] = 20
    found_by_peer = torch_detections.objects(classes, masks, padded, fitted, size)
    detect = detector.ObjectDetector(network(classes, masks)[0], {})
    (found,) = detect([np.zeros((*size, 3), np.uint8)], [0.1])
    # To the precision of a probability: none is within it of the threshold.
    expected = sorted((x for x in found_by_peer if x[1] > 0.1), key=lambda x: -x[1])
    assert min(abs(x[1] - 0.1) for x in found_by_peer) > 1e-4 and 10 < len(expected) < 90
    ours = sorted(found.found, key=lambda x: -x.score)
    assert [x.label for x in ours] == [x[0] for x in expected]
    assert [list(x.box) for x in ours] == [x[2] for x in expected]
    np.testing.assert_allclose([x.score for x in ours], [x[1] for x in expected], atol=1e-6)
    for one, other in zip(ours, expected, strict=True):
        assert np.count_nonzero(one.mask != other[3]) <= 1
    assert found.surest == pytest.approx(1.0, abs=1e-5)


def test_a_query_may_be_of_two_classes_and_a_box_ends_behind_its_mask():
    masks = np.full((2, 8, 8), -9.0, np.float32)
    masks[0, 2:4, 1:7] = 9
    classes = np.array([[5.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]], np.float32)
    probs = np.exp(classes[0]) / np.exp(classes[0]).sum()
    found = detector.objects(
        probs[:3], np.array([0, 1, 2]), masks, num_classes=3, fitted_size=(32, 32), size=(32, 32),
        threshold=0.3,
    )  # fmt: skip
    assert [x.label for x in found] == [0, 1]
    assert {x.box for x in found} == {(4, 8, 28, 16)}
    assert found[0].mask.sum() == 24 * 8 - 4  # a corner is nearer to three pixels outside
    assert found[0].mask is found[1].mask
    # Over a score that is a little below the probability, which bounds it.
    assert 0.95 < found[0].score / probs[0] < 1
    more = detector.objects(
        probs[:3], np.array([0, 1, 2]), masks, num_classes=3, fitted_size=(32, 32), size=(32, 32),
        threshold=0.0,
    )  # fmt: skip
    assert [x.label for x in more] == [0, 1, 2]
    assert [x.score for x in more[:2]] == [x.score for x in found]


def test_sizes_are_those_of_mmcv():
    expected = {
        (512, 512): (800, 800), (1024, 1024): (800, 800), (400, 640): (800, 1280),
        (500, 1600): (417, 1333), (900, 300): (1333, 444), (1, 4000): (1, 1333),
    }  # fmt: skip
    assert {size: detector.fitted(size) for size in expected} == expected


def test_pictures_of_one_size_share_calls_and_gray_is_around_them(monkeypatch):
    monkeypatch.setattr(detector, "LONGER", 64)
    monkeypatch.setattr(detector, "SHORTER", 40)
    classes, masks = np.zeros((2, 3), np.float32), np.ones((2, 16, 16), np.float32)
    (plain, seen), notes = network(classes, masks), []
    given = []

    def apply(params, images):
        jax.debug.callback(lambda x: given.append(np.asarray(x)), images)
        return plain.apply(params, images)

    detect = detector.ObjectDetector(
        Detector(plain.config, plain.init, apply), {}, batch_size=2, note=notes.append
    )
    images = [np.full((20, x, 3), 255, np.uint8) for x in (20, 32, 20, 20)]
    found = detect(images, [0.3] * 4)
    assert len(found) == 4 and all(x.surest == pytest.approx(1 / 3) for x in found)
    assert seen == [(2, 64, 64, 3)] and len(notes) == 1
    assert "64x64" in notes[0]
    white = (255 - np.array(detector.MEAN)) / detector.STD
    gray = (128 - np.array(detector.MEAN)) / detector.STD
    assert len(given) == 2
    np.testing.assert_allclose(given[0][0, 0, 0], white, atol=1e-5)
    np.testing.assert_allclose(given[0][0, 0, 40], gray, atol=1e-5)
    np.testing.assert_allclose(given[0][1, 40, 0], gray, atol=1e-5)
