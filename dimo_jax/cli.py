"""The start that all commands share: flags in, one line and an exit status out.

Imports nothing that takes long, jax least of all: --help and a refused flag are there at once.
"""

import functools
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from absl import flags

from dimo_jax.common import host_memory
from dimo_jax.common.command_flags import Flags
from dimo_jax.common.errors import InputError, Interrupted
from dimo_jax.common.outputs import FULL_DISK
from dimo_jax.common.shown import printable, stop_printing
from dimo_jax.config import overrides, reference, shipped

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def run(main: Callable[..., None], flag_values: Flags) -> NoReturn:
    """Parse sys.argv, call main() and exit; never returns.

    Exit status 0: done, or stopped with all other processes of the run and saved. 2: bad input (a
    flag, a config field, a file), or more than the device's memory holds, explained in one line on
    stderr. 128 + n: stopped by signal n; 141: nobody reads stdout any more. 1: the disk is full, or
    another process of the run has ended. Any other exception is a defect of the program and keeps
    its traceback.

    One of several processes that fails ends at once, without the shutdown that waits for all.

    Args:
        main: the command; reads its flags itself, and takes nothing, or the list of arguments
            that are no flags. Its module's docstring is the head of --help, and has examples.
        flag_values: the command's own flags.

    Raises:
        SystemExit: always.
    """
    described = sys.modules[main.__module__].__doc__ or ""
    try:
        if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & set(sys.argv[1:]):
            print(f"{described.rstrip()}\n{flag_values.describe()}", flush=True)
            raise SystemExit(0)
        arguments = _parse(flag_values, described)
        takes_arguments = bool(inspect.signature(main).parameters)
        if arguments and not takes_arguments:
            raise InputError(
                f"unexpected argument {arguments[0]!r}; every flag is written --name=value"
            )
        if "print_config" in flag_values and flag_values.print_config:
            print(reference.as_text(flag_values.config.to_dict()), flush=True)
            raise SystemExit(0)
        host_memory.keep_freed_memory()
        _finish(functools.partial(main, arguments) if takes_arguments else main)
    except InputError as error:
        _stop(BAD_INPUT if _full_disk(error) is None else FAILED, f"error: {error}")
    except Interrupted as error:
        _stop(error.exit_code, str(error))
    except KeyboardInterrupt:
        _stop(INTERRUPTED, "interrupted")
    except BrokenPipeError:
        raise SystemExit(stop_printing()) from None
    except Exception as error:
        from dimo_jax.parallel import distributed, runtime_errors

        # This process's own trouble first: what the others do is its consequence.
        full, memory = _full_disk(error), runtime_errors.out_of_memory(error)
        if full is not None:
            where = f" while writing {full.filename}" if full.filename else ""
            _stop(FAILED, f"error: the disk is full{where}; free some space and run the same again")
        if memory is not None:
            found, advice = memory[:200].rstrip("."), _smaller(flag_values)
            _stop(BAD_INPUT, f"error: the device's memory is too small ({found}); {advice}")
        if distributed.lost(error):
            _stop(FAILED, f"error: {distributed.describe_loss('stopped', error)}")
        if distributed.must_leave():
            traceback.print_exc()
            distributed.leave(FAILED)
        raise
    raise SystemExit(0)


def first_example(described: str | None) -> str:
    """Return the first command line of a docstring, in one line; empty if it has none."""
    found = re.search(r"^ *(python -m (?:.*\\\n)*.*)", described or "", re.MULTILINE)
    return " ".join(found[1].replace("\\\n", " ").split()) if found else ""


def define_print_config(flag_values: Flags) -> None:
    """Define --print_config, which `run` answers for every command that has it.

    Args:
        flag_values: the command's own, with a --config.
    """
    flags.DEFINE_bool(
        "print_config",
        False,
        "print every field of the config with its meaning, mark what differs from the default, "
        "and end",
        flag_values=flag_values,
    )


def define_process_flags(flag_values: Flags) -> None:
    """Define --coordinator, --num_processes and --process_id, for a run of several processes.

    Args:
        flag_values: the command's own.
    """
    flag_values.group("Several processes")
    flags.DEFINE_string(
        "coordinator",
        None,
        "host:port of process 0; the three flags are not needed under SLURM, on TPU pods and in "
        "indexed Kubernetes jobs",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "processes of this run in all; 1 for one alone, whatever the environment says",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "process_id", None, "of this process, from 0", lower_bound=0, flag_values=flag_values
    )


def numbers(
    flag_values: flags.FlagValues, name: str, kind: type[int] | type[float], default: list[Any]
) -> list[Any]:
    """Return the values of a list flag, all of them above 0.

    Args:
        flag_values: the command's own.
        name: of the flag.
        kind: what they are.
        default: where the flag is not given.

    Raises:
        InputError: one of them is something else, or there is none.
    """
    if not flag_values[name].present:
        return default
    given = flag_values[name].value or []
    try:
        found = [kind(text) for text in given]
    except ValueError:
        found = []
    if not found or any(number <= 0 for number in found):
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"--{name}={','.join(given)} must be {what} above 0, separated by commas")
    return found


def start_processes(flag_values: flags.FlagValues) -> None:
    """Join the other processes of the run, if there are any, and start JAX's backend.

    Args:
        flag_values: as for `define_process_flags`.

    Raises:
        InputError: see distributed.start and backend.start.
    """
    from dimo_jax.parallel import backend, distributed

    distributed.start(flag_values.coordinator, flag_values.num_processes, flag_values.process_id)
    backend.start()


def start_alike(flag_values: flags.FlagValues) -> None:
    """`start_processes` for a command that its flags alone decide: they must be the same on all.

    Args:
        flag_values: the command's own.

    Raises:
        InputError: see distributed.start and distributed.assert_same.
    """
    from dimo_jax.parallel import distributed

    start_processes(flag_values)
    same = {name: flag_values[name].value for name in flag_values if name != "process_id"}
    distributed.assert_same({"flags": same, "code": distributed.code_version()})


def _finish(main: Callable[[], None]) -> None:
    """Run the command to the good end of all processes, which may be a stop of all of them."""
    try:
        main()
    except Interrupted as error:
        if error.exit_code:
            raise
        print(printable(str(error)), file=sys.stderr, flush=True)
    if distributed := _joined():
        distributed.finish()


def _stop(status: int, message: str) -> NoReturn:
    print(printable(" ".join(message.split())), file=sys.stderr, flush=True)
    distributed = sys.modules.get("dimo_jax.parallel.distributed")
    if distributed and distributed.must_leave():
        distributed.leave(status)
    raise SystemExit(status)


def _joined() -> ModuleType | None:
    """parallel.distributed, if this process has joined others; imports nothing to find that out."""
    distributed = sys.modules.get("dimo_jax.parallel.distributed")
    return distributed if distributed and distributed.started() else None


def _smaller(flag_values: flags.FlagValues) -> str:
    """Return what helps where the device's memory is too small, by the command's flags."""
    ways = {
        "batch_size": "give a smaller --batch_size",
        "config": "a training takes less with more --config.distill.parts, --config.remat=full or "
        "--config.mesh.fsdp=-1",
    }
    known = [text for name, text in ways.items() if name in flag_values]
    return "; ".join(known) or "use a larger one"


def _parse(flag_values: Flags, described: str) -> list[str]:
    """Return the arguments that are no flags.

    What goes wrong is the user's input, so it is InputError.
    """
    # Libraries that read absl's global flags (tfds, grain) want them parsed.
    flags.FLAGS.mark_as_parsed()
    arguments = shipped.with_paths(sys.argv) if "config" in flag_values else sys.argv
    try:
        rest = flag_values(arguments)[1:]
        for name in flag_values:
            # A config file that is not there fails only when its value is touched.
            getattr(flag_values[name].value, "to_dict", None)
    except flags.UnrecognizedFlagError as error:
        raise InputError(_unknown_flag(flag_values, error.flagname)) from error
    except Exception as error:
        # ml_collections raises AttributeError, KeyError, TypeError and ValueError for overrides
        # (1.1), absl its own errors; for a misspelt field it names one neighbour at most.
        raise InputError(
            overrides.unknown_fields(flag_values)
            or overrides.wrong_value(flag_values, str(error))
            or _last_line(error)
        ) from error
    if missing := flag_values.missing():
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"{' and '.join(missing)} {verb} missing; for example: {first_example(described)} "
            "(--help lists all flags)"
        )
    if empty := flag_values.empty():
        raise InputError(
            f"{empty[0]}= is empty; give a value, or leave the flag out (is a variable of the "
            "shell unset?)"
        )
    return rest


def _unknown_flag(flag_values: Flags, name: str) -> str:
    """Return one sentence about a flag that the command does not have."""
    section = name.partition(".")[0]
    if section != name and section in flag_values:
        return f"--{name} is a field of a config, and no config is given; give --{section}=FILE too"
    nearest = flag_values.nearest(name)
    hint = f"nearest: {', '.join(nearest)}" if nearest else "no flag is similar"
    return f"there is no flag --{name}; {hint} (--help lists all flags)"


def _last_line(error: Exception) -> str:
    """Return the message of a parsing error.

    Of a formatted traceback only its last line and place.
    """
    head, _, trace = str(error).partition("Traceback (most recent call last)")
    if isinstance(error, OSError):
        return f"a config file cannot be loaded: {head.strip().splitlines()[-1]}"
    if not trace:
        return head or type(error).__name__
    place = re.findall(r'File "(.*?)", line (\d+)', trace)[-1]
    message = re.sub(r"^(\w+\.)*InputError: ", "", trace.strip().splitlines()[-1])
    return f"{head} {message} ({place[0]}, line {place[1]})"


def _full_disk(error: BaseException | None) -> OSError | None:
    """Return the error behind this one that says the disk is full, if there is one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return error
        # Orbax writes through TensorStore, whose errors carry the system's only as text.
        if "No space left on device" in str(error):
            # NCCL's shared memory, of which a container has 64 MiB, is such a disk too.
            memory = re.search(r"/dev/shm/[^\s,]+", str(error))
            return OSError(FULL_DISK[0], "No space left on device", memory and memory[0])
        error = error.__cause__ or error.__context__
    return None
