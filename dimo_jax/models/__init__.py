"""Networks: configuration in, two pure functions out. The only importer of flax.linen.

Everything outside sees a network as `init(key) -> params` and `apply(params, tokens, condition) ->
logits`; teacher, auxiliary and generator are one `apply` with three parameter trees.
"""

from collections.abc import Mapping
from typing import Any

from dimo_jax.errors import InputError
from dimo_jax.models import classifier, exact_posterior, google_maskgit, halton, maskgit
from dimo_jax.models.network import Network, in_dtype

__all__ = ["NETWORKS", "Network", "build"]

NETWORKS = {
    "classifier": classifier.build,
    "exact_posterior": exact_posterior.build,
    "google_maskgit": google_maskgit.build,
    "halton": halton.build,
    "maskgit": maskgit.build,
}


def build(config: Mapping[str, Any], compute_dtype: str = "float32") -> Any:
    """The network that a plain configuration describes.

    Args:
        config: plain values; "name" is one of NETWORKS, the rest are that network's sizes.
        compute_dtype: "float32" or "bfloat16", for a token network (network.in_dtype).

    Returns:
        A Network (or, for "classifier", its own kind of network, which has init(key) too).

    Raises:
        InputError: on an unknown name or on sizes the network does not take.
    """
    fields = dict(config)
    name = fields.pop("name", None)
    if name not in NETWORKS:
        raise InputError(f"there is no network named {name!r}; there are {', '.join(NETWORKS)}")
    try:
        network = NETWORKS[name](**fields)
    except TypeError as error:
        raise InputError(f"the network {name!r} does not take these sizes: {error}") from error
    return in_dtype(network, compute_dtype) if isinstance(network, Network) else network
