"""A known joint distribution of a few tokens, and a teacher that needs no learning."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dimo_jax import bundles, samplers
from dimo_jax.common import trees, versions
from dimo_jax.common.errors import about
from dimo_jax.common.files import AnyPath
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.data import joints
from dimo_jax.evaluation.report import joint_report
from dimo_jax.models import Network, exact_posterior
from dimo_jax.parallel import distributed
from dimo_jax.parallel.sharding import Layout
from dimo_jax.runs import checks
from dimo_jax.samplers import one_step
from dimo_jax.training import load_models, settings, stages
from dimo_jax.training.metrics import Metrics

# Enough that what the copies start from does not remember single samples.
NUM_JOINT_SAMPLES = 100_000


class JointRun:
    """A known joint distribution of a few tokens, and a teacher that needs no learning."""

    def __init__(self, config: Mapping[str, Any], workdir: AnyPath, layout: Layout):
        """Build what the config describes and checks it; nothing is written, no step computed.

        Args:
            config: a complete config that validation.validate took.
            workdir: of the run.
            layout: the mesh and its rules.

        Raises:
            InputError: something does not fit.
        """
        self.config, self.workdir, self.layout = config, workdir, layout
        checks.check_places(config, workdir)
        self.joint = joints.load(config["data"]["joint"])
        num_tokens, codebook_size = self.joint.ndim, self.joint.shape[0]
        with about("config.model"):
            self.network: Network = settings.network_of(config, num_tokens, codebook_size)
        self.start = load_models.open_generator(config, self.network, None)
        self.teacher = exact_posterior.build(num_tokens=num_tokens, codebook_size=codebook_size)
        self.teacher_params = {"log_joint": np.log(self.joint).astype(np.float32)}
        checks.check_draws(config, codebook_size)
        checks.check_attention(config, self.network)
        self.programs = checks.stage_programs(
            config, self.network, self.teacher, self.teacher_params, layout, pretrains=True
        )

    def run(self, metrics: Metrics, began: float) -> str:
        """Distil from the exact posterior and compares the generator's joint with the true one.

        Generator and auxiliary cannot start as copies of such a teacher. In their place is a
        masked predictor of samples from the joint, as a learned teacher would be.

        Args:
            metrics: of the run.
            began: time.monotonic() of the command's start.

        Returns:
            What was done and where it is.
        """
        seed = self.config["seed"]
        tokens = joints.sample(self.joint, NUM_JOINT_SAMPLES, seed)
        start = stages.run_pretrain(
            self.config,
            self.network,
            tokens,
            np.zeros(len(tokens), np.int32),
            layout=self.layout,
            directory=stages.checkpoints_of(self.workdir, "pretrain"),
            metrics=metrics,
        )
        generator = stages.run_distill(
            self.config,
            self.network,
            start,
            self.teacher,
            self.teacher_params,
            LabelConditions(self.network.num_classes),
            layout=self.layout,
            directory=stages.checkpoints_of(self.workdir, "distill"),
            metrics=metrics,
            generator=self.start and self.start.params,
        )
        sampler = settings.sampler_of(self.config)
        if not distributed.is_lead():
            return "done"
        bundles.save(
            self.workdir / "export",
            kind="generator",
            model=self.network.config,
            params=generator,
            sampler=sampler,
            provenance=load_models.provenance(
                self.config, self.config["distill"]["num_steps"], self.start
            ),
        )
        section = self.config["evaluation"]
        tokens = samplers.sample(
            self.network,
            generator,
            jax.random.key(section["seeds"][0]),
            np.zeros(section["num_samples"], np.int32),
            None,
            one_step.settings_from(sampler, self.network),
            section["batch_size"],
        )
        folder = self.workdir / "report"
        distance = joint_report.write(
            folder,
            self.joint,
            tokens,
            title=self.config["title"],
            provenance={
                "seed": seed,
                **versions.environment(),
                "wall_seconds": round(time.monotonic() - began, 1),
                "hashes": {"generator": trees.fingerprint(generator)},
            },
        )
        return f"done, total variation {distance:.3f}, see {folder / 'report.md'}:"
