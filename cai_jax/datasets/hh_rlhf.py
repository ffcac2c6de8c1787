"""Anthropic's human preference data (anthropics/hh-rlhf, arXiv 2204.05862).

Four subsets, each with a train and a test file of pairs of whole dialogues. The harmless pairs are
answers to red-team prompts; the helpful ones come from base models, from rejection sampling and
from online training.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

from cai_jax.conversation import parse
from cai_jax.datasets import rows
from cai_jax.datasets.card import Dataset, on_github
from cai_jax.datasets.comparisons import Dialogues, HumanComparison
from cai_jax.datasets.files import Published
from cai_jax.records import Kind

SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
REPOSITORY = "anthropics/hh-rlhf"
COMMIT = "354e5c3cb8960630860dd5774a6ac2a58313bf4d"

# The repository names the sha256 of what it keeps in Git LFS, which is all but harmless-base.
_CHECKSUMS = {
    "harmless-base/train": "df7c90b1bbd6093bda9c996e8aab9a46fa557dcf",
    "harmless-base/test": "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03",
    "helpful-base/train": "518a5bf288456fc9f3b7c980c54116fba0c52f274d3f4d344675d83e4058f6f4",
    "helpful-base/test": "8be3fc1a13b27901631696f2be6f184c799f1baeaf145f53ac5db24960adc37b",
    "helpful-online/train": "0994d18b82083f5c084ce04071b683958a724df8c7215ab1d851986642d36a2a",
    "helpful-online/test": "39a475cc7e0df972902f8e3a0972726fce826ac65369bda8c671de4330c60a10",
    "helpful-rejection-sampled/train": (
        "0cea2d2ab2187624ec1314e8cc6fb579f0fa987b3a33e8102b7556ed4d255f64"
    ),
    "helpful-rejection-sampled/test": (
        "abc35dbc56015db1dae0faa484514ccbc3eee0133bfcd557fc69250619b028bb"
    ),
}


@dataclasses.dataclass(frozen=True)
class _Published:
    chosen: str
    rejected: str


def dialogues(path: str | os.PathLike) -> list[Dialogues]:
    """Every row of a file such as harmless-base/test.jsonl.gz, whole.

    A row's id is the file's folder and name and its 0-based number: "harmless-base-test-0".

    Raises:
      ValueError: a bad row, with file, line and field.
      OSError: the file cannot be read.
    """
    path = Path(path)
    name = f"{path.parent.name}-{path.name.split('.')[0]}"
    found = []
    for number, (where, row) in enumerate(rows.read(_Published, path)):
        try:
            chosen, rejected = parse(row.chosen), parse(row.rejected)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        found.append(Dialogues(f"{name}-{number}", chosen, rejected))
    return found


def comparisons(path: str | os.PathLike, kind: Kind | None = None) -> list[HumanComparison]:
    """The rows that a preference model reads: a common prompt and one reply each.

    Left out are rows whose dialogues part before their last turn, are the same, or end with an
    empty reply: 9 of the 2,312 of harmless-base/test.

    Args:
      kind: "red_team" or "helpful"; by default as the path's last two names say.

    Raises:
      ValueError: a bad row, or a path that says neither "harmless" nor "helpful".
      OSError: the file cannot be read.
    """
    kind = kind or _kind(Path(path))
    found = [row.comparison(kind) for row in dialogues(path)]
    return [comparison for comparison in found if comparison is not None]


def _kind(path: Path) -> Kind:
    name = f"{path.parent.name}/{path.name}"
    if ("harmless" in name) == ("helpful" in name):
        raise ValueError(f"{path}: neither harmless nor helpful by its name; give the kind.")
    return "red_team" if "harmless" in name else "helpful"


def cards() -> tuple[Dataset, ...]:
    """The four subsets."""
    return tuple(
        Dataset(
            name=f"hh_rlhf/{subset}",
            what="pairs of whole dialogues, one preferred by a person: a prompt and two replies",
            licence="MIT",
            source=f"github.com/{REPOSITORY}, arXiv 2204.05862",
            defects="a few rows part before the last turn, are the same twice or have an empty "
            "reply (left out); some replies go on as the human; prompts repeat",
            row=HumanComparison,
            read=functools.partial(
                comparisons, kind="red_team" if subset == "harmless-base" else "helpful"
            ),
            files=tuple((split, _file(subset, split)) for split in ("train", "test")),
            whole=dialogues,
        )
        for subset in SUBSETS
    )


def _file(subset: str, split: str) -> Published:
    path = f"{subset}/{split}.jsonl.gz"
    url = on_github(REPOSITORY, COMMIT, path, in_lfs=subset != "harmless-base")
    return Published(path, f"github.com/{REPOSITORY}", url, _CHECKSUMS[f"{subset}/{split}"])
