"""Digits as folders of tokens."""

import numpy as np

from dimo_jax import tokenizers
from dimo_jax.data import token_files, token_sets
from dimo_jax.data.digits import Digits

GRAY = tokenizers.build({"name": "gray_levels", "image_size": 8})


def facts(tokenizer, params, views=1, condition="label", class_names=None):
    names = [f"digit {i}" for i in range(10)] if class_names is None else class_names
    return token_sets.Facts(
        tokenizer={
            "config": tokenizer.config,
            "hash": tokenizers.fingerprint(tokenizer, params),
        },
        codebook_size=tokenizer.codebook_size,
        views=views,
        length=tokenizer.num_tokens,
        image_size=tokenizer.image_shape[0],
        condition=condition,
        class_names=names if condition == "label" else (),
        settings={},
        source="digits/",
    )


def write(folder, num=200, tokenizer=GRAY, params=None, views=1, condition="label", names=None):
    """The first digits of the training split; another view of one is its picture upside down."""
    params = {} if params is None else params
    images, labels, _ = Digits.in_memory("train")
    both = [images[:num], images[:num, ::-1]][:views]
    tokens = np.stack([np.asarray(tokenizer.encode(params, x), np.int32) for x in both], 1)
    of = facts(tokenizer, params, views, condition, names)
    half, shards = num // 2, []
    for i, rows in enumerate((slice(0, half), slice(half, num))):
        given = {
            "label": {"labels": labels[rows].tolist()},
            "text": {"texts": [f"the digit {x}" for x in labels[rows]]},
            "none": {},
        }[condition]
        files = [f"{x}.png" for x in range(rows.start, rows.stop)]
        place = folder.with_name(f"{folder.name}.{i}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(token_files.shard(of, tokens[rows], files, **given))
        shards.append((rows.stop - rows.start, place))
    token_files.write(folder, of, shards)
    return folder
