"""Bytes between devices, from programs whose exchanges are known, in the notations XLA has."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dimo_jax.parallel import mesh
from dimo_jax.profiling import collectives


@pytest.fixture
def built():
    return mesh.build(1, 8)


def bytes_of(built, body, inputs, outputs):
    mapped = jax.shard_map(body, mesh=built, in_specs=inputs, out_specs=outputs, check_vma=False)
    given = jax.ShapeDtypeStruct((64, 16), jnp.float32)
    return collectives.bytes_by_kind(jax.jit(mapped).lower(given).compile().as_text())


ROWS, WHOLE = PartitionSpec("fsdp"), PartitionSpec()
SIZE = 64 * 16 * 4


def test_each_kind_by_its_own_rule(built):
    gather = functools.partial(jax.lax.all_gather, axis_name="fsdp", tiled=True)
    assert bytes_of(built, gather, ROWS, WHOLE) == {"all-gather": SIZE * 7 // 8}
    total = functools.partial(jax.lax.psum, axis_name="fsdp")
    assert bytes_of(built, total, WHOLE, WHOLE) == {"all-reduce": 2 * SIZE * 7 // 8}
    scatter = functools.partial(jax.lax.psum_scatter, axis_name="fsdp", tiled=True)
    assert bytes_of(built, scatter, WHOLE, ROWS) == {"reduce-scatter": SIZE // 8 * 7}
    shift = functools.partial(
        jax.lax.ppermute, axis_name="fsdp", perm=[(i, (i + 1) % 8) for i in range(8)]
    )
    assert bytes_of(built, shift, ROWS, ROWS) == {"collective-permute": SIZE // 8}


def test_a_loop_counts_as_often_as_it_runs(built):
    def body(x):
        step = lambda x, _: (jax.lax.psum(x * 0.5, "fsdp"), None)  # noqa: E731
        return jax.lax.scan(step, x, None, length=5)[0]

    assert bytes_of(built, body, WHOLE, WHOLE) == {"all-reduce": 5 * 2 * SIZE * 7 // 8}


def test_a_program_of_one_device_sends_nothing():
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile().as_text()
    assert collectives.bytes_by_kind(text) == {}


# As the TPU compiler writes them: groups by the names of axes, pieces of one operation in several
# computations, results with layouts.
TPU = """
%fused.1 (p: bf16[48,768]) -> bf16[768,768] {
  %all-gather.1 = bf16[768,768]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=4, replica_groups=GROUPS, dimensions={0}
}

%fused.2 (p: bf16[48,768]) -> bf16[768,768] {
  %all-gather.2 = bf16[768,768]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=4, replica_groups=GROUPS, dimensions={0}
}

%all-reduce-scatter.7 (p: f32[64]) -> f32[16] {
  %all-reduce.9 = f32[64]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %dynamic-slice.1 = f32[16]{0} dynamic-slice(%all-reduce.9, %i), dynamic_slice_sizes={16}
}

%all-reduce-scatter.8 (p: f32[64]) -> f32[16] {
  %all-reduce.10 = f32[64]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %dynamic-slice.2 = f32[16]{0} dynamic-slice(%all-reduce.10, %i), dynamic_slice_sizes={16}
}

%body (p: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %all-reduce.3 = (f32[]{:T(128)}, /*index=1*/bf16[8]{0}) all-reduce(%a, %b), channel_id=5, replica_groups={{0,1,2,3}}, to_apply=%add
}

%condition (p: (s32[], bf16[8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(24)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

ENTRY %main (p: bf16[48,768]) -> bf16[768,768] {
  %a = bf16[768,768]{1,0} fusion(%p), kind=kCustom, calls=%fused.1
  %b = bf16[768,768]{1,0} fusion(%p), kind=kCustom, calls=%fused.2
  %d = f32[16]{0} fusion(%e), kind=kCustom, calls=%all-reduce-scatter.7
  %f = f32[16]{0} fusion(%e), kind=kCustom, calls=%all-reduce-scatter.8
  %c = (s32[], bf16[8]) while(%t), condition=%condition, body=%bodyTRIPS
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("groups", "n"),
    [
        ("mesh['axis_0'=16,'axis_1'=1] {'axis_0'}", 16),
        ("mesh['axis_0'=2,'axis_1'=8] {'axis_0','axis_1'}", 16),
        ("mesh['axis_0'=16] {'axis_0':(1)4}", 4),
        ("mesh['axis_0'=1,'axis_1'=8,'axis_2'=4], device_ids=([4,8]T(1,0)) {'axis_1'}", 8),
        ("[2,8]<=[16]", 8),
        ("[4,4]<=[4,4]T(1,0)", 4),
        ("{{0,1},{2,3}}", 2),
    ],
)
@pytest.mark.parametrize("trips", ["", ', backend_config={"known_trip_count":{"n":"24"}}'])
def test_every_notation_of_groups_and_loops(groups, n, trips):
    text = TPU.replace("GROUPS", groups).replace("TRIPS", trips)
    found = collectives.bytes_by_kind(text)
    whole = 768 * 768 * 2
    assert found == {
        "all-gather": round(whole * (n - 1) / n),
        "all-reduce": 24 * 2 * (4 + 16) * 3 // 4,
        "reduce-scatter": 2 * 64 * 4 * 3 // 4,
    }


# As the compiler for NVIDIA GPUs writes them: several arrays in one exchange, which is started and
# waited for.
STARTED = """
ENTRY %main (p: bf16[8,64], q: f32[4]) -> bf16[64,64] {
  %p = bf16[8,64]{1,0} parameter(0)
  %q = f32[4]{0} parameter(1)
  %g = ((bf16[8,64]{1,0}, f32[4]{0}), (bf16[64,64]{1,0}, f32[32]{0})) all-gather-start(%p, %q), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %d = (bf16[64,64]{1,0}, f32[32]{0}) all-gather-done(%g)
  %s = ((bf16[64,64]{1,0}, f32[32]{0}), (bf16[8,64]{1,0}, f32[4]{0})) reduce-scatter-start(%x, /*index=1*/%y), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
  %r = (bf16[64,64]{1,0}, f32[32]{0}) all-reduce-start(%x, %y), channel_id=3, replica_groups=[1,8]<=[8], to_apply=%add
  %m = (f32[32]{0}, f32[32]{0}, u32[], u32[]) collective-permute-start(%y), channel_id=4, source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501


def test_several_arrays_in_one_exchange_count_all():
    whole = 64 * 64 * 2 + 32 * 4
    assert collectives.bytes_by_kind(STARTED) == {
        "all-gather": whole * 7 // 8,
        "reduce-scatter": whole // 8 * 7,
        "all-reduce": 2 * whole * 7 // 8,
        "collective-permute": 32 * 4,
    }


def test_shardings_alone_make_the_same_gather(built):
    whole, rows = (NamedSharding(built, spec) for spec in (WHOLE, ROWS))
    given = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows)
    text = jax.jit(lambda x: x * 2, out_shardings=whole).lower(given).compile().as_text()
    assert collectives.bytes_by_kind(text) == {"all-gather": SIZE * 7 // 8}
