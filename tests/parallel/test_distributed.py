import jax
import pytest

import dimo_jax
from dimo_jax.common.errors import InputError
from dimo_jax.parallel import distributed
from tests.helpers.environments import MPI, SLURM


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize is called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    return calls


def test_alone_nothing_is_started(joined):
    distributed.start(environ={})
    distributed.start(num_processes=1, environ=SLURM)
    distributed.start("host:1", 1, 0, environ=SLURM)
    assert joined == [] and not distributed.started() and distributed.is_lead()
    distributed.barrier("of one")
    distributed.assert_same({"seed": 0})
    assert distributed.agree(True) and not distributed.agree(False)
    assert not distributed.stop_together()


def test_flags_come_before_the_environment(joined):
    distributed.start("10.0.0.1:1234", 4, 0, environ=SLURM)
    (arguments,) = joined
    assert arguments["coordinator_address"] == "10.0.0.1:1234"
    assert (arguments["num_processes"], arguments["process_id"]) == (4, 0)
    assert arguments["cluster_detection_method"] == "deactivate"
    # The end of one is noticed within two minutes.
    assert arguments["heartbeat_timeout_seconds"] <= 60


def test_a_cluster_starts_without_flags(joined):
    distributed.start(environ=SLURM | {"SLURM_GPUS_ON_NODE": "8"})
    distributed.start(environ=MPI)
    assert joined[0]["local_device_ids"] == [2, 3]
    assert "coordinator_address" not in joined[0] and "local_device_ids" not in joined[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, None), "--num_processes and --process_id not given"),
        ((None, 2, 0), "--coordinator not given"),
        ((None, None, 0), "--coordinator and --num_processes not given"),
        (("host:1", 2, None), "--process_id not given"),
        (("host:1", 2, 2), "--process_id=2 of --num_processes=2; it runs from 0 to 1"),
        (("host", 2, 0), "--coordinator=host is not host:port"),
    ],
)
def test_incomplete_flags(arguments, message, joined):
    with pytest.raises(InputError, match=message):
        distributed.start(*arguments, environ={})
    assert joined == []


def test_processes_that_do_not_find_each_other(monkeypatch):
    def initialize(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError) as caught:
        distributed.start("host:1", 2, 1, environ={})
    assert str(caught.value).startswith("cannot join the other processes as process 1 of 2 with")
    assert "nobody there)" in str(caught.value) and "and more" not in str(caught.value)


def test_the_version_of_the_code_follows_the_sources(monkeypatch, tmp_path):
    (tmp_path / "part").mkdir()
    for name in ("__init__.py", "part/a.py"):
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(dimo_jax, "__file__", str(tmp_path / "__init__.py"))
    seen = [distributed.code_version()]
    assert seen[0].startswith(f"{dimo_jax.__version__}+") and seen[0] == distributed.code_version()
    (tmp_path / "part/a.py").write_text("x = 2\n")
    seen.append(distributed.code_version())
    (tmp_path / "part/a.py").rename(tmp_path / "part/b.py")
    seen.append(distributed.code_version())
    (tmp_path / "note.txt").write_text("not code")
    assert distributed.code_version() == seen[2] and len(set(seen)) == 3


def test_the_loss_of_a_process_is_told_from_other_errors(monkeypatch):
    error = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    assert not distributed.lost(error)  # alone
    monkeypatch.setattr(distributed, "started", lambda: True)
    assert distributed.lost(error) and not distributed.lost(None)
    behind = RuntimeError("saving failed")
    behind.__cause__ = distributed.ProcessLost("gone")
    assert distributed.lost(behind) and not distributed.lost(RuntimeError("saving failed"))
