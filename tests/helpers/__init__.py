"""What tests share: peers, small models, files as users have them, programs that are killed."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
