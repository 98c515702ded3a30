"""Measures everything of one card, part after part, into one JSON file (one_card.sh starts it).

python benchmarks/one_card.py --config=configs/imagenet.py --output=one_card

The parts are the training step at each batch size; one-step generation at batch 1 and at the first
of the sizes; the teacher at 8 and 16 steps; the step of the same networks in PyTorch, bfloat16 by
its autocast; and what `dimo_jax.plan` predicts of the training step. Each is a process of its own,
which has the card's memory to itself. A part that is done is kept in OUTPUT/parts and not measured
again; of one that fails, for example for lack of memory, the file has the reason, and a later call
tries again. On a machine without a GPU the same runs on the processor, in float32.
"""

import argparse
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dimo_jax.common import files  # noqa: E402
from dimo_jax.profiling import devices  # noqa: E402

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        name: of its file.
        command: without its --output.
        environment: what it needs beside this process's.
        impossible: why it cannot be measured here, if so.
    """

    name: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    impossible: str = ""


def measure(part: Part, folder: Path, seconds: float) -> dict[str, Any]:
    """Return a part's record: as it is in its file, or measured now.

    Args:
        part: what is measured.
        folder: of the parts' files.
        seconds: how long it may take.

    Returns:
        {"command"} and {"result"}, or {"not_measured": why}.
    """
    path, command = folder / f"{part.name}.json", shlex.join(part.command)
    kept = json.loads(path.read_bytes()) if path.exists() else {}
    if kept.get("command") == command and "result" in kept:
        return kept
    if part.impossible:
        return {"command": command, "not_measured": part.impossible}
    print(f"{part.name}: {command}", file=sys.stderr, flush=True)
    log, output = folder / f"{part.name}.log", folder / f"{part.name}.result"
    output.unlink(missing_ok=True)
    began, why = time.monotonic(), ""
    with log.open("wb") as file:
        try:
            done = subprocess.run(
                [*part.command, f"--output={output}"],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **part.environment},
                stdout=file,
                stderr=file,
                timeout=seconds,
                check=False,
            )
            if done.returncode:
                why = reason(log.read_text(errors="replace"), done.returncode)
        except subprocess.TimeoutExpired:
            why = f"it took longer than {seconds:.0f} s"
    record: dict[str, Any] = {"command": command, "seconds": round(time.monotonic() - began, 1)}
    # A plan that does not fit is a result, though its status is that of bad input.
    if output.exists():
        record["result"] = json.loads(output.read_bytes())
    else:
        record["not_measured"] = why or "it wrote nothing"
    files.write_file(path, json.dumps(record, indent=1).encode())
    return record


def reason(log: str, status: int) -> str:
    """Return one line of what a process printed: its error, else its last words."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    words = (errors or lines or [""])[-1]
    return f"{words[:500] or 'it printed nothing'} (exit status {status})"


def parts(arguments: argparse.Namespace, kind: str) -> Iterator[Part]:
    """Yield what is measured.

    Args:
        arguments: of `main`.
        kind: jax.Device.device_kind.
    """
    config = arguments.config
    benchmark = (sys.executable, "-m", "dimo_jax.benchmark", f"--config={config}")
    timed = (f"--repetitions={arguments.repetitions}", *arguments.options)
    first, *_ = arguments.batch_sizes
    # Nothing else is on the card; JAX would take three quarters of it.
    fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    calls = [("train", size, ()) for size in arguments.batch_sizes]
    for size in sorted({1, first}):
        calls += [("sample", size, ()), ("teacher_sample", size, ("--steps=8,16",))]
    for what, size, more in calls:
        command = (*benchmark, f"--what={what}", f"--batch_size={size}", *more, *timed)
        yield Part(f"{what}_{size}", command, {"XLA_PYTHON_CLIENT_MEM_FRACTION": fraction})
    yield from torch_parts(arguments, kind)
    name = next((name for name, x in devices.DEVICES.items() if kind in x.kinds), None)
    for size in arguments.batch_sizes:
        yield Part(
            f"plan_{size}",
            (
                *(sys.executable, "-m", "dimo_jax.plan", f"--config={config}", *arguments.options),
                *(f"--topology={name or 'cpu'}:1", f"--config.distill.batch_size={size}"),
            ),
            {"JAX_PLATFORMS": "cpu"},
            "" if name or kind == "cpu" else f"there is no plan for the device {kind}",
        )


def torch_parts(arguments: argparse.Namespace, kind: str) -> Iterator[Part]:
    """Yield the steps of PyTorch."""
    variant = {"": "full", "smoke": "smoke"}.get(arguments.config.partition(":")[2])
    why = ""
    if not arguments.torch_python:
        why = "there is no PyTorch: TORCH_PYTHON is not set, and it could not be installed"
    elif variant is None or Path(arguments.config.partition(":")[0]).name != "imagenet.py":
        why = f"benchmarks/torch_step.py has no network for {arguments.config}"
    card = ("--device=cpu", "--dtype=float32", "--threads", str(os.cpu_count()))
    if kind != "cpu":
        card = ("--device=cuda", "--dtype=bfloat16")
    for size in arguments.batch_sizes:
        yield Part(
            f"torch_{size}",
            (
                *(arguments.torch_python or "python", "benchmarks/torch_step.py", "--only=torch"),
                *(f"--config={variant}", f"--batch_size={size}", *card),
                f"--repetitions={arguments.repetitions}",
            ),
            # JAX only makes the weights, and must leave the card alone.
            {"JAX_PLATFORMS": "cpu"},
            why,
        )


def table(records: Mapping[str, Mapping[str, Any]], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return the figures for people, a row for each size and number of steps."""
    found = {name: record["result"] for name, record in records.items() if "result" in record}
    rows = []
    for size in sizes:
        row: dict[str, Any] = {"what": "training step", "batch_size": size}
        if f"train_{size}" in found:
            (one,) = found[f"train_{size}"]["results"]
            row |= {"step_seconds": one["step_seconds"], "mfu": one["mfu"]}
            row |= {"images_per_second": one["images_per_second"]}
            row |= {"peak_gib": _gib(one["device_peak_bytes"])}
        if f"torch_{size}" in found:
            theirs = found[f"torch_{size}"]
            ((whose, times),) = theirs["step"]["seconds"].items()
            row |= {"torch_step_seconds": times}
            facts = theirs["step"]["facts"][whose]
            row |= {"torch_peak_gib": _gib(facts.get("device_peak_bytes"))}
            if "step_seconds" in row:
                row["torch_over_dimo_jax"] = times["median"] / row["step_seconds"]["median"]
        if f"plan_{size}" in found:
            planned = found[f"plan_{size}"]
            row["predicted_peak_gib"] = _gib(planned["memory"].get("peak_bytes"))
            predicted = planned.get("predicted") or {}
            row["predicted_is_bound"] = predicted.get("is_bound")
            row["predicted_seconds"] = predicted.get("step_seconds")
            if row["predicted_seconds"] and "step_seconds" in row:
                ratio = row["step_seconds"]["median"] / row["predicted_seconds"]
                row["measured_over_predicted"] = ratio
        rows.append(row)
    for name, what in (("sample", "one step"), ("teacher_sample", "teacher")):
        for size in sorted({1, sizes[0]}):
            for one in found.get(f"{name}_{size}", {"results": []})["results"]:
                row = {"what": what, "batch_size": size, "steps": one.get("num_steps", 1)}
                row["latency_seconds"] = one["latency_seconds"]["whole"]
                row["images_per_second"] = one["images_per_second"]
                rows.append(row | {"mfu": one["mfu"], "peak_gib": _gib(one["device_peak_bytes"])})
    return rows


def _gib(size: int | None) -> float | None:
    return size / GIB if size else None


def device_kind() -> str:
    """Return the card's, found by a process of its own: this one would keep its memory."""
    code = "import jax; print(jax.devices()[0].device_kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: JAX does not start here: {reason(done.stderr, done.returncode)}")
    return done.stdout.split("\n")[-2]


def parser() -> argparse.ArgumentParser:
    """Return the arguments; fields of the config come beside them."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--config", default="configs/imagenet.py", help="any of benchmark's")
    found.add_argument("--output", default="one_card", help="a folder")
    found.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 256])
    found.add_argument("--repetitions", type=int, default=10)
    found.add_argument("--torch_python", default="", help="an interpreter that has PyTorch")
    found.add_argument("--timeout_seconds", type=float, default=3600, help="of each part")
    return found


def main() -> None:
    """Measure each part, and write the file after each."""
    flags = parser()
    arguments, arguments.options = flags.parse_known_args()
    if wrong := [x for x in arguments.options if not x.startswith("--config.")]:
        flags.error(f"{wrong[0]} is no flag of this program, nor a field --config.NAME=VALUE")
    # A kill ends what runs too, as Ctrl-C does; what is done stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder, kind, records = Path(arguments.output).resolve(), device_kind(), {}
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    for part in parts(arguments, kind):
        record = records[part.name] = measure(part, folder / "parts", arguments.timeout_seconds)
        result = {
            "config": arguments.config,
            "device_kind": kind,
            "table": table(records, arguments.batch_sizes),
            "not_measured": {
                name: x["not_measured"] for name, x in records.items() if "not_measured" in x
            },
            "parts": records,
        }
        files.write_file(folder / "one_card.json", json.dumps(result, indent=1).encode())
        print(f"{part.name}: {record.get('not_measured', 'done')}", file=sys.stderr, flush=True)
    print(folder / "one_card.json")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on with the next part")
