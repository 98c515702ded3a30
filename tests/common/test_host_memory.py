import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from dimo_jax.common import host_memory
    assert host_memory.keep_freed_memory()
for _ in range(3):
    np.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    np.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_not_faulted_in_again():
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, mode],
                capture_output=True,
                text=True,
                check=True,
                # Huge pages would hide the faults.
                env={"NUMPY_MADVISE_HUGEPAGE": "0", "PATH": ""},
            ).stdout
        )
        for mode in ("default", "keep")
    ]
    assert faults[0] > 10_000  # 3 times 128 MiB in pages of 4 KiB
    assert faults[1] < 100
