"""dimo_jax.sample: how many images are drawn at a time, and what of them a kill leaves."""

import jax
import numpy as np
import pytest

from dimo_jax import sample, samplers
from dimo_jax.common import archives
from dimo_jax.generation import drawing, sample_files
from tests.helpers.command_line import built_once, run_command
from tests.helpers.sample_command import generator, run

__all__ = ["built_once", "generator", "run"]  # fixtures


@pytest.mark.parametrize(
    ("devices", "num_tokens", "given", "num", "expected"),
    [
        (1, 16, None, None, 64),  # digits
        (1, 256, None, 5000, 64),  # MaskGit
        (1, 1024, None, 5000, 32),
        (1, 4096, None, 5000, 8),  # Meissonic
        (1, 65536, None, 5000, 1),
        (1, 4096, None, 1, 1),
        (1, 4096, 32, 5000, 32),
        (1, 4096, 32, 3, 3),
        (8, 256, None, 20, 24),
        (8, 65536, None, 5000, 8),
        (8, 4096, 16, 3, 8),
        (8, 4096, 10, 5000, 10),
    ],
)
def test_a_batch_is_no_larger_than_needed(monkeypatch, devices, num_tokens, given, num, expected):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    assert drawing.images_at_once(num_tokens, given, num) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--num=3"], 8), (["--num=100"], 64), (["--num=100", "--batch_size=16"], 16)],
)
def test_few_images_are_a_small_batch(run, generator, tmp_path, monkeypatch, flags, expected):
    sizes = []

    def record(network, params, key, condition, null, settings, batch_size, first_index):
        sizes.append(batch_size)
        return np.zeros((len(condition), network.num_tokens), np.int32)

    monkeypatch.setattr(samplers, "sample", record)
    for name in ("x.png", "x.npz"):
        run(f"--generator={generator}", f"--output={tmp_path / name}", *flags)
    assert set(sizes) == {expected}


def test_a_grid_is_drawn_batch_by_batch_and_says_how_far_it_is(
    generator, tmp_path, monkeypatch, capsys, built_once
):
    grids, errs = [], []
    for size in (8, 24):
        path = tmp_path / "x.png"
        flags = [f"--generator={generator}", f"--output={path}", "--num=24", f"--batch_size={size}"]
        status, _, err = run_command(sample, flags, monkeypatch, capsys)
        assert status == 0, err
        grids.append(path.read_bytes())
        errs.append(err.splitlines())
    assert grids[0] == grids[1]
    assert [err[1] for err in errs] == 2 * ["sample 0/24  0 %  images"]
    assert all(err[-1].startswith("sample 24/24  100 %  ") for err in errs)


@pytest.mark.parametrize("name", ["samples.npz", "folder"])
def test_a_killed_command_goes_on_and_ends_in_the_same_bytes(
    run, generator, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(sample_files, "RANGE_SIZE", 8)
    flags = [f"--generator={generator}", "--num=20", "--batch_size=8"]
    run(*flags, f"--output={tmp_path / 'whole' / name}")
    drawn, draw = [], drawing.draw

    def killed_at_the_third(*args):
        drawn.append(args[-1])
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(*args)

    output = tmp_path / "again" / name
    monkeypatch.setattr(drawing, "draw", killed_at_the_third)
    run(*flags, f"--output={output}", status=130)
    assert drawn == [0, 8, 16] and not output.exists()
    other = run(*flags, "--seed=1", f"--output={output}", status=2)
    assert "was begun with other settings" in other
    run(*flags, f"--output={output}")
    assert drawn == [0, 8, 16, 16], "a finished range was drawn again"
    assert [x.name for x in output.parent.iterdir()] == [name]
    pairs = [(x, tmp_path / "whole" / x.relative_to(output.parent)) for x in output.rglob("*.png")]
    assert len(pairs) == (0 if output.suffix else 20)
    for one, other in pairs:
        assert one.read_bytes() == other.read_bytes()
    if output.suffix:
        with np.load(output) as one, np.load(tmp_path / "whole" / name) as other:
            assert set(one) == {"arr_0", "labels", "tokens", "settings"}
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("name", ["x.npz", "x"])
def test_a_damaged_range_is_drawn_again(run, generator, tmp_path, monkeypatch, name):
    monkeypatch.setattr(sample_files, "RANGE_SIZE", 8)
    flags = [f"--generator={generator}", "--num=12", "--batch_size=8"]
    whole, output = tmp_path / "whole" / name, tmp_path / "again" / name
    run(*flags, f"--output={whole}")
    save, saved = archives.save_npz, []

    def damaged(path, **arrays):
        save(path, **arrays)
        if not saved:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        saved.append(path)

    monkeypatch.setattr(archives, "save_npz", damaged)
    run(*flags, f"--output={output}")
    assert [path.name for path in saved] == [f"{i:08d}.npz" for i in (0, 8, 0)]
    files = [whole] if whole.is_file() else list(whole.iterdir())
    for file in files:
        found = output / file.relative_to(whole) if whole.is_dir() else output
        if file.suffix == ".npz":
            with np.load(file) as one, np.load(found) as other:
                assert all(np.array_equal(one[key], other[key]) for key in one)
        else:
            assert file.read_bytes() == found.read_bytes()


def test_processes_share_the_ranges(generator, tmp_path, monkeypatch, built_once):
    monkeypatch.setattr(sample_files, "RANGE_SIZE", 8)
    model, tokenizer = drawing.open_pair(generator)
    labels = np.arange(20, dtype=np.int32) % 10

    def write(name):
        options = dict(seed=3, batch_size=8, overrides={})
        drawing.draw_set(model, tokenizer, labels, tmp_path / name, **options)

    write("one.npz")
    drawn, draw = [], drawing.draw
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(drawing, "draw", lambda *given: drawn.append(given[-1]) or draw(*given))
    for index, own in ((1, [8]), (0, [0, 16])):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        write("two.npz")
        assert drawn == own
        drawn.clear()
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_all_ranges_are_drawn_by_one_compiled_program(generator, tmp_path, monkeypatch, capsys):
    # Without built_once, which would hide a network that is built for each range.
    monkeypatch.setattr(sample_files, "RANGE_SIZE", 8)
    before = samplers.compiled._cache_size()
    flags = [f"--generator={generator}", "--num=24", "--batch_size=8"]
    status, _, err = run_command(
        sample, [*flags, f"--output={tmp_path / 'x.npz'}"], monkeypatch, capsys
    )
    assert status == 0, err
    assert "\nsample 0/24  0 %  images\n" in err
    assert samplers.compiled._cache_size() == before + 1
