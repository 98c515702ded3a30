"""The figures of sets of images as files: results.json for programs, results.md for people."""

from pathlib import Path

from dimo_jax.common.files import write_file
from dimo_jax.evaluation.metrics.of_outputs import SCORES
from dimo_jax.evaluation.metrics.protocols import Protocol
from dimo_jax.evaluation.metrics.rows import Row
from dimo_jax.evaluation.report import page_tables, schema
from dimo_jax.evaluation.report.schema import Results

TABLE_FILE = "results.md"


def write(folder: Path, results: Results) -> list[Path]:
    """Write results.json and results.md; files of these names are replaced.

    Args:
        folder: where; made if it is not there.
        results: what was found.

    Returns:
        The paths written.

    Raises:
        InputError: the folder cannot be written.
        ValueError: the provenance lacks an entry, or a number is not finite.
    """
    path = schema.write(folder, results)
    return [path, write_file(folder / TABLE_FILE, markdown(results).encode())]


def markdown(results: Results) -> str:
    """Return a table of all rows, and what it was measured with."""
    warnings = [f"* Warning: {row.model}: {text}." for row in results.rows for text in row.warnings]
    sections = [
        page_tables.markdown(page_tables.every_metric(results)),
        *(["\n".join(warnings)] if warnings else []),
        page_tables.markdown(page_tables.provenance(results)),
    ]
    return "\n\n".join(sections) + "\n"


def adm_lines(row: Row, protocol: Protocol) -> str:
    """Return the lines that OpenAI's evaluator prints, of what was measured."""
    lines = {
        "Inception Score": SCORES[protocol.score],
        **{"FID": "fid", "rFID": "rfid", "sFID": "sfid"},
        **{"Precision": "precision", "Recall": "recall"},
    }
    there = {text: name for text, name in lines.items() if name in row.metrics}
    return "\n".join(f"{text}: {row.mean(name)}" for text, name in there.items())
