"""What accelerators can do: peak of bfloat16 products, memory and its bandwidth.

The figures are the makers' for one JAX device: a whole GPU, a whole TPU chip (the two cores of a
v4 or v5p are one device). Dense products: NVIDIA's data sheets also give twice as much for sparse
ones, which training does not reach.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """One kind of device.

    Attributes:
        name: as people call it.
        kinds: what jax.Device.device_kind says of it.
        bf16_tflops: peak of bfloat16 matrix products with float32 sums, in 1e12 operations a
            second.
        hbm_gib: memory, nominal; what a program gets is a little less (15.75 of a v5e's 16).
        hbm_gb_per_second: bandwidth of that memory, in 1e9 bytes a second.
        clock_ghz: of a TPU's cores, 0 for a GPU.
        cores: that a TPU's program runs on together.
        link_gb_per_second: what a TPU receives from all its neighbours together, in 1e9 bytes a
            second.
    """

    name: str
    kinds: tuple[str, ...]
    bf16_tflops: int
    hbm_gib: int
    hbm_gb_per_second: int
    clock_ghz: float = 0.0
    cores: int = 1
    link_gb_per_second: int = 0


# Sources: NVIDIA's data sheets of A100, H100 and H200, SXM boards, of L40S, and an eighth of what
# DGX B200's says; the PCIe and NVL boards are slower and are left out.
# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "Peak compute per chip (bf16)" and "HBM capacity and
# bandwidth"; half of "Bidirectional inter-chip interconnect bandwidth" (of v4: 2400 Gbps). A clock
# is the peak over the multiplications of a cycle, 4 arrays of 128 x 128 in each core, in v6e's of
# 256 x 256; tests hold it to what the compiler expects of a large product. Kinds of TPUs: jax's own
# list (jax 0.10, jax/_src/pallas/mosaic/tpu_info.py).
DEVICES: dict[str, Device] = {
    "a100_40gb": Device("NVIDIA A100 SXM 40 GB", ("NVIDIA A100-SXM4-40GB",), 312, 40, 1555),
    "a100": Device("NVIDIA A100 SXM 80 GB", ("NVIDIA A100-SXM4-80GB",), 312, 80, 2039),
    "h100": Device("NVIDIA H100 SXM", ("NVIDIA H100 80GB HBM3",), 989, 80, 3350),
    "h200": Device("NVIDIA H200 SXM", ("NVIDIA H200",), 989, 141, 4800),
    "b200": Device("NVIDIA B200 SXM", ("NVIDIA B200",), 2250, 180, 8000),
    "l40s": Device("NVIDIA L40S", ("NVIDIA L40S",), 362, 48, 864),
    "v4": Device("TPU v4", ("TPU v4",), 275, 32, 1200, 1.05, 2, 300),
    "v5e": Device("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197, 16, 819, 1.5, 1, 200),
    "v5p": Device("TPU v5p", ("TPU v5", "TPU v5p"), 459, 95, 2765, 1.75, 2, 600),
    "v6e": Device("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918, 32, 1640, 1.75, 1, 400),
}


def find(kind: str) -> Device | None:
    """Return the device of a kind, if it is known.

    Args:
        kind: jax.Device.device_kind.

    Returns:
        None for a CPU, whose peak differs from machine to machine, and for what is not listed.
    """
    return next((device for device in DEVICES.values() if kind in device.kinds), None)
