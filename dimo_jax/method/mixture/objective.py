"""Di4C's loss on the logits of one network at many numbers lambda.

For each lambda the student is a product of marginals over the positions, over all of them a mixture
that knows what goes with what. How far it is from the product of its own marginals is learned by
`correlation`, the marginals themselves by divergences of whole distributions, whose gradients vary
less than those of samples (the control variate).

Axes: B batch, R numbers lambda (replicas) of an example, M sequences that are scored, L tokens,
V vocabulary. All positions count, masked or not.

Source: Di4C (distillation through dimensional correlations, arXiv 2410.08709), and the figures and
weights of sony/di4c's MaskGIT student.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Weight of the data's correlation at the time r, from 1 where all is masked to 0 where nothing is.
DATA_SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "sigmoid": lambda r: jax.nn.sigmoid(20 * (0.5 - r)),
    "linear": lambda r: 1 - r,
    "constant": jnp.ones_like,
}


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """Which terms count, and how much.

    Attributes:
        delta: time of one step of the teacher. From 1 - delta on the student is distilled, before
            it is made consistent with itself one step later.
        data_weight: of the data's correlation; 0: data are only masked.
        data_schedule: a name in DATA_SCHEDULES.
    """

    delta: float
    data_weight: float
    data_schedule: str


class Targets(NamedTuple):
    """What the student is compared with; no gradient flows into any of it.

    Attributes:
        time: [B], r in [0, 1): 0 where all is masked.
        teacher: [B, L, V] log-probabilities at x_t.
        data: [B, L] real tokens.
        later: [B, R, L] tokens, each drawn at its own x_u from the student at its own lambda.
        later_mean: [B, L, V], the mean of the R probabilities that these were drawn from.
    """

    time: Float[Array, "B"]
    teacher: Float[Array, "B L V"]
    data: Int[Array, "B L"]
    later: Int[Array, "B R L"]
    later_mean: Float[Array, "B L V"]


class Terms(NamedTuple):
    """The loss of each example, in parts.

    Attributes:
        distillation: weighted; the loss is the sum of this and the next two.
        data: weighted.
        consistency: weighted.
        data_correlation: C(x) as it is.
        consistency_correlation: weighted as in `consistency`.
    """

    distillation: Float[Array, "B"]
    data: Float[Array, "B"]
    consistency: Float[Array, "B"]
    data_correlation: Float[Array, "B"]
    consistency_correlation: Float[Array, "B"]

    @property
    def loss(self) -> Float[Array, "B"]:
        """The loss of each example."""
        return self.distillation + self.data + self.consistency


def _log_mean_exp(x: Array, axis: int) -> Array:
    return jax.nn.logsumexp(x, axis=axis) - math.log(x.shape[axis])


def marginals(log_probs: Float[Array, "B R L V"]) -> Float[Array, "B L V"]:
    """Return the mixture's log-probabilities of each position on its own."""
    return _log_mean_exp(log_probs, axis=1)


def correlation(
    log_probs: Float[Array, "B R L V"],
    marginal: Float[Array, "B L V"],
    tokens: Int[Array, "B M L"],
) -> Float[Array, "B M"]:
    """Return C(y), the log-ratio of the mixture to the product of its marginals, of sequences.

    Args:
        log_probs: of the student at R numbers.
        marginal: of `marginals`.
        tokens: M sequences of each example.
    """

    def scores(of_one: Float[Array, "L V"], some: Int[Array, "M L"]) -> Float[Array, "M"]:
        return jnp.take_along_axis(of_one, some.T, axis=-1).sum(0)

    joint = jax.vmap(jax.vmap(scores, (0, None)))(log_probs, tokens)
    return _log_mean_exp(joint, axis=1) - jax.vmap(scores)(marginal, tokens)


def _divergence(
    probs: Float[Array, "B L V"], log_probs: Float[Array, "B L V"]
) -> Float[Array, "B"]:
    """Return KL(probs || exp log_probs), summed over positions and vocabulary."""
    return (jax.scipy.special.xlogy(probs, probs) - probs * log_probs).sum((1, 2))


@jax.named_scope("loss")
def terms(logits: Float[Array, "B R L V"], targets: Targets, settings: ObjectiveSettings) -> Terms:
    """Return the loss of each example.

    Args:
        logits: of the student at x_t and R fresh numbers.
        targets: what it is compared with.
        settings: which terms count.

    Returns:
        The terms, in float32: a sequence's log-probability is in the thousands.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    targets = jax.tree.map(jax.lax.stop_gradient, targets)
    marginal, teacher = marginals(log_probs), jnp.exp(targets.teacher)
    last = (targets.time >= 1 - settings.delta).astype(jnp.float32)
    alpha = settings.data_weight * DATA_SCHEDULES[settings.data_schedule](targets.time)

    # The mean of R divergences from one distribution is that from the mean of log-probabilities.
    distillation = last / settings.delta * _divergence(teacher, log_probs.mean(1))
    data_correlation = correlation(log_probs, marginal, targets.data[:, None])[:, 0]
    data = _divergence(teacher, marginal) - alpha * data_correlation
    joint = -(1 - last) * correlation(log_probs, marginal, targets.later).mean(1)
    consistency = joint + (1 - last) * _divergence(targets.later_mean, marginal)
    return Terms(distillation, data, consistency, data_correlation, joint)
