"""From the config to how networks are computed."""

from configs import imagenet
from dimo_jax.parallel import sharding
from dimo_jax.training import settings


def test_the_kernel_for_tpus_is_demanded_where_there_is_a_mesh_and_wished_for_elsewhere():
    config = imagenet.get_config("smoke").to_dict() | {"attention": "pallas"}
    layout = sharding.layout(config["mesh"])
    on_mesh = settings.compute_of(config, layout)
    assert on_mesh.attention == "pallas" and on_mesh.mesh is layout.mesh
    assert settings.compute_of(config).attention == "auto"
    for name in ("xla", "cudnn", "auto"):
        assert settings.compute_of(config | {"attention": name}).attention == name


def test_the_ratios_of_later_steps_fall_to_a_third_and_travel_with_the_bundle():
    config = imagenet.get_config("smoke").to_dict()
    plain = settings.sampler_of(config)
    assert set(plain) == {"ratio", "sigma", "temperature", "top_k", "top_p"}
    for steps, ratios in ((2, [0.6667]), (3, [0.6667, 0.3333]), (4, [0.6667, 0.5, 0.3333])):
        config["distill"]["steps"] = steps
        assert settings.sampler_of(config)["step_ratios"] == ratios
    config["distill"]["step_ratios"] = (0.5, 0.4, 0.9)
    found = settings.sampler_of(config)
    assert found == {**plain, "step_ratios": [0.5, 0.4, 0.9], "step_sigma": 0.0, "redraw": False}
    del config["distill"]["steps"]  # of a run before there was the field
    assert settings.sampler_of(config) == plain


def test_a_generator_may_be_sampled_from_another_ratio_than_it_was_trained_from():
    config = imagenet.get_config("smoke").to_dict()
    assert settings.sampler_of(config)["ratio"] == 0.6
    config["sampler"]["ratio"] = (0.8, 0.8)
    assert settings.sampler_of(config)["ratio"] == 0.8
    config["sampler"]["ratio"] = (0.7, 0.9)
    assert settings.sampler_of(config)["ratio"] == [0.7, 0.9]
    del config["sampler"]["ratio"]  # of a run before there was the field
    assert settings.sampler_of(config)["ratio"] == 0.6
