"""An evaluation from PNG files to FID and Inception Score, beside torch-fidelity's.

python benchmarks/torch_features.py   (needs PyTorch and the tests: pip install -e ".[dev]")

Both read the same random pictures, run the full Inception network with the same random weights in
float32 on all cores, and compute FID and Inception Score, whose values are compared too. Times are
by the clock, this package's with its compilation; images_per_second leaves the Fréchet distance of
2048 features aside, which takes each the same time for any number of images.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.helpers import torch_peers  # noqa: E402, F401

# isort: split

import in_turns  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch_fidelity import metrics  # noqa: E402

from dimo_jax import bundles  # noqa: E402
from dimo_jax.commands import benchmark  # noqa: E402
from dimo_jax.common import host_memory  # noqa: E402
from dimo_jax.evaluation import evaluate_images, references  # noqa: E402
from dimo_jax.evaluation.images import image_sets  # noqa: E402
from dimo_jax.evaluation.metrics import frechet  # noqa: E402
from dimo_jax.evaluation.metrics.protocols import PROTOCOLS  # noqa: E402
from tests.helpers import inception_weights  # noqa: E402


def write_pictures(folder: Path, num: int, size: int, seed: int) -> Path:
    """Random pictures of waves and noise as PNG files."""
    folder.mkdir()
    for i, image in enumerate(inception_weights.textured_images(num, size, seed)):
        Image.fromarray(image).save(folder / f"{i:06d}.png")
    return folder


@contextlib.contextmanager
def stopwatch(module: Any, name: str) -> Iterator[list[float]]:
    """Seconds that each call of a module's function takes, while inside."""
    original, spent = getattr(module, name), []

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            spent.append(time.perf_counter() - began)

    setattr(module, name, timed)
    try:
        yield spent
    finally:
        setattr(module, name, original)


def ours(folder: Path, samples: Path, real: Path, batch_size: int) -> dict[str, float]:
    """Evaluate with this package, without what an earlier evaluation left.

    FID and Inception Score.
    """
    protocol = dataclasses.replace(PROTOCOLS["dimo"], reference="images")
    bundle = bundles.load(folder / "bundle", kind="features")
    row = evaluate_images.Evaluator(
        references.open_reference(str(real)),
        evaluate_images.open_network(bundle, protocol, batch_size),
        protocol,
        ("fid", "is"),
        folder / f"features_{time.time_ns()}",
    ).evaluate(image_sets.open_set(samples))
    return {name: row.mean(name) for name in ("fid", "inception_score")}


def theirs(folder: Path, samples: Path, real: Path, batch_size: int) -> dict[str, float]:
    """Return the same of torch-fidelity."""
    found = metrics.calculate_metrics(
        input1=str(samples),
        input2=str(real),
        **{"fid": True, "isc": True, "cuda": False, "cache": False, "verbose": False},
        batch_size=batch_size,
        save_cpu_ram=True,  # no worker processes: they would be forked beside JAX's threads
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(folder / "inception.pth"),
    )
    return {
        "fid": found["frechet_inception_distance"],
        "inception_score": found["inception_score_mean"],
    }


SIDES = {
    "dimo_jax": (ours, frechet, "frechet"),
    "torch_fidelity": (theirs, metrics, "fid_statistics_to_metric"),
}


def main() -> None:
    """Write pictures and weights, then run the two in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=256, help="samples")
    parser.add_argument("--real", type=int, default=16, help="real images")
    parser.add_argument("--size", type=int, default=256, help="pixels along a side")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", help="a JSON file; default: standard output")
    arguments = parser.parse_args()
    host_memory.keep_freed_memory()
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    number_of_images = arguments.num + arguments.real
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        samples = write_pictures(folder / "samples", arguments.num, arguments.size, 0)
        real = write_pictures(folder / "real", arguments.real, arguments.size, 1)
        bundle = bundles.load(inception_weights.save_bundle(folder / "bundle"))
        inception_weights.save_torch(folder / "inception.pth", bundle.params)
        for number in range(arguments.rounds):
            for side, (run, module, name) in SIDES.items():
                time.sleep(0.3)  # OpenMP's threads spin for a while after their last work
                began, processor = time.perf_counter(), time.process_time()
                with stopwatch(module, name) as spent:
                    found = run(folder, samples, real, arguments.batch_size)
                seconds = time.perf_counter() - began
                found |= {
                    "seconds": seconds,
                    "processor_seconds": time.process_time() - processor,
                    "frechet_seconds": sum(spent),
                    "images_per_second": number_of_images / (seconds - sum(spent)),
                }
                results[side].append(found)
                print(f"round {number + 1}: {side}", file=sys.stderr, flush=True)
    report = {
        **{name: getattr(arguments, name) for name in ("num", "real", "size", "batch_size")},
        "machine": {**benchmark.machine(), "torch": torch.__version__},
        "load_average_1_minute": os.getloadavg()[0],
        **results,
    }
    in_turns.write(report, arguments.output)


if __name__ == "__main__":
    main()
