from dimo_jax.profiling import devices


def test_a_kind_as_jax_names_it_is_found():
    # TPU kinds differ between the runtime and the names people use.
    for kind, name in (("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"),
                       ("TPU v4", "v4"), ("NVIDIA H200", "h200")):  # fmt: skip
        assert devices.find(kind) is devices.DEVICES[name]
    for kind in ("cpu", "NVIDIA H100 PCIe", "TPU v4 lite"):
        assert devices.find(kind) is None


def test_no_kind_is_listed_twice_and_the_figures_are_of_one_order():
    kinds = [kind for device in devices.DEVICES.values() for kind in device.kinds]
    assert len(kinds) == len(set(kinds))
    for device in devices.DEVICES.values():
        # Operations for each byte of memory traffic at which both limits are reached.
        balance = device.bf16_tflops * 1e12 / (device.hbm_gb_per_second * 1e9)
        assert 100 < balance < 600, device.name
        assert 16 <= device.hbm_gib <= 180, device.name
