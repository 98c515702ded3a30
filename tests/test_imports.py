"""Which way imports run, and the one place for each outside library; read from the source."""

import ast
import fnmatch
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "dimo_jax"

# A module imports only from lines above its own, and inside its own folder. Every module must be
# found here: a new one is entered on the line it belongs to.
LINES = [
    ["errors"],
    ["common.*"],
    ["files", "sizes"],
    ["defaults"],
    [
        *("config", "host_memory", "images", "bundle_config", "bundle_places"),
        *("training.trees", "training.rng", "training.progress"),
    ],
    ["validation", "config_text", "overrides", "bundle_files", "common.run_lock"],
    ["method.*", "models.*", "parallel.*", "data.*", "tokenizers.*"],
    [
        *("samplers.*", "conditions.*", "bundles", "convert.*", "parts"),
        *("training.optimizers", "training.checkpoints", "training.metrics"),
        *("training.checksums", "training.orbax_errors", "training.signals"),
        "training.computed_with",
        *("training.orbax_manager", "training.retention", "training.saved"),
    ],
    [
        "evaluation.*",
        "convert.text_to_image",
        "convert.to_diffusers",
        "training.loop",
        "training.reader",
        "training.settings",
    ],
    ["training.programs"],
    ["training.stages"],
    ["runs.*"],
    ["cli"],
    ["commands.*"],
    ["main", "sample", "evaluate", "export", "plan", "benchmark", "convert.__main__"],
    ["__main__"],
]

# Library -> the modules that may import it.
SEAMS = {
    "flax.linen": ["models.*", "tokenizers.*"],
    "flax.nnx": [],
    "orbax": ["training.checkpoints", "training.orbax_manager", "training.saved"],
    "clu": ["training.metrics"],
    "tensorflow_datasets": ["data.*"],
    "tokenizers": ["conditions.*"],
    "etils": ["common.object_store"],
    "fsspec": ["common.object_store"],
    "ftfy": ["conditions.*"],
    "regex": ["conditions.*"],
    "jinja2": ["evaluation.page"],
    # Of these common.pictures alone opens any; the others write and resize.
    "PIL": [
        *("common.pictures", "images", "evaluation.benchmark_files", "evaluation.clip_features"),
        *("evaluation.clip_images", "evaluation.clip_score", "evaluation.hps"),
        *("evaluation.image_files", "evaluation.page_pictures", "evaluation.resize"),
        "evaluation.showcase",
    ],
    "pyarrow": ["data.prompt_files"],
    "ml_collections": ["config", "main", "plan", "benchmark", "commands.benchmark"],
    "tensorflow": [],
    "torch": [],
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


def matching(name: str, patterns: list[str]) -> str | None:
    """The pattern that fits best: a module's own name before its folder's."""
    fits = [p for p in patterns if fnmatch.fnmatch(name, p) or p == f"{name}.*"]
    return max(fits, key=len, default=None)


def line_of(name: str) -> int | None:
    every = [pattern for line in LINES for pattern in line]
    best = matching(name, every)
    return next((n for n, line in enumerate(LINES) if best in line), None)


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
            if any(within(n, library) for n in names) and not matching(name, allowed):
                lines.append(f"{name} imports {library}; only {allowed} may")
        if name == "":
            if graph[name]:
                lines.append(f"{PACKAGE}/__init__.py imports {sorted(graph[name])}; keep it empty")
            continue
        if name == "training":  # holds modules of several lines, so its __init__ imports none
            if graph[name]:
                lines.append(f"training/__init__.py imports {sorted(graph[name])}")
            continue
        own = line_of(name)
        if own is None:
            lines.append(f"{name} stands on no line of LINES")
            continue
        for other in sorted(graph[name] - {"", "training"}):
            above = line_of(other)
            folder = name.partition(".")[0]
            inside = other.partition(".")[0] == folder
            if above is not None and above >= own and not (inside and above == own):
                lines.append(f"{name} (line {own}) imports {other} (line {above})")
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
    for path in sorted((ROOT / "configs").rglob("*.py")):
        names = imported(path, False, path.stem)
        extra = {n for n in names if not any(within(n, library) for library in allowed)}
        assert not extra, f"{path}: {extra}"


def test_config_starts_no_jax():
    # Config files are read before the distributed start, which must come before any use of JAX.
    if not (ROOT / PACKAGE / "config.py").exists():
        pytest.skip("there is no config.py yet")
    code = "import sys, dimo_jax.config; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "files, complaint",
    [
        ({"method/a.py": "from dimo_jax.samplers import b", "samplers/b.py": ""}, "method.a (line"),
        ({"method/a.py": "import dimo_jax.models.b", "models/b.py": ""}, "method.a (line"),
        ({"method/a.py": "from ..models import b", "models/b.py": ""}, "method.a (line"),
        ({"config.py": "def f():\n  from dimo_jax.training import rng", "training/rng.py": ""},
         "config (line"),
        ({"training/metrics.py": "from dimo_jax.training import loop", "training/loop.py": ""},
         "training.metrics (line"),
        ({"method/a.py": "from dimo_jax.method import b",
          "method/b.py": "from dimo_jax.method.a import f"}, "cycle: method.a -> method.b"),
        ({"method/a.py": "from flax import linen as nn"}, "method.a imports flax.linen"),
        ({"bundles.py": "import orbax.checkpoint as ocp"}, "bundles imports orbax"),
        ({"training/loop.py": "def f():\n  from clu import metric_writers"}, "imports clu"),
        ({"samplers/a.py": "import importlib\nimportlib.import_module('clu.x')"}, "imports clu"),
        ({"convert/a.py": "import torch.nn"}, "imports torch"),
        ({"sample.py": "from ml_collections import config_flags"}, "imports ml_collections"),
        ({"evaluation/a.py": "import tensorflow_datasets as tfds"}, "tensorflow_datasets"),
        ({"novelty.py": ""}, "novelty stands on no line"),
        ({"__init__.py": "from dimo_jax import bundles", "bundles.py": ""}, "keep it empty"),
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
        "errors.py": "",
        "config.py": "import ml_collections\nfrom dimo_jax.errors import InputError",
        "models/__init__.py": "from dimo_jax.models import net",
        "models/net.py": "import flax.linen as nn\nimport jax",
        "training/rng.py": "import jax",
        "training/optimizers.py": "import flax.struct",
        "training/loop.py": "from dimo_jax.training import optimizers, rng",
        "convert/__main__.py": "from dimo_jax.convert import a\nfrom dimo_jax import cli",
        "convert/a.py": "from dimo_jax import models",
        "cli.py": "",
        "main.py": "from dimo_jax import cli, config\nfrom dimo_jax.training.loop import run",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert violations(tmp_path) == []
