"""Reads damaged and hostile files of every format that the package accepts.

    python benchmarks/fuzz.py --count=10000 --seed=0
    python benchmarks/fuzz.py --format=npz_reference --seed=0 --case=17

A good file of each format is mutated and read, in this process, by the function that the commands
read it with. The outcome must be success or an InputError: any other exception is listed, as is a
case that takes longer than --seconds or more than --megabytes of memory, starts a program, writes
outside its own folder, or prints control characters. A case is a function of seed, format and
number alone; --case repeats one and prints its traceback. The exit status is 1 if there is anything
to list.
"""

import argparse
import collections
import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
from fuzz_format import Format  # noqa: E402
from fuzz_formats import FORMATS  # noqa: E402
from fuzz_mutations import mutated  # noqa: E402

from dimo_jax.common.errors import InputError  # noqa: E402
from dimo_jax.common.shown import printable  # noqa: E402

_PATIENCE = 6  # so many times the seconds of a case, by the clock
_MAX_SENTENCE = 4000  # characters; a difference of trees lists every leaf
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")


class _TooLong(BaseException):
    """Raised by the alarm; no reader may catch it."""


class Watch:
    """Notes what a case does beside reading: programs started, files written elsewhere.

    Args:
        folder: where it may write.
    """

    def __init__(self, folder: Path):
        self._folder, self.found, self.active = str(folder), [], False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        if event in _PROGRAMS:
            self.found.append(f"started a program: {event}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            place, flags = os.fsdecode(arguments[0]), arguments[2] or 0
            if flags & (os.O_WRONLY | os.O_RDWR) and not place.startswith((self._folder, "/dev/")):
                self.found.append(f"wrote {place}")


def run_case(
    form: Format, data: bytes, folder: Path, watch: Watch, seconds: float, megabytes: int
) -> tuple[str, str]:
    """Read one file.

    Args:
        form: its format.
        data: its content.
        folder: where the format's other files lie.
        watch: of the process.
        seconds: that it may take.
        megabytes: that it may add to the process's peak.

    Returns:
        ("read" | "sentence" | "other", what happened).
    """
    path = folder / form.file
    path.write_bytes(data)
    printed = io.StringIO()
    # Of the processor, which does not depend on what else the machine does.
    before, began, outcome = _peak_bytes(), time.process_time(), ("read", "")
    watch.found.clear()
    watch.active = True
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE * seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
                form.read(path)
    except InputError as error:
        outcome = _sentence(error)
    except _TooLong:
        outcome = ("other", f"took more than {_PATIENCE * seconds:.3g} s")
    except BaseException as error:
        outcome = ("other", f"{type(error).__name__}: {error}"[:300])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watch.active = False
    more, took = (_peak_bytes() - before) >> 20, time.process_time() - began
    if more > megabytes:
        outcome = ("other", f"took {more} MB more")
    elif took > seconds:
        outcome = ("other", f"took {took:.1f} s")
    elif not printed.getvalue().replace("\n", "").isprintable():
        outcome = ("other", f"printed {printed.getvalue()!r}"[:300])
    return ("other", watch.found[0]) if watch.found else outcome


def _sentence(error: InputError) -> tuple[str, str]:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return "other", f"asked for too much memory: {error}"[:300]
        cause = cause.__cause__
    text = printable(" ".join(str(error).split()))
    if not text or len(text) > _MAX_SENTENCE:
        return "other", f"a message of {len(text)} characters: {text[:200]}"
    return "sentence", text


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _limit_memory(megabytes: int) -> None:
    """Leave the process that much address space beside what it has."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), resource.RLIM_INFINITY))


def case_of(name: str, seed: int, number: int, data: bytes) -> bytes:
    """Return the file of a case."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    form = FORMATS[name]
    return form.repack(data, rng) if form.repack and rng.random() < 0.5 else mutated(data, rng)


def fuzz(
    names: list[str],
    count: int,
    seed: int = 0,
    *,
    case: int | None = None,
    seconds: float = 5.0,
    megabytes: int = 256,
    say=print,
) -> dict[str, int]:
    """Run `count` cases, shared evenly by the formats.

    Args:
        names: keys of FORMATS.
        count: cases in all.
        seed: of the mutations.
        case: this one alone, of each format, with its traceback.
        seconds: for a case.
        megabytes: likewise.
        say: takes each line.

    Returns:
        {"read", "sentence", "other"} -> number of cases.
    """
    totals: collections.Counter = collections.Counter(read=0, sentence=0, other=0)
    with tempfile.TemporaryDirectory() as place:
        watch = Watch(Path(place))
        for i, name in enumerate(names):
            form, folder = FORMATS[name], Path(place) / name
            folder.mkdir()
            with contextlib.redirect_stderr(io.StringIO()):
                form.make(folder)
                data = (folder / form.file).read_bytes()
                form.read(folder / form.file)  # the good file: it imports what is needed
            num = count // len(names) + (i < count % len(names))
            for number in range(num) if case is None else [case]:
                content = case_of(name, seed, number, data)
                if case is not None:
                    (folder / form.file).write_bytes(content)
                    _show(form, folder)
                kind, what = run_case(form, content, folder, watch, seconds, megabytes)
                totals[kind] += 1
                if kind == "other" or case is not None:
                    say(f"--format={name} --seed={seed} --case={number}: {kind}, {what}")
    return dict(totals)


def _show(form: Format, folder: Path) -> None:
    try:
        form.read(folder / form.file)
    except Exception:
        traceback.print_exc()


def main() -> None:
    """Print what is not as it should be, and one line for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="mutations in all")
    parser.add_argument("--format", action="append", choices=list(FORMATS), help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one of each format, with its traceback")
    parser.add_argument("--seconds", type=float, default=5.0, help="for a case")
    parser.add_argument("--megabytes", type=int, default=256, help="for a case")
    flags = parser.parse_args()
    signal.signal(signal.SIGALRM, too_long)
    names, began = flags.format or list(FORMATS), time.monotonic()
    _limit_memory(4096)
    totals = fuzz(
        names,
        flags.count,
        flags.seed,
        case=flags.case,
        seconds=flags.seconds,
        megabytes=flags.megabytes,
    )
    print(
        f"{sum(totals.values()):,} mutations of {len(names)} formats, seed {flags.seed}: "
        f"{totals['read']:,} read, {totals['sentence']:,} one sentence, {totals['other']:,} others "
        f"({time.monotonic() - began:.0f} s)"
    )
    raise SystemExit(1 if totals["other"] else 0)


def too_long(*_: object) -> None:
    """End a case whose time is over; the handler of SIGALRM."""
    raise _TooLong


if __name__ == "__main__":
    main()
