import threading

import jax
import numpy as np
import pytest
from PIL import Image

from dimo_jax import tokenizers
from dimo_jax.common import crops
from dimo_jax.common.errors import InputError
from dimo_jax.data.pictures import PictureSource
from dimo_jax.encoding import encoder


class Pixels(PictureSource):
    """Pictures in memory; those of `broken` cannot be read."""

    def __init__(self, pixels, broken=()):
        super().__init__("memory", len(pixels), "label", ["even", "odd"], "1")
        self.pixels, self.broken, self.threads = pixels, broken, set()

    def name(self, index):
        return f"number {index}"

    def read(self, index):
        self.threads.add(threading.get_ident())
        if index in self.broken:
            raise InputError(f"{index} is broken")
        return self.pixels[index]

    def label(self, index):
        return index % 2


def make(source, views=1, batch_size=None):
    tokenizer = tokenizers.build({"name": "gray_levels", "image_size": 4, "num_levels": 256})
    cut = crops.Settings(4, crop="random")
    return encoder.Encoder(tokenizer, {}, source, cut, views, batch_size)


@pytest.mark.parametrize("channels", [1, 3])
def test_levels_are_those_of_pillow_and_of_the_data_sets(channels):
    levels = np.random.default_rng(0).integers(0, 256, (2, 50, 50, 3), np.uint8)
    levels[1] = levels[1, ..., :1]  # gray
    found = encoder.to_images(levels, channels)
    wanted = levels
    if channels == 1:
        wanted = np.stack([np.asarray(Image.fromarray(x).convert("L"))[..., None] for x in levels])
        np.testing.assert_array_equal(wanted[1], levels[1, ..., :1])
    np.testing.assert_array_equal(found, wanted.astype(np.float32) / 255.0)
    assert found.dtype == np.float32


def test_tokens_do_not_depend_on_batches_or_on_who_begins_where():
    source = Pixels(np.random.default_rng(0).integers(0, 256, (23, 5, 7, 3), np.uint8), {3, 20})

    def tokens(parts, views, batch_size):
        found = {}
        for batch in make(source, views, batch_size).run(parts):
            assert batch.part[0] <= batch.start < batch.stop <= batch.part[1]
            assert len(batch.pictures) == len(batch.tokens) == batch.stop - batch.start
            for i, picture in enumerate(batch.pictures):
                index = batch.start + i
                assert (picture.fault is not None) == (index in source.broken)
                if picture.fault is None:
                    assert picture.label == index % 2
                    found[index] = batch.tokens[i].tolist()
        return found

    whole = tokens([(0, 23)], 3, 1)
    assert sorted(whole) == [i for i in range(23) if i not in source.broken]
    assert tokens([(0, 10), (10, 23)], 3, 4) == whole
    assert tokens([(10, 23)], 3, 2) == {i: x for i, x in whole.items() if i >= 10}
    one = tokens([(0, 23)], 1, 3)
    assert one == {i: x[:1] for i, x in whole.items()}
    many = tokens([(0, 23)], 20, 1)  # more than the devices take at a time
    assert {i: x[:3] for i, x in many.items()} == whole
    cut = crops.Settings(4, crop="random")
    for view in range(3):
        image = Image.fromarray(crops.cut(source.pixels[7], cut, 7, view)).convert("L")
        assert whole[7][view] == np.asarray(image).ravel().tolist()


def test_pictures_are_read_in_threads_before_they_are_needed():
    source = Pixels(np.zeros((64, 4, 4, 3), np.uint8))
    run = make(source, batch_size=1).run([(0, 64)])
    next(run)
    assert threading.get_ident() not in source.threads
    run.close()  # as where an error ends it: no thread goes on
    assert not [x for x in threading.enumerate() if x.ident in source.threads]


def test_a_measurement_speaks_of_a_batch_and_of_all(monkeypatch):
    found = make(Pixels(np.zeros((5, 4, 4, 3), np.uint8))).measure()
    assert found.pictures == 5 and found.host_seconds > 0 and found.network_seconds > 0
    speed = encoder.Speed(host_seconds=2.0, network_seconds=3.0, pictures=10)
    assert "2 s to prepare and 3 s to encode: about 8:20 min for 1,000 " in speed.describe(1000)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "about 5:00 min for 1,000 pictures" in speed.describe(1000)


@pytest.mark.parametrize("size, num", [(256, 16), (1024, 1), (512, 4), (32, 256)])
def test_a_device_gets_as_many_pixels_at_a_time(size, num):
    tokenizer = tokenizers.build({"name": "gray_levels", "image_size": size})
    assert encoder.images_at_once(tokenizer) == num
