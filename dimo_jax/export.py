"""A model, of a finished run or of one under way, in a form that other programs read.

python -m dimo_jax.export --workdir=runs/digits --format=stablehlo --output=generator.stablehlo

bundle       of a checkpoint (--workdir, --step): what the run itself would have exported there
msgpack      the parameter tree, as flax.serialization writes it
torch        a PyTorch state dict with the original's keys (maskgit, halton, vqgan, llamagen,
             google_vqgan, vq_model, meissonic); torch.load(path, weights_only=True) reads it
safetensors  the parameters as 'block_0/mlp_in/kernel', the bundle's config.json in the metadata
stablehlo    a generator of classes with weights and tokenizer as one function, by jax.export:
             (key_data uint32 [2], labels int32 [b]) -> images float32 [b, H, W, C] in [0, 1],
             for any b, on CPU, CUDA and TPU. key_data = [0, seed] gives the images of
             dimo_jax.sample --seed. Nothing but JAX is needed to call it:
                 exported = jax.export.deserialize(bytearray(open(path, "rb").read()))
                 images = exported.call(numpy.array([0, seed], "uint32"), labels)
             JAX keeps reading such files for a limited time (its compatibility window): for an
             archive keep the bundle.
"""

from absl import flags

from dimo_jax import cli
from dimo_jax.common.command_flags import Flags

FLAGS = Flags()

FLAGS.group("What is exported, and how")
flags.DEFINE_string("workdir", None, "a run; its generator is taken", flag_values=FLAGS)
flags.DEFINE_string(
    "step",
    None,
    "checkpoint of --workdir: its step, newest or best; default: the finished generator, or of an "
    "unfinished run the newest",
    flag_values=FLAGS,
)
flags.DEFINE_string("bundle", None, "a bundle, in place of --workdir", flag_values=FLAGS)
flags.DEFINE_string(
    "tokenizer", None, "stablehlo: its bundle; default: the one inside", flag_values=FLAGS
)
flags.DEFINE_enum(
    "format",
    None,
    ["bundle", "msgpack", "safetensors", "stablehlo", "torch"],
    "what to write",
    flag_values=FLAGS,
)
flags.DEFINE_string("output", None, "the file, or the bundle's folder", flag_values=FLAGS)
FLAGS.require("format", "output")


def main() -> None:
    """Write the file."""
    from dimo_jax.commands import export

    export.run(FLAGS)


if __name__ == "__main__":
    cli.run(main, FLAGS)
