"""An animation of a finished run: the teacher's tokens step by step, the generator's all at once.

python benchmarks/steps_gif.py --workdir=runs/digits --output=docs/steps.gif

One frame a network call. What is still masked is blue; at call 0 the generator has its own start,
in which the rest of the tokens are random. The teacher is a MaskGit sampled without guidance.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from dimo_jax import samplers  # noqa: E402
from dimo_jax.bundles import places  # noqa: E402
from dimo_jax.common import images, rng  # noqa: E402
from dimo_jax.generation import drawing  # noqa: E402
from dimo_jax.method.dimo import generate  # noqa: E402
from dimo_jax.tokenizers.tokenizer import decode_in_chunks  # noqa: E402

MASKED = np.array([168, 190, 224], np.uint8)
LAST_FRAME_MS = 3000
COLUMNS = 5
SEED = 0


def shown(model, tokens):
    """Return uint8 images [N, H, W, 3] of tokens, of which some are masked."""
    tokenizer = model.tokenizer
    pixels = decode_in_chunks(tokenizer, model.tokenizer_params, tokens, len(tokens))
    found = images.in_rgb(images.to_uint8(pixels))
    sides = [size // number for size, number in zip(found.shape[1:3], tokenizer.grid, strict=True)]
    mask = (tokens == model.network.mask_id).reshape(-1, *tokenizer.grid)
    found[np.kron(mask, np.ones((1, *sides), bool)).astype(bool)] = MASKED
    return found


def states_of_teacher(workdir, labels, steps):
    """Return images [N, H, W, 3] after each of the steps, before the first one too."""
    bundles = drawing.open_pair(workdir / "teacher")
    model = drawing.model_of(*bundles)
    settings = drawing.sampler_of(bundles[0], {"num_steps": steps, "name": "maskgit"})
    found = [
        samplers.sample(
            *(model.network, model.params, jax.random.key(SEED), labels, None, settings),
            batch_size=len(labels),
            until=until,
        )
        for until in range(steps + 1)
    ]
    return [shown(model, tokens) for tokens in found]


def states_of_generator(workdir, labels):
    """Return images [N, H, W, 3] of the generator's start and of its one step."""
    bundles = drawing.open_pair(workdir / places.EXPORT_FOLDER)
    model, settings = drawing.model_of(*bundles), drawing.sampler_of(bundles[0], {})
    keys = rng.example_keys(jax.random.key(SEED), jax.numpy.arange(len(labels)))
    first = jax.vmap(jax.random.split)(keys)[:, 0]  # as generate.generate divides them
    start, _ = generate.initial_state(first, settings)
    given = (model.network, model.params, jax.random.key(SEED), labels, None, settings)
    return [shown(model, np.asarray(start)), shown(model, samplers.sample(*given, len(labels)))]


def frame(panels):
    """Return one picture of [(heading, images)] side by side."""
    grids = [images.grid(found, COLUMNS).repeat(2, axis=0).repeat(2, axis=1) for _, found in panels]
    height, width = grids[0].shape[:2]
    gap, head, font = 32, 32, ImageFont.load_default(18)
    canvas = Image.new("RGB", (2 * width + gap, height + head), "white")
    draw = ImageDraw.Draw(canvas)
    for i, ((heading, _), grid) in enumerate(zip(panels, grids, strict=True)):
        left = i * (width + gap)
        canvas.paste(Image.fromarray(grid), (left, head))
        draw.text((left + 2, head // 2), heading, fill=0, anchor="lm", font=font)
    return canvas


def main():
    """Write the animation and say how large it is."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--workdir", type=Path, required=True, help="of a finished run of classes")
    flags.add_argument("--output", type=Path, required=True, help="the .gif")
    flags.add_argument("--steps", type=int, default=16, help="of the teacher")
    flags.add_argument("--frame_ms", type=int, default=450, help="of each network call")
    given = flags.parse_args()
    labels = np.arange(2 * COLUMNS, dtype=np.int32)
    teacher = states_of_teacher(given.workdir, labels, given.steps)
    generator = states_of_generator(given.workdir, labels)
    frames = [
        frame(
            [
                (f"teacher: network call {i} of {given.steps}", teacher[i]),
                (f"one-step generator: {min(i, 1)} of 1", generator[min(i, 1)]),
            ]
        )
        for i in range(given.steps + 1)
    ]
    # One palette for all: each frame's own would flicker, and cost 768 bytes a frame.
    palette = Image.fromarray(np.concatenate([np.asarray(x) for x in frames])).quantize(64)
    small = [x.quantize(palette=palette, dither=Image.Dither.NONE) for x in frames]
    times = [given.frame_ms] * given.steps + [LAST_FRAME_MS]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    small[0].save(
        given.output, save_all=True, append_images=small[1:], duration=times, loop=0, optimize=True
    )
    print(f"{given.output}: {len(frames)} frames, {given.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
