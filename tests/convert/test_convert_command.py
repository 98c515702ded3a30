"""dimo_jax.convert: files of the published layouts in, bundles out; bad files in one sentence."""

import pickle
import subprocess
import sys
from collections import OrderedDict

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dimo_jax import bundles, export, models, tokenizers
from dimo_jax.convert import __main__ as command
from dimo_jax.convert import sources
from dimo_jax.convert.networks import google, layouts
from dimo_jax.generation import drawing
from tests.helpers.command_line import run_command

MASKGIT = {
    "name": "maskgit",
    "num_tokens": 16,
    "codebook_size": 1024,
    "num_classes": 1000,
    "width": 32,
    "depth": 2,
    "heads": 16,
    "mlp_dim": 64,
    "dropout": 0.1,
    "predict_mask_id": True,
}
HALTON = {
    "name": "halton",
    "num_tokens": 16,
    "codebook_size": 30,
    "num_classes": 10,
    "width": 24,
    "depth": 1,
    "heads": 4,
    "mlp_dim": 256,
}
GOOGLE = {**MASKGIT, "name": "google_maskgit", "heads": 4}
del GOOGLE["predict_mask_id"]
TOKENIZER = {
    "name": "vqgan",
    "image_size": 64,
    "ch": 32,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 1,
    "attn_levels": [4],
    "z_channels": 16,
    "embed_dim": 16,
    "n_embed": 1024,
}


def random_params(model, seed=0):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: generator.normal(size=x.shape).astype(np.float32), shapes)


def as_torch(state):
    return OrderedDict((k, torch.from_numpy(v.copy())) for k, v in state.items())


def maskgit_state(seed=0):
    params = random_params(models.build(MASKGIT), seed)
    return params, layouts.to_state(sources.maskgit.entries(MASKGIT), params)


def published(path, state):
    """The four entries of the published .pth, with two moments for each tensor."""
    moments = {i: {"exp_avg": v, "exp_avg_sq": v * v} for i, v in enumerate(state.values())}
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-4}]}
    torch.save(
        {
            "iter": 3,
            "global_epoch": 1,
            "model_state_dict": state,
            "optimizer_state_dict": optimizer,
        },
        path,
    )
    return path


@pytest.fixture
def convert(monkeypatch, capsys, tmp_path):
    def convert(path, *flags, status=0):
        arguments = [f"--input={path}", f"--output={tmp_path / 'bundle'}", *flags]
        found, out, err = run_command(command, arguments, monkeypatch, capsys)
        assert found == status, err
        if status:
            assert not (tmp_path / "bundle").exists() and err.count("\n") == 1
            return err
        return out + err, bundles.load(tmp_path / "bundle")

    return convert


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_published_maskgit_file_becomes_a_teacher_and_goes_back(
    convert, tmp_path, monkeypatch, capsys
):
    params, state = maskgit_state()
    path = published(tmp_path / "MaskGIT_ImageNet_256.pth", as_torch(state))
    out, bundle = convert(path, "--source=maskgit")
    assert_same(bundle.params, params)
    assert (bundle.kind, bundle.model) == ("teacher", MASKGIT)
    assert bundle.sampler == {"num_steps": 8, "guidance": 4.0, "choice_temperature": 4.5}
    assert bundle.provenance["source"] == "maskgit" and len(bundle.provenance["sha256"]) == 64
    assert "no published file has width 32" in out
    back = tmp_path / "pytorch_model.bin"
    flags = [f"--bundle={bundle.path}", "--format=torch", f"--output={back}"]
    status, _, err = run_command(export, flags, monkeypatch, capsys)
    assert status == 0, err
    loaded = torch.load(back, weights_only=True)
    assert list(loaded) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(loaded[key].numpy(), value)


def test_the_released_generator_gets_its_start(convert, tmp_path):
    _, state = maskgit_state()
    torch.save(as_torch(state), tmp_path / "pytorch_model.bin")
    _, bundle = convert(tmp_path / "pytorch_model.bin", "--source=dimo")
    assert bundle.kind == "generator"
    assert (bundle.sampler["ratio"], bundle.sampler["sigma"]) == (0.6, 0.1)


def test_di4c_becomes_a_student_of_several_steps_and_goes_back(
    convert, tmp_path, monkeypatch, capsys
):
    network = models.build({**MASKGIT, "mixture_dim": 512})
    params = random_params(network)
    state = layouts.to_state(sources.maskgit.entries(network.config), params)
    out, bundle = convert(published(tmp_path / "maskgit-di4c-d.pth", as_torch(state)))
    assert "has the keys of di4c" in out and bundle.model == network.config
    assert_same(bundle.params, params)
    settings = drawing.sampler_of(bundle, {})
    assert (bundle.kind, settings.num_steps, settings.guidance) == ("generator", 4, 7.0)
    assert settings.counts == "differences" and not drawing.is_one_step(bundle)
    back = tmp_path / "back.bin"
    flags = [f"--bundle={bundle.path}", "--format=torch", f"--output={back}"]
    status, _, err = run_command(export, flags, monkeypatch, capsys)
    assert status == 0, err
    loaded = torch.load(back, weights_only=True)
    assert list(loaded) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(loaded[key].numpy(), value)


def test_the_keys_decide_where_no_source_is_given(convert, tmp_path):
    _, state = maskgit_state()
    path = published(tmp_path / "x.pth", as_torch({f"module.{k}": v for k, v in state.items()}))
    out, bundle = convert(path, "--heads=8")
    assert "has the keys of maskgit" in out and bundle.model["heads"] == 8


def test_a_model_inside_another_is_found_or_chosen_with_key(convert, tmp_path):
    _, state = maskgit_state()
    inner = {f"model.{k}": v for k, v in state.items()}
    both = as_torch({**inner, **{f"ema.{k}": v + 1 for k, v in state.items()}})
    path = published(tmp_path / "x.pth", both)
    assert "choose with --key" in convert(path, status=2)
    found, chosen = (convert(path, f"--key={key}")[1].params for key in ("model", "ema"))
    assert_same(chosen, jax.tree.map(lambda x: x + 1, found))
    path = published(tmp_path / "x.pth", as_torch({**inner, "loss.weight": np.ones(2, "f4")}))
    assert_same(convert(path)[1].params, found)


def test_a_lightning_checkpoint_of_the_vqgan(convert, tmp_path):
    tokenizer = tokenizers.build(TOKENIZER)
    params = random_params(tokenizer)
    state = layouts.to_state(sources.vqgan.entries(tokenizer.config), params)
    losses = {"loss.discriminator.main.0.weight": np.ones((2, 2), np.float32)}
    checkpoint = {"epoch": 1, "state_dict": as_torch({**state, **losses}), "optimizer_states": []}
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    _, bundle = convert(path, "--image_size=64")
    assert bundle.kind == "tokenizer" and bundle.model == tokenizer.config
    assert_same(bundle.params, params)


def test_googles_flax_file(convert, tmp_path):
    network = models.build(GOOGLE)
    params = random_params(network)
    state = layouts.to_state(google.transformer_entries(network.config), params)
    path = tmp_path / "maskgit_imagenet256_checkpoint"
    path.write_bytes(google.to_bytes(state))
    _, bundle = convert(path)
    assert bundle.model == network.config
    assert_same(bundle.params, params)


def test_halton_from_safetensors(convert, tmp_path):
    network = models.build(HALTON)
    params = random_params(network)
    state = layouts.to_state(sources.halton.entries(network.config), params)
    save_file({k: v.copy() for k, v in state.items()}, tmp_path / "model.safetensors")
    out, bundle = convert(tmp_path / "model.safetensors", "--heads=4")
    assert "keys of halton" in out and bundle.model == network.config
    assert_same(bundle.params, params)


def test_a_source_without_a_one_step_generator_is_named(convert, tmp_path):
    network = models.build(HALTON)
    state = layouts.to_state(sources.halton.entries(network.config), random_params(network))
    save_file({k: v.copy() for k, v in state.items()}, tmp_path / "model.safetensors")
    err = convert(tmp_path / "model.safetensors", "--source=dimo", status=2)
    assert "keys of halton; a one-step generator has those of maskgit, meissonic" in err


def test_one_message_lists_every_difference(convert, tmp_path):
    _, state = maskgit_state()
    del state["last_layer.0.bias"]
    state |= {f"extra{i}": np.zeros(1, np.float32) for i in range(30)}
    state["transformer.layers.1.0.norm.weight"] = np.zeros(5, np.float32)
    err = convert(published(tmp_path / "x.pth", as_torch(state)), "--source=maskgit", status=2)
    for words in (
        "last_layer.0.bias is missing",
        *(f"extra{i} is unknown" for i in range(30)),
        "transformer.layers.1.0.norm.weight is (5,), expected (32,)",
    ):
        assert words in err


class Malicious:
    def __reduce__(self):
        return print, ("this must not be run",)


def test_weights_that_are_not_finite_are_named(tmp_path, monkeypatch, capsys):
    _, state = maskgit_state()
    state["pos_emb"] = np.array(state["pos_emb"])
    state["pos_emb"].flat[:3] = [np.nan, np.inf, -np.inf]
    path = published(tmp_path / "MaskGIT_ImageNet_256.pth", as_torch(state))
    flags = ["--source=maskgit", f"--input={path}", f"--output={tmp_path / 'bundle'}"]
    status, _, err = run_command(command, flags, monkeypatch, capsys)
    size = state["pos_emb"].size
    assert err.splitlines()[-1] == (
        "error: the teacher has values that are not finite numbers: position_embedding "
        f"(3 of {size}); give weights without them"
    )
    assert status == 2 and not (tmp_path / "bundle").exists()


def test_bad_files_leave_nothing(convert, tmp_path, capsys):
    _, state = maskgit_state()
    good = published(tmp_path / "x.pth", as_torch(state))
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[:-1000])
    assert "damaged" in convert(cut, status=2)
    evil = tmp_path / "evil.pth"
    torch.save({"model_state_dict": as_torch(state), "x": Malicious()}, evil)
    err = convert(evil, status=2)
    assert "print" in err and "this must not be run" not in capsys.readouterr().out
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Malicious()))
    assert "print" in convert(plain, status=2)
    assert "there is no file" in convert(tmp_path / "none.pth", status=2)
    torch.save(as_torch({"weight": np.zeros(3, np.float32)}), tmp_path / "other.pth")
    assert "are of no known source" in convert(tmp_path / "other.pth", status=2)
    assert "is not a vqgan checkpoint" in convert(good, "--source=vqgan", status=2)


def test_the_command_without_pytorch(tmp_path):
    _, state = maskgit_state()
    path = published(tmp_path / "x.pth", as_torch(state))
    code = (
        "import sys; sys.modules['torch'] = None; import runpy;"
        f"sys.argv = ['convert', '--input={path}', '--output={tmp_path}/b'];"
        "runpy.run_module('dimo_jax.convert', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "maskgit: a teacher of" in result.stdout
