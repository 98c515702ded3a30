"""Pictures to encode, from folders as strangers send them and from tensorflow-datasets."""

import inspect
import io
import json
import os
import sys
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dimo_jax.common.errors import InputError
from dimo_jax.data.picture_sources import open_pictures, unusual

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 9, 3), np.uint8)


def encoded(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def put(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(PIXELS[0]) if content is None else content)


@pytest.fixture
def classes(tmp_path):
    folder = tmp_path / "photos"
    for i, name in enumerate(("zebra/b.PNG", "zebra/a.Jpg", "cat/10.webp", "Dog/x.png")):
        form = "JPEG" if name.endswith("Jpg") else "WEBP" if name.endswith("webp") else "PNG"
        put(folder / name, encoded(PIXELS[i], form, lossless=True))
    return folder


def lines(folder, *records):
    text = "".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in records)
    (folder / "metadata.jsonl").write_text(text)


@pytest.fixture
def flat(tmp_path):
    folder = tmp_path / "flat"
    for i in range(3):
        put(folder / "in" / f"{i}.png", encoded(PIXELS[i]))
    return folder


def row(i, **more):
    return {"file_name": f"in/{i}.png", **more}


def test_sub_folders_are_classes(classes):
    (classes / "readme.txt").write_text("x")
    (classes / ".cache").mkdir()
    found = open_pictures(classes)
    assert (found.num, found.condition) == (4, "label")
    # As torchvision's ImageFolder sorts: by code points.
    assert found.class_names == ["Dog", "cat", "zebra"]
    names = [found.name(i) for i in range(4)]
    assert names == ["Dog/x.png", "cat/10.webp", "zebra/a.Jpg", "zebra/b.PNG"]
    assert [found.label(i) for i in range(4)] == [0, 1, 2, 2]
    np.testing.assert_array_equal(found.read(0), PIXELS[3])
    np.testing.assert_array_equal(found.read(1), PIXELS[2])
    assert found.notes == [f"skipped in {classes} (1), no pictures by their names: readme.txt"]
    same = open_pictures(classes).version
    assert same == found.version
    (classes / "cat").rename(classes / "kitten")
    assert open_pictures(classes).version != same


def test_pictures_alone_have_no_condition(classes, flat):
    for folder, names in ((classes / "zebra", ["a.Jpg", "b.PNG"]), (flat / "in", ["0.png"])):
        found = open_pictures(folder)
        assert (found.condition, found.class_names) == ("none", [])
        assert found.name(0) == names[0]
    found = open_pictures(classes, "none")
    assert (found.num, found.condition, found.name(3)) == (4, "none", "zebra/b.PNG")


def test_a_long_list_says_how_far_it_is(tmp_path):
    for i in range(2500):
        (tmp_path / f"{i}.png").touch()
    lines(
        tmp_path, *(json.dumps({"file_name": f"{i}.png", "text": "x"}) + "\n" for i in range(2500))
    )
    said = []
    assert open_pictures(tmp_path, progress=lambda *x: said.append(x)).num == 2500
    assert said == [(n, 2500, "lines of metadata.jsonl read") for n in (1000, 2000)]


def test_captions(flat):
    lines(flat, "\ufeff", row(2, text=" a cat "), "\n", row(0, text="ein Küken"))
    found = open_pictures(flat)
    assert (found.num, found.condition, found.class_names) == (2, "text", [])
    assert [found.text(i) for i in range(2)] == ["a cat", "ein Küken"]
    assert found.name(0) == "in/2.png"
    np.testing.assert_array_equal(found.read(0), PIXELS[2])
    assert found.notes == ["pictures that metadata.jsonl does not name (1): in/1.png"]
    lines(flat, row(2, said=["one", "two"]))
    assert open_pictures(flat, field="said").text(0) == "one"
    lines(flat, row(2, text="x"), row(1, text="y"))
    assert open_pictures(flat).version != found.version


def test_labels_by_name_and_by_number(flat):
    lines(flat, row(0, label="b"), row(1, label="a"), row(2, label="b", text="both"))
    found = open_pictures(flat)
    assert (found.condition, found.class_names) == ("label", ["a", "b"])
    assert [found.label(i) for i in range(3)] == [1, 0, 1]
    lines(flat, row(0, label=2), {"file_name": "./in//1.png", "label": 0})
    found = open_pictures(flat)
    assert found.class_names == ["0", "1", "2"]
    assert [found.label(i) for i in range(2)] == [2, 0] and found.name(1) == "in/1.png"
    assert found.notes[-1] == "classes without a picture (1): 1"
    # A field of another name.
    lines(flat, row(0, kind="x", text="t"), row(1, kind="y", text="t"))
    assert open_pictures(flat, "label", "kind").class_names == ["x", "y"]
    assert open_pictures(flat).condition == "text"
    assert open_pictures(flat, "none").condition == "none"


@pytest.mark.parametrize(
    "records, complaint",
    [
        ([row(0, text="a"), row(1)], "line 2, has file_name, but no text; name the text's field"),
        ([row(0, text="a"), row(1, text=" \n")], "line 2, has an empty caption"),
        ([row(0, text="a"), row(1, text=None)], "line 2, has an empty caption"),
        ([row(0, text="a"), row(1, text=3)], "line 2, has '3' where the text was expected"),
        ([row(0, text="\ud800")], r"line 1, has a caption that is no Unicode: '\\ud800'"),
        ([row(0, label=1), row(1, label="a")], "has the label 'a', expected a number in each line"),
        ([row(0, label="a"), row(1, label=1)], "has the label 1, expected a name in each line"),
        ([row(0, label=True)], "has the label True, expected a name or a whole number"),
        ([row(0, label=1.0)], "has the label 1.0, expected a name or a whole number"),
        ([row(0, label=-1)], "has the label -1, expected 0 to 65535"),
        ([row(0, label=10**9)], "has the label 1000000000, expected 0 to 65535"),
        ([row(0, label=" a")], "metadata.jsonl: a class is called ' a'; names must differ"),
        ([row(0, label="a\nb")], r"a class is called 'a\\nb'; names must differ"),
        ([row(0, label="a"), row(0, label="b")], "line 2, names in/0.png, as does .*line 1"),
        ([row(0), {"file_name": "in/./0.png"}], "line 2, names in/0.png, as does"),
        ([row(7, label="a")], "line 1, names in/7.png, which is no picture in"),
        ([{"file_name": "../flat/in/0.png"}], r"names ../flat/in/0.png, expected a path inside"),
        ([{"file_name": "/etc/passwd"}], "names /etc/passwd, expected a path inside"),
        ([{"file_name": "in/0.png\0"}], r"names in/0.png\\x00, expected a path inside"),
        ([{"file_name": 3}], "line 1, has no file_name"),
        ([{"label": "a"}], "line 1, has no file_name"),
        (['["in/0.png"]\n'], "line 1, is no object"),
        (['{"file_name": \n'], "line 1, is not JSON"),
        ([""], "metadata.jsonl has no lines"),
    ],
)
def test_a_line_of_metadata_that_is_not_as_expected(flat, records, complaint):
    lines(flat, *records)
    with pytest.raises(InputError, match=complaint):
        open_pictures(flat)


def test_metadata_that_is_no_text(flat):
    (flat / "metadata.jsonl").write_bytes(b'{"file_name": "in/\xe9.png"}\n')
    with pytest.raises(InputError, match="line 1, is not UTF-8"):
        open_pictures(flat)
    (flat / "metadata.jsonl").unlink()
    os.mkfifo(flat / "metadata.jsonl")
    with pytest.raises(InputError, match="metadata.jsonl is no file"):
        open_pictures(flat)


def test_folders_that_are_no_classes(classes, tmp_path):
    (classes / "empty").mkdir()
    with pytest.raises(InputError, match="classes of .* have no picture: empty; fill or remove"):
        open_pictures(classes)
    (classes / "empty").rmdir()
    put(classes / "cat" / "deep" / "a.png")
    with pytest.raises(InputError, match=r"deeper than .*\(cat/deep/a.png\); give the folder"):
        open_pictures(classes)
    put(classes / "cover.png")
    with pytest.raises(InputError, match=r"has pictures \(cover.png\) beside sub-folders"):
        open_pictures(classes)
    assert open_pictures(classes, "none").num == 6
    odd = tmp_path / "odd"
    put(odd / "a\nb" / "0.png")
    with pytest.raises(InputError, match=r"odd: a class is called 'a\\nb'"):
        open_pictures(odd)
    latin = tmp_path / "latin"
    put(latin / "x" / os.fsdecode(b"\xe9.png"))
    assert open_pictures(latin).name(0) == "x/\udce9.png"
    (latin / "x").rename(latin / os.fsdecode(b"\xe9"))
    with pytest.raises(InputError, match=r"a class is called '\\udce9'"):
        open_pictures(latin)
    with pytest.raises(InputError, match="has no sub-folders; put each class"):
        open_pictures(classes / "zebra", "label")


def test_places_that_have_no_pictures(tmp_path, classes):
    with pytest.raises(InputError, match="there is no folder .*nowhere; give one with"):
        open_pictures(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="has no pictures"):
        open_pictures(tmp_path / "bare")
    with pytest.raises(InputError, match="has no metadata.jsonl with captions or labels"):
        open_pictures(classes, "text")
    with pytest.raises(InputError, match="the condition is 'labels', expected label, text, none"):
        open_pictures(classes, "labels")


def test_links_out_of_the_folder(classes, tmp_path):
    put(tmp_path / "private" / "me.png")
    inside = classes / "cat" / "again.png"
    inside.symlink_to(classes / "Dog" / "x.png")
    assert open_pictures(classes).num == 5
    for link, target in (("cat/out.png", "private/me.png"), ("private", "private")):
        (classes / link).symlink_to(tmp_path / target)
        with pytest.raises(InputError, match=f"{link} is a link out of .*photos, to .*{target}"):
            open_pictures(classes)
        assert open_pictures(classes, follow_links=True).num == 6
        (classes / link).unlink()
    # A device and a pipe are no pictures, whatever their names.
    os.mkfifo(classes / "cat" / "pipe.png")
    assert open_pictures(classes).num == 5


def test_folders_deeper_than_python_looks(tmp_path):
    put(tmp_path.joinpath(*["a"] * 200, "x.png"))
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack(0)) + 150)
        with pytest.raises(InputError, match="too many inside each other to look into"):
            open_pictures(tmp_path)
    finally:
        sys.setrecursionlimit(before)


def big():
    """A PNG of 60,000 x 60,000 pixels by its header."""
    data = bytearray(encoded(PIXELS[0]))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", r"0.png \(0 bytes\) is no readable picture"),
        (encoded(PIXELS[0])[:200], "is no readable picture"),
        (b"<html>", "is a web page"),
        (big(), "60000x60000 pixels|more than 67,108,864"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named_when_it_is_read(tmp_path, content, complaint):
    put(tmp_path / "0.png", content)
    found = open_pictures(tmp_path)
    with pytest.raises(InputError, match=complaint):
        found.read(0)


def test_pictures_are_turned_upright_and_lose_their_transparency(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "0.png", encoded(PIXELS[0], exif=exif))
    put(tmp_path / "1.png", encoded(np.concatenate([PIXELS[1], PIXELS[2][..., :1]], -1)))
    put(tmp_path / "2.png", encoded(PIXELS[2][..., 0]))
    found = open_pictures(tmp_path)
    np.testing.assert_array_equal(found.read(0), np.rot90(PIXELS[0], -1))
    np.testing.assert_array_equal(found.read(1), PIXELS[1])
    np.testing.assert_array_equal(found.read(2), np.repeat(PIXELS[2][..., :1], 3, -1))
    # Said before the work, as far as some of them tell; broken ones come up when they are read.
    put(tmp_path / "3.png", b"")
    text = unusual(open_pictures(tmp_path))
    assert text == "of 3 pictures looked at 1 gray, 1 with transparency, which is dropped"
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    assert unusual(open_pictures(tmp_path)) == ""


class Birds(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pictures as files, labels of which one is missing, captions and a list of them."""

    VERSION = tfds.core.Version("1.2.3")
    code_path = None

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=["owl", "emu"]),
            "side": tfds.features.ClassLabel(num_classes=3),
            "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
            "text": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "test": self._generate_examples(0)}

    def _generate_examples(self, named):
        exif = Image.Exif()
        exif[0x0112] = 6
        for i in range(4):
            file = encoded(PIXELS[i], exif=exif) if i < 3 else b"broken"
            texts = [{"text": f"{i} one"}, {"text": "two"}]
            yield (
                i,
                {
                    "image": io.BytesIO(file),
                    "label": i % 2 if i < named else -1,
                    "side": 2,
                    "captions": texts,
                    "text": f"bird {i}" if i != 1 else "",
                },
            )


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    tfds.disable_progress_bar()
    Birds(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


def test_a_data_set_by_name(birds):
    def opened(*args, split="train"):
        return open_pictures(f"tfds:birds:{split}", *args, data_dir=birds)

    found = opened()
    assert (found.num, found.condition, found.version) == (4, "label", "1.2.3")
    assert found.class_names == ["owl", "emu"] and found.name(2) == "2"
    captions = opened("text")
    firsts = opened("", "captions/text")
    assert captions.condition == firsts.condition == "text"
    assert unusual(found) == ""
    for i in range(4):  # in tfds's own order
        text = firsts.text(i)
        number = int(text[0])
        assert text == f"{number} one"
        if number == 3:
            with pytest.raises(InputError, match=f"train, example {i}, .* no readable picture"):
                found.read(i)
            with pytest.raises(InputError, match=f"example {i}, has label -1, expected 0 to 1"):
                found.label(i)
        else:
            np.testing.assert_array_equal(found.read(i), np.rot90(PIXELS[number], -1))
            assert found.label(i) == number % 2
        if number == 1:
            with pytest.raises(InputError, match=f"example {i}, has an empty caption"):
                captions.text(i)
        else:
            assert captions.text(i) == f"bird {number}"
    assert opened("", "side").class_names == ["0", "1", "2"]
    with pytest.raises(InputError, match="test, example 0, has label -1"):
        opened(split="test")
    assert opened("none", split="test").condition == "none"
    with pytest.raises(
        InputError,
        match="has captions, image, label, side, text, but no author; name the text's field",
    ):
        opened("", "author")
    with pytest.raises(InputError, match="text of .* has no classes; those that do: label, side"):
        opened("label", "text")


def test_built_in_sets(tmp_path):
    digits = open_pictures("tfds:digits:train", data_dir=tmp_path)
    assert (digits.num, digits.condition) == (1400, "label")
    assert digits.class_names == [str(i) for i in range(10)]
    assert digits.read(3).shape == (8, 8, 3) and 0 <= digits.label(3) < 10
    with pytest.raises(InputError, match="none of which is known to be the text"):
        open_pictures("tfds:digits:train", "text", data_dir=tmp_path)
