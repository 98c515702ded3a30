"""The model card of an export: README.md with the head that the Hugging Face Hub reads.

A card that somebody has edited is theirs: it is kept when the export is written again.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from dimo_jax.common import files
from dimo_jax.common.files import AnyPath

FILE = "README.md"
_LIBRARY = "library_name: "
_OWN = "dimo_jax"
_END = "<!-- written by dimo_jax, "


def text(
    model: Mapping[str, Any],
    sampler: Mapping[str, Any],
    tokenizer: Mapping[str, Any] | None,
    provenance: Mapping[str, Any],
    table: str = "",
    in_diffusers: bool = False,
) -> str:
    """Return the card of a generator.

    Args:
        model: of its bundle.
        sampler: likewise.
        tokenizer: likewise.
        provenance: likewise; "repository" is where its weights were published.
        table: in Markdown, what was measured; empty: nothing.
        in_diffusers: whether diffusers loads it, and not this package.
    """
    with_text = not model.get("num_classes")
    base = provenance.get("repository")
    steps = sampler.get("num_steps", len(sampler.get("step_ratios", ())) + 1)
    head = [
        "license: unknown",
        *([f"base_model: {base}"] if base else []),
        f"{_LIBRARY}{'diffusers' if in_diffusers else _OWN}",
        f"pipeline_tag: {'text-to-image' if with_text else 'unconditional-image-generation'}",
        "tags:",
        *(f"- {x}" for x in ("dimo", "masked-diffusion", "distillation")),
        *(f"- {x}" for x in (("pytorch",) if in_diffusers else ("jax", "flax"))),
        f"- {model['name']}",
    ]
    title = str(provenance.get("title") or model["name"]).replace("\n", " ")
    if in_diffusers:
        call = 'prompt=["a red ball"]' if with_text else "class_labels=[0, 1, 2]"
        lines = (
            "from diffusers import DiffusionPipeline\n\n"
            'pipeline = DiffusionPipeline.from_pretrained("OWNER/REPO", trust_remote_code=True)\n'
            f"images = pipeline({call}).images  # or of a folder; needs no dimo_jax"
        )
    else:
        call = 'prompts=["a red ball"]' if with_text else "labels=[0, 1, 2]"
        lines = (
            "import dimo_jax\n\n"
            'generator = dimo_jax.load("hf://OWNER/REPO")  # or a folder\n'
            f"images = generator({call}, seed=0)  # uint8 [N, H, W, 3]"
        )
    known = {k: v for k, v in provenance.items() if isinstance(v, str | int)}
    size = tokenizer and tokenizer["config"].get("image_size")
    sections = [
        "\n".join(["---", *head, "---"]),
        f"# {title}",
        f"A generator of images{f' of {size} x {size} pixels' if size else ''} in "
        f"{'one step' if steps == 1 else f'{steps} steps'}, made with dimo_jax: a masked diffusion "
        "model distilled by Di[M]O (arXiv 2503.15457).",
        f"```python\n{lines}\n```",
        "## What was measured",
        table or "Nothing by the run that wrote this card.",
        "## Where it comes from",
        "\n".join(f"* {name}: {value}" for name, value in sorted(known.items()))
        or "Nothing is recorded.",
        "The license is that of the weights and pictures it was trained with, which this program "
        "cannot know: set it above before you publish.",
    ]
    body = "\n\n".join(sections) + "\n"
    return f"{body}{_END}{_digest(body)} -->\n"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def is_card(data: bytes) -> bool:
    """Return whether a file is a card of this program, edited or not."""
    return data.startswith(b"---\n") and f"{_LIBRARY}{_OWN}".encode() in data[:4096]


def edited(folder: AnyPath) -> bytes | None:
    """Return what stands in a folder in place of a card as it was written; None: nothing."""
    try:
        data = (folder / FILE).read_bytes()
    except OSError:
        return None
    body, end, digest = data.decode("utf-8", "replace").rpartition(_END)
    untouched = bool(end) and digest == f"{_digest(body)} -->\n"
    return None if untouched else data


def add_table(folder: AnyPath, config: Mapping[str, Any], table: str) -> None:
    """Write what was measured into the card of an export, unless somebody edited it.

    Args:
        folder: the bundle's.
        config: its config.json.
        table: in Markdown.
    """
    if edited(folder) is None:
        model, sampler = config["model"], config["sampler"]
        made = text(model, sampler, config["tokenizer"], config["provenance"], table)
        files.write_file(folder / FILE, made.encode())
