"""Prompts in training: their order, their features on a mesh, and the cache of these on disk."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from configs import meissonic
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_tokenizer, text_cache
from dimo_jax.conditions import prompts as conditions
from dimo_jax.conditions.prompts import PromptConditions, PromptIds
from dimo_jax.conditions.text import TextConditions
from dimo_jax.data import prompts, stream
from dimo_jax.models import clip
from dimo_jax.parallel import mesh, sharding
from dimo_jax.training import settings

# On one worker, which makes the fixtures once.
pytestmark = pytest.mark.xdist_group("prompt_conditions")

TEXTS = [f"{number} balls / {'very ' * (number % 5)}red" for number in range(11)]
NEGATIVE = "ugly"


@pytest.fixture(scope="module")
def config():
    config = meissonic.get_config("smoke")
    config.mesh.min_shard_elements = 0
    return config.to_dict()


@pytest.fixture(scope="module")
def encoder(config):
    """The tower of the smoke run with weights so large that every word counts."""
    sizes = {k: v for k, v in config["text_encoder"].items() if k != "bundle"}
    network = clip.build({"name": "clip", "image": None, **sizes})
    numbers = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda x: numbers.normal(size=x.shape).astype(np.float32), shapes)
    expected = settings.network_of(config, 4, 32).condition
    tokenizer = clip_tokenizer.open_clip([], network.context)
    return TextConditions(network, params, tokenizer, expected, 4, (512, 512, 0, 0, 5.5))


def use_cache(conditions, folder, dtype):
    conditions.open_cache(folder, dtype)
    conditions.fill_cache()


def conditions_of(encoder, texts=TEXTS):
    return PromptConditions(prompts.unique("a list", texts), encoder, NEGATIVE)


def layout_of(config, data, fsdp):
    section = {**config["mesh"], "data": data, "fsdp": fsdp}
    return sharding.layout(section, jax.devices()[: data * fsdp])


def compare(found, texts, encoder, **tolerance):
    expected = encoder(texts)
    assert set(found) == set(expected) == {"states", "pooled", "micro"}
    for name, want in expected.items():
        np.testing.assert_allclose(found[name], want, err_msg=name, **tolerance)


def texts_of(step, k, size, updates):
    """Batch k of a step, written out: the generator's, then the auxiliary's, then the next step."""
    place = (step * (1 + updates) + k) * size + np.arange(size)
    orders = np.stack(
        [stream.batch_indices(5, epoch, len(TEXTS), len(TEXTS)) for epoch in range(9)]
    )
    return [TEXTS[i] for i in orders.ravel()[place]]


@pytest.mark.parametrize("shape", [(1, 1), (4, 2)])
@pytest.mark.parametrize("updates", [0, 2])
def test_a_step_has_the_next_prompts_whatever_the_mesh(config, encoder, shape, updates):
    layout = layout_of(config, *shape)
    batch_of = conditions_of(encoder).batches(5, 8, updates, layout)
    for step in (0, 3):
        condition, aux, null = batch_of(step)
        for part in (condition, null):
            assert all(x.sharding.is_equivalent_to(layout.batch, x.ndim) for x in part.values())
        tolerance = {"rtol": 1e-4, "atol": 1e-4}
        compare(mesh.gather(condition), texts_of(step, 0, 8, updates), encoder, **tolerance)
        compare(mesh.gather(null), [NEGATIVE] * 8, encoder, **tolerance)
        if not updates:
            assert aux is None
            continue
        assert all(x.sharding.is_equivalent_to(layout.stacked, x.ndim) for x in aux.values())
        for k in range(updates):
            row = jax.tree.map(lambda x, k=k: x[k], mesh.gather(aux))
            compare(row, texts_of(step, 1 + k, 8, updates), encoder, **tolerance)


def test_every_prompt_comes_once_an_epoch():
    seen = [text for step in range(11) for text in texts_of(step, 0, 1, 0)]
    assert sorted(seen) == sorted(TEXTS)
    assert seen != TEXTS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_gives_what_the_encoder_gives(config, encoder, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(text_cache, "RANGE_SIZE", 4)
    cached, plain = conditions_of(encoder), conditions_of(encoder)
    use_cache(cached, str(tmp_path / "cache"), dtype)
    asked = []
    monkeypatch.setattr(encoder, "ids", lambda texts: asked.append(texts))
    found = cached.features(np.array([10, 0, 5, 5]))
    assert not asked, "the encoder was called for what is in the cache"
    monkeypatch.undo()
    expected = plain.features(np.array([10, 0, 5, 5]))
    for name in ("states", "pooled"):
        kept = expected[name]
        if dtype == "bfloat16":  # what the network makes of it in any case
            kept = kept.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_allclose(found[name], kept, rtol=1e-2 if dtype == "bfloat16" else 1e-5)
    np.testing.assert_array_equal(found["micro"], expected["micro"])
    layout = layout_of(config, 2, 2)
    pairs = zip(cached.batches(5, 8, 1, layout)(2), plain.batches(5, 8, 1, layout)(2), strict=True)
    for one, other in pairs:
        assert jax.tree.map(lambda x: (x.shape, x.sharding), one) == jax.tree.map(
            lambda x: (x.shape, x.sharding), other
        )
        for name in other:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-2, atol=5e-2)


def test_a_cache_says_its_size_and_goes_on_where_it_was(encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text_cache, "RANGE_SIZE", 4)
    folder = tmp_path / "cache"
    use_cache(conditions_of(encoder), str(folder), "float32")
    # 16 states of 16 numbers, and 16 more, 4 bytes each.
    size = 11 * (16 * 16 + 16) * 4
    assert sum(len(np.load(x).ravel()) for x in folder.glob("*.npy")) == size
    err = capsys.readouterr().err
    assert f"features of 11 prompts take {size / 1e9:.3g} GB in {folder}" in err
    assert err.index("GB free") < err.index("11/11")
    files = sorted(folder.glob("*.npy"))
    before = {path: path.read_bytes() for path in files}
    assert [x.name for x in files] == ["000000000.npy", "000000004.npy", "000000008.npy"]
    files[0].unlink()
    files[1].write_bytes(before[files[1]][:-1])
    (folder / ".000000000.npy.writing").write_bytes(b"half")
    calls = []
    call = TextConditions.__call__
    monkeypatch.setattr(
        TextConditions, "__call__", lambda self, texts: calls.append(texts) or call(self, texts)
    )
    use_cache(conditions_of(encoder), str(folder), "float32")
    assert calls == [TEXTS[0:4], TEXTS[4:8]]
    assert {path: path.read_bytes() for path in files} == before
    # One wrong bit of a value, which no size tells.
    flipped = bytearray(before[files[2]])
    flipped[-100] ^= 1
    files[2].write_bytes(flipped)
    capsys.readouterr()
    use_cache(conditions_of(encoder), str(folder), "float32")
    assert calls[2:] == [TEXTS[8:]]
    assert {path: path.read_bytes() for path in files} == before
    assert f"1 damaged files, {files[2]} for one, are made again" in capsys.readouterr().err
    # A cache of before there were checksums has nothing behind its values, and serves.
    files[1].write_bytes(before[files[1]][:-4])
    use_cache(conditions_of(encoder), str(folder), "float32")
    assert len(calls) == 3
    files[2].unlink()
    conditions = conditions_of(encoder)
    use_cache(conditions, str(folder), "float32")
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no file .*000000004.npy.*start the run again"):
        conditions.features(np.array([4]))


def test_a_cache_of_something_else_is_refused(encoder, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    use_cache(conditions_of(encoder), str(folder), "float32")
    with pytest.raises(InputError, match="begun with other settings: prompts; give those"):
        use_cache(conditions_of(encoder, TEXTS[:5]), str(folder), "float32")
    with pytest.raises(InputError, match="begun with other settings: dtype"):
        use_cache(conditions_of(encoder), str(folder), "bfloat16")
    (folder / "cache.json").write_text("{")
    with pytest.raises(InputError, match="cache.json is not JSON"):
        use_cache(conditions_of(encoder), str(folder), "float32")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    with pytest.raises(InputError, match="holds other files; name a new folder"):
        use_cache(conditions_of(encoder), str(tmp_path / "full"), "float32")
    with pytest.raises(InputError, match="is not on a disk"):
        use_cache(conditions_of(encoder), "gs://bucket/cache", "float32")
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="where 1e-07 GB are free; give another"):
        use_cache(conditions_of(encoder), str(tmp_path / "new"), "float32")
    assert not list((tmp_path / "new").glob("*"))


def test_ids_are_what_the_tower_reads_before_it_is_trained(encoder):
    ids = PromptIds(TEXTS, encoder.tokenizer, NEGATIVE)
    found = ids.features(np.array([10, 0, 5]))
    np.testing.assert_array_equal(found["ids"], encoder.ids([TEXTS[10], TEXTS[0], TEXTS[5]]))
    np.testing.assert_array_equal(ids.null(3)["ids"], encoder.ids([NEGATIVE] * 3))
    np.testing.assert_array_equal(ids.of_texts(["x"])["ids"], encoder.ids(["x"]))
    assert ids.num == 11 and found["ids"].dtype == np.int32
    # Once it is trained the prompts stay the same ones.
    other = conditions_of(encoder, ["x"]).encoded_by(encoder)
    np.testing.assert_array_equal(other.features(np.array([0]))["pooled"], encoder(["x"])["pooled"])
    assert other.identity() == conditions_of(encoder, ["x"]).identity()


@pytest.mark.parametrize("count", [1, 2, 3, 10, 381, 3563])
def test_texts_in_turn_are_of_the_whole_list(count):
    found = conditions.in_turn(2 * count, count)
    assert sorted(found[:count].tolist()) == list(range(count)) == sorted(found[count:].tolist())
    if count > 100:  # a tenth of a round has as many of each tenth of the list
        tenths = np.bincount(found[: count // 10] * 10 // count, minlength=10)
        assert tenths.max() - tenths.min() <= 2


def test_what_a_training_depends_on(encoder):
    one = conditions_of(encoder).identity()
    assert json.loads(json.dumps(one)) == one
    assert one == conditions_of(encoder).identity() != conditions_of(encoder, TEXTS[:-1]).identity()
