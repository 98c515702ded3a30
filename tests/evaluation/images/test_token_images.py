"""Folders of tokens as images: decoded, and the pictures that they were made of."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.data import token_sets
from dimo_jax.evaluation.images import image_sets
from tests.helpers import picture_files, token_folders

NUM = 12
PIXELS = picture_files.random_pixels(NUM, side=14)[:, :, :8]  # seven places for a crop


class Places(NamedTuple):
    root: Path
    seen: np.ndarray  # the first view of each picture
    codebook: np.ndarray

    def __truediv__(self, name):
        return self.root / name


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    source = token_folders.write_classes(root / "photos", PIXELS)
    tokenizer, params = token_folders.save_tokenizer(root / "bundle")
    seen = token_folders.write(root / "tokens", source, tokenizer, params, ["a cat/04.png"])
    return Places(root, seen, params["codebook"])


def opened(places, **options):
    return image_sets.open_set(places / "tokens", tokenizer=str(places / "bundle"), **options)


def test_tokens_are_decoded(places):
    found = opened(places)
    assert (found.num, found.height, found.width) == (NUM - 1, 8, 8)
    assert found.labels.tolist() == [0] * 6 + [1] * 5
    assert tuple(found.class_names) == token_folders.CLASSES[::-1]
    assert found.name(10) == f"a cat/10.png of {places / 'tokens'}, decoded"
    # By loops: each patch of the first view becomes the nearest code.
    codes = places.codebook
    for index in (0, 6, 10):
        picture = places.seen[index].astype(np.float32) / 255
        wanted = np.empty((8, 8, 3))
        for row in range(0, 8, 2):
            for column in range(0, 8, 2):
                patch = picture[row : row + 2, column : column + 2].reshape(2, 6)
                nearest = min(codes, key=lambda code, patch=patch: ((code - patch) ** 2).sum())
                wanted[row : row + 2, column : column + 2] = nearest.reshape(2, 2, 3)
        batch = found.read(index, index + 1)
        np.testing.assert_array_equal(batch.pixels[0], np.floor(wanted * 255 + 0.5))
    assert found.identity(0, 5) == opened(places).identity(0, 5) != found.identity(1, 6)


@pytest.mark.parametrize("source", [True, False])
def test_pictures_are_cut_as_the_tokens_were(places, tmp_path, source):
    folder = places / "photos"
    if not source:  # the same pictures elsewhere: none is left out
        folder = token_folders.write_classes(tmp_path / "others", PIXELS)
    found = image_sets.open_set(folder, cut_as=str(places / "tokens"))
    seen = found.read(0, found.num).pixels
    assert tuple(found.class_names) == token_folders.CLASSES[::-1]
    if source:
        np.testing.assert_array_equal(seen, places.seen)
        assert found.labels.tolist() == [0] * 6 + [1] * 5
    else:
        assert found.num == NUM and found.labels is None
        np.testing.assert_array_equal(np.delete(seen, 8, axis=0), places.seen)
    before = found.identity(0, 3)
    assert before != found.identity(1, 4)
    first = folder / "Hündin" / "01.png"
    content = first.read_bytes()
    first.write_bytes(content + b"x")
    assert image_sets.open_set(folder, cut_as=str(places / "tokens")).identity(0, 3) != before
    first.write_bytes(content)


def test_what_does_not_belong_together_is_refused(places, tmp_path):
    with pytest.raises(InputError, match="tokens holds tokens; give --tokenizer"):
        image_sets.open_set(places / "tokens")
    token_folders.save_tokenizer(tmp_path / "other", seed=1)
    own = token_sets.open_set(places / "tokens").tokenizer_hash[:12]
    message = (
        f"was encoded from .*photos by the tokenizer patches of hash {own} .its tokens.json., and "
        ".*other is patches of hash .*; give the bundle that it was encoded with"
    )
    with pytest.raises(InputError, match=message):
        image_sets.open_set(places / "tokens", tokenizer=str(tmp_path / "other"))
    place = places / "tokens" / "tokens.json"
    text = place.read_text()
    described = json.loads(text)
    described["settings"]["filter"] = "nearest"
    place.write_text(json.dumps(described))
    with pytest.raises(InputError, match="filter is 'nearest'; it must be one of bilinear, bic"):
        image_sets.open_set(places / "photos", cut_as=str(places / "tokens"))
    place.write_text(text)
    (places / "photos" / "a cat" / "10.png").rename(places / "kept.png")
    (places / "photos" / "a cat" / "10.png").write_bytes(b"")
    with pytest.raises(InputError, match="10.png .0 bytes. is no readable picture"):
        image_sets.open_set(places / "photos", cut_as=str(places / "tokens")).read(0, 11)
    (places / "kept.png").rename(places / "photos" / "a cat" / "10.png")
