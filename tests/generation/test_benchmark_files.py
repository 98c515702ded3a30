"""Folders of the prompt benchmarks: their layouts, resumed, and refused."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from dimo_jax.common import temporaries
from dimo_jax.common.errors import InputError
from dimo_jax.data.benchmark_prompts import Prompt
from dimo_jax.generation import benchmark_files
from dimo_jax.generation.benchmark_files import image_keys, write_benchmark

PROMPTS = [
    Prompt('a "red" a/b\\c', {"tag": "colors", "prompt": 'a "red" a/b\\c', "include": []}),
    Prompt("../../犬", {"tag": "counting", "prompt": "../../犬", "include": []}),
    Prompt("line\nbreak", {"tag": "counting", "prompt": "line\nbreak", "include": []}),
]


SHAPE = (12, 10, 3)


class Drawer:
    """Draws what each item says, and remembers what it was asked for."""

    def __init__(self, seed=0, fail_at=None):
        self.seed, self.fail_at, self.calls = seed, fail_at, []

    def __call__(self, items):
        if self.fail_at == len(self.calls):
            raise KeyboardInterrupt
        self.calls.append(list(items))
        seeds = ([self.seed, index, k] for _, index, k in items)
        return np.stack([np.random.default_rng(x).integers(0, 256, SHAPE, "u1") for x in seeds])


def names(folder):
    return sorted(str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file())


def read(folder):
    return {x: (folder / x).read_bytes() for x in names(folder)}


def test_genevals_layout(tmp_path):
    drawer = Drawer()
    output = tmp_path / "geneval"
    assert write_benchmark("geneval", PROMPTS, drawer, output, 4, batch_size=5) == 0
    assert names(output) == sorted(
        f"{i:05d}/{name}"
        for i in range(3)
        for name in ("metadata.jsonl", "grid.png", *(f"samples/{k:05d}.png" for k in range(4)))
    )
    # What the detector's script does with it.
    for i, prompt in enumerate(PROMPTS):
        folder = output / f"{i:05d}"
        assert folder.name.isdigit()
        metadata = (folder / "metadata.jsonl").read_text()
        assert json.loads(metadata) == prompt.metadata and "\n" not in metadata
        assert all(re.match(r"\d+\.png", x.name) for x in (folder / "samples").iterdir())
    assert [len(call) for call in drawer.calls] == [5, 5, 2]
    every = [item for call in drawer.calls for item in call]
    assert every == [(p.text, i, k) for i, p in enumerate(PROMPTS) for k in range(4)]
    with Image.open(output / "00001" / "samples" / "00002.png") as image:
        np.testing.assert_array_equal(image, Drawer()([("", 1, 2)])[0])
    # Two by two small tiles, enlarged.
    with Image.open(output / "00000" / "grid.png") as grid:
        assert grid.size == (2 * 42 + 2, 2 * 50 + 2)


def hps_prompts():
    return [
        Prompt(f"{s} {i}", {"style": s, "index": i}) for s in ("anime", "photo") for i in (0, 1)
    ]


def test_hps_layout_has_nothing_but_styles(tmp_path):
    output = tmp_path / "hps"
    write_benchmark("hpsv2", hps_prompts(), Drawer(), output)
    assert names(output) == [f"{s}/0000{i}.jpg" for s in ("anime", "photo") for i in (0, 1)]
    assert sorted(x.name for x in output.iterdir()) == ["anime", "photo"]
    with Image.open(output / "photo" / "00000.jpg") as image:
        assert image.format == "JPEG" and image.size == (10, 12)
        # Pillow's quality 75, told by its first table.
        Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", quality=75)
        with Image.open(tmp_path / "x.jpg") as usual:
            assert image.quantization == usual.quantization


@pytest.mark.parametrize("layout", ["coco", "plain"])
def test_flat_layouts_with_captions(layout, tmp_path):
    write_benchmark(layout, PROMPTS, Drawer(), tmp_path / "one")
    assert names(tmp_path / "one") == ["00000.png", "00001.png", "00002.png", "captions.txt"]
    lines = (tmp_path / "one" / "captions.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ['a "red" a/b\\c', "../../犬", "line break"]
    write_benchmark(layout, PROMPTS, Drawer(), tmp_path / "two", 2)
    assert "00002_1.png" in names(tmp_path / "two") and len(names(tmp_path / "two")) == 7


def test_it_goes_on_where_it_was(tmp_path, capsys):
    write_benchmark("geneval", PROMPTS, Drawer(), tmp_path / "whole", 4)
    output, stopped = tmp_path / "parts", Drawer(fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        write_benchmark("geneval", PROMPTS, stopped, output, 4, batch_size=3)
    assert [len(call) for call in stopped.calls] == [3, 3]
    # Killed between a prompt's last image and its grid, and in the middle of a file.
    (output / "00000" / "grid.png").unlink()
    (output / "00001" / "samples" / ".00002.png.0123456789ab.writing").write_bytes(b"half")
    temporaries.remove_leftovers.cache_clear()  # as in a new process
    kept = (output / "00001" / "samples" / "00001.png").stat().st_mtime_ns
    drawer = Drawer()
    capsys.readouterr()
    again = write_benchmark("geneval", PROMPTS, drawer, output, 4, batch_size=4)
    assert again == 6 and [len(call) for call in drawer.calls] == [4, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "sample: goes on: 6 of 12 images are there already",
        "sample 6/12  50 %  images",
    ]
    assert len(lines) == 3 and lines[2].startswith("sample 12/12  100 %")
    assert (output / "00001" / "samples" / "00001.png").stat().st_mtime_ns == kept
    assert read(output) == read(tmp_path / "whole")
    drawer = Drawer()
    assert write_benchmark("geneval", PROMPTS, drawer, output, 4) == 12 and drawer.calls == []


def test_processes_share_the_prompts(tmp_path):
    drawers = Drawer(), Drawer()
    for rank in (1, 0):
        write_benchmark("geneval", PROMPTS, drawers[rank], tmp_path / "x", 4, process=(rank, 2))
    for rank, drawer in enumerate(drawers):
        assert {item[1] % 2 for call in drawer.calls for item in call} == {rank}
    write_benchmark("geneval", PROMPTS, Drawer(), tmp_path / "y", 4)
    assert read(tmp_path / "x") == read(tmp_path / "y")


def test_keys_are_functions_of_seed_prompt_and_number():
    items = [("a", i, k) for i in range(3) for k in range(4)]
    keys = jax.random.key_data(image_keys(0, items))
    assert len({tuple(key) for key in np.asarray(keys)}) == 12
    one = jax.random.key_data(image_keys(0, [("another text", 2, 1)]))
    np.testing.assert_array_equal(one[0], keys[9])
    assert (jax.random.key_data(image_keys(1, items)) != keys).any(axis=1).all()


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"seed": 1}, "begun with other settings: seed; give those of .*x.settings.json"),
        ({"images_per_prompt": 2}, "other settings: images_per_prompt"),
        ({"prompts": PROMPTS[:2]}, "other settings: prompts_sha256"),
        ({"settings": {"model": "b", "steps": 8}}, "other settings: model, steps"),
        ({"layout": "plain"}, "other settings: layout"),
    ],
)
def test_other_settings_are_refused(change, complaint, tmp_path):
    arguments = {"layout": "coco", "prompts": PROMPTS, "settings": {"model": "a"}}
    arguments |= {"draw": Drawer(), "output": tmp_path / "x"}
    write_benchmark(**arguments)
    with pytest.raises(InputError, match=complaint):
        write_benchmark(**{**arguments, **change})


@pytest.mark.parametrize("left", [[], ["x"]])
def test_a_deleted_folder_can_be_drawn_anew_with_other_settings(tmp_path, left):
    arguments = {"layout": "geneval", "prompts": PROMPTS, "output": tmp_path / "x"}
    write_benchmark(**arguments, draw=Drawer(), images_per_prompt=4, seed=3)
    shutil.rmtree(tmp_path / "x")
    for name in left:
        (tmp_path / name).mkdir()
    for rank in (0, 1):
        write_benchmark(**arguments, draw=Drawer(), images_per_prompt=2, process=(rank, 2))
    arguments["output"] = tmp_path / "y"
    write_benchmark(**arguments, draw=Drawer(), images_per_prompt=2)
    assert read(tmp_path / "x") == read(tmp_path / "y")
    settings = [(tmp_path / f"{name}.settings.json").read_text() for name in ("x", "y")]
    assert settings[0] == settings[1]


def test_wrong_requests_are_refused(tmp_path):
    output = tmp_path / "x"
    for layout, num, complaint in (
        ("drawbench", 1, "no benchmark 'drawbench'; there are geneval, hpsv2, coco, plain"),
        ("hpsv2", 4, "hpsv2 takes 1 image of a prompt, not 4"),
        ("geneval", 0, "geneval takes one image or more of a prompt, not 0"),
        ("hpsv2", 1, "hpsv2 has the styles anime, .*, not None; name the prompts' file"),
    ):
        with pytest.raises(InputError, match=complaint):
            write_benchmark(layout, PROMPTS, Drawer(), output, num)
    assert not output.exists()
    output.mkdir()
    (output / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="holds mine.txt, which writing would delete"):
        write_benchmark("coco", PROMPTS, Drawer(), output)
    (tmp_path / "x.settings.json").write_text("[")
    with pytest.raises(InputError, match="x.settings.json is not JSON"):
        write_benchmark("coco", PROMPTS, Drawer(), output)


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(path, image):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(benchmark_files, "_encoded", full)
    with pytest.raises(OSError, match="No space left"):
        write_benchmark("coco", PROMPTS, Drawer(), tmp_path / "x")
    assert names(tmp_path / "x") == ["captions.txt"]
