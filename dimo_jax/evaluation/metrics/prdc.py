"""Precision, recall, density and coverage as a protocol wants them, on all processes of a run.

Each process takes its rows; what they exchange is float32, int32 and bool, which the exchange keeps
exactly (float64 would arrive as float32). N real examples, M samples, D features.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Shaped

from dimo_jax.evaluation.metrics import neighbours
from dimo_jax.evaluation.metrics.protocols import SHUFFLE_SEED, Protocol

NAMES = ("precision", "recall", "density", "coverage")
_LARGEST_HALF = 65504.0


def measure(
    real: Float[np.ndarray, "N D"], samples: Float[np.ndarray, "M D"], protocol: Protocol
) -> dict[str, list[float]]:
    """Return the four figures of each of the protocol's chunks.

    Args:
        real: the reference, the same on every process.
        samples: likewise.
        protocol: says how many neighbours, which edge, which precision, how many chunks.

    Returns:
        {name: a figure for each chunk}.

    Raises:
        ValueError: a chunk has no `num_neighbours` neighbours.
    """
    found = [_four(*pair, protocol=protocol) for pair in _chunks(real, samples, protocol.chunks)]
    return {name: [four[name] for four in found] for name in NAMES}


def least_number(protocol: Protocol) -> int:
    """Return how many examples both sets need."""
    return protocol.chunks * (protocol.num_neighbours + 1)


def _chunks(real: np.ndarray, samples: np.ndarray, chunks: int) -> list[tuple]:
    if chunks == 1:
        return [(real, samples)]
    cut = []
    for rows in (real, samples):
        order = np.random.RandomState(SHUFFLE_SEED).permutation(len(rows))
        cut.append([rows[part] for part in np.array_split(order, chunks)])
    return list(zip(*cut, strict=True))


def _four(real: np.ndarray, samples: np.ndarray, protocol: Protocol) -> dict[str, float]:
    k = protocol.num_neighbours
    if protocol.half and _fits_half(real, samples):
        real, samples = real.astype(np.float16), samples.astype(np.float16)
    else:
        mean = real.mean(axis=0, dtype=np.float64)
        real, samples = (neighbours.centred(x, mean) for x in (real, samples))
    real_radii, sample_radii = (
        _joined(neighbours.squared_radii(x, k, _mine(len(x))), len(x)) for x in (real, samples)
    )
    mine = _mine(len(real))
    found = neighbours.inside(real[mine], real_radii[mine], samples, sample_radii, protocol.closed)
    if jax.process_count() > 1:
        around = multihost_utils.process_allgather(found.balls_around.astype(np.int32)).sum(axis=0)
        marks = [_joined(x, len(real)) for x in (found.recalled, found.covered)]
        found = neighbours.Inside(around.astype(np.int64), *marks)
    return neighbours.shares(found, k)


def _fits_half(*sets: np.ndarray) -> bool:
    """Return whether no squared distance overflows float16.

    ADM's evaluator then takes float32 too.
    """
    norm = sum(np.sqrt(np.max(np.sum(np.square(x, dtype=np.float64), axis=1))) for x in sets)
    return float(norm) ** 2 < _LARGEST_HALF


def _mine(num: int) -> slice:
    """Return this process's share of so many rows."""
    edges = np.arange(jax.process_count() + 1) * num // jax.process_count()
    return slice(int(edges[jax.process_index()]), int(edges[jax.process_index() + 1]))


def _joined(mine: Shaped[np.ndarray, "P"], num: int) -> Shaped[np.ndarray, "N"]:
    """Return all processes' shares of so many values, in order."""
    if jax.process_count() == 1:
        return mine
    longest = -(-num // jax.process_count())
    padded = np.zeros(longest, mine.dtype)
    padded[: len(mine)] = mine
    rows = np.asarray(multihost_utils.process_allgather(padded))
    edges = np.arange(jax.process_count() + 1) * num // jax.process_count()
    return np.concatenate([row[:n] for row, n in zip(rows, np.diff(edges), strict=True)])
