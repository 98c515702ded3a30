"""The golden weight function against its published values."""

import numpy as np

from tests.helpers.golden import golden, golden_state


def test_numbers_are_the_published_ones():
    published = [-0.41522104, -0.76067599, -0.87614112, 0.88167463]
    np.testing.assert_allclose(golden(0, (2, 2)).ravel(), published, atol=5e-9)
    np.testing.assert_allclose(golden(5, (3,)), [-0.01738558, -0.86016425, 0.0769213], atol=5e-9)


def test_each_key_is_scaled_by_the_first_rule_that_applies():
    shapes = {
        "bias": (2, 3),
        "f.norm.weight": (4,),
        "Pos_Emb": (1, 2, 3),
        "emb.conv.weight": (2, 3, 2, 2),
        "time_emb.linear_1.weight": (4, 3),
        "context_embedder.weight": (4, 3),
        "class_emb.bias": (3,),
        "head.weight": (5, 12),
    }
    state = golden_state(shapes)
    assert list(state) == sorted(shapes)
    scales = {
        "bias": 0.1,
        "Pos_Emb": 0.5,
        "emb.conv.weight": np.sqrt(3 / 12),
        "time_emb.linear_1.weight": 1.0,
        "context_embedder.weight": 1.0,
        "class_emb.bias": 0.1,
        "head.weight": 0.5,
    }
    for s, key in enumerate(sorted(shapes)):
        assert state[key].dtype == np.float32
        r = golden(s, shapes[key])
        expected = 1 + 0.2 * r if key == "f.norm.weight" else scales[key] * r
        np.testing.assert_allclose(state[key], expected, rtol=1e-6)
