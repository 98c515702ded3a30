"""What a config says about images, loaded and checked before anything is made or written."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from dimo_jax import bundles, samplers, tokenizers
from dimo_jax import config as configs
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.conditions import text_encoder
from dimo_jax.data.pictures import BUILT_IN
from dimo_jax.generation import drawing
from dimo_jax.models import Network
from dimo_jax.parallel.sharding import Layout
from dimo_jax.runs import checks, codebook, train_fid, training_sets
from dimo_jax.runs.training_sets import TrainingSet
from dimo_jax.tokenizers import Tokenizer
from dimo_jax.training import load_conditions, load_models, settings
from dimo_jax.training.programs import Conditions, Program

Images = Float[np.ndarray, "N H W C"]
# Rows of the grids drawn in training.
PICTURES_OF_EACH = 4


@dataclasses.dataclass(frozen=True)
class ImageRun:
    """What a config says about images, loaded and checked.

    Attributes:
        config: a complete config.
        workdir: of the run.
        layout: the mesh and its rules.
        pictures: what the run trains on; None: a teacher is given.
        reports: whether there are pictures to evaluate it on.
        teacher: its bundle; None: the run trains it, or it is random.
        tokenizer: images <-> tokens.
        tokenizer_params: its parameters; None: random ones, which the run makes.
        fits_tokenizer: whether they were fitted here, and the run keeps them.
        network: the teacher's.
        generator_network: of auxiliary and generator: the same, or a mixture of it.
        start: bundle of the finished generator that the training starts from, if one is named.
        sampler: what the generator is sampled with.
        conditions: classes or prompts.
        encoder: of the prompts; None: the conditions are classes. Of a teacher that the run trains
            it is trained with it, and random before.
        distance: measured of the generator in training; see train_fid.configured.
        programs: the training steps, by stage.
    """

    config: Mapping[str, Any]
    workdir: AnyPath
    layout: Layout
    pictures: TrainingSet | None
    reports: bool
    teacher: bundles.Bundle | None
    tokenizer: Tokenizer
    tokenizer_params: Any
    fits_tokenizer: bool
    network: Network
    generator_network: Network
    start: bundles.Bundle | None
    sampler: Any
    conditions: Conditions
    encoder: text_encoder.TextEncoder | None
    distance: Any
    programs: Mapping[str, Program]

    @functools.cached_property
    def pictured(self) -> tuple[Any, Any]:
        """(condition, null condition) of the grids drawn in training."""
        return load_conditions.pictured(self.config, self.conditions, PICTURES_OF_EACH)

    def draw(
        self,
        params: Any,
        sampler: Any,
        seed: int,
        condition: Any,
        first_index: int = 0,
    ) -> Images:
        """Return images in [0, 1] of the generator; see drawing.draw."""
        null = None
        if getattr(sampler, "guidance", 1) != 1:
            null = self.conditions.null(len(jax.tree.leaves(condition)[0]))
        network = self.generator_network
        return self._draw(network, params, sampler, seed, condition, null, first_index)

    def _draw(
        self,
        network: Network,
        params: Any,
        sampler: Any,
        seed: int,
        condition: Any,
        null_condition: Any,
        first_index: int,
    ) -> Images:
        size = min(self.config["evaluation"]["batch_size"], len(jax.tree.leaves(condition)[0]))
        model = drawing.ImageModel(network, params, self.tokenizer, self.tokenizer_params)
        key = jax.random.key(seed)
        drawn = drawing.draw(model, sampler, key, condition, null_condition, size, first_index)
        return drawn.pixels

    @property
    def teacher_sampler(self) -> dict[str, Any]:
        """The name of the teacher's sampler; empty for that of its network's authors."""
        if self.teacher is not None:
            return {k: v for k, v in (self.teacher.sampler or {}).items() if k == "name"}
        # Meissonic's gives the number of steps that follow as the time, and the training here the
        # share of masked tokens, or nothing.
        with_texts = self.pictures is not None and self.encoder is not None
        return {"name": "maskgit"} if with_texts else {}

    def draw_teacher(
        self,
        params: Any,
        num_steps: int,
        sampler: Mapping[str, Any],
        seed: int,
        condition: Any,
        null_condition: Any,
        first_index: int = 0,
    ) -> Images:
        """Return images of the teacher by its sampler, with some of its settings."""
        entry = {"num_steps": num_steps, **self.teacher_sampler, **sampler}
        chosen = samplers.settings_for(self.network, entry)
        given = (condition, null_condition)
        return self._draw(self.network, params, chosen, seed, *given, first_index)


def _texts(pictures: TrainingSet | None) -> tuple[str, ...]:
    """Return the texts of a run's training pictures; nothing is written for them."""
    if isinstance(pictures, training_sets.BuiltInSet):
        return pictures.pictures.in_memory("train").texts
    return () if pictures is None else pictures.texts


def load(config: Mapping[str, Any], workdir: AnyPath, layout: Layout) -> ImageRun:
    """Load what the config names and check it all; nothing is written, and no step computed.

    Args:
        config: a complete config that validation.validate took.
        workdir: of the run.
        layout: the mesh and its rules.

    Raises:
        InputError: what the config names cannot be read, or does not fit.
    """
    built_in, encoded = BUILT_IN.get(config["data"]["name"]), config["data"]["name"] == "tokens"
    reports = built_in is not None or (encoded and config["data"]["num_test"] > 0)
    checks.check_places(config, workdir)
    teacher = load_models.open_teacher(config)
    tokenizer, tokenizer_params = load_models.open_tokenizer(config, teacher)
    if built_in is not None:
        checks.check_pictures(config, built_in, tokenizer, workdir)
    if reports:
        checks.check_classifier(config, tokenizer.image_shape)
    name = tokenizer.config["name"]
    fits_tokenizer = tokenizer_params is None and name == "patches"
    if fits_tokenizer:
        if built_in is None:
            raise InputError(
                "config.tokenizer.name=patches is fitted to a set's pictures, and "
                f"config.data.name={config['data']['name']} has none; give config.tokenizer.bundle"
            )
        tokenizer_params = codebook.kept_or_fitted(
            workdir / codebook.FOLDER, tokenizer, built_in, config["seed"]
        )
    elif tokenizer_params is None and name == "gray_levels":
        tokenizer_params = {}
    known = tokenizer_params is not None
    digest = tokenizers.fingerprint(tokenizer, tokenizer_params) if known else None
    pictures = None
    if built_in is not None:
        where = config["data"]["directory"] or workdir / "data"
        pictures = training_sets.BuiltInSet(built_in, where)
    elif encoded:
        pictures = training_sets.open_encoded(config, tokenizer, digest)
    network = load_models.open_network(config, teacher, tokenizer, digest)
    generator_network = settings.generator_network(network, config)
    start = load_models.open_generator(config, generator_network, digest)
    checks.check_draws(config, network.codebook_size)
    checks.check_attention(config, network)
    if reports:
        checks.evaluation_settings(config, network)
    distance = train_fid.configured(config, tokenizer.image_shape[-1], reports)
    encoder, texts = None, ()
    if load_models.is_text(config):
        texts = _texts(pictures)
        beside = None if teacher is None else teacher.path
        encoder = text_encoder.open_encoder(config, beside, texts)
    conditions = load_conditions.open_conditions(config, network, encoder, texts)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    pretrains = configs.trains_teacher(config)
    programs = checks.stage_programs(config, network, network, shapes, layout, pretrains)
    return ImageRun(
        config=config,
        workdir=workdir,
        layout=layout,
        pictures=pictures,
        reports=reports,
        teacher=teacher,
        tokenizer=tokenizer,
        tokenizer_params=tokenizer_params,
        fits_tokenizer=fits_tokenizer,
        network=network,
        generator_network=generator_network,
        start=start,
        sampler=samplers.of_generator(generator_network, settings.sampler_of(config)),
        conditions=conditions,
        encoder=encoder,
        distance=distance,
        programs=programs,
    )
