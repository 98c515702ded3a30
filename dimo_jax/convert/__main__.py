"""A published checkpoint -> a bundle, without PyTorch and without running anything in the file.

python -m dimo_jax.convert --source=maskgit --input=MaskGIT_ImageNet_256.pth --output=maskgit256
python -m dimo_jax.convert --source=vqgan --input=VQGAN/last.ckpt --output=bundles/vqgan_f16_1024
python -m dimo_jax.convert --source=meissonic --input=Meissonic/ --output=bundles/meissonic
python -m dimo_jax.convert --to=diffusers --input=runs/meissonic/export --output=Meissonic-one-step/

Sources: maskgit (MaskGit-PyTorch, 256 and 512), dimo (the released one-step generator, which has
the same keys), halton (Halton-MaskGIT v2), google (Google's MaskGIT), and the tokenizers vqgan
(Taming, last.ckpt or its state dict), llamagen (VQ-16), google_vqgan; inception, the network of the
FID (its .pth, or the pickle of the JAX ports); and clip (open_clip, HPS v2, or a folder of Hugging
Face with both towers or with text alone). Without --source the keys decide. Sizes come from the
shapes. Of meissonic, and of its one-step generator (dimo), a whole folder as diffusers lays it
down becomes a folder of bundles, and goes back with --to=diffusers, text encoder, tokenizer and
scheduler too.

A bundle of clip carries the vocabulary of its text tower: that of the folder, of tokenizer/ beside
it, of an installed open_clip_torch, or of --vocabulary.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import flags

from dimo_jax import bundles, cli, files
from dimo_jax.conditions import clip_vocabulary
from dimo_jax.conditions.text import TEXT_ENCODER_FOLDER
from dimo_jax.convert import folders, sources, text_to_image
from dimo_jax.errors import InputError
from dimo_jax.models.clip import ACTIVATIONS
from dimo_jax.training import trees
from dimo_jax.training.progress import Progress

_CHUNK_BYTES = 1 << 26

FLAGS = flags.FlagValues()

flags.DEFINE_string("input", None, "the published file, or folder", flag_values=FLAGS)
flags.DEFINE_string("output", None, "the bundle's folder", flag_values=FLAGS)
flags.DEFINE_enum(
    "source",
    None,
    [*sources.SOURCES, "meissonic"],
    "whose file; default: by its keys",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "to",
    "bundle",
    ["bundle", "diffusers"],
    "diffusers: the other way, a bundle of meissonic, vq_model or clip, or a folder of them",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "heads", None, "attention heads, in no shape (maskgit: 16)", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "num_classes", 1000, "classes in the table of tokens", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "image_size", None, "tokenizer: pixels along a side (256)", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_string(
    "yaml", None, "vqgan: its model.yaml; default: the one beside the file", flag_values=FLAGS
)
flags.DEFINE_enum(
    "activation",
    None,
    list(ACTIVATIONS),
    "clip: OpenAI's weights have quick_gelu, LAION's and HPS's gelu; default: the JSON beside them",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "vocabulary", None, "clip: merges.txt, tokenizer.json or OpenAI's list", flag_values=FLAGS
)
flags.mark_flags_as_required(["input", "output"], flag_values=FLAGS)


def _model_yaml(path: Path) -> str | None:
    """The text of a VQGAN's model.yaml: the one that is named, or the one beside the file."""
    place = Path(FLAGS.yaml) if FLAGS.yaml else path.with_name("model.yaml")
    if not place.is_file():
        if FLAGS.yaml:
            raise InputError(f"there is no file {place}; give --yaml the path of a model.yaml")
        return None
    return place.read_text(encoding="utf-8")


def _vocabulary(weights: Path, ids: int) -> dict[str, bytes]:
    """The merges that a text tower's ids belong to, as a file of the bundle."""
    place = Path(FLAGS.vocabulary) if FLAGS.vocabulary else clip_vocabulary.find(weights.parent)
    if place is None:
        raise InputError(
            f"there is no vocabulary beside {weights}, and no package that ships it; give "
            "--vocabulary=merges.txt, or: pip install open_clip_torch"
        )
    merges = clip_vocabulary.read(place, ids)
    return {clip_vocabulary.MERGES_FILE: clip_vocabulary.to_text(merges)}


def _hash(paths: list[Path], progress: Progress) -> str:
    """SHA-256 of the files in a row, which the bundle remembers; most of the time goes here."""
    digest, total, done = hashlib.sha256(), sum(path.stat().st_size for path in paths), 0
    progress.update(0, total, "bytes read")
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                progress.update(done, total, "bytes read")
    return digest.hexdigest()


def main() -> None:
    """One file or folder in, one bundle or a folder of bundles out."""
    path, output = files.local(FLAGS.input), files.local(FLAGS.output)
    if output.exists() and not output.is_dir():
        raise InputError(f"--output={output} is a file; name a folder")
    if FLAGS.to == "diffusers":
        with Progress("convert") as progress:
            written = text_to_image.to_folder(path, output, progress.note)
        _report(written)
    elif FLAGS.source == "meissonic" or (FLAGS.source == "dimo" and path.is_dir()):
        _convert_folder(path, output)
    else:
        _convert_model(folders.weights(path), output, FLAGS.source)


def _report(written: Mapping[str, int]) -> None:
    for place, total in written.items():
        print(f"{total:,} parameters: {place}")


def _convert_folder(path: Path, output: Path) -> None:
    """The models of text to image, each to a bundle of its folder's name."""
    with Progress("convert") as progress:
        written = text_to_image.from_folder(
            path,
            output,
            generator=FLAGS.source == "dimo",
            image_size=FLAGS.image_size,
            hash_of=lambda files: _hash(files, progress),
        )
    _report(written)
    encoder = path / TEXT_ENCODER_FOLDER
    if encoder.is_dir():
        _convert_model(folders.weights(encoder), output / TEXT_ENCODER_FOLDER, "clip")


def _convert_model(path: Path, output: Path, name: str | None) -> None:
    """One model whose keys tell its sizes."""
    state = sources.read(path)
    with Progress("convert") as progress:
        if name is None:
            name = sources.recognise(state)
            other = "; for the one-step generator give --source=dimo" if name == "maskgit" else ""
            progress.note(f"{path} has the keys of {name}{other}")
        source = sources.SOURCES[name]
        options = sources.Options(
            heads=FLAGS.heads,
            num_classes=FLAGS.num_classes,
            image_size=FLAGS.image_size,
            model_yaml=_model_yaml(path) if name == "vqgan" else None,
            activation=FLAGS.activation,
            described=folders.description(path) if name == "clip" else None,
        )
        try:
            config, params = sources.convert(state, source, options)
        except InputError as error:
            raise InputError(f"{path} is not a {name} checkpoint: {error}") from error
        attachments = _vocabulary(path, config["text"]["vocabulary"]) if name == "clip" else None
        if sizes := sources.unusual(source, config):
            progress.note(f"no published file has {'; '.join(sizes)}; converted as it is")
        bundles.save(
            output,
            kind=source.kind,
            model=config,
            params=params,
            sampler=source.sampler(config),
            provenance={
                "source": name,
                "file": path.name,
                "sha256": _hash(folders.parts(path), progress),
            },
            attachments=attachments,
        )
    leaves = trees.named_leaves(params).values()
    total = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    print(f"{name}: a {source.kind} of {total:,} parameters in {len(state)} tensors: {output}")


if __name__ == "__main__":
    cli.run(main, FLAGS)
