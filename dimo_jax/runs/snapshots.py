"""The generator of a run at any of its checkpoints, finished or not, as a bundle.

The run may go on meanwhile: nothing in its work directory is changed, neither its data nor its
optimizers are opened, and only the averaged generator is read.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from dimo_jax import bundles, tokenizers
from dimo_jax.bundles import places
from dimo_jax.common import trees
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.conditions import text_encoder
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER
from dimo_jax.conditions.text_encoder import TextEncoder
from dimo_jax.data import joints
from dimo_jax.models import Network
from dimo_jax.training import load_conditions, load_models, saved, settings, stages


class Snapshot(NamedTuple):
    """A generator in the course of its training.

    Attributes:
        step: of its checkpoint.
        generator: its bundle, in memory alone; its path is the checkpoint.
        tokenizer: likewise; None where the run has none.
        encoder: of a run with text.
    """

    step: int
    generator: bundles.Bundle
    tokenizer: bundles.Bundle | None
    encoder: TextEncoder | None

    def save(self, path: AnyPath) -> AnyPath:
        """Write the bundle that the run would have exported, with its text encoder in it."""
        one, tokenizer = self.generator, self.tokenizer
        bundles.save(
            path,
            kind=one.kind,
            model=one.model,
            params=one.params,
            sampler=one.sampler,
            tokenizer=one.tokenizer,
            tokenizer_params=None if tokenizer is None else tokenizer.params,
            provenance=one.provenance,
            inside=self.encoder and {TEXT_ENCODER_FOLDER: self.encoder.content()},
        )
        return path


def generator_of(workdir: AnyPath, step: str | None) -> AnyPath | Snapshot:
    """Find the generator that flags ask for.

    Args:
        workdir: of dimo_jax.main.
        step: a number, "newest" or "best"; None: the newest that there is, the finished one's
            bundle or a checkpoint.

    Returns:
        Path of the finished generator's bundle, or a snapshot.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    if step is not None and step not in (saved.NEWEST, saved.BEST) and not step.isdecimal():
        raise InputError(f"--step={step} is neither a number of steps nor newest or best")
    export = workdir / places.EXPORT_FOLDER
    if step is None and (export / bundles.CONFIG_FILE).is_file():
        # A run that was made longer has newer checkpoints than its export.
        made = bundles.read_config(export)["provenance"].get("steps")
        later = saved.steps(stages.checkpoints_of(workdir, "distill"))[-1:]
        if not isinstance(made, int) or not later or later[0] <= made:
            return export
    wanted = step or saved.NEWEST
    return open_snapshot(workdir, int(wanted) if wanted.isdecimal() else wanted)


def open_snapshot(workdir: AnyPath, wanted: str | int) -> Snapshot:
    """Read the averaged generator of a checkpoint, and what belongs to it.

    Args:
        workdir: of dimo_jax.main.
        wanted: as saved.read_part.

    Raises:
        InputError: there is no such checkpoint, or what belongs to it cannot be read.
    """
    config, directory = load_models.run_config(workdir), stages.checkpoints_of(workdir, "distill")
    if not saved.steps(directory):
        raise InputError(
            f"the run in {workdir} has no checkpoint of a generator yet; start the same training "
            "command again, or wait for the first (config.checkpoint.save_every_steps)"
        )
    try:
        network, tokenizer, encoder = _around(config, workdir)
        network = settings.generator_network(network, config)
        sampler = settings.sampler_of(config)
        conditions = load_conditions.remembered(config, encoder)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{workdir / 'config.json'} is no complete config ({type(error).__name__}: {error}); "
            "the run was begun with another version, so use that"
        ) from error
    step, params = saved.read_part(directory, wanted, "ema")
    place = directory / str(step)
    wrong = trees.differences(params, jax.eval_shape(network.init, jax.random.key(0)))
    if wrong:
        raise InputError(
            f"checkpoint {place} does not fit the network of {workdir / 'config.json'}: "
            f"{'; '.join(wrong)}"
        )
    entry = None
    if tokenizer is not None:
        digest = tokenizers.fingerprint(tokenizer.build(), tokenizer.params)
        entry = {"config": tokenizer.model, "hash": digest}
    start = config["distill"]["generator"].get("bundle")
    parent = saved.meta(directory, step).get("generator") if start else None
    generator = bundles.Bundle(
        kind="generator",
        model=network.config,
        params=params,
        sampler=sampler,
        tokenizer=entry,
        provenance={
            **load_models.provenance(config, step, None),
            **({"parent": parent} if parent else {}),
            **conditions,
        },
        path=place,
        params_hash=trees.fingerprint(params),
    )
    return Snapshot(step, generator, tokenizer, encoder)


def _around(
    config: Mapping[str, Any], workdir: AnyPath
) -> tuple[Network, bundles.Bundle | None, TextEncoder | None]:
    """Return network, tokenizer and text encoder of a run, without data and teacher weights."""
    if config["data"]["name"] == "joint":
        joint = joints.load(config["data"]["joint"])
        return settings.network_of(config, joint.ndim, joint.shape[0]), None, None
    given = config["teacher"]["bundle"]
    named = places.find(given, "teacher") if given else None
    # Its own is there before the distillation begins.
    model = bundles.read_config(named or workdir / "teacher")["model"]
    encoder = None
    if load_models.is_text(config):
        encoder = text_encoder.open_encoder(config, named or workdir / "teacher")
    return settings.network_from(model, config), _tokenizer(config, workdir, named), encoder


def _tokenizer(
    config: Mapping[str, Any], workdir: AnyPath, teacher: AnyPath | None
) -> bundles.Bundle:
    """Return the tokenizer of a run.

    Named in its config, kept in its work directory, or made anew.
    """
    named = load_models.tokenizer_bundle(config, teacher)
    kept = [workdir / "teacher" / bundles.TOKENIZER_FOLDER, workdir / "tokenizer"]
    found = named or next((x for x in kept if (x / bundles.CONFIG_FILE).is_file()), None)
    if found:
        return bundles.load_tokenizer(found)
    # As runs.image_run makes it, where the teacher is a bundle: a function of config and seed.
    tokenizer, _ = load_models.open_tokenizer(config, None)
    params = jax.device_get(jax.jit(tokenizer.init)(jax.random.key(config["seed"])))
    return bundles.Bundle(
        kind="tokenizer",
        model=tokenizer.config,
        params=params,
        sampler=None,
        tokenizer=None,
        provenance={},
        path=workdir,
        params_hash=trees.fingerprint(params),
    )
