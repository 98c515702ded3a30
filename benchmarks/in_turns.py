"""Programs timed in turns in one process: what else the machine does falls on all of them."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dimo_jax.common import files
from dimo_jax.profiling import timing

# By the clock, and the processor's time over all threads, which other programs change less.
_CLOCKS = {"seconds": time.perf_counter, "processor_seconds": time.process_time}
Seconds = dict[str, dict[str, list[float]]]


def measure(programs: Mapping[str, Callable[[], Any]], repetitions: int, calls: int = 1) -> Seconds:
    """Run each program in every round, after a round that does not count.

    Args:
        programs: by name.
        repetitions: rounds.
        calls: of each program in a round.

    Returns:
        {clock: {name: seconds of a call, for each round}}.
    """
    seconds: Seconds = {clock: {name: [] for name in programs} for clock in _CLOCKS}
    for number in range(repetitions + 1):
        for name, program in programs.items():
            time.sleep(0.3)  # OpenMP's threads spin for a while after their last work
            began = {clock: read() for clock, read in _CLOCKS.items()}
            timing.measure(program, repetitions=1, warmup=0, calls=calls)
            if number:  # the first round warms up
                for clock, read in _CLOCKS.items():
                    seconds[clock][name].append((read() - began[clock]) / calls)
        print(f"round {number} of {repetitions}", file=sys.stderr, flush=True)
    return seconds


def report(seconds: Seconds, ours: str = "dimo_jax") -> dict[str, Any]:
    """Return medians and quartiles, and the others' times as a multiple of ours, round by round."""
    result: dict[str, Any] = {}
    for clock, every in seconds.items():
        result[clock] = {name: timing.Times(tuple(x)).report() for name, x in every.items()}
        result[f"{clock}_ratio"] = {
            f"{name}_over_{ours}": timing.Times(tuple(np.array(x) / every[ours])).report()
            for name, x in every.items()
            if name != ours and ours in every
        }
    return result


def write(result: Mapping[str, Any], output: str | None) -> None:
    """Write a result as JSON, to a file or to standard output."""
    text = json.dumps(result, indent=1) + "\n"
    if output:
        print(files.write_file(output, text.encode()))
    else:
        sys.stdout.write(text)
