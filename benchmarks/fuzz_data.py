"""The formats of data: statistics, images, prompts, results, and what runs leave on disk."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  # a library of C++
)
from fuzz_format import Format, into, json_file, text_file, write_json
from fuzz_mutations import bomb, zip_member, zipped
from PIL import Image
from pyarrow import parquet

from dimo_jax.common import archives, crops, resumable
from dimo_jax.conditions.text_cache import TextCache
from dimo_jax.convert.formats import torch_writer
from dimo_jax.data import benchmark_prompts, token_files, token_sets
from dimo_jax.data import prompts as prompt_lists
from dimo_jax.data.picture_sources import open_pictures
from dimo_jax.evaluation import references
from dimo_jax.evaluation.features.feature_store import Extractor, FeatureStore
from dimo_jax.evaluation.images import image_sets
from dimo_jax.evaluation.metrics import geneval, prompt_scores
from dimo_jax.evaluation.report import page_tables, result_folders, schema
from dimo_jax.generation import sample_files
from dimo_jax.runs import run_samples
from dimo_jax.training import checksums, metrics

_PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


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
    (place,) = store.files.paths.values()
    shutil.copy(path, place)
    store.fill()
    store.moments("2048")
    store.warnings()


def _make_parts(folder: Path) -> None:
    archives.save_npz(folder / "range.npz", pixels=_PIXELS[:2], tokens=np.zeros((2, 4), np.int32))
    resumable.record(folder / "settings.json", {"seed": 0, "num": 2})


def _read_part(path: Path, name: str) -> None:
    output = path.with_name("x.npz")
    sample_files.folder_of(output).mkdir(exist_ok=True)
    shutil.copy(path, sample_files.folder_of(output) / name)
    drawn = _PIXELS[:2], np.zeros((2, 4), np.int32)
    sample_files.write_samples(output, np.zeros(2, np.int32), {"seed": 0}, lambda *_: drawn)


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


def _metadata(folder: Path, **more: Any) -> None:
    _pictures(folder, "png")
    records = [{"file_name": f"{i}.png", **{k: x[i] for k, x in more.items()}} for i in range(3)]
    (folder / "metadata.jsonl").write_bytes(_lines(*records))


def _turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        _pictures(folder / f"class {i}", "jpg", exif=exif)


def _read_source(path: Path) -> None:
    root = path.parent.parent if path.parent.name.startswith("class") else path.parent
    found, cut = open_pictures(root), crops.Settings(24, "random", True, small="enlarge")
    for i in range(found.num):
        if found.condition != "none":
            (found.label if found.condition == "label" else found.text)(i)
        crops.cut(found.read(i), cut, i, 0, found.name(i))


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


def _run(folder: Path) -> None:
    write_json(_RUN)(folder / "config.json")
    bundle = {"format_version": 1, "kind": "generator", "model": {}, "sampler": {}}
    bundle |= {"tokenizer": {}, "provenance": {}, "params_sha256": ""}
    for name in ("teacher", "export/tokenizer", "export"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_json(bundle)(folder / name / "config.json")


def _read_results(path: Path) -> None:
    result_folders.hashes_of(path.parent)
    for row in schema.read(path).rows:
        found = page_tables.temperature(row)
        assert found is None or found == found


def _lines(*values: Any) -> bytes:
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


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


def _tokens(folder: Path) -> None:
    facts = token_sets.Facts(
        tokenizer={"config": {"name": "patches"}, "hash": "0" * 64},
        codebook_size=12,
        views=2,
        length=3,
        image_size=8,
        condition="text",
        class_names=(),
        settings={"crop": "centre"},
        source="photos",
    )
    tokens = np.arange(12).reshape(2, 2, 3)
    data = token_files.shard(facts, tokens, ["a.png", "b.png"], texts=["a cat", "a dog"])
    (folder / "shard").write_bytes(data)
    token_files.write(folder / "tokens", facts, [(2, folder / "shard")], [("c.png", "broken")])


def _read_tokens(path: Path) -> None:
    found = token_sets.open_set(path.parent)
    found.at(np.arange(found.num), np.zeros(found.num, int))
    found.names()
    if found.condition == "text":
        found.texts()


def _other_records(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a byte of a record, under checksums that fit."""
    with tempfile.TemporaryDirectory() as box:
        old, new = Path(box, "old"), Path(box, "new")
        old.write_bytes(content)
        reader = array_record_module.ArrayRecordReader(str(old))
        writer = array_record_module.ArrayRecordWriter(str(new), "group_size:1")
        for record in reader.read_all():
            changed = bytearray(record)
            changed[rng.integers(len(changed))] = rng.integers(256)
            writer.write(bytes(changed))
        writer.close()
        return new.read_bytes()


def _tokens_file(name: str, repack: Any = None) -> Format:
    return Format(f"tokens/{name}", _tokens, _read_tokens, repack)


FORMATS: dict[str, Format] = {
    "npz_reference": Format(
        "x.npz",
        into("x.npz", _npz(**_STATISTICS)),
        _open_reference,
        bomb,
    ),
    "npz_images": Format(
        "x.npz",
        into("x.npz", _npz(arr_0=_PIXELS, labels=np.arange(3), settings=np.array('{"seed": 1}'))),
        _read_images,
        bomb,
    ),
    "torch_reference": Format(
        "x.pt",
        into(
            "x.pt",
            lambda path: torch_writer.write_state_dict(path, {"mu": np.ones(4), "cov": np.eye(4)}),
        ),
        _open_reference,
        zip_member,
    ),
    "zip_pictures": Format("x.zip", _zip_pictures, _read_images, bomb),
    **{suffix: _picture_of(suffix) for suffix in ("png", "jpg", "webp", "bmp", "gif", "tif")},
    "metadata_labels": Format(
        "metadata.jsonl", lambda folder: _metadata(folder, label=["b", "a", "b"]), _read_source
    ),
    "metadata_texts": Format(
        "metadata.jsonl",
        lambda folder: _metadata(folder, text=["a cat", "\u2713", "c"]),
        _read_source,
    ),
    "turned": Format("class 0/0.jpg", _turned, _read_source),
    "prompts_txt": text_file("x.txt", b"a cat\na dog\n", lambda p: prompt_lists.read(str(p))),
    "prompts_jsonl": text_file(
        "x.jsonl",
        _lines({"prompt": "a cat"}, {"prompt": ["a", "b"]}, "text"),
        lambda p: prompt_lists.read(str(p)),
    ),
    "prompts_csv": text_file(
        "x.csv", b'id,caption\n1,a cat\n2,"a, dog"\n', lambda p: prompt_lists.read(str(p))
    ),
    "prompts_json": json_file(
        "x.json", [{"prompt": "a cat"}, {"prompt": "a dog"}], lambda p: prompt_lists.read(str(p))
    ),
    "prompts_parquet": Format(
        "x.parquet",
        into(
            "x.parquet",
            lambda path: parquet.write_table(pyarrow.table({"text": ["a", "b"] * 20}), path),
        ),
        lambda p: prompt_lists.read(str(p)),
    ),
    "prompts_coco": text_file(
        "x.csv", b"image_id,text\n1,a cat\n2,a dog\n", lambda p: benchmark_prompts.read("coco", p)
    ),
    "prompts_hps": json_file(
        "anime.json", ["a cat", "a dog"], lambda p: benchmark_prompts.read("hpsv2", p)
    ),
    "prompts_geneval": text_file(
        "x.jsonl",
        _lines({"tag": "colors", "prompt": "a", "include": [{"class": "car", "count": 1}]}),
        lambda p: benchmark_prompts.read("geneval", p),
    ),
    "geneval_results": text_file(
        "x.jsonl",
        _lines(_GENEVAL, {**_GENEVAL, "filename": "y.png"}),
        lambda p: geneval.in_words(geneval.summarise(p)),
    ),
    "captions": text_file("captions.txt", b"a\nb\n", lambda p: prompt_scores._captions(p, "")),
    "results": json_file("results.json", _RESULTS, _read_results),
    "metrics": text_file(
        "metrics.jsonl", _lines({"step": 1, "loss": 0.5}), lambda p: metrics.read(str(p.parent))
    ),
    "run_config": Format("config.json", _run, lambda p: run_samples.sets_of(p.parent, [1, 8])),
    "parts_range": Format(
        "range.npz", _make_parts, lambda p: _read_part(p, "00000000.npz"), zip_member
    ),
    "parts_settings": Format(
        "settings.json", _make_parts, lambda p: _read_part(p, "settings.json")
    ),
    "tokens": _tokens_file("tokens.json"),
    "tokens_info": _tokens_file("dataset_info.json"),
    "tokens_shard": _tokens_file(token_sets.shard_name(0, 1), _other_records),
    "feature_store": Format("range.npz", _make_store, _read_store, zip_member),
    "text_cache": Format("cache/000000000.npy", _cache, _read_cache),
    "text_cache_settings": Format("cache/cache.json", _cache, _read_cache),
    "checksums": Format("state/checksums.json", _checkpoint, _read_checksums),
}
