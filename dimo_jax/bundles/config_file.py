"""What the config.json of a bundle holds, and the check of it."""

from collections.abc import Iterable
from typing import Any

from dimo_jax.common import readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.shown import quoted, shown

FORMAT_VERSION = 1
_FIELDS = {
    "format_version": int,
    "kind": str,
    "model": dict,
    "sampler": (dict, type(None)),
    "tokenizer": (dict, type(None)),
    "provenance": dict,
    "params_sha256": str,
}


def read(data: bytes, where: AnyPath, kinds: Iterable[str]) -> dict[str, Any]:
    """Parse a config.json; it has exactly the known fields, of their types.

    Args:
        data: its content.
        where: its path, for messages.
        kinds: of bundles.

    Raises:
        InputError: it is something else; everything that is wrong with it is listed.
    """
    config = readers.as_object(readers.parse_json(data, str(where)), str(where))
    if config.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{where} has format_version {quoted(config.get('format_version'))}; this program "
            f"reads {FORMAT_VERSION}"
        )
    wrong = [f"unknown field {shown(name)}" for name in config if name not in _FIELDS]
    wrong += [f"missing field {name}" for name in _FIELDS if name not in config]
    wrong += [
        f"{name} is of type {type(config[name]).__name__}"
        for name, types in _FIELDS.items()
        if name in config and not isinstance(config[name], types)
    ]
    if not wrong and config["kind"] not in kinds:
        wrong = [f"kind is {quoted(config['kind'])}, not one of {', '.join(kinds)}"]
    if config.get("kind") == "generator" and config.get("sampler") is None:
        wrong.append("a generator needs a sampler")
    entry = config.get("tokenizer")
    if isinstance(entry, dict) and entry and set(entry) != {"config", "hash"}:
        wrong.append("tokenizer must hold config and hash")
    if wrong:
        raise InputError(f"{where} is not a bundle's: {'; '.join(wrong)}")
    return config
