"""For tests of the loop: a stage whose state is a sum, run in a directory."""

import contextlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dimo_jax.training import metrics as metrics_lib
from dimo_jax.training.checkpoints import Checkpoints
from dimo_jax.training.loop import run_stage
from dimo_jax.training.metrics import Metrics


class State(flax.struct.PyTreeNode):
    step: jax.Array
    total: Any


def create_state():
    return State(step=jnp.int32(0), total=jnp.float32(0))


@jax.jit
def add(state, batch):
    total = state.total + batch
    return State(step=state.step + 1, total=total), {"total": total, "batch": batch}


def batch_of(step):
    return np.float32(step + 1)


class Run:
    """A stage in a directory; total after n steps is n (n + 1) / 2."""

    def __init__(self, workdir, capsys):
        self.workdir = workdir
        self.capsys = capsys

    def __call__(
        self,
        num_steps=6,
        step_fn=add,
        batch_fn=batch_of,
        keep=5,
        create=create_state,
        allow_fallback=False,
        **options,
    ):
        options = dict(meta={}, log_every_steps=2, save_every_steps=3) | options
        checkpoints = Checkpoints(self.workdir / "ck", keep, allow_fallback)
        with contextlib.closing(checkpoints):
            metrics = Metrics(self.workdir, tensorboard=False)
            arguments = ("stage", create, step_fn, batch_fn, num_steps)
            return run_stage(*arguments, checkpoints=checkpoints, metrics=metrics, **options)

    def saved_steps(self):
        return sorted(int(p.name) for p in (self.workdir / "ck").iterdir())

    def record(self):
        return [
            {k: v for k, v in line.items() if not k.startswith("time/")}
            for line in metrics_lib.read(self.workdir)
        ]


def line(step):
    total = step * (step + 1) / 2
    return {"stage": "stage", "step": step, "train/total": total, "train/batch": float(step)}
