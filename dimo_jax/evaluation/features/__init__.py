"""Features of images by the networks whose features metrics compare, and their sums on disk."""
