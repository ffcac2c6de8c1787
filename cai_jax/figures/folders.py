"""The folders that figures are drawn from: what their records say, read without any model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai_jax.evaluation.intervals import Interval
from cai_jax.evaluation.results import SNAPSHOTS
from cai_jax.workdir import rl_sequences

TITLES = {"initial": "initial", "sl_cai": "SL-CAI", "rl_cai": "RL-CAI"}


class FigureError(ValueError):
    """Records that do not hold what a figure shows; the message says which verb leaves them."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """A workdir. Attributes: config, environment and results, as the workdir's JSON files say;
    kind, "run", "evaluation" (of one model), "comparison" (of snapshots) or "preferences" (a
    preference model of people's comparisons)."""

    path: Path
    kind: str
    config: dict[str, Any]
    environment: dict[str, Any]
    results: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name, or the evaluated system's."""
        return self.results.get("system", self.path.name)

    @property
    def parameters(self) -> int:
        """How many the model has.

        Raises:
          FigureError: the folder does not say.
        """
        if "parameters" not in self.results:
            raise FigureError(
                f"{self.path} does not say how many parameters its model has; run "
                "`cai-jax evaluate` with a new copy of it to note them."
            )
        return self.results["parameters"]

    @property
    def revisions(self) -> dict[str, Any]:
        """How a run's revisions were made and how they differ: prompts, critique, principles,
        and diversity of the initial responses and of each revision.

        Raises:
          FigureError: the folder does not say.
        """
        if "revisions" not in self.results:
            raise FigureError(
                f"{self.path} does not say how its revisions were made; it was evaluated by an "
                "older version, so make it anew with `cai-jax run`."
            )
        return self.results["revisions"]


@dataclasses.dataclass(frozen=True)
class EloSnapshot:
    """One snapshot's Elos. Attributes: run; snapshot, a title such as "SL-CAI"; sequences, that
    PPO had trained on; parameters, where known; helpful and harmless, Elo by kind of prompt."""

    run: str
    snapshot: str
    sequences: int
    parameters: int | None
    helpful: Interval | None
    harmless: Interval | None


def read(path: Path) -> Folder:
    """A workdir with results.

    Raises:
      FigureError: it has none, or its files are damaged.
    """
    evaluated = path / "evaluation" / "results.json"
    file = evaluated if evaluated.exists() else path / "results.json"
    if not file.exists():
        raise FigureError(
            f"{path} holds no results; finish `cai-jax run`, or `cai-jax evaluate`, with it as "
            "--workdir first."
        )
    try:
        results = json.loads(file.read_text("utf-8"))
        config, environment = (
            json.loads((path / name).read_text("utf-8")) if (path / name).exists() else {}
            for name in ("config.json", "environment.json")
        )
    except ValueError as error:
        raise FigureError(f"{path}: its JSON files are damaged ({error}); make it anew.") from error
    kind = next(
        (k for k, key in (("evaluation", "evaluations"), ("comparison", "standings"),
                          ("preferences", "held_out"))
         if key in results),
        "run",
    )  # fmt: skip
    return Folder(path, kind, config, environment, results)


def of_kind(folders: Sequence[Folder], kind: str, figure: int, verb: str) -> list[Folder]:
    """The folders of one kind.

    Raises:
      FigureError: there is none, naming the verb that makes one.
    """
    found = [folder for folder in folders if folder.kind == kind]
    if not found:
        raise FigureError(
            f"figure {figure} is drawn from folders that `cai-jax {verb}` leaves, and none of "
            f"{', '.join(str(f.path) for f in folders)} is one; make one and name it in --runs."
        )
    return found


def elo_snapshots(folders: Sequence[Folder], figure: int) -> list[EloSnapshot]:
    """Elos of all snapshots, from comparisons of snapshots or, without any, from the runs.

    Raises:
      FigureError: no folder holds Elos of snapshots that are known by their run.
    """
    compared = [folder for folder in folders if folder.kind == "comparison"]
    found = [snapshot for folder in compared for snapshot in _compared(folder)]
    if compared and not found:
        raise FigureError(
            f"{compared[0].path} compares snapshots whose runs are not known; compare them with "
            "--config.runs of experiments/snapshots.py."
        )
    if found:
        return found
    verb = "run` or `cai-jax evaluate --config=experiments/snapshots.py"
    return [s for folder in of_kind(folders, "run", figure, verb) for s in _of_run(folder)]


def judged_by(folders: Sequence[Folder]) -> str:
    """Who compared the snapshots."""
    judges = sorted({f.results["judge"] for f in folders if f.kind == "comparison"})
    return ", ".join(judges) if judges else "each run's own preference model, each run apart"


def _compared(folder: Folder) -> list[EloSnapshot]:
    standings = folder.results["standings"]

    def elo(kind: str, name: str) -> Interval | None:
        value = standings.get(kind, {}).get("elo", {}).get(name)
        return Interval(**value) if value else None

    return [
        EloSnapshot(
            of["run"], TITLES[of["snapshot"]], of["sequences"], of["parameters"],
            elo("helpful", name), elo("red_team", name),
        )
        for name, of in folder.results["snapshots"].items()
        if of["snapshot"] in TITLES
    ]  # fmt: skip


def _of_run(folder: Folder) -> list[EloSnapshot]:
    measures = {m["name"]: m["by_snapshot"] for m in folder.results["snapshots"]}
    trained = rl_sequences(folder.path)
    return [
        EloSnapshot(
            folder.name,
            TITLES[snapshot],
            trained if snapshot == "rl_cai" else 0,
            folder.results.get("parameters"),
            Interval(**measures["helpfulness Elo"][snapshot]),
            Interval(**measures["harmlessness Elo"][snapshot]),
        )
        for snapshot in SNAPSHOTS
    ]


def caption(
    sentences: Sequence[str],
    folders: Sequence[Folder],
    n: Sequence[int],
    departures: str,
    beside_the_paper: bool = False,
) -> str:
    """A figure's caption: what it shows, n, models, seeds, hardware, departures from the paper.

    Args:
      beside_the_paper: whether values of the paper are drawn too.
    """
    seeds = sorted({f.config["seed"] for f in folders if "seed" in f.config})
    models = sorted({_model(f) for f in folders} - {""})
    sizes = sorted(set(n))
    parts = [*sentences]
    if sizes:
        span = "-".join(str(x) for x in sizes[:: max(1, len(sizes) - 1)])
        parts.append(f"Bars: 95% intervals; n = {span} a point.")
    if models:
        parts.append(f"Models: {', '.join(models)}.")
    if seeds:
        parts.append(f"Seeds: {', '.join(map(str, seeds))}.")
    parts.append(f"Hardware: {', '.join(_hardware(folders))}.")
    if beside_the_paper:
        parts.append("Faint: the paper's values, read off its figure by eye.")
    return " ".join([*parts, f"Departures from the paper: {departures}"])


def _model(folder: Folder) -> str:
    name = folder.config.get("run") or folder.config.get("model") or ""
    return Path(name).name


def _hardware(folders: Sequence[Folder]) -> list[str]:
    found = []
    for environment in (folder.environment for folder in folders):
        kinds = environment.get("devices", [])
        words = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
        if words == ["1 cpu"]:
            words = [f"{environment.get('cpus')} CPU cores"]
        found.append(" and ".join(words) or "not noted")
    return list(dict.fromkeys(found))
