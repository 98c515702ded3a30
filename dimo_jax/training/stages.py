"""The two trainings, from config to the loop: the teacher's own, and the distillation."""

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dimo_jax import config as configs
from dimo_jax.common import rng, trees
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.conditions import labels
from dimo_jax.data.examples import Examples
from dimo_jax.models import Network
from dimo_jax.parallel import distributed, mesh
from dimo_jax.parallel.sharding import Layout
from dimo_jax.training import batches, prefetch, programs, saved, traces
from dimo_jax.training.checkpoints import Checkpoints
from dimo_jax.training.loop import Observer, check_settings, run_stage
from dimo_jax.training.metrics import Metrics
from dimo_jax.training.retention import Retention

Config = Mapping[str, Any]
# (a stage's state, step) -> {name: uint8 image}; the networks to draw with are whole, on the host
Pictures = Callable[[Any, int], Mapping[str, np.ndarray]]
# averaged parameters, whole on the host -> {name: figure}; called by all processes
Measure = Callable[[Any], Mapping[str, float]]


def checkpoints_of(workdir: AnyPath, stage: str) -> AnyPath:
    """Return where a stage's checkpoints lie."""
    return workdir / "checkpoints" / stage


def refuse_other_settings(config: Config, directories: Mapping[str, AnyPath]) -> None:
    """Compare a config to what stages were begun with, before anything of a run is touched.

    Args:
        config: a complete config.
        directories: {"pretrain" or "distill": its checkpoints}; those that do not exist are new.

    Raises:
        InputError: if a stage has a checkpoint of other settings; each is listed.
    """
    made = {}
    for stage, directory in directories.items():
        steps = saved.steps(directory)
        try:
            made[stage] = saved.meta(directory, steps[-1]) if steps else {}
        except InputError:
            continue  # damaged: the stage itself tells what to do
        if steps:
            found = configs.without(made[stage], *saved.OWN)
            # Hashes of the networks come later; until then the saved ones stand for them.
            meta = {**found, **configs.stage_settings(config, stage)}
            check_settings(stage, directory, found, meta)
    length = "pretrain.num_steps"
    before, now = made.get("pretrain", {}).get(length), config["pretrain"]["num_steps"]
    if made.get("distill") and before is not None and before != now:
        raise InputError(
            f"config.{length} was {before} and is {now}: that makes another teacher, and "
            f"{directories['distill']} holds a distillation of this one; use {before} again, or "
            "another work directory"
        )


def run_pretrain(
    config: Config,
    network: Network,
    examples: Examples,
    conditions: programs.DataConditions,
    *,
    layout: Layout,
    directory: AnyPath,
    metrics: Metrics,
    pictures: Pictures | None = None,
    measure: Measure | None = None,
) -> Any:
    """Train a teacher on data tokens, or go on from its newest checkpoint.

    Args:
        config: a complete config.
        network: the teacher's.
        examples: the training split.
        conditions: of the examples' numbers.
        layout: the mesh and its rules.
        directory: of the checkpoints.
        metrics: of the run.
        pictures: what to draw from the state at intervals.
        measure: what to measure of the averaged teacher at intervals.

    Returns:
        The averaged parameters, whole on the host, which are the teacher; of a teacher with text
        those of models.joined.
    """
    program = programs.pretrain_program(config, network, layout)
    network = programs.pretrained_network(config, network)

    def create_state() -> Any:
        key = rng.stream_key(config["seed"], "teacher_parameters")
        return program.create(jax.jit(network.init, out_shardings=layout.of(program.params))(key))

    batch_of = batches.of_data(config, "pretrain", layout, examples, conditions)
    with prefetch.ahead(batch_of, config["pretrain"]["num_steps"]) as next_of:
        return _run(
            program,
            create_state,
            (),
            next_of,
            config,
            {
                **configs.stage_settings(config, "pretrain"),
                **examples.identity,
                **conditions.identity(),
            },
            directory,
            metrics,
            pictures,
            measure,
            shown=("teacher_loss",),
        )


def run_distill(
    config: Config,
    network: Network,
    start: Any,
    teacher_network: Network,
    teacher_params: Any,
    conditions: programs.Conditions,
    *,
    layout: Layout,
    directory: AnyPath,
    metrics: Metrics,
    pictures: Pictures | None = None,
    measure: Measure | None = None,
    generator: Any = None,
    trace: traces.Request | None = None,
    examples: Examples | None = None,
) -> Any:
    """Distil a teacher into a generator, or go on from the newest checkpoint.

    Args:
        config: a complete config.
        network: of generator and auxiliary.
        start: parameters that both start from, usually the teacher's; host arrays.
        teacher_network: the teacher's network, usually the same.
        teacher_params: frozen; host arrays.
        conditions: what the run is conditioned on.
        layout: the mesh and its rules.
        directory: of the checkpoints.
        metrics: of the run.
        pictures: what to draw from the state at intervals.
        measure: what to measure of the averaged generator at intervals.
        generator: parameters that the generator and its average start from instead, those of a
            finished one; host arrays. The auxiliary then learns that generator's samples from
            `start`, as in every run.
        trace: of some of the steps.
        examples: the training split, for a method that learns from it: its conditions are of the
            examples' numbers.

    Returns:
        The averaged generator, whole on the host.
    """
    program = programs.distill_program(config, network, teacher_network, teacher_params, layout)
    teacher = jax.tree.map(
        lambda x, like: np.asarray(x, like.dtype), teacher_params, program.teacher
    )
    meta = {
        **configs.stage_settings(config, "distill"),
        "teacher": trees.fingerprint(teacher_params),
        "start": trees.fingerprint(start),
        **conditions.identity(),
        **({} if examples is None else examples.identity),
    }
    if generator is not None:
        meta["generator"] = trees.fingerprint(generator)

    def create_state() -> Any:
        state = program.create(mesh.put(start, layout.of(program.params)))
        if generator is None:
            return state
        # Two copies: a state that is donated must not share buffers.
        one, other = (mesh.put(generator, layout.of(program.params)) for _ in range(2))
        return state.replace(generator=one, ema=other)

    if examples is None or not isinstance(conditions, labels.LabelConditions):
        given = contextlib.nullcontext(batches.of_conditions(config, conditions, layout))
    else:
        of_step = batches.of_data(config, "distill", layout, examples, conditions)
        given = prefetch.ahead(of_step, config["distill"]["num_steps"])
    with given as batch_of:
        return _run(
            program,
            create_state,
            (mesh.put(teacher, layout.of(program.teacher)),),
            batch_of,
            config,
            meta,
            directory,
            metrics,
            pictures,
            measure,
            shown=("divergence", "aux_loss") if examples is None else ("generator_loss",),
            trace=trace,
        )


def _run(
    program: programs.Program,
    create_state: Callable[[], Any],
    fixed: tuple,
    batch_of: Callable[[int], Any],
    config: Config,
    meta: Mapping[str, Any],
    directory: AnyPath,
    metrics: Metrics,
    pictures: Pictures | None,
    measure: Measure | None,
    shown: tuple[str, ...],
    trace: traces.Request | None = None,
) -> Any:
    """Return the averaged parameters at the end of a stage, whole on the host."""
    observers = []
    if pictures:

        def draw(state: Any, step: int) -> tuple[Mapping[str, np.ndarray], Mapping[str, float]]:
            names = [name for name in ("ema", "generator") if hasattr(state, name)]
            host = mesh.gather({name: getattr(state, name) for name in names})
            return (pictures(state.replace(**host), step) if distributed.is_lead() else {}), {}

        observers.append(Observer(config["logging"]["images_every_steps"], draw))
    if measure:

        def rank(state: Any, step: int) -> tuple[Mapping[str, np.ndarray], Mapping[str, float]]:
            found = json.dumps(measure(mesh.gather(state.ema))).encode()  # by the lead alone
            return {}, json.loads(distributed.gather_bytes(found)[0])

        observers.append(Observer(config["interim"]["every_steps"], rank, ranks=True))
    section = config["checkpoint"]
    best = section["keep_best"] if measure else 0
    retention = Retention(section["keep"], section["keep_every_steps"], best)
    checkpoints = Checkpoints(directory, retention, section["allow_fallback"])
    try:
        state = run_stage(
            program.name,
            create_state,
            lambda state, batch: program.step(state, *fixed, batch),
            batch_of,
            config[program.name]["num_steps"],
            checkpoints=checkpoints,
            metrics=metrics,
            meta=meta,
            log_every_steps=config["logging"]["log_every_steps"],
            save_every_steps=section["save_every_steps"],
            observers=observers,
            shown=shown,
            abstract_state=program.state,
            max_skipped=config["max_skipped_in_a_row"],
            seed=config["seed"],
            trace=trace,
        )
        return mesh.gather(state.ema)
    finally:
        checkpoints.close()
