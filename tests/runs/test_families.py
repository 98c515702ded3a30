"""Every teacher family goes through the whole run of a bundle: distil, draw, export, sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimo_jax import bundles, models, tokenizers
from dimo_jax.generation import drawing
from tests.helpers.command_line import command, finish

pytestmark = pytest.mark.slow

SIZES = {"num_tokens": 64, "codebook_size": 17, "num_classes": 10, "width": 16, "depth": 1}
FAMILIES = {
    "maskgit": {"heads": 2, "mlp_dim": 16, "dropout": 0.0, "predict_mask_id": True},
    "halton": {"heads": 2, "mlp_dim": 16},
    "google_maskgit": {"heads": 2, "mlp_dim": 16, "dropout": 0.0},
}


def random_tree(shapes, seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: generator.normal(0, 0.3, x.shape).astype(np.float32), shapes)


def save_bundles(folder, family):
    """A random teacher of a family, and the gray levels as its tokenizer."""
    network = models.build({"name": family, **SIZES, **FAMILIES[family]})
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = random_tree(shapes, 1)
    teacher = bundles.save(folder / family, kind="teacher", model=network.config, params=params)
    gray = tokenizers.build({"name": "gray_levels"})
    bundles.save(folder / "gray", kind="tokenizer", model=gray.config, params={})
    return bundles.load(teacher)


def start(folder, family, *flags):
    return command(
        "main",
        "--config=configs/imagenet.py:smoke",
        f"--workdir={folder / 'run'}",
        "--config.teacher.random=False",
        f"--config.teacher.bundle={folder / family}",
        f"--config.tokenizer.bundle={folder / 'gray'}",
        "--config.data.num_classes=10",
        "--config.logging.picture_labels=(1,7)",
        "--config.logging.tensorboard=False",
        *flags,
        optimized=False,
    )


@pytest.mark.parametrize("family", ["halton", "google_maskgit"])
def test_a_family_is_distilled_from_its_bundle(tmp_path, family):
    teacher = save_bundles(tmp_path, family)
    guidance = [] if teacher.build().has_null else ["--config.distill.guidance=1.0"]
    out, _ = finish(start(tmp_path, family, *guidance))
    assert "done, the generator is" in out
    generator = bundles.load(tmp_path / "run" / "export")
    assert generator.model == teacher.model
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), teacher.params, generator.params)
    assert np.mean(jax.tree.leaves(moved)) > 0.7  # frozen leaves and unused biases stay
    names = [x.name for x in (tmp_path / "run" / "images" / "distill").iterdir()]
    assert len(names) == 3 and sum("teacher" in name for name in names) == 1
    model, tokenizer = drawing.open_pair(generator)
    drawn = drawing.draw_labels(model, tokenizer, np.arange(4, dtype=np.int32), 0, 8, {})
    assert drawn.tokens.shape == (4, 64)


@pytest.mark.parametrize(
    ("family", "flags", "words"),
    [
        (
            "google_maskgit",
            ["--config.distill.auxiliary.condition_drop=0.1"],
            "no null class, which guidance and dropped conditions need; give "
            "--config.distill.guidance=1 --config.distill.auxiliary.condition_drop=0",
        ),
        (
            "maskgit",
            ["--config.data.num_classes=9"],
            "has 10 classes, config.data.num_classes is 9",
        ),
        ("maskgit", ["--config.tokenizer.bundle=no"], "there is no bundle at no"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(tmp_path, family, flags, words):
    save_bundles(tmp_path, family)
    _, err = finish(start(tmp_path, family, *flags), status=2)
    machine, message = err.splitlines()
    assert "jax" in machine and message.startswith("error: ") and words in message
    assert not (tmp_path / "run").exists()


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
    config = {"name": "maskgit", **SIZES, **FAMILIES["maskgit"]}
    full, low = (models.build(config, models.Compute(dtype)) for dtype in ("float32", "bfloat16"))
    assert full.config == low.config
    params = random_tree(jax.eval_shape(full.init, jax.random.key(0)), 2)
    tokens, labels = jnp.zeros((2, 64), jnp.int32), jnp.array([1, 10], jnp.int32)
    noise = np.random.default_rng(0).normal(size=(2, 64, 16)).astype(np.float32)

    def logits(network):
        return network.apply(params, tokens, labels, perturb=lambda e: e + noise)

    a, b = logits(full), logits(low)
    assert b.dtype == np.float32
    error = float(np.abs(a - b).max() / np.abs(a).max())
    assert 1e-4 < error < 0.05
    text = jax.jit(lambda p: low.apply(p, tokens, labels, perturb=lambda e: e + noise)).lower(
        params
    )
    products = [x for x in text.as_text().splitlines() if "dot_general" in x]
    assert len(products) == 12 and not any("xf32>" in x for x in products)
    gradient = jax.grad(lambda p: low.apply(p, tokens, labels).sum())(params)
    assert {x.dtype.name for x in jax.tree.leaves(gradient)} == {"float32"}
