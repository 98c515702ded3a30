"""Precision, recall, density and coverage of many features, on the devices.

Distances are float32 products of the highest precision, computed block by block: rows are spread
over this process's devices, columns are scanned, and a block leaves only its k smallest distances
or its counts behind. Centring takes most of the cancellation out of |x|^2 + |y|^2 - 2 xy; numbers
whose products are exact, such as few gray levels, are better left as they are, since equal
distances of theirs are then equal. N reference examples, M samples, D features, R rows and C
columns of a block.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Num

# Small sets are padded to whole blocks too: where a sample is a copy of a real example, a distance
# equals a radius exactly, and only a product of the same shape is sure to give it the same bits.
ROWS_PER_DEVICE = 512
COLUMNS = 4096


class Inside(NamedTuple):
    """Who lies in whose ball.

    Attributes:
        balls_around: for each sample, how many balls of the reference it lies in.
        recalled: for each reference example, whether it lies in any ball of the samples.
        covered: for each reference example, whether any sample lies in its ball.
    """

    balls_around: Int[np.ndarray, "M"]
    recalled: Bool[np.ndarray, "N"]
    covered: Bool[np.ndarray, "N"]


class Columns(NamedTuple):
    """Examples on the devices, cut into blocks that are scanned; the last is padded with zeros.

    Attributes:
        blocks: float32.
        index: the place of each example in the set; below 0 for padding.
    """

    blocks: Float[Array, "S C D"]
    index: Int[Array, "S C"]


def precision_recall_density_coverage(
    real: Num[np.ndarray, "N ..."],
    samples: Num[np.ndarray, "M ..."],
    num_neighbours: int,
    closed: bool = False,
) -> dict[str, float]:
    """Measure how far samples lie inside the real manifold, and real examples inside theirs.

    A ball around each example reaches to its `num_neighbours`-th nearest neighbour in its own set;
    an example is inside where its distance is strictly smaller.

    Args:
        real: the reference.
        samples: of another number of rows, if need be.
        num_neighbours: k; smaller than either number of rows.
        closed: count an example on the edge of a ball as inside, as ADM's evaluator and
            torch-fidelity do; the package prdc does not.

    Returns:
        precision: share of samples inside any real ball.
        recall: share of real examples inside any ball of the samples.
        density: mean number of real balls around a sample, divided by k (may exceed 1).
        coverage: share of real balls with a sample inside.

    Raises:
        ValueError: if either set has no `num_neighbours` neighbours.

    Source: Kynkäänniemi et al., arXiv 1904.06991; Naeem et al., arXiv 2002.09797 (package prdc).
    """
    real, samples = (np.asarray(x, np.float32).reshape(len(x), -1) for x in (real, samples))
    radii = [squared_radii(x, num_neighbours) for x in (real, samples)]
    return shares(inside(real, radii[0], samples, radii[1], closed), num_neighbours)


def shares(inside: Inside, num_neighbours: int) -> dict[str, float]:
    """precision, recall, density and coverage, from who lies in whose ball."""
    return {
        "precision": float(np.mean(inside.balls_around > 0)),
        "recall": float(np.mean(inside.recalled)),
        "density": float(1 / num_neighbours * np.mean(inside.balls_around)),
        "coverage": float(np.mean(inside.covered)),
    }


def merge_inside(parts: Iterable[Inside]) -> Inside:
    """Return the reference's from those of its consecutive parts, all with the same samples."""
    balls_around, recalled, covered = zip(*parts, strict=True)
    return Inside(np.sum(balls_around, axis=0), np.concatenate(recalled), np.concatenate(covered))


def centred(
    features: Num[np.ndarray, "N D"], mean: Float[np.ndarray, "D"]
) -> Float[np.ndarray, "N D"]:
    """Features less their mean: float32, subtracted in float64; no distance changes."""
    result = np.empty(features.shape, np.float32)
    return np.subtract(features, mean, out=result, casting="same_kind", dtype=np.float64)


def squared_radii(
    rows: Float[np.ndarray, "N D"], num_neighbours: int, part: slice = slice(None)
) -> Float[np.ndarray, "P"]:
    """Squared distance of each row to its k-th nearest other row.

    Args:
        rows: the whole set, float32.
        num_neighbours: k.
        part: the rows whose radii are wanted, of step 1; processes that take a part each join
            their results in order.

    Returns:
        float32, one for each row of the part.

    Raises:
        ValueError: there are not k other rows.
    """
    if not 0 < num_neighbours < len(rows):
        raise ValueError(f"no {num_neighbours} neighbours among {len(rows)} examples")
    columns = _columns(rows)
    radii = []
    for block, index in _row_blocks(rows, part):
        best = _smallest(block, index, columns, num_neighbours)
        radii.append(np.asarray(best)[:, -1][np.asarray(index) >= 0])
    return np.concatenate(radii) if radii else np.zeros(0, np.float32)


def inside(
    real: Float[np.ndarray, "N D"],
    real_radii: Float[np.ndarray, "N"],
    samples: Float[np.ndarray, "M D"],
    sample_radii: Float[np.ndarray, "M"],
    closed: bool = False,
) -> Inside:
    """Find who lies in whose ball.

    Args:
        real: the reference or a part of it; `merge_inside` joins the results of parts.
        real_radii: squared radius of each.
        samples: all samples, centred like `real`.
        sample_radii: squared radius of each.
        closed: whether the edge belongs to a ball.

    Returns:
        Counts and marks.
    """
    columns = _columns(samples)
    spread_radii = _to_columns(sample_radii, columns)
    around = np.zeros(len(samples), np.int64)
    recalled, covered = [], []
    for block, index in _row_blocks(real):
        radii = real_radii[np.maximum(index, 0)]
        marks = _compare(block, index, radii, columns, spread_radii, closed)
        counts, row_recalled, row_covered = map(np.asarray, marks)
        around += counts.reshape(-1)[: len(samples)]
        recalled.append(row_recalled[index >= 0])
        covered.append(row_covered[index >= 0])
    return Inside(around, np.concatenate(recalled), np.concatenate(covered))


def nearest(
    rows: Num[np.ndarray, "M ..."], others: Num[np.ndarray, "N ..."]
) -> tuple[Int[np.ndarray, "M"], Float[np.ndarray, "M"]]:
    """Index of and Euclidean distance to each row's nearest neighbour among `others`.

    Args:
        rows: features or pixels of samples.
        others: those of real images.

    Returns:
        (int32, float32); of equally near ones the first.
    """
    rows, others = (x.reshape(len(x), -1) for x in (rows, others))
    mean = others.mean(axis=0, dtype=np.float64)
    columns = _columns(centred(others, mean))
    found = []
    for block, index in _row_blocks(centred(rows, mean)):
        best, where = map(np.asarray, _nearest(block, columns))
        found.append((where[index >= 0], best[index >= 0]))
    places, squares = map(np.concatenate, zip(*found, strict=True))
    return places, np.sqrt(squares)


def _mesh() -> Mesh:
    # Each process takes its own rows: they are spread over its own devices only.
    return Mesh(np.array(jax.local_devices()), "data")


def _columns(rows: np.ndarray) -> Columns:
    padding = -len(rows) % COLUMNS
    index = np.pad(np.arange(len(rows), dtype=np.int32), (0, padding), constant_values=-1)
    blocks = np.pad(rows, ((0, padding), (0, 0))).reshape(-1, COLUMNS, rows.shape[1])
    everywhere = NamedSharding(_mesh(), PartitionSpec())
    return Columns(*jax.device_put((blocks, index.reshape(-1, COLUMNS)), everywhere))


def _to_columns(values: np.ndarray, columns: Columns) -> Array:
    """Return one value for each example, in the columns' shape."""
    padded = np.pad(values, (0, columns.index.size - len(values)))
    return jax.device_put(padded.reshape(columns.index.shape), columns.index.sharding)


def _row_blocks(rows: np.ndarray, part: slice = slice(None)):
    """Block of one shape with the places of their rows, NumPy; below 0 where a block is padded."""
    mesh = _mesh()
    start, stop, _ = part.indices(len(rows))
    size = ROWS_PER_DEVICE * mesh.devices.size
    spread = NamedSharding(mesh, PartitionSpec("data"))
    for first in range(start, stop, size):
        index = np.arange(first, first + size, dtype=np.int32)
        index[index >= stop] = -1
        yield jax.device_put(rows[np.maximum(index, 0)], spread), index


def squared_distances(rows: Float[Array, "R D"], others: Float[Array, "C D"]) -> Array:
    """Return |row - other|^2 [R, C], in the dtype of both, by products of the highest precision."""
    products = jnp.matmul(rows, others.T, precision=lax.Precision.HIGHEST)
    squares = jnp.sum(rows**2, axis=1)[:, None] + jnp.sum(others**2, axis=1)[None]
    return jnp.maximum(squares - 2 * products, 0)


@functools.partial(jax.jit, static_argnames="k")
def _smallest(
    rows: Float[Array, "R D"], index: Int[Array, "R"], columns: Columns, k: int
) -> Float[Array, "R k"]:
    """Return, rising, the k smallest squared distances of each row to the other examples."""

    def scan(best: Array, column: Columns) -> tuple[Array, None]:
        squares = squared_distances(rows, column.blocks)
        # Itself is left out by its index: a duplicate also lies at distance zero, and counts.
        left_out = (column.index[None] == index[:, None]) | (column.index < 0)[None]
        squares = jnp.where(left_out, jnp.inf, squares)
        return -lax.top_k(-jnp.concatenate([best, squares], axis=1), k)[0], None

    return lax.scan(scan, jnp.full((len(rows), k), jnp.inf), columns)[0]


@jax.jit
def _nearest(
    rows: Float[Array, "R D"], columns: Columns
) -> tuple[Float[Array, "R"], Int[Array, "R"]]:
    """Return the smallest squared distance of each row to the columns, and whose it is."""

    def scan(found: tuple, column: Columns) -> tuple[tuple, None]:
        best, where = found
        squares = squared_distances(rows, column.blocks)
        squares = jnp.where((column.index < 0)[None], jnp.inf, squares)
        here = jnp.argmin(squares, axis=1)
        smallest = jnp.take_along_axis(squares, here[:, None], axis=1)[:, 0]
        nearer = smallest < best
        place = jnp.where(nearer, column.index[here], where)
        return (jnp.where(nearer, smallest, best), place), None

    nothing = (jnp.full(len(rows), jnp.inf), jnp.full(len(rows), -1, jnp.int32))
    return lax.scan(scan, nothing, columns)[0]


@functools.partial(jax.jit, static_argnames="closed")
def _compare(
    rows: Float[Array, "R D"],
    index: Int[Array, "R"],
    radii: Float[Array, "R"],
    columns: Columns,
    column_radii: Float[Array, "S C"],
    closed: bool,
) -> tuple[Int[Array, "S C"], Bool[Array, "R"], Bool[Array, "R"]]:
    """Return how many rows' balls each column is in.

    Which rows are in a column's; which hold one.
    """
    within = jnp.less_equal if closed else jnp.less

    def scan(marks: tuple, column: tuple) -> tuple[tuple, Array]:
        block, their_radii = column
        squares = squared_distances(rows, block.blocks)
        there = (index >= 0)[:, None] & (block.index >= 0)[None]
        of_row = within(squares, radii[:, None]) & there
        of_column = within(squares, their_radii[None]) & there
        recalled, covered = marks
        marks = recalled | of_column.any(axis=1), covered | of_row.any(axis=1)
        return marks, of_row.sum(axis=0, dtype=jnp.int32)

    nothing = jnp.zeros(len(rows), bool)
    marks, counts = lax.scan(scan, (nothing, nothing), (columns, column_radii))
    return counts, *marks
