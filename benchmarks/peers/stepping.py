"""What all training peers have in common: a step at a time, and its loss where it has one."""

from __future__ import annotations

from peers import Answer


class Stepping:
    """A peer that trains.

    Its `step()` does one step and returns when it is done; `losses` has each step's loss, before
    the step, where the library says one.

    Attributes: warming, steps that are not like the later ones, such as those that compile.
    """

    warming = 1

    def __init__(self):
        self.losses: list[float] = []

    def step(self) -> None:
        """One step, to its end."""
        raise NotImplementedError

    def warm(self) -> None:
        """The steps that are not measured."""
        for _ in range(self.warming):
            self.step()

    def run(self, greedy: bool, seed: int) -> Answer:
        """One step more."""
        del greedy, seed
        self.step()
        return Answer(details={"losses": self.losses[:2]})
