"""The command, whole: pictures in, a tokens folder out; kills, other settings, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from dimo_jax import bundles, encode, tokenizers
from dimo_jax.data import token_sets
from dimo_jax.encoding import encoder, token_ranges
from tests.helpers import ROOT
from tests.helpers.command_line import run_command

SIDE, PATCH, CODES = 8, 4, 50


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    config = {"name": "patches", "image_size": SIDE, "channels": 3, "patch_size": PATCH}
    tokenizer = tokenizers.build({**config, "codebook_size": CODES})
    params = jax.device_get(tokenizer.init(jax.random.key(0)))
    place = tmp_path_factory.mktemp("bundle") / "patches"
    return bundles.save(place, kind="tokenizer", model=tokenizer.config, params=params)


def write_pictures(folder, num, classes=("cat", "dog"), size=(SIDE, SIDE)):
    """As PNG, in turn in folders of classes; their pixels in the order of their names."""
    pixels = np.random.default_rng(0).integers(0, 256, (num, size[1], size[0], 3), np.uint8)
    names = sorted(f"{classes[i % len(classes)]}/{i:04d}.png" for i in range(num))
    for name, image in zip(names, pixels, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return names, pixels


def nearest_codes(pixels, bundle):
    """[N, L] of pixels [N, S, S, C], in float64, patch by patch."""
    codes = bundles.load(bundle).params["codebook"].astype(np.float64).reshape(CODES, -1)
    rows = range(0, pixels.shape[1], PATCH)
    return np.array(
        [
            [
                np.argmin(
                    ((codes - image[y : y + PATCH, x : x + PATCH].reshape(1, -1)) ** 2).sum(1)
                )
                for y in rows
                for x in rows
            ]
            for image in pixels / 255.0
        ]
    )


@pytest.fixture
def run(bundle, tmp_path, monkeypatch, capsys):
    def call(*arguments, data=None, output="tokens", tokenizer=bundle):
        given = [f"--data={data or tmp_path / 'photos'}", f"--tokenizer={tokenizer}"]
        given += [f"--output={tmp_path / output}", "--batch_size=4", "--shard_size=6"]
        return run_command(encode, [*given, *arguments], monkeypatch, capsys)

    return call


def files_of(folder):
    return {x.name: x.read_bytes() for x in folder.iterdir()}


def all_of(found):
    return found.at(np.arange(found.num), np.zeros(found.num, int))


def test_tokens_labels_and_names_of_a_folder(run, bundle, tmp_path):
    names, pixels = write_pictures(tmp_path / "photos", 20)
    status, out, err = run()
    assert status == 0, err
    assert out == f"20 pictures, 1 x 4 tokens each: {tmp_path / 'tokens'}\n"
    shards = list((tmp_path / "tokens").glob("*array_record*"))
    size = sum(x.stat().st_size for x in shards)
    assert f"tokens of 20 pictures take {size / 1e6:.3g} MB in" in err
    assert " s to prepare and " in err
    found = token_sets.open_set(tmp_path / "tokens")
    tokens, labels = all_of(found)
    np.testing.assert_array_equal(tokens, nearest_codes(pixels, bundle))
    np.testing.assert_array_equal(labels, [0] * 10 + [1] * 10)
    assert found.names() == names and found.class_names == ("cat", "dog")
    own = bundles.load(bundle)
    assert found.tokenizer_hash == tokenizers.fingerprint(own.build(), own.params)
    assert found.facts.settings["crop"] == "centre" and found.facts.image_size == SIDE
    assert not token_ranges.folder_of(tmp_path / "tokens").exists()
    assert len(shards) == 4  # 6, 6, 6 and 2
    before = files_of(tmp_path / "tokens")
    parts = token_ranges.folder_of(tmp_path / "tokens")
    parts.mkdir()  # as a kill after the last step leaves it
    (parts / "000000000.json").touch()
    status, out, err = run()
    assert status == 0 and "is there already; nothing is left to do" in err
    assert files_of(tmp_path / "tokens") == before and not parts.exists()


def test_captions_and_a_gray_tokenizer(run, tmp_path):
    names, pixels = write_pictures(tmp_path / "photos", 7)
    tokenizer = tokenizers.build({"name": "gray_levels", "image_size": SIDE, "num_levels": 256})
    gray = bundles.save(tmp_path / "gray", kind="tokenizer", model=tokenizer.config, params={})
    with open(tmp_path / "photos" / "metadata.jsonl", "w") as file:
        for i, name in enumerate(names):
            print(json.dumps({"file_name": name, "text": f"picture {i}"}), file=file)
    status, _, err = run(tokenizer=gray)
    assert status == 0, err
    found = token_sets.open_set(tmp_path / "tokens")
    assert found.condition == "text" and found.texts() == [f"picture {i}" for i in range(7)]
    wanted = [np.asarray(Image.fromarray(image).convert("L")).ravel() for image in pixels]
    np.testing.assert_array_equal(all_of(found)[0], wanted)
    status, _, err = run("--condition=none", output="none", tokenizer=gray)
    assert status == 0 and token_sets.open_set(tmp_path / "none").condition == "none"


def test_views_are_cut_where_chance_says(run, bundle, tmp_path):
    _, pixels = write_pictures(tmp_path / "photos", 11, size=(SIDE + 3, SIDE))
    status, _, err = run("--crop=random", "--augmentations=9")
    assert status == 0, err
    found = token_sets.open_set(tmp_path / "tokens")
    assert found.views == 9
    places = [nearest_codes(pixels[:, :, x : x + SIDE], bundle).tolist() for x in range(4)]
    drawn = []
    for view in range(9):
        tokens = found.at(np.arange(11), np.full(11, view))[0].tolist()
        drawn += [[x for x in range(4) if places[x][i] == tokens[i]] for i in range(11)]
    assert all(len(x) == 1 for x in drawn) and {x[0] for x in drawn} == {0, 1, 2, 3}
    status, _, err = run("--augmentations=2", output="other")
    assert status == 2 and "would all be the same; give --crop=random or --flip" in err


def test_after_a_kill_the_same_command_makes_the_same_files(run, tmp_path, monkeypatch):
    write_pictures(tmp_path / "photos", 20)
    assert run("--flip")[0] == 0
    wanted = files_of(tmp_path / "tokens")
    shutil.rmtree(tmp_path / "tokens")
    save, prepare, prepared = token_ranges.TokenRanges._save, encoder.Encoder._prepare, []

    def killed(self, part, batches):
        if part[0] >= 12:
            raise KeyboardInterrupt
        save(self, part, batches)

    def counted(self, index):
        prepared.append(index)
        return prepare(self, index)

    monkeypatch.setattr(token_ranges.TokenRanges, "_save", killed)
    assert run("--flip")[0] == 130
    monkeypatch.setattr(token_ranges.TokenRanges, "_save", save)
    monkeypatch.setattr(encoder.Encoder, "_prepare", counted)
    parts = token_ranges.folder_of(tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists() and len(list(parts.glob("*.json"))) == 3
    status, _, err = run("--crop=random")
    assert status == 2 and "was 'centre' and is 'random'" in err and "was True and is False" in err
    status, _, err = run("--flip")
    assert status == 0 and "goes on: 12 of 20 pictures are there already" in err
    assert files_of(tmp_path / "tokens") == wanted and not parts.exists()
    assert sorted(prepared[-8:]) == list(range(12, 20))  # after a batch that is measured
    assert len(prepared) == 8 + min(20, 4 * jax.local_device_count())


def test_a_damaged_range_is_made_again(run, tmp_path, monkeypatch):
    write_pictures(tmp_path / "photos", 20)
    assert run()[0] == 0
    wanted = files_of(tmp_path / "tokens")
    shutil.rmtree(tmp_path / "tokens")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(token_ranges.token_files, "write", lambda *_: 1 / 0)
        run()
    shard = token_ranges.folder_of(tmp_path / "tokens") / "000000006.array_record"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    status, _, err = run()
    assert status == 0 and "goes on: 14 of 20" in err and "1 damaged files" in err
    assert files_of(tmp_path / "tokens") == wanted


def spoil(folder, names):
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])


def test_broken_pictures_are_left_out_and_listed(run, bundle, tmp_path):
    names, pixels = write_pictures(tmp_path / "photos", 200)
    spoil(tmp_path / "photos", names[6:8])
    status, out, err = run("--shard_size=2")  # the fourth has no example at all
    assert status == 0, err
    assert out.startswith("198 pictures")
    assert "2 of 200 pictures are left out:\n" in err
    for name in names[6:8]:
        assert f"encode: {name}: " in err
    found = token_sets.open_set(tmp_path / "tokens")
    assert [name for name, _ in found.skipped] == names[6:8]
    assert found.names() == names[:6] + names[8:]
    used = np.delete(np.arange(200), [6, 7])
    np.testing.assert_array_equal(all_of(found)[0], nearest_codes(pixels[used], bundle))
    assert len(list((tmp_path / "tokens").glob("*array_record*"))) == 99


def test_too_many_broken_pictures_stop_it_and_a_repair_goes_on(run, tmp_path):
    names, pixels = write_pictures(tmp_path / "photos", 100)
    spoil(tmp_path / "photos", [names[30], names[90]])
    status, out, err = run()
    assert (status, out) == (2, "")
    assert "error: 2 of 100 pictures cannot be used, more than 1%; the first: " in err
    assert names[30] in err and names[90] in err and not (tmp_path / "tokens").exists()
    for index in (30, 90):
        Image.fromarray(pixels[index]).save(tmp_path / "photos" / names[index])
    status, _, err = run()
    assert status == 0 and "goes on: 84 of 100" in err
    found = token_sets.open_set(tmp_path / "tokens")
    assert found.num == 100 and found.skipped == ()


def test_small_pictures_are_refused_or_enlarged(run, tmp_path):
    write_pictures(tmp_path / "photos", 5, size=(SIDE - 1, SIDE))
    status, _, err = run()
    assert status == 2 and "5 of 5 pictures cannot be used" in err and "--small=enlarge" in err
    assert f"{tmp_path / 'photos'}: cat/0000.png is 7x8 pixels, smaller than the 8" in err
    assert run("--small=enlarge")[0] == 0  # what has no range yet is of no settings either


def test_what_is_there_of_another_tokenizer_is_refused_with_both(run, bundle, tmp_path):
    write_pictures(tmp_path / "photos", 5)
    assert run()[0] == 0
    before = files_of(tmp_path / "tokens")
    tokenizer = bundles.load(bundle).build()
    params = tokenizer.init(jax.random.key(1))
    other = bundles.save(tmp_path / "b", kind="tokenizer", model=tokenizer.config, params=params)
    status, _, err = run(tokenizer=other)
    hashes = [tokenizers.fingerprint(tokenizer, x) for x in (bundles.load(bundle).params, params)]
    assert status == 2 and all(x[:12] in err for x in hashes)
    write_pictures(tmp_path / "photos", 6)
    status, _, err = run()
    assert status == 2 and "pictures was 5 and is 6" in err
    assert files_of(tmp_path / "tokens") == before


def test_a_damaged_output_is_made_again(run, tmp_path):
    write_pictures(tmp_path / "photos", 20)
    assert run()[0] == 0
    before = files_of(tmp_path / "tokens")
    (tmp_path / "tokens" / "tokens-train.array_record-00002-of-00004").unlink()
    status, _, err = run()
    assert status == 0 and "it is made again" in err and files_of(tmp_path / "tokens") == before


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda at: (at / "tokens").mkdir() or (at / "tokens" / "mine").touch(), "holds mine"),
        (lambda at: (at / "tokens").touch(), "is a file; name a folder"),
        (
            lambda at: (at / "tokens.parts").mkdir() or (at / "tokens.parts" / "mine").touch(),
            "tokens.parts holds mine, and would be removed",
        ),
        (lambda at: shutil.rmtree(at / "photos"), "there is no folder"),
    ],
)
def test_what_would_be_lost_is_refused(run, tmp_path, change, complaint):
    write_pictures(tmp_path / "photos", 5)
    change(tmp_path)
    status, out, err = run()
    assert (status, out) == (2, "") and complaint in err and "Traceback" not in err


def test_the_output_is_no_input(run, bundle, tmp_path):
    write_pictures(tmp_path / "photos", 5)
    for output in ("photos", "photos/tokens", "."):
        status, _, err = run(output=output)
        assert status == 2 and "which writing would change" in err
    assert run("--output=", output=bundle)[0] == 2


def test_a_full_disk_is_said_before_the_work(run, tmp_path, monkeypatch):
    write_pictures(tmp_path / "photos", 5)
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    status, _, err = run()
    assert status == 2 and "0.1 MB are free; give an --output on a larger disk" in err
    assert not token_ranges.folder_of(tmp_path / "tokens").exists()


KILLED = """
import os, signal
from dimo_jax import cli, encode
from dimo_jax.encoding import token_ranges
save = token_ranges.TokenRanges._save
def killed(self, part, batches):
    if part[0] >= 18:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, part, batches)
token_ranges.TokenRanges._save = killed
cli.run(encode.main, encode.FLAGS)
"""


@pytest.mark.slow
def test_two_processes_go_on_after_a_kill_to_the_same_files(run, bundle, tmp_path):
    write_pictures(tmp_path / "photos", 60)
    given = [f"--data={tmp_path / 'photos'}", f"--tokenizer={bundle}", "--batch_size=4"]
    given += ["--shard_size=6", "--crop=random", "--augmentations=3"]
    assert run(*given, output="one")[0] == 0
    given += [f"--output={tmp_path / 'two'}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    options = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    alone = subprocess.run([sys.executable, "-c", KILLED, *given], **options)
    assert alone.returncode == -signal.SIGKILL, alone.stderr
    launcher = ["-m", "launch.local_processes", "--processes=2", "--cpu_devices=1"]
    words = [sys.executable, *launcher, "--module=dimo_jax.encode", "--", *given]
    done = subprocess.run(words, stdout=subprocess.PIPE, **options)
    assert done.returncode == 0, done.stderr
    assert "goes on: 12 of 30" in done.stdout  # of the first process
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
