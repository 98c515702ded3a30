"""Every field of a config with values that cannot stand there: the table is written by hand."""

import copy
import importlib
import inspect
import math

import pytest

from dimo_jax import config as configs
from dimo_jax.common.errors import InputError
from dimo_jax.common.fields import Field
from dimo_jax.config import defaults, sizes, validation
from dimo_jax.data import joints
from dimo_jax.data.pictures import BUILT_IN
from dimo_jax.evaluation.metrics.protocols import PROTOCOLS
from dimo_jax.method.dimo import divergences
from dimo_jax.method.masked import losses, masking, schedules
from dimo_jax.method.mixture import objective
from dimo_jax.models import clip, maskgit, meissonic
from dimo_jax.tokenizers import TOKENIZERS
from dimo_jax.training import optimizers

VARIANTS = {
    "digits": ("gray", "patch", "di4c"),
    "toy": ("pair", "modes", "parity"),
    "imagenet": ("default", "released", "paper", "512", "di4c", "smoke"),
    "meissonic": ("default", "paper", "512", "smoke"),
    "pictures": ("tiny", "small", "base", "large"),
    "emoji": ("class", "text"),
}
SHIPPED = [(name, variant) for name, all_ in VARIANTS.items() for variant in all_]

NAN, INF, HUGE = math.nan, math.inf, 10**12
NO_TEXT = (None, 3, 2.5, True, (), ["a"], {})
NO_NUMBER = (None, "", "3", "three", (), [1], NAN, INF, -INF)
NO_SHARE = (*NO_NUMBER, -0.1, 1.5, HUGE, True)
NO_COUNT = (*NO_NUMBER, -1, 1.5, 2.0, HUGE, True)
OPTIMIZERS = (
    "pretrain.optimizer.",
    "distill.generator.optimizer.",
    "distill.auxiliary.optimizer.",
)
MASKS = ("pretrain.mask.", "distill.mask.", "distill.auxiliary.mask.")


def each(prefixes, *names):
    return " ".join(f"{prefix}{name}" for prefix in prefixes for name in names)


# (fields, what may stand there, what may not)
TABLE = [
    ("title text_encoder.bundle tokenizer.bundle teacher.bundle", ("", "x"), NO_TEXT),
    ("distill.generator.bundle", ("", "x"), NO_TEXT),
    ("compilation_cache data.directory prompts.cache", ("", "runs/x"), NO_TEXT),
    ("data.path prompts.path prompts.field prompts.negative", ("", "x"), NO_TEXT),
    ("interim.features interim.reference logging.wandb_project", ("", "x"), NO_TEXT),
    (
        "fast_compile scan_layers model.predict_mask_id teacher.random pretrain.dropout "
        "pretrain.ema_warmup distill.adaptive_guidance distill.ema_warmup distill.teacher.dropout "
        "distill.generator.dropout distill.auxiliary.dropout evaluation.random_order "
        "checkpoint.allow_fallback logging.tensorboard logging.wandb data.balanced "
        "interim.teacher",
        (True, False),
        (None, 0, 1, "True", "", NAN, ()),
    ),
    (
        "seed interim.seed classifier.seed evaluation.sweep_seed",
        (0, 7, 2**31 - 1),
        (*NO_COUNT, 2**31),
    ),
    (
        "pretrain.num_steps distill.num_steps classifier.num_steps pretrain.batch_size "
        "distill.batch_size pretrain.parts distill.parts distill.auxiliary.updates "
        "evaluation.num_neighbours evaluation.num_pictures evaluation.batch_size "
        "classifier.num_features classifier.batch_size checkpoint.save_every_steps checkpoint.keep "
        "logging.log_every_steps logging.picture_steps model.width model.depth model.heads "
        "model.mlp_dim",
        (1,),
        (*NO_COUNT, 0),
    ),
    (
        "evaluation.num_samples evaluation.sweep_num_samples interim.num_samples",
        (2,),
        (*NO_COUNT, 0, 1),
    ),
    (
        "max_skipped_in_a_row mesh.min_shard_elements interim.every_steps "
        "checkpoint.keep_every_steps "
        "logging.images_every_steps distill.sigma_warmup_steps logging.loss_bins "
        "distill.top_k distill.teacher.top_k sampler.top_k " + each(OPTIMIZERS, "warmup_steps"),
        (0, 1),
        NO_COUNT,
    ),
    ("data.num_classes data.num_test", (-1, 0, 1), (*NO_NUMBER, -2, 1.5, HUGE, True)),
    ("checkpoint.keep_best", (0,), NO_COUNT),  # others with interim.every_steps alone
    ("mesh.data mesh.fsdp", (-1, 1, 8), (*NO_NUMBER, 0, -2, 1.5, HUGE, True)),
    (
        "distill.sigma distill.step_sigma distill.auxiliary.soft_weight "
        + each(MASKS, "min_ratio", "max_ratio"),
        (0, 0.5, 1),
        NO_SHARE,
    ),
    (
        "model.dropout classifier.dropout pretrain.label_smoothing pretrain.condition_drop "
        "distill.auxiliary.label_smoothing distill.auxiliary.condition_drop pretrain.ema_decay "
        "distill.ema_decay " + each(OPTIMIZERS, "beta1", "beta2"),
        (0, 0.5),
        (*NO_SHARE, 1, 1.0),
    ),
    (
        "distill.top_p distill.teacher.top_p sampler.top_p",
        (0.1, 1, 1.0),
        (*NO_SHARE, 0, 0.0),
    ),
    (
        "distill.temperature distill.teacher.temperature distill.auxiliary.temperature "
        "sampler.temperature classifier.learning_rate " + each(OPTIMIZERS, "learning_rate", "eps"),
        (1e-9, 3),
        (*NO_NUMBER, 0, 0.0, -1, True),
    ),
    (
        "distill.guidance distill.teacher.lowered_by classifier.weight_decay "
        + each(OPTIMIZERS, "weight_decay", "clip_norm"),
        (0, 2.5),
        (*NO_NUMBER, -1, -0.1, False),
    ),
    ("distill.divergence.parameter", (-0.2, 0, 3), (*NO_NUMBER, False)),
    ("compute_dtype teacher.dtype", ("float32", "bfloat16"), (*NO_TEXT, "", "float16", "FLOAT32")),
    ("remat", ("none", "full", "dots"), (*NO_TEXT, "", "all")),
    ("attention", ("auto", "xla", "cudnn", "pallas"), (*NO_TEXT, "", "flash")),
    ("data.condition", ("label", "text"), (*NO_TEXT, "", "prompt", "Text")),
    (
        "data.name",
        ("digits", "tokens", "joint", "labels", "prompts"),
        (*NO_TEXT, "", "mnist", "Digits"),
    ),
    ("data.joint", ("", "pair", "modes", "parity"), (*NO_TEXT, "xor")),
    (
        "tokenizer.name",
        ("gray_levels", "patches", "vqgan", "llamagen", "google_vqgan", "vq_model"),
        (*NO_TEXT, "", "vq"),
    ),
    ("model.name", ("maskgit", "meissonic"), (*NO_TEXT, "", "halton2")),
    (each(OPTIMIZERS, "name"), ("adam", "muon"), (*NO_TEXT, "", "sgd")),
    (each(OPTIMIZERS, "schedule"), ("constant", "cosine", "linear"), (*NO_TEXT, "", "step")),
    (each(MASKS, "schedule"), ("arccos", "cosine", "mage"), (*NO_TEXT, "", "arcos")),
    (each(MASKS, "kind"), ("exact", "bernoulli"), (*NO_TEXT, "", "exactly")),
    ("pretrain.positions distill.auxiliary.positions", ("masked", "all"), (*NO_TEXT, "", "some")),
    (
        "pretrain.reduction distill.reduction distill.auxiliary.reduction",
        ("sum", "mean_masked", "mean_batch"),
        (*NO_TEXT, "", "mean"),
    ),
    ("distill.sigma_schedule", ("fixed", "exponential"), (*NO_TEXT, "", "none")),
    ("distill.method", ("dimo", "mixture"), (*NO_TEXT, "", "di4c")),
    ("distill.mixture.width distill.mixture.parts", (1, 64), (*NO_COUNT, 0)),
    ("distill.mixture.replicas distill.mixture.teacher_steps", (2, 32), (*NO_COUNT, 0, 1)),
    ("distill.mixture.delta", (0.05, 0.5), (*NO_SHARE, 0, 1)),
    ("distill.mixture.data_schedule", ("linear", "constant"), (*NO_TEXT, "", "cosine")),
    ("distill.mixture.condition_drop", (0, 0.5), (*NO_SHARE, 1, 1.0)),
    (
        "distill.mixture.guidance distill.mixture.data_weight distill.mixture.choice_temperature",
        (0, 2.5),
        (*NO_NUMBER, -1, -0.1, False),
    ),
    ("distill.steps", (1,), (*NO_COUNT, 0, 65)),
    (
        "distill.step_ratios",
        ((), (1,), [0.5, 0.25]),
        (None, 0.5, (0,), (0.5, 1.5), (-0.1,), (NAN,), ("a",), (True,)),
    ),
    ("distill.step_shares", ((), [1, 0.5]), (None, 1, (-1,), (NAN,), ("a",), (True,))),
    ("distill.step_tokens", ("carry", "redraw"), (*NO_TEXT, "", "keep")),
    ("distill.step_remask", ("any", "drawn"), (*NO_TEXT, "", "all")),
    ("distill.auxiliary.steps", ("every", "last"), (*NO_TEXT, "", "first")),
    ("distill.divergence.name", ("jeffrey", "alpha"), (*NO_TEXT, "", "kl")),
    ("distill.jacobian", ("auxiliary", "generator"), (*NO_TEXT, "", "teacher")),
    ("distill.timestep", ("", "zero", "ratio"), (*NO_TEXT, "one")),
    ("distill.weighting", ("one", "paper"), (*NO_TEXT, "", "none")),
    ("distill.auxiliary.sample", ("fresh", "reuse"), (*NO_TEXT, "", "old")),
    ("interim.protocol", ("dimo", "adm", "clean", "valeo"), (*NO_TEXT, "", "fid")),
    (
        each(OPTIMIZERS, "frozen"),
        ((), ("kernel$",), ["a", "b.*"]),
        (None, "kernel", 3, ("(",), (3,), ("*",), {}),
    ),
    (
        "mesh.rules",
        ((), ((".*", "whole"),), [["kernel$", [None, "fsdp"]]], (("a", "largest"), ("b", ()))),
        (
            *(None, ".*", 3, ("whole",), ((".*",),), (("(", "whole"),), ((".*", "all"),)),
            *(((".*", ("model",)),), ((3, "whole"),), ((".*", None),), (("a", "b", "c"),)),
        ),
    ),
    (
        "prompts.texts logging.picture_prompts",
        ((), ("a cat",), ["a", "b"]),
        (None, "a cat", (None,), (3,), 7),
    ),
    (
        "prompts.micro_conditions",
        ((1024.0, 1024.0, 0.0, 0.0, 6.0), [1, 2, 3, 4, 5]),
        (
            None,
            (),
            (1.0,),
            (1, 2, 3, 4, 5, 6),
            (1, 2, 3, 4, "5"),
            (1, 2, 3, 4, NAN),
            (-1, 2, 3, 4, 5),
        ),
    ),
    (
        "distill.ratio",
        ((0, 1), (0.6, 0.6), [0.1, 0.9]),
        (None, 0.6, (), (0.5,), (0.1, 0.2, 0.3), (0.5, 1.5), (-0.1, 0.5), (NAN, 0.5), ("a", "b")),
    ),
    (
        "sampler.ratio",
        ((), (0.8, 0.8), [0.1, 0.9]),
        (None, 0.6, (0.5, 1.5), (-0.1, 0.5), (NAN, 0.5), ("a", "b")),
    ),
    (
        "evaluation.seeds",
        ((0,), (1, 2), [7]),
        (None, (), 3, (-1,), (0.5,), ("a",), (2**31,), (1, 1), (NAN,), (True,), "01"),
    ),
    (
        "evaluation.teacher_steps evaluation.sweep_steps distill.mixture.steps",
        ((1,), (4, 16), [8]),
        (None, (), 3, (0,), (-1,), (0.5,), ("a",), (4, 4), (HUGE,), (NAN,)),
    ),
    (
        "evaluation.guidances",
        ((1.0,), (0, 2.5), [1]),
        (None, (), 1.0, (-1.0,), ("a",), (NAN,), (INF,), (1.0, 1), (None,)),
    ),
    (
        "evaluation.choice_temperatures",
        ((), (4.5,), [0, 1]),
        (None, 4.5, (-1.0,), ("a",), (NAN,), (1.0, 1.0)),
    ),
    (
        "classifier.channels",
        ((16,), [16, 32]),
        (None, (), 16, (0,), (-1,), (1.5,), ("a",), (HUGE,), (True,)),
    ),
    ("logging.picture_labels", ((), (0, 3), [9]), (None, 3, (-1,), (0.5,), ("a",), (NAN,))),
]


def split(fields):
    return fields.split()


ROWS = [(path, *values) for fields, *values in TABLE for path in split(fields)]
# The sizes that depend on a name, likewise.
SIZE_TABLE = [
    (
        "text_encoder.projection text_encoder.text.context text_encoder.text.width "
        "text_encoder.text.depth text_encoder.text.heads text_encoder.text.mlp_dim",
        (1,),
        (*NO_COUNT, 0),
    ),
    ("text_encoder.activation", ("gelu", "quick_gelu"), (None, 3, "", "relu")),
    ("text_encoder.text.vocabulary", (2, 514), (*NO_COUNT, 0, 1)),
]
OF_NAMES = {
    "meissonic": "vocabulary width depth single_depth heads mlp_dim text_length text_dim "
    "pooled_dim rope_dims merge timestep",
    "gray_levels": "image_size num_levels",
    "patches": "image_size channels patch_size codebook_size",
    "vqgan": "image_size ch ch_mult num_res_blocks attn_levels z_channels embed_dim n_embed "
    "l2_codebook",
    "llamagen": "image_size ch ch_mult num_res_blocks attn_levels z_channels embed_dim n_embed "
    "l2_codebook",
    "google_vqgan": "image_size ch ch_mult num_res_blocks embed_dim n_embed",
    "vq_model": "image_size ch ch_mult num_res_blocks z_channels embed_dim n_embed",
}
WRONG_SIZES = {
    **dict.fromkeys(("merge", "l2_codebook"), (None, 1, "yes")),
    "timestep": (None, "", "one", 3),
    "rope_dims": (None, (), (2, 2), (2, 2, 0), ("a", "b", "c"), 6),
    "ch_mult": (None, (), (0,), (1.5,), 4),
    "attn_levels": (None, (-1,), (0.5,), ("a",), 4, (99,)),
}


def shipped(name, variant):
    return importlib.import_module(f"configs.{name}").get_config(variant).to_dict()


def with_field(config, path, value):
    changed = copy.deepcopy(config)
    *sections, name = path.split(".")
    inner = changed
    for section in sections:
        inner = inner[section]
    inner[name] = value
    return changed


def refused(config, **options):
    with pytest.raises(InputError) as error:
        validation.validate(config, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_field_has_a_range_a_list_of_names_or_a_reason_for_having_none():
    for path, field in configs.flat(defaults.FIELDS).items():
        assert isinstance(field, Field), path
        assert field.about and field.rule.words, path
        assert field.rule.holds(field.default), path
        if field.rule.holds("any text at all"):
            assert "(" in field.rule.words, f"{path} has no range; say why, as text(...) does"
    every = [*sizes.MODEL_FIELDS.values(), *sizes.TOKENIZER_FIELDS.values()]
    for section in (*every, sizes.TEXT_ENCODER_FIELDS):
        assert all(isinstance(field, Field) for field in configs.flat(section).values())


def test_the_table_has_every_field_once():
    paths = [path for path, *_ in ROWS]
    assert sorted(paths) == sorted(configs.flat(defaults.FIELDS))
    of_text = [path for fields, *_ in SIZE_TABLE for path in split(fields)]
    assert {f"text_encoder.{x}" for x in configs.flat(sizes.TEXT_ENCODER_FIELDS)} == set(of_text)
    known = {**sizes.TOKENIZER_FIELDS, "meissonic": sizes.MODEL_FIELDS["meissonic"]}
    assert {name: set(split(fields)) for name, fields in OF_NAMES.items()} == {
        name: set(fields) for name, fields in known.items()
    }


@pytest.mark.parametrize(("path", "right", "wrong"), ROWS, ids=[row[0] for row in ROWS])
def test_what_cannot_stand_in_a_field_is_refused_with_its_name(path, right, wrong):
    config = shipped("digits", "gray")
    for value in right:
        assert configs.flat(defaults.FIELDS)[path].rule.holds(value), value
    for value in wrong:
        changed = with_field(config, path, value)
        # An empty dict in a field's place leaves no field.
        assert f"config.{path} is " in refused(changed), value


@pytest.mark.parametrize(("name", "variant"), SHIPPED)
def test_in_every_shipped_config_every_field_is_checked(name, variant):
    config = shipped(name, variant)
    validation.validate(config, starts=False)
    every = configs.flat(defaults.FIELDS).keys() | configs.flat(config).keys()
    for path, _, wrong in ROWS:
        if path in every and path in configs.flat(config):
            for value in (None, wrong[-1]):
                assert f"config.{path} is " in refused(with_field(config, path, value))


def test_sizes_of_a_name_are_checked_and_those_of_another_refused():
    text = shipped("meissonic", "smoke")
    for fields, _, wrong in SIZE_TABLE:
        for path in split(fields):
            for value in wrong:
                assert f"config.{path} is " in refused(with_field(text, path, value))
    for name, fields in OF_NAMES.items():
        section = "model" if name == "meissonic" else "tokenizer"
        config = text if name == "meissonic" else shipped("digits", "gray")
        if section == "tokenizer":
            config["tokenizer"] = {"bundle": "", "name": name}
            validation.validate(config)
        for field in split(fields):
            path = f"{section}.{field}"
            for value in WRONG_SIZES.get(field, (None, "", 1.5, -1, HUGE, NAN, "8", True)):
                assert f"config.{path} is " in refused(with_field(config, path, value))
        assert f"config.{section}.colour: " in refused(with_field(config, f"{section}.colour", 1))


def test_the_names_are_those_of_the_dicts_that_define_them():
    def names(path):
        return set(configs.fields_of(shipped("meissonic", "smoke"))[path].rule.choices)

    assert names("pretrain.mask.schedule") == set(schedules.MASK_SCHEDULES)
    assert names("distill.mask.kind") == set(masking.MASK_KINDS)
    assert names("distill.reduction") == set(losses.REDUCTIONS)
    assert names("distill.sigma_schedule") == set(schedules.WARMUPS)
    assert names("distill.divergence.name") == set(divergences.DIVERGENCES)
    assert names("distill.mixture.data_schedule") == set(objective.DATA_SCHEDULES)
    assert names("pretrain.optimizer.name") == set(optimizers.NAMES)
    assert names("pretrain.optimizer.schedule") == set(optimizers.SCHEDULES)
    assert names("tokenizer.name") == set(TOKENIZERS) == set(sizes.TOKENIZER_FIELDS)
    assert names("interim.protocol") == set(PROTOCOLS)
    assert names("data.joint") == {"", *joints.JOINTS}
    assert names("model.timestep") == set(meissonic.TIMESTEPS)
    assert names("distill.timestep") == {"", *meissonic.TIMESTEPS}
    assert names("text_encoder.activation") == set(clip.ACTIVATIONS)
    assert sizes.PICTURE_SETS == {
        name: (known.NUM_CLASSES, known.NUM_EXAMPLES["test"]) for name, known in BUILT_IN.items()
    }


def test_the_sizes_are_those_that_the_networks_take():
    def arguments(function):
        return set(inspect.signature(function).parameters)

    given = {"num_tokens", "codebook_size", "num_classes", "compute", "name", "mixture_dim"}
    for name, build in {"maskgit": maskgit.build, "meissonic": meissonic.build}.items():
        assert set(sizes.MODEL_FIELDS[name]) == arguments(build) - given
    for name, build in TOKENIZERS.items():
        assert set(sizes.TOKENIZER_FIELDS[name]) == arguments(build) - {"name"}


DIGITS, TOY, CLASSES = ("digits", "gray"), ("toy", "pair"), ("imagenet", "smoke")
TEXT, EMOJI = ("meissonic", "smoke"), ("emoji", "text")
AUX = "distill.auxiliary."
WARMUP = "distill.generator.optimizer.warmup_steps"
CONTRADICTIONS = [
    (DIGITS, {WARMUP: 1801}, (f"config.{WARMUP} is 1801", "config.distill.num_steps = 1800")),
    (
        DIGITS,
        {f"{AUX}updates": 2, f"{AUX}optimizer.warmup_steps": 3601},
        ("config.distill.auxiliary.optimizer.warmup_steps is 3601", "x 2 updates = 3600"),
    ),
    (
        DIGITS,
        {"pretrain.num_steps": 99},
        ("config.pretrain.optimizer.warmup_steps is 100", "config.pretrain.num_steps = 99"),
    ),
    (
        DIGITS,
        {"distill.num_steps": 2**30, f"{AUX}updates": 4},
        ("config.distill.num_steps x 4 updates",),
    ),
    (
        DIGITS,
        {"pretrain.parts": 3},
        ("config.pretrain.batch_size is 64", "config.pretrain.parts 3"),
    ),
    (DIGITS, {"distill.parts": 64}, ("config.distill.batch_size", "config.distill.parts 64")),
    (DIGITS, {"distill.mask.min_ratio": 0.9, "distill.mask.max_ratio": 0.5}, ("min_ratio is 0.9",)),
    (DIGITS, {"distill.ratio": (0.8, 0.2)}, ("config.distill.ratio is (0.8, 0.2)",)),
    (DIGITS, {"sampler.ratio": (0.8,)}, ("config.sampler.ratio is (0.8,)", "(low, high)")),
    (
        DIGITS,
        {"distill.method": "mixture", "distill.steps": 2},
        ("config.distill.steps is 2", "config.distill.mixture.steps"),
    ),
    (DIGITS, {"distill.step_ratios": (0.5,)}, ("step_ratios is (0.5,)", "steps is 1", "0 in all")),
    (DIGITS, {"distill.steps": 2, "distill.step_shares": (1,)}, ("step_shares is (1,)", "2 in")),
    (DIGITS, {"distill.steps": 2, "distill.step_shares": (0, 0)}, ("not only zeros",)),
    (DIGITS, {"distill.steps": 4, "distill.step_ratios": (0.5, 0.2)}, ("steps is 4", "3 in all")),
    (
        DIGITS,
        {f"{AUX}sample": "reuse", f"{AUX}condition_drop": 0.1},
        ("config.distill.auxiliary.condition_drop needs sample=fresh",),
    ),
    (
        DIGITS,
        {"distill.divergence": {"name": "alpha", "parameter": 1.0}},
        ("config.distill.divergence.parameter is 1.0", "reverse_kl"),
    ),
    (DIGITS, {"model.heads": 5}, ("config.model.width is 64", "config.model.heads 5")),
    (
        TEXT,
        {"text_encoder.text.heads": 3},
        ("config.text_encoder.text.width is 16", "config.text_encoder.text.heads 3"),
    ),
    (TEXT, {"model.rope_dims": (4, 6, 8)}, ("config.model.rope_dims is (4, 6, 8)", "= 16")),
    (TEXT, {"model.rope_dims": (5, 5, 6)}, ("config.model.rope_dims is (5, 5, 6)", "even")),
    (
        DIGITS,
        {"model": shipped(*TEXT)["model"]},
        ("config.model.name is meissonic", "config.data.name is digits"),
    ),
    (
        TEXT,
        {"model": shipped(*CLASSES)["model"]},
        ("config.model.name is maskgit", "config.data.name is prompts"),
    ),
    (DIGITS, {"attention": "cudnn"}, ("config.attention=cudnn", "config.compute_dtype=bfloat16")),
    (DIGITS, {"attention": "pallas"}, ("config.attention=pallas", "config.compute_dtype=bfloat16")),
    (DIGITS, {"data.num_classes": 11}, ("config.data.num_classes is 11", "must be 10")),
    (DIGITS, {"data.num_classes": 9}, ("config.data.num_classes is 9", "must be 10")),
    (TOY, {"data.num_classes": 2}, ("config.data.num_classes is 2", "must be 1")),
    (CLASSES, {"data.num_classes": 0}, ("config.data.num_classes is 0", "at least 1")),
    (TEXT, {"data.num_classes": 5}, ("config.data.num_classes is 5", "must be 0")),
    (TOY, {"data.joint": ""}, ("config.data.joint is empty",)),
    (TOY, {"data.balanced": False}, ("config.data.balanced is False", "config.data.name=joint")),
    (CLASSES, {"data.balanced": False}, ("config.data.balanced is False", "leave it True")),
    (DIGITS, {"data.joint": "pair"}, ("config.data.joint is pair", "leave it empty")),
    (DIGITS, {"logging.picture_labels": (10,)}, ("config.logging.picture_labels", "0 to 9")),
    (TEXT, {"logging.picture_labels": (0,)}, ("config.logging.picture_labels", "classes")),
    (DIGITS, {"logging.picture_prompts": ("a",)}, ("config.logging.picture_prompts is given",)),
    (TOY, {"teacher.bundle": "x"}, ("config.teacher.bundle given", "exact teacher")),
    (TOY, {"teacher.random": True}, ("config.teacher.random given",)),
    (TOY, {"interim.every_steps": 5}, ("config.interim.every_steps given",)),
    (DIGITS, {"evaluation.sweep_seed": 1}, ("config.evaluation.sweep_seed is 1",)),
    (
        DIGITS,
        {"evaluation.choice_temperatures": (), "evaluation.random_order": False},
        ("config.evaluation.choice_temperatures is empty", "config.evaluation.random_order"),
    ),
    (DIGITS, {"evaluation.num_samples": 9}, ("config.evaluation.num_samples is 9", "at least 10")),
    (DIGITS, {"evaluation.sweep_num_samples": 9}, ("config.evaluation.sweep_num_samples is 9",)),
    (
        DIGITS,
        {"evaluation.num_samples": 40, "evaluation.num_neighbours": 40},
        ("config.evaluation.num_neighbours is 40", "below 40"),
    ),
    (
        DIGITS,
        {"evaluation.num_neighbours": 397},
        ("config.evaluation.num_neighbours is 397", "below 397", "test split"),
    ),
    (DIGITS, {"data.condition": "text", "teacher.bundle": "x"}, ("data.name=digits have none",)),
    (EMOJI, {"data.condition": "label"}, ("takes text", "is emoji with data.condition=label")),
    (EMOJI, {"prompts.texts": ("x",)}, ("config.prompts.texts given", "data.name is emoji")),
    (EMOJI, {"prompts.cache": "x"}, ("config.prompts.cache is given", "trained with the teacher")),
    (EMOJI, {"text_encoder.bundle": "x"}, ("config.text_encoder.bundle is given",)),
    (
        EMOJI,
        {"distill.auxiliary.condition_drop": 0.1, "distill.auxiliary.sample": "fresh"},
        ("condition_drop is for classes",),
    ),
    (DIGITS, {"prompts.path": "x.txt"}, ("config.prompts.path given", "data.name is digits")),
    (DIGITS, {"teacher.bundle": "x", "teacher.random": True}, ("config.teacher has a bundle and",)),
    (CLASSES, {"teacher.random": False}, ("config.teacher.bundle and config.tokenizer.bundle",)),
    (TEXT, {"teacher.random": False}, ("config.teacher.bundle empty", "--source=meissonic")),
    (TEXT, {"prompts.texts": ()}, ("neither config.prompts.path nor .texts",)),
    (TEXT, {"prompts.path": "x.txt"}, ("config.prompts.path and config.prompts.texts given",)),
    (TEXT, {f"{AUX}condition_drop": 0.1}, ("config.distill.auxiliary.condition_drop",)),
]


@pytest.mark.parametrize(("base", "changes", "words"), CONTRADICTIONS)
def test_fields_that_contradict_each_other_are_refused(base, changes, words):
    config = shipped(*base)
    validation.validate(config)
    for path, value in changes.items():
        config = with_field(config, path, value)
    message = refused(config)
    assert all(word in message for word in words), message


def test_a_config_with_sections_lost_or_replaced_is_refused_with_the_name():
    config = shipped(*DIGITS)
    for path, value, words in (
        ("distill", 3, "config.distill is 3; it must be a section with num_steps, batch_size"),
        ("distill.mask", "exact", "config.distill.mask is 'exact'; it must be a section with"),
        ("tokenizer.name", {}, "config.tokenizer.name is missing"),
        ("evaluation", {}, "config.evaluation.num_samples is missing"),
        ("colour", "red", "there is no field config.colour"),
        ("distill.sigm", 1, "no field config.distill.sigm; nearest: config.distill.sigma"),
        ("seed.x", 1, "config.seed is missing"),
    ):
        changed = with_field({**config, "seed": {}} if path == "seed.x" else config, path, value)
        assert words in refused(changed), refused(changed)
