r"""Run N processes of the program on this machine, as one run: what many hosts do, in small.

python -m launch.local_processes --processes=2 --cpu_devices=4 -- \
    --config=configs/digits.py --workdir=runs/two

SIGTERM and SIGINT go on to every process. When one fails the others are ended, and the exit status
is that of the first failure (128 + the signal's number for a signal).
"""

import argparse
import contextlib
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from launch.commands import COUNT, Parser, launch


def read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the flags on a command line; an InputError refuses them."""
    parser = Parser("launch.local_processes", __doc__)
    parser.flag("processes", "how many", COUNT, 2)
    parser.flag("cpu_devices", "each simulates so many devices on the CPU", COUNT)
    parser.switch("one_gpu_each", "process I sees GPU I only")
    parser.flag(
        "log_dir", "process I appends to process_I.log there; else to the terminal, with [I]"
    )
    parser.flag("port", "where process 0 listens (a free one)", COUNT)
    parser.flag("grace_s", "seconds from SIGTERM to SIGKILL once one has failed", COUNT, 30)
    parser.flag("python", "the interpreter", default=sys.executable)
    flags = parser.read(arguments)
    if flags.cpu_devices and flags.one_gpu_each:
        parser.error("--cpu_devices excludes --one_gpu_each")
    if not flags.port:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            flags.port = free.getsockname()[1]
    return flags


def command(flags: argparse.Namespace, number: int) -> list[str]:
    """Return the words of process `number`."""
    words = ["env"]
    if flags.cpu_devices:
        words += ["JAX_PLATFORMS=cpu", f"JAX_NUM_CPU_DEVICES={flags.cpu_devices}"]
    if flags.one_gpu_each:
        words += [f"CUDA_VISIBLE_DEVICES={number}"]
    words += [flags.python, "-m", flags.module, *flags.program]
    place = [f"--num_processes={flags.processes}", f"--process_id={number}"]
    return [*words, f"--coordinator=localhost:{flags.port}", *place]


def start(words: Sequence[str], log: Path | None) -> subprocess.Popen:
    """Start a process, with its output at the end of `log` or in a pipe."""
    # In a group of its own: else Ctrl-C at the terminal would reach it twice.
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "process_group": 0}
    if not log:
        return subprocess.Popen(words, stdout=subprocess.PIPE, **options)
    with log.open("ab") as file:
        return subprocess.Popen(words, stdout=file, **options)


def copy_lines(number: int, pipe: BinaryIO) -> None:
    """Print what process `number` writes, with [number] before each line."""
    with pipe:  # closed where this cannot print, so that the process does not wait for ever
        for line in pipe:
            sys.stdout.buffer.write(b"[%d] %s\n" % (number, line.removesuffix(b"\n")))
            sys.stdout.buffer.flush()


def wait_for(processes: Sequence[subprocess.Popen], grace_s: float) -> int:
    """Return the first exit status that is not 0, which ends the other processes; else 0."""
    alive, failure, deadline = dict(enumerate(processes)), 0, math.inf
    while alive:
        time.sleep(0.1)
        for number, process in list(alive.items()):
            if process.poll() is None:
                continue
            del alive[number]
            if process.returncode and not failure:
                failure = process.returncode if process.returncode > 0 else 128 - process.returncode
                note = f"process {number} ended with status {failure}; ending the others"
                print(note, file=sys.stderr, flush=True)
                deadline = time.monotonic() + grace_s
                for other in alive.values():
                    other.terminate()
        if time.monotonic() > deadline:
            for process in alive.values():
                process.kill()
    return failure


def main(arguments: Sequence[str]) -> None:
    """Run or print the processes; exit with the first status that is not 0."""
    flags = read_flags(arguments)
    logs = [Path(flags.log_dir or "", f"process_{i}.log") for i in range(flags.processes)]
    if flags.dry_run:
        print(f"mkdir -p {shlex.quote(flags.log_dir)}" if flags.log_dir else "# all at once:")
        for number, log in enumerate(logs):
            where = f" >>{shlex.quote(str(log))} 2>&1" if flags.log_dir else ""
            print(f"{shlex.join(command(flags, number))}{where} &")
        print("wait")
        return
    processes: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []

    def forward(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    if flags.log_dir:
        Path(flags.log_dir).mkdir(parents=True, exist_ok=True)
    try:
        for number, log in enumerate(logs):
            processes.append(start(command(flags, number), log if flags.log_dir else None))
            if pipe := processes[-1].stdout:
                readers.append(threading.Thread(target=copy_lines, args=(number, pipe)))
                readers[-1].start()
        status = wait_for(processes, flags.grace_s)
    finally:
        # What a process has left behind would hold its pipe open.
        for process in processes:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        for reader in readers:
            reader.join()
    raise SystemExit(status)


if __name__ == "__main__":
    launch(main)
