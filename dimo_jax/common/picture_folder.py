"""Which files of a folder, or members of an archive, are pictures; what is not is named."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dimo_jax.common import pictures, resumable
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import listed, shown

METADATA = "metadata.jsonl"  # of Hugging Face's imagefolder
# What dimo_jax.sample and others put beside pictures.
_KNOWN = (resumable.SETTINGS_FILE, "captions.txt", METADATA)


def find(folder: Path, recursive: bool, follow_links: bool = True) -> tuple[list[str], list[str]]:
    """Find the pictures of a folder by their names, through links too.

    Args:
        folder: the folder.
        recursive: look into its sub-folders.
        follow_links: those out of the folder too.

    Returns:
        (paths relative to the folder, what was skipped in sentences). Names with a dot in front
        are neither: macOS puts such files beside every other, and files in writing have them.

    Raises:
        InputError: a folder cannot be read, a link leads nowhere or, unless it may, out of the
            folder, or there are no pictures.
    """
    inside = None if follow_links else os.path.realpath(folder)
    found, others, deeper, broken = [], [], [], []
    try:
        for entry, name in _walk(folder, "", recursive, inside):
            if entry.is_dir():
                deeper.append(name)
            elif not is_picture(name):
                others.append(name)
            elif entry.is_file():
                found.append(name)
            else:
                (broken if entry.is_symlink() else others).append(name)
    except OSError as error:
        raise InputError(f"cannot read the folder {error.filename or folder}: {error}") from error
    except RecursionError as error:
        raise InputError(
            f"{folder} has folders in folders, too many inside each other to look into; give one "
            "of those that have pictures"
        ) from error
    if broken:
        raise InputError(
            f"links in {folder} lead nowhere: {listed(sorted(broken))}; bring their pictures back, "
            "or remove them"
        )
    if not found:
        inside = None if recursive else next(_pictures_below(folder), None)
        hint = f"; {folder / inside} is deeper, give --recursive" if inside else ""
        raise InputError(f"the folder {folder} has no pictures ({names_of_suffixes()}){hint}")
    return found, skipped(str(folder), others, deeper)


def _walk(
    folder: Path,
    below: str,
    recursive: bool,
    inside: str | None,
    above: tuple[tuple[int, int], ...] = (),
) -> Iterator[tuple[os.DirEntry, str]]:
    """Entries with their paths; of sub-folders that are gone into, what is in them.

    Links that lead out of `inside` are refused, not followed.
    """
    facts = os.stat(folder / below)
    here = (facts.st_dev, facts.st_ino)
    if here in above:  # a link to a folder that it lies in
        return
    with os.scandir(folder / below) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = os.path.join(below, entry.name)
            if inside is not None and entry.is_symlink():
                _refuse_outside(entry, name, inside)
            if recursive and entry.is_dir():
                yield from _walk(folder, name, True, inside, (*above, here))
            else:
                yield entry, name


def _refuse_outside(link: os.DirEntry, name: str, inside: str) -> None:
    target = os.path.realpath(link.path)
    if os.path.commonpath((inside, target)) != inside:
        raise InputError(
            f"{shown(name)} is a link out of {inside}, to {shown(target)}; copy what it leads to, "
            "or give --follow_links if it may be read"
        )


def _pictures_below(folder: Path) -> Iterator[str]:
    return (name for _, name in _walk(folder, "", True, None) if is_picture(name))


def is_picture(name: str) -> bool:
    """Return whether a file is one by its name."""
    path = Path(name)
    return path.suffix.lower() in pictures.SUFFIXES and not path.name.startswith(".")


def names_of_suffixes() -> str:
    """Return the suffixes of pictures, for messages."""
    return " ".join(pictures.SUFFIXES)


def skipped(where: str, others: Sequence[str], deeper: Sequence[str] = ()) -> list[str]:
    """Say what is no picture in a folder or an archive.

    Args:
        where: its name.
        others: files.
        deeper: sub-folders that were not looked into.
    """
    notes = []
    if others := sorted(name for name in others if name not in _KNOWN):
        notes.append(
            f"skipped in {where} ({len(others)}), no pictures by their names: {listed(others)}"
        )
    if deeper:
        notes.append(
            f"sub-folders of {where} not looked into without --recursive ({len(deeper)}): "
            f"{listed(sorted(deeper))}"
        )
    return notes
