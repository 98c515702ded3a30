"""Time and memory of converting a full-size MaskGit checkpoint (2.09 GB) and sending it back.

python benchmarks/convert_full_size.py --folder=full_size   (needs PyTorch, to write the file)

The file has the published layout: the 305 tensors of the 256 px model and two Adam moments of each,
with random values. Each command runs as a process of its own; its peak memory is what the kernel
says of it (ru_maxrss), with and without what it mapped of the file.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from dimo_jax import models
from dimo_jax.convert.networks import layouts, maskgit

CONFIG = {
    "name": "maskgit",
    "num_tokens": 256,
    "codebook_size": 1024,
    "num_classes": 1000,
    "width": 768,
    "depth": 24,
    "heads": 16,
    "mlp_dim": 3072,
    "dropout": 0.1,
    "predict_mask_id": True,
}


def write(path: Path) -> None:
    """Write the published layout with random weights."""
    import jax

    like = jax.eval_shape(models.build(CONFIG).init, jax.random.key(0))
    shapes = layouts.state_shapes(maskgit.entries(CONFIG), like)
    generator = np.random.default_rng(0)

    def values(shape):
        return torch.from_numpy(generator.normal(0, 0.02, shape).astype(np.float32))

    state = OrderedDict((key, values(shape)) for key, shape in shapes.items())
    moments = {
        i: {"step": 1, "exp_avg": values(v.shape), "exp_avg_sq": values(v.shape)}
        for i, v in enumerate(state.values())
    }
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]}
    torch.save(
        {
            "iter": 1,
            "global_epoch": 1,
            "model_state_dict": state,
            "optimizer_state_dict": optimizer,
        },
        path,
    )


def measure(*arguments: str) -> None:
    """Run a command; print its wall time and peak memory."""
    before = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, arguments
    print(
        f"{arguments[0]}: {time.monotonic() - before:.1f} s, peak {usage.ru_maxrss / 2**20:.2f} GiB"
    )


def main() -> None:
    """Write the file if it is not there, convert it, export it, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    path, back = folder / "MaskGIT_ImageNet_256.pth", folder / "pytorch_model.bin"
    if not path.exists():
        write(path)
    print(f"the file has {path.stat().st_size:,} bytes")
    measure(
        "dimo_jax.convert",
        "--source=maskgit",
        f"--input={path}",
        f"--output={folder / 'bundle'}",
    )
    measure(
        "dimo_jax.export",
        f"--bundle={folder / 'bundle'}",
        "--format=torch",
        f"--output={back}",
    )
    first = torch.load(path, weights_only=True, mmap=True)["model_state_dict"]
    second = torch.load(back, weights_only=True, mmap=True)
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    print(f"the {len(first)} tensors came back bit for bit")


if __name__ == "__main__":
    main()
