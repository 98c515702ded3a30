"""Token-level divergences D(p || q) and their gradients in the logits of q.

Here p is the teacher and q the auxiliary. An f-divergence is D_f = sum_k q_k f(u_k), u = p / q;
with h(u) = f(u) - u f'(u) = d(q f)/dq its gradient in q's logits is q_j (h_j - sum_k q_k h_k). Each
one gives q f and q h in terms of log p and log q, so that nothing overflows where u does.

Source: Di[M]O equations 8, 14 to 18 and table 4. Axes: V vocabulary, any axes before it.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Terms = Callable[[Array, Array], Array]  # (log_p, log_q) -> per-token terms

# exp of this is still far inside float32 when squared with a vocabulary's sum.
_LOG_LIMIT = 40.0


@dataclasses.dataclass(frozen=True)
class Divergence:
    """An f-divergence in log space.

    Attributes:
        value_terms: (log_p, log_q) -> q f(u); the divergence is their sum over V.
        score_terms: (log_p, log_q) -> q h(u), where h = f - u f'.
        score: (log_p, log_q) -> h(u) itself, limited to exp(40) in size; needed only by the variant
            with the generator's own softmax Jacobian.
    """

    value_terms: Terms
    score_terms: Terms
    score: Terms


def _exp(x: Array) -> Array:
    return jnp.exp(jnp.minimum(x, _LOG_LIMIT))


def forward_kl() -> Divergence:
    """KL(p || q), f = u log u: the auxiliary should cover the teacher."""
    return Divergence(
        lambda p, q: jnp.exp(p) * (p - q), lambda p, q: -jnp.exp(p), lambda p, q: -_exp(p - q)
    )


def reverse_kl() -> Divergence:
    """KL(q || p), f = -log u: the auxiliary should stay inside the teacher."""
    return Divergence(
        lambda p, q: jnp.exp(q) * (q - p),
        lambda p, q: jnp.exp(q) * (1 + q - p),
        lambda p, q: 1 + q - p,
    )


def jeffrey(beta: float) -> Divergence:
    """(1 - beta) forward KL + beta reverse KL; beta 0 is forward. Equation 8.

    Below 0 its f is not convex, so it is no divergence any more, yet the paper reports -0.2 best.
    """
    forward, reverse = forward_kl(), reverse_kl()

    def mix(a: Terms, b: Terms) -> Terms:
        return lambda p, q: (1 - beta) * a(p, q) + beta * b(p, q)

    return Divergence(
        mix(forward.value_terms, reverse.value_terms),
        mix(forward.score_terms, reverse.score_terms),
        mix(forward.score, reverse.score),
    )


def jensen_shannon() -> Divergence:
    """Return the generator f = -(u + 1) log((1 + u) / 2) + u log u.

    Twice the textbook's value: table 4's D_JS carries an extra 1/2 that its f has not.
    """

    def log_middle(p: Array, q: Array) -> Array:
        return jnp.logaddexp(p, q) - math.log(2)

    return Divergence(
        lambda p, q: jnp.exp(p) * (p - log_middle(p, q)) + jnp.exp(q) * (q - log_middle(p, q)),
        lambda p, q: jnp.exp(q) * (q - log_middle(p, q)),
        lambda p, q: q - log_middle(p, q),
    )


def squared_hellinger() -> Divergence:
    """Return the generator f = (sqrt(u) - 1)^2."""
    return Divergence(
        lambda p, q: (jnp.exp(p / 2) - jnp.exp(q / 2)) ** 2,
        lambda p, q: jnp.exp(q) - jnp.exp((p + q) / 2),
        lambda p, q: 1 - _exp((p - q) / 2),
    )


def alpha(a: float) -> Divergence:
    """Return the generator f = (u^(1 - a) - (1 - a) u - a) / (a (a - 1)), a not 0 or 1.

    Its limits are forward KL at a -> 0 and reverse KL at a -> 1. Inside (0, 1) everything is
    bounded; outside, the divergence itself is unbounded and terms saturate at exp(40).

    Raises:
        ValueError: at a = 0 and a = 1.
    """
    if a in (0.0, 1.0):
        raise ValueError(f"alpha {a} is a limit; use forward_kl (0) or reverse_kl (1)")

    def power(p: Array, q: Array) -> Array:
        return _exp((1 - a) * p + a * q)

    return Divergence(
        lambda p, q: (power(p, q) - (1 - a) * jnp.exp(p) - a * jnp.exp(q)) / (a * (a - 1)),
        lambda p, q: (power(p, q) - jnp.exp(q)) / (a - 1),
        lambda p, q: (_exp((1 - a) * (p - q)) - 1) / (a - 1),
    )


def from_generator(f: Callable[[Array], Array]) -> Divergence:
    """Return the f-divergence of any scalar function f that JAX can differentiate.

    Within |log u| <= 40 it is exact. Beyond, u stands at that limit and the weight takes over the
    growth, so a generator that is linear at infinity (as forward KL's h is) stays right there.

    Args:
        f: convex, f(1) = 0; takes and returns a float32 scalar.

    Returns:
        The divergence, as finite at logits of 1e4 as f is at exp(40).
    """
    derivative = jax.grad(lambda u: jnp.asarray(f(u), jnp.float32))

    def parts(p: Array, q: Array) -> tuple[Array, Array, Array]:
        ratio = p - q
        u = jnp.exp(jnp.clip(ratio, min=-_LOG_LIMIT, max=_LOG_LIMIT))
        weight = jnp.exp(q + jnp.maximum(ratio - _LOG_LIMIT, 0))
        over = jax.vmap(f)(u.ravel()).reshape(u.shape)
        slope = jax.vmap(derivative)(u.ravel()).reshape(u.shape)
        return weight, over, over - u * slope

    def value_terms(p: Array, q: Array) -> Array:
        weight, value, _ = parts(p, q)
        return weight * value

    def score_terms(p: Array, q: Array) -> Array:
        weight, _, score = parts(p, q)
        return weight * score

    return Divergence(value_terms, score_terms, lambda p, q: parts(p, q)[2])


DIVERGENCES: dict[str, Callable[..., Divergence]] = {
    "forward_kl": lambda parameter: forward_kl(),
    "reverse_kl": lambda parameter: reverse_kl(),
    "jeffrey": jeffrey,
    "jensen_shannon": lambda parameter: jensen_shannon(),
    "squared_hellinger": lambda parameter: squared_hellinger(),
    "alpha": alpha,
}


def by_name(name: str, parameter: float = 0.0) -> Divergence:
    """Return the divergence of that name.

    Args:
        name: a key of DIVERGENCES.
        parameter: beta of "jeffrey", a of "alpha"; the others take none.

    Returns:
        The divergence.
    """
    return DIVERGENCES[name](parameter)


def _log_probs(
    teacher_logits: Float[Array, "*N V"], aux_logits: Float[Array, "*N V"]
) -> tuple[Array, Array]:
    if teacher_logits.shape != aux_logits.shape:
        raise ValueError(
            f"teacher logits {teacher_logits.shape} and auxiliary logits {aux_logits.shape} differ"
        )
    logs = [jax.nn.log_softmax(x.astype(jnp.float32)) for x in (teacher_logits, aux_logits)]
    return logs[0], logs[1]


def value(
    divergence: Divergence,
    teacher_logits: Float[Array, "*N V"],
    aux_logits: Float[Array, "*N V"],
) -> Float[Array, "*N"]:
    """D(teacher || auxiliary) of each token.

    Args:
        divergence: which.
        teacher_logits: [..., V], any float dtype, unnormalised.
        aux_logits: [..., V], likewise.

    Returns:
        [...] float32.

    Raises:
        ValueError: if the shapes differ.
    """
    log_p, log_q = _log_probs(teacher_logits, aux_logits)
    return divergence.value_terms(log_p, log_q).sum(-1)


def logit_gradient(
    divergence: Divergence,
    teacher_logits: Float[Array, "*N V"],
    aux_logits: Float[Array, "*N V"],
    generator_logits: Float[Array, "*N V"] | None = None,
) -> Float[Array, "*N V"]:
    """Gradient of D(teacher || auxiliary) in the logits, in closed form.

    Args:
        divergence: which.
        teacher_logits: [..., V], any float dtype.
        aux_logits: [..., V].
        generator_logits: None for the paper's form, whose softmax Jacobian is the auxiliary's. With
            them, the Jacobian is the generator's own: p_theta (h - sum p_theta h), as D-MMD
            (arXiv 2603.20155) and IDLM (arXiv 2602.19066) have it for the reverse KL.

    Returns:
        [..., V] float32; sums to zero over V.

    Raises:
        ValueError: if the shapes differ.

    Source: Di[M]O equations 14 to 18.
    """
    log_p, log_q = _log_probs(teacher_logits, aux_logits)
    if generator_logits is None:
        terms, weight = divergence.score_terms(log_p, log_q), jnp.exp(log_q)
    else:
        weight = jax.nn.softmax(generator_logits.astype(jnp.float32))
        terms = weight * divergence.score(log_p, log_q)
    return terms - weight * terms.sum(-1, keepdims=True)
