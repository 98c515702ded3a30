"""Which way imports run, and the one place for each outside library; read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = "dimo_jax"

# The floors of the house, the lowest first. A folder stands on one floor, imports only from lower
# ones, and inside itself; a folder inside a folder has its own. A file of the package's root is a
# floor's too: cli.py, and the commands.
FLOORS = [
    ["common"],
    ["config", "parallel", "data", "models", "tokenizers", "method.masked"],
    ["method.dimo", "method.mixture", "bundles", "configs"],
    ["samplers"],
    ["conditions", "convert.formats"],
    ["convert.networks", "training"],
    ["convert", "generation", "encoding"],
    ["evaluation.images"],
    ["evaluation.features"],
    ["evaluation.metrics"],
    ["evaluation", "profiling"],
    ["evaluation.report"],
    ["runs"],
    ["cli", "api"],
    ["commands"],
    ["main", "sample", "encode", "evaluate", "export", "plan", "benchmark", "convert.__main__"],
    ["__main__"],
]

# Code that goes with a folder for diffusers: it stands alone, and nothing here imports it.
CARRIED = "convert.diffusers_files"

# Library -> the modules that may import it.
SEAMS = {
    "flax.linen": ["models", "tokenizers"],
    "flax.nnx": [],
    "orbax": ["training"],
    "clu": ["training.metrics"],
    "wandb": ["training.wandb_run"],
    "tensorflow_datasets": ["data"],
    "tokenizers": ["conditions"],
    "etils": ["common.object_store"],
    "fsspec": ["common.object_store"],
    "huggingface_hub": ["common.hub"],
    "ftfy": ["conditions"],
    "regex": ["conditions"],
    "jinja2": ["evaluation.report"],
    "matplotlib": ["evaluation.report"],
    # Of these common.pictures alone opens any; the others write and resize.
    "PIL": [
        "common.pictures",
        "common.crops",
        "common.images",
        "data.emoji",
        "generation.benchmark_files",
        "evaluation",
    ],
    "pyarrow": ["data.prompt_files"],
    "ml_collections": ["config", "main", "plan", "benchmark", "commands"],
    "tensorflow": [],
    "torch": [CARRIED],
    "diffusers": [CARRIED],
    "transformers": [],
    "pickle": [],
}


def module_name(path: Path, root: Path) -> str:
    """'training.loop' for <root>/training/loop.py; a folder's own name for its __init__."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_sources(root: Path) -> dict[str, Path]:
    return {module_name(p, root): p for p in sorted(root.rglob("*.py"))}


def imported(path: Path, is_package: bool, name: str) -> set[str]:
    """Full names of everything a file imports, at its head or inside functions.

    `from a import b` gives "a.b", since b may be a module; importlib.import_module("a.b") counts.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                here = [PACKAGE, *name.split(".")]
                base = here[: len(here) - node.level + is_package]
                module = ".".join([*base, module]).rstrip(".")
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func)
            argument = node.args[0]
            if called in ("importlib.import_module", "import_module", "__import__"):
                if not isinstance(argument, ast.Constant):
                    raise AssertionError(f"{path}: an import by a computed name")
                found.add(argument.value)
    return found


def within(name: str, library: str) -> bool:
    return name == library or name.startswith(library + ".")


def folder_of(name: str) -> str | None:
    """The entry of FLOORS that holds a module: its own name, or that of the innermost folder."""
    entries = [entry for floor in FLOORS for entry in floor if within(name, entry)]
    return max(entries, key=len, default=None)


def floor_of(folder: str) -> int:
    return next(n for n, floor in enumerate(FLOORS) if folder in floor)


def internal(names: set[str], modules: dict) -> set[str]:
    """The package's own modules among imported names; 'a.b.function' counts as 'a.b'."""
    result = set()
    for name in names:
        if within(name, PACKAGE):
            inner = name[len(PACKAGE) + 1 :]
            while inner and inner not in modules:
                inner = inner.rpartition(".")[0]
            result.add(inner)
    return result


def violations(root: Path) -> list[str]:
    """Every broken rule of the package in `root`, one line each."""
    modules = find_sources(root)
    lines, graph = [], {}
    for name, path in modules.items():
        names = imported(path, path.name == "__init__.py", name)
        graph[name] = internal(names, modules) - {name}
        for library, allowed in SEAMS.items():
            if any(within(n, library) for n in names) and not any(within(name, x) for x in allowed):
                lines.append(f"{name} imports {library}; only {allowed} may")
        if name == "":
            if others := sorted(graph[name] - {"api"}):
                lines.append(f"{PACKAGE}/__init__.py imports {others}; it may import api alone")
            graph[name] = set()  # api, where it is used: no circle
            continue
        if within(name, CARRIED):
            if any(within(n, PACKAGE) for n in names):
                lines.append(f"{name} imports {PACKAGE}, which is not there where it runs")
            continue
        if any(within(other, CARRIED) for other in graph[name]):
            lines.append(f"{name} imports {CARRIED}, which is for PyTorch alone")
        own = folder_of(name)
        if (
            own is None
            and not graph[name]
            and any(within(x, name) for floor in FLOORS for x in floor)
        ):
            continue  # method/, whose folders have floors of their own
        if own is None:
            lines.append(f"{name} is on no floor of FLOORS")
            continue
        for other in sorted(graph[name] - {""}):
            theirs = folder_of(other)
            if theirs is not None and theirs != own and floor_of(theirs) >= floor_of(own):
                lines.append(f"{name} (floor {floor_of(own)}) imports {other} of {theirs}")
    return lines + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One path for each import that closes a circle, by depth-first search."""
    found, done = [], set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def test_the_package_keeps_the_rules():
    assert violations(ROOT / PACKAGE) == []


def test_config_files_import_no_jax():
    allowed = {"ml_collections", "math", "dimo_jax.config"}
    for path in sorted((ROOT / PACKAGE / "configs").rglob("*.py")):
        names = imported(path, False, path.stem)
        extra = {n for n in names if not any(within(n, library) for library in allowed)}
        assert not extra, f"{path}: {extra}"


def test_config_starts_no_jax():
    # Config files are read before the distributed start, which must come before any use of JAX.
    code = "import sys, dimo_jax.config; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "files, complaint",
    [
        ({"bundles/a.py": "from dimo_jax.method.dimo import b", "method/dimo/b.py": ""},
         "bundles.a (floor"),
        ({"convert/diffusers_files/a.py": "import dimo_jax.api", "api.py": ""}, "imports dimo_jax"),
        ({"runs/a.py": "from dimo_jax.convert.diffusers_files import b",
          "convert/diffusers_files/b.py": "import torch"}, "which is for PyTorch alone"),
        ({"models/a.py": "import dimo_jax.samplers.b", "samplers/b.py": ""}, "models.a (floor"),
        ({"models/a.py": "from ..data import b", "data/b.py": ""}, "models.a (floor"),
        ({"method/masked/a.py": "from dimo_jax.method.dimo import b", "method/dimo/b.py": ""},
         "method.masked.a (floor"),
        ({"config/__init__.py": "def f():\n  from dimo_jax.training import a",
          "training/a.py": ""}, "config (floor"),
        ({"models/a.py": "from dimo_jax.models import b",
          "models/b.py": "from dimo_jax.models.a import f"}, "cycle: models.a -> models.b"),
        ({"samplers/a.py": "from flax import linen as nn"}, "samplers.a imports flax.linen"),
        ({"bundles/a.py": "import orbax.checkpoint as ocp"}, "bundles.a imports orbax"),
        ({"training/loop.py": "def f():\n  from clu import metric_writers"}, "imports clu"),
        ({"samplers/a.py": "import importlib\nimportlib.import_module('clu.x')"}, "imports clu"),
        ({"convert/a.py": "import torch.nn"}, "imports torch"),
        ({"sample.py": "from ml_collections import config_flags"}, "imports ml_collections"),
        ({"evaluation/a.py": "import tensorflow_datasets as tfds"}, "tensorflow_datasets"),
        ({"novelty.py": ""}, "novelty is on no floor"),
        ({"method/novelty.py": ""}, "method.novelty is on no floor"),
        ({"__init__.py": "from dimo_jax import bundles", "bundles.py": ""}, "import api alone"),
    ],
)  # fmt: skip
def test_each_rule_can_be_broken(tmp_path, files, complaint):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = violations(tmp_path)
    assert any(complaint in line for line in found), found


def test_what_is_allowed_is_not_reported(tmp_path):
    files = {
        "common/errors.py": "",
        "config/__init__.py": "import ml_collections\nfrom dimo_jax.common import errors",
        "models/__init__.py": "from dimo_jax.models import net",
        "models/net.py": "import flax.linen as nn\nimport jax",
        "training/optimizers.py": "import flax.struct",
        "training/loop.py": "from dimo_jax.training import optimizers",
        "convert/__main__.py": "from dimo_jax.convert import a\nfrom dimo_jax import cli",
        "convert/a.py": "from dimo_jax import models",
        "cli.py": "",
        "main.py": "from dimo_jax import cli, config\nfrom dimo_jax.training.loop import run",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert violations(tmp_path) == []


def test_no_folder_is_on_two_floors():
    entries = [entry for floor in FLOORS for entry in floor]
    assert len(entries) == len(set(entries))
    for entry in entries:
        place = ROOT / PACKAGE / entry.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), entry
