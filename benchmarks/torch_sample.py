"""One-step generation, and the teacher's steps, against the same modules in PyTorch, in turns.

python benchmarks/torch_sample.py   (needs PyTorch and the tests: pip install -e ".[dev]")
python benchmarks/torch_sample.py --config=full --threads 2 --repetitions=4 --calls=1

Both run configs/imagenet.py in float32 on all cores, from labels to images: the generator's one
call, or the teacher's confidence decoding with guidance, and each time the VQGAN's decoder. This
package's programs are those that `dimo_jax.benchmark` times. PyTorch's are those that
tests/models/test_torch_sampler.py and tests/tokenizers/test_vqgan.py hold equal to this package's,
here with random numbers of its own, and with attention that returns no weights.
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
import jax  # noqa: E402

from dimo_jax.common import host_memory  # noqa: E402
from dimo_jax.convert.networks import layouts, vqgan  # noqa: E402
from dimo_jax.profiling import sampler_speed, step_speed  # noqa: E402
from dimo_jax.samplers.maskgit import MaskGitSettings  # noqa: E402
from tests.helpers import torch_sampling, torch_vqgan  # noqa: E402


def opened(config: dict[str, Any]) -> tuple[step_speed.Models, Any]:
    """Return network and tokenizer with random weights, and PyTorch's decoder with the same."""
    host_memory.keep_freed_memory()
    models = step_speed.open_models(config)
    decoder = torch_vqgan.randomized(models.tokenizer.config, seed=0)
    like = jax.eval_shape(models.tokenizer.init, jax.random.key(0))
    state = {name: x.numpy() for name, x in decoder.state_dict().items()}
    models = dataclasses.replace(
        models,
        params=beside_torch.random_params(models, config["seed"]),
        tokenizer_params=layouts.to_params(vqgan.entries(models.tokenizer.config), state, like),
    )
    return models, decoder


def in_torch(config: dict[str, Any], steps: int) -> Callable[[], torch.Tensor]:
    """Return PyTorch's images [B, 3, H, W]: of one call for 0 steps, else of the teacher."""
    models, decoder = opened(config)
    network = beside_torch.in_torch(models.network.config, models.params, "cpu")
    draws = beside_torch.Draws(config["distill"]["batch_size"], models.network.config)
    start = config["distill"]
    teacher = MaskGitSettings(steps or 1, guidance=start["guidance"])

    def one_step() -> torch.Tensor:
        sampler = (config["sampler"][name] for name in ("temperature", "top_k", "top_p"))
        return torch_sampling.torch_one_step(network, draws, start["sigma"], *sampler)

    def decoding() -> torch.Tensor:
        return torch_sampling.torch_decode(
            *(network, draws, steps, teacher.schedule, teacher.randomize, teacher.guidance - 1),
            r_temp=teacher.choice_temperature,
        )

    tokens = decoding if steps else one_step
    # As the original does: [MASK] may be drawn, and has no code.
    last = len(decoder.codes()) - 1
    return lambda: decoder.decode(tokens().clamp(max=last)).add(1).div(2).clamp(0, 1)


def in_jax(config: dict[str, Any], steps: int) -> in_turns.Program:
    """Return this package's, likewise."""
    models, _ = opened(config)
    clock = beside_torch.LastCall(1, 0, 1, None, lambda line: print(line, file=sys.stderr))
    sizes = [config["distill"]["batch_size"]]
    if steps:
        sampler_speed.teacher_sample(config, models, clock, sizes, [steps])
    else:
        sampler_speed.sample(config, models, clock, sizes)
    return in_turns.Program(vars(clock)["whole"])


def main() -> None:
    """Compile, warm up, then run all in turns."""
    parser = beside_torch.parser(__doc__)
    parser.set_defaults(batch_size=1)
    parser.add_argument("--steps", type=int, default=8, help="the teacher's")
    arguments = parser.parse_args()
    config = beside_torch.config_of(arguments)
    programs = {
        what: {
            "dimo_jax": functools.partial(in_jax, config, steps),
            **beside_torch.on_threads(arguments.threads, in_torch, config, steps),
        }
        for what, steps in (("one_step", 0), (f"teacher_{arguments.steps}_steps", arguments.steps))
    }
    in_turns.write(beside_torch.measured(arguments, config, programs), arguments.output)


if __name__ == "__main__":
    main()
