import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dimo_jax.method.masked import schedules

U = np.linspace(0.0, 0.999, 41, dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("arccos", 2 / np.pi * np.arccos(U)),
        ("cosine", np.cos(np.pi * U / 2)),
        ("linear", U),
        ("square", U * U),
        ("mage", stats.truncnorm.ppf(U, -0.2, 1.8, loc=0.55, scale=0.25)),
    ],
)
def test_each_schedule_is_its_formula(name, expected):
    found = schedules.mask_ratio(jnp.asarray(U), name)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("name", schedules.MASK_SCHEDULES)
def test_clamp_limits_hold_and_bind(name):
    found = np.asarray(schedules.mask_ratio(jnp.asarray(U), name, 0.55, 0.8))
    assert found.min() == np.float32(0.55)
    assert found.max() == np.float32(0.8)


def test_arccos_has_the_density_of_the_dossier():
    # (pi / 2) sin(pi m / 2): its mean is 2 / pi.
    u = jax.random.uniform(jax.random.key(0), (200_000,))
    ratio = np.asarray(schedules.mask_ratio(u, "arccos"))
    assert abs(ratio.mean() - 2 / np.pi) < 2e-3
    assert stats.kstest(ratio, lambda m: 1 - np.cos(np.pi * m / 2)).statistic < 5e-3


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("fixed", 0, 1.0),
        ("linear", 0, 0.0),
        ("linear", 25, 0.25),
        ("linear", 500, 1.0),
        ("exponential", 100, 1 - np.exp(-1)),
        ("cosine", 0, 0.0),
        ("cosine", 50, 0.5),
        ("cosine", 25, 0.5 - 0.5 * np.cos(np.pi / 4)),
        ("cosine", 500, 1.0),
    ],
)
def test_warmups(name, step, expected):
    assert float(schedules.warmup(jnp.asarray(step), name, 100)) == pytest.approx(
        expected, abs=1e-6
    )
