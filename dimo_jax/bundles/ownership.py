"""What lies in the folder of a bundle: its names, its config.json, and what is none of it."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from dimo_jax.bundles import card, config_file
from dimo_jax.bundles.places import CONFIG_FILE, PARAMS_FILE
from dimo_jax.common import files
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath

TOKENIZER_FOLDER = "tokenizer"
VQVAE_FOLDER = "vqvae"  # where Meissonic's tokenizer lies beside its transformer
# Bundles that a bundle may hold, and files that it may carry.
SUB_BUNDLES, ATTACHMENTS = (TOKENIZER_FOLDER, "text_encoder"), ("merges.txt", "tokenizer.json")
KINDS = ("teacher", "generator", "classifier", "features", "detector", "clip", "tokenizer")


def read(path: AnyPath, name: str) -> bytes:
    """Read a file of a bundle.

    Raises:
        InputError: the bundle or the file is missing, or cannot be read.
    """
    if not path.is_dir():
        old = files.replaced(path)
        hint = f"; {old} is its complete previous version" if old.is_dir() else ""
        raise InputError(f"there is no bundle at {path}: it is not a folder{hint}")
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path / name} ({error.strerror or error}); a bundle has {CONFIG_FILE} "
            f"and {PARAMS_FILE}"
        ) from error


def read_config(path: AnyPath) -> dict[str, Any]:
    """Read config.json, with exactly the known fields, of their types.

    Raises:
        InputError: it is missing, or not a bundle's.
    """
    return config_file.read(read(path, CONFIG_FILE), path / CONFIG_FILE, KINDS)


def foreign(folder: AnyPath, written: Iterable[str] = ATTACHMENTS) -> str | None:
    """Names what a folder holds that is not a bundle's; see files.write_folder.

    Args:
        folder: of a bundle or of anything else.
        written: names that a save which broke off in an object store may have left, where
            config.json comes last.

    Returns:
        A name, or None for a bundle with its sub-bundles and attachments, and for an empty folder.
    """
    inside = sorted(x.name for x in folder.iterdir())
    if CONFIG_FILE in inside:
        try:
            attached = read_config(folder)["provenance"].get("attachments")
        except InputError:
            return f"a {CONFIG_FILE} that is no bundle's"
    elif inside and not files.is_remote(folder):
        return f"{inside[0]} and no {CONFIG_FILE} of a bundle"
    else:
        attached = dict.fromkeys(written)
    for name in inside:
        if name in SUB_BUNDLES and (folder / name).is_dir():
            if found := foreign(folder / name):
                return f"{name}/{found}"
        elif name == card.FILE and card.is_card(read(folder, name)):
            continue
        elif name not in (CONFIG_FILE, PARAMS_FILE) and not _is_attached(folder / name, attached):
            return name
    return None


def _is_attached(place: AnyPath, attached: Any) -> bool:
    """Return whether a file was saved with its bundle.

    A name in config.json alone may be a stranger's.
    """
    if not isinstance(attached, Mapping) or place.name not in attached or not place.is_file():
        return False
    expected = attached[place.name]
    return expected is None or hashlib.sha256(place.read_bytes()).hexdigest() == expected
