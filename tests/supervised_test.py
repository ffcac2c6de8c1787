"""SL-CAI: which texts are learnt, on which of their tokens, and that they are learnt."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import tiny_model

from cai_jax.conversation import Conversation
from cai_jax.records import Provenance, Response, Revision, RevisionStep
from cai_jax.stages import supervised
from cai_jax.stages.supervised import Settings
from cai_jax.training.optimizer import OptimizerConfig

OPTIMIZER = OptimizerConfig(
    kind="adamw", learning_rate=1e-2, schedule="constant", warmup_steps=1, weight_decay=0.0,
    b1=0.9, b2=0.95, eps=1e-8, clip_norm=1.0, moment_dtype="float32",
)  # fmt: skip
SETTINGS = Settings(
    revisions="all", epochs=1, batch_size=2, length=64, save_every=100,
    microbatches=1, remat="none", compute_dtype="float32",
    optimizer=OPTIMIZER,
)  # fmt: skip
SOURCE = Provenance("model@0", "test@0", 0, "")
PROMPT = Conversation().human("Hi")


def chain(*revisions: str, reason: str = "end") -> Revision:
    steps = [RevisionStep("p", "critique", text, reason, "end") for text in revisions]
    return Revision("a", "red_team", PROMPT, "initial", tuple(steps), SOURCE)


def reply(text: str, reason: str = "end") -> Response:
    return Response("b", "helpful", PROMPT, text, (1,), reason, 0, SOURCE)


def texts(model, settings, revisions, helpful) -> list[str]:
    """What each example's loss is taken on, as text."""
    data = supervised.examples(settings, model.tokenizer, model.format, revisions, helpful)
    return [
        model.tokenizer.decode([t for t, m in zip(tokens, mask, strict=True) if m]).strip()
        for tokens, mask in data
    ]


@pytest.mark.parametrize("chat", [False, True])
def test_revisions_of_all_rounds_or_of_the_last(chat):
    model = tiny_model(chat=chat)
    revisions, helpful = [chain("first", "second"), chain("third", "fourth")], [reply("own")]
    every = texts(model, SETTINGS, revisions, helpful)
    assert every == ["first", "second", "third", "fourth", "own"]
    final = dataclasses.replace(SETTINGS, revisions="final")
    assert texts(model, final, revisions, helpful) == ["second", "fourth", "own"]


def test_empty_texts_are_left_out(model):
    revisions, helpful = [chain("", "second"), chain("third", "")], [reply(""), reply("own")]
    assert texts(model, SETTINGS, revisions, helpful) == ["second", "third", "own"]
    final = dataclasses.replace(SETTINGS, revisions="final")
    assert texts(model, final, revisions, helpful) == ["second", "own"]
    with pytest.raises(ValueError, match="no examples"):
        texts(model, SETTINGS, [chain("")], [])


@pytest.mark.parametrize("chat", [False, True])
def test_the_loss_is_on_the_reply_and_its_end_token_alone(chat):
    model = tiny_model(chat=chat)
    ((tokens, mask),) = supervised.examples(
        SETTINGS, model.tokenizer, model.format, [chain("Yes.")], []
    )
    targets = [t for t, m in zip(tokens, mask, strict=True) if m]
    assert targets[-1] in model.tokenizer.end_ids, "a model that never learns to stop"
    assert model.tokenizer.decode(targets[:-1]).strip() == "Yes."
    assert not any(mask[: mask.index(True)])
    assert all(mask[mask.index(True) :])
    assert tokens.count(model.tokenizer.bos_id) == (0 if chat else 1)


def test_a_reply_that_was_cut_off_does_not_teach_to_stop(model):
    def ends(revisions, helpful):
        data = supervised.examples(SETTINGS, model.tokenizer, model.format, revisions, helpful)
        return [tokens[-1] in model.tokenizer.end_ids for tokens, _ in data]

    assert ends([chain("a"), chain("b", reason="length"), chain("c", reason="stop")],
                [reply("d"), reply("e", "length")]) == [True, False, True, True, False]  # fmt: skip


def train(folder, model, data, settings=SETTINGS, seed=0):
    seen = []
    params = supervised.finetune(
        settings, model.config, jax.tree.map(jax.numpy.array, model.params), data, folder, seed,
        lambda done, total, metrics: seen.append((done, total)),
    )  # fmt: skip
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return params, rows, seen


def test_one_batch_is_learnt_by_heart_and_then_sampled(tmp_path, model):
    """Loss to near zero, and the model says what it has learnt, the end token included."""
    data = supervised.examples(
        SETTINGS, model.tokenizer, model.format,
        [chain("I cannot help with that.")], [reply("A pear.")],
    )[:1]  # fmt: skip
    settings = dataclasses.replace(SETTINGS, epochs=60, batch_size=1)
    params, rows, seen = train(tmp_path, model, data, settings)
    assert rows[0]["train/loss"] > 4
    assert rows[-1]["train/loss"] < 0.02
    assert seen[-1] == (60, 60)
    tokens, mask = data[0]
    after = dataclasses.replace(model, params=params).logits(np.array([tokens]))[0].argmax(-1)
    start = mask.index(True)
    assert list(after[start - 1 : -1]) == tokens[start:]


def test_the_loss_is_the_mean_over_targets_of_packed_rows(model):
    """Examples packed in one row give the loss that each gives alone."""
    data = supervised.examples(
        SETTINGS, model.tokenizer, model.format, [chain("One.", "Two, three.")], [reply("Four")]
    )
    loss = supervised.make_loss(model.config, "none")
    packed = supervised.epoch_batches(
        data, dataclasses.replace(SETTINGS, length=128, batch_size=1), 0, 0
    )
    assert len(packed) == 1
    together, metrics = loss(model.params, packed[0])
    total = count = 0.0
    for one in data:
        (batch,) = supervised.epoch_batches(
            [one], dataclasses.replace(SETTINGS, length=64, batch_size=1), 0, 0
        )
        value, own = loss(model.params, batch)
        total, count = total + float(value) * float(own["count"]), count + float(own["count"])
    assert float(metrics["count"]) == count == sum(sum(mask) for _, mask in data)
    assert float(together) == pytest.approx(total / count, rel=1e-5)


def test_every_example_comes_once_an_epoch_in_a_new_order(model):
    data = [([n + 1] * 20, [False] + [True] * 19) for n in range(12)]
    settings = dataclasses.replace(SETTINGS, length=20, batch_size=3)

    def order(epoch, seed=0):
        batches = supervised.epoch_batches(data, settings, seed, epoch)
        return [int(row[0]) for batch in batches for row in batch.tokens]

    assert sorted(order(0)) == sorted(order(1)) == list(range(1, 13))
    assert order(0) == order(0)
    assert len({tuple(order(0)), tuple(order(1)), tuple(order(0, seed=1))}) == 3


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_recomputed_changes_no_gradient(model, remat):
    data = supervised.examples(SETTINGS, model.tokenizer, model.format, [chain("One.")], [])
    (batch,) = supervised.epoch_batches(data, SETTINGS, 0, 0)

    def gradient(how):
        return jax.grad(supervised.make_loss(model.config, how), has_aux=True)(model.params, batch)

    plain, other = gradient("none")[0], gradient(remat)[0]
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_bfloat16_compute_rounds_activations_and_keeps_gradients_in_float32(model):
    data = supervised.examples(SETTINGS, model.tokenizer, model.format, [chain("One.")], [])
    (batch,) = supervised.epoch_batches(data, SETTINGS, 0, 0)

    def found(dtype):
        loss = supervised.make_loss(model.config, "full", dtype)
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params, batch)

    (exact, _), gradient = found("float32")
    (rounded, _), coarse = found("bfloat16")
    assert rounded.dtype == jnp.float32 and rounded != exact
    assert rounded == pytest.approx(float(exact), rel=0.01)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(coarse), strict=True):
        assert b.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)


def test_an_example_longer_than_a_row_is_refused(model):
    data = supervised.examples(SETTINGS, model.tokenizer, model.format, [chain("x" * 80)], [])
    with pytest.raises(ValueError, match="64"):
        supervised.epoch_batches(data, SETTINGS, 0, 0)
