"""CLIP's text tower of a run: found beside a model, or at random sizes, with its tokenizer."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dimo_jax import bundles
from dimo_jax import config as configs
from dimo_jax.common.errors import InputError, about
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.conditions import clip_tokenizer, trained_vocabulary, transformers_tokenizer
from dimo_jax.conditions.clip_tokenizer import ClipTokenizer
from dimo_jax.conditions.text import (
    TEXT_ENCODER_FOLDER,
    TextConditions,
    check_belongs,
    identity_of,
)
from dimo_jax.models import Network, clip
from dimo_jax.parallel import distributed


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """CLIP's text tower as a run needs it.

    Attributes:
        network: CLIP.
        params: its parameters, on the host.
        tokenizer: the one that its bundle carries.
        provenance: where it comes from.
    """

    network: clip.Clip
    params: Any
    tokenizer: ClipTokenizer
    provenance: Mapping[str, Any]

    def conditions(
        self, network: Network, batch_size: int, micro: Sequence[float | int]
    ) -> TextConditions:
        """Return the tower as what a network is conditioned on.

        Args:
            network: whose condition is text.
            batch_size: prompts in a call.
            micro: the five micro-conditions of every prompt.

        Raises:
            InputError: the encoder is not the network's.
        """
        # Kept: another one would compile the tower again, and send it to the device again.
        key = (network, batch_size, tuple(micro))
        if key not in self._conditions:
            parts = (self.network, self.params, self.tokenizer, network.condition)
            self._conditions[key] = TextConditions(*parts, batch_size, micro)
        return self._conditions[key]

    @functools.cached_property
    def _conditions(self) -> dict[tuple[Network, int, tuple[float, ...]], TextConditions]:
        return {}

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Return what decides the features, as the bundle of a generator remembers it."""
        return identity_of(self.params, self.tokenizer)

    def content(self) -> dict[str, Any]:
        """Return a bundle of it, as bundles.save takes it."""
        return {
            "kind": "clip",
            "model": self.network.config,
            "params": self.params,
            "provenance": {k: v for k, v in self.provenance.items() if k != "attachments"},
            "attachments": self.tokenizer.files,
        }


def encoder_of(model: AnyPath) -> AnyPath:
    """Path of the text encoder that lies in a model's bundle, or beside it.

    Args:
        model: path of the network's bundle.

    Raises:
        InputError: there is none.
    """
    places = [place / TEXT_ENCODER_FOLDER for place in (model, model.parent)]
    found = next((x for x in places if (x / bundles.CONFIG_FILE).is_file()), None)
    if found is None:
        raise InputError(
            f"there is no text encoder at {places[0]} nor {places[1]}; give --text_encoder=BUNDLE "
            "(of a training --config.text_encoder.bundle=BUNDLE), which python -m dimo_jax.convert "
            "--source=meissonic makes of the folder text_encoder"
        )
    return found


def load_encoder(
    path: AnyPath | str | None,
    model: AnyPath | None = None,
    expected: Mapping[str, str] | None = None,
) -> TextEncoder:
    """Return the text encoder that belongs to a network.

    Args:
        path: of its bundle; None or empty: text_encoder/ in the model's bundle or beside it.
        model: path of the network's bundle, where there is one.
        expected: what the network remembers of the one that it was trained with, a
            TextEncoder.identity; None: as its config.json says, if anything.

    Raises:
        InputError: there is none, it is another kind of bundle, or another encoder than the model
            was trained with.
    """
    if not path and model is not None:
        path = encoder_of(model)
    bundle = bundles.load(path or "", kind="clip")
    network = bundle.build()
    tokenizer = clip_tokenizer.of_files(bundle.attachments, bundle.model["text"], bundle.path)
    # Of a Hugging Face folder, which were converted without its tokenizer: until it was kept, all.
    if bundle.model["image"] is None and not tokenizer.identity and "file" in bundle.provenance:
        with Progress("text encoder", silent=not distributed.is_lead()) as progress:
            progress.note(
                f"{bundle.path} carries open_clip's tokenizer: '!' and typographic signs have "
                "other ids than in transformers; for those convert the folder again, tokenizer/ too"
            )
    encoder = TextEncoder(network, bundle.params, tokenizer, bundle.provenance)
    if expected is None and model is not None and (model / bundles.CONFIG_FILE).is_file():
        expected = bundles.read_config(model)["provenance"].get(TEXT_ENCODER_FOLDER)
    if expected is not None:
        check_belongs(expected, encoder.identity, bundle.path, model)
    return encoder


def open_encoder(
    config: Mapping[str, Any], teacher: AnyPath | None, texts: Sequence[str] = ()
) -> TextEncoder:
    """Return the text encoder of a run.

    Args:
        config: a complete config, of a run with text.
        teacher: path of the teacher's bundle; None: it is random or still to be trained, and so is
            an encoder without a bundle.
        texts: of the run's pictures, for the words of such an encoder; none: the 256 bytes.

    Raises:
        InputError: as `load_encoder`, or the sizes of the section `text_encoder` are wrong, or too
            many for the texts.
    """
    if teacher is not None or config["text_encoder"]["bundle"]:
        with about("config.text_encoder.bundle"):
            return load_encoder(config["text_encoder"]["bundle"], teacher)
    network = encoder_network(config)
    params = jax.device_get(jax.jit(network.init)(jax.random.key(config["seed"])))
    if not texts:
        tokenizer = clip_tokenizer.open_clip([], network.context)
        return TextEncoder(network, params, tokenizer, {"random": "as config.teacher.random asks"})
    with about("config.text_encoder.text.vocabulary"):
        merges = trained_vocabulary.train(texts, network.config["text"]["vocabulary"])
    data = transformers_tokenizer.from_merges(merges, network.context)
    tokenizer = clip_tokenizer.transformers(data, network.context)
    return TextEncoder(network, params, tokenizer, {"title": config["title"]})


def encoder_network(config: Mapping[str, Any]) -> clip.Clip:
    """Return the text tower of the sizes in the section `text_encoder`.

    Raises:
        InputError: they are wrong.
    """
    sizes = configs.without(config["text_encoder"], "bundle")
    with about("config.text_encoder"):
        return clip.build({"name": "clip", "image": None, **sizes})
