"""Di[M]O in JAX: masked diffusion image models distilled into one-step generators."""

__version__ = "0.1.0"
