"""Every default of a run, in one place. Imports no jax.

A file in configs/ takes `default_config()` and changes fields; the command line changes them again
with --config.section.field=value. validation.py then speaks once, before anything is computed.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


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
            # What a backward pass keeps of a block: none of it is recomputed, full: all is, dots:
            # all but the products with parameters.
            "remat": "none",
            # One compiled block that is run depth times: a shorter compilation.
            "scan_layers": False,
            "attention": "xla",  # xla | cudnn: NVIDIA's fused kernels, bfloat16 only
            "compilation_cache": "",  # a folder for compiled programs, shared by all processes
            "max_skipped_in_a_row": 10,  # updates left out for a gradient that is not finite
            # Devices in a batch's direction and in the parameters' (one of them -1: all others),
            # and which parameters are divided: parallel/sharding.py.
            "mesh": {
                "data": -1,
                "fsdp": 1,
                "min_shard_elements": 65_536,
                "rules": (
                    (r"(kernel|embedding|projection|kernels_\d+x\d+)$", "largest"),
                    (r"(scale|bias)$", "whole"),
                    (r"(log_joint|ns_coeffs)$", "whole"),  # the toys' posterior; Muon's constants
                ),
            },
            "data": {
                # digits | joint | labels, prompts: no images, a teacher is given
                "name": "digits",
                "directory": "",  # empty: <workdir>/data
                "num_classes": 10,
                "joint": "",  # for data.name=joint: which known distribution (data/joints.py)
            },
            # For data.name=prompts: what is distilled on (data/prompts.py).
            "prompts": {
                # .txt .jsonl .json .csv .tsv .parquet, a folder of these, or tfds:NAME:SPLIT
                "path": "",
                "texts": (),  # the prompts themselves, in place of a path
                "field": "",  # of a record; empty: prompt, caption or text
                "negative": "",  # what the teacher's guidance leads away from
                # width, height, two of the crop, aesthetic score
                "micro_conditions": (1024.0, 1024.0, 0.0, 0.0, 6.0),
                "cache": "",  # a folder for their features; empty: computed in every step
            },
            # Bundle empty: text_encoder/ beside the teacher's; with a random teacher a random one
            # of the sizes given here.
            "text_encoder": {"bundle": ""},
            # A bundle brings its own name and sizes; else a name, and that tokenizer's own sizes.
            # Of a run with text, both empty: vqvae/ beside the teacher's.
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
            # dtype: what it is kept in, bfloat16 for half the memory.
            "teacher": {"bundle": "", "random": False, "dtype": "float32"},
            "pretrain": {
                "num_steps": 3000,
                "batch_size": 64,
                "parts": 1,  # of a batch, computed one after the other
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
                "parts": 1,
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
                # What a network with text is told of the time: zero | ratio; empty: as its bundle.
                "timestep": "",
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
            # A distance of the averaged generator in the course of its training, recorded under a
            # name that says of how few samples it is: the FID, or without features and reference
            # the data's own.
            "interim": {
                "every_steps": 0,  # 0: never
                "num_samples": 5000,
                "seed": 0,
                "features": "",  # a bundle of Inception
                "reference": "",  # a file of statistics
                "protocol": "dimo",
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
            # allow_fallback: go on from the checkpoint before, where the newest is damaged.
            "checkpoint": {"save_every_steps": 500, "keep": 2, "allow_fallback": False},
            "logging": {
                "log_every_steps": 50,
                "images_every_steps": 500,  # 0: never
                "picture_labels": (),  # of those images; empty: every class
                "picture_prompts": (),  # likewise; empty: the first four
                "picture_steps": 8,  # of the teacher's sampler in them
                "tensorboard": True,
            },
        }
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'section.field': value} of all fields."""
    fields = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        fields |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return fields


def trains_teacher(config: Mapping[str, Any]) -> bool:
    """Whether the run has a stage `pretrain`."""
    return not (config["teacher"]["bundle"] or config["teacher"]["random"])


def without(section: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A section's fields but these."""
    return {name: value for name, value in section.items() if name not in names}


# What a stage's result depends on; the rest only says how often something is logged or saved.
_COMPUTED = ("compute_dtype", "fast_compile")
# Where data and bundles lie does not matter; what is in them goes by its hash. Nor do the parts of
# a batch: the same training goes on with others.
_ELSEWHERE = (
    *("data.directory", "tokenizer.bundle", "text_encoder.bundle", "pretrain.parts"),
    *("distill.parts", "prompts.path", "prompts.texts", "prompts.field", "prompts.cache"),
)
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
    names = STAGE_SECTIONS[stage]
    if stage == "distill" and config["data"]["name"] == "prompts":
        names = (*names, "prompts", "text_encoder")
    fields = json.loads(json.dumps(flat({name: config[name] for name in names}), default=list))
    for name in _ELSEWHERE:
        fields.pop(name, None)
    if stage == "distill":
        fields["teacher.dtype"] = config["teacher"]["dtype"]
    return fields


def settings_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 of plain settings, independent of their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
