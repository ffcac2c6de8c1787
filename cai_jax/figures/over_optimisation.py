"""The companion paper's over-optimisation figure: RL's preference model against a held-out one.

Beside both scores it shows what else changes in the responses as the policy moves away from its
start: their length, repetition, refusals, and a phrase that many of them share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cai_jax.evaluation.goodhart import FOLDER, Baseline, contains, shared_phrase, zeros_of
from cai_jax.evaluation.intervals import Interval, bootstrap_mean, wilson
from cai_jax.evaluation.refusal import measure
from cai_jax.figures import lines
from cai_jax.figures.folders import FigureError, Folder, caption
from cai_jax.figures.lines import Line, Panel
from cai_jax.shards import Shards
from cai_jax.training.rollout import Sampled

POINTS = 20  # of a line; updates in a row share one where there are more
KL = "square root of the KL from SL-CAI in nats"


@dataclasses.dataclass(frozen=True)
class _Study:
    """A run with a held-out preference model.

    Attributes: points, the responses of one or more updates in a row; zeros, of both preference
    models, from `baselines` responses; phrase, the one that is counted, empty for none; noted,
    whether the run's config names it.
    """

    folder: Folder
    points: list[list[Sampled]]
    zeros: tuple[float, float]
    baselines: int
    phrase: str
    noted: bool

    @property
    def roots(self) -> list[float]:
        """Square root of each point's mean KL, whose estimate near the start may be below 0."""
        kls = [sum(r.kl for r in point) / len(point) for point in self.points]
        return [math.sqrt(max(0.0, kl)) for kl in kls]

    @property
    def samples(self) -> list[float]:
        """How many responses the policy that sampled a point had been trained on, on average."""
        batch = self.folder.config["ppo"]["batch_size"]
        return [batch * sum(r.update for r in point) / len(point) for point in self.points]

    def train(self, r: Sampled) -> float:
        return r.score - self.zeros[0]

    def held_out(self, r: Sampled) -> float:
        return r.held_out_score - self.zeros[1]

    def means(self, of: Callable[[Sampled], float]) -> list[Interval]:
        seed = self.folder.config.get("seed", 0)
        return [bootstrap_mean([of(r) for r in point], seed) for point in self.points]

    def shares(self, of: Callable[[Sampled], bool]) -> list[Interval]:
        return [wilson(sum(of(r) for r in point), len(point)) for point in self.points]

    def texts(self) -> dict[tuple[str, str], list[Interval]]:
        """(title, what the y axis shows) of a panel: its points."""
        found = {
            ("length", "words"): self.means(lambda r: measure(r.response).words),
            ("repetition", "share of phrases repeated"): self.means(
                lambda r: measure(r.response).repeated_phrases
            ),
            ("refusals", "share of responses"): self.shares(lambda r: measure(r.response).refusal),
        }
        if self.phrase:
            found["stock phrase", "share of responses"] = self.shares(
                lambda r: contains(r.response, self.phrase)
            )
        return found


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: no folder holds scores by a held-out preference model.
    """
    studies = [study for folder in folders if (study := _read(folder))]
    if not studies:
        raise FigureError(
            "the over-optimisation figure is drawn from runs in which a held-out preference model "
            f"scored what RL sampled, and none of {', '.join(str(f.path) for f in folders)} is "
            "one; `cai-jax run` with --config.preference_model.halves=True makes one."
        )
    by_kl, by_samples, gaps, phrases = [], [], [], []
    texts: dict[tuple[str, str], list[Line]] = {}
    for study in studies:
        before = f"{study.folder.name}, " if len(studies) > 1 else ""
        for name, of in (("train PM", study.train), ("held-out PM", study.held_out)):
            points = study.means(of)
            by_kl.append(Line(before + name, study.roots, points))
            by_samples.append(Line(before + name, study.samples, points))
        gap = study.means(lambda r, s=study: s.train(r) - s.held_out(r))[-1]
        gaps.append(f"{before}{gap.value:.2f} [{gap.low:.2f}, {gap.high:.2f}]")
        origin = "" if study.noted else ", which most responses of the last point share"
        if study.phrase:
            phrases.append(f'{before}"{study.phrase}"{origin}')
        for panel, points in study.texts().items():
            texts.setdefault(panel, []).append(Line(f"{before}responses", study.roots, points))
    text = caption(
        [
            "Scores of what RL sampled, by the preference model that it optimises (train PM) and "
            "by one trained in the same way on other prompts' comparisons (held-out PM), each less "
            f"its mean over {_numbers(s.baselines for s in studies)} responses of SL-CAI to "
            "held-out prompts; and the same responses' length, repeated phrases of four words, "
            "refusals, told by phrases, and a stock phrase.",
            f"Train PM above held-out PM at the last point: {'; '.join(gaps)}.",
            f"Stock phrase: {'; '.join(phrases) or 'none, for want of four words in a row'}.",
        ],
        [study.folder for study in studies],
        [point.n for line in by_kl for point in line.y],
        "both preference models start from one model and learn from AI labels and written "
        "comparisons, not crowdworkers'; RL's prompts are those of both; "
        f"{_numbers(sum(map(len, s.points)) for s in studies)} samples to the 200,000 of the "
        "companion paper (arXiv 2204.05862), whose values could not be read off; the bars leave "
        "out the uncertainty of the two means subtracted.",
    )
    panels = [
        Panel("score by KL", KL, "PM score", by_kl, level=0.0),
        Panel("score by samples", "RL sequences", "PM score", by_samples, level=0.0),
        *(Panel(title, KL, shown, ours) for (title, shown), ours in texts.items()),
    ]
    return lines.draw("Over-optimisation of the preference model", text, panels, stem, columns=3)


def _read(folder: Folder) -> _Study | None:
    """A folder's records; None where no held-out preference model scored them."""
    found = Shards(folder.path / "ppo" / "rollouts").read(Sampled)
    updates = sorted({r.update for r in found})
    responses = Shards(folder.path / FOLDER, 1).read(Baseline)
    if not responses or not updates or any(r.held_out_score is None for r in found):
        return None
    size = -(-len(updates) // POINTS)
    points = [
        [r for r in found if r.update in updates[start : start + size]]
        for start in range(0, len(updates), size)
    ]
    noted = folder.config["ppo"].get("stock_phrase", "")
    phrase = noted or shared_phrase([r.response for r in points[-1]])[0]
    return _Study(folder, points, zeros_of(responses), len(responses), phrase, bool(noted))


def _numbers(values: Iterable[int]) -> str:
    return " or ".join(str(n) for n in sorted(set(values)))
