"""Whole evaluations against torch-fidelity and clean-fid, on the same files and random weights."""

from tests.helpers import torch_peers  # noqa: F401

# isort: split

import dataclasses

import numpy as np
import pytest
import torch
from cleanfid import fid
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from dimo_jax import models
from dimo_jax.evaluation import references
from dimo_jax.evaluation.evaluate_images import Evaluator
from dimo_jax.evaluation.features.feature_store import Extractor
from dimo_jax.evaluation.features.inception_features import InceptionFeatures
from dimo_jax.evaluation.images import image_sets
from dimo_jax.evaluation.metrics.protocols import PROTOCOLS
from tests.helpers import inception_weights, picture_files

# On one worker, which makes the fixtures once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("parity")]

# torch-fidelity takes half a minute for the FID of 2048 features.
FEW = "192"
NUM_SAMPLES, NUM_REAL = 10, 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(this package's network, the file of its weights for torch-fidelity)."""
    params = inception_weights.random_params()
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    inception_weights.save_torch(path, params)
    network = models.build(inception_weights.config())
    outputs = (FEW, "2048", "logits_unbiased", "spatial")
    return InceptionFeatures(network, params, outputs, batch_size=2), path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    pixels = inception_weights.textured_images(NUM_SAMPLES + NUM_REAL, 64)
    return tuple(
        picture_files.write_folder(root / name, x)
        for name, x in (("samples", pixels[:NUM_SAMPLES]), ("real", pixels[NUM_SAMPLES:]))
    )


def test_an_evaluation_equals_torch_fidelitys(weights, folders, tmp_path):
    network, path = weights
    extractor = Extractor(lambda x: {**(y := network(x)), "2048": y[FEW]}, {}, 2)
    protocol = dataclasses.replace(
        PROTOCOLS["dimo"], reference="images", closed=True, num_neighbours=1
    )
    reference = references.open_reference(str(folders[1]))
    evaluator = Evaluator(reference, extractor, protocol, ("fid", "is", "prdc"), tmp_path)
    row = evaluator.evaluate(image_sets.open_set(folders[0]))
    expected = calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        **{"isc": True, "fid": True, "prc": True, "cuda": False, "cache": False, "verbose": False},
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(path),
        feature_layer_fid=FEW,
        feature_layer_prc=FEW,
        prc_neighborhood=1,
        batch_size=2,
        save_cpu_ram=True,  # no worker processes
    )
    found = {name: value.mean for name, value in row.metrics.items()}
    # Fewer images than features: the eigenvalues of torch-fidelity's singular product are noisy.
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)
    assert found["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found["precision"] == pytest.approx(expected["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(expected["recall"], abs=1e-6)
    assert 0 < found["precision"] < 1 or 0 < found["recall"] < 1


def shifted_resize(x):
    """The resize inside the network file that clean-fid's legacy_tensorflow mode downloads."""
    theta = torch.eye(2, 3)
    for axis, size in enumerate((x.shape[3], x.shape[2])):
        theta[axis, 2] += 1 / size - 1 / 299
    grid = torch.nn.functional.affine_grid(
        theta[None].expand(len(x), -1, -1), [len(x), 3, 299, 299], align_corners=False
    )
    return torch.nn.functional.grid_sample(
        x, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def test_features_equal_those_of_the_papers_clean_fid_mode(weights, folders):
    network, path = weights
    images = image_sets.open_set(folders[1])
    peer = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(path))
    trunk = torch.nn.Sequential(*list(peer.children())[:-1])  # all but the classifier
    expected = fid.get_files_features(
        [images.name(i) for i in range(2)],
        model=lambda x: trunk((shifted_resize(x) - 128) / 128).flatten(1),
        num_workers=0,
        device=torch.device("cpu"),
        mode="legacy_tensorflow",
        verbose=False,
    )
    assert np.abs(np.diff(expected, axis=0)).mean() > 0.02
    found = network(images.read(0, 2).pixels)["2048"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.5e-5)
