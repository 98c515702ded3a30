"""A short run of benchmarks/fuzz.py: a damaged file of any format is read, or one sentence."""

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import fuzz
from fuzz_format import Format
from fuzz_formats import FORMATS

from dimo_jax.common.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def alarm():
    before = signal.signal(signal.SIGALRM, fuzz.too_long)
    yield
    signal.signal(signal.SIGALRM, before)


def run(*arguments, **options):
    said = []
    # Wider limits than the program's own: the machine of the suite does other work as well.
    return fuzz.fuzz(*arguments, say=said.append, seconds=60.0, megabytes=2048, **options), said


@pytest.mark.long
def test_damaged_files_are_read_or_one_sentence():
    found, said = run(list(FORMATS), 10 * len(FORMATS), seed=3)
    assert said == [] and found["other"] == 0
    assert found["read"] > 50 and found["sentence"] > 200


def crash(path):
    if path.read_bytes() != b"good":
        raise KeyError("x")


def elsewhere(path):
    if path.read_bytes() != b"good":
        Path("/tmp/fuzz_writes_here").open("ab").close()


def controls(path):
    if path.read_bytes() != b"good":
        print("\x1b[31m", file=sys.stderr)


def huge(path):
    if path.read_bytes() != b"good":
        try:
            raise MemoryError
        except MemoryError as error:
            raise InputError("it is damaged") from error


def endless(path):
    while path.read_bytes() != b"good":
        pass


@pytest.mark.parametrize(
    "read, words",
    [
        (crash, "KeyError"),
        (elsewhere, "wrote /tmp/fuzz_writes_here"),
        (controls, "printed"),
        (huge, "too much memory"),
        (endless, "took "),
    ],
)
def test_what_is_neither_is_listed_with_how_to_repeat_it(monkeypatch, read, words):
    form = Format("x", lambda folder: (folder / "x").write_bytes(b"good"), read)
    monkeypatch.setitem(fuzz.FORMATS, "broken", form)
    said = []
    found = fuzz.fuzz(["broken"], 3, say=said.append, seconds=0.2)
    # A mutation may leave the file as it was.
    assert found["other"] == len(said) > 0
    assert said[0].startswith("--format=broken --seed=0 --case=") and words in said[0]
    Path("/tmp/fuzz_writes_here").unlink(missing_ok=True)
