"""The stages in order: what each reads, what it leaves in the workdir, and how a run resumes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cai_jax import held_out_comparisons
from cai_jax.datasets import prompts as shipped
from cai_jax.decoding import Engine
from cai_jax.decoding.rate import Judge
from cai_jax.evaluation import goodhart
from cai_jax.evaluation.goodhart import HeldOut
from cai_jax.evaluation.labels import of_comparisons
from cai_jax.labels import label, raw_of
from cai_jax.models import int8, lora
from cai_jax.models.transformer import Params, frozen
from cai_jax.progress import Stage
from cai_jax.prompts import Format
from cai_jax.records import Comparison, Response, Revision
from cai_jax.run import HELD_OUT, Run, pm_stages
from cai_jax.saved_params import save_params
from cai_jax.shards import Shards
from cai_jax.stages import ai_feedback, critique_revision, dpo, ppo, preference_model, supervised
from cai_jax.training import preemption
from cai_jax.training.metrics import MetricsLog
from cai_jax.training.rollout import scored_length

SHOWN_CHAINS = 3


def revise(run: Run) -> None:
    """Critique-revision chains of red-team prompts; own responses to helpful ones."""
    folder, s = run.workdir.path / "revise", run.settings.revise
    if not run.workdir.begin("revise", run.inputs("revise")):
        return _skipped(run, "critique and revision")
    engine, form = run.engine("revise"), run.initial.format
    shown = 0
    with run.progress.stage("critique and revision", len(run.data.red_team), "prompts") as bar:

        def revised(done: float, total: int, newest: list[Revision]) -> None:
            nonlocal shown
            for record in newest[: SHOWN_CHAINS - shown]:
                shown += 1
                _show(run, record)
            bar.advance(done - bar.done)

        revisions = critique_revision.revise(
            s, engine, form, run.constitution, run.data.red_team, folder / "revisions",
            run.settings.seed, run.provenance, revised,
        )  # fmt: skip
    with run.progress.stage("helpful responses", len(run.data.helpful), "prompts") as bar:
        helpful = critique_revision.answer_helpful(
            s, engine, form, run.data.helpful, folder / "helpful",
            run.settings.seed, run.provenance, counter(bar),
        )  # fmt: skip
    run.workdir.finish("revise", {"revisions": len(revisions), "helpful": len(helpful)})


def finetune(run: Run) -> None:
    """SL-CAI."""
    run.workdir.require("revise", "revise")
    folder, s = run.workdir.path / "finetune", run.settings.finetune
    if not run.workdir.begin("finetune", run.inputs("finetune")):
        return _skipped(run, "finetuning")
    records = run.workdir.path / "revise"
    revisions = read_records(records / "revisions", Revision)
    helpful = read_records(records / "helpful", Response)
    model = run.initial
    data = supervised.examples(s, model.tokenizer, model.format, revisions, helpful)
    with run.progress.stage("finetuning SL-CAI", 0, "steps") as bar:
        params = supervised.finetune(
            s, model.config, run.take(model), data, folder, run.settings.seed,
            stepper(bar, "train/loss", "loss"), run.mesh, run.settings.lora,
        )  # fmt: skip
    run.save("finetune", params)
    run.workdir.finish("finetune", {"examples": len(data)})


def compare(run: Run) -> None:
    """Pairs of SL-CAI responses and the feedback model's choice between them."""
    run.workdir.require("finetune", "finetune")
    folder, s = run.workdir.path / "compare", run.settings.compare
    if not run.workdir.begin("compare", run.inputs("compare")):
        return _skipped(run, "AI feedback")
    rows = run.data.red_team
    sl_cai = run.params_of("finetune")
    with run.progress.stage("pairs of responses", len(rows), "prompts") as bar:
        responses = ai_feedback.sample_pairs(
            s, run.engine("compare", sl_cai), run.initial.format, rows, folder / "responses",
            run.settings.seed, run.provenance, counter(bar),
        )  # fmt: skip
    del sl_cai
    judge = run.judge()
    with run.progress.stage("AI feedback", len(ai_feedback.pairs_of(responses)), "pairs") as bar:
        comparisons = ai_feedback.compare(
            s, run.engine("compare", model=judge), judge.format, run.constitution, responses,
            folder / "comparisons", run.settings.seed, f"{judge.name}@{judge.fingerprint}",
            run.provenance, counter(bar),
        )  # fmt: skip
    ids = [p.id for p in run.constitution.comparison]
    made = [(record, label(s, raw_of(record), ids)) for record in comparisons]
    report, summary = of_comparisons(s, made, ids, run.settings.seed)
    run.workdir.write_json("compare/labels.json", report)
    run.workdir.finish("compare", summary)


def train_pm(run: Run) -> None:
    """The preference model, from AI harmlessness and human helpfulness comparisons.

    With `halves` it learns from half of the prompts, and a second one from the others; with
    `members` more of them learn from what it learns from, each in an order of its own.
    """
    run.workdir.require("compare", "compare")
    for stage in pm_stages(run.settings):
        _train_pm(run, stage, stage.replace("_", " "), "train")
    if run.settings.preference_model.halves:
        _train_pm(run, HELD_OUT, "held-out preference model", "test")


def _train_pm(run: Run, stage: str, name: str, which: Literal["train", "test"]) -> None:
    folder, s = run.workdir.path / stage, run.settings.preference_model
    if not run.workdir.begin(stage, run.inputs(stage)):
        return _skipped(run, name)
    comparisons = read_records(run.workdir.path / "compare" / "comparisons", Comparison)
    comparisons += [_human(run, c) for c in run.data.helpful_comparisons]
    if s.halves:
        comparisons = preference_model.half(comparisons, which)
    comparisons, held_out = preference_model.apart(comparisons, s.held_out)
    model = run.feedback
    data = preference_model.examples(s, model.tokenizer, model.format, comparisons)
    with run.progress.stage(f"training the {name}", 0, "steps") as bar:
        params = preference_model.train_preference_model(
            s, model.config, run.take(model), data, folder, run.settings.seed,
            stepper(bar, "pm/accuracy", "agrees"), run.mesh, name, run.settings.lora,
        )  # fmt: skip
    run.save(stage, params)
    if held_out:
        report = held_out_comparisons.tested(run, params, held_out)
        run.workdir.write_json(f"{stage}/{held_out_comparisons.FILE}", report)
    human = sum(c.source == "human" for c in comparisons)
    left_out = len(comparisons) - len(data)
    run.workdir.finish(
        stage,
        {"ai": len(comparisons) - human, "human": human, "too_long_and_left_out": left_out,
         "held_out": len(held_out)},
    )  # fmt: skip


def train_rl(run: Run) -> None:
    """RL-CAI, by PPO unless the config says DPO."""
    if run.settings.algorithm == "dpo":
        return _train_dpo(run)
    run.workdir.require("finetune", "finetune")
    folder, s = run.workdir.path / "ppo", run.settings.ppo
    rated = run.settings.rated
    members = [] if rated else pm_stages(run.settings)
    for stage in members:
        run.workdir.require(stage, "train-pm")
    if not run.workdir.begin("ppo", run.inputs("ppo")):
        return _skipped(run, "PPO")
    engine = run.engine("ppo")
    rows = run.data.red_team + run.data.helpful
    form = run.initial.format
    kept = len(ppo.fitting(s, engine.tokenizer, form, rows))
    if kept < len(rows):
        run.progress.say(
            f"{len(rows) - kept} of {len(rows)} prompts are longer than ppo.prompt_tokens "
            f"({s.prompt_tokens}) and stay out of PPO"
        )
    judge = _judge(run) if rated else None
    run.take(run.initial)  # PPO holds models of its own
    engine.params = None
    pms = [run.params_of(stage) for stage in members]
    held_out = _held_out(run, engine, form, pms)
    reference = frozen(run.params_of("finetune"), s.compute_dtype)
    if run.settings.frozen_int8:
        reference = int8.quantized(reference)
    adapters = run.settings.lora
    start = reference if adapters.rank else run.params_of("finetune")
    with run.progress.stage("PPO", s.updates, "updates") as bar, preemption.noted() as asked:
        params = ppo.train_ppo(
            s, engine, form, start, reference, pms, rows, folder, run.settings.seed,
            run.provenance, stepper(bar, "objective/score", "score"), run.mesh, held_out, judge,
            asked, adapters,
        )  # fmt: skip
    if adapters.rank:  # into SL-CAI as it was saved, not as it was rounded to the compute dtype
        save_params(folder / lora.FOLDER, lora.adapters(params), {})
        params = lora.merged(lora.moved(params, run.params_of("finetune")))
    run.save("ppo", params)
    updates = len(MetricsLog(folder / "metrics.jsonl").rows())
    if updates < s.updates:
        run.progress.say(
            f"PPO stopped after {updates} of {s.updates} updates: the held-out score of the last "
            f"{s.stop_when_held_out_falls} is below that of the {s.stop_when_held_out_falls} before"
        )
    done = {"prompts": kept, "too_long_and_left_out": len(rows) - kept, "updates": updates}
    run.workdir.finish("ppo", {**done, "stopped_as_held_out_fell": updates < s.updates})


def _judge(run: Run) -> Judge:
    """The feedback model as PPO asks it for ratings, in the form in which it labels."""
    engine = run.engine("ppo", model=run.judge())
    params, engine.params = engine.params, None
    return Judge(engine, params, run.rating_format(), run.constitution, run.settings.seed)


def _held_out(run: Run, engine: Engine, form: Format, pms: list[Params]) -> HeldOut | None:
    """The preference model of the other half, and the zeros of both; None without halves."""
    if not run.settings.preference_model.halves:
        return None
    run.workdir.require(HELD_OUT, "train-pm")
    s, data, params = run.settings.ppo, run.data, run.params_of(HELD_OUT)
    shards = Shards(run.workdir.path / goodhart.FOLDER, 1)
    if not shards.done():
        rows = data.held_out_red_team + data.held_out_helpful
        responses = goodhart.baseline(
            engine, form, run.params_of("finetune"), pms, params,
            ppo.fitting(s, engine.tokenizer, form, rows), deviations=s.deviations,
            response_tokens=s.response_tokens, temperature=s.temperature,
            length=scored_length(s.prompt_tokens, s.response_tokens), batch_size=s.batch_size,
            seed=run.settings.seed, provenance=run.provenance, mesh=run.mesh,
        )  # fmt: skip
        shards.write(0, responses)
    return HeldOut(params, goodhart.zeros_of(shards.read(goodhart.Baseline)))


def _train_dpo(run: Run) -> None:
    """RL-CAI from the comparisons that train the preference model, without that model."""
    run.workdir.require("finetune", "finetune")
    run.workdir.require("compare", "compare")
    folder, s = run.workdir.path / "dpo", run.settings.dpo
    if not run.workdir.begin("dpo", run.inputs("dpo")):
        return _skipped(run, "DPO")
    records = run.workdir.path / "compare"
    comparisons = read_records(records / "comparisons", Comparison)
    comparisons += [_human(run, c) for c in run.data.helpful_comparisons]
    if run.settings.preference_model.halves:  # the other half trains a model that only watches
        comparisons = preference_model.half(comparisons, "train")
    responses = read_records(records / "responses", Response)
    cut_off = {(r.id, r.response) for r in responses if r.stop_reason == "length"}
    config, words = run.initial.config, (run.initial.tokenizer, run.initial.format)
    data = dpo.examples(s, *words, comparisons, cut_off)
    run.take(run.initial)  # SL-CAI alone is of use here
    params = run.params_of("finetune")
    with run.progress.stage("log-probabilities of SL-CAI", len(data), "pairs") as bar:
        reference = dpo.reference_logprobs(s, config, params, data, folder, counter(bar), run.mesh)
    with run.progress.stage("DPO", 0, "steps") as bar:
        params = dpo.train_dpo(
            s, config, params, data, reference, folder, run.settings.seed,
            stepper(bar, "policy/accuracy", "agrees"), run.mesh, run.settings.lora,
        )  # fmt: skip
    run.save("dpo", params)
    human = sum(c.source == "human" for c in comparisons)
    left_out = len(comparisons) - len(data)
    run.workdir.finish(
        "dpo",
        {"ai": len(comparisons) - human, "human": human, "too_long_and_left_out": left_out},
    )


def _human(run: Run, c: shipped.HelpfulComparison) -> Comparison:
    """A written helpfulness comparison as a record; which text is A is drawn."""
    first = random.Random(f"{run.settings.seed} helpful order {c.id}").random() < 0.5
    return Comparison(
        id=c.id,
        kind="helpful",
        prompt=c.prompt,
        response_a=c.good if first else c.poor,
        response_b=c.poor if first else c.good,
        prob_a=float(first),
        principle="",
        labeler="shipped with the project",
        mode="human",
        option_logprobs=(),
        swapped_prob_a=None,
        source="human",
        provenance=run.provenance,
    )


def read_records(folder: Path, cls: type) -> list:
    """All records of a finished stage's folder, whatever its number of shards."""
    count = len(list(folder.glob("*.jsonl")))
    return Shards(folder, count).read(cls)


def _show(run: Run, record: Revision) -> None:
    step = record.steps[0]
    asked = record.prompt.turns[-1].text
    critique = step.critique if run.settings.revise.critique else None
    run.progress.show_chain(asked, record.initial_response, critique, step.revision)


def _skipped(run: Run, name: str) -> None:
    run.progress.say(f"✓ {name}: finished in a former run")


def counter(bar: Stage) -> Callable[[float, int], None]:
    """Shows what is done of a total, which may be more than was known when the stage began."""

    def counted(done: float, total: int) -> None:
        bar.total = total
        bar.advance(done - bar.done)

    return counted


def stepper(bar: Stage, metric: str, name: str) -> Callable[[int, int, Any], None]:
    """Shows a training step's progress and one of its metrics, under a name of its own."""

    def stepped(done: int, total: int, metrics: Any) -> None:
        bar.total = total
        bar.advance(done - bar.done, note=f"{name} {metrics[metric]:.3f}")

    return stepped
