"""Sampling around a PyTorch network: the teacher's confidence decoding, and one call.

Both are written from the original's description; the random numbers are their caller's. Tests hold
the package's tokens equal to theirs, benchmarks run them beside the package's. Axes: B batch, L
tokens, V vocabulary, S steps.
"""

import math

import torch


def adap_sche(schedule, S, L):
    """How many of L tokens each of S steps writes."""
    r = torch.linspace(1, 0, S)
    v = {
        "root": 1 - r.sqrt(),
        "linear": 1 - r,
        "square": 1 - r**2,
        "cosine": torch.cos(r * math.pi * 0.5),
        "arccos": torch.arccos(r) / (math.pi * 0.5),
    }[schedule]
    counts = (v / v.sum() * L).round()
    counts[counts == 0] = 1
    counts[-1] += L - counts.sum()
    return counts.int().tolist()


@torch.no_grad()
def torch_decode(network, draws, S, schedule, randomize, w=0.0, sm_temp=1.0, r_temp=4.5):
    """[B, L] of the original's loop, in its own terms: guidance 1 + w.

    `draws` has `labels` [B], the numbers `null` and `mask_id`, and the random numbers of step i:
    `tokens(i, logits)` [B, L], `gumbel(i)` and `uniform(i)` [B, L] for the order, and
    `decided(conf, count)`, which sees what the `count` most confident are chosen by.
    """
    labels, L = draws.labels, network.num_tokens
    grid = labels.new_full((len(labels), L), draws.mask_id)
    masked = torch.ones_like(grid, dtype=torch.bool)
    remaining = L
    for i, count in enumerate(adap_sche(schedule, S, L)):
        if remaining == 0:
            break
        count = min(count, remaining)
        logits = network(grid, labels)
        if w:
            w_i = w * i / (S - 1)
            null = torch.full_like(labels, draws.null)
            logits = (1 + w_i) * logits - w_i * network(grid, null)
        logits = logits * sm_temp
        drawn = draws.tokens(i, logits)
        conf = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0]
        shuffled = randomize == "random" or (randomize == "warm_up" and i < 2)
        if randomize == "linear":
            conf = conf.log() + r_temp * draws.gumbel(i) * (1 - i / (S - 1))
        elif shuffled:
            conf = draws.uniform(i)
        conf = torch.where(masked, conf, -math.inf)
        threshold = conf.sort(-1, descending=True).values[:, count - 1 : count]
        if count < remaining and not shuffled:  # shuffled, both compare the very same numbers
            draws.decided(conf, count)
        write = conf >= threshold
        grid, masked = torch.where(write, drawn, grid), masked & ~write
        remaining -= count
    assert not masked.any()
    return grid


def kept(logits, top_k, top_p):
    """-inf outside the top_k largest, then outside the fewest that reach the mass top_p."""
    if not top_k and top_p == 1:
        return logits
    order = logits.argsort(-1, descending=True)
    mass = logits.gather(-1, order)
    if top_k:
        mass[..., top_k:] = -math.inf
    mass = mass.softmax(-1)
    keep = (mass.cumsum(-1) - mass < top_p) & (mass > 0)
    return logits.masked_fill(~torch.zeros_like(keep).scatter(-1, order, keep), -math.inf)


@torch.no_grad()
def torch_one_step(network, draws, sigma, temperature, top_k, top_p):
    """[B, L] of one call.

    `draws` has `labels` [B], `start(name)` x_init [B, L] and the noise of its embeddings [B, L, D],
    `tokens(name, logits)` [B, L], as of a step.
    """
    start, noise = draws.start("sample")
    logits = network(
        start, draws.labels, perturb=lambda e: math.sqrt(1 - sigma**2) * e + sigma * noise
    )
    return draws.tokens("sample", kept(logits / temperature, top_k, top_p))
