"""The two trainings, from config to the loop: the teacher's own, and the distillation.

Here the plain config turns into the settings objects of method/, and nowhere else.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dimo_jax import config as configs
from dimo_jax import models
from dimo_jax.conditions import labels
from dimo_jax.data import stream
from dimo_jax.method import denoise, distill, divergences, masking, pretrain
from dimo_jax.method.distill_settings import DistillSettings
from dimo_jax.method.generate import GeneratorSettings
from dimo_jax.models import Network
from dimo_jax.training import optimizers, rng, trees
from dimo_jax.training.checkpoints import Checkpoints
from dimo_jax.training.loop import check_settings, run_stage
from dimo_jax.training.metrics import Metrics

Config = Mapping[str, Any]
# (a stage's state, step) -> {name: uint8 image}
Pictures = Callable[[Any, int], Mapping[str, np.ndarray]]


def network_of(config: Config, num_tokens: int, codebook_size: int) -> Network:
    """The network of the section `model` for a tokenizer's sizes."""
    sizes = {"num_tokens": num_tokens, "codebook_size": codebook_size}
    classes = {"num_classes": config["data"]["num_classes"]}
    return network_from({**config["model"], **sizes, **classes}, config)


def network_from(model: Config, config: Config) -> Network:
    """The network of a bundle, as this run computes it.

    Args:
        model: a bundle's `model`.
        config: a complete config; config.compute_dtype is the run's choice, not the bundle's.
    """
    return models.build(model, config["compute_dtype"])


def checkpoints_of(workdir: Path, stage: str) -> Path:
    """Where a stage's checkpoints lie."""
    return workdir / "checkpoints" / stage


def denoise_settings(section: Config, mask_id: int) -> denoise.DenoiseSettings:
    """Settings of masked prediction from `pretrain` or `distill.auxiliary`."""
    return denoise.DenoiseSettings(
        mask=masking.MaskSettings(**section["mask"]),
        mask_id=mask_id,
        label_smoothing=section["label_smoothing"],
        condition_drop=section["condition_drop"],
        positions=section["positions"],
        reduction=section["reduction"],
        soft_weight=section.get("soft_weight", 0.0),
    )


def distill_settings(config: Config, network: Network) -> DistillSettings:
    """Settings of the Di[M]O step from the section `distill`."""
    section = config["distill"]
    teacher, auxiliary = section["teacher"], section["auxiliary"]
    low, high = section["ratio"]
    return DistillSettings(
        generator=GeneratorSettings(
            num_tokens=network.num_tokens,
            codebook_size=network.codebook_size,
            mask_id=network.mask_id,
            ratio_low=low,
            ratio_high=high,
            sigma=section["sigma"],
            temperature=section["temperature"],
            top_k=section["top_k"],
            top_p=section["top_p"],
        ),
        sigma_schedule=section["sigma_schedule"],
        sigma_warmup_steps=section["sigma_warmup_steps"],
        mask=masking.MaskSettings(**section["mask"]),
        divergence=divergences.by_name(**section["divergence"]),
        jacobian=section["jacobian"],
        guidance=section["guidance"],
        adaptive_guidance=section["adaptive_guidance"],
        teacher_temperature=teacher["temperature"],
        teacher_top_k=teacher["top_k"],
        teacher_top_p=teacher["top_p"],
        teacher_lowered_by=teacher["lowered_by"],
        aux_temperature=auxiliary["temperature"],
        reduction=section["reduction"],
        weighting=section["weighting"],
        aux=denoise_settings(auxiliary, network.mask_id),
        aux_sample=auxiliary["sample"],
        aux_updates=auxiliary["updates"],
        teacher_dropout=teacher["dropout"],
        aux_dropout=auxiliary["dropout"],
        generator_dropout=section["generator"]["dropout"],
        ema_decay=section["ema_decay"],
        ema_warmup=section["ema_warmup"],
    )


def sampler_of(config: Config) -> dict[str, Any]:
    """The sampler entry of the generator's bundle: what it is sampled with.

    Ratio and sigma must be those of the training. Temperature and truncation are free afterwards:
    the paper's own best temperature in sampling is not the 1 it trains with (appendix D.1).
    """
    section = config["distill"]
    low, high = section["ratio"]
    ratio = low if low == high else [low, high]
    return {"ratio": ratio, "sigma": section["sigma"], **config["sampler"]}


def refuse_other_settings(config: Config, directories: Mapping[str, Path]) -> None:
    """Compares a config to what stages were begun with, before anything of a run is touched.

    Args:
        config: a complete config.
        directories: {"pretrain" or "distill": its checkpoints}; those that do not exist are new.

    Raises:
        InputError: if a stage has a checkpoint of other settings; each is listed.
    """
    for stage, directory in directories.items():
        if not directory.exists():
            continue
        checkpoints = Checkpoints(directory, config["checkpoint"]["keep"])
        try:
            if checkpoints.latest() is not None:
                # Hashes of the networks come later; until then the saved ones stand for them.
                meta = {**checkpoints.meta(), **configs.stage_settings(config, stage)}
                check_settings(stage, checkpoints, meta)
        finally:
            checkpoints.close()


def run_pretrain(
    config: Config,
    network: Network,
    tokens: Int[np.ndarray, "N L"],
    classes: Int[np.ndarray, "N"],
    *,
    directory: Path,
    metrics: Metrics,
    pictures: Pictures | None = None,
) -> Any:
    """Trains a teacher on data tokens, or goes on from its newest checkpoint.

    Args:
        config: a complete config.
        network: the teacher's.
        tokens: [N, L] the training split.
        classes: [N] its labels.
        directory: of the checkpoints.
        metrics: of the run.
        pictures: what to draw from the state at intervals.

    Returns:
        The averaged parameters, which are the teacher.
    """
    section, seed, size = config["pretrain"], config["seed"], config["pretrain"]["batch_size"]
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    optimizer, rate = _optimizer(section, section["num_steps"], shapes)
    step = pretrain.make_step(
        network.apply,
        optimizer,
        denoise_settings(section, network.mask_id),
        dropout=section["dropout"],
        ema_decay=section["ema_decay"],
        ema_warmup=section["ema_warmup"],
    )
    index, null = jnp.arange(size), labels.null(size, network.num_classes)

    def create_state() -> pretrain.PretrainState:
        key = rng.stream_key(seed, "teacher_parameters")
        return pretrain.create_state(network.init(key), optimizer)

    def batch_of(number: int) -> pretrain.PretrainBatch:
        chosen = stream.batch_indices(seed, number, size, len(tokens))
        return pretrain.PretrainBatch(
            seed=np.int32(seed),
            index=index,
            tokens=tokens[chosen],
            condition=classes[chosen],
            null_condition=null,
        )

    jitted = jax.jit(
        _with_rates(step, {"teacher_learning_rate": rate}),
        donate_argnums=0,
        compiler_options=_options(config),
    )
    meta = configs.stage_settings(config, "pretrain")
    return _run(
        "pretrain", create_state, jitted, batch_of, config, meta,
        directory, metrics, pictures, shown=("teacher_loss",),
    ).ema  # fmt: skip


def run_distill(
    config: Config,
    network: Network,
    start: Any,
    teacher_network: Network,
    teacher_params: Any,
    *,
    directory: Path,
    metrics: Metrics,
    pictures: Pictures | None = None,
) -> Any:
    """Distils a teacher into a one-step generator, or goes on from the newest checkpoint.

    Args:
        config: a complete config.
        network: of generator and auxiliary.
        start: parameters that both start from, usually the teacher's.
        teacher_network: the teacher's network, usually the same.
        teacher_params: frozen.
        directory: of the checkpoints.
        metrics: of the run.
        pictures: what to draw from the state at intervals.

    Returns:
        The averaged generator.
    """
    section, seed, size = config["distill"], config["seed"], config["distill"]["batch_size"]
    num_steps, updates = section["num_steps"], section["auxiliary"]["updates"]
    generator_optimizer, generator_rate = _optimizer(section["generator"], num_steps, start)
    aux_optimizer, aux_rate = _optimizer(section["auxiliary"], num_steps * updates, start)
    step = distill.make_step(
        network.apply,
        teacher_network.apply,
        generator_optimizer,
        aux_optimizer,
        distill_settings(config, network),
    )
    index, null = jnp.arange(size), labels.null(size, network.num_classes)
    teacher_params = jax.device_put(teacher_params)

    @jax.jit
    def conditions(number: Any) -> tuple[Any, Any]:
        def draw(name: str) -> Any:
            keys = rng.example_keys(rng.stream_key(seed, name, number), index)
            return labels.draw(keys, network.num_classes)

        fresh = [draw(f"aux{k}_condition") for k in range(updates)]
        return draw("generator_condition"), jnp.stack(fresh)

    def batch_of(number: int) -> distill.DistillBatch:
        condition, aux_condition = conditions(np.int32(number))
        return distill.DistillBatch(
            seed=np.int32(seed),
            index=index,
            condition=condition,
            aux_condition=aux_condition,
            null_condition=null,
        )

    create = jax.jit(
        lambda params: distill.create_state(params, generator_optimizer, aux_optimizer)
    )
    rates = {
        "generator_learning_rate": generator_rate,
        "aux_learning_rate": lambda number: aux_rate(number * updates),
    }
    jitted = jax.jit(_with_rates(step, rates), donate_argnums=0, compiler_options=_options(config))
    meta = {
        **configs.stage_settings(config, "distill"),
        "teacher": trees.fingerprint(teacher_params),
        "start": trees.fingerprint(start),
    }
    return _run(
        "distill", lambda: create(start), lambda state, batch: jitted(state, teacher_params, batch),
        batch_of, config, meta, directory, metrics, pictures, shown=("divergence", "aux_loss"),
    ).ema  # fmt: skip


def _optimizer(section: Config, num_steps: int, params: Any) -> tuple[Any, Callable]:
    """A section's optimizer, and its learning rate as a function of the update."""
    fields = section["optimizer"]
    names = ("learning_rate", "schedule", "warmup_steps")
    rate = optimizers.learning_rate_schedule(**{n: fields[n] for n in names}, num_steps=num_steps)
    return optimizers.build(**fields, num_steps=num_steps, params=params), rate


def _options(config: Config) -> dict[str, Any] | None:
    """XLA's options for a step; another backend than the CPU's does not know these."""
    if not config["fast_compile"] or jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def _with_rates(step: Callable, rates: Mapping[str, Callable]) -> Callable:
    """The step with learning rates among its metrics."""

    def run(state: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
        new, values = step(state, *args)
        return new, {**values, **{name: rate(state.step) for name, rate in rates.items()}}

    return run


def _run(
    name: str,
    create_state: Callable[[], Any],
    step: Callable[..., Any],
    batch_of: Callable[[int], Any],
    config: Config,
    meta: Mapping[str, Any],
    directory: Path,
    metrics: Metrics,
    pictures: Pictures | None,
    shown: tuple[str, ...],
) -> Any:
    checkpoints = Checkpoints(directory, config["checkpoint"]["keep"])
    try:
        return run_stage(
            name,
            create_state,
            step,
            batch_of,
            config[name]["num_steps"],
            checkpoints=checkpoints,
            metrics=metrics,
            meta=meta,
            log_every_steps=config["logging"]["log_every_steps"],
            save_every_steps=config["checkpoint"]["save_every_steps"],
            images_every_steps=config["logging"]["images_every_steps"],
            on_images=pictures,
            shown=shown,
        )
    finally:
        checkpoints.close()
