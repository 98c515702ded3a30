"""The images of a tokens folder: its pictures as its tokenizer gives them back, or as it saw them.

Of several views of a picture the first one counts: more of them would be near copies, of which
precision to coverage make too small a manifold. Axes: N images, H height, W width.
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Int, UInt8

from dimo_jax import bundles, tokenizers
from dimo_jax.common import crops, images
from dimo_jax.common.errors import InputError
from dimo_jax.common.shown import listed
from dimo_jax.data.picture_sources import open_pictures
from dimo_jax.data.token_sets import TokenSet
from dimo_jax.evaluation.images.image_set import Batch, ImageSet, digest
from dimo_jax.tokenizers.tokenizer import decode_in_chunks

_AT_ONCE = 64  # decoded; of large images fewer, see decode_in_chunks
_THREADS = 8  # Pillow's decoders let go of the interpreter's lock
_CHUNK = 4096  # examples whose labels are read together


class Decoded(ImageSet):
    """Tokens, decoded: what is left of the pictures.

    Args:
        tokens: the set.
        tokenizer: the bundle that it was encoded with.

    Raises:
        InputError: it is another tokenizer.
    """

    def __init__(self, tokens: TokenSet, tokenizer: bundles.Bundle):
        self._tokens = tokens
        network = tokenizer.build()
        found = tokenizers.fingerprint(network, tokenizer.params)
        tokens.check_tokenizer(tokenizer.model["name"], found, str(tokenizer.path))
        tokens.check_sizes(
            network.num_tokens, network.codebook_size, "its tokenizer", "encode the pictures again"
        )
        super().__init__(str(tokens.path), tokens.num)
        self.class_names = tokens.class_names
        self.height, self.width = network.image_shape[:2]
        self.facts = {"decoded": tokens.facts.source, "tokenizer": tokens.tokenizer_hash}
        self._network, self._params = network, jax.device_put(tokenizer.params)

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, "N"] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the class of each image, which is read when it is asked for."""
        if self._tokens.condition != "label":
            return None
        parts = range(0, self.num, _CHUNK)
        return np.concatenate(
            [self._at(start, min(start + _CHUNK, self.num))[1] for start in parts]
        )

    def _at(self, start: int, stop: int) -> tuple[Int[np.ndarray, "N L"], Int[np.ndarray, "N"]]:
        indices = np.arange(start, stop)
        return self._tokens.at(indices, np.zeros_like(indices))

    def name(self, index: int) -> str:
        """Return the name of the picture, as decoded."""
        return f"{self._tokens.names([index])[0]} of {self.where}, decoded"

    def pairs_with(self, other: ImageSet) -> bool:
        """Return whether those are the pictures that were encoded, without those left out."""
        return isinstance(other, Cut) and other.is_source and other.num == self.num

    def identity(self, start: int, stop: int) -> str:
        """Hash the tokens themselves, which are few bytes."""
        tokens, _ = self._at(start, stop)
        return digest(self._tokens.tokenizer_hash, tokens.tobytes().hex())

    def read(self, start: int, stop: int) -> Batch:
        """Decode them."""
        tokens, _ = self._at(start, stop)
        found = decode_in_chunks(self._network, self._params, tokens, _AT_ONCE)
        rgb = images.in_rgb(images.to_uint8(found))
        return Batch(rgb, np.zeros(len(rgb), np.uint8))


class Cut(ImageSet):
    """Pictures, cut out as those of a tokens folder were.

    Args:
        where: anything that picture_sources.open_pictures takes.
        tokens: the set; of its pictures those that it lacks are left out here too.
        data_dir: where tensorflow-datasets lie.

    Raises:
        InputError: there are no pictures there, or the settings of the set are none of crops.
    """

    def __init__(self, where: str, tokens: TokenSet, data_dir: str):
        self.is_source = own = _is_source(where, tokens)
        settings = tokens.facts.settings
        condition, field = (tokens.condition, settings.get("field")) if own else ("none", "")
        self._pictures = open_pictures(where, condition, field or "", data_dir, follow_links=True)
        self._cut = crops.from_plain(tokens.facts.image_size, settings, str(tokens.path))
        left_out = {name for name, _ in tokens.skipped} if own else set()
        names = (self._pictures.name(i) for i in range(self._pictures.num))
        self._indices = [i for i, name in enumerate(names) if name not in left_out]
        super().__init__(where, len(self._indices))
        self.height = self.width = tokens.facts.image_size
        self.class_names = tokens.class_names
        self.notes += self._pictures.notes

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, "N"] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the class of each image, which is read when it is asked for."""
        if self._pictures.condition != "label":
            return None
        return np.array([self._pictures.label(i) for i in self._indices], np.int32)

    def name(self, index: int) -> str:
        """Return the name of a picture."""
        return f"{self._pictures.name(self._indices[index])} of {self.where}"

    def identity(self, start: int, stop: int) -> str:
        """Hash what is known of the files, and how they are cut."""
        stamps = (self._pictures.stamp(i) for i in self._indices[start:stop])
        return digest(str(self._cut), self._pictures.version, f"{start} {stop}", *stamps)

    def read(self, start: int, stop: int) -> Batch:
        """Read and cut them."""
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(self._one, range(start, stop)))
        if errors := [str(x) for x in found if isinstance(x, InputError)]:
            raise InputError(listed(errors))
        pixels = np.stack([x for x in found if isinstance(x, np.ndarray)])
        return Batch(pixels, np.zeros(len(pixels), np.uint8))

    def _one(self, index: int) -> UInt8[np.ndarray, "S S 3"] | InputError:
        place = self._indices[index]
        try:
            return crops.cut(self._pictures.read(place), self._cut, place, 0, self.name(index))
        except InputError as error:
            return error


def _is_source(where: str, tokens: TokenSet) -> bool:
    """Return whether these are the pictures that were encoded, by their place."""
    places = (os.path.abspath(os.path.expanduser(x)) for x in (where, tokens.facts.source))
    return len({*places}) == 1
