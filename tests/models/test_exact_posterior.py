import jax
import jax.numpy as jnp
import numpy as np

from dimo_jax.data import joints
from dimo_jax.models import exact_posterior


def posterior(joint, tokens):
    """Bayes by enumeration: p(x_i | visible), one position after the other."""
    length, values = joint.ndim, joint.shape[0]
    seen = joint.copy()
    for index in np.ndindex(joint.shape):
        if any(t not in (values, v) for t, v in zip(tokens, index, strict=True)):
            seen[index] = 0
    marginals = [seen.sum(tuple(a for a in range(length) if a != i)) for i in range(length)]
    return np.stack([m / m.sum() for m in marginals])


def test_every_visible_subset_has_bayes_posterior():
    joint = np.random.default_rng(0).dirichlet(np.ones(27)).reshape(3, 3, 3)
    network = exact_posterior.build(num_tokens=3, codebook_size=3)
    params = {"log_joint": jnp.log(jnp.asarray(joint, jnp.float32))}
    tokens = np.array(list(np.ndindex(4, 4, 4)), np.int32)  # 3 is [MASK]
    found = np.exp(network.apply(params, jnp.asarray(tokens), jnp.zeros(64, jnp.int32)))
    expected = np.stack([posterior(joint, t) for t in tokens])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_init_is_the_uniform_joint():
    network = exact_posterior.build(num_tokens=2, codebook_size=4)
    params = network.init(jax.random.key(0))
    np.testing.assert_allclose(np.exp(params["log_joint"]), np.full((4, 4), 1 / 16), rtol=1e-6)


def test_the_joints_are_distributions_with_the_stated_independent_distance():
    # Total variation between a joint and the product of its marginals: what one step without a
    # shared random input can reach at best.
    for name, expected in (("pair", 0.90), ("modes", 0.93), ("parity", 0.49)):
        joint = joints.load(name)
        assert joint.min() > 0
        assert abs(joint.sum() - 1) < 1e-12
        distance = 0.5 * np.abs(joint - joints.independent(joint)).sum()
        assert abs(distance - expected) < 0.01, (name, distance)
    pair = joints.load("pair")
    assert abs(np.trace(pair) - 0.96) < 1e-12
    # Parity: any three of its four tokens are uniform.
    np.testing.assert_allclose(joints.load("parity").sum(0), 1 / 8)
