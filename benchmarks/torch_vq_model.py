"""Meissonic's VQ model at full size on a CPU: one image decoded, beside diffusers' VQModel.

python benchmarks/torch_vq_model.py   (needs PyTorch and the tests: pip install -e ".[dev]")

Both have the same random weights and decode the same tokens in float32 on all cores, in turns in
one process; the largest difference of a pixel is told too.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import in_turns  # noqa: E402
import jax  # noqa: E402

from dimo_jax import tokenizers  # noqa: E402
from dimo_jax.commands import benchmark  # noqa: E402
from tests.tokenizers import test_vq_model as reference  # noqa: E402


def main() -> None:
    """Compile, warm up, then run the two in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2, help="rounds")
    parser.add_argument("--image_size", type=int, default=1024, help="pixels along a side")
    parser.add_argument("--output", help="a JSON file; default: standard output")
    arguments = parser.parse_args()
    config = tokenizers.build({"name": "vq_model", "image_size": arguments.image_size}).config
    torch.manual_seed(0)
    module = reference.in_torch(config)
    params = jax.device_put(
        reference.in_jax(config, {k: x.numpy().copy() for k, x in module.state_dict().items()})
    )
    side = config["image_size"] // 2 ** (len(config["ch_mult"]) - 1)
    tokens = np.random.default_rng(0).integers(config["n_embed"], size=(1, side * side))
    tokens = tokens.astype(np.int32)
    decode = jax.jit(tokenizers.build(config).decode).lower(params, tokens).compile()
    programs = {
        "dimo_jax": lambda: decode(params, tokens),
        "torch": lambda: reference.torch_decode(module, tokens, config["z_channels"]),
    }
    theirs = np.clip(reference.channels_last(programs["torch"]()), 0, 1)
    result = {
        "image_size": config["image_size"],
        "machine": {**benchmark.machine(), "torch": torch.__version__},
        "largest_difference": float(np.abs(np.asarray(programs["dimo_jax"]()) - theirs).max()),
        **in_turns.report(in_turns.measure(programs, arguments.repetitions)),
        "load_average_1_minute": os.getloadavg()[0],
    }
    in_turns.write(result, arguments.output)


if __name__ == "__main__":
    main()
