"""All commands, as sub-commands: dimo-jax sample --help is python -m dimo_jax.sample --help.

python -m dimo_jax
"""

import difflib
import sys
from typing import NoReturn

import dimo_jax
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
            "python -m dimo_jax.COMMAND --help lists its flags; dimo-jax COMMAND is the same.",
        ]
    )


def run() -> NoReturn:
    """Run the command that the first argument names; without one list them all.

    Raises:
        SystemExit: always.
    """
    word, *rest = sys.argv[1:] or ["--help"]
    if module := COMMANDS.get(word):
        sys.argv = [f"dimo-jax {word}", *rest]
        cli.run(module.main, module.FLAGS)
    if word in ("--help", "-h", "-help"):
        try:
            print(overview(), flush=True)
        except BrokenPipeError:
            raise SystemExit(cli.stop_printing()) from None
        raise SystemExit(0)
    if word == "--version":
        print(f"dimo_jax {dimo_jax.__version__}")
        raise SystemExit(0)
    # `python -m dimo_jax --generator=...`: a flag of a command that is not named.
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"nearest: {near[0]}" if near else f"there are {', '.join(COMMANDS)}"
    print(f"error: there is no command {word!r}; {hint}", file=sys.stderr)
    raise SystemExit(cli.BAD_INPUT)


if __name__ == "__main__":
    run()
