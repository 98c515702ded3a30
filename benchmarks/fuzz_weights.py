"""The formats of models: checkpoints, configs, vocabularies and bundles."""

import functools
import gzip
import hashlib
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from fuzz_format import Format, into, json_file, text_file, write_json
from fuzz_mutations import zip_member

from dimo_jax import bundles, models, tokenizers
from dimo_jax.common import readers
from dimo_jax.conditions import clip_vocabulary, transformers_tokenizer
from dimo_jax.convert import checkpoint_files, sources
from dimo_jax.convert.formats import folders, torch_writer
from dimo_jax.convert.networks import (
    clip_json,
    google,
    layouts,
    maskgit,
    meissonic,
    vq_model,
    vqgan,
)

_MASKGIT = {
    **{"name": "maskgit", "num_tokens": 16, "codebook_size": 1024, "num_classes": 1000},
    **{"width": 8, "depth": 1, "heads": 1, "mlp_dim": 8, "dropout": 0.1, "predict_mask_id": True},
}
_TOKENIZER = {"name": "gray_levels", "image_size": 8, "num_levels": 17}
_CLIP = {"model_type": "clip_text_model", "vocab_size": 517, "hidden_size": 8}
_OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 517, "width": 8, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073]},
}
_MERGES = ["l o", "lo w", "e r</w>"]
_SAMPLER = {"ratio": 0.6, "sigma": 0.1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def _random(network: Any) -> Any:
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def _state() -> dict[str, np.ndarray]:
    network = models.build(_MASKGIT)
    return layouts.to_state(maskgit.entries(network.config), _random(network))


def _converted(path: Path) -> None:
    """Convert as dimo_jax.convert: tensors, source, config, parameters."""
    state = checkpoint_files.read(path)
    source = sources.SOURCES[sources.recognise(state)]
    sources.convert(state, source, sources.Options(heads=1))


def _legacy(path: Path) -> None:
    """PyTorch's container of before 1.6, by hand; the numbers are its magic and protocol."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    text = (
        b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0c"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text + b"NtQK\x00K\x03K\x04\x86K\x04K\x01\x86"
    )
    body = b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"\x89ccollections\nOrderedDict\n)RtRs."
    data = b"".join(pickle.dumps(x, 2) for x in head) + body + pickle.dumps(["0"], 2)
    path.write_bytes(data + (12).to_bytes(8, "little") + np.arange(12, dtype="<f4").tobytes())


def _parts_index(folder: Path) -> None:
    state = _state()
    names = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(state)}
    for part in sorted(set(names.values())):
        inside = {k: np.ascontiguousarray(v) for k, v in state.items() if names[k] == part}
        safetensors.numpy.save_file(inside, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _bundle(folder: Path) -> None:
    network, tokenizer = models.build(_MASKGIT), tokenizers.build(_TOKENIZER)
    entry = {"config": tokenizer.config, "hash": tokenizers.fingerprint(tokenizer, {})}
    bundles.save(
        folder / "bundle",
        kind="generator",
        model=network.config,
        params=_random(network),
        sampler=_SAMPLER,
        tokenizer=entry,
        tokenizer_params={},
    )


def _load_bundle(path: Path) -> None:
    from dimo_jax.generation import drawing

    bundle = bundles.load(path.parent)
    drawing.sampler_of(bundle, {})
    bundles.load_tokenizer(path.parent / "tokenizer")


def _load_signed(path: Path) -> None:
    """Load a bundle whose config.json has the checksum of these parameters."""
    config = json.loads((path.parent / "config.json").read_text())
    config["params_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "config.json").write_text(json.dumps(config))
    bundles.load(path.parent)


def _vocabulary(folder: Path) -> None:
    pieces = [*clip_vocabulary.tokens(_MERGES), clip_vocabulary.START, clip_vocabulary.END]
    (folder / "merges.txt").write_bytes(clip_vocabulary.to_text(_MERGES))
    write_json({piece: i for i, piece in enumerate(pieces)})(folder / "vocab.json")


def _tokenizer_folder(folder: Path) -> None:
    _vocabulary(folder)
    special = {"bos_token": clip_vocabulary.START, "eos_token": clip_vocabulary.END}
    special |= {"unk_token": clip_vocabulary.END, "pad_token": "!"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 8, **special}
    write_json(config)(folder / "tokenizer_config.json")
    write_json(special)(folder / "special_tokens_map.json")


def _read_tokenizer(path: Path) -> None:
    data = transformers_tokenizer.read(path.parent, _MERGES, 8, 517)
    transformers_tokenizer.from_json(data)


def _words(folder: Path) -> None:
    data = transformers_tokenizer.from_merges(_MERGES, 8)
    (folder / "tokenizer.json").write_bytes(data)


def _read_words(path: Path) -> None:
    transformers_tokenizer.from_json(path.read_bytes())
    transformers_tokenizer.merges_of(path.read_bytes())
    transformers_tokenizer.to_folder(path.read_bytes(), 77)


def _told(path: Path) -> None:
    clip_json.settings_of(readers.json_object(path))


_VQGAN = {
    **{"name": "vqgan", "image_size": 32, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
    **{"attn_levels": [1]},
}


@functools.cache
def _taming_state() -> dict[str, Any]:
    """Shapes of a VQGAN, which its model.yaml must agree with."""
    tokenizer = tokenizers.build(_VQGAN)
    params = jax.eval_shape(tokenizer.init, jax.random.key(0))
    shapes = layouts.state_shapes(vqgan.entries(tokenizer.config), params)
    return {key: SimpleNamespace(shape=shape) for key, shape in shapes.items()}


_YAML = b"""model:
  params:
    embed_dim: 256
    n_embed: 1024
    ddconfig: {resolution: 32, ch: 32, num_res_blocks: 1, z_channels: 256, ch_mult: [1, 1],
               attn_resolutions: [16]}
"""


def _read_yaml(path: Path) -> None:
    state = _taming_state()
    tokenizers.build(vqgan.config_from(state, readers.text(path, readers.MAX_YAML_BYTES)))


_MEISSONIC = meissonic.config_json(
    models.build({"name": "meissonic", "depth": 1, "single_depth": 1}).config
)
_VQ_MODEL = vq_model.config_json(tokenizers.build({"name": "vq_model", "ch": 32}).config)


FORMATS: dict[str, Format] = {
    "torch_zip": Format(
        "x.pth",
        into("x.pth", lambda path: torch_writer.write_state_dict(path, _state())),
        _converted,
        zip_member,
    ),
    "torch_legacy": Format("x.ckpt", into("x.ckpt", _legacy), checkpoint_files.read),
    "safetensors": Format(
        "x.safetensors",
        into(
            "x.safetensors",
            lambda path: safetensors.numpy.save_file(
                {k: np.ascontiguousarray(v) for k, v in _state().items()}, path
            ),
        ),
        _converted,
    ),
    "safetensors_index": Format("model.safetensors.index.json", _parts_index, folders.read),
    "flax_msgpack": Format(
        "x.msgpack",
        into("x.msgpack", lambda path: path.write_bytes(google.to_bytes({"a/b": np.ones(3)}))),
        checkpoint_files.read,
    ),
    "model_yaml": text_file("model.yaml", _YAML, _read_yaml),
    "merges": text_file(
        "merges.txt", clip_vocabulary.to_text(_MERGES), lambda p: clip_vocabulary.read(p, 517)
    ),
    "vocab_json": Format("vocab.json", _vocabulary, lambda p: clip_vocabulary.read(p.parent, 517)),
    "tokenizer_config": Format("tokenizer_config.json", _tokenizer_folder, _read_tokenizer),
    "special_tokens": Format("special_tokens_map.json", _tokenizer_folder, _read_tokenizer),
    "bundle_words": Format("tokenizer.json", _words, _read_words),
    "tokenizer_json": json_file(
        "tokenizer.json", {"model": {"merges": _MERGES}}, lambda p: clip_vocabulary.read(p, 517)
    ),
    "gz_vocabulary": text_file(
        "bpe_simple_vocab_16e6.txt.gz",
        gzip.compress(clip_vocabulary.to_text(_MERGES), mtime=0),
        lambda p: clip_vocabulary.read(p, 517),
    ),
    "clip_config": json_file("config.json", _CLIP, _told),
    "open_clip_config": json_file("config.json", _OPEN_CLIP, _told),
    "meissonic_config": json_file(
        "config.json",
        _MEISSONIC,
        lambda p: models.build(meissonic.config_from(readers.json_object(p))),
    ),
    "vq_model_config": json_file(
        "config.json",
        _VQ_MODEL,
        lambda p: tokenizers.build(vq_model.config_from(readers.json_object(p), 512)),
    ),
    "bundle_config": Format("bundle/config.json", _bundle, _load_bundle),
    "bundle_tokenizer": Format(
        "bundle/tokenizer/config.json",
        _bundle,
        lambda p: _load_bundle(p.parent.parent / "config.json"),
    ),
    "bundle_params": Format("bundle/params.msgpack", _bundle, _load_signed),
}
