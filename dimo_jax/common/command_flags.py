"""The flags of one command: in groups, some of them required, with a --help that is read once."""

import difflib
import re
import textwrap
from collections.abc import Iterator, Sequence

from absl import flags

_LEFT, _WIDTH = 24, 100


class Flags(flags.FlagValues):
    """A command's own flags; absl's global ones would clash, since commands share names.

    Define them with absl, `flag_values=` this object, the ones of everyday first, and call `group`
    before the first of each group.
    """

    def __init__(self):
        super().__init__()
        # absl takes an attribute for a flag, and keeps its own in __dict__ too.
        self.__dict__["_groups"] = {}
        self.__dict__["_required"] = ()
        self.__dict__["_fewer"] = {}

    def group(self, title: str) -> None:
        """Begin a group of flags, as --help shows them."""
        self._groups[title] = len(self)

    def members(self, title: str) -> list[str]:
        """Return the flags of a group."""
        starts = [*self._groups.values(), len(self)]
        at = list(self._groups).index(title)
        return list(self)[starts[at] : starts[at + 1]]

    def require(self, *names: str | tuple[str, ...], **fewer: Sequence[str]) -> None:
        """Make flags required.

        Args:
            names: of the flags; of a tuple of them one is required.
            fewer: {a switch: the flags that are required where it is on}.
        """
        self.__dict__["_required"], self.__dict__["_fewer"] = names, fewer

    def missing(self) -> list[str]:
        """Return the required flags that are not given, as --name."""
        fewer = (names for switch, names in self._fewer.items() if self[switch].value)
        required = [(x,) if isinstance(x, str) else x for x in next(fewer, self._required)]
        missing = [x for x in required if all(self[name].value is None for name in x)]
        return [" or ".join(f"--{name}" for name in x) for x in missing]

    def empty(self) -> list[str]:
        """Return the flags that are given without a value and need one, as --name."""
        # A field of a config may be empty, as a flag may that has a default: --negative_prompt=.
        own = [name for name in self if "." not in name]
        return [f"--{x}" for x in own if self[x].value == "" and self[x].default is None]

    def nearest(self, name: str) -> list[str]:
        """Return the flags that an unknown name may mean, as --name, best first."""
        # No flag's spelling has a dash, and others' habits do.
        plain = name.replace("-", "_")
        known = [x for flag in self for x in self._spellings(flag)]
        near = difflib.get_close_matches(plain, known, n=3, cutoff=0.6)
        return [f"--{x}" for x in near]

    def describe(self) -> str:
        """Return all flags with their meaning, group by group, in the order of definition."""
        starts = {index: title for title, index in self._groups.items()}
        blocks = []
        # A snapshot: a parsed config adds a flag for each override.
        for index, name in enumerate(list(self)):
            if index in starts:
                blocks.append(f"\n{starts[index]}:")
            blocks.append(self._describe_one(name))
        return "\n".join(blocks)

    def _spellings(self, name: str) -> Iterator[str]:
        yield name
        if self[name].boolean:
            yield f"no{name}"

    def _describe_one(self, name: str) -> str:
        flag = self[name]
        choices = getattr(flag.parser, "enum_values", None)
        # absl puts the choices before, and a note on repeating behind.
        meaning = re.sub(r"^<[^>]*>: |;\s+repeat this option .*", "", flag.help)
        notes = [meaning]
        if name in self._required:
            notes.append("required")
        if choices:
            notes.append(f"one of {', '.join(choices)}")
        if isinstance(flag, flags.MultiFlag):
            notes.append("may be repeated")
        if flag.default not in (None, [], "", False):
            notes.append(f"default: {str(flag.default_as_str).strip(chr(39))}")
        left = f"  --{'[no]' if flag.boolean else ''}{name}"
        # A name that is longer than its column gets a line of its own.
        head = f"{left}\n{' ' * _LEFT}" if len(left) > _LEFT - 2 else left.ljust(_LEFT)
        indent = " " * _LEFT
        right = textwrap.fill(
            "; ".join(notes),
            _WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        return head + right[_LEFT:]
