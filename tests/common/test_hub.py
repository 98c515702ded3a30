"""hf://owner/repo: fetched once from a server like the Hub's, and refused in one sentence."""

import os
import subprocess
import sys

import pytest

from dimo_jax.bundles import places
from dimo_jax.common import hub
from dimo_jax.common.errors import InputError
from tests.helpers.hub_server import COMMIT, HubServer

PROGRAM = """
import sys
from dimo_jax.common import hub
from dimo_jax.common.errors import InputError
for address in sys.argv[1:]:
    try:
        print(hub.local(address))
    except InputError as error:
        print("error:", error)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repo")
    for name in ("README.md", "export/config.json", "export/tokenizer/config.json", "other/x.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    with HubServer(folder, "someone/digits") as found:
        yield found


def fetched(home, url, *addresses):
    """The lines that a process of its own prints: the library reads its settings once."""
    more = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    more["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, *addresses],
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.splitlines()


def test_a_folder_of_a_repository_is_fetched_once(server, tmp_path):
    address = "hf://someone/digits/export"
    (place,) = fetched(tmp_path, server.url, address)
    assert place.endswith(f"snapshots/{COMMIT}/export")
    assert (
        tmp_path / place / "tokenizer/config.json"
    ).read_text() == "export/tokenizer/config.json"
    assert sorted(server.fetched) == ["export/config.json", "export/tokenizer/config.json"]
    server.fetched.clear()
    again, file, *errors = fetched(
        tmp_path,
        server.url,
        address,
        "hf://someone/digits@main/other/x.bin",
        "hf://someone/digits/export/nothing",
        "hf://someone/digits@v2/export",
        "hf://nobody/digits",
        "hf://someone",
        "hf://someone/digits/../../x",
    )
    assert again == place and file.endswith("other/x.bin")
    assert server.fetched == ["other/x.bin"]
    assert errors[0].endswith("the repository has nothing at export/nothing")
    assert errors[1].endswith("the repository has no revision v2")
    assert errors[2].startswith("error: there is no repository nobody/digits on the Hub")
    assert all("is no address of the Hub" in x for x in errors[3:5])


def test_without_a_network_the_cache_serves_and_the_rest_is_one_sentence(server, tmp_path):
    (place,) = fetched(tmp_path, server.url, "hf://someone/digits/export")
    nowhere = "http://127.0.0.1:9"
    again, other = fetched(
        tmp_path, nowhere, "hf://someone/digits/export", "hf://someone/else/export"
    )
    assert again == place
    assert other.startswith("error: cannot fetch hf://someone/else/export (")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r'needs the package huggingface_hub.*".\[hub\]"'):
        hub.local("hf://someone/not-fetched")


def test_bundles_may_lie_on_the_hub(monkeypatch, tmp_path):
    (tmp_path / "params.msgpack").write_bytes(b"")
    monkeypatch.setattr(hub, "_fetched", {"hf://someone/digits": tmp_path}.__getitem__)
    assert places.find("hf://someone/digits") == tmp_path
    assert hub.local(tmp_path) == tmp_path
