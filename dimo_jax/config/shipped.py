"""Configs by name: --config=digits:patch is the package's configs/digits.py with an argument."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import dimo_jax
from dimo_jax.common.errors import InputError

FOLDER = Path(dimo_jax.__file__).parent / "configs"
# A name, or its place in a checkout, and the argument of get_config.
_NAME = re.compile(
    r"(?P<flag>--?config=)?(?P<file>(?:configs/)?(?P<name>\w+)(?P<suffix>\.py)?)(?P<argument>:.*)?",
    re.DOTALL,
)


def names() -> list[str]:
    """Return the names of all configs of the package."""
    return sorted(x.stem for x in FOLDER.glob("*.py") if x.stem != "__init__")


def with_paths(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the path in place of a config's name.

    configs/NAME.py means the package's own too, where there is no such file: the commands of the
    documentation work outside a checkout.

    Args:
        arguments: of a command with --config, written --config=NAME or --config NAME.

    Raises:
        InputError: there is no config of that name, nor a file.
    """
    found = list(arguments)
    for i, argument in enumerate(found):
        follows = i > 0 and found[i - 1] in ("--config", "-config")
        match = _NAME.fullmatch(argument)
        if match is None or not (match["flag"] or follows) or os.path.exists(match["file"]):
            continue
        name, known = match["name"], names()
        if name not in known:
            if match["file"] != name:
                continue  # a file, of which its loader says that it is not there
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; nearest: {near[0]}" if near else ""
            raise InputError(
                f"there is no config {name!r}{hint}; give a file, or one of {', '.join(known)}"
            )
        found[i] = f"{match['flag'] or ''}{FOLDER / name}.py{match['argument'] or ''}"
    return found
