"""Every default of a run, in one place, and the check at the door. Imports no jax.

A file in configs/ takes `default_config()` and changes fields; the command line changes them again
with --config.section.field=value. `validate` then speaks once, before anything is computed.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dimo_jax.errors import InputError

# The names that may stand in a field. They are also keys of dicts in method/, models/ and
# tokenizers/, which import jax; a test holds both lists equal.
CHOICES = {
    "model.name": ("maskgit",),
    "mask.schedule": ("arccos", "cosine", "linear", "square", "mage"),
    "mask.kind": ("exact", "bernoulli"),
    "optimizer.name": ("adam", "muon"),
    "optimizer.schedule": ("constant", "cosine", "linear"),
    "positions": ("masked", "all"),
    "reduction": ("sum", "mean_masked", "mean_batch"),
    "distill.sigma_schedule": ("fixed", "linear", "exponential", "cosine"),
    "distill.divergence.name": (
        "forward_kl",
        "reverse_kl",
        "jeffrey",
        "jensen_shannon",
        "squared_hellinger",
        "alpha",
    ),
    "distill.jacobian": ("auxiliary", "generator"),
    "distill.weighting": ("one", "paper"),
    "distill.auxiliary.sample": ("fresh", "reuse"),
    "tokenizer.name": ("gray_levels", "patches", "vqgan", "llamagen", "google_vqgan"),
    "compute_dtype": ("float32", "bfloat16"),
    "data.name": ("digits", "joint", "labels"),
}


def _optimizer(learning_rate: float) -> dict[str, Any]:
    return {
        "name": "adam",  # adam | muon
        "learning_rate": learning_rate,
        "schedule": "constant",  # constant | cosine | linear, the last two down to 0
        "warmup_steps": 100,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 0.0,  # 0: no clipping
        "frozen": (),  # regular expressions on parameter paths
    }


def _mask() -> dict[str, Any]:
    return {"schedule": "arccos", "kind": "exact", "min_ratio": 0.0, "max_ratio": 1.0}


def _denoise() -> dict[str, Any]:
    return {
        "mask": _mask(),
        "label_smoothing": 0.0,
        "condition_drop": 0.0,
        "positions": "masked",
        "reduction": "mean_batch",
        "dropout": False,
    }


def default_config() -> ConfigDict:
    """All fields of a run with their defaults: the method's as the released code has them."""
    return ConfigDict(
        {
            "title": "Di[M]O",
            "seed": 0,
            # Of the networks' products; parameters, moments and losses are float32 always.
            "compute_dtype": "float32",
            # Half the time for compiling the steps on a CPU, and slower steps: for dry runs.
            "fast_compile": False,
            "data": {
                "name": "digits",  # digits | joint | labels: no images, a teacher is given
                "directory": "",  # empty: <workdir>/data
                "num_classes": 10,
                "joint": "",  # for data.name=joint: which known distribution (data/joints.py)
            },
            # A bundle brings its own name and sizes; else a name, and that tokenizer's own sizes.
            "tokenizer": {"bundle": "", "name": "gray_levels"},
            "model": {
                "name": "maskgit",
                "width": 768,
                "depth": 24,
                "heads": 16,
                "mlp_dim": 3072,
                "dropout": 0.1,
                "predict_mask_id": True,
            },
            # Bundle empty: the section `pretrain` trains the teacher first. random: none is
            # trained, for a dry run of the rest. With a bundle the network is the bundle's.
            "teacher": {"bundle": "", "random": False},
            "pretrain": {
                "num_steps": 3000,
                "batch_size": 64,
                **_denoise(),
                "condition_drop": 0.1,
                "dropout": True,
                "optimizer": _optimizer(1e-4),
                "ema_decay": 0.999,
                "ema_warmup": True,
            },
            "distill": {
                "num_steps": 30_000,
                "batch_size": 64,
                "ratio": (0.6, 0.6),  # initial mask ratio r, drawn from [low, high]
                "sigma": 0.1,  # embedding noise
                "sigma_schedule": "fixed",
                "sigma_warmup_steps": 0,
                "temperature": 1.0,  # of the generator's samples in training
                "top_k": 0,
                "top_p": 1.0,
                "mask": _mask(),  # of the generator's samples, x~_t
                "divergence": {"name": "forward_kl", "parameter": 0.0},  # beta or alpha
                "jacobian": "auxiliary",
                "guidance": 2.0,
                "adaptive_guidance": False,
                "reduction": "sum",
                "weighting": "one",
                "ema_decay": 0.9999,
                "ema_warmup": True,
                "teacher": {
                    "temperature": 1.0,
                    "top_k": 0,
                    "top_p": 1.0,
                    "lowered_by": 2.0,  # what logits outside top-k or top-p lose
                    "dropout": False,
                },
                "generator": {"dropout": False, "optimizer": _optimizer(1e-5)},
                "auxiliary": {
                    **_denoise(),
                    "sample": "fresh",
                    "updates": 1,
                    "temperature": 1.0,
                    "soft_weight": 0.0,
                    "optimizer": _optimizer(1e-5),
                },
            },
            # With the ratio and sigma of the training, what the generator is sampled with.
            "sampler": {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
            "evaluation": {
                "num_samples": 1400,
                "seeds": (0, 1, 2),
                "teacher_steps": (1, 2, 4, 8, 16),
                "sweep_steps": (4, 16),
                "sweep_num_samples": 350,
                "sweep_seed": 100,
                "guidances": (1.0,),
                "choice_temperatures": (4.5, 10.0),
                "random_order": True,
                "num_neighbours": 5,
                "num_pictures": 40,
                "batch_size": 350,
            },
            "classifier": {
                "channels": (16, 32),
                "num_features": 64,
                "dropout": 0.3,
                "num_steps": 400,
                "batch_size": 64,
                "learning_rate": 3e-3,
                "weight_decay": 1e-2,
                "seed": 0,
            },
            "checkpoint": {"save_every_steps": 500, "keep": 2},
            "logging": {
                "log_every_steps": 50,
                "images_every_steps": 500,  # 0: never
                "picture_labels": (),  # of those images; empty: every class
                "tensorboard": True,
            },
        }
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    fields = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        fields |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return fields


# (ending of a field's path, what it must satisfy, in words)
_RANGES = (
    ("num_steps", lambda x: x >= 1, "at least 1"),
    ("batch_size", lambda x: x >= 1, "at least 1"),
    ("images_every_steps", lambda x: x >= 0, "at least 0"),
    ("save_every_steps", lambda x: x >= 1, "at least 1"),
    ("log_every_steps", lambda x: x >= 1, "at least 1"),
    ("keep", lambda x: x >= 1, "at least 1"),
    ("updates", lambda x: x >= 1, "at least 1"),
    ("warmup_steps", lambda x: x >= 0, "at least 0"),
    ("sigma_warmup_steps", lambda x: x >= 0, "at least 0"),
    ("learning_rate", lambda x: x > 0, "above 0"),
    ("temperature", lambda x: x > 0, "above 0"),
    ("top_k", lambda x: x >= 0, "at least 0"),
    ("top_p", lambda x: 0 < x <= 1, "above 0 and at most 1"),
    ("sigma", lambda x: 0 <= x <= 1, "in [0, 1]"),
    ("min_ratio", lambda x: 0 <= x <= 1, "in [0, 1]"),
    ("max_ratio", lambda x: 0 <= x <= 1, "in [0, 1]"),
    ("label_smoothing", lambda x: 0 <= x < 1, "at least 0 and below 1"),
    ("condition_drop", lambda x: 0 <= x < 1, "at least 0 and below 1"),
    ("soft_weight", lambda x: 0 <= x <= 1, "in [0, 1]"),
    ("model.dropout", lambda x: 0 <= x < 1, "at least 0 and below 1"),
    ("beta1", lambda x: 0 <= x < 1, "at least 0 and below 1"),
    ("beta2", lambda x: 0 <= x < 1, "at least 0 and below 1"),
    ("ema_decay", lambda x: 0 <= x < 1, "at least 0 and below 1"),
    ("distill.guidance", lambda x: x >= 0, "at least 0"),
    ("clip_norm", lambda x: x >= 0, "at least 0"),
    ("seed", lambda x: 0 <= x < 2**31, "in [0, 2^31)"),
)


def _ends(path: str, ending: str) -> bool:
    return path == ending or path.endswith(f".{ending}")


def validate(config: Mapping[str, Any]) -> None:
    """Checks every field that has a range or a list of names, and what fields say of each other.

    Args:
        config: a complete config as plain dicts; a ConfigDict's to_dict().

    Raises:
        InputError: one sentence on the first field that is wrong.
    """
    fields = _flat(config)
    for path, value in fields.items():
        for ending, choices in CHOICES.items():
            if _ends(path, ending) and value not in choices:
                raise InputError(
                    f"config.{path} is {value!r}; it must be one of {', '.join(choices)}"
                )
        for ending, holds, words in _RANGES:
            if _ends(path, ending) and not holds(value):
                raise InputError(f"config.{path} is {value!r}; it must be {words}")
    for path, low in fields.items():
        if path.endswith("min_ratio") and low > fields[path.replace("min_", "max_")]:
            raise InputError(f"config.{path} is {low}, above its max_ratio; lower it")
    _validate_together(config)


def _validate_together(config: Mapping[str, Any]) -> None:
    ratio = tuple(config["distill"]["ratio"])
    if len(ratio) != 2 or not 0 <= ratio[0] <= ratio[1] <= 1:
        raise InputError(
            f"config.distill.ratio is {ratio}; it must be a pair (low, high) in [0, 1], "
            "twice the same number for a fixed ratio"
        )
    auxiliary = config["distill"]["auxiliary"]
    if auxiliary["sample"] == "reuse" and auxiliary["condition_drop"]:
        raise InputError(
            "config.distill.auxiliary.condition_drop needs sample=fresh: with sample=reuse the "
            "auxiliary's forward pass is the divergence's, which is always conditional"
        )
    divergence = config["distill"]["divergence"]
    if divergence["name"] == "alpha" and divergence["parameter"] in (0.0, 1.0):
        raise InputError(
            f"config.distill.divergence.parameter is {divergence['parameter']}; alpha needs "
            "another value than 0 (forward_kl) and 1 (reverse_kl)"
        )
    model = config["model"]
    if model["width"] % model["heads"]:
        raise InputError(
            f"config.model.width is {model['width']}, not divisible by config.model.heads "
            f"{model['heads']}; change one of them"
        )
    labels, num_classes = config["logging"]["picture_labels"], config["data"]["num_classes"]
    if not set(labels) <= set(range(num_classes)):
        raise InputError(
            f"config.logging.picture_labels is {tuple(labels)}; labels are whole numbers from 0 to "
            f"{num_classes - 1}"
        )
    _validate_teacher(config)
    if config["data"]["name"] == "joint" and not config["data"]["joint"]:
        raise InputError("config.data.joint is empty; name one of the joints in data/joints.py")


def _validate_teacher(config: Mapping[str, Any]) -> None:
    """Distilling without images needs a teacher and a tokenizer from elsewhere."""
    teacher = config["teacher"]
    if teacher["bundle"] and teacher["random"]:
        raise InputError("config.teacher has a bundle and random=True; take one of them away")
    if config["data"]["name"] != "labels" or teacher["random"]:
        return
    missing = [f"{name}.bundle" for name in ("teacher", "tokenizer") if not config[name]["bundle"]]
    if missing:
        raise InputError(
            f"config.{' and config.'.join(missing)} empty, and config.data.name=labels has no "
            "images to train them on; make both once, from the published files, with "
            "`python -m dimo_jax.convert --source=maskgit --input=MaskGIT_ImageNet_256.pth "
            "--output=bundles/maskgit256` and `python -m dimo_jax.convert --source=vqgan "
            "--input=VQGAN/last.ckpt --output=bundles/vqgan_f16_1024`, then give "
            "--config.teacher.bundle=bundles/maskgit256 "
            "--config.tokenizer.bundle=bundles/vqgan_f16_1024"
        )


def trains_teacher(config: Mapping[str, Any]) -> bool:
    """Whether the run has a stage `pretrain`."""
    return not (config["teacher"]["bundle"] or config["teacher"]["random"])


def without(section: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A section's fields but these."""
    return {name: value for name, value in section.items() if name not in names}


# What a stage's result depends on; the rest only says how often something is logged or saved.
_COMPUTED = ("compute_dtype", "fast_compile")
STAGE_SECTIONS = {
    "pretrain": ("seed", *_COMPUTED, "data", "tokenizer", "model", "pretrain"),
    "distill": ("seed", *_COMPUTED, "data", "tokenizer", "model", "distill"),
    "evaluation": ("seed", "data", "tokenizer", "sampler", "evaluation", "classifier"),
}


def stage_settings(config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The fields that decide a stage's result, as plain JSON values.

    Args:
        config: a complete config.
        stage: a key of STAGE_SECTIONS.

    Returns:
        {path: value}, without where data happens to lie.
    """
    sections = {name: config[name] for name in STAGE_SECTIONS[stage]}
    fields = json.loads(json.dumps(_flat(sections), default=list))
    # Where data and bundles lie does not matter; what is in them goes by its hash.
    for name in ("data.directory", "tokenizer.bundle"):
        fields.pop(name, None)
    return fields


def settings_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 of plain settings, independent of their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
