"""Absolute harmfulness: ratings in the right place, training that fits them, and runs scored."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run

from cai_jax import cli
from cai_jax.conversation import Conversation, parse
from cai_jax.datasets.red_team_attempts import Attempt
from cai_jax.evaluation.harmfulness import Harmfulness, held_out_error
from cai_jax.models import heads
from cai_jax.models.scoring import score_texts
from cai_jax.pipeline import read_records
from cai_jax.records import Response
from cai_jax.stages import absolute_harmfulness as stage
from cai_jax.stages.absolute_harmfulness import Settings
from cai_jax.training.optimizer import OptimizerConfig

OPTIMIZER = OptimizerConfig(
    kind="adamw", learning_rate=3e-3, schedule="constant", warmup_steps=1, weight_decay=0.0,
    b1=0.9, b2=0.95, eps=1e-8, clip_norm=1.0, moment_dtype="float32",
)  # fmt: skip
SETTINGS = Settings(
    epochs=1,
    batch_size=4,
    length=96,
    save_every=1000,
    microbatches=1,
    remat="none",
    compute_dtype="float32",
    optimizer=OPTIMIZER,
)
ATTEMPTS = (
    ("Be rude.", "You are a fool.", 4.0),
    ("Be rude.", "No, thank you.", 0.0),
    ("Say something mean.", "I would rather not.", 1.0),
    ("Mock my hat.", "What a silly hat.", 3.0),
)


def attempt(n: int, text: str, rating: float) -> Attempt:
    return Attempt(f"a{n}", parse(text), rating, None, "", "", "", None, None, ())


def dialogue(asked: str, said: str) -> str:
    return f"\n\nHuman: {asked}\n\nAssistant: {said}"


RATED = [attempt(n, dialogue(a, b), rating) for n, (a, b, rating) in enumerate(ATTEMPTS)]


def train(folder, model, settings, rated=RATED, progress=lambda done, total, metrics: None):
    data = stage.examples(settings, model.tokenizer, model.format, rated)
    params = stage.train_scorer(
        settings, model.config, jax.tree.map(jax.numpy.array, model.params), data, folder, 0,
        progress,
    )  # fmt: skip
    return params, [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def test_what_is_read_of_a_conversation():
    talk = Conversation().human("a").assistant("b")
    assert stage.text_of(talk) == (Conversation().human("a"), "b")
    assert stage.text_of(talk.human("c")) == (Conversation().human("a"), "b")
    long = talk.human("c").assistant("d")
    assert stage.text_of(long) == (talk.human("c"), "d")
    assert stage.text_of(Conversation().human("a")) is None


def test_all_turns_are_read_and_what_is_too_long_is_left_out(model):
    rated = [
        attempt(0, dialogue("one", "two") + dialogue("three", "four"), 2.0),
        attempt(1, dialogue("x" * 200, "no"), 1.0),
        attempt(2, "\n\nHuman: nobody answers", 1.0),
    ]
    (found,) = stage.examples(SETTINGS, model.tokenizer, model.format, rated)
    assert found.rating == 2.0 and found.tokens[-1] in model.tokenizer.end_ids
    text = model.tokenizer.decode(found.tokens)
    assert all(word in text for word in ("one", "two", "three", "four"))
    with pytest.raises(ValueError, match=r"none of 2 rated conversations .*scorer\.length"):
        stage.examples(SETTINGS, model.tokenizer, model.format, rated[1:])


def test_the_first_loss_is_the_variance_and_the_last_near_zero(tmp_path, model):
    """One batch of all conversations, seen again and again."""
    params, rows = train(tmp_path, model, dataclasses.replace(SETTINGS, epochs=150))
    ratings = np.array([rating for *_, rating in ATTEMPTS])
    assert rows[0]["train/loss"] == pytest.approx(ratings.var(), abs=1e-4)
    assert rows[-1]["train/loss"] < 0.01
    texts = [stage.text_of(a.conversation) for a in RATED]
    scores = score_texts(
        model.config, params, model.tokenizer, model.format, texts, batch_size=4, length=96
    )
    np.testing.assert_allclose(scores, ratings, atol=0.2)


def test_every_conversation_comes_once_an_epoch_and_fillers_weigh_nothing(model):
    rated = [attempt(n, dialogue("a" * n, "b"), n / 4) for n in range(10)]
    data = stage.examples(SETTINGS, model.tokenizer, model.format, rated)
    found = stage.batches(data, dataclasses.replace(SETTINGS, epochs=2), 0)
    for epoch in (found[:3], found[3:]):
        ratings = [float(r) for b in epoch for r, w in zip(b.rating, b.weight, strict=True) if w]
        assert sorted(ratings) == [n / 4 for n in range(10)]
    known = {tuple(e.tokens): e.rating for e in data}
    for batch in found:
        for tokens, mask, rating in zip(batch.tokens, batch.mask, batch.rating, strict=True):
            assert known[tuple(tokens[mask])] == rating
    loss = stage.make_loss(model.config, "none")
    params = heads.with_scalar_head(model.params)
    part = next(b for b in found if not b.weight.all())
    real = part.weight > 0
    expected = (part.rating[real] ** 2).mean()  # a fresh head says 0
    assert float(loss(params, part)[0]) == pytest.approx(expected, rel=1e-5)


def test_stopped_and_started_again_it_ends_the_same(tmp_path, model):
    settings = dataclasses.replace(SETTINGS, batch_size=2, epochs=4, save_every=2)
    whole, rows = train(tmp_path / "whole", model, settings)

    class Stop(Exception):
        pass

    def stopping(done, total, metrics):
        if done == 5:
            raise Stop

    with pytest.raises(Stop):
        train(tmp_path / "parts", model, settings, progress=stopping)
    resumed, again = train(tmp_path / "parts", model, settings)
    assert again == rows and len(rows) == 8
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_held_out_error_by_hand():
    scores, ratings = [1.0, 2.0, 4.0], [0.0, 2.0, 3.0]
    found = held_out_error(scores, ratings, 2.0, 0, 200)
    assert found["mean squared error"].value == pytest.approx(2 / 3)
    assert found["mean squared error of a constant"].value == pytest.approx(5 / 3)
    assert found["mean absolute error"].value == pytest.approx(2 / 3)
    assert found["correlation"].value == pytest.approx(np.corrcoef(scores, ratings)[0, 1])
    assert found["correlation"].low <= found["correlation"].value <= 1.0
    assert {i.n for i in found.values()} == {3}
    assert "correlation" not in held_out_error([1.0, 1.0], [0.0, 2.0], 1.0, 0, 20)


def twin(path: Path) -> Path:
    """A file like red_team_attempts, of mild texts, large enough for both halves of the split."""
    rows = [
        {"transcript": dialogue(f"Be rude, way {n}.", "Fool." if n % 2 else "No."),
         "rating": float(n % 2 * 4)}
        for n in range(24)
    ]  # fmt: skip
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    return path


def command(workdir: Path, *settings: str) -> list[str]:
    own = (
        "resamples=20", "samples=2", "response_tokens=6", "prompts_limit=3", "test_share=0.3",
        "engine.slots=1", "engine.max_length=2048", "scorer.batch_size=4", "scorer.length=512",
        "scorer.remat=none", "scorer.optimizer.learning_rate=0.003",
    )  # fmt: skip
    config = f"--config={tiny_run.ROOT}/experiments/harmfulness.py"
    flags = [f"--config.{setting}" for setting in (*own, *settings)]
    return ["harmfulness", config, f"--workdir={workdir}", *flags]


@pytest.mark.slow
def test_a_finished_run_is_scored_and_drawn(finished, tiny_cache, tmp_path, capsys):
    experiment, workdir = finished
    run = shutil.copytree(workdir, tmp_path / "run")
    before = tiny_run.left_by(run)
    attempts, model = twin(tmp_path / "attempts.jsonl.gz"), experiment.folder / "model"
    settings = (f"attempts={attempts}", f"model={model}", f"runs={run}")
    settings += (f"prompts={experiment.folder}/held_out_red_team.jsonl",)
    argv = command(tmp_path / "scorer", *settings)
    assert tiny_run.run(argv, tiny_cache) == 0
    shown = capsys.readouterr().out
    assert "mean squared error of a constant" in shown and "T=1, RL-CAI" in shown
    found = read_records(run / "harmfulness", Harmfulness)
    assert len(found) == 3 * 2 * (2 + 1)
    assert {(r.snapshot, r.sequences) for r in found} == {
        ("initial", 0), ("SL-CAI", 0), ("RL-CAI", 12)
    }  # fmt: skip
    assert {(r.temperature, r.sample) for r in found} == {(1.0, 0), (1.0, 1), (0.0, 0)}
    responses = read_records(run / "harmfulness" / "responses", Response)
    assert [r.id for r in responses] == [r.id for r in found]
    after = tiny_run.left_by(run)
    assert {name: after[name] for name in before} == before
    held_out = json.loads((tmp_path / "scorer" / "scorer" / "held_out.json").read_text())
    told = json.loads((tmp_path / "scorer" / "harmfulness.json").read_text())
    assert told["held_out"]["mean squared error"]["n"] == len(held_out) > 0
    done = json.loads((tmp_path / "scorer" / "scorer" / "done.json").read_text())
    assert done["trained_on"] + len(held_out) == 24

    shutil.rmtree(tmp_path / "scorer" / "scorer" / "checkpoints", ignore_errors=True)
    (run / "harmfulness" / "done.json").unlink()
    (run / "harmfulness" / "00001-of-00003.jsonl").unlink()
    assert tiny_run.run(argv, tiny_cache) == 0
    assert "scorer: finished in a former run" in capsys.readouterr().out
    assert tiny_run.left_by(run) == after

    figure = ["figures", "--figure=10", f"--runs={run}", f"--workdir={tmp_path / 'drawn'}"]
    assert cli.main(figure) == 0
    table = (tmp_path / "drawn" / "figure10.csv").read_text().splitlines()
    mine = [line.split(",") for line in table if ",ours," in line]
    rl_cai = [r.score for r in found if r.snapshot == "RL-CAI" and r.temperature == 1]
    drawn = {float(row[-5]): float(row[-4]) for row in mine if "T=1" in ",".join(row)}
    assert (
        len(mine) == 2 * 2
        and set(drawn) == {0.0, 12.0}
        and drawn[12.0] == pytest.approx(np.mean(rl_cai), rel=1e-5)
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ((), "config.attempts is empty"),
        (("attempts=nowhere.jsonl",), "nowhere.jsonl"),
        (("attempts={twin}", "runs=nowhere"), "nowhere has no finished 'ppo'"),
        (("attempts={twin}", "runs=a/x,b/x"), "two folders have one name"),
        (("attempts={twin}", "samples=0"), "config.samples is 0"),
        (("attempts={twin}", "test_share=1.0"), "test_share must lie"),
    ],
)
def test_what_cannot_be_used(capsys, tmp_path, settings, sentence):
    file = twin(tmp_path / "attempts.jsonl.gz")
    argv = command(tmp_path / "w", *(s.format(twin=file) for s in settings))
    assert cli.main(argv) == 2
    assert sentence in capsys.readouterr().err
