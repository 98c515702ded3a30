"""Features in ranges on disk: kept, resumed, and warned about by name."""

import numpy as np
import pytest
from PIL import Image

from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.features import feature_store
from dimo_jax.evaluation.features.feature_store import FeatureStore
from dimo_jax.evaluation.images import image_sets
from tests.helpers import picture_files

PIXELS = picture_files.random_pixels(22)


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch):
    monkeypatch.setattr(feature_store, "RANGE_SIZE", 8)


@pytest.fixture
def folder(tmp_path):
    return picture_files.write_folder(tmp_path / "pictures", PIXELS)


class Counting:
    """The plain features, and how many images each call saw."""

    def __init__(self):
        self.calls = []

    def __call__(self, images):
        self.calls.append(len(images))
        return picture_files.plain_features(images)


def open_store(where, tmp_path, function=picture_files.plain_features, **settings):
    images = image_sets.open_set(where)
    extractor = picture_files.extractor(function, **settings)
    return FeatureStore(tmp_path / "features", images, extractor, "samples")


def test_ranges_join_to_the_whole(folder, tmp_path):
    seen = Counting()
    store = open_store(folder, tmp_path, seen)
    assert store.fill() == 22
    assert seen.calls == [8, 8, 6]
    for name, expected in picture_files.plain_features(PIXELS).items():
        found = store.load(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    rows = picture_files.plain_features(PIXELS)["2048"].astype(np.float64)
    moments = store.moments("2048")
    assert moments.mean.dtype == moments.covariance.dtype == np.float64
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T), rtol=1e-12, atol=1e-15)


def test_a_second_time_nothing_is_computed(folder, tmp_path):
    open_store(folder, tmp_path).fill()
    seen = Counting()
    store = open_store(folder, tmp_path, seen)
    assert (store.fill(), seen.calls) == (0, [])
    # Another preprocessing, or other weights, is other features.
    assert open_store(folder, tmp_path, seen, resizer="clean_bicubic").fill() == 22


def test_a_killed_command_goes_on(folder, tmp_path, capsys):
    def killed(images):
        if killed.calls == 2:
            raise KeyboardInterrupt
        killed.calls += 1
        return picture_files.plain_features(images)

    killed.calls = 0
    with pytest.raises(KeyboardInterrupt):
        open_store(folder, tmp_path, killed).fill()
    seen = Counting()
    assert open_store(folder, tmp_path, seen).fill() == 6
    assert seen.calls == [6]
    assert "goes on: 16 of 22 images are there already" in capsys.readouterr().err


def test_a_corrupt_picture_costs_its_range_only(folder, tmp_path):
    content = (folder / "10.png").read_bytes()
    (folder / "10.png").write_bytes(content[:90])
    seen = Counting()
    with pytest.raises(InputError) as raised:
        open_store(folder, tmp_path, seen).fill()
    assert "10.png (90 bytes) is no readable picture" in str(raised.value)
    assert "The features of the 14 other images are kept" in str(raised.value)
    assert seen.calls == [8, 6]
    (folder / "10.png").write_bytes(content)
    store = open_store(folder, tmp_path, seen)
    assert store.fill() == 8
    np.testing.assert_array_equal(store.load("2048"), picture_files.plain_features(PIXELS)["2048"])


def test_a_replaced_picture_costs_its_range_and_leaves_nothing_behind(folder, tmp_path):
    open_store(folder, tmp_path).fill()
    Image.fromarray(PIXELS[0]).save(folder / "20.png")
    store = open_store(folder, tmp_path)
    assert store.fill() == 6
    changed = PIXELS.copy()
    changed[20] = PIXELS[0]
    expected = picture_files.plain_features(changed)["2048"]
    np.testing.assert_array_equal(store.load("2048"), expected)
    assert len(list(store.folder.iterdir())) == 3


def test_large_images_come_in_smaller_ranges(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "RANGE_BYTES", 8 * 8 * 3 * 5)
    assert list(open_store(folder, tmp_path).files.paths)[:2] == [(0, 4), (4, 8)]


def test_a_damaged_range_is_named(folder, tmp_path):
    store = open_store(folder, tmp_path)
    store.fill()
    path = sorted(store.folder.iterdir())[1]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"00000008-\w+\.npz cannot be read"):
        store.load("2048")


def test_a_damaged_range_is_made_again(folder, tmp_path, capsys):
    open_store(folder, tmp_path).fill()
    seen = Counting()
    store = open_store(folder, tmp_path, seen)
    first, second, _ = paths = sorted(store.folder.iterdir())
    before = [path.read_bytes() for path in paths]
    first.write_bytes(before[0][:200])
    flipped = bytearray(before[1])
    flipped[len(flipped) // 2] ^= 16
    second.write_bytes(flipped)
    assert (store.fill(), seen.calls) == (16, [8, 8])
    assert [path.read_bytes() for path in paths] == before
    assert f"2 damaged files, {first} for one, are made again" in capsys.readouterr().err


def test_the_hash_is_of_the_pixels_in_any_file(folder, tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=PIXELS)
    other = PIXELS.copy()
    other[21, 0, 0, 0] ^= 1
    np.savez(tmp_path / "y.npz", arr_0=other)
    hashes = []
    for where in (folder, tmp_path / "x.npz", tmp_path / "y.npz"):
        store = open_store(where, tmp_path / where.stem)
        store.fill()
        hashes.append(store.pixel_hash())
    assert hashes[0] == hashes[1] != hashes[2]


def test_odd_images_are_named(folder, tmp_path):
    Image.fromarray(PIXELS[3]).save(folder / "11.png")
    Image.fromarray(PIXELS[3]).save(folder / "19.png")
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(folder / "5.png")
    Image.fromarray(PIXELS[6, ..., 0]).save(folder / "6.png")
    Image.fromarray(PIXELS[9, ..., 0]).save(folder / "9.png")
    Image.fromarray(PIXELS[0]).convert("CMYK").save(folder / "22.jpg")
    (folder / "notes.txt").touch()
    store = open_store(folder, tmp_path)
    store.fill()
    assert store.warnings() == [
        f"skipped in {folder} (1), no pictures by their names: notes.txt",
        f"{folder / '5.png'} is of one colour",
        f"converted to 8-bit RGB: 3 of 23 images, 2 gray, 1 CMYK; the first is {folder / '6.png'}",
        f"{folder / '11.png'} equals {folder / '3.png'} (2 duplicates in all)",
        f"{folder} holds JPEG files, whose artefacts a FID sees",
    ]


def test_usual_images_are_not(folder, tmp_path):
    store = open_store(folder, tmp_path)
    store.fill()
    assert store.warnings() == []


def test_one_image_has_no_covariance(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=PIXELS[:1])
    store = open_store(tmp_path / "x.npz", tmp_path)
    store.fill()
    with pytest.raises(InputError, match="x.npz has 1 image; a covariance needs two"):
        store.moments("2048")
