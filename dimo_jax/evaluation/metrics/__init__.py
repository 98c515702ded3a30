"""Metrics as the field computes them, from features to figures."""
