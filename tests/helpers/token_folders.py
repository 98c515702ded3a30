"""Folders of tokens for tests, made of pictures in class folders by a tokenizer of patches."""

import numpy as np
from PIL import Image

from dimo_jax import bundles, tokenizers
from dimo_jax.common import crops
from dimo_jax.data import token_files, token_sets
from dimo_jax.data.picture_sources import open_pictures

SIDE, CODES = 8, 16
SETTINGS = {"crop": "random", "flip": True, "filter": "bicubic", "small": "refuse", "seed": 3}
CLASSES = ("a cat", "Hündin")


def write_classes(folder, pixels):
    """The pictures in turn in a sub-folder of each of CLASSES."""
    for i, picture in enumerate(pixels):
        place = folder / CLASSES[i % 2] / f"{i:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place)
    return folder


def save_tokenizer(folder, seed=0):
    tokenizer = tokenizers.build(
        {"name": "patches", "image_size": SIDE, "channels": 3, "codebook_size": CODES}
    )
    codebook = np.random.default_rng(seed).random((CODES, 2, 6), np.float32)
    params = {"codebook": codebook}
    bundles.save(folder, kind="tokenizer", model=tokenizer.config, params=params)
    return tokenizer, params


def write(folder, source, tokenizer, params, skipped=(), **changes):
    """Encode two views of the pictures of a folder; `skipped` are left out by their names."""
    pictures = open_pictures(source)
    kept = [i for i in range(pictures.num) if pictures.name(i) not in skipped]
    settings = {**SETTINGS, "field": "", **changes}
    cut = crops.from_plain(SIDE, settings, "the settings")
    views = np.stack([[crops.cut(pictures.read(i), cut, i, view) for view in (0, 1)] for i in kept])
    tokens = np.stack(
        [tokenizer.encode(params, views[:, v].astype(np.float32) / 255) for v in (0, 1)], 1
    )
    digest = tokenizers.fingerprint(tokenizer, params)
    facts = token_sets.Facts(
        tokenizer={"config": tokenizer.config, "hash": digest},
        codebook_size=CODES,
        views=2,
        length=tokenizer.num_tokens,
        image_size=SIDE,
        condition="label",
        class_names=pictures.class_names,
        settings=settings,
        source=str(source),
    )
    names, labels = [pictures.name(i) for i in kept], [pictures.label(i) for i in kept]
    shard = folder.parent / f"{folder.name}.shard"
    shard.write_bytes(token_files.shard(facts, tokens, names, labels))
    left_out = [(name, "it is broken") for name in skipped]
    token_files.write(folder, facts, [(len(kept), shard)], left_out)
    return views[:, 0]
