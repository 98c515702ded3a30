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
