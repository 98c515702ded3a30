"""Plans for NVIDIA GPUs on a machine without one: by the compiler itself, and by the command."""

import importlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dimo_jax.common.errors import InputError
from dimo_jax.parallel import mesh, sharding
from dimo_jax.profiling import collectives, devices, gpu_targets, kernels, plans, topologies
from dimo_jax.training import programs, settings
from tests.helpers.command_line import command, finish

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
needs_plugin = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, PLUGINS)),
    reason="the compiler for NVIDIA GPUs is not installed: pip install -e '.[gpu_plan]'",
)
CONFIG = "--config=configs/imagenet.py:smoke"
# One product, 24 times.
PROGRAM = """
%gemm (a: bf16[128,64], b: bf16[64,32]) -> bf16[128,32] {
  %a = bf16[128,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  ROOT %dot = bf16[128,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (x: bf16[128,64], w: bf16[64,32]) -> bf16[128,32] {
  %x = bf16[128,64]{1,0} parameter(0)
  %w = bf16[64,32]{1,0} parameter(1)
  ROOT %product = bf16[128,32]{1,0} fusion(%x, %w), kind=kCustom, calls=%gemm
}

ENTRY %main (a: bf16[128,64]) -> bf16[128,32] {
  %loop = bf16[128,32]{1,0} while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"24"}}
}
"""  # noqa: E501


def text_for(topology, function, *shapes, **options):
    found, _ = topologies.find(topology)
    whole = NamedSharding(mesh.build(1, -1, found), PartitionSpec())
    given = [jax.ShapeDtypeStruct(x, jnp.bfloat16, sharding=whole) for x in shapes]
    lowered = jax.jit(function, out_shardings=whole).lower(*given)
    return lowered.compile(compiler_options=options).as_text()


def test_every_gpu_is_described_by_its_own_figures():
    for name, target in gpu_targets.TARGETS.items():
        device = devices.DEVICES[name]
        assert gpu_targets.find(device) is target
        # What the maker sells as so many gigabytes, and what of it a program sees.
        assert 0.91 < target.memory_bytes / 1e9 / device.hbm_gib < 1.08
        assert target.gb_per_second == pytest.approx(device.hbm_gb_per_second, rel=0.05)
        text = gpu_targets.text(target, device.kinds[0])
        assert f"device_memory_size: {target.memory_bytes}\n" in text
    assert gpu_targets.find(devices.DEVICES["v5e"]) is None and gpu_targets.find(None) is None


@pytest.mark.parametrize(
    ("topology", "num_slices", "words"),
    [
        ("h100", 1, "--topology=h100 is none of .*h100:8x4"),
        ("x100:8", 1, "--topology=x100:8 is none of"),
        ("h100:8x4x2", 1, "is none of"),
        ("h100:" + "9" * 30, 1, "is none of"),
        ("h100:0", 1, "give 1 to 8 GPUs of a node, and 1 to 1024 nodes, as in h100:8 or h100:8x4"),
        ("a100:8x0", 1, "give 1 to 8 GPUs of a node, and 1 to 1024 nodes, as in a100:8"),
        ("h100:9999999", 1, "give 1 to 8 GPUs"),
        ("h100:8x9999999", 1, "and 1 to 1024 nodes"),
        ("h100:8", 2, "--num_slices is for TPUs; several nodes of GPUs are --topology=h100:8x4"),
    ],
)
def test_what_is_no_number_of_gpus_is_refused(topology, num_slices, words):
    with pytest.raises(InputError, match=words):
        topologies.find(topology, num_slices)


def test_without_the_plugin_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(topologies, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install -e '.\\[gpu_plan\\]' \\(no GPU is needed\\)"):
        topologies.find("h100:8")


@pytest.mark.parametrize(
    ("gib", "fraction", "verdict"),
    [
        (59.3, 0.75, "verdict: fits"),
        (59.4, 0.95, "verdict: fits in more memory than XLA takes by default: set XLA_PYTHON_CLIENT"
         "_MEM_FRACTION=0.95 in the run's environment; or give a smaller --batch_size"),
        (75.1, 0.95, "verdict: fits in more memory than XLA takes by default"),
        (75.2, None, "verdict: does not fit: give a smaller --batch_size"),
    ],
)  # fmt: skip
def test_memory_is_held_against_what_xla_takes(monkeypatch, gib, fraction, verdict):
    memory = dict.fromkeys(("arguments_bytes", "temporaries_bytes", "new_results_bytes"), 0)
    memory["peak_bytes"] = round(gib * 2**30)
    monkeypatch.setattr(plans, "_compile", lambda *_: (memory, PROGRAM, None))
    config = importlib.import_module("configs.imagenet").get_config("smoke").to_dict()
    layout = sharding.layout(config["mesh"], jax.devices()[:1])
    sampling, device = plans.Sampling(batch_size=4), devices.DEVICES["h100"]
    found = plans.plan(config, "sample", layout, device, sampling, lambda _: None)
    assert found["mem_fraction"] == fraction and found["fits"] == (fraction is not None)
    assert plans.text(found).splitlines()[-1].startswith(verdict)
    assert "59.33 GiB (75% of the card) by default, 75.15 with" in plans.text(found)
    assert json.loads(json.dumps(found)) == found
    # The products of PROGRAM at the peak; all that it moves is in the cache.
    seconds = found["predicted"]["step_seconds"]
    assert seconds == pytest.approx(24 * 2 * 128 * 32 * 64 / 989e12)
    assert found["kernels"] == {"products": 24}


def test_without_cudnn_it_says_how_to_install_it(monkeypatch):
    def lower():
        raise RuntimeError("cuDNN not found.")  # as jax 0.10 words it

    monkeypatch.setitem(plans.PROGRAMS, "sample", lambda *_: (lower, 1, 1))
    config = importlib.import_module("configs.imagenet").get_config("smoke").to_dict()
    layout = sharding.layout(config["mesh"], jax.devices()[:1])
    with pytest.raises(InputError, match="cuDNN not found. Install it with: pip install -e"):
        plans.plan(config, "sample", layout, None, plans.Sampling(), lambda _: None)


@needs_plugin
@pytest.mark.parametrize("name", sorted(gpu_targets.TARGETS))
def test_every_gpu_compiles_a_product_and_its_operations_are_counted(name):
    found, device = topologies.find(f"{name}:1")
    assert [x.device_kind for x in found] == [devices.DEVICES[name].kinds[0]]
    assert device is devices.DEVICES[name]

    def chained(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=5)[0]

    text = text_for(f"{name}:1", chained, (512, 256), (256, 256))
    found = kernels.find(text)
    assert sum(x.times * x.operations for x in found) == 5 * 2 * 512 * 256 * 256
    assert kernels.counts(found)["products"] == 5


@needs_plugin
def test_a_product_in_cublas_is_counted_without_its_scratch_space():
    text = text_for("a100:1", jnp.matmul, (512, 256), (256, 384), xla_gpu_enable_triton_gemm=False)
    assert "__cublas" in text
    expected = (2 * 512 * 256 * 384, 2 * (512 * 256 + 256 * 384), 2 * 512 * 384)
    assert kernels.find(text) == [kernels.Kernel("products", 1, *expected)]


@needs_plugin
def test_cudnns_attention_compiles_and_is_counted_with_its_gradient():
    def loss(q, k, v):
        attended = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        return attended.astype(jnp.float32).sum()

    shape = (4, 130, 2, 32)
    text = text_for("h100:1", jax.grad(loss, argnums=(0, 1, 2)), *[shape] * 3)
    found = [x for x in kernels.find(text) if x.kind == "cudnn"]
    assert [x.operations for x in found] == [n * 2 * 4 * 2 * 130 * 130 * 32 for n in (2, 5)]


@needs_plugin
def test_nodes_are_slices_that_send_what_a_gather_must():
    found, _ = topologies.find("h100:8x4")
    assert [x.process_index for x in found] == [n // 8 for n in range(32)]
    built = mesh.build(-1, 8, found)
    assert dict(built.shape) == {"data": 4, "fsdp": 8}
    # What parameters are sharded over is one node.
    assert [{x.process_index for x in row} for row in built.devices] == [{0}, {1}, {2}, {3}]
    rows = jax.ShapeDtypeStruct(
        (64, 128), jnp.bfloat16, sharding=NamedSharding(built, PartitionSpec("fsdp"))
    )
    whole = NamedSharding(built, PartitionSpec())
    text = jax.jit(lambda x: x * 2, out_shardings=whole).lower(rows).compile().as_text()
    assert collectives.bytes_by_kind(text) == {"all-gather": 64 * 128 * 2 * 7 // 8}


@needs_plugin
def test_parameters_are_not_sharded_across_nodes():
    found, _ = topologies.find("a100:8x2")
    with pytest.raises(InputError, match="data=1 is no multiple of the 2 slices"):
        mesh.build(1, 16, found)


@needs_plugin
def test_options_for_a_cpu_stay_with_cpus(monkeypatch):
    given = []
    jit = jax.jit
    monkeypatch.setattr(
        programs.jax,
        "jit",
        lambda f, **options: given.append(options.get("compiler_options")) or jit(f, **options),
    )
    config = importlib.import_module("configs.imagenet").get_config("smoke").to_dict()
    assert config["fast_compile"]
    network = settings.network_of(config, 16, 30)
    params = jax.eval_shape(network.init, jax.random.key(0))
    for found, expected in ((jax.devices()[:1], True), (topologies.find("h100:1")[0], False)):
        layout = sharding.layout(config["mesh"], found)
        given.clear()
        programs.distill_program(config, network, network, params, layout)
        assert any(given) == expected


@needs_plugin
@pytest.mark.slow
@pytest.mark.long
def test_the_step_on_a_node_by_the_command(tmp_path):
    """What fits; attention by cuDNN, as on a GPU; a bound above what the products would take."""
    output = tmp_path / "plan.json"
    flags = ("--topology=h100:4", "--config.mesh.data=1", "--config.mesh.fsdp=4")
    flags += ("--config.mesh.min_shard_elements=1000", f"--output={output}")
    text, err = finish(command("plan", CONFIG, *flags))
    assert [line for line in err.splitlines() if not line.startswith("plan: ")] == []
    found = json.loads(output.read_text())
    assert found["fits"] and found["advice"] == [] and found["mem_fraction"] == 0.75
    assert found["memory_limits_bytes"]["0.95"] == int(0.95 * found["hbm_bytes"])
    assert set(found["kernels"]) >= {"products", "cudnn", "triton", "loops", "reductions"}
    predicted = found["predicted"]
    assert predicted["is_bound"] and predicted["share_of_peak"] <= 1.01
    assert predicted["step_seconds"] >= 0.99 * found["seconds_at_mfu"]["1.0"]
    seconds = {k: x for k, x in predicted["parts"].items() if k != "collectives"}
    assert predicted["step_seconds"] == pytest.approx(
        max(sum(seconds.values()), predicted["parts"]["collectives"])
    )
    for words in ("4 x NVIDIA H100 SXM", "(75% of the card)", "a bound", "verdict: fits"):
        assert words in text
