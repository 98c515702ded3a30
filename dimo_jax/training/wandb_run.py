"""A run's metrics and pictures on Weights & Biases (all of wandb), beside its own record.

`<workdir>/wandb.json` has the run's id there, so that a run that goes on does so there too. The
step is that of the whole run, the teacher's updates before the generator's, and none is sent twice:
what a run that goes on from a checkpoint computes again, it computed to the same bits before. The
library's own variables hold: WANDB_MODE, WANDB_ENTITY, WANDB_NAME, WANDB_DIR and the others.
"""

import importlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from dimo_jax import config as configs
from dimo_jax.common import files, readers
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.shown import shown
from dimo_jax.training import metrics

FILE_NAME = "wandb.json"
# The library waits without an end for what a lost network cannot take.
FINISH_SECONDS = 60.0
_OFFLINE = ("offline", "dryrun", "disabled")


def check() -> None:
    """Refuse a start without the package or a login.

    Raises:
        InputError: one of them is missing, or the library's settings cannot be used.
    """
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise InputError(
            f"config.logging.wandb=True needs the package wandb, which cannot be imported "
            f'({shown(error)}): pip install -e ".[wandb]"'
        ) from error
    try:
        # Silent: what it has to say is in one line of the run's, or in one of its errors.
        settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
        # It would ask for a key, and wait, where there is a terminal.
        found = settings.mode in _OFFLINE or wandb.login(prompt=False)
    except Exception as error:  # of pydantic too, for a variable
        wandb.teardown(exit_code=1)
        raise _cannot_start(error) from error
    if not found:
        wandb.teardown(exit_code=1)
        raise InputError(
            "config.logging.wandb=True, and nobody is logged in to Weights & Biases; run `wandb "
            "login`, or set WANDB_API_KEY, or WANDB_MODE=offline to send it later"
        )


def start(config: Mapping[str, Any], workdir: AnyPath) -> "Tracker":
    """Begin a run there, or go on with the one of this work directory.

    Args:
        config: a complete config.
        workdir: of the run. A new run there gets all of its record first.

    Raises:
        InputError: it cannot be started.
    """
    wandb = importlib.import_module("wandb")
    before = config["pretrain"]["num_steps"] if configs.trains_teacher(config) else 0
    first = {"pretrain": 0, "distill": before}
    path = workdir / FILE_NAME
    known = readers.json_object(path) if path.exists() else {"id": None, "sent": -1}
    if not isinstance(known.get("id"), str | None) or type(known.get("sent")) is not int:
        raise InputError(f"{path} does not name a run; remove it to begin a new one there")
    record = metrics.read(workdir)
    where = None if files.is_remote(workdir) else str(workdir)
    ours = {
        "WANDB_PROJECT": ("project", "dimo_jax"),
        "WANDB_NAME": ("run_name", workdir.name),
        "WANDB_DIR": ("root_dir", where),
        "WANDB_CONSOLE": ("console", "off"),  # progress lines
        "WANDB_FINISH_TIMEOUT": ("finish_timeout", FINISH_SECONDS),
    }
    chosen = {name: x for key, (name, x) in ours.items() if key not in os.environ and x}
    if project := config["logging"]["wandb_project"]:
        chosen["project"] = project
    try:
        run = wandb.init(
            id=known["id"],
            resume="allow",
            config=json.loads(json.dumps(config)),
            settings=wandb.Settings(silent=True, **chosen),
        )
        for stage in first:
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    except Exception as error:
        wandb.teardown(exit_code=1)
        raise _cannot_start(error) from error
    tracker = Tracker(wandb, run, first, path)
    tracker.catch_up(record, None if known["id"] is None else known["sent"])
    return tracker


class Tracker:
    """A view of the record, see metrics.View.

    Args:
        library: wandb.
        run: of its `init`.
        first: the step of the whole run at which each stage starts.
        path: of the file that says which run it is.

    Attributes:
        described: a line for people on where it is.
    """

    failed = "nothing more is sent to Weights & Biases"

    def __init__(self, library: Any, run: Any, first: Mapping[str, int], path: AnyPath):
        self._library, self._run, self._first, self._path = library, run, first, path
        self._sent = self._newest = -1  # the step up to which nothing is sent; the last one sent
        where = run.url or f"{run.settings.sync_dir}, to be sent with `wandb sync`"
        self.described = f"Weights & Biases: run {run.id}, {where}"

    def catch_up(self, record: list[dict[str, Any]], sent: int | None) -> None:
        """Send what the record has and the run there has not; later, nothing of that again.

        Args:
            record: of the run so far.
            sent: the last step that was sent for certain when it was written down; None: a new run.
        """
        last = max((self._total(line["stage"], line["step"]) for line in record), default=0)
        if self._run.settings.mode not in _OFFLINE:
            self._sent = self._run.starting_step - 1  # as the server says
        elif sent is not None:
            # A step is sent when a later one begins, so a killed process has kept its last. Of the
            # others, what the library had not yet written (up to 15 s in 0.31) is lost there.
            self._sent = max(sent, last - 1)
        for line in record:
            values = {k: x for k, x in line.items() if k not in ("stage", "step") and x is not None}
            self.scalars(line["stage"], line["step"], values)
        self._sent = max(self._sent, last - 1)
        self._note()

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Send a line of the record."""
        self._log(stage, step, values)

    def images(self, stage: str, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Send pictures, uint8 [H, W, C]."""
        self._log(stage, step, {name: self._library.Image(x) for name, x in images.items()})

    def close(self, exit_code: int) -> None:
        """Wait until all is sent, FINISH_SECONDS at most, and end the library's own process."""
        try:
            self._run.finish(exit_code=exit_code)
            self._sent = max(self._sent, self._newest)
            self._note()
        finally:
            self._library.teardown(exit_code=exit_code)

    def _total(self, stage: str, step: int) -> int:
        return self._first[stage] + step

    def _log(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        total = self._total(stage, step)
        if total > self._sent:
            named = {f"{stage}/{name}": value for name, value in values.items()}
            self._run.log({**named, f"{stage}/step": step}, step=total)
            self._newest = total

    def _note(self) -> None:
        known = {"id": self._run.id, "sent": self._sent}
        files.write_file(self._path, json.dumps(known).encode())


def _cannot_start(error: Exception) -> InputError:
    return InputError(
        f"config.logging.wandb=True, and Weights & Biases cannot be started "
        f"({type(error).__name__}: {shown(error)}); check the login (`wandb login`) and the "
        "network, or set WANDB_MODE=offline to send it later"
    )
