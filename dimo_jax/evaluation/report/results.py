"""What an evaluation found, as files: results.json for programs, results.md for people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimo_jax.common.files import write_file
from dimo_jax.evaluation import measure
from dimo_jax.evaluation.metrics import names as metric_names
from dimo_jax.evaluation.metrics.protocols import Protocol
from dimo_jax.evaluation.report import digits_report

RESULTS_FILE, TABLE_FILE = "results.json", "results.md"
HEADINGS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "IS",
    "inception_score_adm": "IS (ADM)",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
_ADM_LINES = {"fid": "FID", "sfid": "sFID", "precision": "Precision", "recall": "Recall"}


def write(
    folder: Path, rows: Sequence[Mapping[str, Any]], protocol: Protocol, **provenance: Any
) -> list[Path]:
    """Write results.json and results.md; files of these names are replaced.

    Args:
        folder: where; made if it is not there.
        rows: of measure.evaluate_samples.
        protocol: what they were measured with.
        provenance: as report.PROVENANCE names it; further entries are written too. Plain values.

    Returns:
        The paths written.

    Raises:
        InputError: the folder cannot be written.
        ValueError: the provenance lacks an entry, or a number is not finite.
    """
    if missing := [name for name in digits_report.PROVENANCE if name not in provenance]:
        raise ValueError(f"the provenance of an evaluation lacks {', '.join(missing)}")
    content = {
        "rows": list(rows),
        "protocol": protocol.report(),
        "precision": measure.PRECISION,
        **provenance,
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return [
        write_file(folder / RESULTS_FILE, text.encode()),
        write_file(folder / TABLE_FILE, markdown(content).encode()),
    ]


def write_scores(folder: Path, protocol: str, found: Mapping[str, Any], **provenance: Any) -> Path:
    """Write a results.json of scores against prompts.

    Args:
        folder: where; made if it is not there.
        protocol: its name.
        found: of prompt_scores: numbers are metrics, <name>_weights hashes, the rest settings.
        provenance: "versions", "device", "wall_seconds".

    Returns:
        The path.

    Raises:
        InputError: the folder cannot be written.
        ValueError: a number is not finite.
    """
    scores = {name: value for name, value in found.items() if isinstance(value, float)}
    hashes = {name: value for name, value in found.items() if name.endswith("_weights")}
    metrics = {name: {"mean": value, "std": 0.0} for name, value in scores.items()}
    content = {
        "rows": [{"model": "samples", "steps": 0, "metrics": metrics, "sampler": {}}],
        "protocol": protocol,
        "settings": {k: v for k, v in found.items() if k not in {**scores, **hashes}},
        "seed": None,
        **provenance,
        "hashes": hashes,
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return write_file(folder / RESULTS_FILE, text.encode())


def adm_lines(row: Mapping[str, Any], protocol: Protocol) -> str:
    """Return the lines that OpenAI's evaluator prints, of what was measured."""
    metrics = row["metrics"]
    lines = [("Inception Score", measure.SCORES[protocol.score])]
    lines += [(text, name) for name, text in _ADM_LINES.items()]
    return "\n".join(f"{text}: {metrics[name]['mean']}" for text, name in lines if name in metrics)


def markdown(content: Mapping[str, Any]) -> str:
    """Return a table of all rows, and what it was measured with.

    Args:
        content: of results.json.
    """
    rows, protocol = content["rows"], content["protocol"]
    names = [name for name in HEADINGS if any(name in row["metrics"] for row in rows)]
    table = [["samples", "steps", "N", *(HEADINGS[name] for name in names), "sampler"]]
    table += [["---"] * len(table[0])]
    for row in rows:
        values = [_value(row["metrics"].get(name)) for name in names]
        steps = str(row["steps"]) if row["steps"] else ""
        sampler = metric_names.describe(row["sampler"])
        table.append([row["model"], steps, f"{row['num']:,}", *values, sampler])
    facts = {
        "protocol": f"{protocol['name']}: {protocol['about']}",
        "resize": protocol["resizer"] + (", stretched" if protocol["stretch"] else ""),
        "prdc": f"k = {protocol['num_neighbours']}",
        "precision": content["precision"],
        **{f"hash of {name}": f"`{x}`" for name, x in content["hashes"].items() if x},
        "seed": content["seed"],
        "device": content["device"]["kind"],
        "code": content["versions"].get("code"),
        "seconds": f"{content['wall_seconds']:.1f}",
    }
    warnings = [f"{row['model']}: {text}" for row in rows for text in row["warnings"]]
    sections = ["\n".join("| " + " | ".join(line) + " |" for line in table)]
    sections += ["\n".join(f"* Warning: {text}." for text in warnings)] if warnings else []
    sections += ["\n".join(f"* {name}: {x}" for name, x in facts.items() if x is not None)]
    return "\n\n".join(sections) + "\n"


def _value(metric: Mapping[str, float] | None) -> str:
    if metric is None:
        return ""
    text = f"{metric['mean']:.4g}"
    return f"{text} ± {metric['std']:.2g}" if metric["std"] else text
