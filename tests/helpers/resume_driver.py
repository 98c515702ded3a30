"""Runs a small training many times in forked processes that are killed; test_resume.py starts it.

    python -m tests.helpers.resume_driver <directory> <kills>

Forks before any JAX backend exists, so that the imports are paid for once. Prints one JSON line for
each process: {"run": ..., "signal": ..., "left": [names in the directory of checkpoints],
"offered": {step: fingerprint of the state in the checkpoint}}.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dimo_jax.common import rng, trees
from dimo_jax.training import optimizers
from dimo_jax.training.checkpoints import Checkpoints
from dimo_jax.training.loop import run_stage
from dimo_jax.training.metrics import Metrics

NUM_STEPS, SAVE_EVERY = 160, 8


class State(flax.struct.PyTreeNode):
    step: jax.Array
    params: Any
    opt: Any


def train(workdir: Path, before_step=lambda step: None, keep=2) -> dict:
    """A linear model on random data with Adam; saves every 8 steps, logs every 3."""
    params = {"w": jnp.zeros((16, 4)), "b": jnp.zeros(4), "embedding": jnp.ones(4)}
    tx = optimizers.build(
        name="adam",
        learning_rate=0.05,
        schedule="cosine",
        warmup_steps=5,
        num_steps=NUM_STEPS,
        beta1=0.9,
        beta2=0.99,
        eps=1e-8,
        weight_decay=0.01,
        clip_norm=1.0,
        frozen=("embedding",),
        params=params,
    )

    def step_fn(state, batch):
        key = rng.stream_key(0, "noise", state.step)
        noisy = batch + 0.1 * jax.random.normal(key, batch.shape)

        def loss(p):
            return ((noisy @ p["w"] + p["b"] + p["embedding"]) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        return State(step=state.step + 1, params=params, opt=opt), {"loss": value}

    def batch_fn(step):
        before_step(step)
        return np.random.default_rng(step).normal(size=(8, 16)).astype(np.float32)

    def create_state():
        return State(step=jnp.int32(0), params=params, opt=tx.init(params))

    def offered():
        like = jax.eval_shape(create_state)
        return {
            step: trees.fingerprint(checkpoints.restore(like, step)[0])
            for step in checkpoints.steps()
        }

    checkpoints = Checkpoints(workdir / "checkpoints", keep)
    (workdir / "offered.json").write_text(json.dumps(offered()))
    state = run_stage(
        "fit",
        jax.jit(create_state),
        jax.jit(step_fn, donate_argnums=0),
        batch_fn,
        NUM_STEPS,
        checkpoints=checkpoints,
        metrics=Metrics(workdir, tensorboard=False),
        meta={"seed": 0},
        log_every_steps=3,
        save_every_steps=SAVE_EVERY,
    )
    result = {"fingerprint": trees.fingerprint(state), "step": int(state.step), "saved": offered()}
    checkpoints.close()
    return result


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(step_to_die: int, delay: float):
    """Dies `delay` seconds after the batch of that step, or the first later one, was asked for."""
    timers = []

    def before_step(step):
        if step >= step_to_die and not timers:
            timers.append(threading.Timer(delay, die))
            timers[0].start()
        time.sleep(0.002)  # so that the delay ends in this run, not after it

    return before_step


def kill_in_save(workdir: Path, wait_seconds: float):
    """Dies soon after a temporary directory of Orbax appeared: in the middle of a save."""
    directory = workdir / "checkpoints"
    known = set(os.listdir(directory)) if directory.exists() else set()

    def watch():
        while True:
            names = set(os.listdir(directory)) if directory.exists() else set()
            # Not the very first: something must be there to go back to.
            if any("tmp" in n for n in names - known) and any("tmp" not in n for n in names):
                time.sleep(wait_seconds)
                die()
            time.sleep(0.0001)

    threading.Thread(target=watch, daemon=True).start()
    return lambda step: time.sleep(0.002)


def forked(name: str, function) -> None:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            Path(sys.argv[1], f"{name}.json").write_text(json.dumps(function()))
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    directory = Path(sys.argv[1], "killed", "checkpoints")
    left = sorted(os.listdir(directory)) if directory.exists() else []
    offered = Path(sys.argv[1], "killed", "offered.json")
    told = json.loads(offered.read_text()) if name != "whole" and offered.exists() else {}
    print(json.dumps({"run": name, "signal": number, "left": left, "offered": told}), flush=True)


def main() -> None:
    root, kills = Path(sys.argv[1]), int(sys.argv[2])
    random.seed(0)
    for name in ("whole", "killed"):
        (root / name).mkdir()
    forked("whole", lambda: train(root / "whole", keep=1000))
    killed = root / "killed"
    plans = [lambda: kill_in_step(2, 0.0), lambda: kill_in_save(killed, 0.0)]
    # In between at random, every other one in the middle of a save; none so late that the run could
    # end before it is killed often enough.
    steps = sorted(random.randrange(SAVE_EVERY, 100) for _ in range(kills - 3))
    for number, step in enumerate(steps):
        delay = random.uniform(0, 0.02)
        if number % 2:
            plans.append(lambda step=step, delay=delay: kill_in_step(step, delay))
        else:
            plans.append(lambda delay=delay: kill_in_save(killed, delay))
    plans.append(lambda: kill_in_step(NUM_STEPS - 1, 0.005))
    for number, plan in enumerate(plans):
        forked(f"kill_{number}", lambda plan=plan: train(killed, plan()))
    forked("rest", lambda: train(killed))


if __name__ == "__main__":
    main()
