"""What the JSON beside a CLIP checkpoint says: sizes, heads, activation.

Read are Hugging Face's config.json, of a CLIPModel or of a text tower alone, and open_clip's
open_clip_config.json or the model configuration inside it. Whatever they name that plain CLIP does
not have is refused, since the weights would load and give other features.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dimo_jax.common import limits, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import quoted
from dimo_jax.models.clip import ACTIVATIONS, MEAN, STD

# Fields of open_clip's configuration that this network has; any other that is on changes it.
_OPEN_CLIP_FIELDS = {
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
    "vision_cfg": {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"},
}
# Of training alone. Fields of another tokenizer than its own give other ids, and are refused.
_OPEN_CLIP_NEUTRAL = {"patch_dropout"}

# Hugging Face's name -> ours, and the value that its library leaves out.
_TEXT_FIELDS = {
    "vocab_size": ("vocabulary", 49408),
    "max_position_embeddings": ("context", 77),
    "hidden_size": ("width", 512),
    "num_hidden_layers": ("depth", 12),
    "num_attention_heads": ("heads", 8),
    "intermediate_size": ("mlp_dim", 2048),
}


@readers.well_typed("the JSON beside the weights")
def settings_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON in our words.

    Args:
        described: as parsed.

    Returns:
        {"projection", "activation", "text": {...}, "image": {...}}, the towers with the names of
        models.clip; what is left out in the file has its library's default.

    Raises:
        InputError: it is of another kind, damaged, or of a network that is not plain CLIP.
    """
    kind = described.get("model_type", "no model_type")
    if "text_cfg" in described or "model_cfg" in described:
        found = _told_by_open_clip(described)
    elif str(kind).startswith("clip"):
        found = _told_by_hugging_face(described)
    else:
        raise InputError(
            f"the JSON beside the weights is of {quoted(kind)}; expected open_clip's, or Hugging "
            "Face's of a model_type clip or clip_text_model"
        )
    limits.check_sizes(found)
    return found


def text_config_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json with which transformers builds the same text tower.

    Args:
        config: of a network of text alone.
    """
    return {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "hidden_act": config["activation"],
        "layer_norm_eps": 1e-5,
        "projection_dim": config["projection"],
        **{theirs: config["text"][ours] for theirs, (ours, _) in _TEXT_FIELDS.items()},
        "bos_token_id": 0,
        "pad_token_id": 1,
        # As published. Any other number looks for this very id instead of the largest one.
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def _told_by_open_clip(described: Mapping[str, Any]) -> dict[str, Any]:
    model = described.get("model_cfg", described)
    prepared = described.get("preprocess_cfg", {})
    for name, usual in (("mean", MEAN), ("std", STD)):
        if not np.allclose(prepared.get(name, usual), usual, atol=1e-6):
            raise InputError(f"preprocess_cfg.{name} is {prepared[name]}, expected {usual}")
    for tower, known in _OPEN_CLIP_FIELDS.items():
        others = {k for k, v in model[tower].items() if v and k not in known | _OPEN_CLIP_NEUTRAL}
        if others:
            raise InputError(
                f"open_clip's {tower} has {', '.join(sorted(others))}: that is another network "
                "than plain CLIP, which is what can be converted"
            )
    text, image = model["text_cfg"], model["vision_cfg"]
    quick = model.get("quick_gelu", False)
    width = image.get("width", 768)
    return {
        "projection": model["embed_dim"],
        "activation": "quick_gelu" if quick else "gelu",
        "text": {
            "vocabulary": text.get("vocab_size", 49408),
            "context": text.get("context_length", 77),
            "width": text.get("width", 512),
            "depth": text.get("layers", 12),
            "heads": text.get("heads", 8),
        },
        "image": {
            "image_size": image.get("image_size", 224),
            "patch_size": image.get("patch_size", 16),
            "width": width,
            "depth": image.get("layers", 12),
            "heads": width // image.get("head_width", 64),
        },
    }


def _told_by_hugging_face(described: Mapping[str, Any]) -> dict[str, Any]:
    # Files are saved without the fields that have their default, and the oldest repeat a tower's
    # under text_config_dict, which overrides.
    alone = described["model_type"] == "clip_text_model"
    text = described if alone else _tower(described, "text_config")
    image = {} if alone else _tower(described, "vision_config")
    towers = [text] + ([] if alone else [image])
    acts = {tower.get("hidden_act", "quick_gelu") for tower in towers}
    wrong = []
    if len(acts) > 1 or not acts <= ACTIVATIONS.keys():
        wrong.append(f"hidden_act {' and '.join(sorted(acts))}")
    wrong += [
        f"layer_norm_eps {tower['layer_norm_eps']}"
        for tower in towers
        if not math.isclose(tower.get("layer_norm_eps", 1e-5), 1e-5)
    ]
    vocabulary = text.get("vocab_size", _TEXT_FIELDS["vocab_size"][1])
    # Below 3: versions that had a wrong number there, and pooled at the largest id.
    end = text.get("eos_token_id")
    if end is not None and end > 2 and end != vocabulary - 1:
        wrong.append(f"eos_token_id {end}, which is not the last of {vocabulary}")
    if wrong:
        raise InputError(f"config.json has {', '.join(wrong)}, which this network does not have")
    text_tower = {ours: text.get(theirs, usual) for theirs, (ours, usual) in _TEXT_FIELDS.items()}
    pixels = {
        "image_size": image.get("image_size", 224),
        "patch_size": image.get("patch_size", 32),
        "width": image.get("hidden_size", 768),
        "depth": image.get("num_hidden_layers", 12),
        "heads": image.get("num_attention_heads", 12),
        "mlp_dim": image.get("intermediate_size", 3072),
    }
    projection = described.get("projection_dim", 512)
    return {"projection": projection, "activation": acts.pop(), "text": text_tower, "image": pixels}


def _tower(described: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**(described.get(name) or {}), **(described.get(f"{name}_dict") or {})}
