"""Small models that stand for a config's where what is timed is tested, not how long it takes."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import imagenet
from dimo_jax import models, tokenizers
from dimo_jax.models import Network
from dimo_jax.profiling import step_speed

L, CODES, CLASSES, WIDTH, SEED = 16, 30, 10, 4, 3407
SIZES = {"num_tokens": L, "codebook_size": CODES, "num_classes": CLASSES}


EXTRA = {
    "maskgit": {"dropout": 0.0, "predict_mask_id": False},
    "halton": {},
    "google_maskgit": {"dropout": 0.0},
}


def params_of_a_table(seed=0):
    numbers = np.random.default_rng(seed)
    shapes = {
        "token_embedding": (CODES + 1, WIDTH),
        "class_embedding": (CLASSES + 1, CODES),
        "kernel": (WIDTH, CODES),
    }
    return {k: numbers.normal(size=x).astype(np.float32) for k, x in shapes.items()}


def a_table(family, has_null=True):
    """What stands for a network of a family: compiled in no time, and it depends on all it gets."""
    config = models.build({"name": family, **SIZES, "width": 8, "depth": 1, "heads": 2,
                           "mlp_dim": 16, **EXTRA[family]}).config  # fmt: skip

    def apply(params, tokens, condition, *, perturb=None, dropout_key=None):
        x = params["token_embedding"][tokens]
        x = x if perturb is None else perturb(x)
        return x @ params["kernel"] + params["class_embedding"][condition][:, None]

    def init(key):
        return jax.tree.map(jnp.asarray, params_of_a_table())

    return Network(config, L, CODES, CLASSES, init, apply, has_null)


def painter():
    """A tokenizer whose image shows its tokens."""
    return tokenizers.Tokenizer(
        {"name": "painter"}, (4, 4), CODES, (4, 4, 1), lambda key: {},
        lambda params, images: None,
        lambda params, tokens: tokens.reshape(-1, 4, 4, 1) / CODES,
    )  # fmt: skip


def opened(family="maskgit", has_null=True):
    return step_speed.Models(a_table(family, has_null), params_of_a_table(), painter(), {})


def small_config():
    config = imagenet.get_config("smoke").to_dict()
    config["distill"]["batch_size"] = 8
    return config
