"""Pictures from strangers: what Pillow makes of them, and what never happens."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from dimo_jax.common import pictures
from dimo_jax.common.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
DEEP = np.random.default_rng(1).integers(0, 1 << 16, (6, 9), np.uint16)
RGB = Image.fromarray(PIXELS)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def chunk(name, content):
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, depth, colour, raw, *more):
    """A PNG by hand: raw is what is deflated, a filter byte before each row."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", head),
        *more,
        chunk(b"IDAT", zlib.compress(raw, 9)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def deep_rgb():
    samples = np.stack([DEEP, DEEP[::-1], DEEP // 2], -1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    return png(9, 6, 16, 2, rows), (samples >> 8).astype(np.uint8)


def turned(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(RGB, form, exif=exif)


def transparent_palette():
    return encoded(RGB.quantize(8), "PNG", transparency=bytes([0, 90, 255]))


ALPHA = Image.fromarray(np.concatenate([PIXELS, PIXELS[..., :1]], -1))
FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]}
CASES = {
    "png": (encoded(RGB, "PNG"), ()),
    "jpeg": (encoded(RGB, "JPEG"), ()),
    "webp": (encoded(RGB, "WEBP"), ()),
    "bmp": (encoded(RGB, "BMP"), ()),
    "tiff": (encoded(RGB, "TIFF"), ()),
    "compressed tiff": (encoded(RGB, "TIFF", compression="tiff_lzw"), ()),
    "ppm": (encoded(RGB, "PPM"), ()),
    "gray": (encoded(RGB.convert("L"), "PNG"), ("gray",)),
    "pgm": (encoded(RGB.convert("L"), "PPM"), ("gray",)),
    "one bit": (encoded(RGB.convert("1"), "PNG"), ("gray",)),
    "gif": (encoded(RGB.quantize(8), "GIF"), ("palette",)),
    "palette": (encoded(RGB.quantize(8), "PNG"), ("palette",)),
    "transparent palette": (transparent_palette(), ("palette", "alpha")),
    "alpha": (encoded(ALPHA, "PNG"), ("alpha",)),
    "gray alpha": (encoded(ALPHA.convert("LA"), "PNG"), ("gray", "alpha")),
    "alpha webp": (encoded(ALPHA, "WEBP", lossless=True), ("alpha",)),
    "transparent colour": (encoded(RGB, "PNG", transparency=(0, 0, 0)), ("alpha",)),
    "cmyk": (encoded(RGB.convert("CMYK"), "JPEG"), ("CMYK",)),
    "lab": (encoded(Image.new("LAB", (9, 6), (180, 90, 160)), "TIFF"), ("space",)),
    "cmyk tiff": (encoded(RGB.convert("CMYK"), "TIFF"), ("CMYK",)),
    "deep rgb": (deep_rgb()[0], ("deep",)),
    "animated webp": (encoded(RGB, "WEBP", **FRAMES), ("frames",)),
    "animated png": (encoded(RGB, "PNG", **FRAMES), ("frames",)),
    "pages": (encoded(RGB, "TIFF", **FRAMES), ("frames",)),
    "turned": (turned("JPEG"), ("turned",)),
    "turned png": (turned("PNG"), ("turned",)),
}


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_that_other_evaluators_see(name):
    data, kinds = CASES[name]
    found = pictures.decode(data, "x", rgb=True)
    # The line of clean-fid, torch-fidelity and ADM's loader.
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(found.image), expected)
    assert expected.shape == PIXELS.shape and expected.std() > 5
    assert found.kinds == kinds
    assert pictures.decode(data, "x").image.mode == Image.open(io.BytesIO(data)).mode


def test_sixteen_bits_lose_their_lower_eight():
    data, expected = deep_rgb()
    np.testing.assert_array_equal(np.asarray(pictures.decode(data, "x").image), expected)
    gray = Image.fromarray(DEEP)
    for data in (
        encoded(gray, "PNG"),
        encoded(gray, "TIFF"),
        encoded(gray, "TIFF", compression="tiff_lzw"),
        b"P5 9 6 65535\n" + DEEP.astype(">u2").tobytes(),
    ):
        image, kinds = pictures.decode(data, "x", rgb=True)
        assert kinds == ("gray", "deep")
        np.testing.assert_array_equal(np.asarray(image)[..., 1], DEEP >> 8)
    assert pictures.decode(b"P6 9 6 65535\n" + bytes(324), "x").kinds == ("deep",)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright_on_request(form):
    for orientation in range(10):  # 0 and 9 mean nothing
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(RGB, form, exif=exif)
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        image, kinds = pictures.decode(data, "x", rgb=True, upright=True)
        np.testing.assert_array_equal(np.asarray(image), expected)
        assert kinds == () and (image.width == 6) == (5 <= orientation <= 8)


def test_kinds_are_counted():
    bits = [pictures.to_bits(x) for x in ((), ("CMYK",), ("gray", "deep"), ("gray",))]
    assert bits[0] == 0 and len(set(bits)) == 4 and max(bits) < 256
    text = pictures.described(np.array(bits, np.uint8))
    assert text == "2 gray, 1 CMYK, 1 of 16 bits, of which the upper 8 are taken"
    assert pictures.described(np.zeros(3, np.uint8)) == ""


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_picture_starts_a_program(monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a) or RGB.im)
    with Image.open(io.BytesIO(POSTSCRIPT)) as image:
        image.load()
    assert len(started) == 1  # what Pillow does by itself
    with pytest.raises(InputError, match=r"a.png \(\d+ bytes\) is no readable picture of the form"):
        pictures.decode(POSTSCRIPT, "a.png")
    assert len(started) == 1


def bomb(side=13_000):
    return png(side, side, 1, 0, bytes((side // 8 + 1) * side))


def run(code, *arguments, options=()):
    environment = {**os.environ, "PYTHONWARNINGS": ""}
    return subprocess.run(
        [sys.executable, *options, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip


MEASURED = """
import json, resource, sys
from dimo_jax.common import pictures
from dimo_jax.common.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
text = ""
try:
    pictures.decode(open(sys.argv[1], "rb").read(), "x.png", rgb=True)
except InputError as error:
    text = str(error)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([grown * 1024, text]))
"""


def with_text():
    return png(9, 6, 8, 0, bytes(60), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 28))))


@pytest.mark.parametrize(
    "make, complaint",
    [
        (bomb, r"x.png .* would take 13000x13000 pixels in memory, more than 67,108,864"),
        (lambda: bomb(20_000), r"x.png .* has more than 67,108,864 pixels"),
        (with_text, "x.png .* is no readable picture"),
    ],
    ids=["pixels", "more pixels", "text"],
)
def test_a_small_file_takes_no_large_memory(tmp_path, make, complaint):
    path = tmp_path / "x.png"
    path.write_bytes(make())
    assert path.stat().st_size < 500_000
    done = run(MEASURED, path)
    grown, text = json.loads(done.stdout)
    assert grown < 30e6
    assert re.search(complaint, text), text


def test_nothing_that_pillow_warns_of_is_printed(tmp_path):
    broken_tags = encoded(
        RGB, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\xff\xff\xff\xff"
    )
    cases = {"a.png": transparent_palette(), "b.jpg": broken_tags, "c.png": bomb(10_000)}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    code = """
import pathlib, sys
from dimo_jax.common import pictures
from dimo_jax.common.errors import InputError
for place in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        pictures.decode(place.read_bytes(), place.name, rgb=True)
        print(place.name)
    except InputError as error:
        print(str(error)[:5])
"""
    done = run(code, tmp_path, options=["-W", "error"])
    assert (done.stdout.split(), done.stderr) == (["a.png", "b.jpg", "c.png"], "")


FLOATS = Image.fromarray(PIXELS[..., 0] / np.float32(255))


@pytest.mark.parametrize(
    "data, complaint",
    [
        (b"", r"x \(0 bytes\) is no readable picture of the formats PNG, JPEG"),
        (b"no picture", r"x \(10 bytes\) is no readable picture of the formats"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a git-lfs pointer; run",
        ),
        (CASES["png"][0][:60], "x .* is no readable picture"),
        (encoded(FLOATS, "TIFF"), "x has floats for pixels"),
        (encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), "x has 32 bits for pixels"),
    ],
    ids=["empty", "text", "git-lfs", "cut off", "floats", "32 bits"],
)
def test_what_is_no_picture_is_refused(data, complaint):
    with pytest.raises(InputError, match=complaint):
        pictures.decode(data, "x", rgb=True)


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_picture_is_read_or_refused_in_one_sentence(name):
    numbers = np.random.default_rng(2)
    whole = CASES[name][0]
    for _ in range(60):
        data = bytearray(whole)
        for place in numbers.integers(0, len(data), numbers.integers(1, 9)):
            data[place] = numbers.integers(256)
        del data[numbers.integers(len(data) // 2, 2 * len(data)) :]
        try:
            pictures.decode(bytes(data), "x", rgb=True)
        except InputError as error:
            assert "\n" not in str(error)


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large.png").touch()
    os.truncate(tmp_path / "large.png", pictures.MAX_FILE_BYTES + 1)
    (tmp_path / "lost.png").symlink_to("nowhere")
    for name, complaint in (
        ("pipe.png", "pipe.png is not a file"),
        ("large.png", "large.png has 536,870,913 bytes, more than a picture can have"),
        ("lost.png", "cannot read .*lost.png: No such file"),
    ):
        with pytest.raises(InputError, match=complaint):
            pictures.read(tmp_path / name)


def test_nothing_else_opens_pictures():
    package = Path(pictures.__file__).parent.parent
    found = [x for x in package.rglob("*.py") if re.search(r"\bImage\.open\b", x.read_text())]
    assert found == [Path(pictures.__file__)]
