"""The weight map of each published network."""
