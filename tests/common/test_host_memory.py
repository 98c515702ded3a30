import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from dimo_jax.common import host_memory
    assert host_memory.keep_freed_memory()
size = int(sys.argv[2])
np.ones(size, np.int8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(size, np.int8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
@pytest.mark.parametrize(
    "size",
    [
        1 << 28,
        # More than the greatest threshold that mallopt takes as a number.
        pytest.param(5 << 29, marks=pytest.mark.slow),
    ],
)
def test_freed_memory_is_not_faulted_in_again(size):
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, mode, str(size)],
                capture_output=True,
                text=True,
                check=True,
                # Huge pages would hide the faults.
                env={"NUMPY_MADVISE_HUGEPAGE": "0", "PATH": ""},
            ).stdout
        )
        for mode in ("default", "keep")
    ]
    assert faults[0] > size / 4096 / 2  # in pages of 4 KiB
    assert faults[1] < 100
