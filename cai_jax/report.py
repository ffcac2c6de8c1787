"""Evaluation of a run, its figures and the table it prints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from cai_jax import hosts
from cai_jax.evaluation import results
from cai_jax.evaluation.diversity import of_revisions
from cai_jax.evaluation.intervals import Interval, bootstrap_mean, wilson
from cai_jax.evaluation.results import SNAPSHOTS, Measure
from cai_jax.evaluation.revision_scores import REVISION_SCORES, ScoredRevisions
from cai_jax.evaluation.scored_pairs import FOLDER, ScoredPair
from cai_jax.evaluation.snapshots import Answer, best_of_kl
from cai_jax.figures import elo as elo_figure
from cai_jax.figures import pm_by_revision as pm_figure
from cai_jax.figures import ppo as ppo_figure
from cai_jax.figures.elo import EloPlane, EloPoint
from cai_jax.figures.pm_by_revision import PmByRevision
from cai_jax.figures.ppo import PpoCurve
from cai_jax.labels import label, raw_of
from cai_jax.models.transformer import Params
from cai_jax.pipeline import counter, read_records
from cai_jax.progress import ResultRow
from cai_jax.questions import Pair
from cai_jax.records import Comparison, Revision
from cai_jax.run import Run
from cai_jax.shards import Shards
from cai_jax.snapshot_answers import COLUMNS, answer, scores, titles
from cai_jax.stages import ai_feedback
from cai_jax.stages.ppo import Sampled

JUDGE = "the run's own preference model"


def evaluate(run: Run) -> None:
    """Answers of the snapshots to held-out prompts, their scores, and label quality."""
    for stage, verb in (
        ("finetune", "finetune"), ("preference_model", "train-pm"),
        (run.settings.algorithm, "train-rl"),
    ):  # fmt: skip
        run.workdir.require(stage, verb)
    if not run.workdir.begin("evaluation", run.inputs("evaluation")):
        run.progress.say("✓ evaluation: finished in a former run")
        return
    folder, s = run.workdir.path / "evaluation", run.settings.evaluate
    perplexity = answer(run, folder)
    answers = read_records(folder / "answers", Answer)
    labels = {mode: _label_quality(run, mode, folder) for mode in _label_modes(run)}
    pm = run.params_of("preference_model")
    with run.progress.stage("preference-model scores", 3, "sets") as bar:
        texts = [(a.prompt, a.response) for a in answers]
        measures = results.compare_snapshots(
            answers, scores(run, pm, texts), perplexity, run.settings.seed, s.resamples
        )
        bar.advance()
        by_revision = _by_revision(run, pm)
        bar.advance()
        quality = _pm_quality(run, pm)
        bar.advance()
    run.workdir.write_json(
        "evaluation/results.json",
        {
            "parameters": sum(x.size for x in jax.tree.leaves(run.initial.params)),
            "snapshots": [_plain(m) for m in measures],
            "labels": {m: {k: _plain(v) for k, v in q.items()} for m, q in labels.items()},
            "training_labels": {k: _plain(v) for k, v in _training_labels(run).items()},
            "preference_model": {k: _plain(v) for k, v in quality.items()},
            "pm_by_revision": [_plain(i) for i in by_revision],
            "revisions": _revisions(run),
        },
    )
    run.workdir.finish("evaluation", {"answers": len(answers)})


def _label_modes(run: Run) -> list[str]:
    """The run's own label mode first, then the paper's."""
    return list(dict.fromkeys((run.settings.compare.mode, "multiple_choice", "chain_of_thought")))


def _label_quality(run: Run, mode: str, folder: Path) -> dict[str, Interval]:
    """How a label mode does on the clear-cut pairs; which response is shown first is drawn."""
    judge, known = run.judge(), run.data.label_pairs
    pairs = [Pair.drawn(p.id, p.prompt, p.better, p.worse) for p in known]
    firsts = [pair.response_a == p.better for pair, p in zip(pairs, known, strict=True)]
    kept = folder / f"labels-{mode}.json"
    if not kept.exists():
        settings = dataclasses.replace(run.settings.compare, mode=mode, both_orders=True)
        title = f"label accuracy, {mode.replace('_', ' ')}"
        with run.progress.stage(title, 2 * len(pairs), "askings") as bar:
            labels = ai_feedback.label_pairs(
                settings, run.engine("evaluation", model=judge), judge.format, run.constitution,
                pairs, run.settings.seed, counter(bar),
            )  # fmt: skip
        rows = [dataclasses.asdict(label) for label in labels]
        run.workdir.write_json(f"evaluation/labels-{mode}.json", rows)
    rows = run.workdir.read_json(f"evaluation/labels-{mode}.json")
    return results.label_quality(
        firsts,
        [p.kind == "harmful" for p in known],
        [r["prob_a"] for r in rows],
        [r["first_prob_a"] for r in rows],
        [r["swapped_prob_a"] for r in rows],
        run.settings.seed,
    )


def _by_revision(run: Run, pm: Params) -> list[Interval]:
    """Mean PM score of the initial response and of each revision, on the training prompts.

    Leaves each prompt's scores.
    """
    records = read_records(run.workdir.path / "revise" / "revisions", Revision)
    texts = [
        (r.prompt, text)
        for r in records
        for text in (r.initial_response, *(step.revision for step in r.steps))
    ]
    found = scores(run, pm, texts).reshape(len(records), -1)
    scored = [ScoredRevisions(r.id, JUDGE, row) for r, row in zip(records, found, strict=True)]
    Shards(run.workdir.path / REVISION_SCORES, 1).write(0, scored)
    resamples = run.settings.evaluate.resamples
    return [bootstrap_mean(column.tolist(), run.settings.seed, resamples) for column in found.T]


def _revisions(run: Run) -> dict[str, Any]:
    """How the revisions were made, and how much they differ, the initial responses first."""
    records = read_records(run.workdir.path / "revise" / "revisions", Revision)
    return {
        "prompts": len(records),
        "critique": run.settings.revise.critique,
        "principles": len(run.critique_principles),
        "diversity": [{k: _plain(v) for k, v in d.items()} for d in of_revisions(records)],
    }


def _pm_quality(run: Run, pm: Params) -> dict[str, Interval]:
    """How often the PM ranks held-out pairs as people do; leaves its scores of them."""
    sets = {
        "clear-cut harmful pairs": [
            (p.id, p.prompt, p.better, p.worse) for p in run.data.label_pairs if p.kind == "harmful"
        ],
        "clear-cut benign pairs": [
            (p.id, p.prompt, p.better, p.worse) for p in run.data.label_pairs if p.kind == "benign"
        ],
        "held-out helpfulness pairs": [
            (c.id, c.prompt, c.good, c.poor) for c in run.data.held_out_comparisons
        ],
    }
    found, scored = {}, []
    for name, rows in sets.items():
        if rows:
            texts = [(prompt, text) for _, prompt, good, poor in rows for text in (good, poor)]
            good, poor = scores(run, pm, texts).reshape(-1, 2).T
            found[name] = wilson(float((good > poor).sum()), len(rows))
            scored += [ScoredPair(name, r[0], *s) for r, *s in zip(rows, good, poor, strict=True)]
    Shards(run.workdir.path / FOLDER, 1).write(0, scored)
    return found


def _training_labels(run: Run) -> dict[str, Interval]:
    """What the labels that trained the PM look like."""
    records = read_records(run.workdir.path / "compare" / "comparisons", Comparison)
    ids = [p.id for p in run.constitution.comparison]
    made = [label(run.settings.compare, raw_of(r), ids) for r in records]
    swapped = [m.swapped_prob_a for m in made]
    if None in swapped:  # asked in one order only
        return {}
    first = [m.first_prob_a for m in made]
    return results.label_statistics([r.prob_a for r in records], first, swapped, run.settings.seed)


def figures(run: Run) -> list[Path]:
    """Draws every figure from the records, in seconds."""
    run.workdir.require("evaluation", "evaluate")
    found = run.workdir.read_json("evaluation/results.json")
    folder, paths = run.workdir.path / "figures", []
    hosts.once(lambda: paths.extend(_drawn(run, found, folder)))
    run.progress.say(f"✓ figures in {folder}")
    return paths


def _drawn(run: Run, found: dict[str, Any], folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    seeds = [run.settings.seed]
    revisions = {"red-team prompts": [Interval(**i) for i in found["pm_by_revision"]]}
    paths = pm_figure.draw(PmByRevision(revisions, JUDGE, seeds), folder / "pm_by_revision")

    if run.settings.algorithm == "ppo":
        paths += _ppo_figure(run, folder / "ppo")
    measures = {m["name"]: m["by_snapshot"] for m in found["snapshots"]}
    points = [
        EloPoint(
            name,
            Interval(**measures["helpfulness Elo"][snapshot]),
            Interval(**measures["harmlessness Elo"][snapshot]),
        )
        for name, snapshot in zip(COLUMNS, SNAPSHOTS, strict=True)
    ]
    anchor = COLUMNS[SNAPSHOTS.index(results.ANCHOR)]
    return paths + elo_figure.draw(EloPlane(points, anchor, JUDGE, seeds), folder / "elo")


def _ppo_figure(run: Run, stem: Path) -> list[Path]:
    rollouts = Shards(run.workdir.path / "ppo" / "rollouts").read(Sampled)
    updates = sorted({r.update for r in rollouts})
    seed, resamples = run.settings.seed, run.settings.evaluate.resamples

    def curve(of) -> list[Interval]:
        return [
            bootstrap_mean([of(r) for r in rollouts if r.update == u], seed, resamples)
            for u in updates
        ]

    return ppo_figure.draw(
        PpoCurve(
            steps=[u + 1 for u in updates],
            scores=curve(lambda r: r.score),
            rewards=curve(lambda r: r.reward),
            kls=curve(lambda r: r.kl),
            seeds=[seed],
        ),
        stem,
    )


def table(run: Run) -> None:
    """Prints the results and writes them to summary.json."""
    found = run.workdir.read_json("evaluation/results.json")
    n = run.settings.evaluate.best_of
    names = titles(n)
    rows = [
        ResultRow(m["name"], tuple(_interval(m["by_snapshot"].get(s)) for s in names), m["style"])
        for m in found["snapshots"]
    ]
    notes = [
        f"Best of {n}: the answer that the preference model scores highest, judged by that same "
        f"model. Choosing adds at most log n - (n - 1) / n = {best_of_kl(n):.2f} nats to the KL, "
        "which are counted in.",
    ]
    columns = tuple(names.values())
    run.progress.results_table("Results on held-out prompts", columns, rows, notes if n > 1 else [])
    rows = [
        ResultRow(name, (_interval(value),), "share")
        for name, value in found["preference_model"].items()
    ]
    run.progress.results_table("The preference model's accuracy", ("accuracy",), rows)
    modes = _label_modes(run)
    rows = [
        ResultRow(
            name,
            tuple(_interval(found["labels"][m].get(name)) for m in modes),
            results.label_style(name),
        )
        for name in found["labels"]["multiple_choice"]
    ]
    columns = [mode.replace("_", " ") for mode in modes]
    run.progress.results_table("The feedback model's labels on clear-cut pairs", columns, rows)
    limits = _limits(run, found)
    for line in ("What these numbers can and cannot show:", *(f"  {line}" for line in limits)):
        run.progress.say(line)
    run.workdir.write_json("summary.json", found | {"limits": limits})


def _limits(run: Run, found: dict[str, Any]) -> list[str]:
    """What the numbers can and cannot show."""
    mode = run.settings.compare.mode
    accuracy = found["labels"][mode]["accuracy, both orders averaged"]
    chance = accuracy["low"] <= 0.5 <= accuracy["high"]
    target = {
        "ppo": "that RL-CAI was trained against",
        "dpo": "that learnt from the same comparisons as RL-CAI",
        "rating": "that learnt from the feedback model whose ratings RL-CAI was trained on",
    }["rating" if run.settings.rated else run.settings.algorithm]
    judged = (
        f"Scores, win rates and Elo are judged by the preference model {target}, so they show "
        "what was optimised, not what people would prefer."
    )
    labels = (
        f"The feedback model's {mode.replace('_', ' ')} labels are right on "
        f"{accuracy['value']:.0%} of clear-cut pairs [{accuracy['low']:.0%}, "
        f"{accuracy['high']:.0%}]"
        + (
            ", which is not told apart from chance: this run shows that the method runs, not that "
            "it works."
            if chance
            else "."
        )
    )
    return [judged, labels]


def _interval(value: dict | None) -> Interval | None:
    return None if value is None else Interval(**value)


def _plain(value: Measure | Interval | None) -> Any:
    return None if value is None else dataclasses.asdict(value)
