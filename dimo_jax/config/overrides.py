"""Overrides of a config on the command line: --config.section.field=value."""

import difflib
import itertools
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from dimo_jax.common.fields import written
from dimo_jax.config import fields_of


def unknown_fields(flag_values: flags.FlagValues) -> str:
    """Return one sentence about overrides that name no field (--config.lrr=1), or ""."""
    complaints = []
    for name, config in _config_files(flag_values).items():
        known = _field_names(config)
        for argument in sys.argv[1:]:
            override = re.match(rf"--?(?:no)?{re.escape(name)}\.([^=]+)", argument)
            if not override or (field := re.sub(r"\[.*", "", override[1])) in known:
                continue
            nearest = _nearest(field, known)
            shown = ", ".join(f"{name}.{x}" for x in nearest)
            hint = f"nearest: {shown}" if nearest else "no field is similar"
            complaints.append(f"there is no field {name}.{field}; {hint}")
    return "; ".join(complaints)


def wrong_value(flag_values: flags.FlagValues, message: str) -> str:
    """Return one sentence about the override that a parser's message is about.

    Empty if there is none.

    Args:
        flag_values: the command's own.
        message: of the error, which quotes the flag with its value.
    """
    for name, config in _config_files(flag_values).items():
        known = fields_of(config)
        for argument in sys.argv[1:]:
            override = re.match(
                rf"--?{re.escape(name)}\.([^=\[]+)(\[.*?\])?=(.*)", argument, re.DOTALL
            )
            if not override:
                continue
            path, index, value = override.groups()
            if index and path in known:  # a tuple, of which ml_collections changes no entry
                return (
                    f"{name}.{path}{index}: one entry of a field cannot be given; give all of "
                    f"{name}.{path}, {known[path].rule.words}"
                )
            if f"--{name}.{path}={value}" not in message:
                continue
            if path in known:
                return f"{name}.{path} is {written(value)}; it must be {known[path].rule.words}"
            inside = [x.removeprefix(f"{path}.") for x in known if x.startswith(f"{path}.")]
            if inside:
                return (
                    f"{name}.{path} is a section; give one of its fields, e.g. "
                    f"--{name}.{path}.{inside[0]}=..."
                )
    return ""


def _nearest(field: str, known: Sequence[str]) -> list[str]:
    """Return the fields that may have been meant, the likeliest first."""
    nearest = difflib.get_close_matches(field, known, n=3, cutoff=0.6)
    section, _, short = field.rpartition(".")
    # A field without its section, or in another one, is not close as a string.
    last_names = {path: path.rpartition(".")[2] for path in known}
    near = difflib.get_close_matches(short, last_names.values(), cutoff=0.8)
    nearest += [path for path, last in last_names.items() if last in near and path not in nearest]
    if near:
        return nearest
    meant = [
        path
        for path, last in last_names.items()
        if short in last.split("_") or _abbreviates(short, last.split("_"))
    ]
    meant = [path for path in meant if path.startswith(f"{section}.")] or meant
    # Of a field in a section other neighbours are only like the section's name.
    return meant if meant and section else meant + [x for x in nearest if x not in meant]


def _abbreviates(short: str, words: Sequence[str]) -> bool:
    """Return whether a text is made of the beginnings of all words, as lr of learning_rate."""
    if not words:
        return not short
    short = short.removeprefix("_")
    begun = (n for n in range(1, len(words[0]) + 1) if short[:n] == words[0][:n] and short[n - 1 :])
    return any(_abbreviates(short[n:], words[1:]) for n in begun)


def _config_files(flag_values: flags.FlagValues) -> dict[str, Any]:
    """Return {flag: config object} of the command line, without the overrides."""
    configs = {}
    pattern = re.compile(r"--?(\w+)(?:=(.*))?$", re.DOTALL)
    for argument, following in itertools.zip_longest(sys.argv[1:], sys.argv[2:], fillvalue=""):
        match = pattern.match(argument)
        if not match or match[1] not in flag_values:
            continue
        try:
            value: Any = flag_values[match[1]].parser.parse(match[2] or following)
            if callable(getattr(value, "to_dict", None)):
                configs[match[1]] = value.to_dict()
        except Exception:  # the file's own error is the one to report, and it is at hand
            continue
    return configs


def _field_names(config: dict[str, Any]) -> list[str]:
    names = []
    for key, value in config.items():
        names.append(key)
        if isinstance(value, dict):
            names += [f"{key}.{inner}" for inner in _field_names(value)]
    return names
