"""What the published checkpoints are sampled with, where that is known of their authors.

Guidance is s = w + 1 in their own terms.
"""

from collections.abc import Mapping
from typing import Any


def maskgit(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings behind the published FID (guidance w + 1).

    6.80 at 256 px, 7.26 at 512.
    """
    if config["num_tokens"] > 256:
        return {"num_steps": 15, "guidance": 3.8, "choice_temperature": 7.0}
    return {"num_steps": 8, "guidance": 4.0, "choice_temperature": 4.5}


def di4c(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return 4 steps and guidance 6 + 1, as in the only command that its authors evaluate with.

    Unconfirmed: no source says that these are behind the FID of 6.57 that is cited of the published
    student (di4c-d), or behind the 6.79 of the one without a data term.
    """
    return {
        "name": "maskgit",
        "num_steps": 4,
        "counts": "differences",
        "guidance": 7.0,
        "choice_temperature": 4.5,
    }


def halton(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return 32 steps and the guidance w + 1 of the published FIDs, which falls with the size."""
    at_256 = config["num_tokens"] <= 256
    by_width = {384: 2.5, 512: 2.0, 768: 1.7} if at_256 else {512: 2.0, 768: 1.7, 1024: 1.5}
    return {"num_steps": 32, "guidance": by_width.get(config["width"], 1.5)}
