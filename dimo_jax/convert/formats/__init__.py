"""Read and write files of weights: PyTorch's two, safetensors, folders; no pickle is run."""
