"""The check at the door: every field of a config, and what fields say of each other."""

from collections.abc import Mapping
from typing import Any

from dimo_jax.config import flat
from dimo_jax.errors import InputError

# The names that may stand in a field. They are also keys of dicts in method/, models/ and
# tokenizers/, which import jax; a test holds both lists equal.
CHOICES = {
    "model.name": ("maskgit", "meissonic"),
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
    "tokenizer.name": ("gray_levels", "patches", "vqgan", "llamagen", "google_vqgan", "vq_model"),
    "compute_dtype": ("float32", "bfloat16"),
    "teacher.dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "dots"),
    "attention": ("xla", "cudnn"),
    "data.name": ("digits", "joint", "labels", "prompts"),
    "distill.timestep": ("", "zero", "ratio"),
    "interim.protocol": ("dimo", "adm", "clean", "valeo"),
}

# (ending of a field's path, what it must satisfy, in words)
_RANGES = (
    ("num_steps", lambda x: x >= 1, "at least 1"),
    ("batch_size", lambda x: x >= 1, "at least 1"),
    ("images_every_steps", lambda x: x >= 0, "at least 0"),
    ("picture_steps", lambda x: x >= 1, "at least 1"),
    ("micro_conditions", lambda x: len(x) == 5, "five numbers"),
    ("interim.every_steps", lambda x: x >= 0, "at least 0"),
    ("save_every_steps", lambda x: x >= 1, "at least 1"),
    ("log_every_steps", lambda x: x >= 1, "at least 1"),
    ("keep", lambda x: x >= 1, "at least 1"),
    ("parts", lambda x: x >= 1, "at least 1"),
    ("max_skipped_in_a_row", lambda x: x >= 0, "at least 0"),
    ("min_shard_elements", lambda x: x >= 0, "at least 0"),
    ("mesh.data", lambda x: x == -1 or x >= 1, "at least 1, or -1 for all devices left"),
    ("mesh.fsdp", lambda x: x == -1 or x >= 1, "at least 1, or -1 for all devices left"),
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


def validate(config: Mapping[str, Any], *, starts: bool = True) -> None:
    """Checks every field that has a range or a list of names, and what fields say of each other.

    Args:
        config: a complete config as plain dicts; a ConfigDict's to_dict().
        starts: whether a run starts, which needs a teacher and prompts; what is only planned or
            timed has random ones.

    Raises:
        InputError: one sentence on the first field that is wrong.
    """
    fields = flat(config)
    for path, value in fields.items():
        for ending, choices in CHOICES.items():
            if _ends(path, ending) and value not in choices:
                shown = ", ".join(choice or "empty" for choice in choices)
                raise InputError(f"config.{path} is {value!r}; it must be one of {shown}")
        for ending, holds, words in _RANGES:
            if _ends(path, ending) and not holds(value):
                raise InputError(f"config.{path} is {value!r}; it must be {words}")
    for path, low in fields.items():
        if path.endswith("min_ratio") and low > fields[path.replace("min_", "max_")]:
            raise InputError(f"config.{path} is {low}, above its max_ratio; lower it")
    _validate_together(config)
    if starts:
        _validate_teacher(config)
        _validate_prompts(config)


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
    if config["data"]["name"] == "joint" and not config["data"]["joint"]:
        raise InputError("config.data.joint is empty; name one of the joints in data/joints.py")


def _validate_prompts(config: Mapping[str, Any]) -> None:
    """Prompts are for a run with text, and there one list of them."""
    section = config["prompts"]
    given = [f"config.prompts.{name}" for name in ("path", "texts") if section[name]]
    if config["data"]["name"] != "prompts":
        if given:
            raise InputError(
                f"{' and '.join(given)} given, but config.data.name is {config['data']['name']}; "
                "prompts are for config.data.name=prompts, as in configs/meissonic.py"
            )
        return
    if len(given) != 1:
        raise InputError(
            f"{' and '.join(given) or 'neither config.prompts.path nor .texts'} given; give one "
            "list of prompts: --config.prompts.path=FILE (.txt, .jsonl, .parquet, a folder of "
            "these, or tfds:NAME:SPLIT)"
        )
    if config["distill"]["auxiliary"]["condition_drop"]:
        raise InputError(
            "config.distill.auxiliary.condition_drop is for classes: without a condition a network "
            "with text would be given the negative prompt; set it to 0"
        )


_CONVERT = {
    "labels": "make both once, from the published files, with "
    "`python -m dimo_jax.convert --source=maskgit --input=MaskGIT_ImageNet_256.pth "
    "--output=bundles/maskgit256` and `python -m dimo_jax.convert --source=vqgan "
    "--input=VQGAN/last.ckpt --output=bundles/vqgan_f16_1024`, then give "
    "--config.teacher.bundle=bundles/maskgit256 --config.tokenizer.bundle=bundles/vqgan_f16_1024",
    "prompts": "make it once, with tokenizer and text encoder, from Meissonic's folder, with "
    "`python -m dimo_jax.convert --source=meissonic --input=Meissonic/ --output=bundles/meissonic`"
    ", then give --config.teacher.bundle=bundles/meissonic/transformer",
}


def _validate_teacher(config: Mapping[str, Any]) -> None:
    """Distilling without images needs a teacher and a tokenizer from elsewhere."""
    teacher = config["teacher"]
    if teacher["bundle"] and teacher["random"]:
        raise InputError("config.teacher has a bundle and random=True; take one of them away")
    data = config["data"]["name"]
    if data not in _CONVERT or teacher["random"]:
        return
    # What a network with text needs besides lies beside its teacher.
    needed = ("teacher", "tokenizer") if data == "labels" else ("teacher",)
    missing = [f"{name}.bundle" for name in needed if not config[name]["bundle"]]
    if missing:
        raise InputError(
            f"config.{' and config.'.join(missing)} empty, and config.data.name={data} has no "
            f"images to train on; {_CONVERT[data]}"
        )
