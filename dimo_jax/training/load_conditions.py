"""What a run is conditioned on, from its config: classes, or prompts with their text encoder."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from dimo_jax.common.errors import about
from dimo_jax.common.progress import Progress
from dimo_jax.conditions import labels
from dimo_jax.conditions import prompts as prompt_conditions
from dimo_jax.conditions.labels import LabelConditions
from dimo_jax.conditions.prompts import PromptConditions
from dimo_jax.conditions.text import MICRO_CONDITIONS, TEXT_ENCODER_FOLDER, TextConditions
from dimo_jax.conditions.text_encoder import TextEncoder
from dimo_jax.data import prompts
from dimo_jax.models import Network
from dimo_jax.parallel import distributed
from dimo_jax.training.programs import Conditions, DataConditions

# Prompts of the pictures drawn in training, where the config names none.
_PICTURE_PROMPTS = 4
_PICTURE_CLASSES = 16  # likewise
_PROMPTS_IN_A_CALL = 64  # of the encoder on one device
_COUNTED = 100_000  # of a long list the first ones are looked at, which takes seconds


def open_conditions(
    config: Mapping[str, Any],
    network: Network,
    encoder: TextEncoder | None,
    texts: Sequence[str] = (),
) -> Conditions:
    """Return what a run is conditioned on; nothing is computed or written before its `fill_cache`.

    Args:
        config: a complete config.
        network: the run's.
        encoder: of a run with text; None: the conditions are classes.
        texts: of the run's pictures, which are its prompts; none: the config says where they are.

    Raises:
        InputError: the prompts cannot be read, the encoder is not the network's, or the cache is
            of something else.
    """
    if encoder is None:
        return LabelConditions(network.num_classes)
    section = config["prompts"]
    if texts:
        found = prompts.unique(f"the pictures of config.data.name={config['data']['name']}", texts)
    elif section["texts"]:
        found = prompts.unique("config.prompts.texts", section["texts"])
    else:
        where = config["data"]["directory"] or "~/tensorflow_datasets"
        with about("config.prompts.path"):
            found = prompts.read(section["path"], section["field"], where)
    if distributed.is_lead():
        with Progress("prompts") as progress:
            progress.note(found.describe())
            if cut := encoder.tokenizer.describe_cut(found.texts[:_COUNTED]):
                progress.note(cut if len(found.texts) <= _COUNTED else f"of the first ones {cut}")
    text = text_conditions(config, network, encoder)
    conditions = PromptConditions(found, text, section["negative"])
    # Each process reads the list itself, and the path may mean another file on each machine.
    distributed.assert_same(conditions.identity())
    if section["cache"]:
        with about("config.prompts.cache"):
            conditions.open_cache(section["cache"], config["compute_dtype"])
    return conditions


def text_conditions(
    config: Mapping[str, Any], network: Network, encoder: TextEncoder
) -> TextConditions:
    """Return the encoder of a run as what its network is conditioned on.

    Raises:
        InputError: it is not the network's.
    """
    micro = config["prompts"]["micro_conditions"]
    with about("config.text_encoder"):
        return encoder.conditions(network, _PROMPTS_IN_A_CALL, micro)


def remembered(config: Mapping[str, Any], encoder: TextEncoder | None) -> dict[str, Any]:
    """Return what the bundle of a network keeps of its conditions: nothing where they are classes.

    Args:
        config: of its run.
        encoder: of its texts.
    """
    if encoder is None:
        return {}
    micro = list(config["prompts"][MICRO_CONDITIONS])
    return {TEXT_ENCODER_FOLDER: encoder.identity, MICRO_CONDITIONS: micro}


def pictured(
    config: Mapping[str, Any], conditions: Conditions | DataConditions, several: int
) -> tuple[Any, Any]:
    """Return the conditions of the grids drawn in training, each several times, and the null one.

    Args:
        config: a complete config.
        conditions: the run's.
        several: pictures of each.

    Returns:
        (condition, null condition), pytrees of host arrays with the same leading axis.
    """
    section = config["logging"]
    if isinstance(conditions, LabelConditions):
        labels = section["picture_labels"] or range(min(conditions.num, _PICTURE_CLASSES))
        found = conditions.features(np.asarray(labels))
    elif section["picture_prompts"]:
        found = conditions.of_texts(section["picture_prompts"])
    else:
        found = conditions.features(np.arange(min(_PICTURE_PROMPTS, conditions.num)))
    found = jax.tree.map(lambda x: np.repeat(x, several, axis=0), found)
    return found, conditions.null(len(jax.tree.leaves(found)[0]))


def in_turn(conditions: Conditions, num: int) -> Int[np.ndarray, "N"]:
    """Numbers of classes by their shares, or of prompts, one after the other."""
    if isinstance(conditions, LabelConditions):
        return labels.in_turn(num, conditions.num, conditions.shares)
    return prompt_conditions.in_turn(num, conditions.num)
