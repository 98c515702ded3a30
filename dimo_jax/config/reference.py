"""A config for people: every field with its meaning, what may stand there, and what differs.

python -m dimo_jax.config.reference > docs/config.md
"""

from collections.abc import Mapping
from typing import Any

from dimo_jax.common.fields import Field
from dimo_jax.common.shown import printable
from dimo_jax.config import fields_of, flat, sizes
from dimo_jax.config.defaults import FIELDS

_COLUMN = 52  # where a meaning begins


def as_text(config: Mapping[str, Any]) -> str:
    """Return every field of a config, one a line; those that differ from the default begin with *.

    Args:
        config: plain dicts; fields that do not exist are shown as such.
    """
    known, found = fields_of(config), flat(config)
    order = [path for path in known if path in found] + [x for x in found if x not in known]
    lines = ["# --config.NAME=VALUE changes a field; * differs from the default"]
    for path in order:
        left = f"{printable(path)} = {printable(repr(found[path]))}"
        field = known.get(path)
        if field is None:
            lines.append(f"* {left.ljust(_COLUMN)}  # there is no such field")
            continue
        # Without a default of its own it is one that this config chose to have.
        changed = field.default is None or list_as_tuple(found[path]) != field.default
        notes = [field.about, field.rule.words]
        if changed and field.default is not None:
            notes.append(f"default {field.default!r}")
        lines.append(f"{'*' if changed else ' '} {left.ljust(_COLUMN)}  # {'; '.join(notes)}")
    return "\n".join(lines)


def list_as_tuple(value: Any) -> Any:
    """Return a value with tuples for lists, as the defaults have them."""
    if isinstance(value, list | tuple):
        return tuple(list_as_tuple(entry) for entry in value)
    return value


def as_markdown() -> str:
    """Return all fields that there are, a table for each section."""
    blocks = [
        "# Fields of a config",
        "Made by `python -m dimo_jax.config.reference > docs/config.md` from "
        "dimo_jax/config/defaults.py and "
        "dimo_jax/config/sizes.py. On the command line a field is `--config.section.field=value`; "
        "`--print_config` shows the fields of a config with what differs from the default.",
        "## Of the run",
        _table({name: x for name, x in FIELDS.items() if isinstance(x, Field)}),
    ]
    for name, section in FIELDS.items():
        if not isinstance(section, Field):
            blocks += [f"## {name}", _table(flat(section, f"{name}."))]
    blocks.append("## Sizes that depend on a name")
    blocks.append("Where a size has no default here it is that network's own.")
    for section, names in (("model", sizes.MODEL_FIELDS), ("tokenizer", sizes.TOKENIZER_FIELDS)):
        for name, fields in names.items():
            blocks += [f"### {section}.name={name}", _table(flat(fields, f"{section}."))]
    blocks += [
        "### text_encoder, with config.teacher.random",
        _table(flat(sizes.TEXT_ENCODER_FIELDS, "text_encoder.")),
    ]
    return "\n\n".join(blocks)


def _table(fields: Mapping[str, Field]) -> str:
    rows = ["| field | default | must be | meaning |", "| --- | --- | --- | --- |"]
    for path, field in fields.items():
        default = "" if field.default is None else f"`{field.default!r}`"
        cells = (f"`{path}`", default, field.rule.words, field.about)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(as_markdown())
