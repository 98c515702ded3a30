"""Fixtures of the tests of dimo_jax.sample: a tiny generator, and the command."""

import pytest

from dimo_jax import sample
from tests.helpers.command_line import run_command, save_tiny


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("sample") / "export")


@pytest.fixture
def run(monkeypatch, capsys, built_once):
    def run(*arguments, status=0):
        found, out, err = run_command(sample, arguments, monkeypatch, capsys)
        assert found == status, err
        return err if status else out

    return run
