"""Read a launcher's flags; run its commands, or print them in a dry run."""

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import stop_printing

ROOT = Path(__file__).parent.parent


class Parser(argparse.ArgumentParser):
    """Read `[COMMAND] --flag=value ... -- the program's own flags`; refuse by an InputError."""

    def __init__(self, name: str, doc: str, commands: Sequence[str] = ()):
        words = "COMMAND --flag=value" if commands else "--flag=value"
        super().__init__(
            usage=f"python -m {name} {words} ... [-- the program's own flags]",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if commands:
            listed = ", ".join(commands)
            self.add_argument("command", choices=commands, metavar="COMMAND", help=listed)
        self.add_argument("--dry-run", "--dry_run", action="store_true", help="print, run nothing")
        self.flag("module", "what runs: python -m MODULE", default="dimo_jax.main")

    def flag(self, name: str, meaning: str, kind: Callable = str, default: Any = None) -> None:
        """Add --name=VALUE, which `kind` reads; a list as its default: it may be repeated."""
        many = {"action": "append"} if isinstance(default, list) else {}
        meaning += "; may be repeated" if many else "" if default is None else f" ({default})"
        self.add_argument(
            f"--{name}", type=kind, default=default, metavar="VALUE", help=meaning, **many
        )

    def switch(self, name: str, meaning: str) -> None:
        """Add --name, false where it is not given."""
        self.add_argument(f"--{name}", action="store_true", help=meaning)

    def require(self, flags: argparse.Namespace, *names: str) -> None:
        """Refuse the flags where one of `names` is missing or empty."""
        for name in names:
            if not getattr(flags, name):
                self.error(f"--{name} is missing; see --help")

    def error(self, message: str) -> NoReturn:
        """Refuse the command line in one sentence, without argparse's usage."""
        raise InputError(message)

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the flags, with what follows "--" as `program`."""
        end = arguments.index("--") if "--" in arguments else len(arguments)
        flags, unknown = self.parse_known_args(arguments[:end])
        if unknown:
            self.error(f"there is no flag {unknown[0]}; see --help (the program's own follow --)")
        flags.program = list(arguments[end + 1 :])
        if getattr(flags, "command", "run") in ("run", "start") and not flags.program:
            self.error(
                "nothing follows --; for example: -- --config=FILE --workdir=gs://BUCKET/RUN"
            )
        return flags


def matching(pattern: str, what: str, kind: Callable = str) -> Callable:
    """Return a reader of texts that are all of `pattern`, in words `what`, into a `kind`."""

    def read(text: str) -> Any:
        if not re.fullmatch(pattern, text, re.DOTALL):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return kind(text)

    return read


COUNT = matching("[1-9][0-9]*", "a whole number from 1", int)
COUNT_OR_0 = matching("[0-9]+", "a whole number from 0", int)


class Shell:
    """Run commands, or print them in a dry run; one that fails is a CalledProcessError."""

    def __init__(self, dry_run: bool = False):
        self.dry_run = dry_run

    def note(self, text: str) -> None:
        """Print a remark on stderr."""
        print(text, file=sys.stderr, flush=True)

    def run(self, words: Sequence[str], stdin: str | None = None) -> None:
        """Print a command, and run it; in a dry run `stdin` is printed as a here-document."""
        if self.dry_run:
            print(shlex.join(words) + (f" <<'END'\n{stdin}\nEND" if stdin else ""))
        else:
            self.note(shlex.join(words))
            subprocess.run(words, input=stdin, text=True, check=True)

    def read(self, words: Sequence[str], quiet: bool = False) -> str:
        """Return what a command prints, "" in a dry run; quiet: its stderr only if it fails."""
        if self.dry_run:
            self.run(words)
            return ""
        stderr = subprocess.PIPE if quiet else None
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=stderr, text=True)
        if done.returncode and done.stderr:
            self.note("\n".join(done.stderr.splitlines()[-3:]))
        done.check_returncode()
        return done.stdout.strip()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def launch(main: Callable[[list[str]], None]) -> NoReturn:
    """Call `main` with this process's arguments, and end as it does: bad input with 2."""
    try:
        try:
            main(sys.argv[1:])
        finally:
            sys.stdout.flush()
        status, text = 0, ""
    except InputError as error:
        status, text = 2, str(error)
    except BrokenPipeError:
        status, text = stop_printing(), ""
    except OSError as error:  # a program that is not installed, a folder that cannot be written
        status, text = 127, f"{error.filename}: {error.strerror}"
    except subprocess.CalledProcessError as error:
        status, text = error.returncode, f"{error.cmd[0]} ended with {error.returncode}"
    except KeyboardInterrupt:
        status, text = 130, "interrupted"
    if text:
        print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr)
    sys.exit(status)
