import io
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from dimo_jax.common import archives
from dimo_jax.common.errors import InputError

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.array(7),
    "text": np.array('{"seed": 1}'),
    "none": np.zeros((0, 5), np.int8),
    "flags": np.array([True, False]),
}


def npz(save=np.savez, **arrays):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def zipped(members, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(header, data=b""):
    text = f"{header}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def refused(call):
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and message.isprintable() and len(message) < 500
    return message


def read_all(data):
    with archives.open_npz(data, "x.npz") as found:
        return {name: found[name] for name in found}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("as_file", [False, True])
def test_npz_gives_what_numpy_gives(tmp_path, save, as_file):
    data = npz(save, **ARRAYS)
    (tmp_path / "x.npz").write_bytes(data)
    found = read_all(tmp_path / "x.npz" if as_file else data)
    assert list(found) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        assert found[name].dtype == expected.dtype and found[name].flags.writeable
        np.testing.assert_array_equal(found[name], expected)


def test_bfloat16_is_read_as_its_bytes():
    values = np.arange(3).astype(ml_dtypes.bfloat16)
    found = read_all(npz(a=values))["a"]
    np.testing.assert_array_equal(found.view(ml_dtypes.bfloat16), values)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_flipped_bit_and_every_length_is_noticed_or_harmless(save):
    arrays = {"a": np.arange(5.0), "b": np.array("text")}
    data = npz(save, **arrays)
    for position in range(len(data)):
        for changed in (
            data[:position],
            data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :],
        ):
            try:
                found = read_all(changed)
            except InputError:
                continue
            for name, value in found.items():
                if name in arrays:
                    np.testing.assert_array_equal(value, arrays[name])


@pytest.mark.parametrize(
    "header, data",
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}", b"1234"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", b"1234"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", b"1234"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"12345678"),
        ("{'descr': '|S0', 'fortran_order': False, 'shape': (9999999999,)}", b""),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", b"1234"),
        ("[" * 5000, b""),
        ("{'descr': '<f4'", b""),
        ("", b""),
    ],
)
def test_a_header_is_compared_with_what_is_there(tmp_path, header, data):
    member = npy(header, data)
    assert "a of x.npz cannot be read" in refused(lambda: read_all(zipped({"a.npy": member})))
    (tmp_path / "a.npy").write_bytes(member)
    assert "a.npy cannot be read" in refused(lambda: archives.map_npy(tmp_path / "a.npy"))


def test_npy_is_mapped(tmp_path):
    np.save(tmp_path / "a.npy", ARRAYS["a"])
    found = archives.map_npy(tmp_path / "a.npy")
    np.testing.assert_array_equal(found, ARRAYS["a"])
    assert "no file" in refused(lambda: archives.map_npy(tmp_path / "b.npy"))


def test_a_wrong_bit_of_a_mapped_array_is_noticed(tmp_path):
    path, array = tmp_path / "a.npy", np.arange(100, dtype=np.uint8).reshape(4, 25)
    with open(path, "wb") as file:
        archives.write_npy(file, array)
    np.testing.assert_array_equal(archives.map_npy(path, check=True), array)
    np.testing.assert_array_equal(np.load(path), array)
    data = path.read_bytes()
    for position in range(len(data) - 104, len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 4
        path.write_bytes(flipped)
        assert "not those that were written" in refused(lambda: archives.map_npy(path, True))


def declared(data, size):
    """The archive with another size of its one member, in the list at its end."""
    at = data.rindex(b"PK\x01\x02") + 24
    return data[:at] + struct.pack("<I", size) + data[at + 4 :]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_that_cannot_be_that_large_is_refused(method):
    data = zipped({"a.npy": bytes(100)}, method)
    assert "bytes, which" in refused(lambda: archives.open_zip(declared(data, 1 << 31), "x"))


def test_other_archives_are_refused():
    a = zipped({"a": b"1"})
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = io.BytesIO()
        with zipfile.ZipFile(twice, "w") as archive:
            archive.writestr("a", b"1")
            archive.writestr("a", b"2")
    assert "one name" in refused(lambda: archives.open_zip(twice.getvalue(), "x"))
    lzma = zipped({"a": b"1"}, zipfile.ZIP_LZMA)
    assert "deflate" in refused(lambda: archives.open_zip(lzma, "x"))
    encrypted = a.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    assert "encrypted" in refused(lambda: archives.open_zip(encrypted, "x"))
    assert "git lfs pull" in refused(lambda: archives.open_zip(b"version https://git-lfs\n", "x"))
    assert "web page" in refused(lambda: archives.open_zip(b" <html>", "x"))
    assert "cannot be read" in refused(lambda: archives.open_zip(b"", "x"))


def test_members_that_overlap_are_refused():
    big = zipped({"a": bytes(1000), "b": b""})
    # Both names stand for the bytes of the first.
    first, second = (i for i in range(len(big)) if big[i : i + 4] == b"PK\x01\x02")
    fields = big[first + 16 : first + 28]
    moved = big[: second + 16] + fields + big[second + 28 : second + 42] + bytes(4)
    overlapping = moved + big[second + 46 :]
    assert "overlap" in refused(lambda: archives.open_zip(overlapping, "x"))


def test_a_member_is_read_up_to_a_size():
    with archives.open_zip(zipped({"a": b"12345"}), "x") as archive:
        assert archives.read_member(archive, "a", "x", 5) == b"12345"
        assert "4 at most" in refused(lambda: archives.read_member(archive, "a", "x", 4))
        missing = refused(lambda: archives.read_member(archive, "none", "x", 4))
        assert "none in x" in missing
