"""Which checkpoints stay: the newest, those of every so many steps, and the best."""

import math
from collections.abc import Iterable, Mapping


class Retention:
    """Chooses among the checkpoints of a stage.

    Args:
        newest: how many of the newest stay.
        every_steps: those of its multiples stay; 0: none for that reason.
        best: how many of those with the least figure stay.
    """

    def __init__(self, newest: int, every_steps: int = 0, best: int = 0):
        self.newest, self.every_steps, self.best = newest, every_steps, best
        self._figures: dict[int, tuple[str, float]] = {}

    def note(self, step: int, figures: Mapping[str, float]) -> None:
        """Record what was measured of a checkpoint, {name: figure}; nothing where it is empty."""
        for name, figure in figures.items():
            self._figures[step] = (name, figure)

    def is_best(self, figures: Mapping[str, float], steps: Iterable[int]) -> bool:
        """Return whether a checkpoint of these figures would be one of the best.

        Args:
            figures: {name: figure}, at most one; one that is not finite is none.
            steps: of the checkpoints that there are.
        """
        for name, figure in figures.items():
            others = best_of(self._of(name, steps), self.best)
            if math.isfinite(figure) and self.best:
                return len(others) < self.best or figure < max(others.values())
        return False

    def kept(self, steps: Iterable[int]) -> set[int]:
        """Return the steps among these whose checkpoints stay."""
        steps = sorted(steps)
        kept = set(steps[-self.newest :])
        if self.every_steps:
            kept |= {step for step in steps if step % self.every_steps == 0}
        measured = [step for step in steps if step in self._figures]
        if self.best and measured:
            # What an earlier start measured in another way has another name, and no rank in this.
            name = self._figures[measured[-1]][0]
            kept |= set(best_of(self._of(name, steps), self.best))
        return kept

    def _of(self, name: str, steps: Iterable[int]) -> dict[int, float]:
        found = {step: self._figures[step] for step in steps if step in self._figures}
        return {step: figure for step, (other, figure) in found.items() if other == name}


def best_of(figures: Mapping[int, float], number: int) -> dict[int, float]:
    """Return the least few of {step: figure}.

    Of equal ones the earliest, of what is not finite none.
    """
    finite = [(figure, step) for step, figure in figures.items() if math.isfinite(figure)]
    return {step: figure for figure, step in sorted(finite)[:number]}
