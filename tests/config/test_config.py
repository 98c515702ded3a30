import importlib
import json
import subprocess
import sys

import pytest
from ml_collections import config_flags

from dimo_jax import cli
from dimo_jax import config as configs
from dimo_jax.common.command_flags import Flags
from dimo_jax.config import validation

VARIANTS = {
    "digits": ("gray", "patch", "di4c"),
    "toy": ("pair", "modes", "parity"),
    "imagenet": ("default", "released", "paper", "512", "di4c", "smoke"),
    "meissonic": ("default", "paper", "512", "smoke"),
    "pictures": ("tiny", "small", "base", "large"),
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
    if config.data.name == "tokens":
        config.data.path = "tokens/photos"
    if config.data.name == "prompts" and not config.prompts.texts:
        config.prompts.path = "prompts.txt"
    validate(config)
    assert set(config) == set(configs.default_config())


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


def test_of_one_step_a_stages_settings_are_those_of_before_there_were_more():
    config = shipped("digits", "gray")
    plain = configs.stage_settings(config.to_dict(), "distill")
    assert not [x for x in plain if "distill.step" in x or x.endswith("auxiliary.steps")]
    config.distill.step_remask = "any"
    assert configs.stage_settings(config.to_dict(), "distill") == plain
    config.distill.steps = 2
    found = configs.stage_settings(config.to_dict(), "distill")
    assert {"distill.steps": 2, "distill.step_remask": "any"}.items() <= found.items()
    # Another default would be another training, and is seen.
    assert found["distill.step_ratios"] == [0.6667]
    config.distill.step_ratios = (0.6667,)
    assert configs.stage_settings(config.to_dict(), "distill") == found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/digits.py", "--config.distill.num_step=1"], "config.distill.num_steps"),
        (["--config=configs/digits.py:blue"], "gray, patch and di4c"),
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


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.num_steps=abc", "config.distill.num_steps is 'abc'; it must be a whole number"),
        ("distill.num_steps=1.5", "config.distill.num_steps is '1.5'; it must be a whole number"),
        ("distill.num_steps=", "config.distill.num_steps is ''; it must be a whole number"),
        ("distill.num_steps=99999999999999999999", "config.distill.num_steps is 9999"),
        ("distill.sigma=None", "config.distill.sigma is 'None'; it must be a number in [0, 1]"),
        ("distill.sigma=nan", "config.distill.sigma is nan; it must be a number in [0, 1]"),
        ("distill.sigma=1e400", "config.distill.sigma is inf; it must be a number in [0, 1]"),
        ("teacher.random=maybe", "config.teacher.random is 'maybe'; it must be True or False"),
        ("distill=3", "config.distill is a section; give one of its fields"),
        ("distill.mask=exact", "config.distill.mask is a section"),
        ("mesh.rules=(('a','whole')", "config.mesh.rules is \"(('a','whole')\""),
        ("mesh.rules=3", "config.mesh.rules is (3,); it must be pairs"),
        ("evaluation.seeds=(0,'a')", "config.evaluation.seeds is (0, 'a'); it must be a tuple"),
        ("evaluation.seeds=", "config.evaluation.seeds is ('',); it must be a tuple"),
        ("evaluation.seeds[0]=a", "config.evaluation.seeds[0]: one entry"),
        ("distill.ratio[0]=0.3", "give all of config.distill.ratio, a tuple of 2 entries"),
        ("distill.ratio=0.5", "config.distill.ratio is (0.5,); it must be a tuple of 2"),
        ("tokenizer.image_size=big", "config.tokenizer.image_size is 'big'; it must be a whole"),
        ("model.name=meissonic", "config.model.dropout: the network meissonic has no dropout"),
    ],
)
def test_an_override_of_the_wrong_type_is_named_with_what_is_expected(
    override, words, monkeypatch, capsys
):
    values = Flags()
    config_flags.DEFINE_config_file("config", None, "the config", flag_values=values)
    arguments = ["command", "--config=configs/digits.py", f"--config.{override}"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: validate(values.config), values)
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and words in printed.err
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
