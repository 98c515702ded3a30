"""What Di4C's student is compared with: one step of the teacher, and itself after that step.

Axes: B batch, R numbers lambda (replicas) of an example, L tokens, V vocabulary.

Source: Di4C (arXiv 2410.08709); the teacher's step is that of sony/di4c's MaskGIT student.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dimo_jax.method.masked import masking, schedules


@dataclasses.dataclass(frozen=True)
class TeacherStepSettings:
    """How the teacher goes from r to r + delta.

    Attributes:
        schedule: of masks, m(r); m(0) is 1.
        delta: time of the step.
        num_steps: of the decoding that the noise on the confidence falls to 0 in.
        choice_temperature: scale of that noise at r = 0.
    """

    schedule: str
    delta: float
    num_steps: int
    choice_temperature: float


def teacher_count(
    time: Float[Array, "B"], mask: Bool[Array, "B L"], settings: TeacherStepSettings
) -> Int[Array, "B"]:
    """Return how many tokens the step writes: as many as are missing to those of its end.

    Often 0, since each token of x_t is masked on its own: then x_u is x_t.
    """
    total, masked = mask.shape[1], mask.sum(1)
    end = jnp.minimum(time + settings.delta, 1.0)
    written = (1 - schedules.mask_ratio(end, settings.schedule)) * total
    missing = jnp.trunc(written - (total - masked)).astype(jnp.int32)
    return jnp.clip(missing, 0, masked)


def write_tokens(
    x_t: Int[Array, "B R L"],
    mask: Bool[Array, "B L"],
    time: Float[Array, "B"],
    log_probs: Float[Array, "B L V"],
    drawn: Int[Array, "B R L"],
    noise: Float[Array, "B R L"],
    settings: TeacherStepSettings,
) -> Int[Array, "B R L"]:
    """Return x_u: the drawn tokens at the most confident masked positions, R times.

    Args:
        x_t: what is there, the same in each replica.
        mask: True where x_t is masked.
        time: r.
        log_probs: the teacher's at x_t.
        drawn: tokens for every position.
        noise: Gumbel, on the confidence. Its factor 1 - r S / (S - 1) is below 0 where r is near
            1, as in the original.
        settings: of the step.
    """
    count = teacher_count(time, mask, settings)
    last = settings.num_steps - 1
    scale = settings.choice_temperature * (1 - time * settings.num_steps / last)

    def of_one(found, masked, count, scale, log_probs, drawn, noise):
        taken = jnp.take_along_axis(log_probs, drawn.T, axis=-1).T
        masks = jnp.broadcast_to(masked[None], drawn.shape)
        write = masking.most_confident(taken + scale * noise, masks, count)
        return jnp.where(write, drawn, found)

    return jax.vmap(of_one)(x_t, mask, count, scale, log_probs, drawn, noise)


def teacher_step(
    keys: Key[Array, "B R"],
    x_t: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    time: Float[Array, "B"],
    log_probs: Float[Array, "B L V"],
    settings: TeacherStepSettings,
) -> Int[Array, "B R L"]:
    """Return R independent steps of the teacher from x_t, each with a key of its own."""

    def draw(key: Key[Array, ""], of_one: Float[Array, "L V"]) -> tuple[Array, Array]:
        of_tokens, of_order = jax.random.split(key)
        drawn = jax.random.categorical(of_tokens, of_one).astype(jnp.int32)
        return drawn, jax.random.gumbel(of_order, drawn.shape)

    drawn, noise = jax.vmap(jax.vmap(draw, (0, None)))(keys, log_probs)
    repeated = jnp.broadcast_to(x_t[:, None], drawn.shape)
    return write_tokens(repeated, mask, time, log_probs, drawn, noise, settings)
