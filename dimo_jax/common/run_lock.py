"""One process at a time for a folder: a file says which one, and shows that it is still there.

The holder writes the file anew every few seconds, from a thread. Whoever finds one asks the system
where that process is of the same machine; elsewhere it watches whether the file changes, since the
clocks of two machines are never compared. All that the thread does may take as long as a slow
store likes: the run goes on, and its end does not wait.
"""

import contextlib
import dataclasses
import datetime
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator

from dimo_jax.common import files, object_store, processes, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.shown import shown

FILE_NAME = ".run.lock"
BEAT_SECONDS = 10.0
# Without a change for so long, a holder on another machine is gone; what this process has not been
# able to confirm for the shorter time, it confirms before it writes.
LEFT_SECONDS, SURE_SECONDS = 45.0, 30.0
# Two that take over at once: the one whose file is there after this time has it.
SETTLE_SECONDS = 1.0
_LOOK_SECONDS = 1.0
# How long the end of a run waits for the file to be removed, and how often it is tried to confirm.
RELEASE_SECONDS, _TRIES = 5.0, 3
_MAX_BYTES, _THREAD = 4096, "run lock"


@dataclasses.dataclass(frozen=True)
class _Holder:
    process: processes.Process
    token: str
    since: str

    def __str__(self) -> str:
        found = self.process
        return f"process {found.pid} on {shown(found.host)} (since {shown(self.since)})"


def _clock() -> float:
    """Seconds that also pass while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _parse(data: bytes) -> _Holder | None:
    """Read what a lock file says; None where it says nothing."""
    try:
        found = readers.as_object(readers.parse_json(data, "lock"), "lock")
        process = processes.Process(**{x: kind(found[x]) for x, kind in _FIELDS.items()})
        return _Holder(process, str(found["token"]), str(found["since"]))
    except (InputError, KeyError, TypeError, ValueError):
        return None


_FIELDS = {"host": str, "boot": str, "namespace": str, "pid": int, "start": int}


class _Lock:
    """The file of one folder, and the thread that writes it."""

    def __init__(self, path: AnyPath, held: str):
        self._path, self._held = path, held
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._own = _Holder(processes.this(), secrets.token_hex(16), now)
        self._beat = 0
        self._confirmed = 0.0
        self._lost: str | None = None
        self._failures: list[Exception] = []
        self._ending = False
        self._made: list[AnyPath] = []
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=_THREAD, daemon=True)

    def acquire(self, note: Callable[[str], None]) -> None:
        """Take the folder, or refuse with who has it."""
        if not files.is_remote(self._path) and self._path.is_symlink():
            raise InputError(f"{self._path} is a link, expected a file of this program; remove it")
        if not files.is_remote(self._path):
            self._made = [x for x in self._path.parents if not x.exists()]
        began = changed = _clock()
        seen, has_changed = None, False
        while not self._create():
            data = self._read()
            if data is None:
                continue
            holder, now = _parse(data), _clock()
            lives = None if holder is None else processes.lives(holder.process)
            if lives:
                raise self._refusal(holder)
            if data != seen:
                if seen is None and lives is None:
                    note(
                        f"{self._held} is held by {holder or 'an unknown process'}: waits up to "
                        f"{LEFT_SECONDS:.0f} s to see whether that has ended"
                    )
                has_changed, changed, seen = seen is not None, now, data
            if lives is False or now - changed >= LEFT_SECONDS:
                if self._take_over(data):
                    break
            elif has_changed and now - began >= LEFT_SECONDS:
                raise self._refusal(holder)
            else:
                time.sleep(_LOOK_SECONDS)
        self._thread.start()

    def _refusal(self, holder: _Holder | None) -> InputError:
        stop = "stop it" if holder is None else f"stop it (kill {holder.process.pid} there)"
        who = holder or "an unknown process"
        return InputError(
            f"{self._held} is in use by {who}; wait for its end, {stop}, or give another place"
        )

    def check(self) -> None:
        """Refuse to write once the folder is, or may be, another one's."""
        if threading.current_thread().name == _THREAD:  # of this lock or of another
            return
        while self._lost is None and _clock() - self._confirmed > SURE_SECONDS:
            if len(self._failures) >= _TRIES:
                raise InputError(
                    f"cannot tell whether {self._held} is still this process's "
                    f"({shown(self._failures[-1])}); once that is mended, the same command goes on"
                )
            self._wake.set()
            time.sleep(0.05)
        if self._lost is not None:
            raise InputError(
                f"{self._held} was taken over by {self._lost}, as this process had not been heard "
                f"of for {LEFT_SECONDS:.0f} s; it stops, and has written nothing since"
            )

    def release(self) -> None:
        """Give the folder back; where the store does not answer, the file stays and grows old."""
        self._ending = True
        self._wake.set()
        self._thread.join(RELEASE_SECONDS)

    def _keep(self) -> None:
        while True:
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()
            try:
                if self._ending:
                    self._remove()
                    return
                self._confirm()
                self._failures.clear()
            except Exception as error:  # the store's own, of any kind: tried again
                self._failures.append(error)
                if self._ending:
                    return

    def _confirm(self) -> None:
        """Write the file anew, if it is still this process's."""
        if self._lost is not None:
            return
        began, data = _clock(), self._read()
        if data is None:
            # Somebody removed it, which does not end a run.
            if self._create():
                return
            data = self._read() or b""
        holder = _parse(data)
        if holder is None or holder.token != self._own.token:
            self._lost = str(holder or "an unknown process")
            return
        self._write()
        self._confirmed = began

    def _take_over(self, seen: bytes) -> bool:
        """Put this process in the place of one that is gone; whether that succeeded."""
        if self._read() != seen:
            return False
        began = _clock()
        self._write()
        time.sleep(SETTLE_SECONDS)
        holder = _parse(self._read() or b"")
        self._confirmed = began
        return holder is not None and holder.token == self._own.token

    def _create(self) -> bool:
        began = _clock()
        created = files.create_file(self._path, self._content())
        if created:
            self._confirmed = began
        return created

    def _content(self) -> bytes:
        self._beat += 1
        process = dataclasses.asdict(self._own.process)
        record = {"token": self._own.token, "since": self._own.since, "beat": self._beat}
        return json.dumps({**process, **record}, indent=1).encode()

    def _write(self) -> None:
        files.write_file(self._path, self._content())

    def _read(self) -> bytes | None:
        return object_store.read_start(self._path, _MAX_BYTES)

    def _remove(self) -> None:
        holder = _parse(self._read() or b"")
        if holder is not None and holder.token == self._own.token:
            self._path.unlink(missing_ok=True)
        # A start that was refused after all leaves nothing.
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def hold(path: AnyPath, held: str, note: Callable[[str], None] = _note) -> Iterator[None]:
    """Hold a folder while the block runs: no other process that asks gets it.

    Before anything is written through common.files, this process then makes sure that it still
    has the folder; see files.guards.

    Args:
        path: the lock's file; its folder is created.
        held: what is held, as the user typed it: "--workdir=runs/x".
        note: takes a line where it has to wait.

    Raises:
        InputError: another process has it, or the file cannot be written; later, in the block,
            that another one has taken it over.
    """
    lock = _Lock(path, held)
    lock.acquire(note)
    files.guards.append(lock.check)
    try:
        yield
    finally:
        files.guards.remove(lock.check)
        lock.release()
