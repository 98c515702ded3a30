import json

import pytest

from dimo_jax.training import checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "values").write_bytes(b"123456789")
    (tmp_path / "empty").write_bytes(b"")
    checksums.write(tmp_path)
    return tmp_path


def test_size_and_the_standard_crc_of_every_file(folder):
    # The check value of CRC-32 in its definition is that of these nine digits.
    sums = json.loads((folder / "checksums.json").read_text())
    assert sums == {"d/values": [9, 0xCBF43926], "empty": [0, 0]}
    checksums.check(folder)


def test_pieces_count_as_the_whole(folder, monkeypatch):
    monkeypatch.setattr(checksums, "CHUNK_BYTES", 2)
    checksums.check(folder)


@pytest.mark.parametrize("content", [b"123456788", b"12345678", b"1234567890", None])
def test_another_content_is_named(folder, content):
    path = folder / "d" / "values"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match="d/values is not what was written: .* expected .9, 34"):
        checksums.check(folder)


def test_what_has_no_checksums_is_not_checked(folder):
    (folder / "later").write_bytes(b"x")
    checksums.check(folder)
    (folder / "checksums.json").unlink()
    (folder / "empty").write_bytes(b"x")
    checksums.check(folder)
    checksums.write("gs://nowhere/at/all")
    checksums.check("gs://nowhere/at/all")
