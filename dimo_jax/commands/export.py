"""Writes a bundle in a form that other programs read, and reads it back."""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.flags import FlagValues
from flax import serialization
from jax import export as jax_export
from jaxtyping import Array, Float, Int, UInt32
from safetensors import deserialize
from safetensors import numpy as safetensors_numpy

from dimo_jax import bundles, samplers
from dimo_jax.bundles import ownership, places
from dimo_jax.common import files, hub, overlaps, rng, trees
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.convert import sources
from dimo_jax.convert.formats import torch_files, torch_writer
from dimo_jax.convert.networks import layouts
from dimo_jax.generation import drawing
from dimo_jax.parallel import backend
from dimo_jax.runs import snapshots
from dimo_jax.samplers import one_step

PLATFORMS = ("cpu", "cuda", "tpu")
_DTYPES = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool"}


def msgpack(bundle: bundles.Bundle) -> bytes:
    """Return the parameter tree, as flax.serialization.msgpack_restore reads it."""
    return bundles.params_bytes(bundle.params)


def read_msgpack(data: bytes) -> dict[str, np.ndarray]:
    """Leave by path name, of what `msgpack` wrote."""
    return trees.named_leaves(serialization.msgpack_restore(data))


def safetensors(bundle: bundles.Bundle) -> bytes:
    """Return the leaves by path name; the metadata entry "config" is the bundle's config.json."""
    place = bundle.path / bundles.CONFIG_FILE
    if place.is_file():
        config = place.read_text(encoding="utf-8")
    else:  # of a checkpoint: as it would be saved
        about = (bundle.kind, bundle.model, bundle.sampler, bundle.tokenizer, bundle.provenance)
        config = bundles.config_text(*about, bundle.params)
    # safetensors 0.8.0 writes strided arrays wrongly and says nothing. Not ascontiguousarray, which
    # turns a scalar into an array of one.
    leaves = {
        name: np.asarray(leaf, order="C")
        for name, leaf in trees.named_leaves(bundle.params).items()
    }
    return safetensors_numpy.save(leaves, metadata={"config": config})


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Leave by path name, of what `safetensors` wrote."""
    leaves = {}
    for name, entry in deserialize(data):
        # Not safetensors.numpy.load: 0.8.0 writes bfloat16 from NumPy, but does not read it back.
        letters = entry["dtype"].rstrip(string.digits)
        dtype = jnp.dtype(_DTYPES[letters] + entry["dtype"].removeprefix(letters))
        leaves[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return leaves


def image_function(
    generator: bundles.Bundle, tokenizer: bundles.Bundle
) -> Callable[[UInt32[Array, "2"], Int[Array, "B"]], Float[Array, "B H W C"]]:
    """Return the generator, from a key and labels to images, as one traceable function.

    Args:
        generator: its bundle.
        tokenizer: its tokenizer's bundle.

    Returns:
        (key_data uint32 [2], labels int32 [B]) -> float32 [B, H, W, C] in [0, 1]. The same images
        as dimo_jax.sample with the key jax.random.key(seed), whose data are [0, seed].
    """
    network, decoder = generator.build(), tokenizer.build()
    settings, plan = samplers.prepare(drawing.sampler_of(generator, {}), network.num_tokens)
    # A NumPy table cannot be indexed by traced tokens.
    params, decoder_params = jax.tree.map(jnp.asarray, (generator.params, tokenizer.params))

    def images_of(key_data: Any, labels: Any) -> Any:
        # The generator of random numbers is part of the file: the caller's default must not matter.
        key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        keys = rng.example_keys(key, jnp.arange(labels.shape[0], dtype=jnp.int32))
        null = jnp.full_like(labels, network.num_classes)
        tokens = samplers.sample_batch(network, params, keys, labels, null, settings, plan)
        return decoder.decode(decoder_params, tokens)

    return images_of


def stablehlo(generator: bundles.Bundle, tokenizer: bundles.Bundle) -> bytes:
    """`image_function` with its weights, serialised for any batch size and every platform."""
    arguments = (
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        jax.ShapeDtypeStruct(jax_export.symbolic_shape("b"), jnp.int32),
    )
    function = jax.jit(image_function(generator, tokenizer))
    # With a symbolic batch, jax_debug_key_reuse takes two columns of an array of keys for the same
    # keys (0.10.2); sampling itself is under that check in the tests.
    with jax.debug_key_reuse(False):
        exported = jax_export.export(function, platforms=PLATFORMS)(*arguments)
    return bytes(exported.serialize())


def write_torch(path: Path, bundle: bundles.Bundle) -> None:
    """Write a PyTorch state dict of the original's keys, without PyTorch, and read it back.

    Args:
        path: the file.
        bundle: of a network or tokenizer that convert.sources.SOURCES has such keys of.

    Raises:
        InputError: the model has no PyTorch original, or the path cannot be written.
        RuntimeError: what was written is not what was meant; the file is removed.
    """
    name = bundle.model["name"]
    tables = {name: source.torch for name, source in sources.SOURCES.items() if source.torch}
    if name not in tables:
        raise InputError(
            f"{bundle.path} is a {name}, which no PyTorch original has the keys for; there are "
            f"{', '.join(tables)}: use --format=safetensors"
        )
    state = layouts.to_state(tables[name](bundle.build().config), bundle.params)
    torch_writer.write_state_dict(path, state)
    found = torch_files.state_dict(path)
    wrong = [k for k in state if k not in found or found[k].tobytes() != state[k].tobytes()]
    if wrong or len(found) != len(state):
        path.unlink()
        raise RuntimeError(f"the export reads back differently: {', '.join(wrong)}")


def check_leaves(found: dict[str, np.ndarray], bundle: bundles.Bundle) -> None:
    """Raise RuntimeError unless these are the bundle's parameters, bit for bit."""
    wrong = trees.differences(found, trees.named_leaves(bundle.params))
    if wrong or trees.fingerprint(found) != bundle.params_hash:
        raise RuntimeError(f"the export reads back differently: {'; '.join(wrong) or 'values'}")


def check_images(data: bytes, generator: bundles.Bundle, tokenizer: bundles.Bundle) -> None:
    """Raise RuntimeError unless the exported function gives the bundle's images (two of them)."""
    key_data, labels = np.array([0, 1], np.uint32), np.zeros(2, np.int32)
    found = jax_export.deserialize(bytearray(data)).call(key_data, labels)
    expected = jax.jit(image_function(generator, tokenizer))(key_data, labels)
    if not np.allclose(found, expected, atol=1e-5):
        raise RuntimeError("the exported function gives other images than the bundle")


def exported(
    bundle: bundles.Bundle, format_name: str, tokenizer: bundles.Bundle | str | None = None
) -> bytes:
    """Return the bundle in one of the formats, read back and compared.

    Args:
        bundle: any kind; for "stablehlo" a generator.
        format_name: "msgpack", "safetensors" or "stablehlo".
        tokenizer: its tokenizer's bundle, or the path of that; None: the one inside it.

    Returns:
        The file's content.

    Raises:
        InputError: the bundle is not of the kind, or its tokenizer is missing or another.
        RuntimeError: what was made is not what was meant.
    """
    if format_name == "msgpack":
        data = msgpack(bundle)
        check_leaves(read_msgpack(data), bundle)
    elif format_name == "safetensors":
        data = safetensors(bundle)
        check_leaves(read_safetensors(data), bundle)
    else:
        if bundle.kind != "generator":
            raise InputError(f"{bundle.path} is a {bundle.kind}; stablehlo is for a generator")
        if isinstance(bundle.build().condition, dict):
            raise InputError(
                f"{bundle.path} takes text, and stablehlo is for generators of classes; use "
                "--format=safetensors, or python -m dimo_jax.convert --to=diffusers"
            )
        is_open = isinstance(tokenizer, bundles.Bundle)
        decoder = tokenizer if is_open else drawing.open_tokenizer(bundle, tokenizer)
        data = stablehlo(bundle, decoder)
        check_images(data, bundle, decoder)
    return data


def _source(flags: FlagValues) -> bundles.Bundle | snapshots.Snapshot:
    if (flags.workdir is None) == (flags.bundle is None):
        raise InputError("give either --workdir, of a run, or --bundle")
    if flags.bundle is not None:
        if flags.step is not None:
            raise InputError("--step is a checkpoint of --workdir, not of --bundle")
        return bundles.load(flags.bundle)
    found = snapshots.generator_of(files.path(flags.workdir), flags.step)
    return found if isinstance(found, snapshots.Snapshot) else bundles.load(found)


def _inputs(flags: FlagValues) -> list[AnyPath]:
    """Return the folders that are read."""
    if flags.workdir:
        return places.parts_of_run(files.path(flags.workdir))
    return [places.find(flags.bundle)] if flags.bundle else []


def _write_bundle(output: AnyPath, found: bundles.Bundle | snapshots.Snapshot) -> None:
    if not isinstance(found, snapshots.Snapshot):
        raise InputError(f"{found.path} is a bundle already; copy it")
    found.save(output)
    print(f"the averaged generator of step {found.step}, a bundle: {output}")
    print(f"to publish it: {hub.upload_command(output)}")


def run(flags: FlagValues) -> None:
    """Bundle or checkpoint in, one file or a bundle out.

    Args:
        flags: those of dimo_jax.export.

    Raises:
        InputError: there is no such bundle or checkpoint, or it has no such form.
    """
    backend.start()
    if flags.format == "bundle":
        output = files.path(flags.output)
        files.check_folder(output, ownership.foreign)
        overlaps.refuse(output, _inputs(flags))
        return _write_bundle(output, _source(flags))
    output = files.local(flags.output)
    files.check_writable(output)
    overlaps.refuse(output, _inputs(flags))
    found = _source(flags)
    if isinstance(found, snapshots.Snapshot):
        bundle, tokenizer, which = found.generator, found.tokenizer, f", step {found.step}"
    else:
        bundle, tokenizer, which = found, None, ""
    if flags.format == "torch":
        write_torch(output, bundle)
    else:
        files.write_file(output, exported(bundle, flags.format, flags.tokenizer or tokenizer))
    notes = []
    if isinstance(getattr(bundle.build(), "condition", None), dict):
        notes.append(
            "the file holds the token network alone; to draw with it takes the tokenizer and "
            f"the text encoder of {bundle.path} too, as bundles"
        )
    if flags.format != "stablehlo" and (steps := one_step.num_steps(bundle.sampler or {})) > 1:
        ratios = ", ".join(map(str, (bundle.sampler or {})["step_ratios"]))
        notes.append(
            f"the file holds parameters alone, of a generator of {steps} steps, and not how it is "
            f"sampled: mask ratios {ratios} before the later steps, in {bundle.path}"
        )
    with Progress("export") as progress:
        for note in notes:
            progress.note(note)
    size = output.stat().st_size
    print(f"{flags.format}{which}, {size:,} bytes, read back and compared: {output}")
