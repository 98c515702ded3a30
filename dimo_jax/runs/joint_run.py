"""A known joint distribution of a few tokens, and a teacher that needs no learning."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from dimo_jax import bundles, samplers
from dimo_jax.common import trees, versions
from dimo_jax.common.errors import about
from dimo_jax.common.files import AnyPath
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.config import mixture
from dimo_jax.data import joints
from dimo_jax.data.examples import in_memory
from dimo_jax.evaluation.report import joint_report
from dimo_jax.models import Network, exact_posterior
from dimo_jax.parallel import distributed
from dimo_jax.parallel.sharding import Layout
from dimo_jax.runs import checks
from dimo_jax.training import load_models, settings, stages, traces
from dimo_jax.training.metrics import Metrics
from dimo_jax.training.programs import Program

# Enough that what the copies start from does not remember single samples.
NUM_JOINT_SAMPLES = 100_000


@dataclasses.dataclass(frozen=True)
class JointRun:
    """What a config says about a joint distribution, built and checked.

    Attributes:
        config: a complete config.
        workdir: of the run.
        layout: the mesh and its rules.
        joint: the probability of each sequence of tokens, an axis for each token.
        network: of auxiliary and generator, or what its mixture is of.
        generator_network: of the generator.
        start: bundle of the finished generator that the training starts from, if one is named.
        teacher: the exact posterior of the joint.
        teacher_params: of it.
        programs: the training steps, by stage.
    """

    config: Mapping[str, Any]
    workdir: AnyPath
    layout: Layout
    joint: Float[np.ndarray, "..."]
    network: Network
    generator_network: Network
    start: bundles.Bundle | None
    teacher: Network
    teacher_params: Any
    programs: Mapping[str, Program]


def load(config: Mapping[str, Any], workdir: AnyPath, layout: Layout) -> JointRun:
    """Build what the config describes and check it; nothing is written, no step computed.

    Args:
        config: a complete config that validation.validate took.
        workdir: of the run.
        layout: the mesh and its rules.

    Raises:
        InputError: something does not fit.
    """
    checks.check_places(config, workdir)
    joint = joints.load(config["data"]["joint"])
    num_tokens, codebook_size = joint.ndim, joint.shape[0]
    with about("config.model"):
        network = settings.network_of(config, num_tokens, codebook_size)
    generator_network = settings.generator_network(network, config)
    start = load_models.open_generator(config, generator_network, None)
    teacher = exact_posterior.build(num_tokens=num_tokens, codebook_size=codebook_size)
    teacher_params = {"log_joint": np.log(joint).astype(np.float32)}
    checks.check_draws(config, codebook_size)
    checks.check_attention(config, network)
    programs = checks.stage_programs(
        config, network, teacher, teacher_params, layout, pretrains=True
    )
    return JointRun(
        config=config,
        workdir=workdir,
        layout=layout,
        joint=joint,
        network=network,
        generator_network=generator_network,
        start=start,
        teacher=teacher,
        teacher_params=teacher_params,
        programs=programs,
    )


def run(
    loaded: JointRun, metrics: Metrics, began: float, trace: traces.Request | None = None
) -> str:
    """Distil from the exact posterior and compare the generator's joint with the true one.

    Generator and auxiliary cannot start as copies of such a teacher. They start from a masked
    predictor of samples from the joint, as a learned teacher would be.

    Args:
        loaded: of `load`.
        metrics: of the run.
        began: time.monotonic() of the command's start.
        trace: of some steps of the distillation.

    Returns:
        What was done and where it is.
    """
    config, workdir, network = loaded.config, loaded.workdir, loaded.network
    tokens = joints.sample(loaded.joint, NUM_JOINT_SAMPLES, config["seed"])
    examples = in_memory(tokens, np.zeros(len(tokens), np.int32))
    start = stages.run_pretrain(
        config,
        network,
        examples,
        LabelConditions(network.num_classes),
        layout=loaded.layout,
        directory=stages.checkpoints_of(workdir, "pretrain"),
        metrics=metrics,
    )
    network = loaded.generator_network
    learns = mixture.is_chosen(config)
    generator = stages.run_distill(
        config,
        network,
        load_models.start_of(network, start, config["seed"]),
        loaded.teacher,
        loaded.teacher_params,
        LabelConditions(network.num_classes),
        layout=loaded.layout,
        directory=stages.checkpoints_of(workdir, "distill"),
        metrics=metrics,
        generator=loaded.start and loaded.start.params,
        trace=trace,
        examples=examples if learns else None,
    )
    if not distributed.is_lead():
        return "done"
    bundles.save(
        workdir / "export",
        kind="generator",
        model=network.config,
        params=generator,
        sampler=settings.sampler_of(config),
        provenance=load_models.provenance(config, config["distill"]["num_steps"], loaded.start),
    )
    folder = workdir / "report"
    distance = joint_report.write(
        folder,
        loaded.joint,
        _samples(loaded, generator),
        title=config["title"],
        provenance={
            "seed": config["seed"],
            **versions.environment(),
            "wall_seconds": round(time.monotonic() - began, 1),
            "hashes": {"generator": trees.fingerprint(generator)},
        },
    )
    return f"done, total variation {distance:.3f}, see {folder / 'report.md'}:"


def _samples(loaded: JointRun, generator: Any) -> dict[tuple[str, int], Int[np.ndarray, "N L"]]:
    """Draw of the generator, of a mixture at every number of steps, and of its teacher at the same.

    In one step the teacher is independent sampling, which the report has exactly.

    Returns:
        By (model, steps); the generator's own number of steps first.
    """
    config, found = loaded.config, {}
    section = config["evaluation"]

    def draw(model: str, network: Network, params: Any, chosen: Any) -> None:
        found[model, chosen.num_steps] = samplers.sample(
            network,
            params,
            jax.random.key(section["seeds"][0]),
            np.zeros(section["num_samples"], np.int32),
            None,
            chosen,
            section["batch_size"],
        )

    entries, made = settings.samplers_of(config), loaded.generator_network
    for entry in entries:
        draw("generator", made, generator, samplers.of_generator(made, entry))
    for entry in entries if mixture.is_chosen(config) else ():
        chosen = samplers.settings_for(loaded.teacher, entry)
        if chosen.num_steps > 1:
            draw("teacher", loaded.teacher, loaded.teacher_params, chosen)
    return found
