"""What a result was computed with: the versions of what decides on its bits."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import jax

PACKAGES = ("dimo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def installed() -> dict[str, str]:
    """Return {"python" or a package: its version}, of this process."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **versions}


def environment(**more: str) -> dict[str, Any]:
    """Return "versions" and "device": what a figure was computed with.

    Args:
        more: further versions, such as the code's.
    """
    device = jax.devices()[0]
    return {
        "versions": {**installed(), **more},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "machine": platform.machine(),
        },
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List what differs, e.g. "jax 0.10.2, now 0.12.0"; what is missing on one side does not."""
    return [f"{x} {before[x]}, now {now[x]}" for x in now if before.get(x, now[x]) != now[x]]
