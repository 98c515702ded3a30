import platform

import jax
import numpy as np

from dimo_jax.common import versions


def test_the_installed_versions_are_those_of_the_modules():
    found = versions.installed()
    assert found["python"] == platform.python_version()
    assert found["jax"] == jax.__version__ and found["numpy"] == np.__version__
    assert set(found) >= {"dimo_jax", "jaxlib", "flax", "optax", "orbax-checkpoint"}


def test_what_differs_is_listed():
    before = {"jax": "0.10.2", "numpy": "2.4.6", "gone": "1"}
    assert versions.changes(before, before | {"new": "2"}) == []
    now = {"jax": "0.12.0", "numpy": "2.4.6"}
    assert versions.changes(before, now) == ["jax 0.10.2, now 0.12.0"]
