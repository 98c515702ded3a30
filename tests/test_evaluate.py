"""dimo_jax.evaluate: images in, results out, and every bad input answered in a sentence."""

import functools
import json

import numpy as np
import pytest
from PIL import Image
from prdc import compute_prdc

from dimo_jax import bundles, evaluate
from dimo_jax.evaluation import evaluate_images
from dimo_jax.evaluation.features import feature_store, resize
from dimo_jax.evaluation.features.feature_store import Extractor
from dimo_jax.evaluation.images import image_sets
from dimo_jax.evaluation.metrics import neighbours, protocols
from dimo_jax.evaluation.metrics.frechet import frechet, moments
from dimo_jax.models.inception import Inception
from tests.helpers import inception_weights, token_folders
from tests.helpers.command_line import run_command

# On one worker, which makes the fixtures once.
pytestmark = pytest.mark.xdist_group("evaluate")

PIXELS = inception_weights.textured_images(40, 8) // 2 + 40


def plain_features(images):
    """Means over quarters and some pixels: features of which there are few."""
    x = images.astype(np.float32) / 255
    quarters = x.reshape(len(x), 2, 4, 2, 4, 3).mean(axis=(2, 4))
    logits = 4 * x[:, 2, :5, 0]
    spatial = x[:, 3, :4].reshape(len(x), -1)
    return {"2048": quarters.reshape(len(x), -1), "logits_unbiased": logits, "spatial": spatial}


def fid_of(*sets):
    real, samples = (plain_features(images)["2048"] for images in sets)
    return frechet(moments(real), samples).distance


# Checking a bundle's parameters takes a second each time.
load_once = functools.lru_cache(bundles.load)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bundles, "load", load_once)
    monkeypatch.setattr(neighbours, "ROWS_PER_DEVICE", 4)
    monkeypatch.setattr(neighbours, "COLUMNS", 32)


@pytest.fixture
def calls(monkeypatch):
    """Puts plain features in the place of the network; how many images each call saw."""
    seen = []
    monkeypatch.setattr(feature_store, "RANGE_SIZE", 8)

    def open_network(bundle, protocol, batch_size):
        def extract(images):
            seen.append(len(images))
            return plain_features(protocols.stretch(images) if protocol.stretch else images)

        settings = {"weights": bundle.params_hash, **protocol.preprocessing()}
        return Extractor(extract, settings, 4)

    monkeypatch.setattr(evaluate_images, "open_network", open_network)
    return seen


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return inception_weights.save_bundle(tmp_path_factory.mktemp("evaluate") / "inception", 16)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Samples and references of several kinds."""
    root = tmp_path_factory.mktemp("evaluate")
    samples, real = PIXELS[:24], PIXELS[24:]
    np.savez(root / "samples.npz", arr_0=samples, labels=np.arange(24) % 6)
    rows = plain_features(real)
    stats = {}
    for mean, covariance, name in (("mu", "sigma", "2048"), ("mu_s", "sigma_s", "spatial")):
        x = rows[name].astype(np.float64)
        stats |= {mean: x.mean(0), covariance: np.cov(x.T)}
    np.savez(root / "adm.npz", arr_0=real, **stats)
    np.savez(root / "stats.npz", mu=stats["mu"], sigma=stats["sigma"])
    np.savez(root / "images.npz", arr_0=real)
    return root


@pytest.fixture
def run(monkeypatch, capsys, bundle, places, tmp_path):
    """Runs the command on samples.npz and adm.npz unless others are given."""

    def run(*arguments, status=0, samples="samples.npz", reference="adm.npz"):
        words = [] if "reference" in arguments else ["images"]
        flags = [*words, f"--features={bundle}", f"--output={tmp_path / 'eval'}"]
        flags += [f"--samples={places / samples}"] if samples else []
        flags += [f"--reference={places / reference}"] if reference else []
        found, out, err = run_command(evaluate, [*flags, *arguments], monkeypatch, capsys)
        assert found == status, err
        return err if status else out

    run.output = tmp_path / "eval"
    return run


def results(run):
    return json.loads((run.output / "results.json").read_text())


def test_the_result_says_all(run, calls, places, bundle):
    out = run("--protocol=adm", "--num=24")
    assert sum(calls) == 24 + 16
    content = results(run)
    assert set(content) >= {"rows", "seed", "versions", "device", "wall_seconds", "hashes"}
    assert content["protocol"]["name"] == "adm" and content["protocol"]["closed"] is True
    assert content["protocol"]["resizer"] == "tf1_bilinear"
    assert set(content["hashes"]) == {"samples", "reference", "weights"}
    assert all(len(x) == 64 for x in content["hashes"].values())
    assert "code" in content["versions"]
    (row,) = content["rows"]
    assert (row["model"], row["num"]) == ("samples", 24)
    assert row["labels"] == {"classes": 6, "fewest": 4, "most": 4}
    assert list(row["metrics"]) == [
        *("fid", "sfid", "inception_score_adm", "inception_score"),
        *("precision", "recall", "density", "coverage"),
    ]
    assert all(set(x) == {"mean", "std"} for x in row["metrics"].values())
    fid = fid_of(PIXELS[24:], PIXELS[:24])
    assert row["metrics"]["fid"]["mean"] == pytest.approx(fid, rel=1e-9)
    terms = row["parts"]["fid"]
    assert terms["distance"] == terms["mean_term"] + terms["traces"] - terms["cross_term"]
    assert len(row["parts"]["inception_score"]["splits"]) == 10
    assert row["parts"]["inception_score_adm"]["split_sizes"] == [24]
    assert row["parts"]["prdc"]["num_neighbours"] == 3
    assert "24 samples: FID falls as their number grows" in row["warnings"][-1]
    # The five lines, in the order that people paste.
    names = [line.split(": ")[0] for line in out.splitlines()]
    assert names[:5] == ["Inception Score", "FID", "sFID", "Precision", "Recall"]
    printed = [float(line.split(": ")[1]) for line in out.splitlines()[:5]]
    order = ("inception_score_adm", "fid", "sfid", "precision", "recall")
    assert printed == [row["metrics"][name]["mean"] for name in order]
    table = (run.output / "results.md").read_text()
    assert table.startswith("| model | steps | N | FID | sFID | IS (ADM) | IS | precision |")
    assert f"| 24 | {row['metrics']['fid']['mean']:.2f} |" in table
    assert content["hashes"]["reference"] in table


@pytest.mark.parametrize(
    "sampler, steps",
    [({"name": "one_step", "sigma": 0.1}, 1), ({"name": "halton", "num_steps": 8}, 8), (None, 0)],
)
def test_what_the_samples_tell_of_their_sampler_is_in_the_row(run, calls, tmp_path, sampler, steps):
    settings = {"sampler": sampler, "seed": 7, "model": "abc", "tokenizer": "def"}
    np.savez(tmp_path / "told.npz", arr_0=PIXELS[:24], settings=json.dumps(settings))
    run("--metrics=fid", samples=tmp_path / "told.npz")
    content = results(run)
    (row,) = content["rows"]
    assert (row["steps"], row["sampler"], row["seed"]) == (steps, sampler or {}, 7)
    assert (content["hashes"]["model"], content["hashes"]["tokenizer"]) == ("abc", "def")
    assert content["seed"] == 7


def test_a_second_time_no_image_is_seen_again(run, calls):
    run("--metrics=fid")
    first = results(run)["rows"][0]
    assert sum(calls) == 24
    run("--metrics=fid,is,prdc")
    assert sum(calls) == 24 + 16  # the real images, for prdc
    second = results(run)["rows"][0]
    assert second["metrics"]["fid"] == first["metrics"]["fid"]
    assert set(first["metrics"]) == {"fid"} and "recall" in second["metrics"]


def test_metrics_that_the_reference_cannot_serve_are_left_out_or_refused(run, calls):
    run(reference="stats.npz")
    assert set(results(run)["rows"][0]["metrics"]) == {
        *("fid", "inception_score", "inception_score_adm")
    }
    text = run("--metrics=fid,prdc", reference="stats.npz", status=2)
    assert "stats.npz has neither images (arr_0) nor features" in text
    run("--metrics=is", reference=None)
    assert set(results(run)["rows"][0]["metrics"]) == {"inception_score", "inception_score_adm"}


def test_fid_against_images_alone(run, calls, places, tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    for i, image in enumerate(PIXELS[24:]):
        Image.fromarray(image).save(folder / f"{i}.webp", lossless=True)
    fid = fid_of(PIXELS[24:], PIXELS[:24])
    for reference in (folder, "images.npz"):
        calls.clear()
        run("--metrics=fid", reference=reference)
        (row,) = results(run)["rows"]
        assert row["metrics"]["fid"]["mean"] == pytest.approx(fid, rel=1e-9)
        assert row["reference"] == "16 images"
        assert any(
            f"against the 16 images of {places / reference}: not c" in x for x in row["warnings"]
        )
        assert sum(calls) == (40 if reference == folder else 16)  # samples are seen once
        calls.clear()
        run("--metrics=fid,prdc", reference=reference)
        assert not calls
    run("--metrics=fid")
    (row,) = results(run)["rows"]
    assert row["reference"] == "mu and sigma"
    assert not any("not comparable with published" in x for x in row["warnings"])


def test_protocols_are_different_computations(run, calls, places):
    run("--metrics=fid", "--protocol=valeo", reference="images.npz")
    fid = fid_of(*(protocols.stretch(x) for x in (PIXELS[24:], PIXELS[:24])))
    found = results(run)["rows"][0]
    assert found["metrics"]["fid"]["mean"] == pytest.approx(fid, rel=1e-9)
    assert found["parts"]["fid"]["reference_num"] == 16
    run("--metrics=fid")
    other = results(run)["rows"][0]["metrics"]["fid"]["mean"]
    assert abs(other - found["metrics"]["fid"]["mean"]) > 1e-3


def test_the_number_of_neighbours_can_be_another(run, calls, places):
    run("--metrics=prdc", "--num_neighbours=5")
    content = results(run)
    assert content["protocol"]["num_neighbours"] == 5
    features = [plain_features(x)["2048"] for x in (PIXELS[24:], PIXELS[:24])]
    expected = compute_prdc(*features, nearest_k=5)
    found = content["rows"][0]["metrics"]
    assert {name: found[name]["mean"] for name in expected} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", list(protocols.PROTOCOLS))
def test_the_network_sees_images_as_the_protocol_has_them(name, tmp_path):
    def see_through(params, images):
        seen = images[:, ::60, ::60].reshape(len(images), -1)
        return {"2048": seen, "logits_unbiased": seen, "spatial": seen}

    protocol = protocols.PROTOCOLS[name]
    network = Inception({"name": "inception"}, lambda key: {}, see_through)
    bundle = bundles.Bundle("features", {}, {}, None, None, {}, tmp_path, "hash")
    bundle.__dict__["_built"] = network
    extractor = evaluate_images.open_network(bundle, protocol, 2)
    images = protocols.stretch(PIXELS[:2]) if name == "valeo" else PIXELS[:2]
    resizers = {"clean": resize.clean_bicubic}
    expected = np.asarray(resizers.get(name, resize.tf1_bilinear)(images))[:, ::60, ::60]
    found = extractor.extract(PIXELS[:2])["2048"]
    np.testing.assert_allclose(found, expected.reshape(2, -1), rtol=1e-6)
    resizer = "clean_bicubic" if name == "clean" else "tf1_bilinear"
    assert extractor.settings == {
        **{"weights": "hash", "resizer": resizer, "stretch": name == "valeo"}
    }


def test_stretching_is_per_image_over_all_channels():
    image = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    constant = np.full((1, 2, 3), 9, np.uint8)
    found = protocols.stretch(np.stack([image, constant]))
    assert found[0].tolist() == [[[0, 51, 102], [153, 204, 255]]]
    assert found.dtype == np.uint8 and not found[1].any()


def test_a_reference_is_made_and_used(run, calls, places):
    path = run.output.parent / "made.npz"
    out = run("reference", path, samples="images.npz", reference=None)
    assert out == f"16 images, protocol dimo: {path}\n"
    run("--metrics=fid,sfid,prdc", reference=path)
    made = results(run)["rows"][0]["metrics"]
    run("--metrics=fid,sfid,prdc")
    stored = results(run)["rows"][0]["metrics"]
    assert made.keys() == stored.keys()
    for name, value in stored.items():
        assert made[name]["mean"] == pytest.approx(value["mean"], rel=1e-9, abs=1e-12), name
    text = run("--protocol=valeo", "--metrics=fid", reference=path, status=2)
    assert "made.npz was made with stretch False, and this evaluation has True" in text


def test_a_reference_of_a_data_set(run, calls):
    path = run.output.parent / "digits.npz"
    flags = ["reference", path, f"--data_dir={run.output.parent}"]
    run("--samples=tfds:digits:test", *flags, samples=None, reference=None)
    with np.load(path) as data:
        assert data["features"].shape == (397, 12) and data["sigma_s"].shape == (12, 12)
        about = json.loads(str(data["settings"]))
    assert (about["num"], about["images"]) == (397, "tfds:digits:test")


def test_what_a_tokenizer_costs(run, calls, tmp_path):
    folder = token_folders.write_classes(tmp_path / "photos", PIXELS)
    codec = token_folders.save_tokenizer(tmp_path / "bundle")
    tokens = tmp_path / "tokens"
    seen = token_folders.write(tokens, folder, *codec)
    flags = ["--metrics=fid,prdc", f"--tokenizer={tmp_path / 'bundle'}"]
    out = run(*flags, samples=tokens, reference=folder)
    (row,) = results(run)["rows"]
    # The pictures are cut as they were before they were encoded.
    found = image_sets.open_set(tokens, tokenizer=str(tmp_path / "bundle"))
    wanted = fid_of(seen, found.read(0, 40).pixels)
    assert row["model"] == "decoded" and "fid" not in row["metrics"]
    assert row["metrics"]["rfid"]["mean"] == pytest.approx(wanted, rel=1e-9)
    assert out.startswith(f"rFID: {row['metrics']['rfid']['mean']}\n")
    assert row["labels"] == {"classes": 2, "fewest": 20, "most": 20}
    page = (run.output / "report.html").read_text()
    assert "rFID" in page and "the tokenizer's own limit" in page.replace("&#39;", "'")
    assert set(results(run)["per_class"]["names"]) == set(token_folders.CLASSES)
    # Below each decoded picture, enlarged five times, lies its own.
    assert "what the tokenizer leaves of them" in page
    with Image.open(run.output / "pictures" / "originals.png") as grid:
        tile = np.asarray(grid)[46:84:5, -40::5]
    np.testing.assert_array_equal(tile, seen[7])
    # A reference of decoded tokens says so, and names the classes.
    path = tmp_path / "decoded.npz"
    run("reference", path, flags[1], samples=tokens, reference=None)
    run("--metrics=fid,prdc", reference=path)
    (row,) = results(run)["rows"]
    assert any("decoded.npz is of decoded tokens, not of" in x for x in row["warnings"])
    assert results(run)["per_class"]["names"][:1] in (["a cat"], ["Hündin"])
    # One of the pictures themselves, cut alike, is that which rFID was against.
    run("reference", path, f"--cut_as={tokens}", samples=folder, reference=None)
    run(*flags, samples=tokens, reference=path)
    (row,) = results(run)["rows"]
    assert row["metrics"]["rfid"]["mean"] == pytest.approx(wanted, rel=1e-9)
    assert not any("decoded" in x for x in row["warnings"])


def test_a_corrupt_picture_ends_the_command_with_its_name_and_the_rest_is_kept(
    run, calls, tmp_path
):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(PIXELS[:24]):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    content = (folder / "11.png").read_bytes()
    (folder / "11.png").write_bytes(content[:80])
    text = run("--metrics=fid", samples=folder, status=2)
    assert f"error: {folder / '11.png'} (80 bytes) is no readable picture" in text
    assert "The features of the 16 other images are kept" in text
    assert not (run.output / "results.json").exists()
    (folder / "11.png").write_bytes(content)
    calls.clear()
    run("--metrics=fid", samples=folder)
    assert calls == [8]
    of_folder = results(run)
    run("--metrics=fid")
    of_npz = results(run)
    assert of_folder["rows"][0]["metrics"] == of_npz["rows"][0]["metrics"]
    assert of_folder["hashes"] == of_npz["hashes"]


def spoiled(places, tmp_path, name):
    """A file of samples that something is wrong with."""
    arrays = {
        "few": {"arr_0": PIXELS[:3]},
        "one": {"arr_0": PIXELS[:1]},
        "other": {"images": PIXELS},
    }
    np.savez(tmp_path / f"{name}.npz", **arrays[name])
    return tmp_path / f"{name}.npz"


@pytest.mark.parametrize(
    "name, flags, complaint",
    [
        ("few", ["--metrics=is"], "few.npz has 3 images, too few for is, which needs 10"),
        ("few", ["--metrics=prdc"], "few.npz has 3 images, too few for prdc, which needs 4"),
        ("one", ["--metrics=fid"], "one.npz has 1 images, too few for fid, which needs 2"),
        ("few", ["--num=4"], "few.npz has 3 images, expected --num=4"),
        ("other", [], "other.npz has images, but no arr_0"),
        ("few", ["--metrics=fid,kid"], "there is no metric kid; there are fid, is, sfid, prdc"),
        ("few", ["reference", "x.npz"], "--reference is of images and run, not of reference"),
        ("few", ["--protocol=best"], "flag --protocol=best"),
        ("few", ["--output=README.md"], "--output=README.md is a file; name a folder"),
        ("few", ["--features=nowhere"], "there is no bundle at nowhere"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(run, calls, places, tmp_path, name, flags, complaint):
    text = run(*flags, samples=spoiled(places, tmp_path, name), status=2)
    assert complaint in text and "Traceback" not in text
    assert not calls


def test_a_reference_of_another_network_is_refused(run, calls, tmp_path):
    np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    text = run("--metrics=fid", reference=tmp_path / "other.npz", status=2)
    assert "the reference has 5 features and the network 12" in text


def test_odd_samples_are_warned_about(run, calls, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = PIXELS[:24].copy()
    pixels[5], pixels[7] = pixels[2], 100
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    Image.fromarray(PIXELS[30]).save(folder / "24.jpg")
    run("--metrics=fid", samples=folder)
    warnings = results(run)["rows"][0]["warnings"]
    assert warnings[0] == f"{folder / '07.png'} is of one colour"
    assert "05.png equals" in warnings[1] and "holds JPEG files" in warnings[2]
    assert "* Warning: samples: " in (run.output / "results.md").read_text()


def test_the_network_of_a_bundle(run, bundle, places):
    """With nothing replaced: a small network, for the reference and for the samples."""
    path = run.output.parent / "made.npz"
    flags = ["--batch_size=8"]
    run("reference", path, *flags, samples="images.npz", reference=None)
    run(*flags, "--metrics=fid,prdc", reference=path)
    content = results(run)
    metrics = content["rows"][0]["metrics"]
    assert metrics["fid"]["mean"] > 0 and 0 < metrics["recall"]["mean"] <= 1
    assert content["rows"][0]["images_per_second"] > 0
    with np.load(path) as data:
        assert data["features"].shape == (16, 128) and data["mu_s"].shape == (2023,)
        assert json.loads(str(data["settings"]))["weights"] == content["hashes"]["weights"]


def test_the_help_names_the_protocols(run):
    out = run("--help")
    assert "valeo  the teacher's repository" in out and "reference FILE" in out
