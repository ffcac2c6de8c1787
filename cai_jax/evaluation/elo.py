"""Elo by maximum likelihood from comparisons, with intervals over prompts.

Convention of the paper (arXiv 2212.08073, section 4.4; 2204.05862, section 2.2): the share of wins
over an opponent is 1 / (1 + 10^(-d / 400)) for an Elo lead d, and a lead in preference-model score
of s is a lead in Elo of s * 400 / ln 10, about 174 s. Only differences matter: the anchor is 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import choix
import numpy as np

from cai_jax.evaluation.intervals import Interval, percentiles, resample, wilson

ELO_PER_SCORE = 400 / math.log(10)
# Pseudo-wins given to each side of each compared pair, so that a clean sweep has a finite Elo.
PRIOR_WINS = 0.5


@dataclasses.dataclass(frozen=True)
class Game:
    """One comparison of two players' responses to a prompt.

    Attributes:
      share_a: 1 where a won, 0 where b won, 0.5 for a tie; shares between come from several samples
        or from a soft judge.
    """

    prompt: str
    a: str
    b: str
    share_a: float


def games_by_score(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Game]:
    """Games between all players, judged by which response scores higher; equal scores tie.

    Args:
      scores: player -> prompt id -> the scores of that player's samples. Every sample of one player
        meets every sample of the other on the same prompt.

    Raises:
      ValueError: the players did not answer the same prompts.
    """
    players = list(scores)
    for player in players[1:]:
        if differing := set(scores[player]) ^ set(scores[players[0]]):
            raise ValueError(
                f"{player} and {players[0]} were not scored on the same prompts "
                f"(for example {min(differing)}); score both on all of them."
            )
    games = []
    for first, a in enumerate(players):
        for b in players[first + 1 :]:
            for prompt in scores[a]:
                lead = np.subtract.outer(scores[a][prompt], scores[b][prompt])
                games.append(Game(prompt, a, b, float((np.sign(lead).mean() + 1) / 2)))
    return games


def elo(
    games: Sequence[Game], anchor: str, seed: int, resamples: int = 1000
) -> dict[str, Interval]:
    """Maximum-likelihood Elo of every player, the anchor at 0, with 95% bootstrap intervals.

    log P = sum over games of share_a log s(r_a - r_b) + (1 - share_a) log s(r_b - r_a), s the
    logistic function and Elo = r * 400 / ln 10, maximised by choix after adding PRIOR_WINS to each
    side of each compared pair. The bootstrap resamples prompts, so players stay paired on them;
    `Interval.n` is the number of prompts a player met.

    Raises:
      ValueError: no games, an unknown anchor, or players that no chain of games connects.
    """
    players = list(dict.fromkeys(name for game in games for name in (game.a, game.b)))
    if anchor not in players:
        raise ValueError(f"The anchor {anchor!r} played no game; players are {players}.")
    wins = _wins(games, players)
    met = wins + wins.transpose(0, 2, 1)
    _check_connected(met.sum(0), players)
    origin = players.index(anchor)
    value = _fit(wins.sum(0), origin)
    draws = np.stack([_fit(wins[i].sum(0), origin) for i in resample(len(wins), seed, resamples)])
    low, high = percentiles(draws)
    prompts = (met.sum(2) > 0).sum(0)
    return {
        player: Interval(float(value[k]), float(low[k]), float(high[k]), int(prompts[k]))
        for k, player in enumerate(players)
    }


def win_rates(games: Sequence[Game]) -> dict[tuple[str, str], Interval]:
    """(player, opponent) -> share of prompts won, ties half, with a 95% Wilson interval.

    Several games on one prompt count as one, by their mean, so n is the number of prompts.
    """
    shares: dict[tuple[str, str], dict[str, list[float]]] = {}
    for game in games:
        for pair, share in (
            ((game.a, game.b), game.share_a),
            ((game.b, game.a), 1 - game.share_a),
        ):
            shares.setdefault(pair, {}).setdefault(game.prompt, []).append(share)
    return {
        pair: wilson(sum(float(np.mean(s)) for s in by_prompt.values()), len(by_prompt))
        for pair, by_prompt in shares.items()
    }


def _wins(games: Sequence[Game], players: list[str]) -> np.ndarray:
    """float64[prompts, players, players]: wins of the second axis over the third, by prompt."""
    prompts = {p: k for k, p in enumerate(dict.fromkeys(game.prompt for game in games))}
    order = {player: k for k, player in enumerate(players)}
    wins = np.zeros((len(prompts), len(players), len(players)))
    for game in games:
        if not 0 <= game.share_a <= 1 or game.a == game.b:
            raise ValueError(f"{game} is no game: two players and a share in [0, 1] are needed.")
        p, a, b = prompts[game.prompt], order[game.a], order[game.b]
        wins[p, a, b] += game.share_a
        wins[p, b, a] += 1 - game.share_a
    return wins


def _fit(wins: np.ndarray, origin: int) -> np.ndarray:
    met = wins + wins.T > 0
    if not met[origin].any():  # a resample without the anchor says nothing
        return np.full(len(wins), np.nan)
    reached = _reached(met, origin)
    kept = np.flatnonzero(reached)
    score = np.full(len(wins), np.nan)
    smoothed = (wins + PRIOR_WINS * met)[np.ix_(kept, kept)]
    score[kept] = choix.ilsr_pairwise_dense(smoothed, max_iter=1000)
    return (score - score[origin]) * ELO_PER_SCORE


def _reached(met: np.ndarray, origin: int) -> np.ndarray:
    reached = np.arange(len(met)) == origin
    for _ in range(len(met)):
        reached |= met[reached].any(0)
    return reached


def _check_connected(met: np.ndarray, players: list[str]) -> None:
    apart = [p for p, r in zip(players, _reached(met > 0, 0), strict=True) if not r]
    if apart:
        raise ValueError(f"No chain of games connects {apart[0]} with {players[0]}; compare them.")
