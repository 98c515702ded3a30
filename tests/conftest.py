"""Strict settings for every test; they must stand before JAX starts its backend."""

import gc
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most of the suite's time is LLVM optimizing programs that run once: without it, half of that.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

# The commands that tests start compile the same programs again and again. A folder for each worker:
# JAX writes an entry in place, and another worker could read half of it.
_CACHE = (
    Path(__file__).parent.parent / ".jax_cache" / os.environ.get("PYTEST_XDIST_WORKER", "alone")
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Shapes and dtypes in the signatures are checked at run time, in tests only.
install_import_hook("dimo_jax", "beartype.beartype")

import pytest  # noqa: E402

from dimo_jax.common import host_memory  # noqa: E402
from dimo_jax.parallel import distributed  # noqa: E402

host_memory.keep_freed_memory()
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(autouse=True)
def no_threads_are_abandoned():
    """Otherwise a command that ends in this process would end the process, after such a test."""
    yield
    distributed.abandoned.clear()


@pytest.fixture(autouse=True, scope="module")
def what_stays_is_looked_at_once():
    """Takes modules, tests and JAX's caches from the garbage collector.

    Late in the suite they would make every call of it, and Orbax's failures call it often, take a
    second.
    """
    gc.collect()
    gc.freeze()
