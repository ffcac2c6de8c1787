"""A data set's card, and what is counted in the files at hand."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path

from cai_jax.conversation import Conversation
from cai_jax.datasets import splits
from cai_jax.datasets.card import Dataset
from cai_jax.datasets.files import Published, is_as_published


def card(dataset: Dataset, folder: Path, against: Path | None = None) -> str:
    """The card of a data set, then a paragraph for each of its files.

    Args:
      folder: of the publisher's files; a file for a data set of the user's.
      against: another file of the same form, whose first human turns are looked for in each half.

    Raises:
      ValueError: a bad row, with file, line and field.
      OSError: a file cannot be read.
    """
    fields = ", ".join(field.name for field in dataclasses.fields(dataset.row))
    lines = [dataset.name]
    for name, text in (
        ("what", dataset.what),
        ("row", f"{dataset.row.__name__}: {fields}"),
        ("licence", dataset.licence),
        ("source", dataset.source),
        ("defects", dataset.defects),
    ):
        lines += textwrap.wrap(f"  {name:<9}{text}", 100, subsequent_indent=" " * 11)
    if not dataset.files:
        return "\n".join(lines + (_counts(dataset, folder, against) if folder.is_file() else []))
    paths = dataset.paths(folder)
    for split, file in dataset.files:
        if split in paths:
            lines.append(f"  {split or 'all':<9}{paths[split]}, {_state(file, paths[split])}")
            lines += _counts(dataset, paths[split], against)
        else:
            lines.append(f"  {split or 'all':<9}{_missing(dataset, file, folder)}")
    if {"train", "test"} <= paths.keys():
        train, test = (dataset.read(paths[split]) for split in ("train", "test"))
        common = splits.shared(train, test)
        lines.append(
            f"  {len(common):,} first human turns stand in both; {len(train):,} rows of train are "
            f"{len(splits.without(train, test)):,} without them"
        )
    return "\n".join(lines)


def at_hand(dataset: Dataset, folder: Path) -> str:
    """One line for a list: name, how many of its files are at hand, what it is."""
    have = f"{len(dataset.paths(folder))}/{len(dataset.files)}" if dataset.files else "yours"
    return f"{dataset.name:<34}{have:<7}{dataset.what}"


def _state(file: Published, path: Path) -> str:
    if not file.checksum:
        return "no checksum known"
    return "as published" if is_as_published(file, path) else "NOT as published"


def _missing(dataset: Dataset, file: Published, folder: Path) -> str:
    how = f"`cai-jax fetch {dataset.name}`, or " if file.url else ""
    return f"{file.path} is not in {folder}: {how}get it from {file.home}"


def _counts(dataset: Dataset, path: Path, against: Path | None) -> list[str]:
    rows = dataset.read(path)
    whole = dataset.whole(path) if dataset.whole else rows
    first = {splits.first_turn(row) for row in rows}
    turns = sorted(len(_conversation(row).turns) for row in rows)
    told = [f"{len(rows):,} rows"]
    if len(whole) > len(rows):
        told[0] += f" of {len(whole):,}, {len(whole) - len(rows):,} left out"
    told.append(f"{len(first):,} different first human turns")
    told.append(f"{turns[0]} to {turns[-1]} turns, median {turns[len(turns) // 2]}")
    lines = [f"{'':11}{'; '.join(told)}"]
    if against is not None:
        others = {splits.first_turn(row) for row in dataset.read(against)}
        among = sum(splits.first_turn(row) in others for row in rows)
        lines.append(
            f"{'':11}{len(first & others):,} of these first human turns, in {among:,} rows, "
            f"are also in {against}"
        )
    return lines


def _conversation(row) -> Conversation:
    return getattr(row, "conversation", None) or row.prompt
