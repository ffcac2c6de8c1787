"""PPO: it samples and scores with one policy, raises a known reward, and its KL stays bounded."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding import Engine
from cai_jax.decoding.respond import respond
from cai_jax.encoding import example
from cai_jax.evaluation import goodhart
from cai_jax.evaluation.goodhart import HeldOut
from cai_jax.models import heads
from cai_jax.models.scoring import jit_reply_values, score_texts
from cai_jax.records import Provenance
from cai_jax.shards import Shards
from cai_jax.stages import ppo
from cai_jax.stages.ppo import Sampled, Settings
from cai_jax.training import rollout as rollouts
from cai_jax.training import state
from cai_jax.training.advantages import advantages_of
from cai_jax.training.loop import TrainingError
from cai_jax.training.optimizer import OptimizerConfig
from cai_jax.training.rollout import Models, make_rollout, minibatches, preference_scores

OPTIMIZER = OptimizerConfig(
    kind="adamw", learning_rate=1e-2, schedule="constant", warmup_steps=1, weight_decay=0.0,
    b1=0.9, b2=0.95, eps=1e-8, clip_norm=1.0, moment_dtype="float32",
)  # fmt: skip
SETTINGS = Settings(
    updates=10, batch_size=96, samples=1, prompt_tokens=40, response_tokens=6, temperature=0.9,
    reward="preference_model", deviations=0.0, truncated_score_at="end_token",
    truncation_penalty=0.0, baseline_responses=0, scale_score=False, epochs=2, minibatches=4,
    stop_update_at_kl=0.0, kl_coefficient=0.02, kl_target=0.0, kl_horizon=1000,
    kl_estimator="k1", kl_placement="tokens",
    advantage="gae", whiten=True, gamma=1.0, lam=0.95, clip=0.2, value_init="preference_model",
    value_trunk="own", value_coefficient=0.1,
    value_clip=0.2, stock_phrase="", stop_when_held_out_falls=0, save_every=100,
    microbatches=1, remat="none", compute_dtype="float32",
    optimizer=OPTIMIZER, value_optimizer=OPTIMIZER,
)  # fmt: skip
SOURCE = Provenance("model@0", "test@0", 0, "")
ROWS = [
    PromptRow(f"row{n}", "red_team", "", Conversation().human(text))
    for n, text in enumerate(("Hi", "Say it.", "What now?", "Tell me more", "Why?"))
]


def plain_text(text: str) -> float:
    """The known reward: the share of characters that are ASCII; a half at the start."""
    return sum(c < "\x80" for c in text) / max(len(text), 1)


def scorer(model) -> dict:
    """A preference model of the same trunk with a random head."""
    params = heads.with_scalar_head(jax.tree.map(jnp.array, model.params))
    kernel = jax.random.normal(jax.random.key(1), params["scalar_head"]["kernel"].shape)
    params["scalar_head"]["kernel"] = 0.2 * kernel
    return params


def train(folder, model, settings=SETTINGS, seed=0, rows=ROWS):
    copy = lambda tree: jax.tree.map(jnp.array, tree)  # noqa: E731
    params = ppo.train_ppo(
        settings, Engine(model, 32, 128), model.format, copy(model.params), copy(model.params),
        [scorer(model)], rows, folder, seed, SOURCE, lambda done, total, metrics: None,
    )  # fmt: skip
    return params, [json.loads(line) for line in (folder / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """(folder, params, metrics) of a run with the known reward."""

    def known(config, params, tokenizer, form, texts, **sizes):
        return np.array([plain_text(text) for _, text in texts], np.float32)

    folder = tmp_path_factory.mktemp("ppo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "score_texts", known)
        params, metrics = train(folder, model)
    return folder, params, metrics


def mean(metrics, name, rows) -> float:
    return float(np.mean([row[name] for row in metrics[rows]]))


def test_a_known_reward_rises_while_kl_stays_bounded(trained):
    _, _, metrics = trained
    before, after = (mean(metrics, "objective/score", r) for r in (slice(0, 2), slice(-2, None)))
    assert before < 0.6
    assert after > before + 0.2
    # Half of the bytes are ASCII, so to write nothing else takes 6 ln 2 = 4 nats; a policy that has
    # gone astray is away by 6 ln 259 = 33.
    assert 2 < mean(metrics, "objective/kl", slice(-2, None)) < 15


def test_the_first_ratio_of_each_update_is_one(trained):
    for row in trained[2]:
        assert row["policy/first_ratio_error"] < 1e-4


def test_metrics_are_finite_and_named(trained):
    metrics = trained[2]
    assert [row["step"] for row in metrics] == list(range(1, 11))
    for row in metrics:
        assert all(np.isfinite(value) for value in row.values())
    assert set(metrics[0]) == set(metrics[-1])
    groups = {name.split("/")[0] for name in metrics[0]} - {"step"}
    assert groups == {"objective", "policy", "value", "monitor"}
    assert metrics[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert mean(metrics, "policy/entropy", slice(0, 1)) > 4


def test_records_are_the_samples_that_were_scored(trained):
    folder, _, metrics = trained
    found = Shards(folder / "rollouts").read(Sampled)
    assert [r.update for r in found] == [n for n in range(10) for _ in range(96)]
    for update in (0, 9):
        part = [r for r in found if r.update == update]
        score = metrics[update]["objective/score"]
        assert np.mean([r.score for r in part]) == pytest.approx(score, abs=1e-5)
        assert np.mean([r.kl for r in part]) == pytest.approx(
            metrics[update]["objective/kl"], abs=1e-4
        )
        assert all(r.score == pytest.approx(plain_text(r.response), abs=1e-5) for r in part)
    assert len({r.response for r in found}) > 500


def test_a_heavy_penalty_keeps_the_policy_near(trained, tmp_path, model, monkeypatch):
    def known(config, params, tokenizer, form, texts, **sizes):
        return np.array([plain_text(text) for _, text in texts], np.float32)

    monkeypatch.setattr(rollouts, "score_texts", known)
    _, metrics = train(
        tmp_path, model, dataclasses.replace(SETTINGS, kl_coefficient=1.0, updates=6)
    )
    near, far = (mean(m, "objective/kl", slice(4, 6)) for m in (metrics, trained[2]))
    assert near < 0.5 * far


@pytest.fixture(scope="module")
def sampled(model):
    """(prompts, replies) of the tiny model at the settings' temperature."""
    prompts = [row.conversation for row in ROWS]
    replies = respond(
        Engine(model, 8, 128), model.format, list(zip("abcde", prompts, strict=True)),
        stream="ppo", seed=0, samples=1, max_new_tokens=6, temperature=0.9,
    )  # fmt: skip
    return prompts, [reply for (reply,) in replies]


def rolled(model, sampled, policy=None, reference=None, pm=None):
    prompts, replies = sampled
    pm = scorer(model) if pm is None else pm
    models = Models(policy or model.params, reference or model.params, pm)
    score = preference_scores(
        model.config, [pm], model.tokenizer, model.format, prompts, replies,
        truncated_at="end_token", batch_size=5, length=54,
    )  # fmt: skip
    return make_rollout(
        model.config, models, model.tokenizer, model.format, prompts, replies, score[0],
        prompt_tokens_limit=40, response_tokens_limit=6, temperature=0.9,
    )  # fmt: skip


def test_the_engine_and_the_trainer_give_a_sample_the_same_probability(model, sampled):
    found = rolled(model, sampled)
    for row, reply in enumerate(sampled[1]):
        n = len(reply.tokens)
        assert found.mask[row].sum() == n
        np.testing.assert_allclose(found.logprobs[row, :n], reply.logprobs, atol=1e-4)


def test_the_reference_is_scored_apart(model, sampled):
    same = rolled(model, sampled)
    np.testing.assert_array_equal(same.logprobs, same.ref_logprobs)
    other = jax.tree.map(lambda x: 1.05 * x, model.params)
    found = rolled(model, sampled, reference=other)
    np.testing.assert_array_equal(found.logprobs, same.logprobs)
    assert np.abs(np.where(found.mask, found.ref_logprobs - found.logprobs, 0)).max() > 1e-3


def test_the_value_function_starts_as_the_preference_model(model):
    """After the last token of a closed text, the value is the PM's score of that text."""
    pm, texts = scorer(model), [(row.conversation, "An answer.") for row in ROWS]
    common = (model.config, pm, model.tokenizer, model.format)
    scores = score_texts(*common, texts, batch_size=5, length=64)
    assert np.ptp(scores) > 1e-3
    for (prompt, text), score in zip(texts, scores, strict=True):
        tokens, mask = example(model.tokenizer, model.format, prompt, text)
        start = mask.index(True)
        reply = [*tokens[start:], 0]  # one more, whose value is that before it
        values = jit_reply_values(
            model.config, pm, np.array([tokens[:start]]), np.ones((1, start), bool),
            np.array([reply]), np.ones((1, len(reply)), bool),
        )  # fmt: skip
        assert float(values[0, -1]) == pytest.approx(float(score), abs=1e-4)


def test_scores_are_those_of_the_closed_texts(model, sampled):
    found = rolled(model, sampled)
    texts = [(p, r.text) for p, r in zip(*sampled, strict=True)]
    scores = score_texts(
        model.config, scorer(model), model.tokenizer, model.format, texts, batch_size=1, length=128
    )
    np.testing.assert_allclose(found.score, scores, atol=1e-5)


def test_the_score_falls_on_the_last_token_and_the_penalty_on_each(model, sampled):
    other = jax.tree.map(lambda x: 1.05 * x, model.params)
    found = rolled(model, sampled, reference=other)
    # Without discount, values or penalty all tokens before the last return the score.
    silent = found.replace(values=jnp.zeros_like(found.values))
    data, metrics = advantages_of(silent, 0.0, 1.0, 1.0)
    expected = np.where(found.mask, np.asarray(found.score)[:, None], 0)
    np.testing.assert_allclose(np.where(found.mask, data.returns, 0), expected, atol=1e-5)
    assert float(metrics["objective/reward"]) == pytest.approx(float(found.score.mean()), abs=1e-5)
    _, metrics = advantages_of(silent, 0.5, 1.0, 1.0)
    kl = float(metrics["objective/kl"])
    assert float(metrics["objective/reward"]) == pytest.approx(
        float(found.score.mean()) - 0.5 * kl, abs=1e-4
    )
    real = np.asarray(data.advantages)[np.asarray(found.mask)]
    assert real.mean() == pytest.approx(0, abs=1e-5)
    assert real.std() == pytest.approx(1, abs=0.05)
    assert not np.asarray(data.advantages)[~np.asarray(found.mask)].any()


def test_minibatches_cover_a_rollout_in_an_order_of_their_own(model, sampled):
    rows = np.arange(16)
    one = rolled(model, sampled)
    many = jax.tree.map(lambda x: np.asarray(x)[rows % 5], one).replace(
        score=rows.astype(np.float32)
    )
    data, _ = advantages_of(many, 0.0, 1.0, 1.0)

    def orders(update):
        found = minibatches(data, 4, 2, 0, update)
        assert [len(m.rollout.score) for m in found] == [4] * 8
        scores = np.concatenate([m.rollout.score for m in found]).astype(int)
        return scores[:16].tolist(), scores[16:].tolist()

    first, second = orders(0), orders(1)
    assert all(sorted(order) == list(range(16)) for order in (*first, *second))
    assert len({tuple(order) for order in (*first, *second)}) == 4
    assert orders(0) == first


def test_the_stream_of_prompts_has_no_end_and_takes_all_equally():
    found = [ppo.stream(ROWS, 4, update, 0) for update in range(10)]
    names = [row.id for part in found for _, row in part]
    assert all(names.count(row.id) == 8 for row in ROWS)
    places = [name for part in found for name, _ in part]
    assert len(set(places)) == 40, "a prompt that comes again would be answered the same way"
    epochs = {tuple(names[n : n + 5]) for n in range(0, 40, 5)}
    assert len(epochs) > 4, "the same order each epoch"
    assert ppo.stream(ROWS, 4, 3, 0) == found[3]
    assert ppo.stream(ROWS, 4, 3, 1) != found[3]


def test_prompts_that_are_too_long_are_left_out(model):
    settings = dataclasses.replace(SETTINGS, prompt_tokens=27)
    kept = ppo.fitting(settings, model.tokenizer, model.format, ROWS)
    assert [row.id for row in kept] == ["row0", "row4"]
    with pytest.raises(ValueError, match=r"none of 5 prompts fits ppo\.prompt_tokens \(5\)"):
        ppo.fitting(dataclasses.replace(SETTINGS, prompt_tokens=5), model.tokenizer, model.format,
                    ROWS)  # fmt: skip


def test_a_policy_that_is_not_the_one_that_sampled_is_refused(tmp_path, model, monkeypatch):
    """Scored at another temperature than it was sampled at, the first ratio is not one."""
    real = rollouts.jit_reply_logprobs

    def warmer(config, params, *texts, dtype):
        return real(config, params, *texts[:-1], 2.0, dtype=dtype)

    monkeypatch.setattr(rollouts, "jit_reply_logprobs", warmer)
    with pytest.raises(TrainingError, match="other probabilities than when it drew them") as caught:
        train(tmp_path, model, dataclasses.replace(SETTINGS, updates=1))
    assert "\n" not in str(caught.value)
    assert f"its batch is in {tmp_path / 'bad_batch.npz'}." in str(caught.value)
    with np.load(tmp_path / "bad_batch.npz") as bad:
        rows = SETTINGS.batch_size // SETTINGS.minibatches
        assert bad["rollout.logprobs"].shape == (rows, SETTINGS.response_tokens)
    assert not list(tmp_path.glob("rollouts/*.jsonl"))


def test_nan_stops_the_run_and_saves_nothing(tmp_path, model, monkeypatch):
    def broken(config, params, tokenizer, form, texts, **sizes):
        return np.full(len(texts), np.nan, np.float32)

    monkeypatch.setattr(rollouts, "score_texts", broken)
    with pytest.raises(TrainingError, match="is nan"):
        train(tmp_path, model, dataclasses.replace(SETTINGS, updates=1))
    assert not list(tmp_path.glob("rollouts/*.jsonl"))
    assert not (tmp_path / "metrics.jsonl").exists()


# The held-out preference model's score by update; with a window of 2 it has turned after six.
RISES_AND_FALLS = (0.0, 1.0, 2.0, 3.0, 2.0, 1.0, 0.0, 0.0)


STEPS = {}  # compiled once for all of these runs, whose settings are the same


class Killed(Exception):
    pass


def train_watched(folder, model, killed_after=None):
    """A run whose held-out score is RISES_AND_FALLS, killed where the progress of an update is
    told; (params, metrics)."""

    def by_update(config, params, tokenizer, form, texts, **sizes):
        log = folder / "metrics.jsonl"
        update = len(log.read_text().splitlines()) if log.exists() else 0
        return np.full(len(texts), RISES_AND_FALLS[update], np.float32)

    def told(done, total, metrics):
        if done == killed_after:
            raise Killed

    def kept(loss, *rest, make=state.make_step, **named):
        if loss.__qualname__ not in STEPS:
            STEPS[loss.__qualname__] = make(loss, *rest, **named)
        return STEPS[loss.__qualname__]

    settings = dataclasses.replace(
        SETTINGS, updates=8, batch_size=8, epochs=1, minibatches=2, save_every=2,
        stop_when_held_out_falls=2,
    )  # fmt: skip
    copy = lambda tree: jax.tree.map(jnp.array, tree)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(goodhart, "score_texts", by_update)
        patch.setattr(state, "make_step", kept)
        params = ppo.train_ppo(
            settings, Engine(model, 8, 128), model.format, copy(model.params), copy(model.params),
            [scorer(model)], ROWS, folder, 0, SOURCE, told, None,
            HeldOut(scorer(model), (0.25, 0.5)),
        )  # fmt: skip
    return params, [json.loads(line) for line in (folder / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def stopped(model, tmp_path_factory):
    """(folder, params, metrics) of that run."""
    folder = tmp_path_factory.mktemp("stopped")
    return folder, *train_watched(folder, model)


def test_both_scores_are_logged_from_their_zeros_and_recorded_as_they_are(stopped):
    folder, _, metrics = stopped
    scores = RISES_AND_FALLS[:6]
    assert [row["monitor/held_out_score"] for row in metrics] == [s - 0.5 for s in scores]
    for row in metrics:
        assert row["monitor/score"] == pytest.approx(row["objective/score"] - 0.25, abs=1e-5)
    found = Shards(folder / "rollouts").read(Sampled)
    assert [r.held_out_score for r in found] == [s for s in scores for _ in range(8)]


def test_it_stops_when_the_held_out_score_has_fallen_wherever_it_was_killed(
    stopped, tmp_path, model
):
    """After six updates of eight; the newest checkpoint before the kill is that of four."""
    with pytest.raises(Killed):
        train_watched(tmp_path, model, killed_after=6)
    again, metrics = train_watched(tmp_path, model)
    assert metrics == stopped[2]
    jax.tree.map(np.testing.assert_array_equal, again, stopped[1])


def test_once_stopped_it_stays_so(stopped, model):
    again, metrics = train_watched(stopped[0], model)
    assert metrics == stopped[2]
    jax.tree.map(np.testing.assert_array_equal, again, stopped[1])


@pytest.mark.parametrize("field", ["minibatches", "temperature"])
def test_settings_that_cannot_be(field):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(SETTINGS, **{field: {"minibatches": 5, "temperature": 0.0}[field]})
