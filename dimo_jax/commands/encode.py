"""Encodes pictures into a tokens folder."""

import dataclasses
from typing import Any

from absl.flags import FlagValues

from dimo_jax import bundles, cli, tokenizers
from dimo_jax.bundles import places
from dimo_jax.common import crops, files, overlaps
from dimo_jax.common.errors import InputError
from dimo_jax.common.files import AnyPath
from dimo_jax.common.progress import Progress
from dimo_jax.data import splits, token_files, token_sets
from dimo_jax.data.picture_sources import open_pictures, unusual
from dimo_jax.data.pictures import PictureSource
from dimo_jax.data.token_sets import Facts
from dimo_jax.encoding import token_ranges
from dimo_jax.encoding.encoder import Encoder, images_at_once
from dimo_jax.encoding.token_ranges import TokenRanges
from dimo_jax.generation.sample_files import lock_of
from dimo_jax.parallel import distributed, locks
from dimo_jax.runs import banner
from dimo_jax.tokenizers import Tokenizer

_CUT = ("crop", "flip", "filter", "small", "seed")
_LISTED = 100  # pictures that were left out


def run(flags: FlagValues) -> None:
    """Encode what the flags describe, and say where it is.

    Args:
        flags: those of dimo_jax.encode.

    Raises:
        InputError: a flag, the tokenizer or the pictures cannot be used.
    """
    output = files.path(flags.output)
    if not output.name:
        raise InputError(f"--output={flags.output} names nothing; give a new folder")
    folder = None if flags.data.startswith(splits.DATASET) else flags.data
    inputs = [folder, places.find(flags.tokenizer, "tokenizer")]
    for place in (output, token_ranges.folder_of(output)):
        overlaps.refuse(place, inputs)
    if flags.augmentations > 1 and flags.crop == "centre" and not flags.flip:
        raise InputError(
            f"--augmentations={flags.augmentations} versions would all be the same; give "
            "--crop=random or --flip with them"
        )
    files.check_folder(output, token_files.foreign)
    cli.start_alike(flags)
    bundle = bundles.load_tokenizer(flags.tokenizer)
    tokenizer = bundle.build()
    what = flags.data, flags.condition or "", flags.field or "", flags.data_dir, flags.follow_links
    with Progress("encode", silent=not distributed.is_lead()) as progress:
        source = open_pictures(*what, progress.update)
    facts = _facts(flags, tokenizer, bundle, source)
    with (
        locks.held(lock_of(output), str(output)),
        Progress("encode", silent=not distributed.is_lead()) as progress,
    ):
        for text in [*source.notes, *filter(None, [unusual(source)])]:
            progress.note(text)
        num = _there_already(output, facts, progress)
        if num is None:
            num = _encode(flags, tokenizer, bundle.params, source, facts, output, progress)
    if distributed.is_lead():
        print(f"{num} pictures, {facts.views} x {facts.length} tokens each: {output}")


def _facts(
    flags: FlagValues, tokenizer: Tokenizer, bundle: bundles.Bundle, source: PictureSource
) -> Facts:
    height, width, channels = tokenizer.image_shape
    if height != width or channels not in (1, 3):
        raise InputError(
            f"the tokenizer {bundle.path} takes images of {width}x{height}x{channels}, expected "
            "squares in gray or RGB"
        )
    settings = {
        **{name: flags[name].value for name in (*_CUT, "field")},
        "batch_size": flags.batch_size or images_at_once(tokenizer),
        "pictures": source.num,
        "pictures_version": source.version,
    }
    digest = tokenizers.fingerprint(tokenizer, bundle.params)
    return Facts(
        tokenizer={"config": tokenizer.config, "hash": digest},
        codebook_size=tokenizer.codebook_size,
        views=flags.augmentations,
        length=tokenizer.num_tokens,
        image_size=height,
        condition=source.condition,
        class_names=tuple(source.class_names),
        settings=settings,
        source=flags.data,
    )


def _there_already(output: AnyPath, facts: Facts, progress: Progress) -> int | None:
    """Return the examples of an output that this command has made before; None: there is none.

    Raises:
        InputError: it is of another tokenizer or other settings.
    """
    if not (output / token_sets.TOKENS_FILE).exists():
        return None
    found = token_sets.read_description(output)
    token_ranges.refuse_other(f"{output} holds tokens", found, dataclasses.asdict(facts), output)
    try:
        if not files.is_remote(output):  # a folder in a store has this file last of all
            token_sets.open_set(output)
    except InputError as error:
        progress.note(f"{error}: it is made again")
        return None
    if distributed.is_lead():
        token_ranges.remove(output)  # of a command that was killed when all was done
    progress.note(f"{output} is there already; nothing is left to do")
    return found["num_examples"]


def _encode(
    flags: FlagValues,
    tokenizer: Tokenizer,
    params: Any,
    source: PictureSource,
    facts: Facts,
    output: AnyPath,
    progress: Progress,
) -> int:
    """Return the examples of the output."""
    size = flags.shard_size or token_ranges.shard_size(source.num)
    ranges = TokenRanges(output, facts, source, size)
    progress.note(ranges.check_space())
    banner.show(banner.machine_lines())
    given: dict[str, Any] = {name: flags[name].value for name in _CUT}
    cut = crops.Settings(facts.image_size, **given)
    encoder = Encoder(tokenizer, params, source, cut, facts.views, flags.batch_size)
    if left := ranges.left():
        progress.note(encoder.measure().describe(left))
    ranges.fill(encoder, progress)
    num, skipped = ranges.join()
    if skipped:
        progress.note(f"{len(skipped)} of {source.num} pictures are left out:")
        for name, why in skipped[:_LISTED]:
            progress.note(f"{name}: {why}")
        if len(skipped) > _LISTED:
            progress.note(f"the others are in {output / token_sets.TOKENS_FILE}")
    return num
