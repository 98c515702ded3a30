"""Runs dimo_jax.evaluate as two processes, with features that are plain to see.

    python -m tests.helpers.evaluate_processes <folder> '[["--flag=value", ...], ...]'

test_evaluate_processes.py starts it. Forks before any JAX backend exists, so that the imports are
paid for once. Prints one JSON line for each list of flags: [{"status": ..., "output": ...}, ...].
"""

import functools
import json
import os
import socket
import sys
from pathlib import Path

import jax

from dimo_jax import bundles, cli, evaluate
from dimo_jax.evaluation import evaluate_images
from dimo_jax.evaluation.features import feature_store
from dimo_jax.evaluation.metrics import neighbours
from tests.helpers import picture_files
from tests.helpers.forked import fork


def replace_network():
    """Plain features, small ranges and small blocks."""
    feature_store.RANGE_SIZE = 4
    neighbours.ROWS_PER_DEVICE, neighbours.COLUMNS = 4, 32
    bundle = bundles.Bundle("features", {}, {}, None, None, {}, Path("."), "plain")
    bundles.load = lambda path, kind: bundle
    evaluate_images.open_network = lambda bundle, protocol, batch_size: picture_files.extractor()


def command(*arguments):
    jax.config.update("jax_num_cpu_devices", 2)
    sys.argv = ["evaluate", *arguments]
    cli.run(evaluate.main, evaluate.FLAGS)


def live(flags, folder):
    """One command of two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"--coordinator=localhost:{free.getsockname()[1]}"
    outputs = [folder / f"process_{i}" for i in range(2)]
    pids = [
        fork(
            functools.partial(command, *flags, place, "--num_processes=2", f"--process_id={i}"),
            output,
        )
        for i, output in enumerate(outputs)
    ]
    told = []
    for pid, output in zip(pids, outputs, strict=True):
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told.append({"status": status, "output": output.read_text()})
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    replace_network()
    for flags in json.loads(sys.argv[2]):
        live(flags, Path(sys.argv[1]))
