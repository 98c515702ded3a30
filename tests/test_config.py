import importlib
import json
import subprocess
import sys

import pytest

from dimo_jax import config as configs
from dimo_jax import validation
from dimo_jax.data import joints
from dimo_jax.errors import InputError
from dimo_jax.evaluation.protocols import PROTOCOLS
from dimo_jax.method import divergences, losses, masking, schedules
from dimo_jax.tokenizers import TOKENIZERS
from dimo_jax.training import optimizers

VARIANTS = {
    "digits": ("gray", "patch"),
    "toy": ("pair", "modes", "parity"),
    "imagenet": ("default", "released", "paper", "512", "smoke"),
    "meissonic": ("default", "paper", "512", "smoke"),
}
SHIPPED = [(name, variant) for name, all_ in VARIANTS.items() for variant in all_]


def shipped(name, variant):
    return importlib.import_module(f"configs.{name}").get_config(variant)


def validate(config):
    validation.validate(config.to_dict())


@pytest.mark.parametrize(("name", "variant"), SHIPPED)
def test_every_shipped_config_is_valid_and_complete(name, variant):
    config = shipped(name, variant)
    if config.data.name in ("labels", "prompts") and not config.teacher.random:
        config.teacher.bundle, config.tokenizer.bundle = "teacher", "tokenizer"
    if config.data.name == "prompts" and not config.prompts.texts:
        config.prompts.path = "prompts.txt"
    validate(config)
    assert set(config) == set(configs.default_config())


def test_the_choices_are_those_that_exist():
    choices = validation.CHOICES
    assert set(choices["mask.schedule"]) == set(schedules.MASK_SCHEDULES)
    assert set(choices["mask.kind"]) == set(masking.MASK_KINDS)
    assert set(choices["reduction"]) == set(losses.REDUCTIONS)
    assert set(choices["distill.sigma_schedule"]) == set(schedules.WARMUPS)
    assert set(choices["distill.divergence.name"]) == set(divergences.DIVERGENCES)
    assert set(choices["optimizer.name"]) == set(optimizers.NAMES)
    assert set(choices["optimizer.schedule"]) == set(optimizers.SCHEDULES)
    assert set(choices["tokenizer.name"]) == set(TOKENIZERS)
    assert set(choices["interim.protocol"]) == set(PROTOCOLS)
    assert set(VARIANTS["toy"]) == set(joints.JOINTS)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("distill.mask.schedule", "arcos", "arccos, cosine"),
        ("pretrain.mask.kind", "exactly", "exact, bernoulli"),
        ("distill.reduction", "mean", "mean_masked"),
        ("distill.num_steps", 0, "at least 1"),
        ("distill.sigma", 1.5, r"in \[0, 1\]"),
        ("distill.temperature", 0.0, "above 0"),
        ("distill.teacher.temperature", -1.0, "above 0"),
        ("distill.top_p", 0.0, "above 0 and at most 1"),
        ("distill.ratio", (0.8, 0.2), "pair"),
        ("distill.ratio", (0.5,), "pair"),
        ("distill.divergence.name", "kl", "forward_kl"),
        ("pretrain.condition_drop", 1.0, "below 1"),
        ("distill.ema_decay", 1.0, "below 1"),
        ("distill.mask.min_ratio", 0.9, None),
        ("distill.auxiliary.optimizer.learning_rate", 0.0, "above 0"),
        ("distill.generator.optimizer.schedule", "step", "cosine"),
        ("model.heads", 5, "divisible"),
        ("seed", -1, r"\[0, 2\^31\)"),
        ("tokenizer.name", "vq", "gray_levels"),
        ("data.name", "mnist", "digits"),
        ("logging.log_every_steps", 0, "at least 1"),
        ("checkpoint.keep", 0, "at least 1"),
        ("logging.images_every_steps", -1, "at least 0"),
        ("distill.sigma_warmup_steps", -1, "at least 0"),
    ],
)
def test_a_bad_value_is_named_with_what_is_expected(field, value, words):
    config = shipped("digits", "gray")
    if words is None:  # limits that contradict each other
        config.distill.mask.max_ratio, words = 0.5, "max_ratio"
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=words) as error:
        validate(config)
    assert f"config.{field}" in str(error.value)
    assert "\n" not in str(error.value)


def test_fields_that_contradict_each_other_are_refused():
    config = shipped("digits", "gray")
    config.distill.auxiliary.update(sample="reuse", condition_drop=0.1)
    with pytest.raises(InputError, match="sample=fresh"):
        validate(config)
    config = shipped("digits", "gray")
    config.distill.divergence.update(name="alpha", parameter=1.0)
    with pytest.raises(InputError, match="reverse_kl"):
        validate(config)
    config = shipped("toy", "pair")
    config.data.joint = ""
    with pytest.raises(InputError, match="data.joint"):
        validate(config)


def test_a_stages_settings_are_json_and_leave_out_what_does_not_matter():
    one, other = shipped("digits", "gray"), shipped("digits", "gray")
    other.data.directory = "/elsewhere"
    other.logging.log_every_steps = 7
    for stage in configs.STAGE_SECTIONS:
        settings = configs.stage_settings(one.to_dict(), stage)
        assert json.loads(json.dumps(settings)) == settings
        assert settings == configs.stage_settings(other.to_dict(), stage)
        other.seed = 5
        assert settings != configs.stage_settings(other.to_dict(), stage)
        other.seed = one.seed
    # Another sampling temperature asks for a new evaluation, and for no new training.
    other.sampler.temperature = 0.3
    changed = [
        stage
        for stage in configs.STAGE_SECTIONS
        if configs.stage_settings(one.to_dict(), stage)
        != configs.stage_settings(other.to_dict(), stage)
    ]
    assert changed == ["evaluation"]
    assert configs.settings_hash({"a": 1, "b": 2}) == configs.settings_hash({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/digits.py", "--config.distill.num_step=1"], "config.distill.num_steps"),
        (["--config=configs/digits.py:blue"], "gray and patch"),
        (["--config=configs/digit.py"], "configs/digit.py"),
        (["--config=configs/digits.py", "--config.distill.sigma=2.0"], "config.distill.sigma"),
        (["--config=configs/digits.py"], "workdir"),
    ],
)
def test_main_answers_bad_flags_in_one_line(arguments, words, tmp_path):
    if not any("orkdir" in a or "wokdir" in a for a in arguments) and words != "workdir":
        arguments = [*arguments, f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, "-m", "dimo_jax.main", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()
