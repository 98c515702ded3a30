"""Keeps freed memory in the process, so that a step on a CPU does not fault it in again."""

import ctypes
import sys

# Numbers of mallopt's parameters in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep large freed blocks instead of returning them at once.

    XLA on the CPU allocates and frees its temporaries in every step. By default glibc maps and
    unmaps each large block, and the kernel clears every page anew (`perf stat -e minor-faults`, or
    ru_minflt of resource.getrusage, shows them). Call it before JAX starts its threads: an arena
    that exists keeps its own rules.

    Returns:
        Whether malloc took it; False where there is no glibc, and nothing is lost.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # -1 trims never; the greatest number, 2 GiB, is less than the temporaries of a large network.
    wanted = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 1 << 26))
    return all(mallopt(name, value) == 1 for name, value in wanted)
