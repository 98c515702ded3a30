"""Known joint distributions of a few tokens: data whose exact posterior can be computed.

Axes: one for each of the L tokens, V values each.
"""

import numpy as np
from jaxtyping import Float, Int

from dimo_jax.common.errors import InputError


def _pair() -> np.ndarray:
    """Return two tokens of 16 values, equal in 96 % of the mass; the rest is spread evenly."""
    joint = np.full((16, 16), 0.04 / (16 * 15))
    np.fill_diagonal(joint, 0.96 / 16)
    return joint


# Codewords of the mixture: any two differ in all four places.
_MODES = ((0, 1, 2, 3), (4, 5, 6, 7), (7, 3, 1, 5), (2, 6, 4, 0))


def _modes() -> np.ndarray:
    """Return an even mixture of four words: 4 tokens of 8 values, 3 % of them replaced."""
    joint = np.zeros((8,) * 4)
    for word in _MODES:
        tokens = [np.where(np.arange(8) == value, 0.97, 0.03 / 7) for value in word]
        joint += np.einsum("a,b,c,d->abcd", *tokens) / len(_MODES)
    return joint


def _parity() -> np.ndarray:
    """Four bits of even parity (99 % of the mass): no three of them tell anything."""
    parity = np.indices((2,) * 4).sum(0) % 2
    return np.where(parity == 0, 0.99 / 8, 0.01 / 8)


JOINTS = {"pair": _pair, "modes": _modes, "parity": _parity}


def load(name: str) -> Float[np.ndarray, "..."]:
    """Return the joint of that name.

    Args:
        name: a key of JOINTS.

    Returns:
        float64, one axis of V values for each token; positive everywhere, sums to 1.

    Raises:
        InputError: on another name.
    """
    if name not in JOINTS:
        raise InputError(f"there is no joint {name!r}; there are {', '.join(JOINTS)}")
    return JOINTS[name]()


def sample(joint: Float[np.ndarray, "..."], num_samples: int, seed: int) -> Int[np.ndarray, "N L"]:
    """Tokens drawn from a joint.

    Args:
        joint: probabilities, one axis of V values for each token.
        num_samples: N.
        seed: of the draws.

    Returns:
        [N, L] int32.
    """
    flat = np.random.default_rng(seed).choice(joint.size, num_samples, p=joint.ravel())
    return np.stack(np.unravel_index(flat, joint.shape), axis=1).astype(np.int32)


def independent(joint: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return the product of the joint's marginals: the best that independent sampling can do."""
    product = np.ones(())
    for axis in range(joint.ndim):
        others = tuple(a for a in range(joint.ndim) if a != axis)
        product = np.multiply.outer(product, joint.sum(others))
    return product
