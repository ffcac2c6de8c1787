"""`cai-jax compare --relabel`: labels made again from the raw answers in the records, no model."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from cai_jax import constitution as constitutions
from cai_jax.evaluation.labels import of_comparisons
from cai_jax.labels import Label, LabelError, Recipe, label, raw_of
from cai_jax.progress import Progress
from cai_jax.records import Comparison
from cai_jax.settings import RunSettings
from cai_jax.shards import Shards
from cai_jax.workdir import Workdir, WorkdirError, changed

# `mode` is a recipe's too, but another mode is another question.
FREE = {field.name for field in dataclasses.fields(Recipe)} - {"mode"}


def relabel(settings: RunSettings, workdir: Workdir, progress: Progress) -> None:
    """Rewrites the labels of a finished `compare`, all at once, and says what changed.

    Raises:
      WorkdirError: the feedback model was asked something else than these settings ask.
      LabelError: the records lack an answer that these settings need.
    """
    workdir.require("compare", "compare")
    inputs = workdir.read_json("compare/inputs.json")
    new = json.loads(json.dumps(dataclasses.asdict(settings.compare)))
    _check(inputs["compare"], new)
    constitution = constitutions.load(settings.constitution)
    ids = [p.id for p in constitution.comparison]
    folder = workdir.path / "compare" / "comparisons"
    count = len(list(folder.glob("*.jsonl")))
    old = Shards(folder, count)
    made: list[tuple[Comparison, Label]] = []
    for record in old.read(Comparison):
        if record.mode != settings.compare.mode:
            raise LabelError(
                f"comparison '{record.id}' was labelled by {record.mode}, and "
                f"{settings.compare.mode} asks other questions; run without --relabel."
            )
        if record.provenance.constitution.rpartition("@")[2] != constitution.hash:
            raise WorkdirError(
                f"comparison '{record.id}' was labelled by another constitution "
                f"({record.provenance.constitution}) than {settings.constitution}; give that one."
            )
        made.append((record, label(settings.compare, raw_of(record), ids)))
    differences = [
        f"{name} {inputs['compare'].get(name, 'unset')} -> {new[name]}"
        for name in sorted(FREE)
        if inputs["compare"].get(name) != new[name]
    ]
    again = iter(
        dataclasses.replace(r, prob_a=m.prob_a, swapped_prob_a=m.swapped_prob_a) for r, m in made
    )
    with workdir.remade("compare") as draft:
        shards = Shards(draft / "comparisons", count)
        for number in sorted(old.done()):
            rows = old.path(number).read_bytes().count(b"\n")
            shards.write(number, [next(again) for _ in range(rows)])
        name = draft.relative_to(workdir.path)
        workdir.write_json(f"{name}/inputs.json", {**inputs, "compare": new})
        report, summary = of_comparisons(settings.compare, made, ids, settings.seed)
        workdir.write_json(f"{name}/labels.json", report)
        workdir.write_json(f"{name}/done.json", summary)
    config = workdir.read_json("config.json")
    workdir.write_json("config.json", {**config, "compare": new})
    moves = [abs(m.prob_a - r.prob_a) for r, m in made]
    turned = sum((m.prob_a - 0.5) * (r.prob_a - 0.5) < 0 for r, m in made)
    progress.say(
        f"✓ labelled again: {len(made)} comparisons; {', '.join(differences) or 'same settings'}; "
        f"{sum(move > 0 for move in moves)} labels changed, by up to {max(moves, default=0):.3f}; "
        f"{turned} now prefer the other response"
    )
    learnt = {
        "preference_model": ("the preference model", "train-pm"),
        "dpo": ("RL-CAI, by DPO,", "train-rl"),
    }
    for stage, (model, verb) in learnt.items():
        if (workdir.path / stage / "done.json").exists():
            progress.say(f"  {model} knows the old labels: `{verb} --force` makes it anew")


def _check(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses settings that change what the feedback model was asked."""
    asked_then, asked_now = (
        {name: value for name, value in side.items() if name not in FREE} for side in (then, now)
    )
    if asked_then != asked_now:
        raise WorkdirError(
            f"compare.{changed(asked_then, asked_now)} changes what the feedback model is asked, "
            f"and --relabel only {', '.join(sorted(FREE))}; give the former value, or a new "
            "--workdir without --relabel."
        )
