"""Processes that are forked before any JAX backend exists, so that imports are paid for once."""

import os
import sys
from collections.abc import Callable
from pathlib import Path


def fork(command: Callable[[], object], output: Path, mode: int = os.O_TRUNC) -> int:
    """Run a command, which ends its process, in a process of its own; return its id.

    Args:
        command: what runs there.
        output: the file of its stdout and stderr.
        mode: os.O_TRUNC for a new file, os.O_APPEND to go on with one.
    """
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | mode)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        command()
    return pid
