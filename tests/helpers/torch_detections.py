"""mmdet 2.28's post-processing of instances, its steps in PyTorch."""

import torch
from torch.nn.functional import interpolate


def objects(classes, masks, padded, fitted, size):
    """Return (label, score, box, mask) of each of the hundred surest pairs."""
    num = classes.shape[1] - 1
    probs = torch.from_numpy(classes).softmax(-1)[:, :-1].flatten()
    probs, pairs = probs.topk(min(100, len(probs)), sorted=False)
    large = interpolate(torch.from_numpy(masks)[None], padded, mode="bilinear", align_corners=False)
    large = large[:, :, : fitted[0], : fitted[1]]
    every = interpolate(large, size, mode="bilinear", align_corners=False)[0]
    found = []
    for prob, pair in zip(probs, pairs, strict=True):
        logits = every[pair // num]
        mask = (logits > 0).float()
        score = prob * (logits.sigmoid() * mask).sum() / (mask.sum() + 1e-6)
        places = mask.nonzero()
        box = [0, 0, 0, 0]
        if len(places):
            top, left = places.min(0).values.tolist()
            bottom, right = places.max(0).values.tolist()
            box = [left, top, right + 1, bottom + 1]
        found.append((int(pair % num), float(score), box, mask.bool().numpy()))
    return found
