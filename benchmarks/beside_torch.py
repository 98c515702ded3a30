"""What the benchmarks beside PyTorch share: arguments, weights, random numbers, what is written."""

import argparse
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import in_turns
import jax
import numpy as np
import torch

from configs import imagenet
from dimo_jax.commands import benchmark
from dimo_jax.common import host_memory
from dimo_jax.convert.networks import layouts, maskgit
from dimo_jax.profiling import step_speed, timing
from tests.helpers.torch_maskgit import TorchMaskGit

CONFIGS = {"smoke": "smoke", "full": "default"}  # name -> variant of configs/imagenet.py


def parser(described: str | None) -> argparse.ArgumentParser:
    """Return the arguments that all have."""
    found = argparse.ArgumentParser(
        description=described, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--config", choices=CONFIGS, default="smoke", help="of configs/imagenet.py")
    found.add_argument("--depth", type=int, help="layers; default: the config's")
    found.add_argument("--batch_size", type=int, help="default: the config's; sampling: 1")
    found.add_argument("--threads", type=int, nargs="+", help="PyTorch's; default: 1 and all")
    found.add_argument("--repetitions", type=int, default=20, help="rounds")
    found.add_argument("--calls", type=int, default=5, help="of each in a round")
    found.add_argument("--output", help="a JSON file; default: standard output")
    return found


def config_of(arguments: argparse.Namespace, dtype: str = "float32") -> dict[str, Any]:
    """Return the complete config, optimized as a long run is."""
    config = imagenet.get_config(CONFIGS[arguments.config])
    config.update(compute_dtype=dtype, fast_compile=False)
    if arguments.depth:
        config.model.depth = arguments.depth
    if arguments.batch_size:
        config.distill.batch_size = arguments.batch_size
    return config.to_dict()


class LastCall(step_speed.Clock):
    """Times nothing, but runs each program once and keeps it, to be timed in turns."""

    def time(self, name: str, call: Callable[[], Any], calls: int = 1) -> timing.Times:
        """Keep the call."""
        jax.block_until_ready(call())
        vars(self)[name] = call
        return timing.Times((1.0,))


def random_params(models: step_speed.Models, seed: int) -> Any:
    """Return weights of the network on the host."""
    return jax.device_get(jax.jit(models.network.init)(jax.random.key(seed)))


def in_torch(model: dict[str, Any], params: Any, device: str) -> TorchMaskGit:
    """Return the network in PyTorch, with weights of its own that are equal."""
    network = TorchMaskGit(**model)
    state = layouts.to_state(maskgit.entries(model), params)
    network.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in state.items()})
    for module in network.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            module.forward = _without_weights(module.forward)
    return network.eval().to(device)


def _without_weights(attention: Callable[..., Any]) -> Callable[..., Any]:
    """Let PyTorch take its fused kernel, which returns no weights of the attention."""
    return lambda q, k, v, need_weights: attention(q, k, v, need_weights=False)


class Draws:
    """Random numbers drawn by PyTorch, for tests/helpers/torch_step.py and torch_sampling.py."""

    def __init__(self, size: int, model: dict[str, Any], device: str = "cpu"):
        self.size, self.length, self.width = size, model["num_tokens"], model["width"]
        self.mask_id, self.null, self.device = model["codebook_size"], model["num_classes"], device
        numbers = torch.arange(size, device=device)
        self.labels, self.fresh_labels = numbers % self.null, (numbers * 3 + 1) % self.null

    def uniform(self, step: int = 0) -> torch.Tensor:
        """[B, L] from [0, 1)."""
        return torch.rand(self.size, self.length, device=self.device)

    def gumbel(self, step: int) -> torch.Tensor:
        """[B, L] from Gumbel's distribution."""
        return -self.uniform().log().neg().log()

    def decided(self, confidence: torch.Tensor, count: int) -> None:
        """Look at nothing."""

    def chosen(self, counts: torch.Tensor) -> torch.Tensor:
        """[B, L], True at so many random positions of each example."""
        return self.uniform().argsort(dim=1) < counts[:, None]

    def start(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """x_init with 60 % [MASK], and the noise of its embeddings."""
        shape = (self.size, self.length)
        tokens = torch.randint(self.mask_id, shape, device=self.device)
        counts = torch.full((self.size,), round(0.6 * self.length), device=self.device)
        noise = torch.randn(*shape, self.width, device=self.device)
        return tokens.masked_fill(self.chosen(counts), self.mask_id), noise

    def tokens(self, name: str | int, logits: torch.Tensor) -> torch.Tensor:
        """[B, L] from the softmax of logits [B, L, V]."""
        probs = logits.detach().float().softmax(-1)
        return probs.flatten(0, 1).multinomial(1).view(logits.shape[:2])

    def mask(self, name: str) -> torch.Tensor:
        """[B, L] by the arccos schedule, exact counts."""
        ratio = torch.rand(self.size, device=self.device).acos() * (2 / math.pi)
        return self.chosen((ratio * self.length).round().clamp(min=1))


def on_threads(
    numbers: list[int] | None, make: Callable[..., Callable[[], Any]], *given: Any
) -> dict[str, in_turns.Make]:
    """Return PyTorch's programs on a CPU by the names that are reported.

    Args:
        numbers: of threads; default: 1 and all.
        make: makes the program, from what is given.
        given: to it.
    """
    chosen = numbers or sorted({1, os.cpu_count() or 1})
    return {f"torch_threads_{n}": functools.partial(_threaded, n, make, *given) for n in chosen}


def _threaded(number: int, make: Callable[..., Callable[[], Any]], *given: Any) -> in_turns.Program:
    torch.set_num_threads(number)
    host_memory.keep_freed_memory()
    return in_turns.Program(make(*given))


def measured(
    arguments: argparse.Namespace,
    config: Mapping[str, Any],
    programs: Mapping[str, Mapping[str, in_turns.Make]],
) -> dict[str, Any]:
    """Run all programs in turns.

    Args:
        arguments: of `parser`.
        config: of `config_of`.
        programs: {what is compared: {whose: makes a call that makes a batch}}.

    Returns:
        What is written.
    """
    flat = {f"{what} {whose}": x for what, some in programs.items() for whose, x in some.items()}
    load = os.getloadavg()[0]
    found = in_turns.measure(flat, arguments.repetitions, arguments.calls)
    result = {
        "config": f"configs/imagenet.py:{CONFIGS[arguments.config]}",
        "compute_dtype": config["compute_dtype"],
        "depth": config["model"]["depth"],
        "batch_size": config["distill"]["batch_size"],
        "machine": {**benchmark.machine(), "torch": torch.__version__},
        "load_average_1_minute": {"before": load, "after": os.getloadavg()[0]},
        "calls_per_round": arguments.calls,
    }
    for what, some in programs.items():
        own = {
            clock: {whose: every[f"{what} {whose}"] for whose in some}
            for clock, every in found.seconds.items()
        }
        result[what] = in_turns.report(own)
        result[what]["images_per_second"] = {
            whose: config["distill"]["batch_size"] / times["median"]
            for whose, times in result[what]["seconds"].items()
        }
        result[what]["facts"] = {whose: found.facts[f"{what} {whose}"] for whose in some}
    return result
