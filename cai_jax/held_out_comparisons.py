"""A run's preference model on the comparisons that it was not trained on, source by source."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cai_jax.evaluation.comparison_report import ComparisonReport, comparison_report
from cai_jax.models.scoring import score_texts
from cai_jax.models.transformer import Params
from cai_jax.progress import Progress, ResultRow
from cai_jax.records import Comparison
from cai_jax.run import Run

FILE = "held_out.json"  # in a preference model's folder
SOURCES = {"ai": "AI, harmlessness", "human": "people, helpfulness"}


def tested(run: Run, params: Params, comparisons: Sequence[Comparison]) -> dict:
    """The report on each source that has comparisons, as plain values.

    A comparison that is longer than `preference_model.length` is scored by its end.
    """
    s, model = run.settings.preference_model, run.feedback
    texts = [(c.prompt, text) for c in comparisons for text in (c.response_a, c.response_b)]
    found = score_texts(
        model.config, params, model.tokenizer, model.format, texts, batch_size=s.batch_size,
        length=s.length, mesh=run.mesh,
    ).reshape(-1, 2)  # fmt: skip
    reports = {}
    for source, name in SOURCES.items():
        rows = [n for n, c in enumerate(comparisons) if c.source == source]
        if rows:
            mine = [comparisons[n] for n in rows]
            longer = [len(c.response_a.split()) - len(c.response_b.split()) for c in mine]
            labels, scores = [c.prob_a for c in mine], found[rows]
            reports[name] = comparison_report(*scores.T, labels, longer, run.settings.seed)
    table(reports, run.progress)
    return {name: dataclasses.asdict(report) for name, report in reports.items()}


def table(reports: dict[str, ComparisonReport], progress: Progress) -> None:
    """Prints how far the model agrees with the labels, and both sides' habits."""
    rows = []
    for name, r in reports.items():
        for what, style, *values in (
            ("agrees with the label", "share", r.agreement, None),
            ("chooses the longer one", "share", r.chooses_longer, r.label_longer),
            ("chooses response A", "share", r.chooses_a, r.label_a),
            ("cross-entropy in bits", "number", r.cross_entropy, r.label_entropy),
            ("calibration error", "number", r.calibration_error, None),
        ):
            rows.append(ResultRow(f"{name}: {what}", tuple(values), style))
    columns = "preference model", "labels"
    progress.results_table("The preference model on held-out comparisons", columns, rows)
