"""A run that is made longer, and one that starts from a finished generator."""

import contextlib
import json
import time

import numpy as np
import pytest

from configs import toy
from dimo_jax import bundles
from dimo_jax import config as configs
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.config import validation
from dimo_jax.parallel import sharding
from dimo_jax.runs import joint_run, snapshots
from dimo_jax.training import saved, stages
from dimo_jax.training.checkpoints import Checkpoints
from dimo_jax.training.metrics import Metrics

pytestmark = [pytest.mark.slow, pytest.mark.long]


def config_of(num_steps, schedule="constant", pretrain_steps=2):
    config = toy.get_config("pair")
    config.model.update({"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8})
    config.pretrain.update({"num_steps": pretrain_steps, "batch_size": 8})
    config.pretrain.optimizer.update({"warmup_steps": 1, "schedule": "constant"})
    config.distill.update({"num_steps": num_steps, "batch_size": 8})
    for name in ("generator", "auxiliary"):
        config.distill[name].optimizer.update(
            {"name": "adam", "warmup_steps": 5, "schedule": schedule}
        )
    config.evaluation.num_samples = 100
    config.checkpoint.save_every_steps = 10
    config.fast_compile = True
    return config


def run(config, workdir):
    """As dimo_jax.main does; the generator's bundle."""
    config = config.to_dict()
    validation.validate(config)
    places = {name: stages.checkpoints_of(workdir, name) for name in ("pretrain", "distill")}
    stages.refuse_other_settings(config, places)
    layout = sharding.layout({**config["mesh"], "data": 1, "fsdp": 8})
    loaded = joint_run.load(config, workdir, layout)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config))
    metrics = Metrics(workdir, tensorboard=False)
    joint_run.run(loaded, metrics, time.monotonic())
    metrics.close()
    return bundles.load(workdir / "export")


@pytest.fixture(scope="module", autouse=True)
def few_samples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_run, "NUM_JOINT_SAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The work directory of 30 steps at once."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    run(config_of(30), workdir)
    return workdir


def test_twenty_steps_then_thirty_are_thirty_at_once(whole, tmp_path):
    short = run(config_of(20), tmp_path)
    longer = run(config_of(30), tmp_path)
    expected = bundles.load(whole / "export")
    assert short.params_hash != expected.params_hash
    assert longer.params_hash == expected.params_hash
    assert (short.provenance["steps"], longer.provenance["steps"]) == (20, 30)
    results = [json.loads((x / "report" / "results.json").read_text()) for x in (whole, tmp_path)]
    assert results[0]["hashes"] == results[1]["hashes"]
    # The whole state, not the generator alone.
    places = [stages.checkpoints_of(x, "distill") for x in (whole, tmp_path)]
    for name in ("auxiliary", "generator_opt", "aux_opt"):
        one, other = (saved.read_part(place, 30, name)[1] for place in places)
        assert trees.fingerprint(one) == trees.fingerprint(other), name


def test_a_rate_that_depends_on_the_length_is_refused_with_the_reason(tmp_path):
    begun = config_of(10, "cosine").to_dict()
    place = stages.checkpoints_of(tmp_path, "distill")
    with contextlib.closing(Checkpoints(place, 1)) as checkpoints:
        meta = {**configs.stage_settings(begun, "distill"), "teacher": "a hash"}
        checkpoints.save(5, {"step": np.int32(5)}, meta)
    with pytest.raises(InputError) as caught:
        run(config_of(20, "cosine"), tmp_path)
    message = str(caught.value)
    assert "distill.num_steps: was 10, is 20" in message
    assert "with a cosine schedule the learning rate of every step depends on the" in message
    assert "--config.distill.generator.bundle=RUN/export" in message
    with pytest.raises(InputError, match="schedule: was 'cosine', is 'constant'.*use those again"):
        run(config_of(20), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_fewer_steps_than_are_made_and_another_teacher_are_refused(whole):
    with pytest.raises(InputError, match="at step 30, past the 20 steps requested"):
        run(config_of(20), whole)
    with pytest.raises(InputError, match=r"config.pretrain.num_steps was 2 and is 3: that makes"):
        run(config_of(30, pretrain_steps=3), whole)


def test_a_finished_generator_is_what_another_run_starts_from(whole, tmp_path):
    parent = bundles.load(whole / "export")
    config = config_of(10)
    config.distill.generator.bundle = str(whole / "export")
    for name in ("generator", "auxiliary"):
        config.distill[name].optimizer.learning_rate = 1e-30  # nothing moves
    found = run(config, tmp_path / "next")
    for name, leaf in trees.named_leaves(found.params).items():
        np.testing.assert_allclose(leaf, trees.named_leaves(parent.params)[name], atol=1e-7)
    assert found.provenance["parent"] == parent.params_hash
    # The auxiliary starts as in every run.
    place = stages.checkpoints_of(tmp_path / "next", "distill")
    _, auxiliary = saved.read_part(place, "newest", "auxiliary")
    teacher = saved.read_part(stages.checkpoints_of(whole, "pretrain"), "newest", "ema")[1]
    for name, leaf in trees.named_leaves(auxiliary).items():
        np.testing.assert_allclose(leaf, trees.named_leaves(teacher)[name], atol=1e-7)
    taken = snapshots.open_snapshot(tmp_path / "next", 10).generator
    assert taken.provenance == found.provenance and taken.params_hash == found.params_hash
    # Another start is another run, in the same work directory.
    config.distill.generator.bundle = ""
    with pytest.raises(InputError, match="generator: was '.*', is gone"):
        run(config, tmp_path / "next")


def test_a_generator_of_another_network_is_refused(whole, tmp_path):
    config = config_of(10)
    config.model.width = 16
    config.distill.generator.bundle = str(whole / "export")
    with pytest.raises(InputError, match="another network than this run's .width is 8, here 16"):
        run(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
