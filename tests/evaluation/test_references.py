"""Reference files in every spelling, and what each can serve."""

import json

import numpy as np
import pytest
import torch

from dimo_jax.common.errors import InputError
from dimo_jax.evaluation import references
from dimo_jax.evaluation.features.feature_store import FeatureStore
from dimo_jax.evaluation.images import image_sets
from dimo_jax.evaluation.metrics.protocols import PROTOCOLS
from tests.helpers import picture_files

ROWS = np.random.default_rng(0).normal(size=(30, 4))
MU, SIGMA = ROWS.mean(0), np.cov(ROWS.T)
PIXELS = picture_files.random_pixels(10)
FEATURES = ROWS.astype(np.float32)


def write(tmp_path, name="reference.npz", **arrays):
    np.savez(tmp_path / name, **arrays)
    return str(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("names", [("mu", "sigma"), ("ref_mu", "ref_sigma"), ("mu", "cov")])
def test_statistics_in_every_spelling_are_float64(tmp_path, names, dtype):
    arrays = dict(zip(names, (MU.astype(dtype), SIGMA.astype(dtype)), strict=True))
    found = references.open_reference(write(tmp_path, **arrays))
    assert found.moments.mean.dtype == found.moments.covariance.dtype == np.float64
    np.testing.assert_array_equal(found.moments.mean, MU.astype(dtype).astype(np.float64))
    np.testing.assert_array_equal(found.moments.covariance, SIGMA.astype(dtype).astype(np.float64))
    assert found.images is found.features is found.spatial is None


@pytest.mark.parametrize("names", [("mu", "cov"), ("mu", "sigma")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_statistics_of_torch_are_read_without_it(tmp_path, names, dtype):
    arrays = [torch.from_numpy(x).to(dtype) for x in (MU, SIGMA)]
    path = tmp_path / "stats.pt"
    torch.save(dict(zip(names, arrays, strict=True)), path)
    found = references.open_reference(str(path)).moments
    np.testing.assert_array_equal(found.mean, arrays[0].double().numpy())
    np.testing.assert_array_equal(found.covariance, arrays[1].double().numpy())


def test_adms_file_holds_everything(tmp_path):
    arrays = {"arr_0": PIXELS, "mu": MU, "sigma": SIGMA, "mu_s": MU[:3], "sigma_s": SIGMA[:3, :3]}
    path = write(tmp_path, **arrays)
    found = references.open_reference(path)
    assert found.images.num == 10
    np.testing.assert_array_equal(found.spatial.covariance, SIGMA[:3, :3])
    assert found.sha256 == references.file_hash(tmp_path / "reference.npz")
    assert len(found.sha256) == 64
    for name in ("fid", "is", "sfid", "prdc"):
        assert found.lacks(name, PROTOCOLS["adm"]) is None


def test_folders_and_archives_of_images(tmp_path):
    folder = picture_files.write_folder(tmp_path / "real", PIXELS)
    archive = picture_files.write_zip(tmp_path / "real.zip", folder)
    for where in (folder, archive):
        found = references.open_reference(str(where))
        assert found.images.num == 10 and found.moments is None and found.sha256 is None


@pytest.mark.parametrize(
    "arrays, complaint",
    [
        ({"images": PIXELS}, "holds images, expected statistics .mu and sigma. or images .arr_0."),
        ({"mu": MU}, "has mu alone, expected mu and sigma"),
        ({"mu": MU, "sigma": SIGMA, "sigma_s": SIGMA}, "has sigma_s alone, expected mu_s and sig"),
        ({"mu": MU, "sigma": SIGMA[:, :3]}, r"sigma of .* is float64 \[4, 3\], expected float"),
        ({"mu": MU[None], "sigma": SIGMA}, r"mu of .* is float64 \[1, 4\], expected"),
        ({"mu": MU.astype(int), "sigma": SIGMA}, "mu of .* is int64"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "mu of .* has values that are not finite"),
        ({"mu": MU, "sigma": -SIGMA}, "sigma of .* is no covariance: it has eigenvalues from -"),
        ({"mu": MU, "sigma": np.triu(SIGMA)}, "sigma of .* is no covariance: it is not symmetric"),
        ({"mu": MU, "sigma": SIGMA * np.inf}, "sigma of .* has values that are not finite"),
        ({"mu": MU, "sigma": SIGMA - 2 * np.eye(4)}, "sigma of .* has eigenvalues from -.* to"),
        (
            {"mu": MU, "sigma": SIGMA, "mu_s": MU, "sigma_s": -SIGMA},
            "sigma_s of .* is no covariance",
        ),
        ({"features": FEATURES * np.nan}, "features of .* have values that are not finite"),
        ({"features": FEATURES[0]}, r"features of .* are float32 \[4\], expected float \[N, D\]"),
        ({"mu": np.array([{}]), "sigma": SIGMA}, "cannot be read .*dtype object"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, arrays, complaint):
    with pytest.raises(InputError, match=complaint):
        references.open_reference(write(tmp_path, **arrays))


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="x.npz cannot be read .*copy or make it again"):
        references.open_reference(str(path))
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(InputError, match="x.pt holds a list, expected mu and cov"):
        references.open_reference(str(tmp_path / "x.pt"))
    torch.save({"mean": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="x.pt holds mean, expected mu and cov"):
        references.open_reference(str(tmp_path / "x.pt"))
    with pytest.raises(InputError, match="there is no .*nothing.npz"):
        references.open_reference(str(tmp_path / "nothing.npz"))


@pytest.fixture
def opened(tmp_path):
    """References of every extent."""
    statistics = {"mu": MU, "sigma": SIGMA}
    arrays = {
        "images": {"arr_0": PIXELS},
        "statistics": statistics,
        "both": {**statistics, "arr_0": PIXELS},
        "features": {"features": FEATURES},
    }
    found = {
        k: references.open_reference(write(tmp_path, f"{k}.npz", **x)) for k, x in arrays.items()
    }
    return {**found, "none": references.Reference("")}


@pytest.mark.parametrize(
    "which, protocol, asked, chosen",
    [
        ("both", "dimo", None, ("fid", "is", "prdc")),
        ("statistics", "dimo", None, ("fid", "is")),
        ("statistics", "adm", None, ("fid", "is")),
        ("statistics", "valeo", None, ("fid", "is")),
        ("images", "valeo", None, ("fid", "is", "prdc")),
        ("images", "valeo", ("sfid",), ("sfid",)),
        ("images", "dimo", ("prdc", "is"), ("is", "prdc")),
        ("none", "dimo", ("is",), ("is",)),
        ("images", "dimo", None, ("fid", "is", "prdc")),
        ("images", "adm", None, ("fid", "is", "sfid", "prdc")),
        ("features", "dimo", ("fid",), "features.npz has neither mu and sigma nor images, which"),
        ("statistics", "dimo", ("fid", "prdc"), "statistics.npz has neither images .arr_0. nor"),
        ("both", "adm", ("sfid",), "both.npz has no mu_s and sigma_s, which sFID needs"),
        ("both", "adm", ("fid", "kid"), "there is no metric kid; there are fid, is, sfid, prdc"),
        ("none", "dimo", None, "fid needs a reference; give --reference"),
    ],
)
def test_what_a_reference_can_serve(opened, which, protocol, asked, chosen):
    arguments = (asked, opened[which], PROTOCOLS[protocol])
    if isinstance(chosen, str):
        with pytest.raises(InputError, match=chosen):
            references.choose_metrics(*arguments)
        return
    found, left_out = references.choose_metrics(*arguments)
    assert found == chosen
    missing = set(PROTOCOLS[protocol].metrics if asked is None else asked) - set(chosen)
    assert {text.split()[1].rstrip(":") for text in left_out} == missing


def test_only_the_protocol_of_real_images_leaves_stored_statistics_aside(opened):
    assert opened["both"].fid_moments(PROTOCOLS["dimo"]) is opened["both"].moments
    assert opened["both"].fid_moments(PROTOCOLS["valeo"]) is None
    stored = opened["statistics"]
    assert stored.fid_moments(PROTOCOLS["valeo"]) is stored.moments


def test_what_is_written_reads_back(tmp_path):
    np.savez(tmp_path / "real.npz", arr_0=PIXELS)
    images = image_sets.open_set(tmp_path / "real.npz")
    store = FeatureStore(tmp_path, images, picture_files.extractor(), "reference")
    store.fill()
    path = tmp_path / "reference.npz"
    references.write(path, store, {"weights": "plain", "resizer": "none"})
    found = references.open_reference(str(path))
    features = picture_files.plain_features(PIXELS)
    np.testing.assert_array_equal(found.features, features["2048"])
    for moments, name in ((found.moments, "2048"), (found.spatial, "spatial")):
        rows = features[name].astype(np.float64)
        np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-14)
        np.testing.assert_allclose(moments.covariance, np.cov(rows.T), rtol=1e-12, atol=1e-15)
    assert found.settings["weights"] == "plain" and found.settings["num"] == 10
    assert found.settings["pixels"] == store.pixel_hash()
    # NumPy's own reading, as other programs do it.
    with np.load(path) as data:
        assert set(data) == {"mu", "sigma", "mu_s", "sigma_s", "features", "settings"}
        assert json.loads(str(data["settings"]))["resizer"] == "none"
