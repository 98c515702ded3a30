"""CLIP score and HPS around towers whose features are plain to see."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_tokenizer
from dimo_jax.evaluation.features import clip_images
from dimo_jax.evaluation.features.clip_features import ClipFeatures
from dimo_jax.evaluation.metrics import clip_score, hps
from dimo_jax.models.clip import Clip

SIDE = 8
CONFIG = {"text": {"context": 12}, "image": {"image_size": SIDE}}


def see_text(params, tokens):
    """A vector that each id moves, by where it stands."""
    place = jnp.arange(1, 4)[:, None] * jnp.arange(1.0, 13)[None]
    return {"projected": jnp.sin(tokens[:, None] * place[None]).sum(-1) * params["factor"]}


def see_image(params, images):
    return {"projected": images[:, 1:4, 2, 0] * params["factor"] + images[:, 3, 1:4, 1]}


NETWORK = Clip(CONFIG, lambda key: {}, see_text, see_image)
PARAMS = {"factor": np.float32(2)}
TOKENIZER = clip_tokenizer.open_clip([], context=12)
PROMPTS = [f"prompt {i}" for i in range(5)]


@functools.cache  # compiled once
def features(batch_size=8):
    return ClipFeatures(NETWORK, PARAMS, TOKENIZER, batch_size)


def pictures(num=5, mode="RGB"):
    numbers = np.random.default_rng(0)
    sizes = [(20 + i, 30 - i) for i in range(num)]
    arrays = (numbers.integers(0, 256, (h, w, 3), np.uint8) for w, h in sizes)
    return [Image.fromarray(x).convert(mode) for x in arrays]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def expected_cosines(prepare, prefix="", made=None):
    texts = unit(np.asarray(see_text(PARAMS, TOKENIZER(PROMPTS, prefix))["projected"]))
    images = np.stack([prepare(x) for x in made or pictures()])
    return (unit(np.asarray(see_image(PARAMS, images)["projected"])) * texts).sum(-1)


def clip_pixels(image):
    return clip_images.clip_pixels(image, SIDE)


def squared(image):
    """Middle square, Lanczos to 256, then CLIP's preprocessing."""
    side = min(image.size)
    left, top = ((n - side) // 2 for n in image.size)
    square = image.crop((left, top, left + side, top + side))
    return clip_pixels(square.resize((256, 256), Image.Resampling.LANCZOS))


def test_the_papers_form_is_the_plain_mean_with_the_prefix():
    # Sides of even length, whose middle is no matter of rounding.
    even = [x.crop((0, 0, x.width // 2 * 2, x.height // 2 * 2)) for x in pictures()]
    found = clip_score.score(features(), iter(even), PROMPTS, "dimo")
    expected = expected_cosines(squared, "A photo depicts", even)
    np.testing.assert_allclose(found.cosines, expected, atol=1e-5)
    assert found.value == pytest.approx(expected.mean(), abs=1e-6) and type(found.value) is float
    for other in ((squared, "", even), (clip_pixels, "A photo depicts", even)):
        assert np.abs(expected - expected_cosines(*other)).max() > 0.001


def test_the_other_forms():
    expected = expected_cosines(clip_pixels)
    found = clip_score.score(features(), pictures(), PROMPTS, "plain")
    np.testing.assert_allclose(found.cosines, expected, atol=1e-5)
    assert found.value == pytest.approx(expected.mean(), abs=1e-6)
    found = clip_score.score(features(), pictures(), PROMPTS, "torchmetrics")
    assert found.value == pytest.approx(max(100 * expected.mean(), 0), abs=1e-4)


def test_torchmetrics_floor_is_of_the_mean():
    form = clip_score.FORMS["torchmetrics"]
    assert clip_score.aggregate(np.float32([-0.5, 0.25]), form).value == 0
    assert clip_score.aggregate(np.float32([-0.25, 0.75]), form).value == 25
    assert clip_score.aggregate(np.float32([-0.5, 0.25]), clip_score.FORMS["plain"]).value == -0.125


@pytest.mark.parametrize("batch_size", [2, 16])
def test_batches_do_not_matter(batch_size):
    """Batches of 16 are spread over the devices, and filled up."""
    found = features(batch_size)
    images = found.images(iter(pictures()), clip_images.clip_pixels)
    whole = features().images(pictures(), clip_images.clip_pixels)
    np.testing.assert_allclose(images, whole, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.texts(PROMPTS), axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found.texts(PROMPTS), features().texts(PROMPTS), rtol=1e-5)


def test_images_are_read_as_they_are_needed():
    read, made = [], pictures(1)[0]

    def stream():
        for i in range(100):
            read.append(i)
            yield made

    def prepare(image, size):
        # What is ahead: a batch that is being made, and two for each of eight threads.
        assert len(read) <= 100
        ahead.append(len(read))
        return clip_images.clip_pixels(image, size)

    ahead = []
    assert features(1).images(stream(), prepare).shape == (100, 3)
    assert min(ahead) < 40


def test_an_error_in_a_thread_is_the_callers():
    with pytest.raises(InputError, match="mode RGBA has no HPS"):
        hps.scores(features(), pictures(mode="RGBA"), PROMPTS)


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="no CLIP score 'clipscore'; there are dimo, plain, torch"):
        clip_score.score(features(), pictures(), PROMPTS, "clipscore")
    with pytest.raises(InputError, match="there are 4 images for 5 prompts"):
        clip_score.score(features(), pictures(4), PROMPTS, "plain")
    with pytest.raises(InputError, match="nothing to score"):
        clip_score.score(features(), [], [], "plain")
    with pytest.raises(InputError, match="a text tower alone"):
        ClipFeatures(Clip(CONFIG, NETWORK.init, see_text, None), PARAMS, TOKENIZER)


@pytest.mark.parametrize("antialias", [True, False])
def test_hps_is_a_hundred_cosines(antialias):
    found = hps.scores(features(), pictures(), PROMPTS, antialias)
    expected = 100 * expected_cosines(lambda x: clip_images.hps_pixels(x, SIDE, antialias))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_style_table_by_hand():
    by_style = {
        "anime": np.concatenate([np.full(80, 20.0), np.full(80, 30.0), np.full(40, 40.0)]),
        "photo": np.full(100, 10.0),
    }
    rows = hps.table(by_style)
    # Groups of 80 with means 20, 30, 40; the average is over images.
    found = [(row.style, row.mean, row.deviation, row.num) for row in rows]
    assert found[0] == ("anime", 30.0, pytest.approx(np.sqrt(200 / 3)), 200)
    assert found[1] == ("photo", 10.0, 0.0, 100)
    assert found[2] == ("average", pytest.approx(6600 / 300), None, 300)
    lines = hps.in_words(rows).splitlines()
    assert lines[1].split() == ["anime", "30.00", "8.1650", "200"]
    assert lines[3].split() == ["average", "22.00", "300"]
    with pytest.raises(InputError, match="no scores of photo"):
        hps.table({"photo": np.zeros(0)})
    with pytest.raises(InputError, match="no scores of any style"):
        hps.table({})


def test_the_benchmarks_images(tmp_path):
    made = pictures(3)
    (tmp_path / "anime").mkdir()
    made[0].save(tmp_path / "anime" / "00000.jpg")
    made[1].save(tmp_path / "anime" / "00001.png")
    made[2].convert("RGBA").save(tmp_path / "anime" / "00002.png")
    files = hps.benchmark_files(tmp_path, "anime", 3)
    assert [x.name for x in files] == ["00000.jpg", "00001.png", "00002.png"]
    # Either way they come out of a JPEG.
    found = hps.scores(features(), files[:2], PROMPTS[:2])
    images = [clip_images.as_jpeg(x) for x in made[:2]]
    np.testing.assert_array_equal(found, hps.scores(features(), images, PROMPTS[:2]))
    assert (found != hps.scores(features(), made[:2], PROMPTS[:2])).all()
    with pytest.raises(InputError, match="00002.png: an image of the mode RGBA has no HPS"):
        hps.scores(features(), files, PROMPTS[:3])
    with pytest.raises(InputError, match=r"anime lacks 2 of 5 images, 00003.jpg, 00004.jpg first"):
        hps.benchmark_files(tmp_path, "anime", 5)
