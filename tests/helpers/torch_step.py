"""One Di[M]O step in PyTorch, written from the paper's equations with autograd.

Tests hold the package's gradients equal to its, benchmarks run it beside the package's. Axes: B
batch, L tokens, D width.
"""

import torch


def one_step(generator, noise, tokens, labels):
    """z_theta(x_init), sigma = 0.1."""
    return generator(tokens, labels, perturb=lambda e: (1 - 0.1**2) ** 0.5 * e + 0.1 * noise)


def torch_step(variant, teacher, generator, auxiliary, draws):
    """The step on PyTorch networks; leaves the gradients in their parameters.

    "default" is the authors' code, "paper" the paper where the two differ (configs/imagenet.py).
    `draws` has the numbers of [MASK] and of the null class (`mask_id`, `null`), `labels` and
    `fresh_labels` [B], and the random numbers by name: `start(name)` x_init [B, L] and the noise of
    its embeddings [B, L, D], `tokens(name, logits)` [B, L], `mask(name)` [B, L]. Returns the
    auxiliary's loss, a tensor.
    """
    paper = variant == "paper"
    labels, fresh_labels = draws.labels, draws.fresh_labels

    # Generator: equation 7.
    start, noise = draws.start("generator")
    z = one_step(generator, noise, start, labels)
    tokens, mask = draws.tokens("generator", z), draws.mask("generator")
    x_t = torch.where(mask, draws.mask_id, tokens)
    with torch.no_grad():
        conditional = teacher(x_t, labels)
        unconditional = teacher(x_t, torch.full_like(labels, draws.null))
        log_p = (unconditional + 2 * (conditional - unconditional)).log_softmax(-1)
    with torch.set_grad_enabled(paper):  # the paper's second loss is of these logits too
        predicted = auxiliary(x_t, labels)
    z_psi = predicted.detach().requires_grad_()
    log_q = z_psi.log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)  # forward KL
    weight = mask / len(labels)
    if paper:
        reverse = (log_q.exp() * (log_q - log_p)).sum(-1)
        divergence = 1.2 * divergence - 0.2 * reverse  # equation 8, beta = -0.2
        weight = weight / mask.sum(1, keepdim=True)  # 1 / L_M, equation 5
        gap = (z.detach().softmax(-1) - log_p.exp()).abs().mean((1, 2))
        weight = weight / gap[:, None]  # w(t), appendix C
    (g,) = torch.autograd.grad((weight * divergence).sum(), z_psi)
    z.backward(g)

    # Auxiliary: equation 3.
    if not paper:
        start, noise = draws.start("aux0")
        with torch.no_grad():
            tokens = draws.tokens("aux0", one_step(generator, noise, start, fresh_labels))
        mask = draws.mask("aux0")
        predicted = auxiliary(torch.where(mask, draws.mask_id, tokens), fresh_labels)
    loss = torch.nn.functional.cross_entropy(
        predicted[mask], tokens[mask], label_smoothing=0.0 if paper else 0.1
    )
    loss.backward()
    return loss.detach()
