"""What PPO can be told to do otherwise: each option on numbers, several together in runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ppo_test import ROWS, SETTINGS, SOURCE, plain_text, scorer
from scripted import ScriptedEngine, forced

from cai_jax import principles
from cai_jax.batch import Rollout
from cai_jax.conversation import Conversation
from cai_jax.decoding import Engine
from cai_jax.decoding.rate import Judge
from cai_jax.decoding.respond import Reply
from cai_jax.encoding import example
from cai_jax.models import heads
from cai_jax.models.scoring import jit_score
from cai_jax.principles import ComparisonPrinciple
from cai_jax.records import to_json
from cai_jax.shards import Shards
from cai_jax.stages import ppo
from cai_jax.stages.ppo import Sampled
from cai_jax.training import ppo_steps, state
from cai_jax.training import rollout as rollouts
from cai_jax.training.advantages import Minibatch, advantages_of
from cai_jax.training.ppo_losses import make_policy_loss, make_shared_loss, make_value_loss
from cai_jax.training.rollout import preference_scores

pytestmark = pytest.mark.slow

CONSTITUTION = principles.build(
    "test", critique=[], comparison=[ComparisonPrinciple(f"c{n}", f"kind {n}?") for n in range(3)]
)
SMALL = dataclasses.replace(
    SETTINGS, updates=4, batch_size=8, samples=4, epochs=2, minibatches=2, save_every=2
)
# All that needs no second model, at once.
OTHERWISE = dataclasses.replace(
    SMALL, advantage="leave_one_out", kl_target=1.0, kl_horizon=8, kl_coefficient=0.05,
    kl_estimator="k1", kl_placement="last_token", truncation_penalty=0.75, baseline_responses=12,
    scale_score=True, whiten=False,
)  # fmt: skip
RATED = dataclasses.replace(
    SMALL, reward="rating", value_init="zero_head", updates=1, samples=2, stop_update_at_kl=1e-4
)
SHARED = dataclasses.replace(
    SMALL, value_init="zero_head", value_trunk="shared", value_coefficient=0.5
)


class Killed(Exception):
    pass


STEPS = {}  # compiled once for all runs of the same optimiser settings


def train(folder, model, settings, killed_after=None, pm=None, judge=None, sampled=None):
    """(params, metrics) of a run, killed where the progress of an update is told.

    `sampled` gets the stream of each sampling of responses.
    """

    def known(config, params, tokenizer, form, texts, **sizes):
        return np.array([plain_text(text) for _, text in texts], np.float32)

    def told(done, total, metrics):
        if done == killed_after:
            raise Killed

    def kept(loss, *rest, make=state.make_step, **named):
        if loss.__qualname__ not in STEPS:
            STEPS[loss.__qualname__] = make(loss, *rest, **named)
        return STEPS[loss.__qualname__]

    def noted(*args, sample=rollouts.sample, **named):
        if sampled is not None:
            sampled.append(named["stream"])
        return sample(*args, **named)

    copy = lambda tree: jax.tree.map(jnp.array, tree)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "score_texts", known)
        patch.setattr(rollouts, "sample", noted)
        patch.setattr(state, "make_step", kept)
        params = ppo.train_ppo(
            settings, Engine(model, 8, 128), model.format, copy(model.params), copy(model.params),
            [] if judge else [pm], ROWS, folder, 0, SOURCE, told, judge=judge,
        )  # fmt: skip
    return params, rows(folder / "metrics.jsonl")


def rows(path):
    return [json.loads(line) for line in path.open()]


@pytest.fixture(scope="module")
def otherwise(model, tmp_path_factory):
    """(folder, params, metrics) of a run with leave one out and all that goes with it."""
    folder = tmp_path_factory.mktemp("otherwise")
    return folder, *train(folder, model, OTHERWISE)


def read(folder, name="rollouts", count=None):
    return Shards(folder / name, count).read(Sampled)


def test_the_coefficient_follows_the_measured_kl_from_update_to_update(otherwise):
    expected = 0.05
    for row in otherwise[2]:
        assert row["objective/kl_coefficient"] == expected
        error = np.clip(row["objective/kl"] / 1.0 - 1, -0.2, 0.2)
        expected = pytest.approx(float(row["objective/kl_coefficient"] * (1 + error * 8 / 8)))
    assert otherwise[2][1]["objective/kl_coefficient"] == pytest.approx(0.04)  # KL was 0


def test_killed_between_checkpoints_it_ends_the_same(otherwise, model, tmp_path):
    """The checkpoint of two updates holds the coefficient of the third."""
    sampled = []
    with pytest.raises(Killed):
        train(tmp_path, model, OTHERWISE, killed_after=3, sampled=sampled)
    again, metrics = train(tmp_path, model, OTHERWISE, sampled=sampled)
    assert metrics == otherwise[2]
    jax.tree.map(np.testing.assert_array_equal, again, otherwise[1])
    for name, count in (("rollouts", None), ("start_responses", 1)):
        expected = [to_json(r) for r in read(otherwise[0], name, count)]
        assert [to_json(r) for r in read(tmp_path, name, count)] == expected
    assert sampled == ["ppo start", *["ppo"] * 3, *["ppo"] * 2]


def test_leave_one_out_trains_no_value_function(otherwise, model):
    metrics = otherwise[2]
    assert not [name for name in metrics[0] if name.startswith("value/")]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), otherwise[1], model.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_responses_to_a_prompt_stand_together(otherwise):
    found = read(otherwise[0])
    assert [r.sample for r in found] == [0, 1, 2, 3] * 8
    for first in range(0, 32, 4):
        assert len({r.id for r in found[first : first + 4]}) == 1
        assert len({r.response for r in found[first : first + 4]}) == 4


def test_rewards_are_told_from_the_starts_scores(otherwise):
    folder, _, metrics = otherwise
    start = read(folder, "start_responses", 1)
    assert [r.update for r in start] == [-1] * 12 and start[0].reward is None
    scores = [r.score for r in start]
    assert scores == pytest.approx([plain_text(r.response) for r in start], abs=1e-5)
    mean, deviation = np.mean(scores), np.std(scores)
    found = read(folder)
    for row in metrics:
        part = [r for r in found if r.update == row["step"] - 1]
        for r in part:
            cut_off = 0.75 * (r.stop_reason == "length")
            expected = (r.score - mean) / deviation - cut_off
            expected -= row["objective/kl_coefficient"] * r.kl
            assert r.reward == pytest.approx(expected, abs=1e-4)
        assert row["objective/reward"] == pytest.approx(np.mean([r.reward for r in part]), abs=1e-4)
        assert row["objective/score"] == pytest.approx(np.mean([r.score for r in part]), abs=1e-4)
        shares = np.mean([r.stop_reason == "length" for r in part])
        assert row["objective/truncated"] == pytest.approx(shares)


def test_where_the_time_goes_is_told_apart_from_the_metrics(otherwise):
    found = rows(otherwise[0] / "perf.jsonl")
    parts = {f"perf/{name}_seconds" for name in ("reshard", "rollout", "scoring", "update")}
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    for row in found:
        saved = row.pop("perf/checkpoint_seconds", None)  # after the update before
        assert (saved or 0) >= 0 and set(row) == parts | {"step", "perf/step_seconds"}
        assert all(row[name] > 0 for name in parts)
        assert sum(row[name] for name in parts) <= row["perf/step_seconds"]
    assert not [name for name in otherwise[2][0] if name.startswith("perf/")]


@pytest.fixture(scope="module")
def rated(model, tmp_path_factory):
    """(folder, metrics) of a run on ratings, without any preference model."""

    def answer(script, segment):
        """Log-probabilities of the ten ratings, others for each text."""
        return np.random.default_rng(list(forced(script).encode())).normal(size=10).tolist()

    folder = tmp_path_factory.mktemp("rated")
    judge = Judge(ScriptedEngine(answer), "weights", model.format, CONSTITUTION, 0)
    return folder, train(folder, model, RATED, judge=judge)[1]


def test_the_feedback_models_ratings_are_the_score(rated):
    folder, (row,) = rated
    found = read(folder)
    assert all(-1 < r.score < 1 for r in found) and len({r.score for r in found}) > 4
    assert row["objective/score"] == pytest.approx(np.mean([r.score for r in found]), abs=1e-5)
    principles = [r.principle for r in found]
    assert principles[::2] == principles[1::2], "a prompt's responses are rated by one principle"
    assert set(principles) <= {"c0", "c1", "c2"}


def test_a_value_function_with_a_zero_head_starts_at_zero_and_learns(rated):
    _, (row,) = rated
    assert row["value/mean"] == 0
    assert row["value/grad_norm"] > 0


def test_an_update_stops_once_the_policy_has_moved(rated):
    _, (row,) = rated
    assert row["policy/minibatches"] == 2  # of four; the first still is the policy that sampled
    assert row["policy/kl_to_old"] > 1e-4


@pytest.fixture(scope="module")
def shared(model, tmp_path_factory):
    """(params, metrics) of a run whose value function is a head on the policy's trunk."""
    return train(tmp_path_factory.mktemp("shared"), model, SHARED, pm=scorer(model))


def test_a_shared_trunk_trains_both_and_is_left_without_its_head(shared, model):
    params, metrics = shared
    assert set(params) == set(model.params)
    assert metrics[0]["value/mean"] == 0 != metrics[1]["value/mean"]
    assert all(row["policy/first_ratio_error"] < 1e-4 for row in metrics)
    for row in metrics:
        expected = row["policy/surrogate"] + 0.5 * row["value/loss"]
        assert row["policy/loss"] == pytest.approx(expected, rel=1e-5)
    assert "value/grad_norm" not in metrics[0], "there is one step, the policy's"


def test_killed_with_a_shared_trunk_it_ends_the_same(shared, model, tmp_path):
    """The checkpoint of two updates holds the head."""
    with pytest.raises(Killed):
        train(tmp_path, model, SHARED, killed_after=3, pm=scorer(model))
    again, metrics = train(tmp_path, model, SHARED, pm=scorer(model))
    assert metrics == shared[1]
    jax.tree.map(np.testing.assert_array_equal, again, shared[0])


def test_compute_in_bfloat16_trains_float32_params(shared, model, tmp_path):
    """The first update has the same samples and learns nearly the same of them."""
    coarse = dataclasses.replace(SHARED, updates=1, compute_dtype="bfloat16")
    STEPS.clear()
    params, (row,) = train(tmp_path, model, coarse, pm=scorer(model))
    STEPS.clear()
    exact = shared[1][0]
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert row["objective/score"] == exact["objective/score"]
    assert row["policy/entropy"] != exact["policy/entropy"]
    assert row["policy/entropy"] == pytest.approx(exact["policy/entropy"], rel=0.01)
    assert row["policy/first_ratio_error"] < 1e-4, "on CPU both programs round alike"


@pytest.mark.parametrize("settings", [SMALL, SHARED], ids=["own trunk", "shared trunk"])
def test_microbatches_give_the_whole_minibatchs_update(settings, model, tmp_path):
    """The first update's metrics too: same samples, same steps, less of them in memory."""

    def update(microbatches):
        STEPS.clear()
        given = dataclasses.replace(settings, updates=1, microbatches=microbatches)
        found = train(tmp_path / str(microbatches), model, given, pm=scorer(model))
        STEPS.clear()
        return found

    (whole, (expected,)), (split, (row,)) = update(1), update(2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), split, whole)
    for name in ("policy/loss", "policy/entropy", "policy/grad_norm", "policy/max_ratio_error"):
        assert row[name] == pytest.approx(expected[name], rel=2e-3, abs=1e-5), name
    assert row["policy/loss"] != expected["policy/loss"], "it was one batch"


def test_a_shared_steps_gradient_is_the_two_losses_together(model):
    """With the head at its start nothing flows to the trunk from values; so one that is not 0."""
    params = model.params | {"scalar_head": scorer(model)["scalar_head"]}
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 250, (4, 3)).astype(np.int32)
    values, advantages, returns = draw.normal(size=(3, 4, 3)).astype(np.float32)
    rollout = dataclasses.replace(made(values), prompt=tokens, response=tokens)
    batch = Minibatch(rollout, advantages, returns, rollout.score)
    policy = make_policy_loss(model.config, 0.9, 0.2, "none")
    value = make_value_loss(model.config, 0.2, "none")
    shared = make_shared_loss(model.config, 0.9, 0.2, 0.2, 0.3, "none")
    of = lambda loss: jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)  # noqa: E731
    (found, gradient), ((of_policy, _), first), ((of_value, _), second) = map(
        of, (shared, policy, value)
    )
    assert found[0] == pytest.approx(float(of_policy + 0.3 * of_value), rel=1e-6)
    both = jax.tree.map(lambda a, b: a + 0.3 * b, first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, both)
    assert max(np.abs(x).max() for x in jax.tree.leaves(second["layers"])) > 1e-3


@pytest.mark.parametrize(
    ("limit", "taken"), [(0.0, 5), (0.05, 5), (0.025, 4), (0.015, 3), (0.001, 2)]
)
def test_the_minibatch_that_passes_the_limit_is_the_last(limit, taken, tmp_path):
    """The n-th finds the policy 0.01 (n - 1) away."""

    def policy(n, minibatch):
        return n + 1, {
            "policy/max_ratio_error": 0.0,
            "policy/kl_to_old": 0.01 * n,
            "train/loss": 1.0,
        }

    def value(n, minibatch):
        return n + 1, {"train/loss": 2.0}

    states = {"policy": 0, "value": 0}
    steps = {"policy": policy, "value": value}
    settings = dataclasses.replace(SMALL, stop_update_at_kl=limit)
    found = ppo_steps.train_on(settings, states, steps, [None] * 5, 0, None, tmp_path)
    assert found["policy/minibatches"] == states["policy"] == states["value"] == taken
    assert (found["policy/loss"], found["value/loss"]) == (1.0, 2.0)


def made(values):
    """Two responses to each of two prompts, of up to three tokens."""
    mask = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
    zeros = np.zeros((4, 3), np.float32)
    return Rollout(
        prompt=zeros.astype(np.int32), prompt_mask=mask, response=zeros.astype(np.int32), mask=mask,
        logprobs=np.where(mask, -1.0, np.nan).astype(np.float32),
        ref_logprobs=np.where(mask, -1.5, np.nan).astype(np.float32), values=values,
        score=np.array([1.0, 2.0, 5.0, 3.0], np.float32),
    )  # fmt: skip


def test_leave_one_out_advantages_by_hand():
    rollout = made(None)
    data, metrics = advantages_of(rollout, 0.2, 1.0, 0.5, samples=2, whitened=False)
    # A log-ratio of 0.5 a token at 0.2: rewards of 0.7, 1.9, 4.8 and 2.7.
    np.testing.assert_allclose(data.reward, [0.7, 1.9, 4.8, 2.7], rtol=1e-5)
    expected = np.array([-1.2, 1.2, 2.1, -2.1])[:, None] * rollout.mask
    np.testing.assert_allclose(data.advantages, expected, rtol=1e-5)
    assert data.returns is None
    white, _ = advantages_of(rollout, 0.2, 1.0, 0.5, samples=2, whitened=True)
    real = np.asarray(white.advantages)[rollout.mask]
    assert (real.mean(), real.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-5))
    for name, each in (("kl", 0.5), ("kl_k2", 0.125), ("kl_k3", np.exp(-0.5) - 0.5)):
        assert metrics[f"objective/{name}"] == pytest.approx(each * 9 / 4, rel=1e-5)


def test_gae_advantages_with_options_by_hand():
    zeros = np.zeros((4, 3), np.float32)
    credit = np.array([1.0, 0.0, 0.0, 0.0], np.float32)
    data, metrics = advantages_of(
        made(zeros), 0.2, 1.0, 1.0, credit, estimator="k2", placement="last_token", whitened=False
    )
    # 0.2 * 0.5^2 / 2 = 0.025 a token, all of it at the end, with the score that was given.
    expected = [[0.925] * 3, [-0.025, 0, 0], [-0.05, -0.05, 0], [-0.075] * 3]
    np.testing.assert_allclose(data.advantages, expected, rtol=1e-5)
    np.testing.assert_allclose(data.returns, expected, rtol=1e-5)
    assert metrics["objective/score"] == pytest.approx(11 / 4), "as the model gave it"
    spread, _ = advantages_of(
        made(zeros), 0.2, 1.0, 1.0, credit, estimator="k2", whitened=False
    )  # fmt: skip
    np.testing.assert_allclose(spread.advantages[2], [-0.05, -0.025, 0], rtol=1e-5)


def test_a_response_cut_off_can_be_scored_where_it_was_cut(model):
    pm, prompts = scorer(model), [Conversation().human(text) for text in ("Hi", "Why?")]
    replies = [Reply("An answer", (1,), (0.0,), "length"), Reply("Done.", (1,), (0.0,), "end")]

    def scores(at):
        return preference_scores(
            model.config, [pm], model.tokenizer, model.format, prompts, replies, truncated_at=at,
            batch_size=2, length=64,
        )[0]  # fmt: skip

    def score_of(prompt, text, whole):
        tokens, _ = example(model.tokenizer, model.format, prompt, text, whole)
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(tokens)] = tokens
        return float(jit_score(model.config, pm, padded, np.arange(64)[None] < len(tokens))[0])

    pairs = list(zip(prompts, [r.text for r in replies], strict=True))
    closed = [score_of(*pair, True) for pair in pairs]
    np.testing.assert_allclose(scores("end_token"), closed, atol=1e-5)
    np.testing.assert_allclose(
        scores("last_token"), [score_of(*pairs[0], False), closed[1]], atol=1e-5
    )
    assert abs(scores("last_token")[0] - closed[0]) > 1e-3


def test_a_value_function_starts_as_the_normalised_preference_model(model):
    pm = scorer(model)
    pm["scalar_head"]["bias"] = jnp.array([0.7])
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 32)), jnp.float32)
    plain = heads.scalar(pm, hidden)
    found = heads.scalar(heads.rescaled(pm, 0.5, 2.0), hidden)
    np.testing.assert_allclose(found, (plain - 0.5) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(heads.scalar(heads.rescaled(pm, 0.0, 1.0), hidden), plain)
