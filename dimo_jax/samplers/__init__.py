"""Ways to turn a network into tokens: one file for each method."""
