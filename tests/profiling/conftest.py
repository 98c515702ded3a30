"""A plan's process compiles for absent machines and ends; a test's goes on with other tests."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(autouse=True)
def what_a_plan_sets_is_undone():
    """Its variables, which commands that are started later would inherit, and the cache."""
    before, kept = set(os.environ), jax.config.jax_enable_compilation_cache
    compilation_cache.reset_cache()
    yield
    for name in set(os.environ) - before:
        os.environ.pop(name)
    jax.config.update("jax_enable_compilation_cache", kept)
    compilation_cache.reset_cache()
