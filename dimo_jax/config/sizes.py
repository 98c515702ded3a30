"""Fields that depend on a name: the sizes of each network, tokenizer and text encoder. No jax.

A field whose default is None may be left out: then it is that network's own.
"""

from typing import Any

from dimo_jax.common.fields import SWITCH, Field, names, number, several, text, whole

WIDTH, DEPTH, HEADS = whole(1, 2**16), whole(1, 1024), whole(1, 1024)
_IDS = whole(2, 2**20)
_LEVELS = whole(0, 15)
# Built-in sets of pictures: {name: (classes, pictures of the test split)}; data/pictures.py,
# which has the rest, imports tensorflow-datasets.
PICTURE_SETS = {"digits": (10, 397), "emoji": (9, 381)}
SETS_WITH_TEXTS = ("emoji", "tokens")  # of tokens those of pictures with captions
BUNDLE = text("a bundle's folder, or empty; read at the start")

# Of model.name -> the fields of the section `model`.
MODEL_FIELDS: dict[str, dict[str, Field]] = {
    "maskgit": {
        "width": Field(768, WIDTH, "of the network, a multiple of heads"),
        "depth": Field(24, DEPTH, "blocks"),
        "heads": Field(16, HEADS, "of the attention"),
        "mlp_dim": Field(3072, WIDTH, "width inside the feed-forwards"),
        "dropout": Field(0.1, number(0, below=1), "share, where a stage's dropout is on"),
        "predict_mask_id": Field(True, SWITCH, "whether [MASK] has a logit, as published"),
    },
    "meissonic": {
        "vocabulary": Field(None, _IDS, "rows of the table of tokens"),
        "width": Field(None, WIDTH, "of the network, a multiple of heads"),
        "depth": Field(None, DEPTH, "blocks of two streams"),
        "single_depth": Field(None, DEPTH, "blocks of one stream"),
        "heads": Field(None, HEADS, "of the attention"),
        "mlp_dim": Field(None, WIDTH, "width inside the feed-forwards"),
        "text_length": Field(None, WIDTH, "ids of a text"),
        "text_dim": Field(None, WIDTH, "of a text's states"),
        "pooled_dim": Field(None, WIDTH, "of the pooled text"),
        "rope_dims": Field(
            None, several(whole(2, 2**16), exactly=3), "even, they add up to width / heads"
        ),
        "merge": Field(None, SWITCH, "whether 2 x 2 tokens are one inside the blocks"),
        "timestep": Field(None, names("zero", "ratio"), "what it is given as the time"),
    },
}


def _convolutions(**others: Field) -> dict[str, Field]:
    return {
        "image_size": Field(None, whole(1, 2**14), "pixels along a side, halved between levels"),
        "ch": Field(None, WIDTH, "channels of the finest level, a multiple of 32"),
        "ch_mult": Field(None, several(whole(1, 1024), least=1), "factor of ch for each level"),
        "num_res_blocks": Field(None, whole(1, 64), "of a level"),
        "embed_dim": Field(None, WIDTH, "width of a code"),
        "n_embed": Field(None, _IDS, "codes"),
        **others,
    }


_Z_CHANNELS = Field(None, WIDTH, "channels between encoder and codes")
_VQGAN = _convolutions(
    z_channels=_Z_CHANNELS,
    attn_levels=Field(None, several(_LEVELS), "levels with attention"),
    l2_codebook=Field(None, SWITCH, "whether latents and codes are scaled to length 1"),
)
# Of tokenizer.name -> what the section `tokenizer` may have besides.
TOKENIZER_FIELDS: dict[str, dict[str, Field]] = {
    "gray_levels": {
        "image_size": Field(None, whole(1, 2**14), "pixels along a side"),
        "num_levels": Field(None, _IDS, "codes"),
    },
    "patches": {
        "image_size": Field(None, whole(1, 2**14), "pixels along a side"),
        "channels": Field(None, whole(1, 4), "values of a pixel"),
        "patch_size": Field(None, whole(1, 2**14), "pixels along a patch's side"),
        "codebook_size": Field(None, _IDS, "codes, fitted to the data"),
    },
    "vqgan": _VQGAN,
    "llamagen": _VQGAN,
    "google_vqgan": _convolutions(),
    "vq_model": _convolutions(z_channels=_Z_CHANNELS),
}

# What the section `text_encoder` has besides, where a random one is made.
TEXT_ENCODER_FIELDS: dict[str, Any] = {
    "activation": Field(None, names("quick_gelu", "gelu"), "of the feed-forwards"),
    "projection": Field(None, WIDTH, "of the pooled text"),
    "text": {
        "vocabulary": Field(None, _IDS, "rows of the table of ids"),
        "context": Field(None, WIDTH, "ids of a text"),
        "width": Field(None, WIDTH, "of the tower, a multiple of heads"),
        "depth": Field(None, DEPTH, "blocks"),
        "heads": Field(None, HEADS, "of the attention"),
        "mlp_dim": Field(None, WIDTH, "width inside the feed-forwards"),
    },
}
