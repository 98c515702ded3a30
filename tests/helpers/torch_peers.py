"""Import this before any package that imports torchvision: torch-fidelity, clean-fid, pytorch-fid.

PyPI's torchvision is built for CUDA, so beside a CPU-only PyTorch its operators are missing, and it
fails on import when it describes two of them (0.28: "operator torchvision::nms does not exist").
Nothing here calls them; their signatures are enough.
"""

import torch

try:
    import torchvision
except RuntimeError:
    # The definitions last as long as this object.
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
