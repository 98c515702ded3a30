"""Configs that come with the package: --config=NAME, or configs/NAME.py in a checkout."""
