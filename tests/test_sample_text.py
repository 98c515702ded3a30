"""dimo_jax.sample with prompts: a text encoder, a network with text, a decoder, all tiny."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import dimo_jax
from configs import meissonic
from dimo_jax import api, bundles, models, sample, tokenizers
from dimo_jax.common import images, trees
from dimo_jax.common.errors import InputError
from dimo_jax.conditions import clip_tokenizer, clip_vocabulary, text_encoder
from dimo_jax.conditions.text import TextConditions
from dimo_jax.generation import drawing
from dimo_jax.generation.text_drawing import TextImages
from dimo_jax.models import clip
from dimo_jax.profiling import step_speed
from dimo_jax.runs import run_evaluation, run_samples
from tests.helpers.command_line import run_command, save_tiny

# On one worker, which makes the fixtures once.
pytestmark = pytest.mark.xdist_group("sample_text")

NETWORK = {
    "name": "meissonic", "num_tokens": 16, "codebook_size": 11, "vocabulary": 15, "width": 16,
    "depth": 1, "single_depth": 1, "heads": 2, "mlp_dim": 32, "text_length": 12, "text_dim": 8,
    "pooled_dim": 6, "rope_dims": [2, 4, 2], "merge": True, "timestep": "zero",
}  # fmt: skip
TOKENIZER = {
    "name": "vq_model", "image_size": 16, "ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1,
    "z_channels": 4, "embed_dim": 4, "n_embed": 11,
}  # fmt: skip
ENCODER = {
    "name": "clip", "activation": "gelu", "projection": 6, "image": None,
    "text": {
        "vocabulary": 514, "context": 12, "width": 8, "depth": 2, "heads": 2, "mlp_dim": 12,
    },
}  # fmt: skip
SAMPLER = {"ratio": 0.5, "sigma": 0.3, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def random_params(init):
    numbers = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x: numbers.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """bundles/{transformer,vqvae,text_encoder}, as dimo_jax.convert leaves them, and a student."""
    root = tmp_path_factory.mktemp("text")
    decoder = tokenizers.build(TOKENIZER)
    params = random_params(decoder.init)
    digest = tokenizers.fingerprint(decoder, params)
    bundles.save(root / "vqvae", kind="tokenizer", model=TOKENIZER, params=params)
    network = models.build(NETWORK)
    shared = {"model": network.config, "params": random_params(network.init)}
    shared["tokenizer"] = {"config": decoder.config, "hash": digest}
    bundles.save(root / "transformer", kind="teacher", **shared)
    bundles.save(root / "student", kind="generator", sampler=SAMPLER, **shared)
    # Large, so that the prompt changes the tokens, as it does after training.
    encoder = jax.tree.map(lambda x: 3 * x, random_params(clip.build(ENCODER).init))
    merges = {"merges.txt": clip_vocabulary.to_text([])}
    path = root / "text_encoder"
    bundles.save(path, kind="clip", model=ENCODER, params=encoder, attachments=merges)
    return root


@pytest.fixture
def run(place, monkeypatch, capsys, built):
    def run(*arguments, status=0, generator="student"):
        flags = [f"--generator={place / generator}", "--batch_size=8", *arguments]
        found, out, err = run_command(sample, flags, monkeypatch, capsys)
        assert found == status, err
        return err if status else out

    return run


@pytest.fixture
def built(monkeypatch):
    """Each bundle is read once: functions compiled for a network are kept by the network."""
    loaded, load = {}, bundles.load

    def load_once(path, kind=None):
        return loaded.setdefault(str(path), load(path, kind=kind))

    monkeypatch.setattr(bundles, "load", load_once)


def test_in_python_the_images_are_those_of_the_command(run, place, tmp_path):
    prompts = ["a red ball", 'a "blue"/cube']
    run(*[f"--prompt={x}" for x in prompts], "--seed=3", f"--output={tmp_path / 'x.png'}")
    student = dimo_jax.load(place / "student")
    drawn = student(prompts=prompts, seed=3, batch_size=8)
    np.testing.assert_array_equal(images.grid(drawn, 1), pixels(tmp_path / "x.png"))
    assert "generator of prompts in one step: meissonic" in repr(student)
    for wrong in ({"labels": [1]}, {"prompts": "a red ball"}, {"prompts": []}):
        with pytest.raises(InputError, match="prompts"):
            student(**wrong)


def test_a_network_is_given_the_micro_conditions_that_it_was_trained_with(place):
    student, tokenizer = bundles.load(place / "student"), bundles.load(place / "vqvae")

    def drawn(**provenance):
        bundle = dataclasses.replace(student, provenance=provenance)
        model = api.ImageModel(bundle, tokenizer, place / "text_encoder")
        return model(prompts=["a red ball"] * 4, seed=3, batch_size=4)

    # A bundle that does not know: as the pipeline of Meissonic's authors, of images of 16 pixels.
    assert np.array_equal(drawn(), drawn(micro_conditions=[16, 16, 0, 0, 6]))
    assert not np.array_equal(drawn(), drawn(micro_conditions=[512, 512, 0, 0, 6]))
    for wrong in ("512", [1, 2, 3], [1, 2, 3, 4, float("nan")], [1, 2, 3, 4, True]):
        with pytest.raises(InputError, match="micro_conditions .* expected five finite numbers"):
            drawn(micro_conditions=wrong)


def pixels(path):
    return np.asarray(Image.open(path))


def test_a_row_for_each_prompt(run, tmp_path):
    flags = ["--prompt=a red ball", '--prompt=a "blue"/cube', "--num_per_prompt=2"]
    out = run(*flags, f"--output={tmp_path / 'x.png'}")
    assert out == f"4 images, seed 0: {tmp_path / 'x.png'}\n"
    first = pixels(tmp_path / "x.png")
    run(*flags[:1], "--num_per_prompt=2", f"--output={tmp_path / 'y.png'}")
    second = pixels(tmp_path / "y.png")
    # An image depends on its own prompt's place and its number alone.
    half = len(second) - 2
    np.testing.assert_array_equal(first[:half], second[:half])
    run("--prompt=9 8 7 x", "--num_per_prompt=2", f"--output={tmp_path / 'z.png'}")
    assert (pixels(tmp_path / "z.png") != second).any()


@pytest.mark.parametrize(
    ("bundle", "more", "encoded"), [("student", [], 1), ("transformer", ["--steps=2"], 2)]
)
def test_one_prompt_is_a_batch_of_its_own(
    place, tmp_path, monkeypatch, capsys, built, bundle, more, encoded
):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    sizes, encode, draw = [], TextConditions.__call__, drawing.draw

    def encoding(self, prompts):
        sizes.append(("text", self._batch_size))
        return encode(self, prompts)

    def drawing_(*given):
        sizes.append(("images", given[5]))
        return draw(*given)

    monkeypatch.setattr(TextConditions, "__call__", encoding)
    monkeypatch.setattr(drawing, "draw", drawing_)
    flags = [f"--generator={place / bundle}", "--prompt=x", f"--output={tmp_path / 'x.png'}"]
    status, _, err = run_command(sample, [*flags, *more], monkeypatch, capsys)
    # Without guidance there is no negative prompt to encode.
    assert (status, sizes) == (0, [("text", 1)] * encoded + [("images", 1)]), err


def test_genevals_folder_is_filled_and_goes_on(run, tmp_path, monkeypatch):
    lines = [
        {"tag": "colors", "prompt": "a photo of a red ball", "include": []},
        {"tag": "single_object", "prompt": "写真 / ..\\..\\x", "include": []},
    ]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    flags = ["--prompts=geneval", f"--metadata={path}", f"--output={tmp_path / 'out'}"]
    assert "8 images" in run(*flags)
    found = sorted(str(x.relative_to(tmp_path / "out")) for x in (tmp_path / "out").rglob("*.png"))
    assert found[:2] == ["00000/grid.png", "00000/samples/00000.png"] and len(found) == 10
    assert json.loads((tmp_path / "out/00001/metadata.jsonl").read_text()) == lines[1]
    one = tmp_path / "out/00001/samples/00002.png"
    before = one.read_bytes()
    one.unlink()
    run(*flags)
    assert one.read_bytes() == before
    assert "other settings" in run(*flags, "--seed=1", status=2)


@pytest.mark.slow
def test_the_teacher_takes_steps_and_a_negative_prompt(run, tmp_path):
    seen = {}
    for name, more in {"a": [], "b": ["--negative_prompt=ugly"], "c": ["--guidance=1"]}.items():
        out = tmp_path / f"{name}.png"
        flags = ["--prompt=a ball", "--num_per_prompt=4", "--steps=3", *more, f"--output={out}"]
        run(*flags, generator="transformer")
        seen[name] = pixels(out)
    assert (seen["a"] != seen["b"]).any() and (seen["a"] != seen["c"]).any()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--labels=1"], "--labels is not for"),
        ([], "takes prompts: give --prompt=TEXT, or --prompts=FILE"),
        (["--prompt=x", "--prompts=plain"], "give --prompt=TEXT, or --prompts=FILE"),
        (["--prompts=nowhere.txt"], "--prompts=nowhere.txt is no file, and none of the benchmarks"),
        (["--prompts={root}/vqvae/config.json", "--prompt_field=kind"], "--prompts fills a folder"),
        (["--prompts=plain"], "needs --metadata"),
        (["--prompt=x", "--text_encoder=nowhere"], "there is no bundle at nowhere"),
        (["--prompt=x", "--text_encoder={root}/vqvae"], "tokenizer"),
    ],
)
def test_flags_that_do_not_fit(run, place, tmp_path, flags, complaint):
    given = [x.format(root=place) for x in flags]
    assert complaint in run(*given, f"--output={tmp_path / 'x.png'}", status=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl"])
def test_a_list_of_prompts_fills_a_folder(place, tmp_path, monkeypatch, capsys, built, name):
    """Whatever kind of file it is; the field, and what is cut, is said once."""
    texts = ["a red ball", "a red and a blue ball", "blue"]
    content = {
        "x.txt": texts,
        "x.csv": ["id,prompt", *(f"{i},{x}" for i, x in enumerate(texts))],
        "x.jsonl": [json.dumps({"seed": 1, "prompt": x}) for x in texts],
    }
    (tmp_path / name).write_text("\n".join(content[name]))
    flags = [f"--generator={place / 'student'}", "--batch_size=8"]
    flags += [f"--prompts={tmp_path / name}", f"--output={tmp_path / 'out'}"]
    status, _, err = run_command(sample, flags, monkeypatch, capsys)
    assert status == 0, err
    assert (tmp_path / "out" / "captions.txt").read_text().split("\n") == [*texts, ""]
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    field = "" if name == "x.txt" else ", field prompt"
    assert f"3 prompts of {tmp_path / name}{field}\n" in err
    cut = "1 of 3 prompts is longer than 12 tokens and was cut: first number 2, 'a red and a blue"
    assert err.count(cut) == 1


def test_a_folder_is_for_lists(run, tmp_path):
    assert "must end in .png" in run("--prompt=x", f"--output={tmp_path / 'x'}", status=2)


def test_classes_take_no_prompt(monkeypatch, capsys, tmp_path):
    flags = [f"--generator={save_tiny(tmp_path / 'g')}", "--prompt=x", "--output=x.png"]
    status, _, err = run_command(sample, flags, monkeypatch, capsys)
    assert status == 2 and "--prompt is not for" in err and "which takes classes" in err


def test_a_missing_encoder_is_named(run, place, tmp_path):
    (place / "text_encoder").rename(place / "away")
    try:
        err = run("--prompt=x", f"--output={tmp_path / 'x.png'}", status=2)
    finally:
        (place / "away").rename(place / "text_encoder")
    assert "there is no text encoder at" in err and "--text_encoder=BUNDLE" in err


def test_the_condition_is_the_towers_own(place):
    bundle = bundles.load(place / "text_encoder")
    network = bundle.build()
    tokenizer = clip_tokenizer.open_clip([], network.context)
    expected = models.build(NETWORK).condition
    # Of a trained encoder's size: a number near zero in a vector of hundreds would be round-off.
    params = jax.tree.map(lambda x: x / 10, bundle.params)
    text = TextConditions(network, params, tokenizer, expected, 2, (512, 256, 0, 0, 5.5))
    texts = ["a ball", "", "a very long prompt of more than twelve letters"]
    found = text(texts)
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(found["pooled"], 2)) > 0.01
    for i, text in enumerate(texts):
        alone = jax.jit(network.encode_text)(params, tokenizer([text]))
        np.testing.assert_allclose(
            found["states"][i], alone["penultimate"][0], rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(found["pooled"][i], alone["projected"][0], rtol=1e-4, atol=1e-4)
    assert found["micro"].tolist() == [[512, 256, 0, 0, 5.5]] * 3
    wrong = {**expected, "pooled": jax.ShapeDtypeStruct((7,), np.float32)}
    with pytest.raises(InputError, match=r"gives pooled of \[6\], the network takes \[7\]"):
        TextConditions(network, params, tokenizer, wrong, 2, (1, 1, 0, 0, 6))


@pytest.fixture(scope="module")
def finished(place):
    """What a finished run with text leaves, as far as its evaluation looks."""
    root = place / "run"
    student, decoder = bundles.load(place / "student"), bundles.load(place / "vqvae")
    shared = {"model": student.model, "params": student.params, "tokenizer": student.tokenizer}
    shared["tokenizer_params"] = decoder.params
    bundles.save(root / "export", kind="generator", sampler=SAMPLER, **shared)
    bundles.save(root / "teacher", kind="teacher", **shared)
    shutil.copytree(place / "text_encoder", root / "text_encoder")
    config = meissonic.get_config("smoke").to_dict()
    (root / "config.json").write_text(json.dumps(config))
    return root


@pytest.mark.slow
def test_a_run_is_judged_by_the_images_that_sample_draws(finished, tmp_path, built):
    texts = ["a red ball", "a blue cube", "x"]
    asked = run_samples.sets_of(finished, [1, 3], prompts=texts)
    assert [one.name for one in asked] == ["generator_1", "teacher_3"]
    drawn = list(run_samples.draw(asked, tmp_path, num=5, seed=7, batch_size=8))
    encoder = text_encoder.load_encoder(finished / "text_encoder")
    for one, negative in zip(drawn, ("", meissonic.NEGATIVE), strict=True):
        model, tokenizer = drawing.open_pair(one.requested.bundle)
        options = {"seed": 7, "batch_size": 8, "overrides": one.requested.overrides}
        images = TextImages(model, tokenizer, encoder, **options, negative_prompt=negative)
        items = [(texts[i % 3], i % 3, i // 3) for i in range(5)]
        with np.load(one.path) as data:
            assert data["prompts"].tolist() == [0, 1, 2, 0, 1] and "labels" not in data
            np.testing.assert_array_equal(data["arr_0"], images(items))
            settings = json.loads(str(data["settings"]))
        assert settings["text_encoder"] == trees.fingerprint(encoder.params["text"])
    assert settings["negative_prompt"] == meissonic.NEGATIVE
    assert settings["sampler"]["name"] == "meissonic"
    assert [x.path for x in run_samples.draw(asked, tmp_path, num=5, seed=7, batch_size=8)]


def test_a_run_with_text_needs_prompts(finished):
    with pytest.raises(InputError, match="takes text; give --prompts=FILE, or --prompts=coco"):
        run_samples.sets_of(finished, [1])
    config = json.loads((finished / "config.json").read_text())
    config["data"]["name"] = "labels"
    (finished / "classes").mkdir()
    (finished / "classes" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="takes classes; leave --prompts away"):
        run_samples.sets_of(finished / "classes", [1], prompts=["x"])


def test_a_run_with_text_is_timed_with_its_encoder(finished):
    config = run_evaluation.timed_config(finished, finished / "export")
    models_ = step_speed.open_models(config)
    assert models_.encoder.network.config == ENCODER
    assert models_.network.config["name"] == "meissonic"
