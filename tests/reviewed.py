"""Runs to review, written as records, without a model: any text in any field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cai_jax.conversation import Conversation
from cai_jax.evaluation.revision_scores import REVISION_SCORES, ScoredRevisions
from cai_jax.evaluation.snapshots import Answer
from cai_jax.records import Asked, Comparison, Provenance, Revision, RevisionStep
from cai_jax.shards import Shards
from cai_jax.training.rollout import Sampled

# What a model or a prompt might hold, to become code where text is not shown as text.
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '"><svg onload=window.hacked=1>',
    "</script><script>window.hacked = 1</script>",
    "<!--<script>window.hacked = 1</script>",
    "javascript:window.hacked=1",
    "<a href='javascript:window.hacked=1'>x</a>",
    "{{ 7 * 7 }} ${window.hacked = 1} {% raw %}",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "\u202e\u0000\u2028]]>&lt;b&gt; &amp; \x1b[31m",
    "<style>* { display: none }</style>",
    "' onmouseover='window.hacked=1' x='",
)
SNAPSHOTS = ("initial", "sl_cai", "rl_cai")
MADE = Provenance("model@1", "constitution@2", 0, "abc")


def plain(name: str) -> str:
    return f"the {name} says so"


def write_run(
    folder: Path,
    count: int = 6,
    text: Callable[[str], str] = plain,
    config: dict | None = None,
) -> Path:
    """A finished run of `count` prompts of each kind.

    Args:
      text: what a field holds, from a name that no other field has.
    """
    folder.mkdir(parents=True)
    settings = {
        "model": text("model"),
        "seed": 0,
        "constitution": "nowhere.yaml",
        "algorithm": "ppo",
        "evaluate": {"best_of": 1},
        "ppo": {"updates": 2, "batch_size": 4},
        "compare": {
            "mode": "chain_of_thought", "principles": "drawn", "both_orders": True, "chains": 1,
            "target": "soft", "clamp": [0.4, 0.6], "sharpness": 1.0, "per_token": False,
        },
    }  # fmt: skip
    _json(folder / "config.json", settings | (config or {}))
    _json(folder / "environment.json", {"commit": text("commit"), "devices": [text("device")]})
    _json(folder / "differences.json", ["settings:", text("difference")])
    kinds = {n: "red_team" if n % 2 else "helpful" for n in range(2 * count)}
    prompts = {n: Conversation().human(text(f"prompt {n}")) for n in kinds}
    chains = [
        Revision(
            text(f"chain {n}"), kinds[n], prompts[n], text(f"response {n}"),
            tuple(RevisionStep(text(f"principle {n % 3}"), text(f"critique {n} {k}"),
                               text(f"revision {n} {k}"), "end", "end") for k in range(2)),
            MADE,
        )
        for n in kinds
    ]  # fmt: skip
    _write(folder, "revise/revisions", chains)
    scored = [ScoredRevisions(r.id, "pm", (0.1 * n, 0.2, 1 - 0.1 * n)) for n, r in
              enumerate(chains)]  # fmt: skip
    _write(folder, REVISION_SCORES, scored)
    pairs = [
        Comparison(
            text(f"pair {n}"), kinds[n], prompts[n], text(f"answer a {n}"), text(f"answer b {n}"),
            0.6, text("comparison principle"), text("labeler"), "chain_of_thought",
            ((-0.1, -2.0), (-1.5, -0.2)), 0.7, "ai", MADE,
            asked=(Asked(text("comparison principle"), "AB", 0),
                   Asked(text("comparison principle"), "BA", 0)),
            chains=(text(f"thought {n}"), text(f"other thought {n}")),
        )
        for n in kinds
    ]  # fmt: skip
    _write(folder, "compare/comparisons", pairs)
    for update in range(2):
        rollouts = [
            Sampled(update, f"prompt {n}", kinds[n], prompts[n], text(f"rollout {n} {update}"),
                    "end", 0.5 * update + 0.01 * n, 0.1, MADE, reward=0.2)
            for n in kinds
        ]  # fmt: skip
        Shards(folder / "ppo" / "rollouts").write(update, rollouts)
    answers = [
        Answer(s, f"held out {n}", kinds[n], prompts[n], text(f"{s} answers {n}"), (1,), "end", 0,
               0.5, MADE)
        for s in SNAPSHOTS
        for n in kinds
    ]  # fmt: skip
    _write(folder, "evaluation/answers", answers)
    _json(folder / "evaluation" / "inputs.json", {"evaluate": {"best_of": 1}})
    _json(folder / "evaluation" / "results.json", {"parameters": 10})
    interval = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 7}
    summary = {
        "snapshots": [
            {"name": text("measure"), "style": "share",
             "by_snapshot": {"initial": None, "sl_cai": interval, "rl_cai": interval}}
        ],
        "preference_model": {text("source"): interval},
        "labels": {"multiple_choice": {"accuracy": interval}},
        "limits": [text("limit")],
    }  # fmt: skip
    _json(folder / "summary.json", summary)
    for stage in ("revise", "compare", "ppo", "evaluation"):
        _json(folder / stage / "done.json", {"updates": 2})
    (folder / "figures").mkdir()
    figure = '<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"></svg>'
    (folder / "figures" / "elo.svg").write_text(figure)
    return folder


def _write(folder: Path, name: str, records: list) -> None:
    half = len(records) // 2
    shards = Shards(folder / name, 2)
    shards.write(0, records[:half])
    shards.write(1, records[half:])


def _json(file: Path, value) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), "utf-8")
