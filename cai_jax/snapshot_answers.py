"""A run's held-out answers: its three snapshots', and SL-CAI's best of n by the PM if asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cai_jax.evaluation import snapshots
from cai_jax.evaluation.results import BEST_OF, SNAPSHOTS
from cai_jax.models.scoring import score_texts
from cai_jax.models.transformer import Params
from cai_jax.pipeline import counter
from cai_jax.run import Run
from cai_jax.shards import Shards

COLUMNS = ("initial", "SL-CAI", "RL-CAI")


def titles(best_of: int) -> dict[str, str]:
    """Every snapshot of a run with its name for a reader; `best_of` as in the run's settings."""
    found = dict(zip(SNAPSHOTS, COLUMNS, strict=True))
    return found if best_of == 1 else {**found, BEST_OF: f"SL-CAI, best of {best_of}"}


def answer(run: Run, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each snapshot's answers, one shard a snapshot, in `folder`.

    Returns:
      Of each snapshot that is a model, nats a token and token counts of held-out helpful texts.
    """
    s, model, data = run.settings.evaluate, run.initial, run.data
    rows = data.held_out_red_team + data.held_out_helpful
    stages = dict(zip(SNAPSHOTS, (None, "finetune", run.settings.algorithm), strict=True))
    names = titles(s.best_of)
    shards = Shards(folder / "answers", len(names))
    texts = [(c.prompt, c.good) for c in data.held_out_comparisons]
    perplexity = {}
    for number, (snapshot, stage) in enumerate(stages.items()):
        kept = folder / f"perplexity-{snapshot}.json"
        if number in shards.done() and kept.exists():
            run.progress.say(f"✓ answers of {names[snapshot]}: from a former run")
        else:
            params = run.params_of(stage) if stage else model.params
            title = f"answers of {names[snapshot]}"
            with run.progress.stage(title, len(rows) * s.samples, "answers") as bar:
                answers = snapshots.answer(
                    s, snapshot, run.engine("evaluation", params), model.format, model.params, rows,
                    run.settings.seed, run.provenance, counter(bar),
                )  # fmt: skip
            nats, tokens = snapshots.perplexities(
                model.config, params, model.tokenizer, model.format, texts, s.batch_size
            )
            value = {"nats": nats.tolist(), "tokens": tokens.tolist()}
            run.workdir.write_json(f"evaluation/perplexity-{snapshot}.json", value)
            shards.write(number, answers)
        value = run.workdir.read_json(f"evaluation/perplexity-{snapshot}.json")
        perplexity[snapshot] = np.array(value["nats"]), np.array(value["tokens"])
    if BEST_OF in names and len(stages) not in shards.done():
        chosen, candidates = _best_of(run, names[BEST_OF])
        Shards(folder / "candidates", 1).write(0, candidates)
        shards.write(len(stages), chosen)
    return perplexity


def _best_of(run: Run, title: str) -> tuple[list[snapshots.Answer], list[snapshots.Candidate]]:
    """Chosen answers and all candidates, which are no answers of the SL-CAI column."""
    s, model, data = run.settings.evaluate, run.initial, run.data
    rows = data.held_out_red_team + data.held_out_helpful
    more = dataclasses.replace(s, samples=s.samples * s.best_of)
    with run.progress.stage(f"answers of {title}", len(rows) * more.samples, "answers") as bar:
        found = snapshots.answer(
            more, BEST_OF, run.engine("evaluation", run.params_of("finetune")), model.format,
            model.params, rows, run.settings.seed, run.provenance, counter(bar), stream="best of n",
        )  # fmt: skip
    pm = run.params_of("preference_model")
    return snapshots.best_of(
        found, scores(run, pm, [(a.prompt, a.response) for a in found]), s.best_of
    )


def scores(run: Run, pm: Params, texts: list) -> np.ndarray:
    """The run's preference model's scores float32[N] of (conversation, reply)."""
    judge = run.feedback
    return score_texts(
        judge.config, pm, judge.tokenizer, judge.format, texts,
        batch_size=run.settings.evaluate.batch_size, length=run.settings.preference_model.length,
    )  # fmt: skip
