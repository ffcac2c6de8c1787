"""What the training benchmark does: the same token ids and settings for everybody.

SL   one step of finetuning on 8 sequences of 256 tokens, every token a target.
PM   one step of a preference model on 4 pairs of such sequences, the first of each the better one.
PPO  one iteration: 16 prompts answered with 32 tokens each, scored, and learnt from in one epoch of
     4 minibatches, by a policy and a value model that has a trunk of its own.

Everybody trains all weights in float32 with AdamW, at a constant rate, the gradient's norm clipped
to 1, with nothing computed twice to save memory.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cai_jax.datasets.prompts import PromptRow, prompts
from cai_jax.encoding import prompt_tokens
from cai_jax.prompts import Format
from cai_jax.tokenizer import Tokenizer

NAMES = ("SL", "PM", "PPO")
LENGTH, ROWS = 256, 8
PROMPTS, RESPONSE, MINIBATCHES = 16, 32, 4
LEARNING_RATE, B1, B2, EPS, CLIP_NORM = 1e-5, 0.9, 0.95, 1e-8, 1.0
TEMPERATURE, KL_COEFFICIENT = 1.0, 0.001


@dataclasses.dataclass(frozen=True)
class Work:
    """One benchmark.

    Attributes:
      unit, size: what a step's rate counts, and how many a step is.
      rows: sequences in SL; in PM the better and the worse text of each pair in turn; in PPO the
        prompts.
      prompts: the same prompts as our stage takes them.
      response: tokens of each response.
      minibatches: of PPO's epoch.
      trl_ppo: folder with the last TRL that has PPO, for its peer alone.
    """

    name: str
    unit: str
    size: int
    rows: tuple[tuple[int, ...], ...]
    prompts: tuple[PromptRow, ...] = ()
    response: int = 0
    minibatches: int = 0
    trl_ppo: Path | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))


def build(
    name: str, vocab_size: int, tokenizer: Tokenizer, form: Format, trl_ppo: Path | None = None
) -> Work:
    """A benchmark by its name, for a model of this vocabulary and prompt format."""
    if name == "PPO":
        half = PROMPTS // 2
        asked = prompts("red_team", "train")[:half] + prompts("helpful", "train")[:half]
        rows = tuple(tuple(prompt_tokens(tokenizer, form, row.conversation)) for row in asked)
        return Work(
            name, "iterations", 1, rows, tuple(asked), RESPONSE, MINIBATCHES, trl_ppo
        )  # fmt: skip
    return Work(name, "tokens", ROWS * LENGTH, drawn(vocab_size, ROWS, LENGTH))


def drawn(vocab_size: int, rows: int, length: int) -> tuple[tuple[int, ...], ...]:
    """Random ids above the first quarter of the vocabulary, where special tokens may be."""
    ids = np.random.Generator(np.random.PCG64(0)).integers(vocab_size // 4, vocab_size,
                                                           (rows, length))  # fmt: skip
    return tuple(map(tuple, ids.tolist()))
