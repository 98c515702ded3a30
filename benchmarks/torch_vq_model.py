"""Meissonic's VQ model at full size on a CPU: one image decoded, beside diffusers' VQModel.

python benchmarks/torch_vq_model.py   (needs PyTorch and the tests: pip install -e ".[dev]")

Both have the same random weights and decode the same tokens in float32 on all cores, in turns, each
in a process of its own; the largest difference of a pixel is reported too.
"""

import argparse
import functools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import in_turns  # noqa: E402
import jax  # noqa: E402

from dimo_jax import tokenizers  # noqa: E402
from dimo_jax.commands import benchmark  # noqa: E402
from tests.tokenizers import test_vq_model as reference  # noqa: E402


def opened(image_size: int) -> tuple[dict[str, Any], torch.nn.Module, np.ndarray]:
    """Return the model's config, PyTorch's model with random weights, and tokens [1, L]."""
    config = tokenizers.build({"name": "vq_model", "image_size": image_size}).config
    torch.manual_seed(0)
    side = config["image_size"] // 2 ** (len(config["ch_mult"]) - 1)
    tokens = np.random.default_rng(0).integers(config["n_embed"], size=(1, side * side))
    return config, reference.in_torch(config), tokens.astype(np.int32)


def in_jax(image_size: int) -> in_turns.Program:
    """Return this package's, [1, H, W, 3] in [0, 1]."""
    config, module, tokens = opened(image_size)
    params = jax.device_put(
        reference.in_jax(config, {k: x.numpy().copy() for k, x in module.state_dict().items()})
    )
    decode = jax.jit(tokenizers.build(config).decode).lower(params, tokens).compile()
    return in_turns.Program(lambda: decode(params, tokens))


def in_torch(image_size: int) -> in_turns.Program:
    """Return PyTorch's, of any range."""
    config, module, tokens = opened(image_size)
    return in_turns.Program(lambda: reference.torch_decode(module, tokens, config["z_channels"]))


def main() -> None:
    """Compile, warm up, then run the two in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2, help="rounds")
    parser.add_argument("--image_size", type=int, default=1024, help="pixels along a side")
    parser.add_argument("--output", help="a JSON file; default: standard output")
    arguments = parser.parse_args()
    makers = {
        "dimo_jax": functools.partial(in_jax, arguments.image_size),
        "torch": functools.partial(in_torch, arguments.image_size),
    }
    ours, theirs = (np.asarray(make().call()) for make in makers.values())
    theirs = np.clip(reference.channels_last(theirs), 0, 1)
    result = {
        "image_size": arguments.image_size,
        "machine": {**benchmark.machine(), "torch": torch.__version__},
        "largest_difference": float(np.abs(ours - theirs).max()),
        **in_turns.report(in_turns.measure(makers, arguments.repetitions).seconds),
        "load_average_1_minute": os.getloadavg()[0],
    }
    in_turns.write(result, arguments.output)


if __name__ == "__main__":
    main()
