"""What a failed save leaves behind."""

import threading
import time

from dimo_jax.training import orbax_errors


def test_threads_that_a_thread_of_a_failed_save_starts_have_ended_too(tmp_path):
    before, late = set(threading.enumerate()), []

    def first():
        time.sleep(0.1)  # the second begins when the first is waited for
        threading.Thread(target=second).start()

    def second():
        time.sleep(orbax_errors.SETTLE_SECONDS + 0.5)  # longer than a folder has to be quiet
        late.append("written")

    threading.Thread(target=first).start()
    assert orbax_errors.settle(before, str(tmp_path))
    assert late == ["written"] and set(threading.enumerate()) <= before
