"""A published checkpoint -> a bundle, without PyTorch and without running anything in the file.

python -m dimo_jax.convert --source=maskgit --input=MaskGIT_ImageNet_256.pth --output=maskgit256
python -m dimo_jax.convert --source=vqgan --input=VQGAN/last.ckpt --output=bundles/vqgan_f16_1024
python -m dimo_jax.convert --source=meissonic --input=Meissonic/ --output=bundles/meissonic
python -m dimo_jax.convert --to=diffusers --input=runs/meissonic/export --output=Meissonic-one-step/

Sources: maskgit (MaskGit-PyTorch, 256 and 512), dimo (the released one-step generator, which has
the same keys), di4c (a student of a few steps, maskgit-di4c-d.pth), halton (Halton-MaskGIT v2),
google (Google's MaskGIT), and the tokenizers vqgan (Taming, last.ckpt or its state dict), llamagen
(VQ-16), google_vqgan; inception, the network of the FID; mask2former, GenEval's detector (mmdet 2.x
or 3.x); and clip (open_clip, HPS v2, or a folder of Hugging Face with both towers or with text
alone).
Without --source the keys decide. Sizes come from the shapes. Of meissonic, and of its one-step
generator (dimo), a whole folder as diffusers lays it down becomes a folder of bundles, and goes
back with --to=diffusers, text encoder, tokenizer and scheduler too. A one-step generator, also one
of classes (maskgit with a vqgan or patches), becomes a pipeline: diffusers loads it by
DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True), and needs no dimo_jax.

A bundle of clip carries the tokenizer of its text tower. Of weights of Hugging Face it is that of
the folder, of tokenizer/ beside it, or of --vocabulary, with the ids of transformers; of others it
is open_clip's, with the vocabulary there or that of an installed open_clip_torch. Scores have the
ids of open_clip in any case.
"""

from absl import flags

from dimo_jax import cli
from dimo_jax.common.command_flags import Flags

FLAGS = Flags()

FLAGS.group("Everyday")
flags.DEFINE_string("input", None, "the published file, or folder", flag_values=FLAGS)
flags.DEFINE_string("output", None, "the bundle's folder", flag_values=FLAGS)
flags.DEFINE_enum(
    "source",
    None,
    [
        "di4c",
        "maskgit",
        "halton",
        "google",
        "vqgan",
        "llamagen",
        "google_vqgan",
        "inception",
        "mask2former",
        "clip",
        "vq_model",
        "meissonic",
        "dimo",
    ],
    "whose file; default: by its keys",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "to",
    "bundle",
    ["bundle", "diffusers"],
    "diffusers: the other way, a generator, or a bundle of meissonic, vq_model or clip",
    flag_values=FLAGS,
)
FLAGS.group("What the file does not say")
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
    "key",
    None,
    "where in the file the weights are: ema, or model for keys model.*; default: the one known",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "yaml", None, "vqgan: its model.yaml; default: the one beside the file", flag_values=FLAGS
)
flags.DEFINE_enum(
    "activation",
    None,
    ["gelu", "quick_gelu"],
    "clip: OpenAI's weights have quick_gelu, LAION's and HPS's gelu; default: the JSON beside them",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "vocabulary", None, "clip: merges.txt, tokenizer.json or OpenAI's list", flag_values=FLAGS
)
FLAGS.group("--to=diffusers: parts that are not inside or beside --input; none: left out")
flags.DEFINE_string("text_encoder", None, "bundle of the text encoder", flag_values=FLAGS)
flags.DEFINE_string("tokenizer", None, "bundle of the tokenizer of images", flag_values=FLAGS)
FLAGS.require("input", "output")


def main() -> None:
    """Convert."""
    from dimo_jax.commands import convert

    convert.run(FLAGS)


if __name__ == "__main__":
    cli.run(main, FLAGS)
