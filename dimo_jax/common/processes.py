"""Which process this is, on which machine, and whether another one of that machine still lives."""

import dataclasses
import os
import socket
from pathlib import Path

# Of /proc/PID/stat, counted behind the name in brackets: the state, and the start in clock ticks
# since the machine started. A process's number serves again; together with its start it does not.
_STATE, _START = 0, 19


@dataclasses.dataclass(frozen=True)
class Process:
    """A process, in words that mean the same on another machine.

    Attributes:
        host: name of its machine, which two containers may share.
        boot: of the start of that machine's kernel; "" where there is none to ask.
        namespace: in which its number counts: another container has another one.
        pid: its number.
        start: in clock ticks since that start; 0 where there is none to ask.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    start: int


def this() -> Process:
    """Return this process."""
    pid = os.getpid()
    _, start = _stat(pid) or ("", 0)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        boot = namespace = ""
    return Process(socket.gethostname(), boot, namespace, pid, start)


def lives(other: Process) -> bool | None:
    """Return whether a process still lives, or None where this one cannot tell.

    Args:
        other: of any machine, from `this` there.
    """
    own = this()
    here = (own.host, own.boot, own.namespace)
    if not (own.boot and other.start) or here != (other.host, other.boot, other.namespace):
        return None
    found = _stat(other.pid)
    if found is None:
        try:
            os.kill(other.pid, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):
            pass
        return None  # of another user, where /proc shows only one's own
    state, start = found
    # A zombie has ended; its parent has not waited for it.
    return start == other.start and state not in "ZX"


def _stat(pid: int) -> tuple[str, int] | None:
    """(state, start) of a process; None where it cannot be seen."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[_STATE], int(fields[_START])
