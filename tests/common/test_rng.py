import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dimo_jax.common import rng


def data(key) -> tuple:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_seed_stream_and_step_all_matter():
    keys = {
        data(rng.stream_key(seed, stream, step))
        for seed in (0, 1)
        for stream in ("generator_sample", "aux_mask")
        for step in (0, 1, 2)
    }
    assert len(keys) == 12


def test_same_key_in_another_process_and_under_jit():
    here = data(jax.jit(lambda step: rng.stream_key(3, "aux_mask", step))(7))
    code = (
        "import jax; from dimo_jax.common import rng;"
        "print(jax.random.key_data(rng.stream_key(3, 'aux_mask', 7)).tolist())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(list(here))


def test_example_keys_do_not_depend_on_the_batch():
    key = rng.stream_key(0, "generator_sample")
    whole = jax.random.key_data(rng.example_keys(key, jnp.arange(8)))
    part = jax.random.key_data(rng.example_keys(key, jnp.array([6, 2])))
    np.testing.assert_array_equal(part, np.asarray(whole)[[6, 2]])
    assert len({tuple(row) for row in np.asarray(whole).tolist()}) == 8
