"""Features of images by the networks that metrics look through, and their sums on disk."""
