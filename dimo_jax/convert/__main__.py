"""A published checkpoint -> a bundle, without PyTorch and without running anything in the file.

python -m dimo_jax.convert --source=maskgit --input=MaskGIT_ImageNet_256.pth --output=maskgit256
python -m dimo_jax.convert --source=vqgan --input=VQGAN/last.ckpt --output=bundles/vqgan_f16_1024

Sources: maskgit (MaskGit-PyTorch, 256 and 512), dimo (the released one-step generator, which has
the same keys), halton (Halton-MaskGIT v2), google (Google's MaskGIT), and the tokenizers vqgan
(Taming, last.ckpt or its state dict), llamagen (VQ-16), google_vqgan; and inception, the network
of the FID (its .pth, or the pickle of the JAX ports). Without --source the keys decide. Sizes come
from the shapes.
"""

import hashlib
from pathlib import Path

import numpy as np
from absl import flags

from dimo_jax import bundles, cli
from dimo_jax.convert import sources
from dimo_jax.errors import InputError
from dimo_jax.training import trees
from dimo_jax.training.progress import Progress

_CHUNK_BYTES = 1 << 26

FLAGS = flags.FlagValues()

flags.DEFINE_string("input", None, "the published file", flag_values=FLAGS)
flags.DEFINE_string("output", None, "the bundle's folder", flag_values=FLAGS)
flags.DEFINE_enum(
    "source", None, list(sources.SOURCES), "whose file; default: by its keys", flag_values=FLAGS
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
flags.mark_flags_as_required(["input", "output"], flag_values=FLAGS)


def _model_yaml(path: Path) -> str | None:
    """The text of a VQGAN's model.yaml: the one that is named, or the one beside the file."""
    place = Path(FLAGS.yaml) if FLAGS.yaml else path.with_name("model.yaml")
    if not place.is_file():
        if FLAGS.yaml:
            raise InputError(f"there is no file {place}; give --yaml the path of a model.yaml")
        return None
    return place.read_text(encoding="utf-8")


def _hash(path: Path, progress: Progress) -> str:
    """SHA-256 of the file, which the bundle remembers; its reading is most of a conversion."""
    digest, total, done = hashlib.sha256(), path.stat().st_size, 0
    with open(path, "rb") as file:
        progress.update(0, total, "bytes read")
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress.update(done, total, "bytes read")
    return digest.hexdigest()


def main() -> None:
    """One file in, one bundle out."""
    path, output = Path(FLAGS.input), Path(FLAGS.output)
    if output.exists() and not output.is_dir():
        raise InputError(f"--output={output} is a file; name a folder")
    state = sources.read(path)
    name = FLAGS.source
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
        )
        try:
            config, params = sources.convert(state, source, options)
        except InputError as error:
            raise InputError(f"{path} is not a {name} checkpoint: {error}") from error
        if sizes := sources.unusual(source, config):
            progress.note(f"no published file has {'; '.join(sizes)}; converted as it is")
        bundles.save(
            output,
            kind=source.kind,
            model=config,
            params=params,
            sampler=source.sampler(config),
            provenance={"source": name, "file": path.name, "sha256": _hash(path, progress)},
        )
    leaves = trees.named_leaves(params).values()
    total = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    print(f"{name}: a {source.kind} of {total:,} parameters in {len(state)} tensors: {output}")


if __name__ == "__main__":
    cli.run(main, FLAGS)
