import math

import choix
import numpy as np
import pytest

from cai_jax.evaluation import elo
from cai_jax.evaluation.elo import Game


def games(a, b, wins, of):
    return [Game(f"p{k}", a, b, float(k < wins)) for k in range(of)]


def test_three_in_four_is_about_191_elo():
    # 400 log10(3) = 190.85; the half pseudo-win on each side gives 400 log10(300.5 / 100.5).
    found = elo.elo(games("new", "old", 300, 400), "old", seed=0, resamples=200)
    assert found["new"].value == pytest.approx(400 * math.log10(300.5 / 100.5), abs=1e-3)
    assert found["new"].value == pytest.approx(190.85, abs=1.0)
    assert found["old"].value == found["old"].low == found["old"].high == 0
    assert found["new"].low < found["new"].value < found["new"].high
    assert found["new"].n == 400


def test_scale_of_scores_is_174_elo():
    assert pytest.approx(173.7178, abs=1e-4) == elo.ELO_PER_SCORE


def test_agrees_with_choix_on_many_games(monkeypatch):
    monkeypatch.setattr(elo, "PRIOR_WINS", 0.0)
    rng = np.random.default_rng(3)
    strength = {"a": 0.0, "b": 0.7, "c": 1.2}
    played, pairs = [], []
    names = list(strength)
    for k in range(300):
        i, j = rng.choice(3, 2, replace=False)
        won = rng.uniform() < 1 / (1 + math.exp(strength[names[j]] - strength[names[i]]))
        played.append(Game(f"p{k}", names[i], names[j], float(won)))
        pairs.append((i, j) if won else (j, i))
    theirs = choix.opt_pairwise(3, pairs, alpha=1e-9)
    ours = elo.elo(played, "a", seed=0, resamples=2)
    for k, name in enumerate(names):
        assert ours[name].value == pytest.approx(
            (theirs[k] - theirs[0]) * 400 / math.log(10), abs=0.1
        )


def test_a_sweep_is_finite_and_ties_are_zero():
    sweep = elo.elo(games("a", "b", 8, 8), "b", seed=0, resamples=50)["a"]
    assert sweep.value == pytest.approx(400 * math.log10(17), abs=1e-3)
    tie = elo.elo([Game("p", "a", "b", 0.5)], "b", seed=0, resamples=10)["a"]
    assert tie.value == pytest.approx(0, abs=1e-6)


def test_swapping_the_sides_of_games_changes_nothing():
    played = games("a", "b", 5, 8) + games("c", "a", 6, 8)
    turned = [Game(g.prompt, g.b, g.a, 1 - g.share_a) for g in played]
    one, two = (elo.elo(g, "a", seed=4, resamples=50) for g in (played, turned))
    for name in "abc":
        assert (one[name].value, one[name].low, one[name].high) == pytest.approx(
            (two[name].value, two[name].low, two[name].high), abs=1e-3
        )


def test_the_interval_is_over_prompts_not_games():
    one_sample = [Game(f"p{k}", "a", "b", float(k < 6)) for k in range(10)]
    repeated = one_sample * 50  # the same prompts again tell nothing new
    narrow = elo.elo(repeated, "b", seed=0, resamples=300)["a"]
    wide = elo.elo(one_sample, "b", seed=0, resamples=300)["a"]
    assert narrow.n == wide.n == 10
    assert narrow.high - narrow.low > 0.8 * (wide.high - wide.low)


def test_games_by_score():
    scores = {"a": {"x": [1.0, 3.0], "y": [0.0]}, "b": {"x": [2.0, 1.0], "y": [0.0]}}
    # x: 1<2, 1=1, 3>2, 3>1 -> 2.5 of 4; y: a tie.
    assert elo.games_by_score(scores) == [Game("x", "a", "b", 0.625), Game("y", "a", "b", 0.5)]
    with pytest.raises(ValueError, match=r"b and a were not scored on the same prompts \(.*y\)"):
        elo.games_by_score({"a": {"x": [1.0], "y": [1.0]}, "b": {"x": [1.0]}})


def test_win_rates():
    rates = elo.win_rates(
        [Game("x", "a", "b", 1.0), Game("x", "b", "a", 0.5), Game("y", "a", "b", 0.0)]
    )
    assert rates[("a", "b")].value == pytest.approx(0.375)
    assert rates[("b", "a")].value == pytest.approx(0.625)
    assert rates[("a", "b")].n == 2


@pytest.mark.parametrize(
    ("played", "message"),
    [
        ([], r"The anchor 'a' played no game; players are \[\]."),
        ([Game("p", "b", "c", 1.0)], r"The anchor 'a' played no game; players are \['b', 'c'\]."),
        (
            [Game("p", "a", "b", 1.5)],
            r"is no game: two players and a share in \[0, 1\] are needed.",
        ),
        ([Game("p", "a", "a", 1.0)], "is no game: two players"),
        (
            [Game("p", "a", "b", 1.0), Game("p", "c", "d", 1.0)],
            "No chain of games connects c with a; compare them.",
        ),
    ],
)
def test_bad_games(played, message):
    with pytest.raises(ValueError, match=message):
        elo.elo(played, "a", seed=0)
