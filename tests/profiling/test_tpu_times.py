"""A TPU program's predicted time: against the chip's peak, and by layer."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dimo_jax.models import attention_kernel
from dimo_jax.parallel import backend, mesh
from dimo_jax.profiling import devices, topologies, tpu_times

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="the wheel libtpu is not installed"
)
SLICES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def compiled(kind, function, *shapes):
    found, device = topologies.find(SLICES[kind])
    one = NamedSharding(Mesh(np.array(found[:1]), mesh.AXES[:1]), PartitionSpec())
    given = [jax.ShapeDtypeStruct(x, jnp.bfloat16, sharding=one) for x in shapes]
    text = jax.jit(function, out_shardings=one).lower(*given).compile().as_text()
    return text, device


def predicted(text, device, operations=1):
    result = {"collectives_bytes": {}, "flops": operations, "devices": 1, "batch_size": 1}
    return tpu_times.facts(text, device, result)["predicted"]


@pytest.mark.parametrize("kind", SLICES)
def test_a_large_product_is_near_the_peak_at_the_clock(kind):
    size = 4096
    found = predicted(*compiled(kind, lambda a, b: a @ b, (size, size), (size, size)), 2 * size**3)
    assert 0.8 < found["share_of_peak"] < 1.02


@pytest.mark.parametrize("kind", SLICES)
def test_a_clock_is_the_peak_over_the_arrays(kind):
    device = devices.DEVICES[kind]
    side = 256 if kind == "v6e" else 128
    peak = 2 * 4 * side**2 * device.cores * device.clock_ghz * 1e9
    assert peak == pytest.approx(device.bf16_tflops * 1e12, rel=0.003)


def test_a_loop_counts_as_often_as_it_runs():
    def repeated(times):
        def body(x, _):
            return jnp.tanh(x @ x), None

        return lambda x: jax.lax.scan(body, x, None, length=times)[0]

    few, many = (
        predicted(*compiled("v5e", repeated(n), (1024, 1024)))["step_seconds"] for n in (3, 30)
    )
    assert 9 < many / few < 11


def test_attentions_kernel_counts_and_is_named_by_its_direction():
    shape = (4, 257, 16, 48)

    def both(query, ct):
        with jax.named_scope("generator"):
            y, pull = jax.vjp(lambda q: attention_kernel.attend(q, q, q), query)
            return y, *pull(ct)

    text, device = compiled("v5e", both, shape, shape)
    parts = predicted(text, device)["parts"]["generator"]
    # 4 images of 16 heads; 33 by 3 registers of scores.
    registers = 4 * 16 * 33 * 3
    assert parts["attention forward"] == pytest.approx(registers * 5.8 / 1.5e9, rel=0.5)
    assert parts["attention backward"] == pytest.approx(registers * 11 / 1.5e9, rel=0.5)
    assert parts["attention forward"] > registers * 5.8 / 1.5e9


# MaskGit at 256 pixels; Meissonic's image and text, whose queries come in several pieces.
@pytest.mark.parametrize("shape", [(2, 257, 16, 48), (2, 1101, 8, 128)])
@pytest.mark.parametrize("kind", SLICES)
def test_attentions_kernel_compiles_for_every_generation(kind, shape):
    def both(query, key, value, ct):
        y, pull = jax.vjp(attention_kernel.attend, query, key, value)
        return y, *pull(ct)

    text, _ = compiled(kind, both, *[shape] * 4)
    assert text.count(tpu_times._KERNEL_CALL) == 2


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        ("jit(run)/jvp(generator)/M/Block/mlp_in/dot_general", ("generator", "MLP forward")),
        (
            "jit(run)/transpose(jvp(auxiliary))/M/Block/attention/query/dot_general",
            ("auxiliary", "projections backward"),
        ),
        ("jit(run)/teacher/M/Block/attention_norm/mul", ("teacher", "norms forward")),
        (
            "jit(run)/teacher/M/Block/attention/bhqd,bhkd->bhqk/dot_general",
            ("teacher", "attention forward"),
        ),
        (
            "jit(run)/teacher/M/Block/attention/shard_map/attention_forward_48/pallas_call",
            ("teacher", "attention forward"),
        ),
        ("jit(run)/teacher/M/last/dot_general", ("teacher", "embedding and head forward")),
        ("jit(draw)/MaskGitModule/Block/mlp_in/dot_general", ("network", "MLP forward")),
        ("jit(run)/divergence/sub", ("divergence", "")),
        ("jit(run)/vmap(sampling)/argmax", ("sampling", "")),
        ("", ("other", "")),
    ],
)
def test_an_instruction_belongs_to_a_network_a_layer_and_a_direction(op_name, part):
    assert tpu_times._part(op_name) == part


def test_after_a_plan_the_next_command_inherits_no_signs_of_a_tpu():
    # JAX sets TPU_SKIP_MDS_QUERY itself.
    assert set(backend.NO_TPU) & set(os.environ) <= {"TPU_SKIP_MDS_QUERY"}


def test_a_prediction_in_words():
    parts = {"teacher": {"MLP forward": 0.002}, "generator": {"MLP forward": 0.001}, "ema": 0.0005}
    result = {
        "batch_size": 7,
        "predicted": {
            "step_seconds": 0.0035,
            "share_of_peak": 0.5,
            "parts": parts,
            "collectives_seconds": 0.001,
        },
    }
    result["predicted"]["leaves_out"] = "the host"
    text = "\n".join(tpu_times.lines(result))
    for words in ("3.5 ms, 50% of the peak, 2000 images/s", "ema 0.5", "left out is the host"):
        assert words in text
    row = next(line for line in text.splitlines() if line.startswith("MLP forward"))
    assert row.split() == ["MLP", "forward", "2.00", "1.00"]
