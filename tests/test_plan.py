"""Plans for machines that are not there, by the command itself."""

import importlib.util
import json
import math

import jax
import pytest

from configs import imagenet
from dimo_jax import models
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.parallel import backend, sharding
from dimo_jax.profiling import plans, topologies, tpu_times
from tests.helpers.command_line import command, finish

has_libtpu = importlib.util.find_spec("libtpu") is not None
CONFIG = "--config=configs/imagenet.py:smoke"
# The smoke run's network, written out.
MODEL = {"name": "maskgit", "num_tokens": 64, "codebook_size": 1024, "num_classes": 1000}
MODEL |= {"width": 64, "depth": 2, "heads": 2, "mlp_dim": 128, "dropout": 0.1}
MODEL |= {"predict_mask_id": True}


def plan(tmp_path, *arguments, optimized=False, config=CONFIG):
    output = tmp_path / "plan.json"
    started = command("plan", config, f"--output={output}", *arguments, optimized=optimized)
    text, _ = finish(started)
    return json.loads(output.read_text()), text


def test_a_plan_for_cpus(tmp_path):
    found, text = plan(tmp_path, "--topology=cpu:2", "--what=sample", "--batch_size=4")
    assert found["fits"] and found["hbm_bytes"] is None and found["devices"] == 2
    assert found["memory"]["arguments_bytes"] > 4 * 300_000
    assert "verdict: fits" in text and "mesh data 2 x fsdp 1" in text


def test_a_plan_of_di4c_advises_more_parts_of_the_mixture_first():
    config = imagenet.get_config("di4c")
    layout = sharding.layout(config.mesh.to_dict(), jax.devices()[:1])

    def advised(what="train", **changes):
        changed = config.copy_and_resolve_references()
        changed.distill.mixture.update(changes)
        return plans._advice(changed.to_dict(), what, {}, layout)

    # 32 replicas in 8 parts: twice as many, as long as they come out even.
    assert advised()[0] == "--config.distill.mixture.parts=16"
    assert advised(parts=16)[0] == "--config.distill.mixture.parts=32"
    for found in (advised(parts=32), advised(replicas=24), advised("sample")):
        assert not any("mixture" in line for line in found), found
    config.distill.method = "dimo"
    assert not any("mixture" in line for line in advised())


@pytest.mark.slow
@pytest.mark.long
def test_a_plan_counts_every_step_of_a_generator(tmp_path):
    flags = ("--topology=cpu:2", "--what=sample", "--batch_size=4")
    one, three = (plan(tmp_path, *flags, f"--config.distill.steps={k}")[0] for k in (1, 3))
    assert three["flops"] == 3 * one["flops"]


@pytest.mark.slow
@pytest.mark.long
def test_a_plan_with_text_counts_what_the_encoder_keeps(tmp_path):
    config = "--config=configs/meissonic.py:smoke"
    flags = ("--topology=cpu:2", "--what=sample", "--batch_size=4")
    flags += ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.min_shard_elements=1")
    found, text = plan(tmp_path, *flags, config=config)
    # The tower of 514 ids, 16 positions and two blocks of width 16; whole are only its vectors.
    vectors = 2 * (4 * 16 + 4 * 16 + 32 + 16) + 2 * 16
    table, positions, projection = 514 * 16, 16 * 16, 16 * 16
    blocks = 2 * (4 * 16 * 16 + 2 * 16 * 32)
    kept = found["memory"]["text_encoder_bytes"]
    assert kept == 4 * (vectors + (table + positions + projection + blocks) // 2)
    assert "text encoder 0.00" in text and found["fits"]
    cached = (*flags, "--config.prompts.cache=somewhere")
    without = plan(tmp_path, *cached, config=config)[0]["memory"]
    assert without["text_encoder_bytes"] == 0
    assert found["memory"]["peak_bytes"] - without["peak_bytes"] == kept


def test_a_plan_for_the_teachers_sampler_counts_every_step(tmp_path):
    shapes = jax.eval_shape(models.build(MODEL).init, jax.random.key(0))
    kernels = [x for n, x in trees.named_leaves(shapes).items() if n.endswith("kernel")]
    found, _ = plan(
        tmp_path,
        *("--topology=cpu:2", "--what=teacher_sample", "--batch_size=4", "--steps=3"),
        *("--guidance=2", "--config.mesh.data=1", "--config.mesh.fsdp=2"),
        "--config.mesh.min_shard_elements=1000",
    )
    assert found["fits"] and found["what"] == "teacher_sample"
    # Three steps with two branches: 65 positions through all kernels and the tied output of 1024
    # codes; attention's own products come on top.
    weights = sum(math.prod(x.shape) for x in kernels) + 1024 * 64
    operations = 3 * 2 * 4 * 65 * 2 * weights
    assert operations < found["flops"] < 1.2 * operations
    # In each step each kernel is gathered: half of it comes from the other device, in bfloat16 or
    # in float32.
    received = sum(found["collectives_bytes"].values())
    sizes = sum(math.prod(x.shape) for x in kernels if math.prod(x.shape) >= 1000)
    assert 3 * sizes <= received < 3 * 4 * sizes


@pytest.mark.slow
@pytest.mark.skipif(not has_libtpu, reason="the wheel libtpu is not installed")
@pytest.mark.long
def test_the_step_on_a_tpu_slice_sends_what_fsdp_must(tmp_path):
    """Every network gathered once for each parameter set it is run with, gradients scattered."""
    found, text = plan(
        tmp_path,
        "--topology=v5e:2x2",
        "--config.mesh.data=1",
        "--config.mesh.fsdp=4",
        "--config.mesh.min_shard_elements=1000",
        optimized=True,
    )
    shapes = trees.named_leaves(jax.eval_shape(models.build(MODEL).init, jax.random.key(0)))
    divided = {
        name: math.prod(x.shape)
        for name, x in shapes.items()
        if x.ndim > 1 and math.prod(x.shape) >= 1000 and not name.endswith("bias")
    }
    frozen = sum(n for name, n in divided.items() if name.endswith("embedding"))
    in_bfloat16 = 2 * sum(divided.values())
    # The generator before and after its update (what is frozen is the same), the teacher, the
    # auxiliary; and two gradients, of what is not frozen.
    trained = in_bfloat16 - 2 * frozen
    minimum = 3 / 4 * (3 * in_bfloat16 + trained + 2 * trained)
    sent = found["collectives_bytes"]
    assert 0.95 * minimum < sum(sent.values()) < 1.2 * minimum
    # Nothing is whole by accident: generator, auxiliary, average and teacher, and two moments for
    # each of two networks of what is trained, in float32; what is not divided is small or a bias.
    still = ("embedding", "output_bias")
    bytes_of = {
        n: 4 * (4 if n.endswith(still) else 8) * math.prod(x.shape) for n, x in shapes.items()
    }
    expected = sum(size / (4 if name in divided else 1) for name, size in bytes_of.items())
    # A TPU pads to tiles of 8 x 128, which at this size is nearly half; all whole is 2.7 times.
    whole = sum(bytes_of.values())
    assert expected < found["memory"]["arguments_bytes"] < (expected + whole) / 2
    assert found["fits"] and found["hbm_bytes"] == 16 * 2**30
    assert found["seconds_at_mfu"]["1.0"] * 197e12 * 4 == pytest.approx(found["flops"])
    predicted = found["predicted"]
    assert 0 < predicted["share_of_peak"] < 1 and not predicted["is_bound"]
    assert set(tpu_times.NETWORKS) | {"divergence", "optimizer", "ema"} <= set(predicted["parts"])
    # By the kernel for TPUs: the plan's own machine has none.
    assert predicted["parts"]["teacher"]["attention forward"] > 0
    seconds = [x.values() if isinstance(x, dict) else [x] for x in predicted["parts"].values()]
    assert sum(map(sum, seconds)) == pytest.approx(predicted["step_seconds"])
    for words in ("4 x TPU v5e", "all-gather", "TFLOP", "images/s", "MLP forward", "verdict: fits"):
        assert words in text


@pytest.mark.skipif(not has_libtpu, reason="the wheel libtpu is not installed")
@pytest.mark.parametrize("flag", ["--topology=v5e:3x3", "--topology=v6e:7x9"])
def test_a_slice_that_is_none_is_refused(flag):
    _, err = finish(command("plan", CONFIG, flag), status=2)
    assert "is no slice that there is" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v9:2x2"], "--topology=v9:2x2 is none of v4:2x2x1, v5e:4x4"),
        (["--topology=cpu:3"], "config.distill.batch_size=4 does not divide by 3 devices"),
        (["--topology=cpu:2", "--config.mesh.fsdp=3"], "do not make up the 2 devices"),
        (["--topology=cpu:2", "--config.mesh.fsdb=3"], "fsdp"),
    ],
)
def test_wrong_flags_get_one_sentence(arguments, words):
    _, err = finish(command("plan", CONFIG, *arguments), status=2)
    assert words in err and "Traceback" not in err


def test_without_libtpu_it_says_how_to_install_it(monkeypatch):
    def missing(**_):
        raise RuntimeError("libtpu.so: cannot open shared object file")

    monkeypatch.setattr(topologies.topologies, "get_topology_desc", missing)
    for name in backend.NO_TPU:
        monkeypatch.setenv(name, "")
    with pytest.raises(InputError, match="pip install -e '.\\[tpu\\]'"):
        topologies.find("v5e:4x4")
