"""Array batches of fixed shape, and how lists of token ids become them.

Padding is always on the right with id 0 and is marked by masks only: no code may look for a pad
id, so a tokenizer whose pad and end token coincide loses nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray
Example = tuple[Sequence[int], Sequence[bool]]


@flax.struct.dataclass
class TokenBatch:
    """Sequences for the language-model loss, one or several to a row.

    Attributes:
      tokens: int32[B, T].
      positions: int32[B, T], from 0 at the start of each segment.
      segment_ids: int32[B, T], from 1; 0 is padding. A token attends within its segment only.
      loss_mask: bool[B, T]; True where the token is a target, predicted from the one before it.
    """

    tokens: Array
    positions: Array
    segment_ids: Array
    loss_mask: Array

    @property
    def real(self) -> Array:
        """bool[B, T], True on what is no padding."""
        return self.segment_ids > 0


@flax.struct.dataclass
class ComparisonBatch:
    """Pairs of whole texts (prompt and response) with a soft label.

    Attributes:
      tokens: int32[B, 2, T]; index 0 of the middle axis is response A, 1 is response B.
      mask: bool[B, 2, T], True on real tokens; the score is read at the last of them.
      prob_a: float32[B], probability that A is the better response.
      weight: float32[B], weight of the pair in the loss; 0 for rows that only fill the batch.
    """

    tokens: Array
    mask: Array
    prob_a: Array
    weight: Array

    @property
    def real(self) -> Array:
        """bool[B, 2, T], True on what is neither padding nor only fills the batch."""
        return self.mask & (self.weight > 0)[:, None, None]


@flax.struct.dataclass
class RatedBatch:
    """Whole texts with a rating each.

    Attributes:
      tokens: int32[B, T].
      mask: bool[B, T], True on real tokens; the score is read at the last of them.
      rating: float32[B].
      weight: float32[B], weight of the text in the loss; 0 for rows that only fill the batch.
    """

    tokens: Array
    mask: Array
    rating: Array
    weight: Array

    @property
    def real(self) -> Array:
        """bool[B, T], True on what is neither padding nor only fills the batch."""
        return self.mask & (self.weight > 0)[:, None]


@flax.struct.dataclass
class Rollout:
    """One batch of sampled and scored responses.

    Attributes:
      prompt: int32[B, P].
      prompt_mask: bool[B, P], True on real tokens.
      response: int32[B, R].
      mask: bool[B, R], True on sampled tokens, the end token included.
      logprobs: float32[B, R], nats, of the policy that sampled.
      ref_logprobs: float32[B, R], nats, of the reference.
      values: float32[B, R], the value of the state before each token; None without a value
        function.
      score: float32[B], one scalar a response, of a preference model or a rating.
    """

    prompt: Array
    prompt_mask: Array
    response: Array
    mask: Array
    logprobs: Array
    ref_logprobs: Array
    values: Array | None
    score: Array


def bucket(n: int, buckets: Sequence[int]) -> int:
    """The smallest of the ascending `buckets` that holds `n`, so that few shapes get compiled."""
    place = bisect.bisect_left(buckets, n)
    if place == len(buckets):
        raise ValueError(
            f"A sequence of {n} tokens exceeds the largest bucket, {max(buckets, default=0)}; "
            "shorten it or add a larger bucket."
        )
    return buckets[place]


def pad_tokens(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads rows of token ids.

    Args:
      rows: N lists of at most `length` ids.
      length: T.

    Returns:
      tokens int32[N, T] and mask bool[N, T], True on real tokens whatever their id.

    Raises:
      ValueError: a row is longer than `length`.
    """
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for n, row in enumerate(rows):
        _refuse_longer(n, len(row), length)
        tokens[n, : len(row)] = row
        mask[n, : len(row)] = True
    return tokens, mask


def token_batch(examples: Sequence[Example], length: int) -> TokenBatch:
    """One example a row.

    Args:
      examples: (tokens, loss_mask) of equal lengths, at most `length`. The first token of an
        example has nothing before it that could predict it: its mask is cleared.
      length: T.

    Raises:
      ValueError: an example is longer than `length`, or its mask has another length.
    """
    return _fill([[n] for n in range(len(examples))], examples, length)


def pack(examples: Sequence[Example], length: int, rows: int) -> list[TokenBatch]:
    """Several examples to a row, in batches of `rows` rows.

    Each example goes, in order, to the first row of the current batch with room for it; when none
    has room the batch is closed and the next one opened. The last batch is filled with empty rows.

    Args:
      examples: as for `token_batch`.
      length: T.
      rows: B, rows to a batch.

    Returns:
      Batches whose segment ids count from 1 in each row and whose positions restart with each
      segment; the same examples always pack the same way.

    Raises:
      ValueError: an example is longer than `length`, or its mask has another length.
    """
    batches: list[list[list[int]]] = []
    free = np.zeros(rows, int)
    for n, (tokens, _) in enumerate(examples):
        _refuse_longer(n, len(tokens), length)
        if not batches or not (free >= len(tokens)).any():
            batches.append([[] for _ in range(rows)])
            free[:] = length
        row = int(np.argmax(free >= len(tokens)))
        batches[-1][row].append(n)
        free[row] -= len(tokens)
    return [_fill(batch, examples, length) for batch in batches]


def comparison_batch(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    prob_a: Sequence[float],
    weight: Sequence[float],
    length: int,
) -> ComparisonBatch:
    """Pads pairs of texts.

    Args:
      pairs: B pairs (tokens of prompt and response A, tokens of prompt and response B).
      prob_a: B probabilities that A is better.
      weight: B weights.
      length: T.

    Raises:
      ValueError: a text is empty or longer than `length`, or a probability is outside [0, 1].
    """
    if not len(pairs) == len(prob_a) == len(weight):
        raise ValueError(
            f"Comparisons need one prob_a and one weight a pair: got {len(pairs)} pairs, "
            f"{len(prob_a)} probabilities and {len(weight)} weights."
        )
    for n, (pair, p) in enumerate(zip(pairs, prob_a, strict=True)):
        if not 0 <= p <= 1:
            raise ValueError(f"Comparison {n} has prob_a {p}; it must lie in [0, 1].")
        if not all(len(text) for text in pair):
            raise ValueError(f"Comparison {n} has an empty text; there is no token to score.")
    tokens, mask = pad_tokens([text for pair in pairs for text in pair], length)
    return ComparisonBatch(
        tokens=tokens.reshape(-1, 2, length),
        mask=mask.reshape(-1, 2, length),
        prob_a=np.asarray(prob_a, np.float32),
        weight=np.asarray(weight, np.float32),
    )


def rated_batch(
    texts: Sequence[Sequence[int]], rating: Sequence[float], weight: Sequence[float], length: int
) -> RatedBatch:
    """Pads B texts with their ratings and weights to `length` tokens.

    Raises:
      ValueError: a text is empty or longer than `length`, or the lists have different lengths.
    """
    if not len(texts) == len(rating) == len(weight):
        raise ValueError(
            f"Rated texts need one rating and one weight each: got {len(texts)} texts, "
            f"{len(rating)} ratings and {len(weight)} weights."
        )
    if not all(len(text) for text in texts):
        raise ValueError("A rated text is empty; there is no token to score.")
    tokens, mask = pad_tokens(texts, length)
    return RatedBatch(tokens, mask, np.asarray(rating, np.float32), np.asarray(weight, np.float32))


def _fill(layout: list[list[int]], examples: Sequence[Example], length: int) -> TokenBatch:
    """Writes the examples numbered in each row of `layout` one after another into that row."""
    shape = (len(layout), length)
    tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    loss_mask = np.zeros(shape, bool)
    for row, members in enumerate(layout):
        start = 0
        for segment, n in enumerate(members, start=1):
            ids, targets = examples[n]
            if len(ids) != len(targets):
                raise ValueError(
                    f"Example {n} has {len(ids)} tokens but a loss mask of {len(targets)}."
                )
            _refuse_longer(n, len(ids), length)
            place = slice(start, start + len(ids))
            tokens[row, place] = ids
            positions[row, place] = np.arange(len(ids))
            segments[row, place] = segment
            loss_mask[row, place] = targets
            if len(ids):
                loss_mask[row, start] = False
            start += len(ids)
    return TokenBatch(tokens, positions, segments, loss_mask)


def _refuse_longer(n: int, size: int, length: int) -> None:
    if size > length:
        raise ValueError(
            f"Example {n} has {size} tokens but a row holds {length}; "
            "shorten the example or raise the length."
        )
