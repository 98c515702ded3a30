"""README.md and the pages of docs/: their length, links and commands, and the site made of them."""

import base64
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dimo_jax
from dimo_jax import __main__ as overview
from dimo_jax import cli
from dimo_jax import config as configs
from dimo_jax.common.errors import InputError
from tests.helpers import ROOT

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "launch" / "README.md",
]
BLOCK = re.compile(r"(?:^ {4}.*\n|^\n(?= {4}))+|^```[\s\S]*?^```$", re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page):
    return str(page.relative_to(ROOT))


def prose(page):
    """The text of a page without its blocks of code."""
    return BLOCK.sub("\n", page.read_text(encoding="utf-8"))


def headings(page):
    """The anchors that GitHub gives a page's headings."""
    found = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in found}


def commands():
    """(page, words) of each command in a block of a page; comments and outputs are none."""
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"^ *((\S*python|sbatch|dimo-jax|benchmarks/\S+) .*)$", line)
                if found:
                    yield name_of(page), shlex.split(found[1], comments=True)


def fresh(name):
    """A command's module with flags that no other test has parsed."""
    place = "dimo_jax.convert.__main__" if name == "convert" else f"dimo_jax.{name}"
    spec = importlib.util.find_spec(place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(name, words, monkeypatch):
    """Read the words as the command does, up to the work; "..." is for flags that are left out."""
    module = fresh(name)
    monkeypatch.setattr(sys, "argv", ["command", *(x for x in words if x != "...")])
    try:
        rest = cli._parse(module.FLAGS, module.__doc__)
    except InputError as error:
        assert "..." in words and " missing; for example" in str(error), error
        return
    if name == "evaluate":
        assert rest[0] in module.COMMANDS
        module._refuse_foreign(rest[0])
        module._check(rest[0], rest[1:])
    else:
        assert not rest or inspect.signature(module.main).parameters, rest


def test_the_readme_is_one_screen_with_links_to_all_pages():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    pages = {name_of(page) for page in PAGES} - {"README.md"}
    assert pages <= {target.partition("#")[0] for target in LINK.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall(INLINE.sub("", prose(page))):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        place = Path(os.path.normpath(page.parent / file)) if file else page
        assert place.exists(), target
        assert not heading or heading in headings(place), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_in_a_page_names_what_there_is(page):
    for code in INLINE.findall(prose(page)):
        word, *words = code.split()
        if word in overview.COMMANDS and words:
            known = overview.COMMANDS[word].FLAGS
            fields = configs.flat(configs.default_config().to_dict())
            for flag in re.findall(r"--([\w.]+)", code):
                plain = flag.removeprefix("config.")
                assert flag in known or flag.removeprefix("no") in known or plain in fields, code
        for file in re.findall(r"^(?:benchmarks|configs|launch|docs|tests)/[\w/.]+", code):
            assert "NAME" in file or (ROOT / file).exists(), code
        if word == "make" and re.fullmatch(r"[a-z-]+", words[0]):
            assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text(), code


@pytest.mark.parametrize(("page", "words"), list(commands()), ids=str)
def test_commands_parse(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    end = words.index("--") if "--" in words else len(words)
    program, words = words[end + 1 :], words[:end]
    if program:
        parse("main", program, monkeypatch)
    start = 1 + words[0].endswith("python") + (words[1] == "-m")
    place, arguments = words[start - 1], words[start:]
    if place == "dimo-jax":
        place, *arguments = arguments
    package, _, name = place.rpartition(".")
    if package == "dimo_jax" or name in overview.COMMANDS:
        parse(name, arguments, monkeypatch)
    elif package == "launch":
        module = importlib.import_module(place)
        if "..." not in arguments:
            module.read_flags([*arguments, "--", *program] if program else arguments)
    elif place.startswith("benchmarks/"):
        text = (ROOT / place).read_text() + (ROOT / "benchmarks" / "beside_torch.py").read_text()
        flags = [x.partition("=")[0] for x in arguments if x.startswith("--")]
        assert not [x for x in flags if f'"{x}"' not in text and f"{x})" not in text]
    else:
        assert place in ("sbatch", "venv"), place


def test_the_badges_are_true():
    text = (ROOT / "README.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"/version-{dimo_jax.__version__}-" in text
    assert f"/licence-{project['license'].replace('-', '--')}-" in text
    lowest, below = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    assert f"/python-3.{lowest}_to_3.{int(below) - 1}-" in text


def build(root, site):
    """mkdocs' process, done, which built the site of a checkout."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)],
        cwd=root, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_the_site_has_every_page_and_nothing_from_elsewhere_but_badges(tmp_path):
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stdout
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / f"{page.stem}.html").is_file()
    index = (tmp_path / "index.html").read_text()
    assert 'href="imagenet.html#the-papers-table-and-here"' in index
    assert '<a href="launch.html">launchers</a>' in index
    assert "LICENSE" not in index  # no page: its link's text alone
    assert 'src="digits.png"' in index
    assert 'id="dimo_jax.ImageModel.tokens"' in (tmp_path / "api.html").read_text()
    for page in tmp_path.glob("*.html"):
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|source)[^>]* src="?(https?://[^">]+)', text)
        loaded += re.findall(r'<link[^>]* href="?(https?://[^">]+)', text)
        assert all(x.startswith("https://img.shields.io/badge/") for x in loaded), loaded


@pytest.fixture
def root(tmp_path):
    """A checkout whose pages may be changed."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "docs", root / "docs")
    for file in ("CHANGELOG.md", "mkdocs.yml"):
        shutil.copy(ROOT / file, root / file)
    for name in ("CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "dimo_jax", "launch"):
        (root / name).symlink_to(ROOT / name)
    return root


def test_a_broken_link_page_or_heading_stops_the_build(root, tmp_path):
    with (root / "CHANGELOG.md").open("a") as file:
        file.write("[a](docs/nowhere.md) [b](docs/text.md#nowhere) [c](benchmarks/nowhere.py)\n")
    (root / "docs" / "lost.md").write_text("# In no list\n")
    done = build(root, tmp_path / "site")
    assert done.returncode != 0 and "Aborted with 4 warnings" in done.stdout, done.stdout
    for name in ("nowhere.md", "#nowhere", "benchmarks/nowhere.py", "lost.md"):
        assert name in done.stdout


def test_a_notebook_is_a_page_with_the_outputs_that_it_was_saved_with(root, tmp_path):
    picture = base64.b64encode((ROOT / "docs" / "digits.png").read_bytes()).decode()
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["seven ", "| eight\n"]},
        {"output_type": "display_data", "data": {"image/png": picture, "text/plain": ["<nine>"]}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# A way through\n", "[Text](text.md)"]},
        {"cell_type": "code", "source": ["digits = 1\n", "print(digits)"], "outputs": outputs},
    ]
    (root / "docs" / "way.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    with (root / "CHANGELOG.md").open("a") as file:
        file.write("[a way](docs/way.ipynb)\n")
    done = build(root, tmp_path / "site")
    assert done.returncode == 0, done.stdout
    page = (tmp_path / "site" / "way.html").read_text()
    assert 'id="a-way-through"' in page
    assert 'href="text.html">Text</a>' in page
    assert "seven | eight" in page and f"data:image/png;base64,{picture}" in page
    assert "nine" not in page  # what is shown in place of a picture
    assert '<a href="way.html">a way</a>' in (tmp_path / "site" / "changelog.html").read_text()
    assert "A way through" in (tmp_path / "site" / "start.html").read_text()  # the navigation
