"""Images by way of a tokenizer: teacher, one-step generator and, where there are data, a report."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dimo_jax import bundles, samplers, tokenizers
from dimo_jax import config as configs
from dimo_jax.common import images, trees, versions
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.conditions import text_encoder
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER
from dimo_jax.data import digits
from dimo_jax.evaluation import evaluate_models
from dimo_jax.evaluation.features import classifier
from dimo_jax.evaluation.report import digits_report, page, result_folders
from dimo_jax.parallel import distributed
from dimo_jax.parallel.sharding import Layout
from dimo_jax.runs import checks, codebook, train_fid
from dimo_jax.samplers import one_step
from dimo_jax.tokenizers.tokenizer import decode_in_chunks
from dimo_jax.training import load_conditions, load_models, settings, stages
from dimo_jax.training.metrics import Metrics

# Rows of the grids drawn in training.
_PICTURES_OF_EACH = 4


class ImageRun:
    """Everything that one config says about images; `run` goes the whole way."""

    def __init__(self, config: Mapping[str, Any], workdir: AnyPath, layout: Layout):
        """Open what the config names and checks it all; nothing is written, and no step computed.

        Args:
            config: a complete config that validation.validate took.
            workdir: of the run.
            layout: the mesh and its rules.

        Raises:
            InputError: what the config names cannot be read, or does not fit.
        """
        self.config, self.workdir, self.layout = config, workdir, layout
        self.has_data = config["data"]["name"] == "digits"
        checks.check_places(config, workdir)
        self.bundle = load_models.open_teacher(config)
        self.tokenizer, self.tokenizer_params = load_models.open_tokenizer(config, self.bundle)
        if self.has_data:
            checks.check_digits(config, self.tokenizer, workdir)
            checks.check_classifier(config, self.tokenizer.image_shape)
        self._fitted = None
        if self.tokenizer_params is None and self.tokenizer.config["name"] == "patches":
            self._fitted = codebook.kept_or_fitted(
                workdir / "tokenizer", self.tokenizer, config["seed"]
            )
        if self.tokenizer_params is None and self.tokenizer.config["name"] == "gray_levels":
            self.tokenizer_params = {}
        known = self._fitted if self.tokenizer_params is None else self.tokenizer_params
        digest = None if known is None else tokenizers.fingerprint(self.tokenizer, known)
        self.network = load_models.open_network(config, self.bundle, self.tokenizer, digest)
        self.start = load_models.open_generator(config, self.network, digest)
        checks.check_draws(config, self.network.codebook_size)
        checks.check_attention(config, self.network)
        self.protocol = checks.evaluation_settings(config, self.network) if self.has_data else None
        self.judge = train_fid.judge_of(config, self.tokenizer.image_shape[-1], self.has_data)
        self.encoder = None
        if load_models.is_text(config):
            where = None if self.bundle is None else self.bundle.path
            self.encoder = text_encoder.open_encoder(config, where)
        self.conditions = load_conditions.open_conditions(config, self.network, self.encoder)
        self.programs = checks.stage_programs(
            config,
            self.network,
            self.network,
            jax.eval_shape(self.network.init, jax.random.key(0)),
            layout,
            configs.trains_teacher(config),
        )

    def run(self, metrics: Metrics, began: float) -> str:
        """Return the whole way; each part is skipped where its result is there already.

        Args:
            metrics: of the run.
            began: time.monotonic() of the command's start.

        Returns:
            What was done and where it is.
        """
        self.metrics = metrics
        self._prepare()
        teacher = self._teacher()
        generator = stages.run_distill(
            self.config,
            self.network,
            teacher,
            self.network,
            teacher,
            self.conditions,
            layout=self.layout,
            directory=stages.checkpoints_of(self.workdir, "distill"),
            metrics=self.metrics,
            pictures=self._generator_pictures(teacher),
            measure=self._interim(),
            generator=self.start and self.start.params,
        )
        self._save("export", "generator", generator, sampler=settings.sampler_of(self.config))
        if not distributed.is_lead():
            # What is left is one process's work: the command waits for it at its end.
            return "done"
        if not self.has_data:
            return f"done, the generator is {self.workdir / 'export'}"
        hashes = {
            "teacher": trees.fingerprint(teacher),
            "generator": trees.fingerprint(generator),
            "tokenizer": self.tokenizer_entry["hash"],
            "settings": configs.settings_hash(configs.stage_settings(self.config, "evaluation")),
        }
        folder = self.workdir / "report"
        page_file = folder / page.FILE_NAME
        # The page is written last.
        if page_file.exists() and result_folders.hashes_of(folder).items() >= hashes.items():
            return f"done already, see {page_file}; nothing was left to do"
        self._evaluate(teacher, generator, folder, hashes, began)
        return f"done, see {page_file} or report.md beside it: teacher, generator and report"

    def _prepare(self) -> None:
        """Make what stages need and no file has yet: data, tokenizer, features of prompts."""
        self.train = self.test = None
        if self.has_data:
            where = self.config["data"]["directory"] or self.workdir / "data"
            self.train, self.test = distributed.lead_first(
                lambda: [digits.load(split, where) for split in ("train", "test")]
            )
        if self._fitted is not None:
            self.tokenizer_params = distributed.lead_first(
                lambda: codebook.keep(self.workdir / "tokenizer", self.tokenizer, self._fitted)
            )
        elif self.tokenizer_params is None:
            # Those of a network are random, see config.teacher.
            key = jax.random.key(self.config["seed"])
            self.tokenizer_params = jax.device_get(jax.jit(self.tokenizer.init)(key))
        self.tokenizer_entry = {
            "config": self.tokenizer.config,
            "hash": tokenizers.fingerprint(self.tokenizer, self.tokenizer_params),
        }
        self.conditions.fill_cache()

    @functools.cached_property
    def pictured(self) -> tuple[Any, Any]:
        """(condition, null condition) of the grids drawn in training."""
        return load_conditions.pictured(self.config, self.conditions, _PICTURES_OF_EACH)

    def _teacher(self) -> Any:
        """Return the teacher's parameters: from its bundle, random, or trained here."""
        if self.bundle is not None:
            return self.bundle.params
        if self.config["teacher"]["random"]:
            teacher = jax.jit(self.network.init)(jax.random.key(self.config["seed"]))
        else:
            encode = self.tokenizer.encode
            teacher = stages.run_pretrain(
                self.config,
                self.network,
                np.asarray(encode(self.tokenizer_params, self.train.images), np.int32),
                np.asarray(self.train.labels, np.int32),
                layout=self.layout,
                directory=stages.checkpoints_of(self.workdir, "pretrain"),
                metrics=self.metrics,
                pictures=lambda state, _: {"samples": self._teacher_grid(state.ema)},
            )
        self._save("teacher", "teacher", teacher, sampler=None)
        return teacher

    def _save(self, name: str, kind: str, params: Any, sampler: Any) -> None:
        if not distributed.is_lead():
            return
        about = {"title": self.config["title"], "seed": self.config["seed"]}
        if kind == "generator":
            num_steps = self.config["distill"]["num_steps"]
            about = load_models.provenance(self.config, num_steps, self.start)
        inside = None
        if self.encoder is not None:
            about = {**about, TEXT_ENCODER_FOLDER: self.encoder.identity}
            inside = {TEXT_ENCODER_FOLDER: self.encoder.content()}
        bundles.save(
            self.workdir / name,
            kind=kind,
            model=self.network.config,
            params=params,
            sampler=sampler,
            tokenizer=self.tokenizer_entry,
            tokenizer_params=self.tokenizer_params,
            provenance=about,
            inside=inside,
        )

    def _decode(self, tokens: np.ndarray) -> np.ndarray:
        size = self.config["evaluation"]["batch_size"]
        return decode_in_chunks(self.tokenizer, self.tokenizer_params, tokens, size)

    def _sample_teacher(
        self, params: Any, num_steps: int, sampler: Mapping, seed: int, condition: Any, null: Any
    ) -> np.ndarray:
        tokens = samplers.sample(
            self.network,
            params,
            jax.random.key(seed),
            condition,
            null,
            samplers.settings_for(self.network, {"num_steps": num_steps, **sampler}),
            self._batch_size(condition),
        )
        return self._decode(tokens)

    def _sample_generator(
        self, params: Any, seed: int, condition: Any, first_index: int = 0
    ) -> np.ndarray:
        tokens = samplers.sample(
            self.network,
            params,
            jax.random.key(seed),
            condition,
            None,
            one_step.settings_from(settings.sampler_of(self.config), self.network),
            self._batch_size(condition),
            first_index,
        )
        return self._decode(tokens)

    def _batch_size(self, condition: Any) -> int:
        num = len(jax.tree.leaves(condition)[0])
        return min(self.config["evaluation"]["batch_size"], num)

    def _grid(self, pixels: np.ndarray) -> np.ndarray:
        """Return a column for each label or prompt."""
        tiles = images.to_uint8(pixels)
        columns = tiles.reshape(-1, _PICTURES_OF_EACH, *tiles.shape[1:]).swapaxes(0, 1)
        return images.grid(columns.reshape(tiles.shape), len(tiles) // _PICTURES_OF_EACH)

    def _teacher_grid(self, params: Any) -> np.ndarray:
        steps = self.config["logging"]["picture_steps"]
        return self._grid(self._sample_teacher(params, steps, {}, 0, *self.pictured))

    def _generator_pictures(self, teacher: Any) -> stages.Pictures:
        """Draw samples in training, of the same seed and conditions each time."""

        def draw(state: Any, step: int) -> dict[str, np.ndarray]:
            grids = {
                name: self._grid(self._sample_generator(params, 0, self.pictured[0]))
                for name, params in (("ema", state.ema), ("generator", state.generator))
            }
            if step == self.config["logging"]["images_every_steps"]:
                grids["teacher"] = self._teacher_grid(teacher)
            return grids

        return draw

    def _interim(self) -> stages.Measure | None:
        """Return what config.interim asks to be measured of the generator in training."""
        section, size = self.config["interim"], self.config["evaluation"]["batch_size"]
        if self.judge is None:
            return None
        judge = self.judge
        if judge == "own":
            network = distributed.lead_first(self._classifier)
            judge = train_fid.classifier_judge(network, self.train.images)

        def draw(params: Any, some: np.ndarray, start: int) -> np.ndarray:
            condition = self.conditions.features(some)
            return self._sample_generator(params, section["seed"], condition, start)

        numbers = load_conditions.in_turn(self.conditions, section["num_samples"])
        return lambda params: train_fid.distance(
            functools.partial(draw, params), judge, numbers, size
        )

    def _classifier(self) -> classifier.FeatureNetwork:
        """Return the network that the data's own distances are measured with.

        Trained once, and kept.
        """
        return classifier.load_or_fit(
            self.workdir / "classifier",
            self.train.images,
            self.train.labels,
            self.network.num_classes,
            checks.classifier_settings(self.config),
        )

    def _evaluated_teacher(self, params: Any) -> Callable[..., np.ndarray]:
        def sample(num_steps: int, sampler: Mapping, seed: int, labels: np.ndarray) -> np.ndarray:
            null = self.conditions.null(len(labels))
            return self._sample_teacher(params, num_steps, sampler, seed, labels, null)

        return sample

    def _evaluate(
        self, teacher: Any, generator: Any, folder: AnyPath, hashes: dict[str, str], began: float
    ) -> None:
        section = self.config["evaluation"]
        num_classes = self.network.num_classes
        with Progress("evaluate") as progress:
            progress.note("fits the feature classifier")
            network = self._classifier()
            result = evaluate_models.evaluate(
                self._evaluated_teacher(teacher),
                lambda *args: self._sample_generator(generator, *args),
                data=evaluate_models.Data(
                    self.train.images,
                    self.train.labels,
                    self.test.images,
                    self.test.labels,
                    num_classes,
                    functools.partial(self.tokenizer.encode, self.tokenizer_params),
                    self.tokenizer.codebook_size,
                ),
                network=network,
                samplers=evaluate_models.candidates(
                    section["guidances"], section["choice_temperatures"], section["random_order"]
                ),
                generator_sampler=settings.sampler_of(self.config),
                settings=self.protocol,
                progress=progress.update,
            )
        digits_report.write(
            folder,
            result,
            title=self.config["title"],
            provenance={
                "seed": self.config["seed"],
                **versions.environment(),
                "wall_seconds": round(time.monotonic() - began, 1),
                "hashes": {**hashes, "classifier": network.params_hash},
            },
        )
        page.write(folder, title=self.config["title"], workdir=self.workdir)
