"""Sets of images from every place, by index, and each complaint with the file's name."""

import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from dimo_jax.common import pictures
from dimo_jax.common.errors import InputError
from dimo_jax.evaluation.images import image_files, image_sets
from tests.helpers import picture_files

PIXELS = picture_files.random_pixels(12)


@pytest.fixture
def folder(tmp_path):
    return picture_files.write_folder(tmp_path / "pictures", PIXELS)


def npz(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "deflated zip", "npz", "deflated npz"])
def test_ranges_of_every_kind(folder, tmp_path, kind):
    where = {
        "folder": lambda: folder,
        "zip": lambda: picture_files.write_zip(tmp_path / "x.zip", folder),
        "deflated zip": lambda: picture_files.write_zip(
            tmp_path / "x.zip", folder, zipfile.ZIP_DEFLATED
        ),
        "npz": lambda: npz(tmp_path / "x.npz", arr_0=PIXELS),
        "deflated npz": lambda: npz(tmp_path / "x.npz", True, arr_0=PIXELS),
    }[kind]()
    images = image_sets.open_set(where)
    assert (images.num, images.height, images.width) == (12, 8, 8)
    # Forward with a gap, back to the start, and the end: what a resumed command reads.
    for start, stop in ((1, 3), (7, 12), (0, 2), (11, 12)):
        batch = images.read(start, stop)
        np.testing.assert_array_equal(batch.pixels, PIXELS[start:stop])
        assert not batch.kinds.any()
    assert images.identity(0, 4) != images.identity(4, 8)
    assert image_sets.open_set(where).identity(0, 4) == images.identity(0, 4)


def test_numbers_in_names_are_ordered_by_value(folder):
    images = image_sets.open_set(folder)
    assert images.names == [f"{i}.png" for i in range(12)]
    assert images.name(10) == str(folder / "10.png")


def test_sub_folders_and_hidden_files(folder):
    picture_files.write_folder(folder / "deep", PIXELS[:2])
    (folder / "._0.png").write_bytes(b"what macOS leaves")
    (folder / "notes.txt").write_text("no picture")
    assert image_sets.open_set(folder).num == 12
    assert image_sets.open_set(folder, recursive=True).num == 14
    with pytest.raises(
        InputError, match=r"no pictures \(.png .jpg .*\); .*0.png is deeper, give --rec"
    ):
        (folder / "deep").rename(folder.parent / "deep")
        (folder.parent / "only").mkdir()
        (folder.parent / "deep").rename(folder.parent / "only" / "deep")
        image_sets.open_set(folder.parent / "only")


def test_an_identity_changes_with_its_own_pictures_only(folder):
    before = image_sets.open_set(folder)
    first, second = before.identity(0, 4), before.identity(4, 8)
    Image.fromarray(PIXELS[0]).save(folder / "5.png")
    after = image_sets.open_set(folder)
    assert after.identity(0, 4) == first
    assert after.identity(4, 8) != second


def test_what_samples_say_of_themselves(folder, tmp_path):
    settings = {"sampler": {"name": "one_step"}, "seed": 3}
    path = npz(
        tmp_path / "x.npz", arr_0=PIXELS, labels=np.arange(12), settings=json.dumps(settings)
    )
    images = image_sets.open_set(path)
    assert images.labels.tolist() == list(range(12))
    assert images.facts == settings
    for i in range(12):
        (folder / f"{i}.png").rename(folder / f"{i}_label{i // 2}.png")
    (folder / "settings.json").write_text(json.dumps(settings))
    images = image_sets.open_set(folder)
    assert images.labels.tolist() == [i // 2 for i in range(12)]
    assert images.facts == settings
    (folder / "settings.json").write_text("[1")
    with pytest.raises(InputError, match="record of settings in .* is not JSON"):
        image_sets.open_set(folder)


def test_gray_pictures_become_rgb_and_are_marked(folder, tmp_path):
    Image.fromarray(PIXELS[3, ..., 0]).save(folder / "3.png")
    batch = image_sets.open_set(folder).read(2, 5)
    gray = pictures.to_bits(["gray"])
    assert batch.kinds.tolist() == [0, gray, 0]
    np.testing.assert_array_equal(batch.pixels[1], np.repeat(PIXELS[3, ..., :1], 3, axis=-1))
    batch = image_sets.open_set(npz(tmp_path / "x.npz", arr_0=PIXELS[..., :1])).read(0, 2)
    assert batch.kinds.tolist() == [gray, gray]
    np.testing.assert_array_equal(batch.pixels[..., 2], PIXELS[:2, ..., 0])


SAVED = {
    "1.webp": {"lossless": True},
    "2.bmp": {},
    "3.tif": {},
    "4.TIFF": {"compression": "tiff_lzw"},
    "5.ppm": {},
    "6.png": {},
}


def test_every_format_counts(tmp_path):
    for (name, options), pixels in zip(SAVED.items(), PIXELS, strict=False):
        Image.fromarray(pixels).save(tmp_path / name, **options)
    Image.fromarray(PIXELS[6]).convert("L").save(tmp_path / "7.gif")
    images = image_sets.open_set(tmp_path)
    assert images.num == 7 and images.notes == []
    np.testing.assert_array_equal(images.read(0, 6).pixels, PIXELS[:6])
    np.testing.assert_array_equal(images.read(6, 7).pixels, PIXELS[6:7] * 0 + gray_of(PIXELS[6:7]))


def gray_of(pixels):
    return np.stack([np.asarray(Image.fromarray(x).convert("L")) for x in pixels])[..., None]


def test_what_is_left_out_is_named(folder, tmp_path):
    picture_files.write_folder(folder / "deep", PIXELS[:2])
    for name in ("notes.txt", "data.npy", "settings.json", "captions.txt", ".hidden"):
        (folder / name).write_text("{}")
    (folder / "folder.png").mkdir()
    images = image_sets.open_set(folder)
    assert images.num == 12
    assert images.notes == [
        f"skipped in {folder} (2), no pictures by their names: data.npy; notes.txt",
        f"sub-folders of {folder} not looked into without --recursive (2): deep; folder.png",
    ]
    assert image_sets.open_set(folder, recursive=True).notes == images.notes[:1]
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "0.png", "in/0.png")
        archive.writestr("in/readme.md", "text")
        archive.writestr("in/", "")
    (note,) = image_sets.open_set(path).notes
    assert note == f"skipped in {path} (1), no pictures by their names: in/readme.md"


def test_links_are_followed_and_lost_ones_named(folder, tmp_path):
    inside = tmp_path / "classes"
    inside.mkdir()
    (inside / "a").symlink_to(folder, target_is_directory=True)
    (inside / "b.png").symlink_to(folder / "0.png")
    (folder / "back").symlink_to(inside, target_is_directory=True)
    images = image_sets.open_set(inside, recursive=True)
    assert images.num == 13
    np.testing.assert_array_equal(images.read(12, 13).pixels[0], PIXELS[0])
    (inside / "lost.png").symlink_to("nowhere.png")
    with pytest.raises(InputError, match=r"links in .*classes lead nowhere: lost.png; bring their"):
        image_sets.open_set(inside, recursive=True)
    os.mkfifo(folder / "pipe.png")
    (note,) = image_sets.open_set(folder).notes[:1]
    assert "pipe.png" in note


def test_an_array_in_fortrans_order_is_the_same_images(tmp_path, monkeypatch):
    path = npz(tmp_path / "x.npz", arr_0=np.asfortranarray(PIXELS))
    images = image_sets.open_set(path)
    for start, stop in ((1, 3), (7, 12), (0, 2)):
        np.testing.assert_array_equal(images.read(start, stop).pixels, PIXELS[start:stop])
    monkeypatch.setattr(image_sets, "MAX_TRANSPOSED_BYTES", 100)
    with pytest.raises(InputError, match="in Fortran's order and has 2,304 bytes, more than 100"):
        image_sets.open_set(path)


def test_a_palette_is_a_colour_picture(folder):
    picture = Image.fromarray(PIXELS[0]).quantize(4)
    picture.save(folder / "0.png")
    pixels = image_sets.open_set(folder).read(0, 1).pixels[0]
    np.testing.assert_array_equal(pixels, np.asarray(picture.convert("RGB")))


def of_floats(path):
    Image.fromarray(PIXELS[4, ..., 0].astype(np.float32)).save(path, format="TIFF")


def of_another_size(path):
    Image.fromarray(picture_files.random_pixels(1, side=9)[0]).save(path)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:100])


def of_text(path):
    path.write_text("not a picture")


@pytest.mark.parametrize(
    "spoil, complaint",
    [
        (of_floats, r"4\.png has floats for pixels, of which none is known to be white"),
        (of_another_size, r"4\.png is 9x9 pixels and .*0\.png 8x8; bring all images to one size"),
        (cut_off, r"4\.png \(100 bytes\) is no readable picture"),
        (of_text, r"4\.png \(13 bytes\) is no readable picture"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(folder, spoil, complaint):
    spoil(folder / "4.png")
    images = image_sets.open_set(folder)
    images.read(0, 4)
    with pytest.raises(InputError, match=complaint):
        images.read(2, 8)


def test_several_complaints_are_told_together(folder):
    for i in range(8):
        of_text(folder / f"{i}.png")
    images = image_sets.open_set(folder)
    with pytest.raises(InputError, match=r"0\.png .*4\.png .*; and 3 more$"):
        images.read(0, 12)
    for i in range(8, 12):
        of_text(folder / f"{i}.png")
    with pytest.raises(InputError, match="no readable picture"):
        image_sets.open_set(folder)


def test_jpeg_is_noticed(folder):
    assert not image_sets.open_set(folder).is_jpeg()
    Image.fromarray(PIXELS[0]).save(folder / "13.JPG")
    assert image_sets.open_set(folder).is_jpeg()


@pytest.mark.parametrize(
    "arrays, complaint",
    [
        ({"images": PIXELS}, "has images, but no arr_0"),
        ({"arr_0": PIXELS.astype(np.float32)}, r"is float32 \[12, 8, 8, 3\], expected uint8"),
        ({"arr_0": PIXELS[0]}, r"is uint8 \[8, 8, 3\], expected uint8 \[N, H, W, 3\]"),
        ({"arr_0": PIXELS.transpose(0, 3, 1, 2)}, r"is uint8 \[12, 3, 8, 8\], expected"),
        ({"arr_0": PIXELS[:0]}, "x.npz has no images"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, complaint):
    with pytest.raises(InputError, match=complaint):
        image_sets.open_set(npz(tmp_path / "x.npz", **arrays))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_npz_is_named(tmp_path, compressed):
    pixels = picture_files.random_pixels(40)
    path = npz(tmp_path / "x.npz", compressed, arr_0=pixels)
    picture_files.damage(path, at=5000)
    images = image_sets.open_set(path)
    with pytest.raises(InputError, match="x.npz is damaged before image"):
        for start in range(0, 40, 4):
            images.read(start, start + 4)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="x.npz cannot be read"):
        image_sets.open_set(path)


def test_a_damaged_member_of_a_zip_is_named(folder, tmp_path):
    path = picture_files.write_zip(tmp_path / "x.zip", folder)
    picture_files.damage(path, at=len((folder / "0.png").read_bytes()) + 400)
    images = image_sets.open_set(path)
    with pytest.raises(InputError, match=r"inside/\d+\.png in .*x.zip cannot be read"):
        images.read(0, 12)


def test_places_that_are_none(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"x")
    with pytest.raises(InputError, match="expected a folder, a .zip or an .npz"):
        image_sets.open_set(tmp_path / "x.tar")
    with pytest.raises(InputError, match="there is no .*nowhere"):
        image_sets.open_set(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not tfds:NAME:SPLIT"):
        image_sets.open_set("tfds:digits")


def test_the_middle_square_is_cut_out_and_shrunk():
    # A bright square in the middle of a dark picture, 4 times as large as wanted.
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 16:48] = 200
    found = np.asarray(image_files.centre_square(Image.fromarray(picture), 8))
    assert found.shape == (8, 8, 3)
    assert (found == 200).all()
    # Halved exactly by means: 2 x 2 pixels become one.
    pixels = picture_files.random_pixels(1, side=16)[0]
    found = np.asarray(image_files.centre_square(Image.fromarray(pixels), 8), np.float64)
    means = pixels.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    assert np.abs(found - means).max() <= 1  # rounded after each of the two axes
    with pytest.raises(InputError, match="thin.png would take 1792000x256 pixels in memory, more"):
        image_files.centre_square(Image.new("RGB", (7000, 1)), 256, "thin.png")
    # Made larger where it is too small.
    small = image_files.centre_square(Image.fromarray(pixels[:6, :4]), 8)
    assert small.size == (8, 8)


def test_a_data_set_by_name(tmp_path):
    images = image_sets.open_set("tfds:digits:test", data_dir=str(tmp_path))
    assert (images.num, images.height, images.width) == (397, 8, 8)
    batch = images.read(395, 397)
    assert batch.pixels.dtype == np.uint8 and batch.pixels.max() == 255
    np.testing.assert_array_equal(batch.pixels[..., 0], batch.pixels[..., 2])
    large = image_sets.open_set("tfds:digits:test", image_size=4, data_dir=str(tmp_path))
    assert large.read(0, 1).pixels.shape == (1, 4, 4, 3)
    with pytest.raises(InputError, match="tensorflow-datasets cannot open no_such_set train"):
        image_sets.open_set("tfds:no_such_set:train", data_dir=str(tmp_path))
