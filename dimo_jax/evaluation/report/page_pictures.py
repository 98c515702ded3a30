"""The PNG pictures of an evaluation as data: URIs, so that a page needs no other file."""

import base64
import io
import logging
import re
from dataclasses import dataclass

from PIL import Image

from dimo_jax.common import files, pictures
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.report import schema
from dimo_jax.evaluation.report.schema import Results

# On a narrow screen a tile is no narrower than this; a picture of many columns scrolls in its box.
MIN_TILE, MIN_PHOTO, PHOTO_WIDTH = 30, 72, 64
# A wider picture is made smaller for the page: ten photographs in a row stay sharp on any screen.
MAX_WIDTH = 1600
_TEACHER = re.compile(r"(.+?)_0*(\d+)_steps?")


@dataclass(frozen=True)
class Picture:
    """One picture of a page.

    Attributes:
        kind: "samples", "neighbours", "originals", "worst", "best", "all" or any other.
        title: what it shows.
        alt: the same and how it is laid out, for whoever does not see it.
        uri: a data: URI.
        width: pixels.
        height: pixels.
        columns: tiles in a row; 0 where that is not known.
        key: (model, steps), which pictures of other runs share.
        labels: of its columns, as text; '' where that is not known.
    """

    kind: str
    title: str
    alt: str
    uri: str
    width: int
    height: int
    columns: int
    key: tuple[str, int]
    labels: str = ""

    @property
    def min_width(self) -> int:
        """In CSS pixels; 0 where the columns are not known."""
        is_photo = self.width >= PHOTO_WIDTH * self.columns
        return self.columns * (MIN_PHOTO if is_photo else MIN_TILE)


def collect(results: Results) -> list[Picture]:
    """Return the pictures that results.json names, then other PNG files of its folder `pictures`.

    What is no readable picture, or leads out of the folder, is left out with a line in the log: a
    page is sent to others, and holds nothing that is not of its evaluation.
    """
    folder = results.folder
    inside = files.resolved(folder)
    found, seen = [], set()
    for entry in results.pictures:
        path = files.resolved(folder / entry.file)
        if path.is_file() and path not in seen:
            seen.add(path)
            found.append((path, entry))
    for path in sorted((folder / "pictures").glob("*.png")):
        if files.resolved(path) not in seen:
            found.append((path, _guess(path.name)))
    return [picture for path, entry in found if (picture := _picture(path, entry, inside))]


def _guess(file: str) -> schema.Picture:
    """Return what a file is, by its name, as the reports name them."""
    stem = file.removesuffix(".png")
    if stem in ("all", "neighbours", "worst", "best"):
        return schema.Picture(file, stem)
    if match := _TEACHER.fullmatch(stem):
        return schema.Picture(file, "samples", match[1], int(match[2]))
    if stem in metric_names.MODELS:
        return schema.Picture(file, "samples", stem, int(stem == "generator"))
    return schema.Picture(file, "samples", title=stem.replace("_", " "))


def _picture(path: AnyPath, entry: schema.Picture, inside: AnyPath) -> Picture | None:
    """Return the picture of a file.

    None if it is none, or a name or link leads to other folders.
    """
    try:
        if not files.resolved(path).is_relative_to(inside):
            raise InputError(f"{path} leads out of {inside}")
        uri, width, height = _embed(path)
    except InputError as error:
        logging.warning("left out of the page: %s", error)
        return None
    title = entry.title or metric_names.title(entry.model or path.stem, entry.steps)
    first = ", ".join(map(str, entry.labels[: entry.columns]))
    alt = f"Images: {title}"
    if first:
        alt += f"; {len(entry.labels)} in rows of {entry.columns}, labels {first}"
    key = (entry.model, entry.steps)
    return Picture(entry.kind, title, alt, uri, width, height, entry.columns, key, first)


def _embed(path: AnyPath) -> tuple[str, int, int]:
    """Return the file as a data: URI with its size; made smaller, or PNG, where it is not."""
    data = pictures.read(path)
    image = pictures.decode(data, str(path)).image
    if image.width > MAX_WIDTH or image.format != "PNG":
        image = image.convert("RGB")
        if image.width > MAX_WIDTH:
            height = max(1, round(image.height * MAX_WIDTH / image.width))
            image = image.resize((MAX_WIDTH, height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        data = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}", *image.size
