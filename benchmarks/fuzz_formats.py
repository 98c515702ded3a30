"""The formats of benchmarks/fuzz.py: how a small good file is made, and how it is read."""

import dataclasses
import functools
import gzip
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pyarrow
import safetensors.numpy
from fuzz_mutations import bomb, zip_member, zipped
from PIL import Image
from pyarrow import parquet

from dimo_jax import bundles, models, tokenizers
from dimo_jax.common import readers
from dimo_jax.conditions import clip_vocabulary, transformers_tokenizer
from dimo_jax.conditions.text_cache import TextCache
from dimo_jax.convert import (
    clip_json,
    folders,
    google,
    layouts,
    maskgit,
    meissonic,
    sources,
    torch_writer,
    vq_model,
    vqgan,
)
from dimo_jax.data import prompts as prompt_lists
from dimo_jax.evaluation import (
    geneval,
    image_sets,
    page_data,
    prompt_scores,
    prompts,
    references,
    report,
)
from dimo_jax.evaluation.feature_store import Extractor, FeatureStore
from dimo_jax.parts import Parts
from dimo_jax.runs import run_samples
from dimo_jax.training import checksums, metrics

_PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
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


@dataclasses.dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        file: the file that is mutated, inside the format's folder.
        make: folder -> writes it, and what must lie beside it.
        read: its path -> reads it as the commands do.
        repack: (content, random numbers) -> content whose checksums fit what was changed inside.
    """

    file: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    repack: Callable[[bytes, np.random.Generator], bytes] | None = None


def _random(network: Any) -> Any:
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def _state() -> dict[str, np.ndarray]:
    network = models.build(_MASKGIT)
    return layouts.to_state(maskgit.entries(network.config), _random(network))


def _converted(path: Path) -> None:
    """As dimo_jax.convert: tensors, source, config, parameters."""
    state = sources.read(path)
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


def _write_json(value: Any) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(value))


def _into(name: str, write: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Makes a file of a folder's name."""
    return lambda folder: write(folder / name)


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
    from dimo_jax.runs import drawing

    bundle = bundles.load(path.parent)
    drawing.sampler_of(bundle, {})
    bundles.load_tokenizer(path.parent / "tokenizer")


def _load_signed(path: Path) -> None:
    """A bundle whose config.json has the checksum of these parameters."""
    config = json.loads((path.parent / "config.json").read_text())
    config["params_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "config.json").write_text(json.dumps(config))
    bundles.load(path.parent)


def _features(images: np.ndarray) -> dict[str, np.ndarray]:
    flat = images.reshape(len(images), -1).astype(np.float32)
    return {"2048": flat[:, :4], "logits_unbiased": flat[:, :3], "spatial": flat[:, :5]}


def _store(folder: Path) -> FeatureStore:
    images = image_sets.open_set(folder / "pictures")
    return FeatureStore(folder / "features", images, Extractor(_features, {"w": "x"}, 4), "samples")


def _make_store(folder: Path) -> None:
    _pictures(folder / "pictures", "png")
    store = _store(folder)
    store.fill()
    (made,) = store.folder.iterdir()
    shutil.copy(made, folder / "range.npz")


def _read_store(path: Path) -> None:
    store = _store(path.parent)
    (place,) = store._paths.values()
    shutil.copy(path, place)
    store.fill()
    store.moments("2048")
    store.warnings()


def _parts(folder: Path, name: str) -> Parts:
    return Parts(folder / name, np.zeros(2, np.int32), {"seed": 0})


def _save_range(parts: Parts) -> None:
    parts.save(0, _PIXELS[:2], np.zeros((2, 4), np.int32))


def _make_parts(folder: Path) -> None:
    parts = _parts(folder, "x.npz")
    _save_range(parts)
    shutil.copy(parts.path(0), folder / "range.npz")


def _read_range(path: Path) -> None:
    parts = _parts(path.parent, "x.npz")
    shutil.copy(path, parts.path(0))
    parts.finish(lambda start, stop: _save_range(parts))


def _read_parts_settings(path: Path) -> None:
    parts = _parts(path.parent.parent, "x.npz")
    _save_range(parts)


def _cache(folder: Path) -> TextCache:
    cache = TextCache(folder / "cache", 3, {"states": (2, 4)}, "float32", {"prompts": "x"})
    cache.fill(lambda numbers: {"states": np.ones((len(numbers), 2, 4), np.float32)})
    return cache


def _read_cache(path: Path) -> None:
    _cache(path.parent.parent).rows(np.arange(3))


def _pictures(folder: Path, suffix: str, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(_PIXELS):
        Image.fromarray(image).save(folder / f"{i}.{suffix}", **options)
    return folder


def _picture_of(suffix: str) -> Format:
    def read(path: Path) -> None:
        images = image_sets.open_set(path.parent)
        images.read(0, images.num)

    return Format(f"0.{suffix}", lambda folder: _pictures(folder, suffix), read)


def _zip_pictures(folder: Path) -> None:
    files = sorted(_pictures(folder / "inside", "png").iterdir())
    (folder / "x.zip").write_bytes(zipped({x.name: x.read_bytes() for x in files}))


def _read_images(path: Path) -> None:
    images = image_sets.open_set(path)
    for start in range(0, images.num, 64):
        images.read(start, min(start + 64, images.num))


def _npz(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


_STATISTICS = {
    **{"mu": np.ones(4), "sigma": np.eye(4), "mu_s": np.ones(3), "sigma_s": np.eye(3)},
    **{"features": np.ones((5, 4), np.float32), "settings": np.array('{"num": 5}')},
}
_ROW = {"model": "generator", "steps": 1, "metrics": {"fid": {"mean": 1.5, "std": 0.1}, "is": 3.0}}
_RESULTS = {"rows": [{**_ROW, "sampler": {"temperature": 1.0}}], "hashes": {"teacher": "0a"}}
_GENEVAL = {"filename": "x.png", "tag": "colors", "prompt": "a red car", "correct": True}
_RUN = {"data": {"name": "digits"}, "teacher": {"bundle": ""}, "tokenizer": {"name": "gray_levels"}}


def _open_reference(path: Path) -> None:
    references.open_reference(str(path))


def _vocabulary(folder: Path) -> None:
    pieces = [*clip_vocabulary.tokens(_MERGES), clip_vocabulary.START, clip_vocabulary.END]
    (folder / "merges.txt").write_bytes(clip_vocabulary.to_text(_MERGES))
    _write_json({piece: i for i, piece in enumerate(pieces)})(folder / "vocab.json")


def _tokenizer_folder(folder: Path) -> None:
    _vocabulary(folder)
    special = {"bos_token": clip_vocabulary.START, "eos_token": clip_vocabulary.END}
    special |= {"unk_token": clip_vocabulary.END, "pad_token": "!"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 8, **special}
    _write_json(config)(folder / "tokenizer_config.json")
    _write_json(special)(folder / "special_tokens_map.json")


def _read_tokenizer(path: Path) -> None:
    data = transformers_tokenizer.read(path.parent, _MERGES, 8, 517)
    transformers_tokenizer.from_json(data)


def _words(folder: Path) -> None:
    data = transformers_tokenizer.from_merges(_MERGES, 8)
    (folder / "tokenizer.json").write_bytes(data)


def _read_words(path: Path) -> None:
    transformers_tokenizer.from_json(path.read_bytes())
    transformers_tokenizer.merges_of(path.read_bytes())
    transformers_tokenizer.to_folder(path.read_bytes())


def _told(path: Path) -> None:
    clip_json.told(readers.json_object(path))


def _run(folder: Path) -> None:
    _write_json(_RUN)(folder / "config.json")
    for name in ("teacher", "export/tokenizer", "export"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text("{}")


def _read_results(path: Path) -> None:
    report.hashes_of(path.parent)
    report.read_rows(path)
    for row in page_data.load(path).rows:
        assert row.temperature is None or row.temperature == row.temperature


def _lines(*values: Any) -> bytes:
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


def _text_file(name: str, data: bytes, read: Callable[[Path], Any]) -> Format:
    return Format(name, _into(name, lambda path: path.write_bytes(data)), read)


def _json_file(name: str, value: Any, read: Callable[[Path], Any]) -> Format:
    return Format(name, _into(name, _write_json(value)), read)


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


def _checkpoint(folder: Path) -> None:
    (folder / "state").mkdir()
    for name in ("a", "b"):
        (folder / "state" / name).write_bytes(bytes(50))
    checksums.write(folder / "state")


def _read_checksums(path: Path) -> None:
    from dimo_jax.training.orbax_errors import Unreadable, reading

    try:
        reading(lambda: checksums.check(path.parent))
    except Unreadable:
        pass  # checkpoints.py makes one sentence of it


_MEISSONIC = meissonic.config_json(
    models.build({"name": "meissonic", "depth": 1, "single_depth": 1}).config
)
_VQ_MODEL = vq_model.config_json(tokenizers.build({"name": "vq_model", "ch": 32}).config)


FORMATS: dict[str, Format] = {
    "torch_zip": Format(
        "x.pth",
        _into("x.pth", lambda path: torch_writer.write_state_dict(path, _state())),
        _converted,
        zip_member,
    ),
    "torch_legacy": Format("x.ckpt", _into("x.ckpt", _legacy), sources.read),
    "safetensors": Format(
        "x.safetensors",
        _into(
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
        _into("x.msgpack", lambda path: path.write_bytes(google.to_bytes({"a/b": np.ones(3)}))),
        sources.read,
    ),
    "numpy_pickle": Format(
        "x.pkl",
        _into(
            "x.pkl",
            lambda path: path.write_bytes(
                pickle.dumps({"a": {"b": np.ones((2, 3), np.float32)}}, 4)
            ),
        ),
        sources.read,
    ),
    "model_yaml": _text_file("model.yaml", _YAML, _read_yaml),
    "merges": _text_file(
        "merges.txt", clip_vocabulary.to_text(_MERGES), lambda p: clip_vocabulary.read(p, 517)
    ),
    "vocab_json": Format("vocab.json", _vocabulary, lambda p: clip_vocabulary.read(p.parent, 517)),
    "tokenizer_config": Format("tokenizer_config.json", _tokenizer_folder, _read_tokenizer),
    "special_tokens": Format("special_tokens_map.json", _tokenizer_folder, _read_tokenizer),
    "bundle_words": Format("tokenizer.json", _words, _read_words),
    "tokenizer_json": _json_file(
        "tokenizer.json", {"model": {"merges": _MERGES}}, lambda p: clip_vocabulary.read(p, 517)
    ),
    "gz_vocabulary": _text_file(
        "bpe_simple_vocab_16e6.txt.gz",
        gzip.compress(clip_vocabulary.to_text(_MERGES), mtime=0),
        lambda p: clip_vocabulary.read(p, 517),
    ),
    "clip_config": _json_file("config.json", _CLIP, _told),
    "open_clip_config": _json_file("config.json", _OPEN_CLIP, _told),
    "meissonic_config": _json_file(
        "config.json",
        _MEISSONIC,
        lambda p: models.build(meissonic.config_from(readers.json_object(p))),
    ),
    "vq_model_config": _json_file(
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
    "npz_reference": Format(
        "x.npz",
        _into("x.npz", _npz(**_STATISTICS)),
        _open_reference,
        bomb,
    ),
    "npz_images": Format(
        "x.npz",
        _into("x.npz", _npz(arr_0=_PIXELS, labels=np.arange(3), settings=np.array('{"seed": 1}'))),
        _read_images,
        bomb,
    ),
    "torch_reference": Format(
        "x.pt",
        _into(
            "x.pt",
            lambda path: torch_writer.write_state_dict(path, {"mu": np.ones(4), "cov": np.eye(4)}),
        ),
        _open_reference,
        zip_member,
    ),
    "zip_pictures": Format("x.zip", _zip_pictures, _read_images, bomb),
    **{suffix: _picture_of(suffix) for suffix in ("png", "jpg", "webp", "bmp", "gif", "tif")},
    "prompts_txt": _text_file("x.txt", b"a cat\na dog\n", lambda p: prompt_lists.read(str(p))),
    "prompts_jsonl": _text_file(
        "x.jsonl",
        _lines({"prompt": "a cat"}, {"prompt": ["a", "b"]}, "text"),
        lambda p: prompt_lists.read(str(p)),
    ),
    "prompts_csv": _text_file(
        "x.csv", b'id,caption\n1,a cat\n2,"a, dog"\n', lambda p: prompt_lists.read(str(p))
    ),
    "prompts_json": _json_file(
        "x.json", [{"prompt": "a cat"}, {"prompt": "a dog"}], lambda p: prompt_lists.read(str(p))
    ),
    "prompts_parquet": Format(
        "x.parquet",
        _into(
            "x.parquet",
            lambda path: parquet.write_table(pyarrow.table({"text": ["a", "b"] * 20}), path),
        ),
        lambda p: prompt_lists.read(str(p)),
    ),
    "prompts_coco": _text_file(
        "x.csv", b"image_id,text\n1,a cat\n2,a dog\n", lambda p: prompts.read("coco", p)
    ),
    "prompts_hps": _json_file("anime.json", ["a cat", "a dog"], lambda p: prompts.read("hpsv2", p)),
    "prompts_geneval": _text_file(
        "x.jsonl",
        _lines({"tag": "colors", "prompt": "a", "include": [{"class": "car", "count": 1}]}),
        lambda p: prompts.read("geneval", p),
    ),
    "geneval_results": _text_file(
        "x.jsonl",
        _lines(_GENEVAL, {**_GENEVAL, "filename": "y.png"}),
        lambda p: geneval.in_words(geneval.summarise(p)),
    ),
    "captions": _text_file("captions.txt", b"a\nb\n", lambda p: prompt_scores._captions(p, "")),
    "results": _json_file("results.json", _RESULTS, _read_results),
    "metrics": _text_file(
        "metrics.jsonl", _lines({"step": 1, "loss": 0.5}), lambda p: metrics.read(str(p.parent))
    ),
    "run_config": Format("config.json", _run, lambda p: run_samples.sets_of(p.parent, [1, 8])),
    "parts_range": Format("range.npz", _make_parts, _read_range, zip_member),
    "parts_settings": Format(
        "x.npz.parts/settings.json",
        lambda folder: _save_range(_parts(folder, "x.npz")),
        _read_parts_settings,
    ),
    "feature_store": Format("range.npz", _make_store, _read_store, zip_member),
    "text_cache": Format("cache/000000000.npy", _cache, _read_cache),
    "text_cache_settings": Format("cache/cache.json", _cache, _read_cache),
    "checksums": Format("state/checksums.json", _checkpoint, _read_checksums),
}
