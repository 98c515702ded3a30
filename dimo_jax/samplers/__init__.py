"""Ways to turn a network into tokens: one file for each method, one dict of the iterative ones."""

import dataclasses
from collections.abc import Callable
from typing import Any

from dimo_jax.samplers import google, halton, maskgit, meissonic, solvers

__all__ = ["DEFAULTS", "SAMPLERS", "Sampler"]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """An iterative sampler.

    Attributes:
        settings: its settings' class; num_steps and what else it takes.
        sample: (apply, params, key, condition, null_condition, settings, num_tokens, mask_id,
            batch_size, first_index) -> tokens [N, L].
    """

    settings: type
    sample: Callable[..., Any]


SAMPLERS = {
    "maskgit": Sampler(maskgit.MaskGitSettings, maskgit.sample),
    "halton": Sampler(halton.HaltonSettings, halton.sample),
    "google": Sampler(google.GoogleSettings, google.sample),
    "meissonic": Sampler(meissonic.MeissonicSettings, meissonic.sample),
    "solver": Sampler(solvers.SolverSettings, solvers.sample),
}
# Network -> the sampler of its authors; any other network takes "maskgit".
DEFAULTS = {"halton": "halton", "google_maskgit": "google", "meissonic": "meissonic"}
