"""Folders that an evaluation writes into: its own files are replaced there, and nothing is removed.

What shows that files are its own: results.json, which is written before the pages made of it, has
rows with metrics; compare.html, which is written before compare.md, has the heading of all of them.
"""

from collections.abc import Iterable
from pathlib import Path

from dimo_jax.common import files, overlaps
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.evaluation.report import compare, page, samples_report, schema


def check(folder: AnyPath, inputs: Iterable[str | None] = ()) -> None:
    """Refuse a folder whose files an evaluation would replace without having written them.

    Args:
        folder: of the results; need not exist.
        inputs: files and folders that are read, tfds:... among them; None is passed over.

    Raises:
        InputError: results.json, results.md or report.html there is somebody else's, the folder is
            an input or lies in one, or it cannot be written.
    """
    if not _has_results(folder):
        _refuse(folder, (schema.FILE_NAME, samples_report.TABLE_FILE, page.FILE_NAME))
    files.check_writable(folder / schema.FILE_NAME)
    given = [x for x in inputs if x and not x.startswith("tfds:")]
    overlaps.refuse(folder, given, may_hold=True)


def check_comparison(folder: Path) -> None:
    """Refuse a folder whose compare.html or compare.md is somebody else's.

    Raises:
        InputError: that, or it cannot be written there.
    """
    page_file = folder / compare.HTML_NAME
    if not (page_file.is_file() and compare.KICKER.encode() in page_file.read_bytes()):
        _refuse(folder, (compare.HTML_NAME, compare.MARKDOWN_NAME))
    files.check_writable(page_file)


def hashes_of(folder: AnyPath) -> dict[str, str]:
    """Return what a report that is there already was made of; empty if none can be read."""
    try:
        return dict(schema.read(folder).hashes)
    except InputError:
        return {}


def _has_results(folder: AnyPath) -> bool:
    path = folder / schema.FILE_NAME
    try:
        return path.is_file() and bool(schema.read(path).rows)
    except InputError:
        return False


def _refuse(folder: AnyPath, names: Iterable[str]) -> None:
    for name in names:
        if (folder / name).exists():
            raise InputError(
                f"{folder} holds a {name} that no evaluation wrote, and would replace; name "
                "another --output"
            )
