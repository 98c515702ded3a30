"""For tests: shipped configs as runs that are opened and checked; small ones where they train."""

import importlib

from dimo_jax.common import files
from dimo_jax.config import validation
from dimo_jax.parallel import sharding
from dimo_jax.runs import image_run, joint_run

SMALL = {
    **{"model.width": 8, "model.depth": 1, "model.heads": 2, "model.mlp_dim": 8},
    **{"pretrain.batch_size": 8, "distill.batch_size": 8},
}
DIGITS, PATCH, TOY = ("digits", "gray"), ("digits", "patch"), ("toy", "pair")
CLASSES, TEXT = ("imagenet", "smoke"), ("meissonic", "smoke")


def config_of(base, changes):
    name, variant = base
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    small = SMALL if base in (DIGITS, PATCH, TOY) else {}
    small = small or {"distill.batch_size": 8 * config.distill.parts}
    with config.unlocked():
        config.update_from_flattened_dict({**small, **changes})
    return config.to_dict()


def opened(base, changes, workdir):
    config = config_of(base, changes)
    validation.validate(config)
    kind = joint_run if config["data"]["name"] == "joint" else image_run
    return kind.load(config, files.path(workdir), sharding.layout(config["mesh"]))
