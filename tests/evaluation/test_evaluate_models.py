import dataclasses

import numpy as np
import pytest
from prdc import compute_prdc
from sklearn.datasets import load_digits

from dimo_jax.common.errors import InputError
from dimo_jax.common.images import to_uint8
from dimo_jax.conditions.labels import in_turn
from dimo_jax.evaluation import evaluate_images, evaluate_models, shown
from dimo_jax.evaluation.evaluate_models import Generator
from dimo_jax.evaluation.features.classifier import FeatureNetwork
from dimo_jax.evaluation.metrics import frechet, neighbours, of_outputs
from dimo_jax.evaluation.real_images import RealImages

BEST_TEMPERATURE = {1: None, 2: 0.0, 4: 0.0, 8: 9.0, 16: 9.0}
SETTINGS = evaluate_models.ProtocolSettings(
    num_samples=40,
    seeds=(1, 2, 3),
    teacher_steps=(1, 2, 4, 8, 16),
    sweep_steps=(1, 4, 16),
    sweep_num_samples=30,
    sweep_seed=0,
    num_neighbours=5,
    num_pictures=20,
)
SMALL = dataclasses.replace(SETTINGS, teacher_steps=(2,), sweep_steps=(1,))
SAMPLERS = evaluate_models.candidates((1.0, 2.0), (0.0, 9.0), random_order=True)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Blocks are filled up, which eight devices and programs without optimization make dear."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "ROWS_PER_DEVICE", 64)
        patch.setattr(neighbours, "COLUMNS", 256)
        yield


class FakeNetwork(FeatureNetwork):
    """Features are every second pixel; the class is that of the nearest training image."""

    def __init__(self, images, labels):
        self.images, self.labels = images.reshape(len(images), -1), labels

    def features(self, images):
        return images.reshape(len(images), -1)[:, ::2]

    def predict(self, images):
        rows = images.reshape(len(images), -1)
        squares = ((rows[:, None] - self.images[None]) ** 2).sum(-1)
        return self.labels[squares.argmin(axis=1)]


class FakeModels:
    """Real images with noise: none with the best sampler, more with fewer steps and any other."""

    def __init__(self, data):
        self.data = data
        self.calls = []

    def images(self, labels, seed, noise):
        draw = np.random.default_rng(seed)
        index = [draw.choice(np.flatnonzero(self.data.test_labels == label)) for label in labels]
        images = self.data.test_images[index]
        noisy = images + noise * draw.choice([-1, 1], images.shape)
        return (np.clip(np.round(noisy * 16), 0, 16) / 16).astype(np.float32)

    def teacher(self, num_steps, sampler, seed, labels):
        self.calls.append((num_steps, sampler, seed, len(labels)))
        wrong = sampler["guidance"] != 2.0
        if BEST_TEMPERATURE[num_steps] is not None:
            wrong += sampler["choice_temperature"] != BEST_TEMPERATURE[num_steps]
            wrong += sampler["randomize"] != "linear"
        return self.images(labels, seed, 0.1 / num_steps + 0.2 * wrong)

    def generator(self, seed, labels):
        return self.images(labels, seed, 0.01)


@pytest.fixture(scope="module")
def data():
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    return RealImages(
        train_images=images[:300],
        train_labels=labels[:300],
        test_images=images[300:400],
        test_labels=labels[300:400],
        num_classes=10,
        encode=lambda x: np.round(x * 16).astype(np.int32).reshape(len(x), -1),
        codebook_size=17,
    )


def run(
    data, settings=SETTINGS, progress=lambda done, total, text: None, samplers=SAMPLERS, steps=(1,)
):
    fake = FakeModels(data)
    evaluation = evaluate_models.evaluate(
        fake.teacher,
        [Generator(number, {"ratio": 0.6}, fake.generator) for number in steps],
        data=data,
        network=FakeNetwork(data.train_images, data.train_labels),
        samplers=samplers,
        settings=settings,
        progress=progress,
    )
    return evaluation, fake


@pytest.fixture(scope="module")
def outcome(data):
    return run(data)


def test_rows_are_the_models_in_order_with_every_metric(outcome):
    rows = outcome[0].rows
    expected = [("teacher", n) for n in (1, 2, 4, 8, 16)] + [("generator", 1), ("test_split", 0)]
    assert [(row.model, row.steps) for row in rows] == expected
    names = (
        "frechet_features frechet_pixels accuracy precision recall density coverage duplicates "
        "copies near_copies entropy"
    ).split()
    for row in rows:
        assert list(row.metrics) == names and not row.rest


def test_the_sweep_finds_the_best_sampler_and_neighbouring_steps_take_it(outcome):
    samplers = {row.steps: row.sampler for row in outcome[0].rows if row.model == "teacher"}
    best = {"guidance": 2.0, "randomize": "linear"}
    assert samplers[1]["guidance"] == 2.0
    assert samplers[2] == samplers[4] == best | {"choice_temperature": 0.0}
    assert samplers[8] == samplers[16] == best | {"choice_temperature": 9.0}


def test_every_candidate_was_compared_with_the_sweeps_seed_and_size(outcome):
    evaluation, fake = outcome
    sweep_calls = [call for call in fake.calls if call[2] == SETTINGS.sweep_seed]
    assert {call[3] for call in sweep_calls} == {30}
    rows = [row for row, _ in evaluation.sweep]
    assert [call[:2] for call in sweep_calls] == [(row.steps, row.sampler) for row in rows]
    # Two guidances in one step, where no order exists; 2 x (2 + random) at 4 and 16 steps.
    assert [row.steps for row in rows] == [1] * 2 + [4] * 6 + [16] * 6
    assert sum(chosen for _, chosen in evaluation.sweep) == 3


def test_the_least_sum_of_both_distances_is_chosen(outcome):
    for steps in SETTINGS.sweep_steps:
        here = [(row, chosen) for row, chosen in outcome[0].sweep if row.steps == steps]
        sums = [row.mean("frechet_features") + row.mean("frechet_pixels") for row, _ in here]
        assert here[int(np.argmin(sums))][1]


def test_mean_and_spread_are_over_the_seeds(data):
    together = run(data, SMALL)[0].rows
    single = [run(data, dataclasses.replace(SMALL, seeds=(seed,)))[0].rows for seed in SMALL.seeds]
    for index, row in enumerate(together[:-1]):
        for name, value in row.metrics.items():
            values = [rows[index].mean(name) for rows in single]
            assert value.mean == pytest.approx(np.mean(values))
            assert value.std == pytest.approx(np.std(values, ddof=1))
            assert all(rows[index].metrics[name].std == 0 for rows in single)
    assert together[0].metrics["frechet_pixels"].std > 0


def test_the_test_split_is_the_floor_without_spread(outcome):
    floor = outcome[0].rows[-1]
    assert all(value.std == 0 for value in floor.metrics.values())
    assert floor.mean("frechet_pixels") < outcome[0].rows[0].mean("frechet_pixels")
    assert floor.mean("copies") == floor.mean("duplicates") == 0


def measured(data, images, labels, num_neighbours=5, metrics=None):
    """The row of some images."""
    network = FakeNetwork(data.train_images, data.train_labels)
    samples = data.outputs(network, images, labels)
    real = data.outputs(network, data.train_images, data.train_labels)
    metrics = metrics or of_outputs.of_classifier(10, 17, num_neighbours)
    return evaluate_images.evaluate(samples, real, metrics)


def test_metrics_of_training_images_themselves(data):
    images = np.concatenate([data.train_images, data.train_images[:100]])
    found = measured(data, images[:300], data.train_labels)
    assert found.mean("frechet_features") == pytest.approx(0, abs=1e-6)
    assert found.mean("frechet_pixels") == pytest.approx(0, abs=1e-6)
    # Percent of the variance: halved contrast loses the mean's half and a quarter of the variance.
    pixels = data.train_images.reshape(300, -1).astype(np.float64)
    distances = of_outputs.FRECHET_PERCENTS
    halved = measured(data, data.train_images / 2, data.train_labels, metrics=distances)
    for name, rows in (("frechet_pixels", pixels), ("frechet_features", pixels[:, ::2])):
        variance = rows.var(0, ddof=1).sum()
        expected = 100 * (np.sum((rows.mean(0) / 2) ** 2) + variance / 4) / variance
        assert halved.mean(name) == pytest.approx(expected)
    labels = np.concatenate([data.train_labels, data.train_labels[:100]])
    found = measured(data, images, labels)
    assert found.mean("accuracy") == found.mean("copies") == 1
    assert found.mean("duplicates") == pytest.approx(100 / 400)
    wrong = measured(data, data.train_images, (data.train_labels + 1) % 10)
    assert wrong.mean("accuracy") == 0
    assert [value.mean for value in wrong.per_class["accuracy"]] == [0] * 10


def test_precision_and_recall_are_of_samples_among_real_images(data):
    samples, labels = data.test_images[:60] * np.float32(0.875), data.test_labels[:60]
    found = measured(data, samples, labels, num_neighbours=3)
    expected = compute_prdc(data.train_images.reshape(300, -1), samples.reshape(60, -1), 3)
    assert {name: found.mean(name) for name in expected} == pytest.approx(expected, abs=1e-12)


def test_classes_are_measured_apart_in_percent_of_the_whole_variance(data, outcome):
    evaluation, fake = outcome
    generator = next(row for row in evaluation.rows if row.model == "generator")
    labels = in_turn(40, 10)
    real = data.train_images.reshape(300, -1)[:, ::2].astype(np.float64)
    variance = real.var(0, ddof=1).sum()
    for label in (0, 7):
        values = []
        for seed in SETTINGS.seeds:
            samples = fake.generator(seed, labels)[labels == label].reshape(4, -1)[:, ::2]
            distance = frechet.frechet(
                frechet.moments(real[data.train_labels == label]), samples
            ).distance
            values.append(100 * distance / variance)
        found = generator.per_class["frechet_features"][label]
        assert found.mean == pytest.approx(np.mean(values), rel=1e-4)
        assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-3)
    shares = [value.mean for value in generator.per_class["accuracy"]]
    assert np.mean(shares) == pytest.approx(generator.mean("accuracy"))


def pictures_of(evaluation, model):
    return next(one for one in evaluation.shown if one.model == model)


def test_the_ends_are_of_the_generators_first_seed(data, outcome):
    evaluation, fake = outcome
    samples = fake.generator(SETTINGS.seeds[0], in_turn(40, 10))
    ends = pictures_of(evaluation, "generator")
    assert len(ends.worst) == len(ends.best) == shown.NUM_EXTREMES
    for item in (*ends.worst, *ends.best):
        place = int(np.flatnonzero((to_uint8(samples) == item.image).all(axis=(1, 2, 3)))[0])
        assert item.label == place % 10
        of_class = data.train_images[data.train_labels == item.label].reshape(-1, 64)[:, ::2]
        squares = ((of_class - samples[place].reshape(1, 64)[:, ::2]) ** 2).sum(1)
        assert item.distance == pytest.approx(np.sqrt(squares.min()), abs=1e-5)
    assert ends.worst[0].distance > ends.worst[-1].distance > ends.best[-1].distance


def test_copies_are_found_by_tokens(data):
    coarse = dataclasses.replace(data, encode=lambda x: (data.encode(x) > 8).astype(np.int32))
    images = np.clip(data.train_images[:50] * 0.99, 0, 1)
    assert measured(data, data.test_images, data.test_labels).mean("copies") == 0
    assert measured(coarse, images, data.train_labels[:50]).mean("copies") == 1
    # 3 of 64 tokens are less than 5 %, 4 are more.
    for changed, near in ((3, 1), (4, 0)):
        tokens = data.encode(data.train_images[:50]) / 16
        tokens[:, :changed] = (tokens[:, :changed] + 8 / 16) % 1
        odd = dataclasses.replace(data, encode=lambda x: np.rint(x.reshape(len(x), -1) * 16))
        found = measured(odd, tokens.reshape(50, 8, 8, 1), data.train_labels[:50])
        assert (found.mean("copies"), found.mean("near_copies")) == (0, near)


def test_candidates_are_every_guidance_with_every_order():
    assert evaluate_models.candidates([1, 2], [4.5], random_order=True) == [
        {"guidance": 1.0, "randomize": "linear", "choice_temperature": 4.5},
        {"guidance": 1.0, "randomize": "random", "choice_temperature": 0.0},
        {"guidance": 2.0, "randomize": "linear", "choice_temperature": 4.5},
        {"guidance": 2.0, "randomize": "random", "choice_temperature": 0.0},
    ]
    assert len(evaluate_models.candidates([1, 2, 3], [4.5, 9.0], random_order=False)) == 6


def test_labels_are_balanced_and_the_same_for_all(outcome):
    labels = in_turn(40, 10)
    assert all(one.labels.tolist() == labels[:20].tolist() for one in outcome[0].shown)


def test_pictures_are_of_the_first_seed_and_the_right_labels(data, outcome):
    evaluation, fake = outcome
    labels = in_turn(40, 10)
    keys = [(row.model, row.steps) for row in evaluation.rows]
    assert [(one.model, one.steps) for one in evaluation.shown] == [keys[-1], *keys[:-1]]
    expected = fake.generator(SETTINGS.seeds[0], labels)[:20]
    generated = pictures_of(evaluation, "generator")
    np.testing.assert_array_equal(generated.first, to_uint8(expected))
    real = pictures_of(evaluation, "test_split").first.reshape(20, -1)
    tests = to_uint8(data.test_images).reshape(100, -1)
    found = [int(np.flatnonzero((tests == image).all(axis=1))[0]) for image in real]
    np.testing.assert_array_equal(data.test_labels[found], labels[:20])
    assert len(set(found)) == 20
    squares = ((expected.reshape(20, 1, -1) - data.train_images.reshape(1, 300, -1)) ** 2).sum(-1)
    nearest = to_uint8(data.train_images[squares.argmin(1)])
    np.testing.assert_array_equal(generated.neighbours, nearest)


def test_the_outcome_is_a_function_of_the_seeds(data):
    first, again = (run(data, SMALL)[0] for _ in range(2))
    other, _ = run(data, dataclasses.replace(SMALL, seeds=(4, 5, 6)))
    assert again.rows == first.rows
    assert again.sweep == first.sweep == other.sweep
    assert other.rows[0] != first.rows[0]
    assert other.rows[-1] == first.rows[-1]


def test_progress_counts_up_to_the_end(data):
    seen = []
    settings = dataclasses.replace(SMALL, sweep_steps=(4,), teacher_steps=(16,))
    run(data, settings, lambda *entry: seen.append(entry), steps=(3, 1))
    done = [entry[0] for entry in seen]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == seen[-1][1]
    assert any("generator, 3 steps" in entry[2] for entry in seen)
    assert any("sweep, 4 steps, choice_temperature 9.0" in entry[2] for entry in seen)
    assert any("teacher, 16 steps, seed 3" in entry[2] for entry in seen)
    assert any("generator, 3 steps, seed 3" in entry[2] for entry in seen)


@pytest.mark.parametrize(
    "samplers",
    [
        [{"guidance": 2.0, "randomize": "none", "choice_temperature": 0.0}],
        evaluate_models.candidates((1.0, 2.0), (4.5,), True),
    ],
)
def test_progress_counts_two_calls_a_step_where_the_sweep_chose_guidance(data, samplers):
    seen = []
    run(data, SMALL, lambda *entry: seen.append(entry), samplers)
    total = seen[-1][1]
    assert all(entry[1] >= total for entry in seen), "the dearest case comes first"
    starts = [done for done, _, text in seen if text.startswith("generator")]
    left = [SMALL.num_samples * n for n in range(len(SMALL.seeds), 0, -1)]
    assert starts == [total - n for n in left]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sweep_seed": 2}, "sweep_seed 2 is one of the seeds"),
        ({"seeds": ()}, "seeds is empty"),
        ({"num_neighbours": 40}, "num_neighbours is 40"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SETTINGS, **change)
