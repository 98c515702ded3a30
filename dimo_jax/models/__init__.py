"""Networks: configuration in, two pure functions out. The only importer of flax.linen.

Everything outside sees a network as `init(key) -> params` and `apply(params, tokens, condition) ->
logits`; teacher, auxiliary and generator are one `apply` with three parameter trees.
"""

from collections.abc import Mapping
from typing import Any

from dimo_jax.errors import InputError
from dimo_jax.models import classifier, exact_posterior, maskgit
from dimo_jax.models.network import Network

__all__ = ["NETWORKS", "Network", "build"]

NETWORKS = {
    "classifier": classifier.build,
    "exact_posterior": exact_posterior.build,
    "maskgit": maskgit.build,
}


def build(config: Mapping[str, Any]) -> Any:
    """The network that a plain configuration describes.

    Args:
        config: plain values; "name" is one of NETWORKS, the rest are that network's sizes.

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
        return NETWORKS[name](**fields)
    except TypeError as error:
        raise InputError(f"the network {name!r} does not take these sizes: {error}") from error
