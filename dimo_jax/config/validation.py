"""What a config must satisfy: the rule of every field, and what fields say of each other.

Only the config itself is looked at; what it names is opened by training/load_models.py.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from dimo_jax.common.errors import InputError
from dimo_jax.common.fields import LARGEST, written
from dimo_jax.config import fields_of, flat, mixture, takes_text, trains_teacher
from dimo_jax.config.sizes import PICTURE_SETS, SETS_WITH_TEXTS

Config = Mapping[str, Any]
_OPTIMIZERS = ("pretrain", "distill.generator", "distill.auxiliary")
_NUM_CLASSES = {
    "joint": 1,
    "prompts": 0,
    **{name: num_classes for name, (num_classes, _) in PICTURE_SETS.items()},
}


def validate(config: Config, *, starts: bool = True) -> None:
    """Check that every field is there and follows its rule, and what fields say of each other.

    Args:
        config: a complete config as plain dicts; a ConfigDict's to_dict().
        starts: whether a run starts, which needs a teacher and prompts; what is only planned or
            timed has random ones.

    Raises:
        InputError: one sentence on the first field that is wrong.
    """
    _validate_fields(config)
    _validate_method(config)
    mixture.validate(config)
    _validate_network(config)
    _validate_data(config)
    _validate_evaluation(config)
    _validate_kept(config)
    if starts:
        _validate_teacher(config)
        _validate_prompts(config)


def _validate_fields(config: Config) -> None:
    """Check that every field of this config is there, known, and follows its rule."""
    known, found = fields_of(config), flat(config)
    # The names first: which sizes there are depends on them.
    for path in sorted(known.keys() & found.keys(), key=lambda x: not x.endswith(".name")):
        value, rule = found[path], known[path].rule
        if not rule.holds(value):
            raise InputError(f"config.{path} is {written(value)}; it must be {rule.words}")
    for path in found:
        inside = [x.removeprefix(f"{path}.") for x in known if x.startswith(f"{path}.")]
        if inside:
            raise InputError(
                f"config.{path} is {written(found[path])}; it must be a section with "
                f"{', '.join(inside)}"
            )
    for path, field in known.items():
        # Sizes without a default are the network's own where they are not given.
        if path not in found and field.default is not None:
            raise InputError(
                f"config.{path} is missing; it must be {field.rule.words} (by default "
                f"{written(field.default)})"
            )
    for path in found:
        if path not in known:
            raise _unknown(config, path, known)


def _unknown(config: Config, path: str, known: Mapping[str, Any]) -> InputError:
    section, _, name = path.rpartition(".")
    if section in ("model", "tokenizer"):
        beside = [x.rpartition(".")[2] for x in known if x.startswith(f"{section}.")]
        what = f"the {'network' if section == 'model' else section} {config[section].get('name')}"
        return InputError(f"config.{path}: {what} has no {name}; it has {', '.join(beside)}")
    near = ", ".join(f"config.{x}" for x in difflib.get_close_matches(path, known, n=3))
    hint = f"nearest: {near}" if near else "no field is similar"
    return InputError(f"there is no field config.{path}; {hint}")


def _validate_method(config: Config) -> None:
    fields = flat(config)
    for path, low in fields.items():
        if path.endswith("min_ratio") and low > fields[path.replace("min_", "max_")]:
            raise InputError(f"config.{path} is {low}, above its max_ratio; lower it")
    for path in ("distill.ratio", "sampler.ratio"):
        ratio = tuple(fields[path])
        if ratio and (len(ratio) != 2 or ratio[0] > ratio[1]):
            raise InputError(
                f"config.{path} is {ratio}; it must be (low, high) with low at most high, twice "
                "the same number for a fixed ratio"
            )
    steps, ratios = config["distill"]["steps"], config["distill"]["step_ratios"]
    if len(ratios) not in (0, steps - 1):
        raise InputError(
            f"config.distill.step_ratios is {tuple(ratios)}, and config.distill.steps is {steps}; "
            f"give one ratio for each step after the first, {steps - 1} in all, or none"
        )
    shares = config["distill"]["step_shares"]
    if shares and (len(shares) != steps or not sum(shares)):
        raise InputError(
            f"config.distill.step_shares is {tuple(shares)}, and config.distill.steps is {steps}; "
            f"give {steps} in all, not only zeros, or none"
        )
    auxiliary, updates = config["distill"]["auxiliary"], config["distill"]["auxiliary"]["updates"]
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
    for section in _OPTIMIZERS:
        stage = section.partition(".")[0]
        if stage == "pretrain" and not trains_teacher(config):
            continue
        if section == "distill.auxiliary" and mixture.is_chosen(config):
            continue
        total = config[stage]["num_steps"] * (updates if section.endswith("auxiliary") else 1)
        warmup, name = fields[f"{section}.optimizer.warmup_steps"], f"config.{stage}.num_steps"
        if section.endswith("auxiliary") and updates > 1:
            name += f" x {updates} updates"
        if warmup > total:
            raise InputError(
                f"config.{section}.optimizer.warmup_steps is {warmup}, more than {name} = {total}; "
                "lower it, or train longer"
            )
        if total > LARGEST:
            raise InputError(f"{name} = {total} updates are more than {LARGEST:,}; lower one")
    for stage in ("pretrain", "distill"):
        parts, size = config[stage]["parts"], config[stage]["batch_size"]
        if size % parts:
            raise InputError(
                f"config.{stage}.batch_size is {size}, not divisible by config.{stage}.parts "
                f"{parts}; change one of them"
            )


def _validate_network(config: Config) -> None:
    fields = flat(config)
    for section in ("model", "text_encoder.text"):
        width, heads = (fields.get(f"{section}.{name}") for name in ("width", "heads"))
        if width and heads and width % heads:
            raise InputError(
                f"config.{section}.width is {width}, not divisible by config.{section}.heads "
                f"{heads}; change one of them"
            )
    rope, model = fields.get("model.rope_dims"), config["model"]
    if rope and (any(dim % 2 for dim in rope) or sum(rope) * model["heads"] != model["width"]):
        raise InputError(
            f"config.model.rope_dims is {tuple(rope)}; it must be three even numbers that add up "
            f"to width / heads = {model['width'] // model['heads']}"
        )
    of_text = "rope_dims" in model
    if of_text != takes_text(config) and not config["teacher"]["bundle"]:
        raise InputError(
            f"config.model.name is {model['name']}, which takes "
            f"{'text' if of_text else 'classes'}, and config.data.name is "
            f"{config['data']['name']}{_condition(config)}; change one of them"
        )
    if config["attention"] in ("cudnn", "pallas") and config["compute_dtype"] != "bfloat16":
        raise InputError(
            f"config.attention={config['attention']} needs config.compute_dtype=bfloat16, which is "
            f"{config['compute_dtype']}; change one of them"
        )


def _condition(config: Config) -> str:
    """Return what pictures are drawn from, for a message."""
    data = config["data"]
    return f" with data.condition={data['condition']}" if data["name"] in SETS_WITH_TEXTS else ""


def _validate_data(config: Config) -> None:
    data, logging = config["data"], config["logging"]
    name, num_classes = data["name"], data["num_classes"]
    expected = _NUM_CLASSES.get(name, num_classes)
    if num_classes != expected or (name == "labels" and num_classes < 1):
        raise InputError(
            f"config.data.num_classes is {num_classes}; with config.data.name={name} it must be "
            f"{'at least 1' if name == 'labels' else expected}"
        )
    if name != "tokens" and data["path"]:
        raise InputError(
            f"config.data.path is {data['path']}, and config.data.name is {name}; a folder of "
            "tokens is for config.data.name=tokens, as in configs/pictures.py"
        )
    if name == "joint" and not data["joint"]:
        raise InputError("config.data.joint is empty; name one of the joints in data/joints.py")
    if name != "joint" and data["joint"]:
        raise InputError(
            f"config.data.joint is {data['joint']}, and config.data.name is {name}; leave it empty"
        )
    if not data["balanced"] and name not in (*PICTURE_SETS, "tokens"):
        raise InputError(
            f"config.data.balanced is False, and config.data.name={name} has no pictures whose "
            "classes could be counted; leave it True"
        )
    if data["condition"] == "text" and name not in SETS_WITH_TEXTS:
        raise InputError(
            f"config.data.condition is text, and the pictures of config.data.name={name} have "
            f"none; those of {', '.join(SETS_WITH_TEXTS)} have"
        )
    labels = logging["picture_labels"]
    if num_classes >= 0 and not set(labels) <= set(range(num_classes)):
        expected = f"whole numbers from 0 to {num_classes - 1}" if num_classes else "for classes"
        raise InputError(
            f"config.logging.picture_labels is {written(tuple(labels))}; labels are {expected}"
        )
    if logging["picture_prompts"] and not takes_text(config):
        raise InputError(
            "config.logging.picture_prompts is given, and config.data.name is "
            f"{name}; prompts are for config.data.name=prompts, or data.condition=text"
        )
    teacher = config["teacher"]
    if name == "joint":
        given = [f"config.teacher.{x}" for x in ("bundle", "random") if teacher[x]]
        given += ["config.interim.every_steps"] if config["interim"]["every_steps"] else []
        if given:
            raise InputError(
                f"{' and '.join(given)} given, and config.data.name=joint has an exact teacher and "
                "its own distance; leave it away"
            )


def _validate_evaluation(config: Config) -> None:
    section, num_classes = config["evaluation"], config["data"]["num_classes"]
    if section["sweep_seed"] in section["seeds"]:
        raise InputError(
            f"config.evaluation.sweep_seed is {section['sweep_seed']}, one of "
            f"config.evaluation.seeds {tuple(section['seeds'])}; it must be another"
        )
    if not section["choice_temperatures"] and not section["random_order"]:
        raise InputError(
            "config.evaluation.choice_temperatures is empty and config.evaluation.random_order is "
            "False, which leaves no order to sample the teacher in; give one of them"
        )
    kept = max(config["data"]["num_test"], 0) if config["data"]["name"] == "tokens" else 0
    for name in ("num_samples", "sweep_num_samples"):
        if section[name] < num_classes and (kept or config["data"]["name"] in PICTURE_SETS):
            raise InputError(
                f"config.evaluation.{name} is {section[name]}; it must be at least {num_classes}, "
                "one image of each class"
            )
    # The test split is measured with as many neighbours.
    num_test = kept or PICTURE_SETS.get(config["data"]["name"], (0, section["num_samples"]))[1]
    least = min(section["num_samples"], num_test)
    if section["num_neighbours"] >= least:
        raise InputError(
            f"config.evaluation.num_neighbours is {section['num_neighbours']}; it must be below "
            f"{least}, the images of the smallest set that is measured (config.evaluation."
            "num_samples, or the test split)"
        )


def _validate_kept(config: Mapping[str, Any]) -> None:
    """Check that the checkpoints to keep are saved, and chosen by a distance that is measured."""
    section = config["checkpoint"]
    every, save = section["keep_every_steps"], section["save_every_steps"]
    if every % save:
        raise InputError(
            f"config.checkpoint.keep_every_steps is {every}, no multiple of save_every_steps "
            f"({save}), so those steps are not saved; change one of them"
        )
    if section["keep_best"] and not config["interim"]["every_steps"]:
        raise InputError(
            f"config.checkpoint.keep_best is {section['keep_best']}, but no distance is measured "
            "in training; give --config.interim.every_steps=N (see the section interim), or "
            "keep_best=0"
        )


def _validate_prompts(config: Mapping[str, Any]) -> None:
    """Prompts are for a run with text, and there one list of them."""
    section = config["prompts"]
    if takes_text(config) and trains_teacher(config):
        early = {"text_encoder.bundle": config["text_encoder"], "prompts.cache": section}
        wrong = [x for x, fields in early.items() if fields[x.rpartition(".")[2]]]
        if wrong:
            raise InputError(
                f"config.{wrong[0]} is given, and the text encoder is trained with the teacher; "
                "leave it empty, or give config.teacher.bundle"
            )
    given = [f"config.prompts.{name}" for name in ("path", "texts") if section[name]]
    if config["data"]["name"] != "prompts":
        if given:
            raise InputError(
                f"{' and '.join(given)} given, but config.data.name is {config['data']['name']}; "
                "prompts are for config.data.name=prompts, as in configs/meissonic.py"
            )
    elif len(given) != 1:
        raise InputError(
            f"{' and '.join(given) or 'neither config.prompts.path nor .texts'} given; give one "
            "list of prompts: --config.prompts.path=FILE (.txt, .jsonl, .parquet, a folder of "
            "these, or tfds:NAME:SPLIT)"
        )
    if takes_text(config) and config["distill"]["auxiliary"]["condition_drop"]:
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
    if data == "tokens" and not config["data"]["path"]:
        raise InputError(
            "config.data.path is empty; encode the pictures once, with `python -m dimo_jax.encode "
            "--data=photos/ --tokenizer=BUNDLE --output=tokens/photos`, then give "
            "--config.data.path=tokens/photos"
        )
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
