import gzip
import json

import pytest

from dimo_jax.common import readers, shown
from dimo_jax.common.errors import InputError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
PAGE = b"\n<!DOCTYPE html><html></html>"


def refused(call, *arguments):
    """The sentence with which something is refused."""
    with pytest.raises(InputError) as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message and message.isprintable() and len(message) < 500
    return message


def test_json_gives_what_python_gives(tmp_path):
    value = {"a": [1, -2.5, None, True, "\u00e9"], "b": {"c": 10**30}}
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
    assert readers.json_object(tmp_path / "a.json") == value


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "is empty"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "64 levels"),
        (b"[" * 80 + b"]" * 80, "64 levels"),
        (b'{"a":' * 80 + b"1" + b"}" * 80, "64 levels"),
        (b"[" + b"9" * 6000 + b"]", "6000 digits"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\x1b[31m"}', "is not JSON"),
        (b"[1]", "not a JSON object but a list"),
        (LFS, "git lfs pull"),
        (PAGE, "web page"),
        (b"\x1f\x8b\x08\xff", "gzip"),
    ],
)
def test_what_is_no_json_object_is_one_sentence(tmp_path, data, words):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    message = refused(readers.json_object, path)
    assert words in message and str(path) in message


def test_as_deep_as_allowed():
    data = "[" * readers.MAX_DEPTH + "]" * readers.MAX_DEPTH
    found = readers.parse_json(data, "x")
    while found:
        (found,) = found


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    assert "no file" in refused(readers.content, tmp_path / "none")
    assert "cannot read" in refused(readers.content, tmp_path)
    (tmp_path / "a").write_bytes(b"12345")
    assert "more than 4 bytes" in refused(readers.content, tmp_path / "a", 4)
    assert readers.content(tmp_path / "a", 5) == b"12345"


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: [1", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("[" * 80 + "]" * 80, "64 levels"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: &x [*x]", "aliases"),
        ("a: 2001-99-99", "not YAML"),
        ("a: " + "9" * 6000, "not YAML"),
        ("{[1]: 2}", "not YAML"),
        ("!!int ''", "not YAML"),
        ("!!python/object/apply:os.system [ls]", "not YAML"),
        ("a: \x1b", "not YAML"),
        ("a" * (readers.MAX_YAML_BYTES + 1), "characters"),
        (LFS.decode(), "git lfs pull"),
    ],
)
def test_what_is_no_plain_yaml_is_one_sentence(text, words):
    message = refused(readers.parse_yaml, text, "model.yaml")
    assert words in message and "model.yaml" in message


def test_yaml_gives_plain_values():
    assert readers.parse_yaml("a: {b: [1, 2.5, x]}", "y") == {"a": {"b": [1, 2.5, "x"]}}


def test_gzip_is_unpacked_up_to_a_size():
    data = gzip.compress(bytes(1 << 20))
    assert readers.unzip(data, "x", 1 << 20) == bytes(1 << 20)
    assert "unpacks to more than 1,048,575" in refused(readers.unzip, data, "x", (1 << 20) - 1)
    assert "damaged" in refused(readers.unzip, data[:-3], "x", 1 << 20)
    assert "damaged" in refused(readers.unzip, b"nothing", "x", 1 << 20)
    assert "git lfs pull" in refused(readers.unzip, LFS, "x", 1 << 20)


def test_no_control_character_is_left():
    assert shown.printable("plain \u00e9 \u4e2d text") == "plain \u00e9 \u4e2d text"
    assert shown.printable("a\x1b]0;x\x07\r\n\u202eb\ud800") == (
        "a\\x1b]0;x\\x07\\r\\n\\u202eb\\ud800"
    )
    assert shown.shown("\x1b" * 200).isascii() and len(shown.shown("\x1b" * 200)) < 500
    assert shown.shown(10**5000) == "<int>"
