"""What is timed and how it is summed up, with a clock that does not run by itself."""

import jax
import jax.numpy as jnp
import pytest

from dimo_jax.profiling import timing


class Clock:
    """Stands still until it is told that work was done."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def waits(monkeypatch):
    """What was waited for."""
    found = []
    monkeypatch.setattr(jax, "block_until_ready", lambda x: found.append(x))
    return found


def test_warm_up_does_not_count_and_a_call_is_a_share_of_its_repetition(waits):
    clock, durations = Clock(), iter([100, 100, 1, 3, 2, 2, 6, 8])

    def call():
        clock.now += next(durations)
        return clock.now

    times = timing.measure(call, repetitions=3, warmup=1, calls=2, clock=clock)
    assert times.seconds == (2.0, 2.0, 7.0)
    # Once for each repetition, for the result of its last call.
    assert waits == [200.0, 204.0, 208.0, 222.0]


def test_the_clock_is_read_after_the_wait(monkeypatch):
    clock = Clock()

    def wait(_):
        clock.now += 5.0

    monkeypatch.setattr(jax, "block_until_ready", wait)
    times = timing.measure(lambda: 0, repetitions=2, warmup=0, clock=clock)
    assert times.seconds == (5.0, 5.0)


def test_median_and_quartiles():
    report = timing.Times((9.0, 1.0, 2.0, 4.0, 3.0)).report()
    assert report == {
        "median": 3.0, "lower_quartile": 2.0, "upper_quartile": 4.0, "least": 1.0,
        "repetitions": 5,
    }  # fmt: skip
    assert timing.Times((1.0, 2.0)).report()["upper_quartile"] == 1.75


def test_a_program_is_compiled_apart_and_its_memory_is_known():
    function = jax.jit(lambda x, y: (x + 1, y @ y), donate_argnums=0)
    x, y = jnp.zeros(1000), jnp.zeros((32, 32))
    program, seconds = timing.compiled(lambda: function.lower(x, y))
    assert set(seconds) == {"lower_seconds", "compile_seconds"}
    assert all(value > 0 for value in seconds.values())
    memory = timing.program_memory(program)
    assert memory["arguments_bytes"] == 4 * (1000 + 32 * 32)
    assert memory["donated_bytes"] == 4000
    # The outputs, and two pointers to them.
    assert 0 <= memory["outputs_bytes"] - memory["arguments_bytes"] <= 64
    assert float(program(x, y)[0][0]) == 1.0


class Device:
    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


def test_the_peak_is_that_of_the_fullest_device():
    two = [Device({"peak_bytes_in_use": 7}), Device({"peak_bytes_in_use": 9})]
    assert timing.peak_memory(two)["device_peak_bytes"] == 9
    # A CPU tells nothing; the process has at least JAX in memory.
    found = timing.peak_memory([Device(None)])
    assert found["device_peak_bytes"] is None and 50e6 < found["host_peak_bytes"] < 1e12
