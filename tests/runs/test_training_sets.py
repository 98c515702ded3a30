"""A folder of tokens as what a run trains on: what it gives, and what is refused."""

import importlib
import json

import numpy as np
import pytest

from dimo_jax import tokenizers
from dimo_jax.common import files
from dimo_jax.common.errors import InputError
from dimo_jax.config import validation
from dimo_jax.data.digits import Digits
from dimo_jax.parallel import sharding
from dimo_jax.runs import image_run, training_sets
from tests.helpers import digit_tokens
from tests.helpers.digit_tokens import GRAY

SMALL = {
    **{"model.width": 8, "model.depth": 1, "model.heads": 2, "model.mlp_dim": 8},
    **{"pretrain.batch_size": 8, "distill.batch_size": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return digit_tokens.write(tmp_path_factory.mktemp("tokens") / "digits", views=2)


def config_of(path, **changes):
    config = importlib.import_module("configs.pictures").get_config("tiny")
    config.data.path = str(path)
    config.tokenizer.update(name="gray_levels", image_size=8)
    with config.unlocked():
        config.update_from_flattened_dict({**SMALL, **changes})
    config = config.to_dict()
    validation.validate(config)
    config = training_sets.resolved(config)
    validation.validate(config)
    return config


def opened(path, workdir, **changes):
    config = config_of(path, **changes)
    return image_run.load(config, files.path(workdir), sharding.layout(config["mesh"]))


def test_the_folder_says_how_many_classes_there_are_and_what_is_kept_for_the_report(folder):
    data = config_of(folder)["data"]
    assert (data["num_classes"], data["num_test"]) == (10, 20)
    assert config_of(folder, **{"data.num_test": 7})["data"]["num_test"] == 7
    assert config_of(folder, **{"data.num_test": 0})["data"]["num_test"] == 0


def test_a_set_of_no_condition_has_one_class(tmp_path):
    path = digit_tokens.write(tmp_path / "plain", num=20, condition="none")
    run = opened(path, tmp_path / "run", **{"data.num_test": 5, "evaluation.num_neighbours": 3})
    assert run.network.num_classes == 1 and run.conditions.num == 1
    assert run.pictures.counts(1) == (15,)


def test_a_set_too_large_for_the_report_has_none(folder, monkeypatch):
    monkeypatch.setattr(training_sets, "MAX_REPORT_BYTES", 1000)
    assert config_of(folder)["data"]["num_test"] == 0
    with pytest.raises(
        InputError, match="num_test is 9, for a report against 200 pictures.*give 0"
    ):
        config_of(folder, **{"data.num_test": 9})


def test_what_is_trained_on_and_what_is_kept_are_all_and_nothing_twice(folder, tmp_path):
    run = opened(folder, tmp_path)
    splits = run.pictures.splits(run.tokenizer, run.tokenizer_params)
    assert (len(splits.train.images), len(splits.test.images)) == (180, 20)
    images, labels, _ = Digits.in_memory("train")
    both = np.concatenate([splits.train.images, splits.test.images])
    order = np.lexsort(both.reshape(200, -1).T)
    wanted = np.lexsort(images[:200].reshape(200, -1).T)
    np.testing.assert_allclose(both[order], images[:200][wanted], atol=1e-6)
    ours = np.concatenate([splits.train.labels, splits.test.labels])
    np.testing.assert_array_equal(ours[order], labels[:200][wanted])
    counts = run.pictures.counts(10)
    np.testing.assert_array_equal(counts, np.bincount(splits.train.labels, minlength=10))


def test_examples_are_the_training_split_in_both_views(folder, tmp_path):
    run = opened(folder, tmp_path)
    train, test = run.pictures.splits(run.tokenizer, run.tokenizer_params)
    examples = run.pictures.examples(run.tokenizer, run.tokenizer_params)
    assert (examples.num, examples.views) == (180, 2)
    for view, images in enumerate((train.images, train.images[:, ::-1])):
        tokens, labels = examples.at(np.arange(180), np.full(180, view))
        np.testing.assert_array_equal(tokens, GRAY.encode({}, images))
        np.testing.assert_array_equal(labels, train.labels)


def test_tokens_in_an_object_store_are_refused_before_anything_is_read():
    config = importlib.import_module("configs.pictures").get_config()
    config.data.path = "gs://bucket/tokens"
    expected = "config.data.path: gs://bucket/tokens is in an object store, .*copy the folder to a"
    with pytest.raises(InputError, match=expected):
        training_sets.resolved(config.to_dict())


def test_captions_are_what_a_text_encoder_is_trained_on(folder, tmp_path):
    path = digit_tokens.write(tmp_path / "texts", num=40, condition="text")
    config = importlib.import_module("configs.emoji").get_config("text")
    config.data.update(name="tokens", path=str(path), num_classes=-1, num_test=15)
    config.tokenizer = {"bundle": "", "name": "gray_levels", "image_size": 8}
    config.text_encoder.text.vocabulary = 520
    config.classifier.channels = (16, 32)

    def load():
        validation.validate(config.to_dict())
        found = training_sets.resolved(config.to_dict())
        return image_run.load(found, files.path(tmp_path), sharding.layout(found["mesh"]))

    run = load()
    train, test = run.pictures.splits(GRAY, {})
    images, labels, _ = Digits.in_memory("train")
    for part in (train, test):
        index = [int(np.flatnonzero((images == x).all((1, 2, 3)))[0]) for x in part.images]
        assert part.texts == tuple(f"the digit {labels[i]}" for i in index)
    assert run.pictures.texts == train.texts and len(test.texts) == 15
    assert run.conditions.num == len(set(train.texts))  # prompts of the distillation
    indices = np.arange(25)
    tokens, numbers = run.pictures.examples(GRAY, {}, of_texts=True).at(indices, 0 * indices)
    np.testing.assert_array_equal(numbers, indices)
    np.testing.assert_array_equal(tokens, GRAY.encode({}, train.images))
    # Without their texts all are of one class.
    assert not run.pictures.examples(GRAY, {}).at(indices, 0 * indices)[1].any()
    assert run.pictures.counts(1) == (25,)
    config.data.path = str(folder)
    with pytest.raises(InputError, match="has no captions, and config.data.condition is text"):
        load()


def test_another_set_has_another_identity(folder, tmp_path):
    same = digit_tokens.write(tmp_path / "a" / "digits", views=2)
    other = digit_tokens.write(tmp_path / "b" / "digits", num=199, views=2)
    found = [
        opened(path, tmp_path).pictures.examples(GRAY, {}).identity
        for path in (folder, same, other)
    ]
    assert found[0] == found[1] != found[2]


def test_built_in_sets_take_the_same_road(tmp_path):
    found = training_sets.BuiltInSet(Digits, tmp_path)
    train, test = found.splits(GRAY, {})
    examples = found.examples(GRAY, {})
    tokens, labels = examples.at(np.arange(1400), np.zeros(1400, int))
    np.testing.assert_array_equal(tokens, GRAY.encode({}, train.images))
    assert examples.identity == {} and len(test.images) == 397
    assert found.counts(10) == tuple(np.bincount(labels))


def edited(folder, target, **changes):
    """A copy with other entries in tokens.json."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    place = target / "tokens.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))
    return target


def test_tokens_of_another_tokenizer_are_refused_with_where_both_come_from(folder, tmp_path):
    other = tokenizers.build({"name": "patches", "image_size": 8, "patch_size": 2})
    params = {"codebook": np.zeros((128, 2, 2), np.float32)}
    path = digit_tokens.write(tmp_path / "patches", num=20, tokenizer=other, params=params)
    wanted, own = tokenizers.fingerprint(other, params), tokenizers.fingerprint(GRAY, {})
    with pytest.raises(InputError) as error:
        opened(path, tmp_path)
    message = str(error.value)
    assert f"by the tokenizer patches of hash {wanted[:12]} (its tokens.json)" in message
    assert "the run's (config.tokenizer, without a bundle) is gray_levels of hash" in message
    assert own[:12] in message and message.startswith(f"{path} was encoded from digits")


def test_a_tokenizer_that_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="tokenizer.bundle is empty.*gray_levels of hash"):
        opened(folder, tmp_path, **{"tokenizer.name": "vqgan", "tokenizer.image_size": 256})
    changes = {"tokenizer.name": "patches", "tokenizer.patch_size": 2}
    with pytest.raises(InputError, match="has none; give config.tokenizer.bundle"):
        opened(folder, tmp_path, **changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.path": ""}, "config.data.path is empty; encode the pictures once"),
        ({"data.path": "nowhere"}, "config.data.path: nowhere is not there"),
        ({"data.num_classes": 9}, "num_classes is 9, and .* has 10; leave it at -1"),
        ({"data.num_test": 200}, "num_test is 200, and .* has 200 examples"),
        ({"logging.picture_labels": (10,)}, "picture_labels is .*from 0 to 9"),
        ({"data.name": "digits", "data.num_classes": 10}, "config.data.path is .*=tokens"),
    ],
    ids=lambda x: next(iter(x), None) if isinstance(x, dict) else None,
)
def test_wrong_fields_are_refused_before_anything_is_computed(folder, changes, message):
    with pytest.raises(InputError, match=message):
        config_of(folder, **changes)


def test_a_folder_that_says_other_sizes_than_its_tokenizer_is_refused(folder, tmp_path):
    path = edited(folder, tmp_path / "edited", codebook_size=99)
    with pytest.raises(InputError, match="64 tokens of 99 codes, the tokenizer 64 of 17"):
        opened(path, tmp_path)


def test_captions_are_refused_where_the_teacher_takes_classes(tmp_path):
    path = digit_tokens.write(tmp_path / "texts", num=20, condition="text")
    with pytest.raises(InputError, match="has captions, and config.data.condition is label; give"):
        config_of(path)


def test_too_few_kept_for_the_report_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="num_neighbours is 5.*below 4"):
        opened(folder, tmp_path, **{"data.num_test": 4})
    few = digit_tokens.write(tmp_path / "few", num=40)
    assert config_of(few)["data"]["num_test"] == 0
