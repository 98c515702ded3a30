"""What is shown of a set of samples, and the pictures of it."""

import dataclasses

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist

from dimo_jax.evaluation import shown
from dimo_jax.evaluation.images.image_set import Batch, ImageSet
from dimo_jax.evaluation.metrics import neighbours
from dimo_jax.evaluation.metrics.rows import Row, Value
from dimo_jax.evaluation.report import page, schema, showcase
from dimo_jax.evaluation.shown import Tile

RNG = np.random.default_rng(0)


class Pixels(ImageSet):
    """Images in memory."""

    def __init__(self, pixels, labels=None):
        super().__init__("memory", len(pixels))
        self.pixels, self.labels = pixels, labels
        self.height, self.width = pixels.shape[1:3]

    def read(self, start, stop):
        return Batch(self.pixels[start:stop], np.zeros(stop - start, np.uint8))


SAMPLES = Pixels(RNG.integers(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40) % 4)
REAL = Pixels(RNG.integers(0, 256, (30, 16, 16, 3), np.uint8))
FEATURES, REAL_FEATURES = RNG.normal(size=(40, 5)), RNG.normal(size=(30, 5))
ROW = Row("generator", 1, {"fid": Value(5.0)}, rest={"seed": 3})


def test_nearest_is_that_of_scipy():
    rows, others = RNG.normal(size=(700, 6)) + 50, RNG.normal(size=(5000, 6)) + 50
    expected = cdist(rows, others)
    places, distances = neighbours.nearest(rows, others)
    np.testing.assert_array_equal(places, expected.argmin(axis=1))
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-4)


def test_the_ends_of_the_order_and_the_classes():
    expected = cdist(FEATURES, REAL_FEATURES)
    order = expected.min(axis=1).argsort()
    found = shown.take(ROW, SAMPLES, FEATURES, REAL_FEATURES, REAL)
    assert [tile.label for tile in found.best] == (order[:10] % 4).tolist()
    assert [tile.label for tile in found.worst] == (order[::-1][:10] % 4).tolist()
    np.testing.assert_array_equal(found.worst[0].image, SAMPLES.pixels[order[-1]])
    nearest = REAL.pixels[expected[order[-1]].argmin()]
    shrunk = np.asarray(Image.fromarray(nearest).resize((8, 8), Image.LANCZOS))
    np.testing.assert_array_equal(found.worst[0].nearest, shrunk)
    means = {x: expected.min(axis=1)[SAMPLES.labels == x].mean() for x in range(4)}
    np.testing.assert_allclose(list(found.by_class.values()), list(means.values()), rtol=1e-5)
    assert found.first.shape == (24, 8, 8, 3) and found.neighbours.shape == (8, 8, 8, 3)


def test_without_real_features_there_are_only_the_first_samples():
    large = Pixels(RNG.integers(0, 256, (3, 200, 300, 3), np.uint8))
    found = shown.take(dataclasses.replace(ROW, rest={}), large, FEATURES[:3], None, None)
    assert found.first.shape == (3, 85, 128, 3)
    assert found.labels is None and not found.worst and found.by_class is None


def test_many_classes_are_shown_at_both_ends():
    samples = Pixels(np.zeros((100, 4, 4, 3), np.uint8), np.arange(100) % 50)
    features = np.repeat(np.arange(50.0), 1)[np.arange(100) % 50, None]
    found = shown.take(ROW, samples, features, np.zeros((1, 1)), None)
    classes = showcase.nearest_by_class([found])
    assert classes.names == [str(x) for x in [*range(10), *range(40, 50)]]
    assert classes.rows[0].per_class["nearest_real"][-1].mean == 49


def test_no_sample_is_at_both_ends():
    def tile(i):
        return Tile(None, None, distances[i], i)

    # One is without a distance, and of equal ones the earlier counts as the nearer.
    distances = np.array([1.0, 0.0, 3.0, 0.5, 10.0, np.nan, 3.0])
    worst, best = shown.ends(distances, tile)
    assert [x.label for x in worst] == [4, 6, 2] and [x.label for x in best] == [1, 3, 0]


def test_a_page_shows_all_of_it(tmp_path):
    teacher = dataclasses.replace(ROW, model="teacher", steps=8)
    pictures = [
        shown.take(ROW, SAMPLES, FEATURES, REAL_FEATURES, REAL),
        shown.take(teacher, SAMPLES, FEATURES, None, None),
    ]
    drawn = showcase.draw(pictures)
    kinds = [entry.kind for entry in drawn.entries]
    assert kinds == ["samples", "samples", "neighbours", "worst", "best"]
    about = dict.fromkeys(schema.PROVENANCE)
    results = schema.Results([ROW, teacher], about, extremes=drawn.extremes, pictures=drawn.entries)
    schema.write(tmp_path, results)
    drawn.save(tmp_path)
    text = page.write(tmp_path, title="t").read_text()
    assert text.count("data:image/png") == 5
    # Classes by their names, as far as they have one.
    named = showcase.draw(pictures, class_names=("<b>ox</b>", "emu"))
    assert named.entries[0].labels[:5] == ["<b>ox</b>", "emu", 2, 3, "<b>ox</b>"]
    number = drawn.extremes.worst[0].label
    assert named.extremes.worst[0].label == {0: "<b>ox</b>", 1: "emu"}.get(number, number)
    schema.write(tmp_path, dataclasses.replace(results, pictures=named.entries))
    named_text = page.write(tmp_path, title="t").read_text()
    assert "labels &lt;b&gt;ox&lt;/b&gt;, emu, 2, 3" in named_text
    assert showcase.nearest_by_class(pictures, ("ox", "emu")).names.count("emu") == 1
    assert "nearest real image of the reference" in text and "teacher, 8 steps" in text
