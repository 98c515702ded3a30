"""Runs one small training as one process of 8 devices and, many times, as two of 4.

    python -m tests.helpers.processes_driver <directory>

test_processes.py starts it. Forks before any JAX backend exists, so that the imports are paid for
once. Prints one JSON line for each process: {"life": ..., "process": ..., "status": its exit status
or minus the signal, "stderr": ...}.
"""

import errno
import functools
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import flags
from etils import epath

from dimo_jax import cli
from dimo_jax.common import rng
from dimo_jax.common.command_flags import Flags
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.data.examples import Examples
from dimo_jax.method.masked import denoise, masking, pretrain
from dimo_jax.parallel import distributed, mesh, sharding
from dimo_jax.training import batches, traces
from dimo_jax.training.checkpoints import Checkpoints
from dimo_jax.training.loop import run_stage
from dimo_jax.training.metrics import Metrics
from tests.helpers import small_network
from tests.helpers.forked import fork

NUM_STEPS, SAVE_EVERY, BATCH = 20, 5, 16
# A life without one of its two processes may take that long.
PATIENCE_SECONDS = 60
distributed.HEARTBEAT_SECONDS = 10

FLAGS = Flags()
cli.define_process_flags(FLAGS)
flags.DEFINE_string("workdir", None, "of the run", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of the run", flag_values=FLAGS)
flags.DEFINE_integer("term_at", -1, "SIGTERM to itself before that step", flag_values=FLAGS)
flags.DEFINE_integer("kill_at", -1, "SIGKILL likewise", flag_values=FLAGS)
flags.DEFINE_integer(
    "unwritable_at", -1, "no checkpoint can be written from then", flag_values=FLAGS
)
flags.DEFINE_bool("slow", False, "a quarter of a second for every step", flag_values=FLAGS)


def settings():
    return denoise.DenoiseSettings(
        mask=masking.MaskSettings("arccos", "exact", 0.0, 1.0),
        mask_id=small_network.MASK_ID,
        label_smoothing=0.1,
        condition_drop=0.1,
        positions="masked",
        reduction="mean_batch",
    )


def make_unwritable():
    """Lets the next save of this process fail: the lead makes its folder, all write their parts."""

    def refuse(*_, **__):
        raise OSError(errno.EBUSY, "Device or resource busy")

    if distributed.is_lead():
        type(epath.Path("/x")).mkdir = refuse
        return
    save = ocp.StandardCheckpointHandler.async_save

    async def save_and_fail(self, *arguments, **options):
        return [*await save(self, *arguments, **options), SimpleNamespace(result=refuse)]

    ocp.StandardCheckpointHandler.async_save = save_and_fail


def tokens_at(read, indices, views):
    """Tokens that depend on the example and its version; what was requested goes to a list."""
    read.append(list(zip(indices.tolist(), views.tolist(), strict=True)))
    drawn = [np.random.default_rng(pair) for pair in read[-1]]
    shape = (small_network.L,)
    tokens = [random.integers(0, small_network.V, shape, np.int32) for random in drawn]
    labels = [random.integers(0, small_network.CLASSES, (), np.int32) for random in drawn]
    return np.stack(tokens), np.stack(labels)


def main() -> None:
    """The command that each process runs: a teacher's training on random tokens, mesh 4 x 2."""
    cli.start_processes(FLAGS)
    distributed.assert_same({"seed": FLAGS.seed, "code": distributed.code_version()})
    workdir = Path(FLAGS.workdir)
    section = {"data": 4, "fsdp": 2, "min_shard_elements": 1, "rules": ((".*", "largest"),)}
    layout = sharding.layout(section)
    # Not Adam: it makes an update of what is only round-off in a gradient near zero.
    optimizer = optax.sgd(0.2, momentum=0.9)
    step = pretrain.make_step(
        small_network.apply, optimizer, settings(), dropout=False, ema_decay=0.9, ema_warmup=True
    )
    given = {"seed": FLAGS.seed, "pretrain": {"batch_size": BATCH}}
    read = []
    # More versions than epochs, so that no batch is that of another step.
    batch_of = batches.of_data(
        given,
        "pretrain",
        layout,
        Examples(48, NUM_STEPS, functools.partial(tokens_at, read)),
        LabelConditions(small_network.CLASSES),
    )

    params = jax.tree.map(
        lambda x: np.random.default_rng(x.size).normal(0, 0.5, x.shape).astype(np.float32),
        jax.eval_shape(lambda: small_network.init(0)),
    )

    def create():
        return pretrain.create_state(params, optimizer)

    def batch_fn(number):
        if number == FLAGS.term_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if number == FLAGS.kill_at:
            time.sleep(1)  # so that the save under way ends: the last interval is then what is lost
            os.kill(os.getpid(), signal.SIGKILL)
        if number == FLAGS.unwritable_at:
            make_unwritable()
        time.sleep(0.25 if FLAGS.slow else 0)
        return batch_of(number)

    abstract = layout.abstract(jax.eval_shape(create))
    placed = jax.tree.map(lambda x: x.sharding, abstract)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
    state = run_stage(
        "fit",
        jax.jit(create, out_shardings=placed),
        jax.jit(step, out_shardings=(placed, layout.whole), donate_argnums=0),
        batch_fn,
        NUM_STEPS,
        checkpoints=checkpoints,
        metrics=Metrics(workdir, tensorboard=False),
        meta={"seed": FLAGS.seed},
        log_every_steps=1,
        save_every_steps=SAVE_EVERY,
        abstract_state=abstract,
        trace=traces.Request(traces.Window(3, 2), workdir / "profile", "fit"),
    )
    checkpoints.close()
    (workdir / f"read.{jax.process_index()}.json").write_text(json.dumps(read))
    index = mesh.put(np.arange(BATCH, dtype=np.int32), layout.batch)
    draw = jax.jit(
        lambda index: jax.vmap(lambda key: jax.random.normal(key, (3,)))(
            rng.example_keys(rng.stream_key(FLAGS.seed, "anything", 7), index)
        ),
        out_shardings=layout.batch,
    )
    host = mesh.gather({"params": state.params, "ema": state.ema, "draws": draw(index)})
    if distributed.is_lead():
        arrays = {f"params/{name}": x for name, x in host["params"].items()}
        arrays |= {f"ema/{name}": x for name, x in host["ema"].items()}
        np.savez(workdir / "final.npz", draws=host["draws"], **arrays)


def command(arguments: list[str], num_devices: int) -> None:
    """The command, which ends its process."""
    jax.config.update("jax_num_cpu_devices", num_devices)
    sys.argv = ["processes_driver", *arguments]
    cli.run(main, FLAGS)


def wait(pids: list[int]) -> list[int]:
    """Their exit statuses or minus their signals; ends those that outlive another for too long."""
    statuses, first_end = {}, None
    while len(statuses) < len(pids):
        for pid in set(pids) - set(statuses):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                statuses[pid] = os.waitstatus_to_exitcode(status)
                first_end = first_end or time.monotonic()
            elif first_end and time.monotonic() - first_end > PATIENCE_SECONDS:
                os.kill(pid, signal.SIGABRT)
        time.sleep(0.02)
    return [statuses[pid] for pid in pids]


def live(name: str, workdir: Path, *extra: list[str]) -> None:
    """One life of a run, with a process for each list of arguments."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pids, outputs = [], []
    for index, arguments in enumerate(extra):
        own = [f"--workdir={workdir}", *arguments]
        if len(extra) > 1:
            own += [f"--coordinator=localhost:{port}", f"--num_processes={len(extra)}"]
            own += [f"--process_id={index}"]
        outputs.append(workdir.with_name(f"{name}.{index}"))
        pids.append(fork(functools.partial(command, own, 8 // len(extra)), outputs[-1]))
    began = time.monotonic()
    for index, status in enumerate(wait(pids)):
        told = {"life": name, "process": index, "status": status}
        told |= {"seconds": time.monotonic() - began, "stderr": outputs[index].read_text()}
        print(json.dumps(told), flush=True)


def drive() -> None:
    root = Path(sys.argv[1])
    live("one", root / "one", [])
    live("two", root / "two", [], [])
    # One run, with a life for each way to end: SIGTERM to one of the two, the death of each, none.
    live("terminated", root / "ended", ["--slow"], ["--slow", "--term_at=3"])
    live("other_lost", root / "ended", [], ["--kill_at=13"])
    live("lead_lost", root / "ended", ["--kill_at=17"], [])
    live("rest", root / "ended", [], [])
    for index, name in enumerate(("lead", "other")):
        arguments = [[], []]
        arguments[index].append("--unwritable_at=8")
        live(f"{name}_unwritable", root / f"{name}_unwritable", *arguments)
    live("differing", root / "differing", [], ["--seed=1"])


if __name__ == "__main__":
    drive()
