"""cai_jax's engine, through its public API alone."""

from __future__ import annotations

import dataclasses

from workloads import (
    STEP_TOKENS,
    Workload,
    at,
    common_length,
    critique_forces,
    revision_forces,
    tokens_of,
)

from cai_jax import load_model
from cai_jax.decoding import Engine
from cai_jax.script import Sample, Script
from peers import Answer, Setup

MARGIN = 16  # tokens of room beyond the longest item


class Ours:
    """One engine for the whole workload."""

    def __init__(self, setup: Setup, workload: Workload, model=None):
        """`model` takes the place of the one in `setup.directory`."""
        model = model or load_model(setup.directory, setup.dtype)
        self.model = dataclasses.replace(model, tokenizer=workload.tokenizer)
        self.workload = workload
        self.engine = Engine(self.model, workload.slots, self._max_length())

    def warm(self) -> None:
        """Compiles everything that `run` will need."""
        self.run(greedy=False, seed=0)

    def run(self, greedy: bool, seed: int) -> Answer:
        """Answers the workload."""
        if self.workload.name == "W5":
            return self._chains(greedy, seed)
        scripts = [at(i.script, 0.0) if greedy else i.script for i in self.workload.items]
        last = [transcript.segments[-1] for transcript in self.engine.run(scripts, seed)]
        answer = Answer(details=self._stats())
        if self.workload.items[0].options:
            answer.scores = [list(segment.option_logprobs) for segment in last]
        else:
            answer.tokens = [list(segment.tokens) for segment in last]
        return answer

    def _chains(self, greedy: bool, seed: int) -> Answer:
        """As the critique-revision stage has it: each round reads the latest text anew."""
        workload, form = self.workload, self.workload.form
        sample = Sample(STEP_TOKENS, temperature=0.0 if greedy else 1.0)
        scripts = [Script((*form.prompt(c.conversation), sample), c.id) for c in workload.items]
        latest = [t.segments[-1] for t in self.engine.run(scripts, seed)]
        stats = [self._stats()]
        for number in range(len(workload.items[0].principles)):
            scripts = [
                Script(
                    (
                        *critique_forces(workload, item, number, said.text.strip()),
                        sample,
                        *revision_forces(workload, item, number),
                        sample,
                    ),
                    f"{item.id}/{number}",
                )
                for item, said in zip(workload.items, latest, strict=True)
            ]
            latest = [t.segments[-1] for t in self.engine.run(scripts, seed)]
            stats.append(self._stats())
        return Answer(tokens=[list(said.tokens) for said in latest], details={"runs": stats})

    def _max_length(self) -> int:
        """The least that fits, the prefix that all Scripts share left out."""
        if self.workload.name == "W5":
            return self._longest_round() + MARGIN
        longest = max(
            len(item.tokens) + item.limit + max(map(len, item.options), default=0)
            for item in self.workload.items
        )
        return longest - self.workload.common + MARGIN

    def _longest_round(self) -> int:
        """The most tokens of a critique and a revision beyond the few-shots."""
        workload, rounds = self.workload, []
        for item in workload.items:
            for number in range(len(item.principles)):
                # A text that is read again may come to more tokens than it was written in.
                opening = critique_forces(workload, item, number, "")
                forces = (*opening, *revision_forces(workload, item, number))
                rounds.append(tokens_of(workload.tokenizer, forces))
        return max(map(len, rounds)) - common_length(rounds) + 6 * STEP_TOKENS

    def _stats(self) -> dict:
        stats = self.engine.stats
        labels = self.workload.unit == "prompts"
        occupancy = None if labels else stats.occupancy
        return {**dataclasses.asdict(stats), "occupancy": occupancy}
