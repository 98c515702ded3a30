"""constraints.txt: exact versions, within the ranges of what it constrains."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers import ROOT

# Extras that the suite does not install, and so has no versions of.
UNTESTED = {"s3fs"}
# PyTorch with CUDA wants exact versions of NVIDIA's wheels, another in each of its releases.
PYTORCHS = "nvidia-"


def requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    texts = [line.partition("#")[0].strip() for line in lines]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in project["optional-dependencies"].values():
        texts += extra
    found = [Requirement(text) for text in texts if text]
    found = [r for r in found if not r.name.startswith(PYTORCHS)]
    return [r for r in found if r.name != "dimo_jax" and r.name not in UNTESTED]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_every_line_is_one_exact_version_in_order():
    for line in pins():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), line
    names = [line.partition("==")[0] for line in pins()]
    assert len({canonicalize_name(name) for name in names}) == len(names)
    assert names == sorted(names, key=str.lower)


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_has_a_version_within_its_range(requirement):
    versions = {canonicalize_name(n): v for n, _, v in (x.partition("==") for x in pins())}
    version = versions[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(Version(version)), version


def test_whatever_installs_the_program_takes_these_versions():
    for path in ("Makefile", "launch/Dockerfile", "launch/tpu_worker.sh"):
        text = (ROOT / path).read_text().replace("\\\n", " ")
        installs = [x for x in text.splitlines() if "--editable" in x and ".newest" not in x]
        assert installs
        for line in installs:
            assert re.search(r"--constraint[= ]constraints\.txt", line), line
