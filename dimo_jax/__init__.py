"""Di[M]O in JAX: masked diffusion image models distilled into one-step generators.

dimo_jax.load opens a bundle, a run or an exported file for use in Python.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dimo_jax.api import ExportedModel, ImageModel, load

__version__ = "0.2.0"
__all__ = ["ExportedModel", "ImageModel", "load"]


def __getattr__(name: str) -> Any:
    """Import what is used, when it is used: JAX alone takes longer than this package may."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dimo_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
