"""The way back to a folder of diffusers: what belongs to it, and what it may replace."""

import shutil

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from dimo_jax import bundles, tokenizers
from dimo_jax.conditions import clip_vocabulary
from dimo_jax.convert.networks import layouts, patches
from tests.convert.networks import test_clip_tables as clip
from tests.convert.test_meissonic_folder import (  # noqa: F401
    ALONE,
    MEISSONIC,
    WEIGHTS,
    folder,
    run,
    whole_folder,
)


def test_a_folder_for_diffusers_is_replaced_if_it_was_written_here(folder, tmp_path, run):  # noqa: F811
    run(folder, tmp_path / "b", *MEISSONIC)
    output = tmp_path / "back"
    for _ in range(2):
        run(tmp_path / "b", output, *ALONE)
    # A published folder has the same names, and no scheduler of ours goes over another's.
    weights = output / "transformer" / WEIGHTS
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    before = {x: x.read_bytes() for x in output.rglob("*") if x.is_file()}
    err = run(tmp_path / "b", output, *ALONE, status=2)
    assert "transformer holds config.json of somebody else, which writing would delete" in err
    shutil.rmtree(output / "transformer")
    err = run(tmp_path / "b", output, *ALONE, status=2)
    assert "scheduler holds scheduler_config.json of somebody else" in err
    left = {x: x.read_bytes() for x in output.rglob("*") if x.is_file()}
    assert left == {x: data for x, data in before.items() if "transformer" not in x.parts}


def test_the_parts_beside_a_transformer_come_along(whole_folder, tmp_path, run):  # noqa: F811
    run(whole_folder, tmp_path / "b", *MEISSONIC)
    run(tmp_path / "b" / "transformer", tmp_path / "back", "--to=diffusers")
    names = ["scheduler", "text_encoder", "tokenizer", "transformer", "vqvae"]
    assert sorted(x.name for x in (tmp_path / "back").iterdir()) == names
    (tmp_path / "b" / "vqvae").rename(tmp_path / "away")
    place = tmp_path / "b" / "transformer"
    err = run(place, tmp_path / "x", "--to=diffusers", status=2)
    assert (
        f"{place} lacks its vqvae: " in err
        and "give --tokenizer=BUNDLE, or --tokenizer=none" in err
    )
    run(place, tmp_path / "x", "--to=diffusers", f"--tokenizer={tmp_path / 'away'}")
    assert sorted(x.name for x in (tmp_path / "x").iterdir()) == names
    run(place, tmp_path / "y", "--to=diffusers", "--tokenizer=none")
    assert sorted(x.name for x in (tmp_path / "y").iterdir()) == names[:-1]


def test_no_bundle_is_replaced_by_a_folder_of_its_own(whole_folder, tmp_path, run):  # noqa: F811
    run(whole_folder, tmp_path / "b", *MEISSONIC)
    shutil.rmtree(tmp_path / "b" / "transformer")
    before = {x: x.read_bytes() for x in tmp_path.rglob("*") if x.is_file()}
    # The text encoder is the one that would come along.
    for output in (tmp_path / "b", tmp_path / "b" / ".", tmp_path / "b" / "vqvae"):
        err = run(tmp_path / "b" / "vqvae", output, "--to=diffusers", status=2)
        assert "is a bundle, expected a folder for diffusers" in err or "name another place" in err
    assert {x: x.read_bytes() for x in tmp_path.rglob("*") if x.is_file()} == before


def test_a_clip_of_images_is_no_text_encoder(tmp_path, run):  # noqa: F811
    merges = {"merges.txt": clip_vocabulary.to_text(clip.MERGES)}
    place, params = tmp_path / "both", clip.random_params(clip.CONFIG)
    bundles.save(place, kind="clip", model=clip.CONFIG, params=params, attachments=merges)
    err = run(place, tmp_path / "x", "--to=diffusers", status=2)
    assert "is a clip with an image tower" in err and not (tmp_path / "x").exists()


def test_what_diffusers_does_not_know_does_not_go_there(folder, tmp_path, run):  # noqa: F811
    run(folder / "transformer", tmp_path / "b", *MEISSONIC)
    sizes = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "n_embed": 5, "z_channels": 4}
    other = {"name": "llamagen", "image_size": 8, "attn_levels": [], "embed_dim": 4, **sizes}
    shapes = jax.eval_shape(tokenizers.build(other).init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    bundles.save(tmp_path / "vq", kind="tokenizer", model=other, params=params)
    err = run(tmp_path / "vq", tmp_path / "x", "--to=diffusers", status=2)
    assert "is a llamagen, which diffusers has no folder for" in err
    (tmp_path / "full" / "transformer").mkdir(parents=True)
    (tmp_path / "full" / "transformer" / "thesis.tex").write_text("mine")
    given = (*ALONE, "--tokenizer=none")
    err = run(tmp_path / "b", tmp_path / "full", *given, status=2)
    assert "transformer holds thesis.tex, which writing would delete" in err
    assert (tmp_path / "full" / "transformer" / "thesis.tex").exists()
    (tmp_path / "beside" / "scheduler").mkdir(parents=True)
    (tmp_path / "beside" / "scheduler" / "cron.tab").write_text("mine")
    assert "scheduler holds cron.tab, which writing would delete" in run(
        tmp_path / "b", tmp_path / "beside", *given, status=2
    )
    assert (tmp_path / "beside" / "scheduler" / "cron.tab").exists()


def test_gray_levels_are_patches_of_one_pixel():
    tokenizer = tokenizers.build({"name": "gray_levels", "image_size": 3, "num_levels": 9})
    (codebook,) = layouts.to_state(patches.entries(tokenizer.config), {}).values()
    pixels = tokenizer.decode({}, np.arange(9, dtype=np.int32)[None])
    np.testing.assert_array_equal(codebook, pixels.reshape(9, 1, 1))
    sizes = patches.config_json(tokenizer.config)
    assert codebook.shape == (sizes["codebook_size"], sizes["patch_size"], sizes["channels"])
