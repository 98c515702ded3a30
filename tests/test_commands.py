"""What all commands have in common: what is typed first, before any of them does anything."""

import subprocess
import sys

import pytest

import dimo_jax
from dimo_jax import __main__ as overview
from dimo_jax import benchmark, cli, encode, evaluate, export, plan, sample
from dimo_jax.common import crops
from dimo_jax.config import shipped
from dimo_jax.convert import __main__ as convert
from dimo_jax.convert import sources
from dimo_jax.data import benchmark_prompts
from dimo_jax.data.pictures import CONDITIONS
from dimo_jax.evaluation.metrics import clip_score, hps
from dimo_jax.evaluation.metrics.protocols import METRICS, PROTOCOLS
from dimo_jax.models import clip
from dimo_jax.profiling import plans
from dimo_jax.samplers import SAMPLERS
from tests.helpers import ROOT

# Of what a command does, or large; numpy is small, and the protocols' module needs it.
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "PIL"}
HEAVY |= {"clu", "grain", "safetensors", "scipy", "sklearn", "libtpu", "torch", "tokenizers"}


def program(*arguments):
    """(exit status, stdout, stderr) of python with these arguments."""
    found = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    return found.returncode, found.stdout, found.stderr


@pytest.mark.parametrize("name", [*overview.COMMANDS, "__main__"])
def test_nothing_heavy_is_imported_before_flags_are_parsed(name):
    module = "dimo_jax.convert.__main__" if name == "convert" else f"dimo_jax.{name}"
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    status, out, err = program("-c", code)
    assert status == 0, err
    assert not HEAVY & set(out.split())


@pytest.mark.parametrize("name", overview.COMMANDS)
def test_a_command_without_arguments_says_what_is_missing_with_an_example(name):
    status, out, err = program("-m", f"dimo_jax.{name}")
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert f"for example: python -m dimo_jax.{name} " in err and "--help" in err


@pytest.mark.parametrize("name", overview.COMMANDS)
def test_help_has_every_flag_in_a_group_and_the_required_ones_first(name):
    status, out, err = program("-m", f"dimo_jax.{name}", "--help")
    assert (status, err) == (0, "")
    module = overview.COMMANDS[name]
    assert out.startswith(module.__doc__.rstrip())
    described = out[len(module.__doc__.rstrip()) :]
    first, *others = described.strip().split("\n\n")
    for flag in module.FLAGS:
        spelling = f"--{'[no]' if module.FLAGS[flag].boolean else ''}{flag}"
        assert sum(f"  {spelling}" == line.rstrip() or f"  {spelling} " in line
                   for line in described.splitlines()) == 1, flag  # fmt: skip
    required = [flag for text in module.FLAGS.missing() for flag in text.split(" or ")]
    assert all(f"  {flag} " in first for flag in required)
    assert all(block.splitlines()[0].endswith(":") for block in [first, *others])
    assert max(map(len, out.splitlines())) <= 100


def test_an_example_over_two_lines_is_one_command():
    example = cli.first_example(evaluate.__doc__)
    assert (
        example.startswith("python -m dimo_jax.evaluate images --samples=") and "\\" not in example
    )
    assert example.endswith("--output=eval/") and "  " not in example


def test_the_package_lists_its_commands_with_examples():
    status, out, err = program("-m", "dimo_jax")
    assert (status, err) == (0, "")
    for name, module in overview.COMMANDS.items():
        assert module.__doc__.splitlines()[0] in out
        assert f"\n           python -m dimo_jax.{name} " in out


def test_sub_commands_are_the_commands():
    typed = ["--generator=nowhere", "--output=x.png"]
    assert program("-m", "dimo_jax", "sample", *typed) == program("-m", "dimo_jax.sample", *typed)
    status, out, err = program("-m", "dimo_jax", "smaple", "--labels=1")
    assert (status, out) == (2, "")
    assert err == "error: there is no command 'smaple'; nearest: sample\n"
    status, out, _ = program("-m", "dimo_jax", "--version")
    assert (status, out) == (0, f"dimo_jax {dimo_jax.__version__}\n")


def test_a_config_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    status, out, err = program("-m", "dimo_jax.main", "--config=digits:patch", "--print_config")
    assert (status, err) == (0, "") and "codebook_size" in out
    assert program("-m", "dimo_jax.main", "--config", "digits:patch", "--print_config")[1] == out
    elsewhere = program("-m", "dimo_jax.main", "--config=configs/digits.py:patch", "--print_config")
    assert elsewhere[1] == out
    status, _, err = program("-m", "dimo_jax.main", "--config=configs/own.py", "--workdir=x")
    assert status == 2 and "configs/own.py" in err
    status, _, err = program("-m", "dimo_jax.main", "--config=digit", "--workdir=x")
    assert status == 2
    assert err.startswith("error: there is no config 'digit'; nearest: digits; give a file, or one")
    (tmp_path / "digits").write_text("")  # a file of the user's own goes first
    status, _, err = program("-m", "dimo_jax.main", "--config=digits", "--workdir=x")
    assert status == 2 and "error: " in err


def test_every_config_of_the_package_is_one_of_the_names():
    assert shipped.names() == ["digits", "emoji", "imagenet", "meissonic", "pictures", "toy"]
    assert (ROOT / "configs").resolve() == shipped.FOLDER


@pytest.mark.parametrize(
    ("module", "flag", "names"),
    [
        (encode, "crop", crops.CROPS),
        (encode, "filter", crops.FILTERS),
        (encode, "small", crops.SMALL),
        (encode, "condition", CONDITIONS),
        (sample, "sampler", [name for name in SAMPLERS if name != "one_step"]),
        (evaluate, "protocol", PROTOCOLS),
        (evaluate, "clip_form", clip_score.FORMS),
        (evaluate, "hps_version", hps.VERSIONS),
        (plan, "what", plans.PROGRAMS),
        (benchmark, "what", [*plans.PROGRAMS, "decode", "data"]),
        (convert, "source", [*sources.SOURCES, sources.GENERATOR]),
        (convert, "activation", clip.ACTIVATIONS),
    ],
)
def test_choices_are_those_of_the_dicts_that_define_them(module, flag, names):
    assert module.FLAGS[flag].parser.enum_values == list(names)


@pytest.mark.parametrize(
    ("module", "flag", "names"),
    [
        (evaluate, "metrics", METRICS),
        (sample, "prompts", benchmark_prompts.READERS),
        (evaluate, "prompts", benchmark_prompts.READERS),
    ],
)
def test_names_that_are_no_choices_alone_are_in_the_help(module, flag, names):
    assert ", ".join(names) in module.FLAGS[flag].help


def test_what_goes_back_to_pytorch_and_to_diffusers_is_in_the_help():
    tables = sources.SOURCES.items()
    words = " ".join(export.__doc__.split())
    assert f"({', '.join(name for name, source in tables if source.torch)})" in words
    back = [name for name, source in tables if source.folder]
    assert all(name in convert.FLAGS["to"].help for name in back)
