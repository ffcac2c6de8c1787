"""The preference model: labels in the right place, and a score that learns to tell texts apart."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from fakes import tiny_model

from cai_jax.conversation import Conversation
from cai_jax.models import heads
from cai_jax.models.scoring import score_texts
from cai_jax.records import Comparison, Provenance
from cai_jax.stages import preference_model
from cai_jax.stages.preference_model import Settings
from cai_jax.training.optimizer import OptimizerConfig

OPTIMIZER = OptimizerConfig(
    kind="adamw", learning_rate=3e-3, schedule="constant", warmup_steps=1, weight_decay=0.0,
    b1=0.9, b2=0.95, eps=1e-8, clip_norm=1.0, moment_dtype="float32",
)  # fmt: skip
SETTINGS = Settings(
    epochs=1, batch_size=4, length=64, ai_weight=1.0, human_weight=2.0, held_out=0.0,
    members=1, halves=False, save_every=1000, microbatches=1, remat="none", compute_dtype="float32",
    optimizer=OPTIMIZER,
)  # fmt: skip
SOURCE = Provenance("model@0", "test@0", 0, "")
PROMPT = Conversation().human("Hi")


def pair(n: int, a: str, b: str, prob_a: float, source: str = "ai") -> Comparison:
    return Comparison(
        id=str(n), kind="red_team", prompt=PROMPT, response_a=a, response_b=b, prob_a=prob_a,
        principle="p", labeler="l", mode="multiple_choice", option_logprobs=(),
        swapped_prob_a=None, source=source, provenance=SOURCE,
    )  # fmt: skip


def separable(count: int, seed: int) -> list[Comparison]:
    """The better response is in capitals; which stands first is drawn, and no text comes twice."""
    draw = np.random.default_rng(seed)

    def word(low, high):
        return "".join(chr(c) for c in draw.integers(ord(low), ord(high) + 1, draw.integers(4, 9)))

    found = []
    for n in range(count):
        good, poor = word("A", "Z"), word("a", "z")
        first = bool(draw.integers(2))
        found.append(pair(n, *((good, poor) if first else (poor, good)), float(first)))
    return found


def train(folder, model, comparisons, settings):
    data = preference_model.examples(settings, model.tokenizer, model.format, comparisons)
    params = preference_model.train_preference_model(
        settings, model.config, jax.tree.map(jax.numpy.array, model.params), data, folder, 0,
        lambda done, total, metrics: None,
    )  # fmt: skip
    return params, [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def scores(model, params, comparisons) -> np.ndarray:
    found = [(c.prompt, text) for c in comparisons for text in (c.response_a, c.response_b)]
    return score_texts(
        model.config, params, model.tokenizer, model.format, found, batch_size=8, length=64
    ).reshape(-1, 2)


@pytest.mark.parametrize("chat", [False, True])
def test_separable_pairs_are_told_apart(tmp_path, chat):
    """Over 95% right on pairs it has not seen."""
    model = tiny_model(chat=chat)
    settings = dataclasses.replace(SETTINGS, batch_size=16, epochs=3)
    params, rows = train(tmp_path, model, separable(160, seed=0), settings)
    assert rows[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-5), "scores start equal"
    assert rows[-1]["pm/accuracy"] > 0.95
    fresh = separable(100, seed=1)
    a, b = scores(model, params, fresh).T
    right = (a > b) == np.array([c.prob_a > 0.5 for c in fresh])
    assert right.mean() > 0.95


def test_a_soft_label_is_where_training_ends(tmp_path, model):
    """One pair seen again and again: sigmoid(score_a - score_b) goes to its prob_a."""
    one = [pair(0, "aaa", "bbb", 0.7)]
    settings = dataclasses.replace(SETTINGS, batch_size=1, epochs=150)
    params, rows = train(tmp_path, model, one, settings)
    ((a, b),) = scores(model, params, one)
    assert 1 / (1 + np.exp(b - a)) == pytest.approx(0.7, abs=0.02)
    entropy = -0.7 * np.log(0.7) - 0.3 * np.log(0.3)
    assert rows[-1]["train/loss"] == pytest.approx(entropy, abs=0.01)


def test_weights_by_source_and_pairs_that_are_too_long(model):
    comparisons = [
        pair(0, "a", "b", 0.2),
        pair(1, "c", "d", 1.0, "human"),
        pair(2, "e" * 100, "f", 0.0),
        pair(3, "g", "h" * 100, 0.0),
    ]
    found = preference_model.examples(SETTINGS, model.tokenizer, model.format, comparisons)
    assert [(e.prob_a, e.weight) for e in found] == [(0.2, 1.0), (1.0, 2.0)]
    assert all(e.a[-1] in model.tokenizer.end_ids for e in found)
    with pytest.raises(ValueError, match="none of 2 comparisons fits"):
        preference_model.examples(SETTINGS, model.tokenizer, model.format, comparisons[2:])


def test_no_prompt_is_in_both_halves():
    """Rows of one prompt go the same way, in whatever order and among whatever others they come."""
    rows = [
        dataclasses.replace(pair(n, "a", "b", 1.0), prompt=Conversation().human(f"Prompt {n % 40}"))
        for n in range(120)
    ]
    first, second = (preference_model.half(rows, which) for which in ("train", "test"))
    assert sorted(int(c.id) for c in [*first, *second]) == list(range(120))
    assert not {c.prompt for c in first} & {c.prompt for c in second}
    assert 30 < len(first) < 90
    assert preference_model.half(rows[::-1][:50], "train") == [
        c for c in rows[::-1][:50] if c in first
    ]
    with pytest.raises(ValueError, match="all 3 comparisons have prompts of the same half"):
        preference_model.half(first[:3], "test")


def test_comparisons_of_held_out_prompts_are_not_trained_on():
    rows = [
        dataclasses.replace(
            pair(n, "a", "b", 1.0), prompt=Conversation().human(f"Prompt {n % 200}")
        )
        for n in range(400)
    ]
    train, held_out = preference_model.apart(rows, 0.2)
    assert [c for c in rows if c in train or c in held_out] == rows
    assert not {c.prompt for c in train} & {c.prompt for c in held_out}
    assert 40 < len(held_out) < 120
    # Whether a prompt is held out has nothing to do with the half it is in.
    for which in ("train", "test"):
        assert 20 < len(preference_model.half(held_out, which)) < len(held_out) - 20
    assert preference_model.apart(rows, 0.0) == (rows, [])
    with pytest.raises(ValueError, match=r"held_out \(1\.0\) leaves none of 400 comparisons"):
        preference_model.apart(rows, 1.0)


def test_each_half_has_an_order_of_its_own(model):
    comparisons = [pair(n, chr(97 + n), chr(65 + n), 1.0) for n in range(20)]
    data = preference_model.examples(SETTINGS, model.tokenizer, model.format, comparisons)

    def order(*stream):
        found = preference_model.batches(data, SETTINGS, 0, *stream)
        return [tuple(row) for batch in found for row in batch.tokens[:, 0].tolist()]

    assert order() == order("preference model") != order("held-out preference model")


def test_a_swapped_pair_takes_its_label_along(model):
    """Each pair stands in either order; the label belongs to the text, not to the place."""
    comparisons = [pair(n, chr(97 + n), chr(65 + n), n / 10) for n in range(10)]
    data = preference_model.examples(SETTINGS, model.tokenizer, model.format, comparisons)
    known = {tuple(e.a): e.prob_a for e in data} | {tuple(e.b): 1 - e.prob_a for e in data}
    settings = dataclasses.replace(SETTINGS, epochs=4)
    firsts = set()
    for batch in preference_model.batches(data, settings, 0):
        for row in range(4):
            if not batch.weight[row]:
                continue
            a, b = (tuple(batch.tokens[row, k][batch.mask[row, k]]) for k in (0, 1))
            assert batch.prob_a[row] == pytest.approx(known[a])
            assert known[a] == pytest.approx(1 - known[b])
            firsts.add(a)
    assert len(firsts) > 12, "one text always stands first"


def test_every_pair_comes_once_an_epoch_and_fillers_weigh_nothing(model):
    comparisons = [pair(n, chr(97 + n), chr(65 + n), 1.0) for n in range(10)]
    data = preference_model.examples(SETTINGS, model.tokenizer, model.format, comparisons)
    settings = dataclasses.replace(SETTINGS, epochs=2)
    found = preference_model.batches(data, settings, 0)
    assert len(found) == 6
    for epoch in (found[:3], found[3:]):
        rows = [
            frozenset(tuple(b.tokens[n, k][b.mask[n, k]]) for k in (0, 1))
            for b in epoch
            for n in range(4)
            if b.weight[n] > 0
        ]
        assert len(rows) == len(set(rows)) == 10
    assert [float(b.weight.sum()) for b in found[:3]] == [4, 4, 2]


def test_the_score_is_read_at_the_last_real_token(model):
    """Padding on either side, or what stands in it, changes nothing."""
    params = heads.with_scalar_head(model.params)
    params["scalar_head"]["kernel"] = jax.random.normal(jax.random.key(0), (32, 1))
    found = [(PROMPT, "short"), (PROMPT, "a longer answer than that")]
    common = (model.config, params, model.tokenizer, model.format)
    alone = [score_texts(*common, [t], batch_size=1, length=64)[0] for t in found]
    together = score_texts(*common, found, batch_size=3, length=128)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert abs(together[0] - together[1]) > 1e-3


def test_the_loss_ignores_which_text_stands_first(model):
    params = heads.with_scalar_head(model.params)
    params["scalar_head"]["kernel"] = jax.random.normal(jax.random.key(0), (32, 1))
    loss = preference_model.make_loss(model.config, "none")
    losses = []
    for one in (pair(0, "yes", "no", 0.8), pair(0, "no", "yes", 0.2)):
        data = preference_model.examples(SETTINGS, model.tokenizer, model.format, [one])
        (batch,) = preference_model.batches(data, SETTINGS, 0)
        losses.append(float(loss(params, batch)[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
