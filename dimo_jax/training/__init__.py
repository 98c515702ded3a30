"""State, optimizers, the loop, checkpoints, metrics and random streams."""
