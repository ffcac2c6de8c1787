"""The three snapshots' answers: equal models answer alike, drift is measured as it was sampled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import tiny_model

from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding import Engine
from cai_jax.encoding import example
from cai_jax.evaluation import snapshots
from cai_jax.evaluation.snapshots import Settings
from cai_jax.models import transformer
from cai_jax.records import Provenance

SETTINGS = Settings(
    samples=2, response_tokens=6, temperature=0.8, top_p=0.9, best_of=1, batch_size=4, resamples=10
)
SOURCE = Provenance("model@0", "test@0", 0, "")
ROWS = [
    PromptRow(f"row{n}", "helpful", "", Conversation().human(text))
    for n, text in enumerate(("Hi", "What is this?", "Say it again, slowly."))
]


def answers(model, params=None, name="initial", settings=SETTINGS, slots=2):
    engine = Engine(model, slots, 128)
    if params is not None:
        engine.params = params
    return snapshots.answer(
        settings, name, engine, model.format, model.params, ROWS, 0, SOURCE,
        lambda done, total: None,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens):
    ones = jnp.ones_like(tokens)
    positions = jnp.arange(tokens.shape[1])[None]
    hidden = transformer.hidden_states(config, params, tokens, positions, ones)
    return transformer.logits(params, hidden)


def logprobs(config, params, tokens, temperature) -> np.ndarray:
    """Of every token given those before it, by one plain forward pass; NaN for the first."""
    padded = np.array([tokens + [0] * (128 - len(tokens))])
    table = jax.nn.log_softmax(logits(config, params, padded)[0] / temperature)
    return np.array([np.nan, *(float(table[n, t]) for n, t in enumerate(tokens[1:]))])


@pytest.fixture(scope="module")
def initial(model):
    return answers(model)


def test_every_prompt_is_answered_as_often_as_asked(initial):
    assert [(a.id, a.sample) for a in initial] == [(f"row{n}", s) for n in range(3) for s in (0, 1)]
    assert {a.snapshot for a in initial} == {"initial"}
    assert len({a.tokens for a in initial}) == 6


def test_equal_models_give_equal_answers_without_drift(model, initial):
    again = answers(model, jax.tree.map(lambda x: x + 0, model.params), "sl_cai")
    assert [dataclasses.replace(a, snapshot="initial") for a in again] == initial
    assert all(a.kl == 0 for a in initial)


def test_drift_is_the_log_ratio_of_the_sampled_distributions(model):
    """At the sampling temperature, before top-p: what the answers were drawn from."""
    other = jax.tree.map(lambda x: 1.05 * x, model.params)
    found = answers(model, other, "rl_cai")
    for answer in found:
        (row,) = (r for r in ROWS if r.id == answer.id)
        prompt, mask = example(model.tokenizer, model.format, row.conversation, "")
        tokens = prompt[: mask.index(True)] + list(answer.tokens)
        start, expected = mask.index(True), 0.0
        for sign, params in ((1, other), (-1, model.params)):
            expected += sign * logprobs(model.config, params, tokens, 0.8)[start:].sum()
        assert answer.kl == pytest.approx(expected, abs=1e-3)
    assert max(abs(a.kl) for a in found) > 1e-2


def test_slots_and_batches_change_nothing(model, initial):
    settings = dataclasses.replace(SETTINGS, batch_size=3)
    found = answers(model, settings=settings, slots=3)
    assert found == initial


def test_greedy_answers_have_a_drift_too(model):
    found = answers(model, settings=dataclasses.replace(SETTINGS, temperature=0.0, samples=1))
    assert all(np.isfinite(a.kl) for a in found)


@pytest.mark.parametrize("chat", [False, True])
def test_perplexity_is_that_of_the_replies_tokens(chat):
    model = tiny_model(chat=chat)
    texts = [(ROWS[0].conversation, "Fine."), (ROWS[2].conversation, "No, never again."),
             (ROWS[1].conversation, "This.")]  # fmt: skip
    nats, counts = snapshots.perplexities(
        model.config, model.params, model.tokenizer, model.format, texts, 2
    )
    for (prompt, text), found, count in zip(texts, nats, counts, strict=True):
        tokens, mask = example(model.tokenizer, model.format, prompt, text)
        assert count == sum(mask)
        expected = -logprobs(model.config, model.params, tokens, 1.0)[mask].mean()
        assert found == pytest.approx(expected, abs=1e-4)


def test_the_best_of_n_and_all_that_it_was_chosen_from(initial):
    """Two samples of three prompts, so each prompt's best; a tie goes to the first."""
    scores = [0.1, 0.3, -1.0, -2.0, 0.5, 0.5]
    chosen, candidates = snapshots.best_of(initial, scores, 2)
    assert [a.response for a in chosen] == [initial[i].response for i in (1, 2, 4)]
    assert [(a.id, a.sample) for a in chosen] == [(f"row{n}", 0) for n in range(3)]
    assert all(a.kl == pytest.approx(np.log(2) - 0.5, abs=1e-5) for a in chosen)
    assert [(c.id, c.sample, c.score) for c in candidates] == [
        (a.id, a.sample, s) for a, s in zip(initial, scores, strict=True)
    ]
    each, _ = snapshots.best_of(initial, scores, 1)
    assert each == initial


def test_choosing_among_n_takes_no_further_than_said():
    """The exact KL of the best of n of equally likely texts: nearly equal where there are many."""
    for n in (2, 4, 16):
        bound = snapshots.best_of_kl(n)
        exact = []
        for texts in (5, 50, 50_000):
            below = np.arange(texts + 1) / texts
            chosen = np.diff(below**n)
            exact.append((chosen * np.log(np.maximum(chosen, 1e-300) * texts)).sum())
        assert exact == sorted(exact) and exact[-1] <= bound
        assert exact[-1] == pytest.approx(bound, abs=1e-3)
    assert snapshots.best_of_kl(4) == pytest.approx(0.636294)


def test_greedy_answers_leave_no_choice():
    with pytest.raises(ValueError, match=r"evaluate\.best_of is 4 and evaluate\.temperature 0"):
        dataclasses.replace(SETTINGS, best_of=4, temperature=0.0)


def test_candidates_are_other_answers_than_the_snapshots_own(model, initial):
    engine = Engine(model, 2, 128)
    found = snapshots.answer(
        SETTINGS, "best_of", engine, model.format, model.params, ROWS, 0, SOURCE,
        lambda done, total: None, stream="best of n",
    )  # fmt: skip
    assert not {a.tokens for a in found} & {a.tokens for a in initial}
