"""The sandbox's study: every claim of docs/sandbox.md over several seeds, from one command.

python benchmarks/sandbox_study.py --workdir=DIR [--seeds=0,1,2] [--only=NAME,NAME]
    [--size=tiny | --models=DIR, of `cai-jax sandbox --size=medium --workdir=DIR`]

Each variant is a run of experiments/sandbox.py with a few settings changed, once a seed; where only
what follows finetuning changes, it begins from a copy of the first variant's stages. Stopped, it
goes on where it was. At the end, for each figure, `cai-jax sandbox-scores` of the variants in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from cai_jax.evaluation.intervals import half_step
from cai_jax.records import Comparison
from cai_jax.sandbox import oracle
from cai_jax.sandbox.judgements import faults
from cai_jax.sandbox.principles import AIMS
from cai_jax.shards import Shards

ROOT = Path(__file__).parents[1]
FILES = "experiments/sandbox"
LABELLED = ("revise", "finetune", "compare")  # stages


@dataclasses.dataclass(frozen=True)
class Variant:
    """Attributes: settings, beside the experiment's; shared, stages that are the first variant's;
    verb, of the last stage that it needs; true_without, None, or of comparisons labelled by the
    truth and not by the feedback model, the category of harm that no principle names, "" for all
    named."""

    settings: tuple[str, ...] = ()
    shared: tuple[str, ...] = ("revise", "finetune")
    verb: str = "run"
    true_without: str | None = None


VARIANTS = {
    "RL-CAI": Variant(),
    "RLHF": Variant((
        f"prompts.helpful_comparisons={FILES}/human_comparisons.jsonl",
        "preference_model.ai_weight=0.0",
    ), LABELLED),
    "no spying": Variant((f"constitution={FILES}/without-spying.yaml",), ()),
    "no over-reaction": Variant((f"constitution={FILES}/without-over-reaction.yaml",), ()),
    "hard labels": Variant(("compare.target=hard",)),
    "without CoT": Variant(("compare.mode=multiple_choice",)),
    "clamped": Variant(("compare.clamp=(0.4, 0.6)",)),
    "pushed": Variant((
        "preference_model.halves=True", "ppo.kl_coefficient=0.0", "ppo.updates=120",
    ), LABELLED),
    "true labels": Variant((), LABELLED, true_without=""),
    "true labels without spying": Variant((), LABELLED, true_without="spying"),
    "direct revision": Variant(("revise.critique=False",), (), "revise"),
    **{f"{n} of 16 principles": Variant((f"revise.principles={n}",), (), "revise")
       for n in (1, 4)},
}  # fmt: skip
# Figure: the variants in it.
FIGURES = {
    "main": ("RL-CAI", "RLHF"),
    "labels": ("RL-CAI", "hard labels", "clamped", "without CoT"),
    "over-reaction": ("RL-CAI", "no over-reaction"),
    "ablation": ("RL-CAI", "no spying"),
    "ablation by true labels": ("true labels", "true labels without spying"),
    "pushed": ("pushed",),
    "revisions": ("RL-CAI", "direct revision", "1 of 16 principles", "4 of 16 principles"),
}


def main() -> None:
    """Runs what is not there yet, then prints tables and draws figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=lambda text: text.split(","), default=["0", "1", "2"])
    parser.add_argument("--size", default="small", help="of the models that ship")
    parser.add_argument("--models", type=Path, help="other models: where they were trained")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(VARIANTS))
    options = parser.parse_args()
    config = [f"--config=experiments/sandbox.py:{options.size}"]
    if options.models:
        trained = options.models.resolve() / "models"
        config.append(f"--config.model={trained / 'helpful'}")
        config.append(f"--config.feedback_model={trained / 'pretrained'}")
    folders = {
        name: [options.workdir / name.replace(" ", "-") / seed for seed in options.seeds]
        for name in VARIANTS
    }
    for place, seed in enumerate(options.seeds):
        first = folders["RL-CAI"][place]
        for name in options.only:
            _run(VARIANTS[name], folders[name][place], first, config, seed)
    for title, names in FIGURES.items():
        if set(names) <= set(options.only):
            groups = [f"--workdir={n}={','.join(map(str, folders[n]))}" for n in names]
            figures = options.workdir / "figures" / title
            _cai_jax("sandbox-scores", *groups, f"--figures={figures}")


def _run(variant: Variant, folder: Path, first: Path, config: list[str], seed: str) -> None:
    if variant.shared and folder != first and not folder.exists():
        copied = folder.with_name(f"{folder.name}.copied")  # whole before it has its name
        shutil.rmtree(copied, ignore_errors=True)
        for stage in variant.shared:
            shutil.copytree(first / stage, copied / stage)
        if variant.true_without is not None:
            label_truly(copied / "compare" / "comparisons", variant.true_without)
        copied.rename(folder)
    _cai_jax(
        variant.verb, *config, f"--workdir={folder}", f"--config.seed={seed}",
        *(f"--config.{setting}" for setting in variant.settings),
    )  # fmt: skip


def label_truly(folder: Path, without: str) -> None:
    """Makes labels the truth's mean over all principles, each without that category of harm.

    What the feedback model was asked and answered stays in the records, for a run's report of it.
    """
    shards = Shards(folder, 1)
    pairs = shards.read(Comparison)
    aims = [
        dataclasses.replace(aim, categories=tuple(c for c in aim.categories if c != without))
        for aim in AIMS
    ]
    found = []
    for pair in pairs:
        request, replies = oracle.request_of(pair.prompt), (pair.response_a, pair.response_b)
        a, b = np.transpose([faults(request, replies, aim) for aim in aims])
        label = float(half_step(b - a).mean())
        found.append(dataclasses.replace(pair, prob_a=label, labeler="the truth"))
    shards.write(0, found)


def _cai_jax(*arguments: str) -> None:
    print("\ncai-jax", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "cai_jax.cli", *arguments], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
