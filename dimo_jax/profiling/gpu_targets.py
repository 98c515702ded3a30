"""NVIDIA GPUs as XLA's compiler must know them to compile without one.

The names are those of devices.DEVICES.
"""

import dataclasses

from dimo_jax.profiling import devices

# What is the same on every board from compute capability 8.0 on (CUDA C++ Programming Guide, table
# of technical specifications).
_COMMON = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
}


@dataclasses.dataclass(frozen=True)
class GpuTarget:
    """One board, as its driver reports it.

    Attributes:
        capability: CUDA's compute capability.
        cores: streaming multiprocessors.
        fpus_per_core: float32 units of one.
        threads_per_core: that one can hold.
        shared_memory_per_core: bytes.
        shared_memory_per_block: bytes that a block can have on request.
        l2_bytes: of the cache that all cores share.
        clock_ghz: highest clock of the cores.
        memory_bytes: of the card, as CUDA reports it; less than its nominal size.
        gb_per_second: peak bandwidth of that memory, in 1e9 bytes a second.
        link_gb_per_second: what a card can receive from the others of its node.
    """

    capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    threads_per_core: int
    shared_memory_per_core: int
    shared_memory_per_block: int
    l2_bytes: int
    clock_ghz: float
    memory_bytes: int
    gb_per_second: float
    link_gb_per_second: int


# Sources: OpenXLA's dumps of real boards, xla/backends/gpu/target_config/specs/{a100_sxm_40,
# a100_sxm_80,h100_sxm,h200,b200}.txtpb. The L40S: cores, caches, clock and memory as CUDA's
# deviceQuery prints them, 18 Gbit/s on 384 bits; what one core has, CUDA's guide for 8.9. Links:
# half of what NVIDIA's data sheets give for both directions of NVLink (L40S: of PCIe 4.0 x 16).
TARGETS = {
    "a100_40gb": GpuTarget(
        (8, 0), 108, 64, 2048, 167936, 166912, 41943040, 1.41, 42331013120, 1555.2, 300
    ),
    "a100": GpuTarget(
        (8, 0), 108, 64, 2048, 167936, 166912, 41943040, 1.41, 85100068864, 2039.04, 300
    ),
    "h100": GpuTarget(
        (9, 0), 132, 128, 2048, 233472, 232448, 52428800, 1.98, 84942979072, 3352.32, 450
    ),
    "h200": GpuTarget(
        (9, 0), 132, 128, 2048, 233472, 232448, 52428800, 1.98, 151397597184, 4800.0, 450
    ),
    "b200": GpuTarget(
        (10, 0), 148, 128, 2048, 233472, 232448, 132644864, 1.965, 191514411008, 7672.32, 900
    ),
    "l40s": GpuTarget(
        (8, 9), 142, 128, 1536, 102400, 101376, 100663296, 2.52, 47803596800, 864.0, 32
    ),
}


def find(device: devices.Device | None) -> GpuTarget | None:
    """Return what the compiler must know of a device; None for what is no GPU."""
    return next((x for name, x in TARGETS.items() if devices.DEVICES[name] is device), None)


def text(target: GpuTarget, kind: str) -> str:
    """Return a target as XLA reads it: a GpuTargetConfigProto in text form.

    Args:
        target: the board.
        kind: what jax.Device.device_kind is to be.
    """
    major, minor = target.capability
    # From 9.0 on XLA compiles for the one generation, "9.0a", as it does where there is a device.
    extension = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    fields = {
        **_COMMON,
        "core_count": target.cores,
        "fpus_per_core": target.fpus_per_core,
        "threads_per_core_limit": target.threads_per_core,
        "shared_memory_per_core": target.shared_memory_per_core,
        "shared_memory_per_block_optin": target.shared_memory_per_block,
        "l2_cache_size": target.l2_bytes,
        "clock_rate_ghz": target.clock_ghz,
        "device_memory_size": target.memory_bytes,
        "memory_bandwidth": round(target.gb_per_second * 1e9),
    }
    lines = [f"  {name}: {value}" for name, value in fields.items()]
    return "\n".join(
        [
            "gpu_device_info {",
            *lines,
            f"  cuda_compute_capability {{ major: {major} minor: {minor} {extension} }}",
            "}",
            'platform_name: "CUDA"',
            # The oldest cuDNN that JAX's plug-in accepts (jax 0.10).
            "dnn_version_info { major: 9 minor: 8 patch: 0 }",
            f'device_description_str: "{kind}"',
        ]
    )
