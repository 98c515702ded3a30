import threading

import pytest

from dimo_jax.common.errors import InputError
from dimo_jax.training import prefetch

SECONDS = 10


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("start", [0, 3, 6])
def test_the_batches_are_those_of_their_steps_in_order(start):
    with prefetch.ahead(lambda step: step * step, 7) as next_of:
        assert [next_of(step) for step in range(start, 7)] == [n * n for n in range(start, 7)]
    assert not threads()


def test_so_many_are_made_while_a_step_runs_and_none_past_the_last():
    made, enough = [], threading.Event()

    def batch_of(step):
        made.append((step, threading.current_thread().name))
        if step == 2:
            enough.set()
        return step

    with prefetch.ahead(batch_of, 4, depth=2) as next_of:
        assert next_of(0) == 0
        assert enough.wait(SECONDS)
        for step in (1, 2, 3):
            next_of(step)
    assert [step for step, _ in made] == [0, 1, 2, 3]
    assert {name for _, name in made} == {"batches_0"}


def test_an_error_comes_with_its_step_and_not_before():
    def batch_of(step):
        if step == 2:
            raise InputError("tokens/x is damaged; copy it again")
        return step

    with (
        pytest.raises(InputError, match="^tokens/x is damaged; copy it again$"),
        prefetch.ahead(batch_of, 9) as next_of,
    ):
        assert next_of(0) == 0
        assert next_of(1) == 1
        next_of(2)
    assert not threads()


def test_a_training_that_stops_leaves_no_thread_and_starts_no_further_batch():
    made, begun, go_on = [], threading.Event(), threading.Event()

    def batch_of(step):
        if step == 1:
            begun.set()
            assert go_on.wait(SECONDS)
        made.append(step)
        return step

    with pytest.raises(KeyboardInterrupt), prefetch.ahead(batch_of, 100, depth=5) as next_of:
        next_of(0)
        assert begun.wait(SECONDS)
        threading.Timer(0.2, go_on.set).start()
        raise KeyboardInterrupt
    assert not threads()
    assert made == [0, 1]
