"""--print_config and docs/config.md: what people read of a config."""

import importlib
import subprocess
import sys

import pytest

from dimo_jax import config as configs
from dimo_jax.config import defaults, reference
from tests.helpers import ROOT


def lines_of(config):
    head, *lines = reference.as_text(config).splitlines()
    assert head.startswith("#")
    return {line[2:].partition(" = ")[0]: line for line in lines}


def test_docs_config_is_up_to_date():
    committed = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert committed == reference.as_markdown() + "\n", (
        "docs/config.md is old; run python -m dimo_jax.config.reference > docs/config.md"
    )
    for path, field in configs.flat(defaults.FIELDS).items():
        assert f"| `{path}` |" in committed and field.about in committed


def test_every_field_is_printed_once_with_its_meaning_and_what_differs_is_marked():
    config = importlib.import_module("configs.digits").get_config("patch").to_dict()
    lines = lines_of(config)
    assert set(lines) == set(configs.flat(config))
    known = configs.fields_of(config)
    for path, line in lines.items():
        assert known[path].about in line and known[path].rule.words in line
    changed = {path for path, line in lines.items() if line.startswith("* ")}
    plain = configs.flat(configs.default_config().to_dict())
    assert changed == {
        x for x, v in configs.flat(config).items() if x not in plain or plain[x] != v
    }
    assert lines["distill.sigma"].startswith("* distill.sigma = 0.01 ")
    assert lines["distill.sigma"].endswith("default 0.1")
    assert "tokenizer.patch_size = 2" in lines["tokenizer.patch_size"]


def test_of_the_defaults_nothing_is_marked_and_lists_are_tuples():
    config = configs.default_config().to_dict()
    config["evaluation"]["seeds"] = [0, 1, 2]
    assert not any(line.startswith("*") for line in lines_of(config).values())


def test_a_field_that_does_not_exist_and_control_characters_are_shown_as_such():
    config = configs.default_config().to_dict() | {"colour": "red", "title": "a\x1b[31mb"}
    lines = lines_of(config)
    assert "there is no such field" in lines["colour"]
    assert "\x1b" not in "".join(lines.values())


@pytest.mark.parametrize("command", ["main", "plan", "benchmark"])
def test_the_commands_print_it_without_their_other_flags_and_without_jax(command, tmp_path):
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('jax' in sys.modules))\n"
        "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=False)\n"
    )
    arguments = ["--config=configs/digits.py", "--config.seed=7", "--print_config"]
    done = subprocess.run(
        [sys.executable, "-c", program, f"dimo_jax.{command}", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "* seed = 7 " in done.stdout and done.stdout.endswith("False\n")
