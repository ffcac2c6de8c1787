"""Goodhart's law during RL: do responses get better, or only fit the one model that scores them?

Two things are watched. The texts: length, repetition, refusals and phrases that turn up everywhere,
which is what over-trained policies fell into (arXiv 2212.08073, section 4.3). And the score of a
second preference model, trained on the other half of the comparisons: where the optimised model's
score goes on rising and the other's does not, the policy exploits the first (2204.05862, Figures 4
and 13).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import jax
import numpy as np

from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding.engine import Engine
from cai_jax.decoding.respond import respond
from cai_jax.evaluation.refusal import measure, phrases
from cai_jax.models.scoring import score_texts
from cai_jax.models.transformer import Params
from cai_jax.prompts import Format
from cai_jax.records import Kind, Provenance, Record
from cai_jax.returns import agreed_score
from cai_jax.training.rollout import preference_scores

FOLDER = "ppo/held_out_responses"  # in a run's workdir, one shard of Baseline
HELD_OUT_SCORE = "monitor/held_out_score"
PHRASE = 4  # words of a phrase that responses may share


@dataclasses.dataclass(frozen=True)
class Baseline(Record):
    """A response to a held-out prompt by the policy that RL starts from.

    Attributes: score, of the preference model that RL optimises; held_out_score, of the other.
    """

    id: str
    kind: Kind
    prompt: Conversation
    response: str
    stop_reason: str
    score: float
    held_out_score: float
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The preference model that RL does not optimise.

    A preference model learns differences of scores alone: two of them have no zero in common, and
    their scores can't be compared. So each model's own mean over the same SL-CAI responses to
    held-out prompts is taken as its zero.

    Attributes: params, a trunk with a scalar head; zeros, of the optimised model and of this one.
    """

    params: Params
    zeros: tuple[float, float]


def zeros_of(responses: Sequence[Baseline]) -> tuple[float, float]:
    """Mean score of the optimised preference model, and of the held-out one."""
    return fmean(r.score for r in responses), fmean(r.held_out_score for r in responses)


def baseline(
    engine: Engine,
    form: Format,
    policy_params: Params,
    pms: Sequence[Params],
    held_out: Params,
    rows: Sequence[PromptRow],
    *,
    deviations: float,
    response_tokens: int,
    temperature: float,
    length: int,
    batch_size: int,
    seed: int,
    provenance: Provenance,
    mesh: jax.sharding.Mesh | None = None,
) -> list[Baseline]:
    """Responses of the policy before RL, sampled as RL samples, scored by both preference models.

    Args:
      pms: the members of the optimised preference model.
      held_out: the held-out one.
      rows: held-out prompts.
      deviations: see `returns.agreed_score`.
      length: tokens of a text that is scored; longer ones keep their end.
      batch_size: texts scored at a time.
    """
    engine.params = policy_params
    replies = respond(
        engine,
        form,
        [(row.id, row.conversation) for row in rows],
        stream="ppo baseline",
        seed=seed,
        samples=1,
        max_new_tokens=response_tokens,
        temperature=temperature,
    )
    engine.params = None
    firsts = [reply for (reply,) in replies]
    each = preference_scores(
        engine.config, (*pms, held_out), engine.tokenizer, form,
        [row.conversation for row in rows], firsts, truncated_at="end_token",
        batch_size=batch_size, length=length, mesh=mesh,
    )  # fmt: skip
    scores = agreed_score(each[:-1], deviations).tolist(), each[-1].tolist()
    return [
        Baseline(
            row.id, row.kind, row.conversation, reply.text, reply.stop_reason, *both, provenance
        )
        for row, reply, both in zip(rows, firsts, zip(*scores, strict=True), strict=True)
    ]


def watch(
    engine: Engine,
    form: Format,
    texts: Sequence[tuple[Conversation, str]],
    score: np.ndarray | jax.Array,
    stock_phrase: str,
    held_out: HeldOut | None,
    length: int,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[dict[str, float], list[float] | list[None]]:
    """What is watched of one rollout, and the held-out preference model's score of each response.

    Args:
      texts: (prompt, response) of B responses.
      score: float32[B], of the optimised preference model.
      stock_phrase, length: see `signs` and `baseline`.

    Returns:
      `signs`, and with `held_out` "monitor/score" and "monitor/held_out_score", each model's mean
      score less its zero. The scores are None without `held_out`.
    """
    found = signs([response for _, response in texts], stock_phrase)
    if held_out is None:
        return found, [None] * len(texts)
    others = score_texts(
        engine.config, held_out.params, engine.tokenizer, form, texts, batch_size=len(texts),
        length=length, mesh=mesh,
    )  # fmt: skip
    found["monitor/score"] = float(np.mean(score)) - held_out.zeros[0]
    found[HELD_OUT_SCORE] = float(np.mean(others)) - held_out.zeros[1]
    return found, others.tolist()


def signs(responses: Sequence[str], stock_phrase: str) -> dict[str, float]:
    """What the texts of one rollout show.

    Returns:
      Means over responses: "monitor/words"; "monitor/repeated_phrases", within a response;
      "monitor/refusals", a share. "monitor/shared_phrase" is the largest share of responses that
      have one phrase of four words in common, "monitor/stock_phrase" the share that contains
      `stock_phrase`, where that is not empty.
    """
    measures = [measure(text) for text in responses]
    found = {
        "monitor/words": fmean(m.words for m in measures),
        "monitor/repeated_phrases": fmean(m.repeated_phrases for m in measures),
        "monitor/refusals": fmean(m.refusal for m in measures),
        "monitor/shared_phrase": shared_phrase(responses)[1],
    }
    if stock_phrase:
        found["monitor/stock_phrase"] = fmean(contains(text, stock_phrase) for text in responses)
    return found


def shared_phrase(responses: Sequence[str]) -> tuple[str, float]:
    """The phrase of four words that most responses contain, and their share; ("", 0.0) if none."""
    counts = Counter(phrase for text in responses for phrase in set(phrases(text, PHRASE)))
    if not counts:
        return "", 0.0
    most = min(counts, key=lambda phrase: (-counts[phrase], phrase))  # the same one every time
    return most, counts[most] / len(responses)


def contains(response: str, phrase: str) -> bool:
    """Whether the words of `phrase` stand in the response; case and punctuation don't count."""
    words = phrases(phrase, 1)
    return bool(words) and " ".join(words) in phrases(response, len(words))


def turned(rows: Sequence[Mapping[str, Any]], window: int) -> bool:
    """Whether the held-out score of the last `window` updates is below that of the `window` before.

    Args:
      rows: of metrics.jsonl, one an update.
      window: at least 1; while there are fewer than 2 * window rows nothing has turned.
    """
    scores = [row[HELD_OUT_SCORE] for row in rows[-2 * window :]]
    return len(scores) == 2 * window and fmean(scores[window:]) < fmean(scores[:window])
