"""A whole run: teacher, distillation, export, evaluation, report.

python -m dimo_jax.main --config=configs/digits.py --workdir=runs/digits
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from dimo_jax import bundles, cli, files, images, tokenizers
from dimo_jax import config as configs
from dimo_jax.data import digits, joints
from dimo_jax.errors import InputError
from dimo_jax.evaluation import features, protocol, report, total_variation
from dimo_jax.models import Network, exact_posterior
from dimo_jax.samplers import maskgit, one_step
from dimo_jax.training import stages, trees
from dimo_jax.training.metrics import Metrics
from dimo_jax.training.progress import Progress, format_seconds

# Enough that what the copies start from does not remember single samples.
NUM_JOINT_SAMPLES = 100_000

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "the run's config, e.g. configs/digits.py:patch")
flags.DEFINE_string("workdir", None, "where the run lives; the same one continues it")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Checks the config and runs what it describes; says at the end where everything is."""
    began = time.monotonic()
    config, workdir = FLAGS.config.to_dict(), Path(FLAGS.workdir)
    configs.validate(config)
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is a file; name a folder")
    trained = ("distill",) if config["teacher"]["bundle"] else ("pretrain", "distill")
    stages.refuse_other_settings(config, {name: _checkpoints(workdir, name) for name in trained})
    files.write_file(workdir / "config.json", json.dumps(config, indent=1).encode())
    metrics = Metrics(workdir, config["logging"]["tensorboard"])
    try:
        run = JointRun if config["data"]["name"] == "joint" else ImageRun
        what = run(config, workdir, metrics).run(began)
    finally:
        metrics.close()
    print(f"{what} in {format_seconds(time.monotonic() - began)}; everything is in {workdir}/")


class ImageRun:
    """Images by way of a tokenizer: teacher, generator and report of the digits."""

    def __init__(self, config: Mapping[str, Any], workdir: Path, metrics: Metrics):
        self.config, self.workdir, self.metrics = config, workdir, metrics
        where = config["data"]["directory"] or workdir / "data"
        self.train, self.test = (digits.load(split, where) for split in ("train", "test"))
        self.tokenizer = tokenizers.build(config["tokenizer"])
        self.tokenizer_params = self._fit_tokenizer()
        self.network = stages.network_of(
            config, self.tokenizer.num_tokens, self.tokenizer.codebook_size
        )

    def run(self, began: float) -> str:
        """The whole way; each part is skipped where its result is there already."""
        teacher = self._teacher()
        generator = stages.run_distill(
            self.config,
            self.network,
            teacher,
            self.network,
            teacher,
            directory=_checkpoints(self.workdir, "distill"),
            metrics=self.metrics,
            pictures=self._pictures(one_step_of=True),
        )
        self._save("export", "generator", generator, sampler=stages.sampler_of(self.config))
        hashes = {
            "teacher": trees.fingerprint(teacher),
            "generator": trees.fingerprint(generator),
            "tokenizer": self._tokenizer_entry()["hash"],
            "settings": configs.settings_hash(configs.stage_settings(self.config, "evaluation")),
        }
        folder = self.workdir / "report"
        if _hashes_of(folder / "results.json").items() >= hashes.items():
            return f"done already, see {folder / 'report.md'}; nothing was left to do"
        self._evaluate(teacher, generator, folder, hashes, began)
        return f"done, see {folder / 'report.md'}: teacher, generator and report"

    def _fit_tokenizer(self) -> Any:
        """The tokenizer's parameters: fitted once, and kept beside the run."""
        if self.tokenizer.config["name"] != "patches":
            return self.tokenizer.init(jax.random.key(0))
        path = self.workdir / "tokenizer"
        if path.exists():
            bundle = bundles.load_tokenizer(path)
            if bundle.model == self.tokenizer.config:
                return jax.tree.map(np.asarray, bundle.params)
        config = self.tokenizer.config
        params = tokenizers.patches.fit(
            self.train.images, config["codebook_size"], self.config["seed"], config["patch_size"]
        )
        bundles.save(path, kind="tokenizer", model=config, params=params)
        return params

    def _teacher(self) -> Any:
        """The teacher's parameters: from the bundle that is named, or trained here."""
        if path := self.config["teacher"]["bundle"]:
            bundle = bundles.load(path, kind="teacher")
            if bundle.model != self.network.config:
                changed = [
                    f"{name} {bundle.model.get(name)!r} (config: {value!r})"
                    for name, value in self.network.config.items()
                    if bundle.model.get(name) != value
                ]
                raise InputError(
                    f"config.teacher.bundle={path} is of another network: {', '.join(changed)}; "
                    "set config.model to match"
                )
            if bundle.tokenizer and bundle.tokenizer["hash"] != self._tokenizer_entry()["hash"]:
                raise InputError(
                    f"config.teacher.bundle={path} was trained with another tokenizer than "
                    "config.tokenizer describes; set config.tokenizer to match"
                )
            return bundle.params
        encode = self.tokenizer.encode
        teacher = stages.run_pretrain(
            self.config,
            self.network,
            np.asarray(encode(self.tokenizer_params, self.train.images), np.int32),
            np.asarray(self.train.labels, np.int32),
            directory=_checkpoints(self.workdir, "pretrain"),
            metrics=self.metrics,
            pictures=self._pictures(one_step_of=False),
        )
        self._save("teacher", "teacher", teacher, sampler=None)
        return teacher

    def _tokenizer_entry(self) -> dict[str, Any]:
        digest = tokenizers.fingerprint(self.tokenizer, self.tokenizer_params)
        return {"config": self.tokenizer.config, "hash": digest}

    def _save(self, name: str, kind: str, params: Any, sampler: Any) -> None:
        bundles.save(
            self.workdir / name,
            kind=kind,
            model=self.network.config,
            params=params,
            sampler=sampler,
            tokenizer=self._tokenizer_entry(),
            tokenizer_params=self.tokenizer_params,
            provenance={"title": self.config["title"], "seed": self.config["seed"]},
        )

    def _decode(self, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(self.tokenizer.decode(self.tokenizer_params, tokens), np.float32)

    def _sample_teacher(
        self, params: Any, num_steps: int, sampler: Mapping, seed: int, classes: np.ndarray
    ) -> np.ndarray:
        tokens = maskgit.sample(
            self.network.apply,
            params,
            jax.random.key(seed),
            np.asarray(classes, np.int32),
            np.full(len(classes), self.network.num_classes, np.int32),
            maskgit.MaskGitSettings(num_steps=num_steps, **sampler),
            self.network.num_tokens,
            self.network.mask_id,
            min(self.config["evaluation"]["batch_size"], len(classes)),
        )
        return self._decode(tokens)

    def _sample_generator(self, params: Any, seed: int, classes: np.ndarray) -> np.ndarray:
        tokens = one_step.sample(
            self.network.apply,
            params,
            jax.random.key(seed),
            np.asarray(classes, np.int32),
            one_step.settings_from(stages.sampler_of(self.config), self.network),
            min(self.config["evaluation"]["batch_size"], len(classes)),
        )
        return self._decode(tokens)

    def _pictures(self, one_step_of: bool) -> stages.Pictures:
        """Samples in training: the same seed and labels each time."""
        classes = np.repeat(np.arange(self.network.num_classes, dtype=np.int32), 4)

        def draw(params: Any, step: int) -> dict[str, np.ndarray]:
            del step
            if one_step_of:
                pixels = self._sample_generator(params, 0, classes)
            else:
                pixels = self._sample_teacher(params, 8, {}, 0, classes)
            columns = pixels.reshape(-1, 4, *pixels.shape[1:]).swapaxes(0, 1)
            tiles = images.to_uint8(columns.reshape(pixels.shape))
            return {"samples": images.grid(tiles, self.network.num_classes)}

        return draw

    def _evaluate(
        self, teacher: Any, generator: Any, folder: Path, hashes: dict[str, str], began: float
    ) -> None:
        section = self.config["evaluation"]
        fit = features.FitSettings(**self.config["classifier"])
        num_classes = self.network.num_classes
        with Progress("evaluate") as progress:
            progress.note("fits the feature classifier")
            network = features.load_or_fit(
                self.workdir / "classifier", self.train.images, self.train.labels, num_classes, fit
            )
            result = protocol.evaluate(
                lambda *args: self._sample_teacher(teacher, *args),
                lambda *args: self._sample_generator(generator, *args),
                data=protocol.Data(
                    self.train.images,
                    self.train.labels,
                    self.test.images,
                    self.test.labels,
                    num_classes,
                    lambda pixels: np.asarray(
                        self.tokenizer.encode(self.tokenizer_params, pixels), np.int32
                    ),
                    self.tokenizer.codebook_size,
                ),
                network=network,
                samplers=protocol.candidates(
                    section["guidances"], section["choice_temperatures"], section["random_order"]
                ),
                generator_sampler=stages.sampler_of(self.config),
                settings=protocol.ProtocolSettings(
                    **{k: v for k, v in section.items() if k in protocol_fields()}
                ),
                progress=progress.update,
            )
        report.write(
            folder,
            result,
            title=self.config["title"],
            provenance={
                "seed": self.config["seed"],
                **report.environment(),
                "wall_seconds": round(time.monotonic() - began, 1),
                "hashes": {**hashes, "classifier": network.params_hash},
            },
        )


def protocol_fields() -> set[str]:
    """The fields of config.evaluation that are the protocol's own."""
    return set(protocol.ProtocolSettings.__dataclass_fields__)


class JointRun:
    """A known joint distribution of a few tokens, and a teacher that needs no learning."""

    def __init__(self, config: Mapping[str, Any], workdir: Path, metrics: Metrics):
        self.config, self.workdir, self.metrics = config, workdir, metrics
        self.joint = joints.load(config["data"]["joint"])
        num_tokens, codebook_size = self.joint.ndim, self.joint.shape[0]
        self.network: Network = stages.network_of(config, num_tokens, codebook_size)
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
            directory=_checkpoints(self.workdir, "pretrain"),
            metrics=self.metrics,
        )
        generator = stages.run_distill(
            self.config,
            self.network,
            start,
            self.teacher,
            {"log_joint": np.log(self.joint).astype(np.float32)},
            directory=_checkpoints(self.workdir, "distill"),
            metrics=self.metrics,
        )
        sampler = stages.sampler_of(self.config)
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


def _checkpoints(workdir: Path, stage: str) -> Path:
    return workdir / "checkpoints" / stage


def _hashes_of(path: Path) -> dict[str, str]:
    """The hashes of a report that is there already; empty if there is none that can be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["hashes"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


if __name__ == "__main__":
    cli.run(main)
