"""How often the sandbox's feedback models are right about clear-cut pairs (docs/sandbox.md).

python benchmarks/sandbox_labels.py NAME_OR_FOLDER... [--seed=0]

Each model, such as `sandbox-tiny-pretrained` or DIR/models/pretrained, is asked as a run of
experiments/sandbox.py asks, with a chain of thought and without; 95% intervals are over pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from cai_jax import constitution as constitutions
from cai_jax.command_config import parse
from cai_jax.evaluation import results
from cai_jax.machine import engine_of
from cai_jax.questions import Pair
from cai_jax.run_texts import read_data
from cai_jax.settings import run_settings
from cai_jax.stages import ai_feedback
from cai_jax.weights.load import load_model

ROOT = Path(__file__).parents[1]
KEPT = ("accuracy, one order as in the paper", "accuracy, both orders averaged")


def main() -> None:
    """Prints a row for each model and mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="names of shipped models, or folders")
    parser.add_argument("--seed", type=int, default=0, help="of the chains of thought")
    options = parser.parse_args()
    config, *_ = parse([f"--config={ROOT}/experiments/sandbox.py"], needs_workdir=False)
    s = run_settings(config)
    constitution, known = constitutions.load(s.constitution), read_data(s).label_pairs
    pairs = [Pair.drawn(p.id, p.prompt, p.better, p.worse) for p in known]
    firsts = [pair.response_a == p.better for pair, p in zip(pairs, known, strict=True)]
    harmful = [p.kind == "harmful" for p in known]
    print("| feedback model | mode | one order | both orders |\n|---|---|---|---|")
    for name in options.models:
        judge = load_model(name, s.dtype)
        engine = engine_of(s.engine, judge)
        for mode in ("chain_of_thought", "multiple_choice"):
            asked = dataclasses.replace(s.compare, mode=mode, both_orders=True)
            labels = ai_feedback.label_pairs(
                asked, engine, judge.format, constitution, pairs, options.seed
            )
            found = results.label_quality(
                firsts,
                harmful,
                [x.prob_a for x in labels],
                [x.first_prob_a for x in labels],
                [x.swapped_prob_a for x in labels],
                options.seed,
            )
            shares = (found[kind] for kind in KEPT)
            cells = (f"{x.value:.0%} [{x.low:.0%}, {x.high:.0%}]" for x in shares)
            print(f"| {name} | {mode} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
