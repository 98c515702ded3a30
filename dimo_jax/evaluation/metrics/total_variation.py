"""How far a generator's joint distribution is from a known one, and a report that shows it.

Axes: N samples, L tokens, V values of each.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dimo_jax.common import files, images
from dimo_jax.common.files import AnyPath
from dimo_jax.data import joints


def histogram(tokens: Int[np.ndarray, "N L"], num_values: int) -> Float[np.ndarray, "..."]:
    """Return the empirical joint of the samples, float64 with one axis of V for each token."""
    shape = (num_values,) * tokens.shape[1]
    index = np.ravel_multi_index(tuple(tokens.T), shape)
    return np.bincount(index, minlength=np.prod(shape)).reshape(shape) / len(tokens)


def total_variation(p: Float[np.ndarray, "..."], q: Float[np.ndarray, "..."]) -> float:
    """Half the sum of |p - q|: 0 for the same distribution, 1 for disjoint ones."""
    return float(0.5 * np.abs(p - q).sum())


def write_report(
    folder: AnyPath | str,
    joint: Float[np.ndarray, "..."],
    tokens: Int[np.ndarray, "N L"],
    *,
    title: str,
    provenance: Mapping[str, Any],
) -> float:
    """Write results.json, report.md and joints.png.

    Args:
        folder: where; made if it is not there.
        joint: the true one.
        tokens: the generator's samples in one step.
        title: the report's first line.
        provenance: "seed", "versions", "device", "wall_seconds", "hashes".

    Returns:
        The total variation between the generator's joint and the true one.
    """
    folder, num_samples = files.path(folder), len(tokens)
    product = joints.independent(joint)
    found = histogram(tokens, joint.shape[0])
    # What as many samples of the truth itself would show: no generator can be expected below.
    own = np.random.default_rng(0).multinomial(num_samples, joint.ravel()) / num_samples
    rows = [
        {"model": name, "steps": steps, "metrics": {"total_variation": {"mean": value, "std": 0.0}}}
        for name, steps, value in (
            ("generator", 1, total_variation(found, joint)),
            ("independent", 1, total_variation(product, joint)),
            ("true_joint", 0, total_variation(own.reshape(joint.shape), joint)),
        )
    ]
    results = {"rows": rows, "num_samples": num_samples, **provenance}
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    files.write_file(folder / "results.json", text.encode())
    images.save_png(folder / "joints.png", _picture(joint, found, product))
    files.write_file(folder / "report.md", _markdown(title, rows, num_samples).encode())
    return rows[0]["metrics"]["total_variation"]["mean"]


def _picture(*tables: Float[np.ndarray, "..."]) -> np.ndarray:
    """Draw the joint of the first half of the tokens against the second, darker for more mass."""
    tiles = []
    for table in tables:
        rows = int(np.prod(table.shape[: table.ndim // 2]))
        flat = table.reshape(rows, -1)
        tiles.append(1 - np.sqrt(flat / tables[0].max()).clip(0, 1))
    scale = max(1, 256 // tiles[0].shape[0])
    stack = np.stack(tiles).repeat(scale, 1).repeat(scale, 2)[..., None]
    return images.grid(images.to_uint8(stack), columns=len(tables))


def _markdown(title: str, rows: list[dict], num_samples: int) -> str:
    lines = [
        f"# {title}",
        "",
        f"Total variation to the true joint, estimated on {num_samples} samples.",
        "",
        "| distribution | network calls | total variation |",
        "| --- | --- | --- |",
    ]
    names = {
        "generator": "one-step generator",
        "independent": "independent sampling of the exact marginals",
        "true_joint": "samples of the true joint (the estimate's own error)",
    }
    for row in rows:
        value = row["metrics"]["total_variation"]["mean"]
        lines.append(f"| {names[row['model']]} | {row['steps'] or ''} | {value:.3f} |")
    lines += ["", "![true joint, generator, independent](joints.png)", ""]
    lines += ["Left to right: the true joint, the generator's, the product of the marginals.", ""]
    return "\n".join(lines)
