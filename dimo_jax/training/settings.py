"""From the plain config to the settings objects of method/ and models/: here, and nowhere else."""

from collections.abc import Callable, Mapping
from typing import Any

from dimo_jax import config as configs
from dimo_jax import models
from dimo_jax.common.errors import InputError
from dimo_jax.config import mixture
from dimo_jax.method.dimo import divergences
from dimo_jax.method.dimo.generate import GeneratorSettings
from dimo_jax.method.dimo.settings import DistillSettings
from dimo_jax.method.masked import denoise, masking
from dimo_jax.method.mixture.objective import ObjectiveSettings
from dimo_jax.method.mixture.step import MixtureSettings
from dimo_jax.method.mixture.targets import TeacherStepSettings
from dimo_jax.models import Network
from dimo_jax.parallel.sharding import Layout
from dimo_jax.training import optimizers

Config = Mapping[str, Any]


def compute_of(config: Config, layout: Layout | None = None) -> models.Compute:
    """Return how a run computes its networks.

    Args:
        config: a complete config.
        layout: of the mesh that parameters are sharded over; None where they are replicated, as in
            sampling. The kernel for TPUs needs a mesh wherever there are several devices, so that
            naming it is then a wish, not a condition.
    """
    attention = config["attention"]
    return models.Compute(
        dtype=config["compute_dtype"],
        remat=config["remat"],
        scan_layers=config["scan_layers"],
        attention="auto" if attention == "pallas" and not layout else attention,
        mesh=layout.mesh if layout else None,
        gather=layout.gather if layout and layout.mesh.shape["fsdp"] > 1 else None,
    )


def on_mesh(network: Network, config: Config, layout: Layout) -> Network:
    """Return the network as a training step computes it, with parameters that may be divided."""
    return models.build(network.config, compute_of(config, layout))


def network_of(config: Config, num_tokens: int, codebook_size: int) -> Network:
    """Return the network of the section `model` for a tokenizer's sizes."""
    sizes = {"num_tokens": num_tokens, "codebook_size": codebook_size}
    if config["model"]["name"] not in models.TEXT_TRANSFORMERS:
        sizes["num_classes"] = config["data"]["num_classes"]
    return network_from({**config["model"], **sizes}, config)


def network_from(model: Config, config: Config) -> Network:
    """Return the network of a bundle, as this run computes it.

    Args:
        model: a bundle's `model`.
        config: a complete config; how it is computed is the run's choice, not the bundle's, and
            so is distill.timestep where it is given.

    Raises:
        InputError: a timestep for a network that takes none.
    """
    timestep = config["distill"]["timestep"]
    if timestep and "timestep" not in model:
        raise InputError(
            f"config.distill.timestep={timestep} is for networks with text; the network "
            f"{model['name']} does not take the time, so leave it empty"
        )
    chosen = {"timestep": timestep} if timestep else {}
    return models.build({**model, **chosen}, compute_of(config))


def denoise_settings(section: Config, mask_id: int) -> denoise.DenoiseSettings:
    """Return the settings of masked prediction from `pretrain` or `distill.auxiliary`."""
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
    """Return the settings of the Di[M]O step from the section `distill`."""
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
            **later_steps(section),
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
        parts=section["parts"],
        step_shares=tuple(section["step_shares"]),
        step_remask=section["step_remask"],
        aux_steps=auxiliary["steps"],
    )


def later_steps(section: Config) -> dict[str, Any]:
    """Return what GeneratorSettings say of steps after the first; nothing where there is one.

    Args:
        section: `distill`; that of a run before there were more steps has none of the fields.
    """
    steps = section.get("steps", 1)
    if steps == 1:
        return {}
    return {
        "step_ratios": configs.step_ratios(section),
        "step_sigma": section["step_sigma"],
        "redraw": section["step_tokens"] == "redraw",
    }


def generator_network(network: Network, config: Config) -> Network:
    """Return the network of the generator: the teacher's, or with a mixture of it.

    Args:
        network: the teacher's.
        config: a complete config.

    Raises:
        InputError: it is a network that there is no mixture of.
    """
    if not mixture.is_chosen(config) or network.has_mixture:
        return network
    if network.config["name"] != "maskgit":
        raise InputError(
            f"config.distill.method is mixture, for the network maskgit; the teacher is a "
            f"{network.config['name']}, so give another one, or another method"
        )
    mixed = {**network.config, "mixture_dim": config["distill"]["mixture"]["width"]}
    return models.build(mixed, compute_of(config))


def mixture_settings(config: Config, network: Network) -> MixtureSettings:
    """Return the settings of the Di4C step from the sections `distill` and `distill.mixture`."""
    section, own = config["distill"], config["distill"]["mixture"]
    return MixtureSettings(
        mask_id=network.mask_id,
        replicas=own["replicas"],
        condition_drop=own["condition_drop"],
        objective=ObjectiveSettings(own["delta"], own["data_weight"], own["data_schedule"]),
        teacher_step=TeacherStepSettings(
            section["mask"]["schedule"],
            own["delta"],
            own["teacher_steps"],
            own["choice_temperature"],
        ),
        dropout=section["generator"]["dropout"],
        ema_decay=section["ema_decay"],
        ema_warmup=section["ema_warmup"],
        parts=section["parts"],
        replica_parts=own["parts"],
    )


def sampler_of(config: Config) -> dict[str, Any]:
    """Return the sampler entry of the generator's bundle: what it is sampled with.

    Sigma and steps must be those of the training. Temperature and truncation are free afterwards:
    the paper's own best temperature in sampling is not the 1 it trains with (appendix D.1). So is
    the first mask ratio: fewer random tokens than in training make samples more typical.
    """
    section = config["distill"]
    drawing = {name: x for name, x in config["sampler"].items() if name != "ratio"}
    if mixture.is_chosen(config):
        own = section["mixture"]
        return {
            "name": "maskgit",
            "num_steps": own["steps"][0],
            "schedule": section["mask"]["schedule"],
            "counts": "differences",
            "guidance": own["guidance"],
            "choice_temperature": own["choice_temperature"],
            **drawing,
        }
    low, high = config["sampler"].get("ratio") or section["ratio"]
    ratio = low if low == high else [low, high]
    later = later_steps(section)
    if later:
        later["step_ratios"] = list(later["step_ratios"])
    return {"ratio": ratio, "sigma": section["sigma"], **drawing, **later}


def samplers_of(config: Config) -> list[dict[str, Any]]:
    """Return `sampler_of`, and the same with the other numbers of steps that are measured."""
    entry = sampler_of(config)
    if not mixture.is_chosen(config):
        return [entry]
    return [{**entry, "num_steps": steps} for steps in config["distill"]["mixture"]["steps"]]


def optimizer_of(config: Config, name: str, num_steps: int, params: Any) -> tuple[Any, Callable]:
    """Return a section's optimizer, and its learning rate as a function of the update.

    Args:
        config: a complete config.
        name: of the section with the fields of `optimizer` in it, e.g. "distill.generator".
        num_steps: updates in all.
        params: the tree it is for, or its shapes.

    Raises:
        InputError: as optimizers.build, with the full name of the field.
    """
    fields, where = config, f"config.{name}.optimizer."
    for part in (*name.split("."), "optimizer"):
        fields = fields[part]
    names = ("learning_rate", "schedule", "warmup_steps")
    rate = optimizers.learning_rate_schedule(**{n: fields[n] for n in names}, num_steps=num_steps)
    return optimizers.build(**fields, num_steps=num_steps, params=params, where=where), rate
