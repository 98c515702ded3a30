"""Every field of a run in one place: default, what may stand there, what it means. Imports no jax.

docs/config.md is made of what stands here. Sizes that depend on a name are in sizes.py.
"""

from typing import Any

from dimo_jax.common.fields import (
    PATTERN,
    SWITCH,
    Field,
    Rule,
    names,
    number,
    several,
    text,
    whole,
)
from dimo_jax.config.mixture import FIELDS as MIXTURE_FIELDS
from dimo_jax.config.sizes import BUNDLE, MODEL_FIELDS, PICTURE_SETS, TOKENIZER_FIELDS, WIDTH

BATCH, SAMPLES = whole(1, 2**20), whole(2, 10_000_000)
COUNT, COUNT_OR_NONE = whole(1), whole(0)
SEED = whole(0)
ABOVE_0, AT_LEAST_0, SHARE, BELOW_1 = number(above=0), number(0), number(0, 1), number(0, below=1)
TOP_P = number(above=0, high=1)
FOLDER = text("a folder, or empty; seen at the start to be no file")
REDUCTION = names("sum", "mean_masked", "mean_batch")
DTYPE = names("float32", "bfloat16")
_STEPS = several(whole(1, 10_000), least=1, distinct=True)
_DEVICES = whole(1, 2**20, also=(-1,), why="all devices left")
_PROMPT = text("any prompt, an empty one too")


def _optimizer(learning_rate: float) -> dict[str, Field]:
    return {
        "name": Field("adam", names("adam", "muon"), "Muon is for the kernels, Adam for the rest"),
        "learning_rate": Field(learning_rate, ABOVE_0, "the highest of the schedule"),
        "schedule": Field(
            "constant", names("constant", "cosine", "linear"), "the last two fall to 0 at the end"
        ),
        "warmup_steps": Field(100, COUNT_OR_NONE, "of the updates, at most all; 0: no warm-up"),
        "beta1": Field(0.9, BELOW_1, "decay of the first moment, and Muon's momentum"),
        "beta2": Field(0.999, BELOW_1, "decay of the second moment"),
        "eps": Field(1e-8, ABOVE_0, "added to the root of the second moment"),
        "weight_decay": Field(0.0, AT_LEAST_0, "decoupled, scaled by the learning rate"),
        "clip_norm": Field(0.0, AT_LEAST_0, "largest norm of the gradient; 0: no clipping"),
        "frozen": Field((), several(PATTERN), "regular expressions on the paths of parameters"),
    }


def _mask() -> dict[str, Field]:
    schedules = names("arccos", "cosine", "linear", "square", "mage")
    return {
        "schedule": Field("arccos", schedules, "how many tokens are masked"),
        "kind": Field("exact", names("exact", "bernoulli"), "that share of them, or each with it"),
        "min_ratio": Field(0.0, SHARE, "the schedule is cut off below; at most max_ratio"),
        "max_ratio": Field(1.0, SHARE, "and above"),
    }


def _denoise(condition_drop: float = 0.0, dropout: bool = False) -> dict[str, Any]:
    return {
        "mask": _mask(),
        "label_smoothing": Field(0.0, BELOW_1, "of the targets"),
        "condition_drop": Field(condition_drop, BELOW_1, "share of conditions that are left out"),
        "positions": Field("masked", names("masked", "all"), "those that the loss is of"),
        "reduction": Field("mean_batch", REDUCTION, "of the loss over positions and batch"),
        "dropout": Field(dropout, SWITCH, "whether model.dropout acts here"),
    }


def _sampling(temperature: str) -> dict[str, Field]:
    return {
        "temperature": Field(1.0, ABOVE_0, temperature),
        "top_k": Field(0, COUNT_OR_NONE, "codes that may be drawn; 0: all"),
        "top_p": Field(1.0, TOP_P, "mass of the codes that may be drawn"),
    }


def _is_mesh_rule(value: Any) -> bool:
    """Return a pair of an expression and a place: a word, or an axis or None for each dimension."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not PATTERN.holds(value[0]):
        return False
    where = value[1]
    if isinstance(where, list | tuple):
        return all(axis in (None, "data", "fsdp") for axis in where)
    return where in ("largest", "whole")


_MESH_RULES = Rule(
    'pairs (regular expression, "largest", "whole" or a tuple of "data", "fsdp" and None)',
    lambda value: isinstance(value, list | tuple) and all(map(_is_mesh_rule, value)),
)

FIELDS: dict[str, Any] = {
    "title": Field("Di[M]O", text("of the reports"), "headline of reports and of the export"),
    "seed": Field(0, SEED, "of everything random; the same one gives the same run"),
    "compute_dtype": Field(
        "float32", DTYPE, "of the networks' products; parameters, moments and losses are float32"
    ),
    "fast_compile": Field(
        False, SWITCH, "half the time for compiling on a CPU, and slower steps: for dry runs"
    ),
    "remat": Field(
        "none",
        names("none", "full", "dots"),
        "what a backward pass recomputes of a block: nothing, all, all but the products with "
        "parameters",
    ),
    "scan_layers": Field(
        False, SWITCH, "one compiled block that is run depth times: a shorter compilation"
    ),
    "attention": Field(
        "auto",
        names("auto", "xla", "cudnn", "pallas"),
        "cudnn, pallas: fused kernels of NVIDIA GPUs and of TPUs, in bfloat16 without dropout; "
        "auto: the one that applies, else xla",
    ),
    "compilation_cache": Field("", FOLDER, "for compiled programs, shared by all processes"),
    "max_skipped_in_a_row": Field(
        10, COUNT_OR_NONE, "updates left out for a gradient that is not finite; 0: any number"
    ),
    "mesh": {
        "data": Field(-1, _DEVICES, "devices along the batch"),
        "fsdp": Field(1, _DEVICES, "devices along the parameters"),
        "min_shard_elements": Field(
            65_536, COUNT_OR_NONE, "smaller parameters are replicated under the rule largest"
        ),
        "rules": Field(
            (
                (r"(kernel|embedding|projection|kernels_\d+x\d+)$", "largest"),
                (r"(scale|bias)$", "whole"),
                (r"(log_joint|ns_coeffs)$", "whole"),  # the toys' posterior; Muon's constants
            ),
            _MESH_RULES,
            "the first expression found in a parameter's path says how it is sharded: "
            "parallel/sharding.py",
        ),
    },
    "data": {
        "name": Field(
            "digits",
            names(*PICTURE_SETS, "tokens", "joint", "labels", "prompts"),
            "tokens: own pictures, encoded; labels, prompts: no images, a teacher is given",
        ),
        "path": Field(
            "",
            text("a folder of tokens; read at the start"),
            "for data.name=tokens: what python -m dimo_jax.encode wrote",
        ),
        "num_test": Field(
            -1,
            whole(0, 10_000_000, also=(-1,), why="a tenth of a small set, none of a large one"),
            "of these examples, kept from the training for the report; 0: no report",
        ),
        "condition": Field(
            "label",
            names("label", "text"),
            "what pictures with both are drawn from: classes, or texts (of the training split)",
        ),
        "directory": Field("", FOLDER, "where data sets lie; empty: <workdir>/data"),
        "num_classes": Field(
            10,
            whole(0, 2**20, also=(-1,), why="those of the folder of tokens"),
            "10 of digits, 9 of emoji, 1 of a joint, 0 of prompts, else the teacher's",
        ),
        "balanced": Field(
            True,
            SWITCH,
            "whether classes are drawn evenly, or as often as the training split has them",
        ),
        "joint": Field(
            "",
            names("", "pair", "modes", "parity"),
            "for data.name=joint: which known distribution (data/joints.py)",
        ),
    },
    "prompts": {
        "path": Field(
            "",
            text("read at the start"),
            ".txt, .jsonl, .json, .csv, .tsv, .parquet, a folder of these, or tfds:NAME:SPLIT",
        ),
        "texts": Field((), several(_PROMPT), "the prompts themselves, in place of a path"),
        "field": Field("", text("a record's key"), "empty: prompt, caption or text"),
        "negative": Field("", _PROMPT, "what the teacher's guidance leads away from"),
        "micro_conditions": Field(
            (1024.0, 1024.0, 0.0, 0.0, 6.0),
            several(AT_LEAST_0, exactly=5),
            "width, height, two of the crop, aesthetic score",
        ),
        "cache": Field("", FOLDER, "for their features; empty: computed in every step"),
    },
    "text_encoder": {
        "bundle": Field(
            "", BUNDLE, "empty: text_encoder/ beside the teacher's; else trained or random with it"
        ),
    },
    "tokenizer": {
        "bundle": Field(
            "",
            BUNDLE,
            "brings its name and sizes; of a run with text, empty: vqvae/ beside the teacher's",
        ),
        "name": Field("gray_levels", names(*TOKENIZER_FIELDS), "and that tokenizer's own sizes"),
    },
    "model": {
        "name": Field(
            "maskgit", names(*MODEL_FIELDS), "with teacher.bundle the network is the bundle's"
        ),
        **MODEL_FIELDS["maskgit"],
    },
    "teacher": {
        "bundle": Field("", BUNDLE, "empty: the section pretrain trains the teacher first"),
        "random": Field(False, SWITCH, "none is trained: for a dry run of the rest"),
        "dtype": Field("float32", DTYPE, "what it is kept in, bfloat16 for half the memory"),
    },
    "pretrain": {
        "num_steps": Field(3000, COUNT, "updates of the teacher"),
        "batch_size": Field(64, BATCH, "examples, of all devices together"),
        "parts": Field(1, BATCH, "of a batch, computed one after the other; they divide it"),
        **_denoise(condition_drop=0.1, dropout=True),
        "optimizer": _optimizer(1e-4),
        "ema_decay": Field(0.999, BELOW_1, "of the averaged teacher, the one that is used"),
        "ema_warmup": Field(True, SWITCH, "whether the decay starts low"),
    },
    "distill": {
        "num_steps": Field(30_000, COUNT, "updates of the generator"),
        "batch_size": Field(64, BATCH, "examples, of all devices together"),
        "parts": Field(1, BATCH, "of a batch, computed one after the other; they divide it"),
        "method": Field(
            "dimo",
            names("dimo", "mixture"),
            "Di[M]O, which needs no images; or Di4C, to a few steps, on the training's tokens",
        ),
        "mixture": MIXTURE_FIELDS,
        "ratio": Field(
            (0.6, 0.6), several(SHARE, exactly=2), "initial mask ratio, drawn from (low, high)"
        ),
        "sigma": Field(0.1, SHARE, "embedding noise"),
        "sigma_schedule": Field(
            "fixed", names("fixed", "linear", "exponential", "cosine"), "how sigma grows"
        ),
        "sigma_warmup_steps": Field(0, COUNT_OR_NONE, "until sigma is reached"),
        "steps": Field(
            1, whole(1, 64), "of the generator; more than 1 is experimental: docs/few_steps.md"
        ),
        "step_ratios": Field(
            (),
            several(TOP_P),
            "share of the tokens that is masked again before step 2, 3, ...; empty: falling evenly "
            "from two thirds to one third",
        ),
        "step_sigma": Field(0.0, SHARE, "embedding noise in those steps"),
        "step_tokens": Field(
            "carry", names("carry", "redraw"), "what those steps keep is carried over or redrawn"
        ),
        "step_shares": Field(
            (), several(AT_LEAST_0), "how often each is trained, one share for each; empty: alike"
        ),
        "step_remask": Field(
            "drawn", names("any", "drawn"), "of x_t: any position, or those that the step drew"
        ),
        **_sampling("of the generator's samples in training"),
        "mask": _mask(),
        "divergence": {
            "name": Field(
                "forward_kl",
                names(
                    *("forward_kl", "reverse_kl", "jeffrey", "jensen_shannon"),
                    *("squared_hellinger", "alpha"),
                ),
                "what pulls the generator to the teacher",
            ),
            "parameter": Field(0.0, number(), "beta of jeffrey, a of alpha (not 0 or 1)"),
        },
        "jacobian": Field("auxiliary", names("auxiliary", "generator"), "whose softmax"),
        "guidance": Field(2.0, AT_LEAST_0, "of the teacher, u + s (c - u); 1: none"),
        "adaptive_guidance": Field(False, SWITCH, "whether it grows with the mask ratio"),
        "timestep": Field(
            "",
            names("", "zero", "ratio"),
            "what a network with text is given as the time; empty: as its bundle",
        ),
        "reduction": Field("sum", REDUCTION, "of the gradient over tokens and batch"),
        "weighting": Field("one", names("one", "paper"), "w(t): none, as released, or the paper's"),
        "ema_decay": Field(0.9999, BELOW_1, "of the averaged generator, the one that is used"),
        "ema_warmup": Field(True, SWITCH, "whether the decay starts low"),
        "teacher": {
            **_sampling("divides the teacher's logits"),
            "lowered_by": Field(2.0, AT_LEAST_0, "what logits outside top-k or top-p lose"),
            "dropout": Field(False, SWITCH, "whether model.dropout acts here"),
        },
        "generator": {
            "bundle": Field(
                "",
                BUNDLE,
                "of a finished generator, to start from it instead of from the teacher's weights; "
                "the auxiliary starts from those in any case",
            ),
            "dropout": Field(False, SWITCH, "whether model.dropout acts here"),
            "optimizer": _optimizer(1e-5),
        },
        "auxiliary": {
            **_denoise(),
            "sample": Field(
                "fresh", names("fresh", "reuse"), "of the updated generator, or the step's own"
            ),
            "steps": Field(
                "every", names("every", "last"), "of the generator, whose samples it learns from"
            ),
            "updates": Field(1, whole(1, 1024), "of the auxiliary in a step"),
            "temperature": Field(1.0, ABOVE_0, "divides its logits in the divergence"),
            "soft_weight": Field(0.0, SHARE, "of the generator's probabilities as targets"),
            "optimizer": _optimizer(1e-5),
        },
    },
    # With the sigma of the training.
    "sampler": {
        **_sampling("of the samples that the generator is used with"),
        "ratio": Field(
            (), several(SHARE), "initial mask ratio (low, high); empty: that of the training"
        ),
    },
    "evaluation": {
        "num_samples": Field(1400, SAMPLES, "images of each model and seed"),
        "seeds": Field((0, 1, 2), several(SEED, least=1, distinct=True), "mean and spread of them"),
        "teacher_steps": Field((1, 2, 4, 8, 16), _STEPS, "at which the teacher is measured"),
        "sweep_steps": Field((4, 16), _STEPS, "at which its samplers are compared"),
        "sweep_num_samples": Field(350, SAMPLES, "images of each sampler"),
        "sweep_seed": Field(100, SEED, "none of seeds: those would choose and be measured"),
        "guidances": Field((1.0,), several(AT_LEAST_0, least=1, distinct=True), "of the teacher"),
        "choice_temperatures": Field(
            (4.5, 10.0), several(AT_LEAST_0, distinct=True), "of the order by confidence"
        ),
        "random_order": Field(True, SWITCH, "whether a random order is compared too"),
        "num_neighbours": Field(5, COUNT, "k of precision, recall, density and coverage"),
        "num_pictures": Field(40, whole(1, 10_000), "of each model in the report"),
        "batch_size": Field(350, BATCH, "images drawn at a time"),
    },
    "interim": {
        "every_steps": Field(
            0, COUNT_OR_NONE, "interval of the generator's distance in training; 0: never"
        ),
        "num_samples": Field(5000, SAMPLES, "images; the number is part of the record's name"),
        "seed": Field(0, SEED, "of those images"),
        "teacher": Field(
            False,
            SWITCH,
            "whether the teacher that is trained is measured too, in logging.picture_steps steps",
        ),
        "features": Field("", BUNDLE, "of Inception; empty: the data's own distance"),
        "reference": Field("", text("read at the start"), "a file of statistics"),
        "protocol": Field("dimo", names("dimo", "adm", "clean", "valeo"), "of the FID"),
    },
    "classifier": {
        "channels": Field((16, 32), several(WIDTH, least=1), "of each convolution"),
        "num_features": Field(64, WIDTH, "what the Fréchet distance is of"),
        "dropout": Field(0.3, BELOW_1, "on the features"),
        "num_steps": Field(400, whole(1, 10_000_000), "updates"),
        "batch_size": Field(64, BATCH, "images"),
        "learning_rate": Field(3e-3, ABOVE_0, "falls to 0 along a cosine"),
        "weight_decay": Field(1e-2, AT_LEAST_0, "decoupled"),
        "seed": Field(0, SEED, "of its own"),
    },
    "checkpoint": {
        "save_every_steps": Field(500, COUNT, "interval; the last step is always saved"),
        "keep": Field(2, whole(1, 1_000_000), "newest checkpoints"),
        "keep_every_steps": Field(
            0, COUNT_OR_NONE, "those of its multiples are never removed; 0: none for that reason"
        ),
        "keep_best": Field(
            0,
            whole(0, 1_000_000),
            "those of the least interim distance, saved as they are measured, are not removed",
        ),
        "allow_fallback": Field(
            False, SWITCH, "go on from the one before, where the newest is damaged"
        ),
    },
    "logging": {
        "log_every_steps": Field(50, COUNT, "interval of the metrics"),
        "loss_bins": Field(
            0,
            whole(0, 64),
            "of the mask ratio, 0 to 1: the teacher's loss is recorded in each; 0: only in all",
        ),
        "images_every_steps": Field(500, COUNT_OR_NONE, "interval of the pictures; 0: never"),
        "picture_labels": Field(
            (), several(whole(0)), "of those pictures; empty: every class, of many the first 16"
        ),
        "picture_prompts": Field((), several(_PROMPT), "likewise; empty: the first four"),
        "picture_steps": Field(8, whole(1, 10_000), "of the teacher's sampler in them"),
        "tensorboard": Field(True, SWITCH, "whether TensorBoard's files are written too"),
        "wandb": Field(
            False, SWITCH, "whether all of it goes to Weights & Biases too: docs/tracking.md"
        ),
        "wandb_project": Field(
            "", text("a project's name"), "there; empty: WANDB_PROJECT, without it dimo_jax"
        ),
    },
}
