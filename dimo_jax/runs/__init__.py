"""Whole runs: what dimo_jax.main does with a config, one file for each kind."""
