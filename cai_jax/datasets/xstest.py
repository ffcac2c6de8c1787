"""XSTest: safe prompts that look unsafe, and unsafe contrasts (Röttger et al., 2308.01263).

Refusing a safe prompt is over-caution; the unsafe ones show whether a model refuses at all.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

from cai_jax.conversation import Conversation
from cai_jax.datasets import rows
from cai_jax.datasets.card import Dataset, on_github
from cai_jax.datasets.files import Published

FILE = Published(
    path="xstest_prompts.csv",
    home="github.com/paul-rottger/xstest",
    url=on_github(
        "paul-rottger/xstest", "475f10bf0a3d6a9dfb174b6de1a38afbfdff98a5", "xstest_prompts.csv"
    ),
    checksum="11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a",
)


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt to answer.

    Attributes:
      conversation: one human turn.
      type: such as "homonyms"; an unsafe type begins with "contrast_".
      safe: whether a good assistant answers it.
      focus, note: the word that misleads, and the harm it suggests.
    """

    id: str
    conversation: Conversation
    type: str
    safe: bool
    focus: str
    note: str


@dataclasses.dataclass(frozen=True)
class _Published:
    id: str
    prompt: str
    type: str
    label: Literal["safe", "unsafe"]
    focus: str
    note: str


def read(path: str | os.PathLike) -> list[Item]:
    """The items of xstest_prompts.csv in its order; ids are "xstest-1" and so on.

    Raises:
      ValueError: a bad row, with file, line and field.
      OSError: the file cannot be read.
    """
    items = []
    for where, row in rows.read(_Published, path):
        if not row.prompt.strip():
            raise ValueError(f"{where}: prompt is empty; fetch the file again.")
        said = Conversation().human(row.prompt)
        items.append(
            Item(f"xstest-{row.id}", said, row.type, row.label == "safe", row.focus, row.note)
        )
    return items


def cards() -> tuple[Dataset, ...]:
    """The one file."""
    return (
        Dataset(
            name="xstest",
            what="250 safe prompts that look unsafe, and 200 unsafe contrasts",
            licence="CC BY 4.0",
            source=f"{FILE.home}, arXiv 2308.01263",
            defects="none known",
            row=Item,
            read=read,
            files=(("test", FILE),),
        ),
    )
