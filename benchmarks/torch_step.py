"""The distillation step against the same step in PyTorch, in turns, each in a process of its own.

python benchmarks/torch_step.py   (needs PyTorch and the tests: pip install -e ".[dev]")
python benchmarks/torch_step.py --config=full --batch_size=2 --threads 2 --repetitions=4 --calls=1
python benchmarks/torch_step.py --config=full --only=torch --device=cuda --dtype=bfloat16

Both run configs/imagenet.py on all cores, in float32 unless another is given: the ten forward
passes that a step costs, gradients, clipping, Adam of both networks with frozen embeddings, and the
average of the generator. PyTorch's step is the one that tests/models/test_torch_step.py holds equal
to this package's, here with random numbers of its own, eager, with attention that returns no
weights, so that PyTorch may take its fused kernel, and with bfloat16 by its autocast. By default it
is timed on one thread and on all: at the smoke config's size, and where other programs run, one is
the faster. The ratio is that of PyTorch's time to this package's, round by round. On an accelerator
time one of the two, --only: each takes the memory for itself.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import beside_torch  # noqa: E402
import in_turns  # noqa: E402

from dimo_jax.common import host_memory  # noqa: E402
from dimo_jax.profiling import step_speed  # noqa: E402
from tests.helpers.torch_step import torch_step  # noqa: E402

FROZEN = ("tok_emb.weight", "pos_emb", "bias")


def in_torch(config: dict[str, Any], device: str) -> Callable:
    """Take one step after the other, of PyTorch."""
    models = step_speed.open_models(config)
    model, params = models.network.config, beside_torch.random_params(models, config["seed"])
    networks = [beside_torch.in_torch(model, params, device) for _ in range(3)]
    teacher, generator, auxiliary = networks
    for network in networks:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(network is not teacher and name not in FROZEN)
    average = torch.optim.swa_utils.AveragedModel(
        generator, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9999)
    )
    trained = [
        [p for p in network.parameters() if p.requires_grad] for network in (generator, auxiliary)
    ]
    optimizers = [torch.optim.Adam(p, lr=1e-5, eps=1e-6, fused=True) for p in trained]
    draws = beside_torch.Draws(config["distill"]["batch_size"], model, device)
    narrow = config["compute_dtype"] == "bfloat16"

    def step() -> torch.Tensor:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=narrow):
            loss = torch_step("default", teacher, generator, auxiliary, draws)
        torch.nn.utils.clip_grad_norm_(trained[0], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update_parameters(generator)
        return loss

    return step


def on_device(config: dict[str, Any], device: str) -> in_turns.Program:
    """PyTorch's step, and the memory that it takes of an accelerator."""
    step = in_torch(config, device)

    def waited() -> torch.Tensor:
        result = step()
        torch.cuda.synchronize()
        return result

    def facts() -> dict[str, Any]:
        return {
            "device": torch.cuda.get_device_name(),
            "device_peak_bytes": torch.cuda.max_memory_allocated(),
        }

    return in_turns.Program(waited, facts)


def in_jax(config: dict[str, Any]) -> in_turns.Program:
    """Take one step after the other, of this package."""
    host_memory.keep_freed_memory()
    models = step_speed.open_models(config)
    params = beside_torch.random_params(models, config["seed"])
    clock = beside_torch.LastCall(1, 0, 1, None, lambda line: print(line, file=sys.stderr))
    step_speed.train(config, dataclasses.replace(models, params=params), clock)
    return in_turns.Program(vars(clock)["the step"])


def main() -> None:
    """Compile, warm up, then run all in turns."""
    parser = beside_torch.parser(__doc__)
    parser.add_argument("--device", default="cpu", help="PyTorch's: cpu, cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", choices=("dimo_jax", "torch"), help="default: both")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"error: PyTorch {torch.__version__} has no CUDA device here")
    config = beside_torch.config_of(arguments, arguments.dtype)
    steps: dict[str, in_turns.Make] = {}
    if arguments.only != "torch":
        steps["dimo_jax"] = functools.partial(in_jax, config)
    if arguments.only != "dimo_jax":
        if arguments.device == "cpu":
            steps |= beside_torch.on_threads(arguments.threads, in_torch, config, "cpu")
        else:
            make = functools.partial(on_device, config, arguments.device)
            steps[f"torch_{arguments.device}"] = make
    in_turns.write(beside_torch.measured(arguments, config, {"step": steps}), arguments.output)


if __name__ == "__main__":
    main()
