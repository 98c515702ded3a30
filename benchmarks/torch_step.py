"""The distillation step on a CPU against the same step in PyTorch, in turns in one process.

python benchmarks/torch_step.py   (needs PyTorch and the tests: pip install -e ".[dev]")

Both run configs/imagenet.py:smoke in float32 on all cores: the ten forward passes that a step
costs, gradients, clipping, Adam of both networks with frozen embeddings, and the average of the
generator. PyTorch's step is the one that tests/models/test_torch_step.py holds equal to this
package's, here with random numbers of its own, eager, and with attention that returns no weights,
so that PyTorch may take its fused kernel. It is timed on one thread and on all: at this size, and
where other programs run, one is the faster. The ratio is that of PyTorch's time to this package's,
round by round.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import in_turns  # noqa: E402
import jax  # noqa: E402

from configs import imagenet  # noqa: E402
from dimo_jax import models  # noqa: E402
from dimo_jax.commands import benchmark  # noqa: E402
from dimo_jax.common import host_memory  # noqa: E402
from dimo_jax.conditions.labels import LabelConditions  # noqa: E402
from dimo_jax.convert.networks import layouts, maskgit  # noqa: E402
from dimo_jax.parallel import mesh, sharding  # noqa: E402
from dimo_jax.profiling import step_speed, timing  # noqa: E402
from dimo_jax.training import programs  # noqa: E402
from tests.helpers.torch_maskgit import TorchMaskGit  # noqa: E402
from tests.models import test_torch_step as reference  # noqa: E402

FROZEN = ("tok_emb.weight", "pos_emb", "bias")


class TorchDraws:
    """The step's random numbers, drawn by PyTorch."""

    def __init__(self, size: int, model: dict[str, Any]):
        self.size, self.length, self.width = size, model["num_tokens"], model["width"]
        self.codes = model["codebook_size"]

    def chosen(self, counts: torch.Tensor) -> torch.Tensor:
        """[B, L], True at so many random positions of each example."""
        order = torch.rand(self.size, self.length).argsort(dim=1)
        return order < counts[:, None]

    def start(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """x_init with 60 % [MASK], and the noise of its embeddings."""
        tokens = torch.randint(self.codes, (self.size, self.length))
        counts = torch.full((self.size,), round(0.6 * self.length))
        noise = torch.randn(self.size, self.length, self.width)
        return tokens.masked_fill(self.chosen(counts), self.codes), noise

    def tokens(self, name: str, logits: torch.Tensor) -> torch.Tensor:
        """x_theta."""
        probs = logits.detach().softmax(-1)
        return probs.flatten(0, 1).multinomial(1).view(logits.shape[:2])

    def mask(self, name: str) -> torch.Tensor:
        """Return the arccos schedule, exact counts."""
        ratio = torch.rand(self.size).acos() * (2 / math.pi)
        return self.chosen((ratio * self.length).round().clamp(min=1))


def fuse_attention(network: TorchMaskGit) -> None:
    """Let every attention leave its weights unreturned."""
    for module in network.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            plain = module.forward
            module.forward = lambda q, k, v, need_weights, plain=plain: plain(
                q, k, v, need_weights=False
            )


def torch_step(config: dict[str, Any], model: dict[str, Any], state: Any) -> Callable:
    """Take one step after the other, of PyTorch."""
    size, classes = config["distill"]["batch_size"], model["num_classes"]
    # The reference reads its sizes from its own module.
    for name, value in {
        "B": size,
        "L": model["num_tokens"],
        "MASK_ID": model["codebook_size"],
        "NULL": classes,
        "LABELS": np.arange(size) % classes,
        "FRESH_LABELS": (np.arange(size) * 3 + 1) % classes,
    }.items():
        setattr(reference, name, value)
    teacher, generator, auxiliary = (reference.in_torch(model, state) for _ in range(3))
    for network in (teacher, generator, auxiliary):
        fuse_attention(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(network is not teacher and name not in FROZEN)
    average = torch.optim.swa_utils.AveragedModel(
        generator, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9999)
    )
    trained = [
        [p for p in network.parameters() if p.requires_grad] for network in (generator, auxiliary)
    ]
    optimizers = [torch.optim.Adam(p, lr=1e-5, eps=1e-6, fused=True) for p in trained]
    draws = TorchDraws(size, model)

    def step() -> float:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = reference.torch_step("default", teacher, generator, auxiliary, draws)
        torch.nn.utils.clip_grad_norm_(trained[0], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update_parameters(generator)
        return loss

    return step


def on_threads(number: int, step: Callable[[], Any]) -> Callable[[], Any]:
    """Return the step with so many of PyTorch's threads."""

    def run() -> Any:
        torch.set_num_threads(number)
        return step()

    return run


def jax_step(config: dict[str, Any], network: models.Network, start: Any) -> Callable:
    """Take one step after the other, of this package."""
    layout = sharding.layout(config["mesh"])
    program = programs.distill_program(config, network, network, start, layout)
    compiled, seconds = timing.compiled(program.lower)
    print(f"compiled in {seconds['compile_seconds']:.0f} s", file=sys.stderr, flush=True)
    teacher = mesh.put(start, layout.of(program.teacher))
    state, number = program.create(mesh.put(start, layout.of(program.params))), 0
    batch_of = programs.distill_batches(config, LabelConditions(network.num_classes), layout)

    def step() -> Any:
        nonlocal state, number
        state, values = compiled(state, teacher, batch_of(number))
        number += 1
        return state, values

    return step


def main() -> None:
    """Compile, warm up, then run the three in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20, help="rounds")
    parser.add_argument("--calls", type=int, default=5, help="steps of each in a round")
    parser.add_argument("--output", help="a JSON file; default: standard output")
    arguments = parser.parse_args()
    host_memory.keep_freed_memory()
    config = imagenet.get_config("smoke").to_dict()
    config |= {"compute_dtype": "float32", "fast_compile": False}
    network = step_speed.open_models(config).network
    start = jax.device_get(jax.jit(network.init)(jax.random.key(config["seed"])))
    state = layouts.to_state(maskgit.entries(network.config), start)
    state = {name: np.array(x) for name, x in state.items()}  # PyTorch wants to own them
    in_torch = torch_step(config, network.config, state)
    steps = {
        "dimo_jax": jax_step(config, network, start),
        **{f"torch_threads_{n}": on_threads(n, in_torch) for n in sorted({1, os.cpu_count() or 1})},
    }
    seconds = in_turns.measure(steps, arguments.repetitions, arguments.calls)
    result = {
        "config": "configs/imagenet.py:smoke",
        "compute_dtype": "float32",
        "batch_size": config["distill"]["batch_size"],
        "machine": {**benchmark.machine(), "torch": torch.__version__},
        "load_average_1_minute": os.getloadavg()[0],
        "steps_per_round": arguments.calls,
    }
    result |= in_turns.report(seconds)
    in_turns.write(result, arguments.output)


if __name__ == "__main__":
    main()
