"""How far a generator's joint distribution is from a known one: results.json, report.md, a picture.

Axes: N samples, L tokens, V values of each.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dimo_jax.common import files, images
from dimo_jax.common.files import AnyPath
from dimo_jax.data import joints
from dimo_jax.evaluation.evaluate_images import evaluate
from dimo_jax.evaluation.features.outputs import InMemory
from dimo_jax.evaluation.metrics.of_outputs import Metric, total_variation
from dimo_jax.evaluation.report import page_tables, schema
from dimo_jax.evaluation.report.schema import Results


def histogram(tokens: Int[np.ndarray, "N L"], num_values: int) -> Float[np.ndarray, "..."]:
    """Return the empirical joint of the samples, float64 with one axis of V for each token."""
    shape = (num_values,) * tokens.shape[1]
    index = np.ravel_multi_index(tuple(tokens.T), shape)
    return np.bincount(index, minlength=np.prod(shape)).reshape(shape) / len(tokens)


def write(
    folder: AnyPath | str,
    joint: Float[np.ndarray, "..."],
    samples: Mapping[tuple[str, int], Int[np.ndarray, "N L"]],
    *,
    title: str,
    provenance: Mapping[str, Any],
) -> float:
    """Write results.json, report.md and joints.png.

    Args:
        folder: where; made if it is not there.
        joint: the true one.
        samples: as many of each model at each number of steps; the picture is of the first.
        title: the report's first line.
        provenance: as schema.Results.

    Returns:
        The total variation between the first samples' joint and the true one.
    """
    folder, num_samples = files.path(folder), len(next(iter(samples.values())))
    found = {row: histogram(tokens, joint.shape[0]) for row, tokens in samples.items()}
    product = joints.independent(joint)
    # What as many samples of the truth itself would show: no generator can be expected below.
    own = np.random.default_rng(0).multinomial(num_samples, joint.ravel()) / num_samples
    tables = {
        **found,
        ("independent", 1): product,
        ("true_joint", 0): own.reshape(joint.shape),
    }
    truth = InMemory(joint, {}, joint=joint)
    rows = [
        evaluate(
            InMemory(table, {}, joint=table), truth, [Metric(total_variation)], model=m, steps=calls
        )
        for (m, calls), table in tables.items()
    ]
    results = Results(rows, provenance, title, settings={"num_samples": num_samples})
    schema.write(folder, results)
    images.save_png(folder / "joints.png", _picture(joint, next(iter(found.values())), product))
    sections = [
        f"# {title}",
        f"Total variation to the true joint, estimated on {num_samples} samples.",
        page_tables.markdown(page_tables.every_metric(results), mark_best=False),
        "![true joint, generator, independent](joints.png)",
        "Left to right: the true joint, the generator's, the product of the marginals.",
    ]
    files.write_file(folder / "report.md", ("\n\n".join(sections) + "\n").encode())
    return rows[0].known("total_variation")


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
