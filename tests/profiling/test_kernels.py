"""Kernels of programs for NVIDIA GPUs: kinds, operations and bytes, in text as XLA writes it."""

import pytest

from dimo_jax.profiling import kernels
from dimo_jax.profiling.kernels import Kernel

# A loop of 24 layers around: a product in Triton, a loop that reads a slice of what is stacked over
# layers and writes another one in place, cuDNN's attention. Then what runs once.
PROGRAM = """
%gemm.1_computation (a: bf16[128,64], b: bf16[64,32]) -> bf16[128,32] {
  %a = bf16[128,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  ROOT %dot.1 = bf16[128,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_update (p.0: f32[24,128], p.1: s32[], p.2: f32[24,128]) -> f32[24,128] {
  %p.2 = f32[24,128]{1,0} parameter(2)
  %p.1 = s32[] parameter(1)
  %p.0 = f32[24,128]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %scaled = f32[24,128]{1,0} convert(%p.0)
  %layer = f32[1,128]{1,0} dynamic-slice(%scaled, %p.1, %zero), dynamic_slice_sizes={1,128}
  %twice = f32[1,128]{1,0} add(%layer, %layer)
  ROOT %new = f32[24,128]{1,0} dynamic-update-slice(%p.2, %twice, %p.1, %zero)
}

%body (t: (s32[], f32[24,128])) -> (s32[], f32[24,128]) {
  %t = (s32[], f32[24,128]{1,0}, f32[24,128]{1,0}, bf16[128,64]{1,0}, bf16[64,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %stack = f32[24,128]{1,0} get-tuple-element(%t), index=1
  %kept = f32[24,128]{1,0} get-tuple-element(%t), index=2
  %x = bf16[128,64]{1,0} get-tuple-element(%t), index=3
  %w = bf16[64,32]{1,0} get-tuple-element(%t), index=4
  %gemm.1 = bf16[128,32]{1,0} fusion(%x, %w), kind=kCustom, calls=%gemm.1_computation, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %update = f32[24,128]{1,0} fusion(%stack, %i, %kept), kind=kLoop, calls=%fused_update
  %q = bf16[2,258,4,16]{3,2,1,0} bitcast(%gemm.1)
  %k = bf16[2,130,4,16]{3,2,1,0} bitcast(%gemm.1)
  %attention = (bf16[2,4,258,16]{3,1,2,0}, f32[2,4,258]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax"
  %gradient = (bf16[2,4,258,16]{3,1,2,0}, bf16[2,4,130,16]{3,1,2,0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  ROOT %tuple.1 = (s32[], f32[24,128]{1,0}) tuple(%i, %update)
}

%condition (t: (s32[], f32[24,128])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%add (l: f32[], r: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%l, %r)
}

%fused_norm (p.0: f32[24,128]) -> (f32[24], f32[24,128]) {
  %p.0 = f32[24,128]{1,0} parameter(0)
  %none = f32[] constant(0)
  %total = f32[24]{0} reduce(%p.0, %none), dimensions={1}, to_apply=%add
  %wide = f32[24,128]{1,0} exponential(%p.0)
  ROOT %both = (f32[24]{0}, f32[24,128]{1,0}) tuple(%total, %wide)
}

ENTRY %main (a: f32[24,128]) -> f32[24,128] {
  %a = f32[24,128]{1,0} parameter(0)
  %loop = (s32[], f32[24,128]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  %norm = (f32[24]{0}, f32[24,128]{1,0}) fusion(%a), kind=kInput, calls=%fused_norm
  %softmax = (f32[24]{0}, f32[24,128]{1,0}) fusion(%a), kind=kCustom, calls=%fused_norm, backend_config={"fusion_backend_config":{"kind":"__triton"}}
  %copy.1 = f32[24,128]{0,1} copy(%a)
  %gathered = f32[48,128]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  ROOT %blas = (f32[128,128]{1,0}, s8[1024]{0}) custom-call(%a, %copy.1), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"]}}}
}
"""  # noqa: E501

STACK, LAYER = 24 * 128 * 4, 128 * 4


def test_every_kernel_with_its_operations_and_bytes():
    attention = 2 * 4 * 258 * 130 * 16
    queries, keys = 2 * 258 * 4 * 16 * 2, 2 * 130 * 4 * 16 * 2
    assert kernels.find(PROGRAM) == [
        Kernel("products", 24, 2 * 128 * 32 * 64, 2 * (128 * 64 + 64 * 32), 2 * 128 * 32),
        # One layer is read of what is stacked, with the index, and one is written; the rest stays.
        Kernel("loops", 24, 0, LAYER + 4, LAYER),
        Kernel("cudnn", 24, 2 * 2 * attention, queries + 2 * keys, queries + 2 * 4 * 258 * 4),
        Kernel("cudnn", 24, 5 * 2 * attention, queries + 2 * keys, queries + keys),
        Kernel("reductions", 1, 0, STACK, STACK + 24 * 4),
        Kernel("triton", 1, 0, STACK, STACK + 24 * 4),
        Kernel("others", 1, 0, STACK, STACK),
        Kernel("products", 1, 2 * 128 * 128 * 24, 2 * STACK, 128 * 128 * 4),
    ]


def test_they_are_counted_as_often_as_they_start():
    counted = {"products": 25, "cudnn": 48, "triton": 1, "loops": 24, "reductions": 1, "others": 1}
    assert kernels.counts(kernels.find(PROGRAM)) == counted


def test_the_bound_is_the_longer_of_computing_and_moving():
    given = [
        Kernel("products", 10, 4000, 100, 100),  # computes for 4 s, moves for 2
        Kernel("products", 1, 100, 150, 150),  # computes for 0.1 s, moves for 3
        Kernel("loops", 3, 0, 30, 170),
    ]
    assert kernels.least_seconds(given, 1000.0, 100.0, 0) == {"products": 43.0, "loops": 6.0}
    # What is read may be in the cache already, and what is written may stay there.
    found = kernels.least_seconds(given, 1000.0, 100.0, 50)
    assert found == pytest.approx({"products": 42.0, "loops": 3.6})
