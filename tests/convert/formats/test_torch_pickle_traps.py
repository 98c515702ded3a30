"""Nothing that a checkpoint asks for is run, and no pickle brings the program down."""

import builtins
import codecs
import functools
import operator
import os
import subprocess
import sys

import pytest
import torch

from dimo_jax.common.errors import InputError
from dimo_jax.convert.formats import torch_files
from tests.helpers import ROOT
from tests.helpers.torch_pickles import (
    HEAD,
    LEGACY_HEAD,
    STOP,
    dumps,
    refusals,
    tensor,
    text,
    zip_file,
)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self):  # so that a call may make the function of another
        raise AssertionError("only pickled, never called")


TRAPS = {
    "os.system": (lambda run: Call(os.system, run), f"{os.system.__module__}.system"),
    "eval": (lambda run: Call(builtins.eval, f"__import__('os').system({run!r})"), "eval"),
    "exec": (lambda run: Call(builtins.exec, "raise SystemExit"), "exec"),
    "getattr": (lambda run: Call(Call(getattr, Call(__import__, "os"), "system"), run), "getattr"),
    "partial": (lambda run: Call(functools.partial(os.system, run)), "functools.partial"),
    "attrgetter": (lambda run: Call(operator.attrgetter("system"), 1), "attrgetter"),
    "codecs": (lambda run: Call(codecs.decode, b"x", "rot13"), "_codecs.decode"),
    "inside a state dict": (
        lambda run: {"model": {"w": 1.0, "x": [Call(os.system, run)]}}, "system",
    ),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_refused_by_name_and_not_run(tmp_path, trap, protocol):
    make, name = TRAPS[trap]
    pickled = dumps(make(f"touch {tmp_path}/trapped"), protocol)
    for message in refusals(tmp_path, pickled):
        assert "asks for " in message and name in message, message
        assert "nothing of it was run; get the checkpoint from its authors" in message
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_trap_of_torch_save_is_refused(tmp_path, legacy):
    path = tmp_path / "x.pth"
    content = {"state_dict": {"w": torch.ones(3)}, "x": Call(os.system, f"touch {tmp_path}/no")}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"x.pth asks for posix.system, which is not a tensor"):
        torch_files.read(path)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "module, name",
    [
        ("torch", "_utils._rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch", "FloatStorage.from_file"),
        ("collections", "OrderedDict.__init__"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("collections.abc", "sys"),
        ("builtins", "type.__subclasses__"),
        ("lightningx", "Trainer"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch\x1b[2J", "x" * 1000),
        ("", ""),
    ],
)
def test_only_exact_names_are_known(tmp_path, module, name):
    named = text(module) + text(name) + b"\x93"  # STACK_GLOBAL
    for message in refusals(tmp_path, HEAD + named + b")R" + STOP):
        assert "asks for " in message and len(message) < 500
        assert message.isprintable()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(iposix\nsystem\n",  # INST
        b"(cposix\nsystem\n" + text("true") + b"o",  # OBJ
        b"cposix\nsystem\n)\x81",  # NEWOBJ
        b"cposix\nsystem\n)}\x92",  # NEWOBJ_EX
    ],
)
def test_every_way_to_make_an_object_looks_the_class_up(tmp_path, opcodes):
    for message in refusals(tmp_path, HEAD + opcodes + STOP):
        assert "asks for posix.system" in message


@pytest.mark.parametrize(
    "opcodes, complaint",
    [
        (b"\x82\x01", "opcode EXT1"),
        (b"\x83\x01\x00", "opcode EXT2"),
        (b"Pname\n", "opcode PERSID"),
        (b"\x97", "opcode NEXT_BUFFER"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}b", "attributes are set on a Function"),
        (b"ctorch\nFloatStorage\n}b", "attributes are set on a _StorageType"),
        (tensor() + b"}b", "attributes are set on a "),
        (b"]}b", "attributes are set on a list"),
        (text("x") + b")R", "a str is called"),
        (tensor() + b")R", " is called"),
        (b"ctorch\nFloatStorage\n)R", "a _StorageType is called"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n]R", "a Function is called"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "TypeError"),
        (b"ccollections\nOrderedDict\n(K\x01tR", "TypeError"),
        (b"ctorch\nSize\n((I-1\nttR", "not an integer >= 0"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nSize\nNNNtR", "something else"),
        (b"K\x01K\x02a", "items are put into a int"),
        (b"}K\x01u", "IndexError"),  # SETITEMS without MARK
        (b"}(K\x01u", "ValueError"),  # an odd number of items
        (b"h\x07", "KeyError"),
        (b"0", "IndexError"),
        (b"", "IndexError"),
        (b"\x85", "the stack is empty"),
        (b"}]K\x01s", "a list is used as a key"),
        (b"}(]K\x01t)s", "a tuple is used as a key"),
        (b"}" + tensor() + b"Ns", "a ndarray is used as a key"),
        (b"\xff", "opcode"),
        (b"X\xff\xff\xff\x7fabc", "expected 2147483647 bytes"),
        (b"\x8d" + b"\xff" * 8, "maxsize"),
        (b"\x8b\xff\xff\xff\x7f", "ValueError"),
        (b"I" + b"9" * 5000 + b"\n", "4300 digits"),
    ],
)
def test_what_torch_never_writes_is_damage(tmp_path, opcodes, complaint):
    for message in refusals(tmp_path, HEAD + opcodes + STOP):
        assert complaint in message, message
        assert "its pickle fails at byte" in message and len(message) < 500


# In a process of its own, which may crash, and without the run-time checks of signatures, which
# cost 50 microseconds a call. A hash of a tuple 150,000 deep overruns the C stack.
DEEP = 160_000
TUPLE = b")" + b"\x85" * DEEP
BOMBS = {
    "lists": (b"]" * DEEP + b"a" * (DEEP - 1), "list"),
    "tuple": (TUPLE, "tuple"),
    "tuple as key": (b"}" + TUPLE + b"Ns", "a tuple is used as a key"),
    "tuple in a set": (b"\x8f(" + TUPLE + b"\x90", "a tuple is used as a key"),
    "tuple as module": (TUPLE + text("x") + b"\x93", "not named by text"),
    "tuple as storage": (TUPLE + b"Q", "a storage is not named"),
    "marks": (b"(" * DEEP + b"N", "NoneType"),
    "copies": (b"](" + b"N" * DEEP + b"l" + b"2a" * DEEP, "list"),
    "far memo": (b"Nr\xff\xff\xff\xff", "NoneType"),
    "huge text": (b"\x8d\x00\x00\x00\x00\x00\x01\x00\x00", "but only 1 remain"),
}


def test_bombs_do_no_harm(tmp_path):
    for name, (opcodes, _) in BOMBS.items():
        zip_file(tmp_path / name, HEAD + opcodes + STOP)
    keys = HEAD + b"](" + TUPLE + b"e" + STOP
    legacy = LEGACY_HEAD + dumps(1) + keys
    (tmp_path / "tuple in the list of storages").write_bytes(legacy)
    program = """
import resource, sys
from pathlib import Path
from dimo_jax.convert.formats import torch_files
from dimo_jax.common.errors import InputError
limit = 2 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, type(torch_files.read(path)).__name__, sep=":", flush=True)
    except InputError as error:
        print(path.name, error, sep=":", flush=True)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    results = dict(line.split(":", 1) for line in ran.stdout.splitlines())
    assert ran.returncode == 0, (list(results)[-1:], ran.stderr[-500:])
    assert "the list of storages is none" in results["tuple in the list of storages"]
    for name, (_, expected) in BOMBS.items():
        assert expected in results[name], results[name]
