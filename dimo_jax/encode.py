r"""Pictures to tokens, once, for a teacher that is trained on them.

python -m dimo_jax.encode --data=photos/ --tokenizer=bundles/vqgan_f16_1024 --output=tokens/photos
python -m dimo_jax.encode --data=tfds:imagenet2012:train --tokenizer=bundles/vqgan_f16_1024 \
    --crop=random --flip --augmentations=4 --output=tokens/imagenet
python -m dimo_jax.encode --data=tfds:coco_captions:train --field=captions/text \
    --tokenizer=bundles/meissonic/vqvae --output=tokens/coco

A folder has a sub-folder for each class, or a metadata.jsonl with file_name and label or text in
each line, or pictures alone. The shorter side of a picture is resized to the tokenizer's size, then
a square is cut out. The output is a data set that tensorflow-datasets opens by itself
(tfds.builder_from_directory), with tokens.json beside it. It is made in ranges: the same command
goes on after a kill, and several processes take ranges in turn. Pictures that cannot be used are
left out and listed at the end; more than 1 % of them stop the command.
"""

from absl import flags

from dimo_jax import cli
from dimo_jax.common.command_flags import Flags

FLAGS = Flags()

FLAGS.group("Everyday")
flags.DEFINE_string("data", None, "a folder of pictures, or tfds:NAME:SPLIT", flag_values=FLAGS)
flags.DEFINE_string(
    "tokenizer", None, "its bundle, or a run, whose tokenizer it is", flag_values=FLAGS
)
flags.DEFINE_string("output", None, "folder of the tokens", flag_values=FLAGS)
FLAGS.group("How pictures are cut")
flags.DEFINE_enum(
    "crop", "centre", ["centre", "random"], "where the square is cut out", flag_values=FLAGS
)
flags.DEFINE_bool("flip", False, "mirror every other picture, by chance", flag_values=FLAGS)
flags.DEFINE_integer(
    "augmentations",
    1,
    "versions of each picture, which a training draws from; with --crop=random or --flip",
    lower_bound=1,
    upper_bound=1 << 16,
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "filter",
    "bilinear",
    ["bilinear", "bicubic", "lanczos"],
    "how pictures are resized, antialiased in any case",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "small",
    "refuse",
    ["refuse", "enlarge"],
    "what becomes of a picture that is smaller than the tokenizer's",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "seed",
    0,
    "of what is left to chance",
    lower_bound=0,
    upper_bound=2**31 - 1,
    flag_values=FLAGS,
)
FLAGS.group("What lies beside the pictures")
flags.DEFINE_enum(
    "condition",
    None,
    ["label", "text", "none"],
    "what is kept of it; default: what there is, a label rather than a text",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "field",
    None,
    "that holds it, captions/text for one inside another; default: the one that does by its kind "
    "and name",
    flag_values=FLAGS,
)
flags.DEFINE_bool("follow_links", False, "those that lead out of the folder", flag_values=FLAGS)
flags.DEFINE_string(
    "data_dir", "~/tensorflow_datasets", "where tfds: data sets lie", flag_values=FLAGS
)
FLAGS.group("The work")
flags.DEFINE_integer(
    "batch_size",
    None,
    "images that a device encodes at a time; default: 16 of 256 x 256, of others by their pixels",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "shard_size",
    None,
    "pictures of a file, which a kill may cost; default: 256, or what makes 256 files",
    lower_bound=1,
    flag_values=FLAGS,
)
cli.define_process_flags(FLAGS)
FLAGS.require("data", "tokenizer", "output")


def main() -> None:
    """Encode the pictures."""
    from dimo_jax.commands import encode

    encode.run(FLAGS)


if __name__ == "__main__":
    cli.run(main, FLAGS)
