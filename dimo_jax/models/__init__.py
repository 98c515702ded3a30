"""Networks: configuration in, two pure functions out. The only importer of flax.linen.

Everything outside sees a network as `init(key) -> params` and `apply(params, tokens, condition) ->
logits`; teacher, auxiliary and generator are one `apply` with three parameter trees.
"""

from collections.abc import Mapping
from typing import Any

from dimo_jax.common import limits
from dimo_jax.common.errors import InputError
from dimo_jax.models import (
    classifier,
    exact_posterior,
    google_maskgit,
    halton,
    inception,
    joined,
    mask2former,
    maskgit,
    meissonic,
)
from dimo_jax.models.network import Compute, Network, with_compute

__all__ = ["NETWORKS", "Compute", "Network", "build"]

NETWORKS = {
    "classifier": classifier.build,
    "exact_posterior": exact_posterior.build,
    "google_maskgit": google_maskgit.build,
    "halton": halton.build,
    "inception": inception.build,
    "mask2former": mask2former.build,
    "maskgit": maskgit.build,
    "meissonic": meissonic.build,
}
# The networks that have blocks, conditioned on a class and on text.
TRANSFORMERS = ("google_maskgit", "halton", "maskgit")
TEXT_TRANSFORMERS = ("meissonic",)


def build(config: Mapping[str, Any], compute: Compute | None = None) -> Any:
    """Return the network that a plain configuration describes.

    Args:
        config: plain values; "name" is one of NETWORKS, the rest are that network's sizes. Or
            "guided", and two such configs as "network" and "guide".
        compute: how a token network is computed; None: in float32, the plain way.

    Returns:
        A Network (or, for "classifier", its own kind of network, which has init(key) too).

    Raises:
        InputError: on an unknown name or on sizes the network does not take.
    """
    limits.check_sizes(config)
    fields = dict(config)
    name = fields.pop("name", None)
    if name == "guided":
        return _guided(fields, compute)
    if name not in NETWORKS:
        raise InputError(f"there is no network named {name!r}; there are {', '.join(NETWORKS)}")
    # The networks without blocks are computed in one way only.
    has_blocks = name in TRANSFORMERS + TEXT_TRANSFORMERS
    options = {"compute": compute} if compute and has_blocks else {}
    try:
        network = NETWORKS[name](**fields, **options)
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"the network {name!r} does not take these sizes: {error}") from error
    return with_compute(network, compute) if compute else network


def _guided(fields: Mapping[str, Any], compute: Compute | None) -> Network:
    """Return two networks as one."""
    names = (joined.NETWORK, joined.GUIDE)
    inner = [fields.get(name) for name in names]
    if set(fields) != set(names) or not all(
        isinstance(x, Mapping) and x.get("name") in TRANSFORMERS for x in inner
    ):
        raise InputError(
            f"a guided network has {' and '.join(names)}, each the config of one of "
            f"{', '.join(TRANSFORMERS)}"
        )
    network, guide = (build(x, compute) for x in inner if x is not None)
    return joined.guided(network, guide)
