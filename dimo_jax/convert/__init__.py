"""Published checkpoints -> bundles, and back; executes nothing that a file contains."""
