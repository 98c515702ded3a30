"""Programs timed in turns, each in its own process: what else the machine does falls on all."""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from dimo_jax.common import files
from dimo_jax.profiling import timing

# By the clock, and the processor's time over all threads, which other programs change less.
_CLOCKS = {"seconds": time.perf_counter, "processor_seconds": time.process_time}
Seconds = dict[str, dict[str, list[float]]]


class Program(NamedTuple):
    """What is timed.

    Attributes:
        call: returns arrays, of JAX or finished.
        facts: what else is known after the last call, as JSON.
    """

    call: Callable[[], Any]
    facts: Callable[[], Mapping[str, Any]] = dict


# Runs in the program's own process, which finds it by its module's name.
Make = Callable[[], Program]


class Found(NamedTuple):
    """What was measured.

    Attributes:
        seconds: {clock: {name: seconds of a call, for each round}}.
        facts: {name: of its program}.
    """

    seconds: Seconds
    facts: dict[str, Mapping[str, Any]]


def measure(makers: Mapping[str, Make], repetitions: int, calls: int = 1) -> Found:
    """Run each program in every round, after a round that does not count.

    In one process the libraries would share its allocator and its cores' caches, and each its
    threads with the other's that still spin. While one runs, the others wait for their turn.

    Args:
        makers: by name.
        repetitions: rounds.
        calls: of each program in a round.

    Raises:
        RuntimeError: a process ended before its time; it has said why.
    """
    seconds: Seconds = {clock: {name: [] for name in makers} for clock in _CLOCKS}
    # A fork would not have the threads of a library that has started.
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    try:
        for name, make in makers.items():
            ends[name], other = context.Pipe()
            context.Process(target=_run, args=(make, other), daemon=True).start()
            other.close()
            _answer(name, ends[name])  # one after the other: compilers need memory
        for number in range(repetitions + 1):
            for name, end in ends.items():
                time.sleep(0.3)  # OpenMP's threads spin for a while after their last work
                end.send(calls)
                taken = _answer(name, end)
                if number:  # the first round warms up
                    for clock in _CLOCKS:
                        seconds[clock][name].append(taken[clock])
            print(f"round {number} of {repetitions}", file=sys.stderr, flush=True)
        for end in ends.values():
            end.send(0)
        return Found(seconds, {name: _answer(name, end) for name, end in ends.items()})
    finally:
        for process in multiprocessing.active_children():
            process.terminate()


def _answer(name: str, end: Connection) -> Any:
    try:
        return end.recv()
    except EOFError:
        raise RuntimeError(f"the process of {name} ended before its time") from None


def _run(make: Make, end: Connection) -> None:
    """Make a program; answer each number of calls with the times of one, and 0 with its facts."""
    program = make()
    end.send("ready")
    while calls := end.recv():
        began = {clock: read() for clock, read in _CLOCKS.items()}
        timing.measure(program.call, repetitions=1, warmup=0, calls=calls)
        end.send({clock: (read() - began[clock]) / calls for clock, read in _CLOCKS.items()})
    end.send({"host_peak_bytes": timing.peak_memory(())["host_peak_bytes"], **program.facts()})


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
