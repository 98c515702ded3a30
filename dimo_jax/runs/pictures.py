"""Grids of samples that a run draws while it trains, of the same seed and conditions each time."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from dimo_jax.common import images
from dimo_jax.runs.image_setup import PICTURES_OF_EACH, ImageRun, Images
from dimo_jax.training import load_conditions, stages
from dimo_jax.training.programs import DataConditions


def of_teacher(run: ImageRun, conditions: DataConditions) -> stages.Pictures:
    """Return what draws a teacher in its training.

    Args:
        run: with the network that is trained.
        conditions: of its data.
    """
    pictured = load_conditions.pictured(run.config, conditions, PICTURES_OF_EACH)
    return lambda state, _: {"samples": _teacher_grid(run, state.ema, pictured)}


def of_generator(run: ImageRun, teacher: Any) -> stages.Pictures:
    """Return what draws a generator in its training and, the first time, its teacher."""

    def draw(state: Any, step: int) -> dict[str, np.ndarray]:
        grids = {
            name: _grid(run.draw(params, run.sampler, 0, run.pictured[0]))
            for name, params in (("ema", state.ema), ("generator", state.generator))
        }
        if step == run.config["logging"]["images_every_steps"]:
            grids["teacher"] = _teacher_grid(run, teacher, run.pictured)
        return grids

    return draw


def _teacher_grid(
    run: ImageRun, params: Any, pictured: tuple[Any, Any]
) -> UInt8[np.ndarray, "H W C"]:
    steps = run.config["logging"]["picture_steps"]
    return _grid(run.draw_teacher(params, steps, {}, 0, *pictured))


def _grid(pixels: Images) -> UInt8[np.ndarray, "h w C"]:
    """Return a column for each label or prompt."""
    tiles = images.to_uint8(pixels)
    columns = tiles.reshape(-1, PICTURES_OF_EACH, *tiles.shape[1:]).swapaxes(0, 1)
    return images.grid(columns.reshape(tiles.shape), len(tiles) // PICTURES_OF_EACH)
