"""Precision, recall, density and coverage of 10,000 real and 50,000 generated feature vectors.

python benchmarks/neighbours_full_size.py

Random float32 features of 2048 numbers; the time by the clock and the most memory of the process.
The package prdc would hold matrices of 50,000 x 50,000 distances, of which it needs over 30 GB.
"""

import argparse
import json
import os
import resource
import time

import numpy as np

from dimo_jax.commands import benchmark
from dimo_jax.evaluation.metrics import neighbours


def main() -> None:
    """Do one run with its compilation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=2048)
    arguments = parser.parse_args()
    numbers = np.random.default_rng(0)
    shapes = ((arguments.real, arguments.features), (arguments.samples, arguments.features))
    real, samples = (numbers.standard_normal(shape, np.float32) for shape in shapes)
    began, processor = time.perf_counter(), time.process_time()
    mean = np.mean(real, axis=0, dtype=np.float64)
    real, samples = (neighbours.centred(x, mean) for x in (real, samples))
    found = neighbours.precision_recall_density_coverage(real, samples, 3)
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    rows = arguments.real**2 + arguments.samples**2 + arguments.real * arguments.samples
    report = {
        **vars(arguments),
        **found,
        "seconds": seconds,
        "processor_seconds": processor,
        "gflop_per_second": 2e-9 * rows * arguments.features / seconds,
        "features_gib": (real.nbytes + samples.nbytes) / 2**30,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "machine": benchmark.machine(),
        "load_average_1_minute": os.getloadavg()[0],
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
