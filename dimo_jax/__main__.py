"""Lists the commands.

python -m dimo_jax
"""

import re
import sys

from dimo_jax import benchmark, cli, encode, evaluate, export, main, plan, sample
from dimo_jax.convert import __main__ as convert

COMMANDS = {
    "encode": encode,
    "main": main,
    "sample": sample,
    "evaluate": evaluate,
    "export": export,
    "convert": convert,
    "plan": plan,
    "benchmark": benchmark,
}


def overview() -> str:
    """Return a line and an example for each command."""
    blocks = []
    for name, module in COMMANDS.items():
        described = module.__doc__ or ""
        about = described.partition("\n")[0]
        blocks.append(f"{name:10} {about}\n           {cli.first_example(described)}")
    return "\n\n".join(
        [
            "Di[M]O in JAX: masked diffusion image models distilled into one-step generators.",
            *blocks,
            "python -m dimo_jax.COMMAND --help lists a command's flags.",
        ]
    )


if __name__ == "__main__":
    # What is typed after the package's name is a command, or a flag of one.
    word = re.sub(r"\W.*", "", (sys.argv[1:] or [""])[0])
    if word in COMMANDS:
        print(f"error: write python -m dimo_jax.{word}, with a dot", file=sys.stderr)
        raise SystemExit(cli.BAD_INPUT)
    print(overview())
