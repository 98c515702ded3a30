r"""Images from a bundle on disk.

python -m dimo_jax.sample --generator=runs/digits/export --labels=0,1,2 --output=grid.png
python -m dimo_jax.sample --generator=runs/digits/export --num=50000 --output=samples.npz
python -m dimo_jax.sample --workdir=runs/digits --step=20000 --output=grid.png
python -m dimo_jax.sample --generator=TEACHER --tokenizer=TOKENIZER --steps=8 --output=folder/
python -m dimo_jax.sample --generator=DI4C --tokenizer=TOKENIZER --steps=4 --guidance=7 --num=64 \
    --output=di4c.npz

python -m dimo_jax.sample --generator=runs/two/export --steps=2 --num=64 --output=two.npz
python -m dimo_jax.sample --generator=STUDENT --prompt="a red ball on a blue cube" --output=out.png
python -m dimo_jax.sample --generator=STUDENT --prompts=prompts.csv --output=images/
python -m dimo_jax.sample --generator=STUDENT --prompts=geneval \
    --metadata=evaluation_metadata.jsonl --output=geneval/

With --workdir the averaged generator of any checkpoint is drawn, while the run goes on too.
A teacher's bundle is sampled with its authors' decoding (or --sampler=...), which needs --steps; a
generator makes as many steps as it was distilled for, or --steps of them.
An image depends on the seed, its place in the order and its label, not on how many are drawn, in
what batches, on how many devices or by how many processes. A .npz holds arr_0 (uint8 [N, H, W, 3]),
labels, tokens and settings; it and a folder are drawn in ranges, so that the same command goes on
after a kill. On several machines each is started with the same command, as dimo_jax.main is.
"""

from absl import flags

from dimo_jax import cli
from dimo_jax.common.command_flags import Flags

FLAGS = Flags()

FLAGS.group("Everyday")
flags.DEFINE_string(
    "generator", None, "a run, or the bundle of a generator or teacher", flag_values=FLAGS
)
flags.DEFINE_string(
    "workdir", None, "a run, in its place: its generator, finished or not", flag_values=FLAGS
)
flags.DEFINE_string(
    "step",
    None,
    "checkpoint of --workdir: its step, newest or best; default: the finished generator, or of an "
    "unfinished run the newest",
    flag_values=FLAGS,
)
flags.DEFINE_string("tokenizer", None, "its bundle; default GENERATOR/tokenizer", flag_values=FLAGS)
flags.DEFINE_string("output", None, "x.png (grid), x.npz, or a folder of PNGs", flag_values=FLAGS)
flags.DEFINE_list("labels", None, "a row for each; default: all classes", flag_values=FLAGS)
flags.DEFINE_integer("num_per_label", 8, "images in a row", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "num",
    None,
    "images in all, the classes in turn, without rows",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_multi_string("prompt", [], "a row of images for each", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_per_prompt",
    None,
    "images of a prompt; default: 4 for geneval, else 1",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "seed", 0, "of all randomness", lower_bound=0, upper_bound=2**32 - 1, flag_values=FLAGS
)
FLAGS.group("How it is drawn; the defaults are the bundle's, or the sampler's")
flags.DEFINE_integer(
    "batch_size",
    None,
    "images in a batch, if there are as many; default: 64, of grids of more than 512 tokens fewer",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "compute_dtype",
    "float32",
    ["float32", "bfloat16"],
    "of the token network; parameters and logits are float32 in any case",
    flag_values=FLAGS,
)
flags.DEFINE_float("temperature", None, "divides the logits", flag_values=FLAGS)
flags.DEFINE_integer("top_k", None, "0 for all tokens", flag_values=FLAGS)
flags.DEFINE_float("top_p", None, "1 for all tokens", flag_values=FLAGS)
flags.DEFINE_float("ratio", None, "generator: share of [MASK] at the start", flag_values=FLAGS)
flags.DEFINE_float("sigma", None, "generator: noise on the embeddings", flag_values=FLAGS)
FLAGS.group("A teacher, or a student of several steps")
flags.DEFINE_integer("steps", None, "steps of the sampler", flag_values=FLAGS)
flags.DEFINE_enum(
    "sampler",
    None,
    ["maskgit", "halton", "google", "meissonic", "solver"],
    "how it is decoded",
    flag_values=FLAGS,
)
flags.DEFINE_string("schedule", None, "tokens written in each step", flag_values=FLAGS)
flags.DEFINE_string("randomize", None, "noise of the order", flag_values=FLAGS)
flags.DEFINE_float("choice_temperature", None, "noise of the order", flag_values=FLAGS)
flags.DEFINE_float("guidance", None, "s in u + s (c - u)", flag_values=FLAGS)
flags.DEFINE_string(
    "guide",
    None,
    "a teacher's bundle, whose logits without a condition guidance leads away from; default: the "
    "network's own",
    flag_values=FLAGS,
)
flags.DEFINE_string("guidance_schedule", None, "linear or constant", flag_values=FLAGS)
flags.DEFINE_string("negative_prompt", "", "what guidance leaves", flag_values=FLAGS)
flags.DEFINE_multi_string(
    "option", [], "any other setting of the sampler, as name=value", flag_values=FLAGS
)
FLAGS.group("Prompts of a list")
flags.DEFINE_string(
    "prompts",
    None,
    "a .txt, .jsonl, .json, .csv, .tsv or .parquet of prompts; or the folder layout of a "
    "benchmark: geneval, hpsv2, coco",
    flag_values=FLAGS,
)
flags.DEFINE_string("metadata", None, "the benchmark's own list of prompts", flag_values=FLAGS)
flags.DEFINE_string(
    "prompt_field",
    None,
    "of a record of --prompts; default: prompt, caption or text",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "text_encoder", None, "its bundle; default: in or beside GENERATOR", flag_values=FLAGS
)
cli.define_process_flags(FLAGS)
FLAGS.require(("generator", "workdir"), "output")


def main() -> None:
    """Draws the images."""
    from dimo_jax.commands import sample

    sample.run(FLAGS)


if __name__ == "__main__":
    cli.run(main, FLAGS)
