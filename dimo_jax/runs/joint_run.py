"""A known joint distribution of a few tokens, and a teacher that needs no learning."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dimo_jax import bundles
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.data import joints
from dimo_jax.evaluation import report, total_variation
from dimo_jax.files import AnyPath
from dimo_jax.models import Network, exact_posterior
from dimo_jax.parallel import distributed
from dimo_jax.parallel.sharding import Layout
from dimo_jax.samplers import one_step
from dimo_jax.training import settings, stages, trees
from dimo_jax.training.metrics import Metrics

# Enough that what the copies start from does not remember single samples.
NUM_JOINT_SAMPLES = 100_000


class JointRun:
    """A known joint distribution of a few tokens, and a teacher that needs no learning."""

    def __init__(
        self, config: Mapping[str, Any], workdir: AnyPath, metrics: Metrics, layout: Layout
    ):
        self.config, self.workdir, self.metrics = config, workdir, metrics
        self.layout = layout
        self.joint = joints.load(config["data"]["joint"])
        num_tokens, codebook_size = self.joint.ndim, self.joint.shape[0]
        self.network: Network = settings.network_of(config, num_tokens, codebook_size)
        self.teacher = exact_posterior.build(num_tokens=num_tokens, codebook_size=codebook_size)

    def run(self, began: float) -> str:
        """Distils from the exact posterior and compares the generator's joint with the true one.

        Generator and auxiliary cannot start as copies of such a teacher. What stands for that is a
        masked predictor of samples from the joint, as a learned teacher would be.
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
            metrics=self.metrics,
        )
        generator = stages.run_distill(
            self.config,
            self.network,
            start,
            self.teacher,
            {"log_joint": np.log(self.joint).astype(np.float32)},
            LabelConditions(self.network.num_classes),
            layout=self.layout,
            directory=stages.checkpoints_of(self.workdir, "distill"),
            metrics=self.metrics,
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
            provenance={"title": self.config["title"], "seed": seed},
        )
        section = self.config["evaluation"]
        tokens = one_step.sample(
            self.network.apply,
            generator,
            jax.random.key(section["seeds"][0]),
            np.zeros(section["num_samples"], np.int32),
            one_step.settings_from(sampler, self.network),
            section["batch_size"],
        )
        folder = self.workdir / "report"
        distance = total_variation.write_report(
            folder,
            self.joint,
            tokens,
            title=self.config["title"],
            provenance={
                "seed": seed,
                **report.environment(),
                "wall_seconds": round(time.monotonic() - began, 1),
                "hashes": {"generator": trees.fingerprint(generator)},
            },
        )
        return f"done, total variation {distance:.3f}, see {folder / 'report.md'}:"
