"""What a chat shows: replies as they are written, two side by side, and what a revision changed."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cai_jax.progress import visible

Show = Callable[[int, str, bool], None]  # (which reply, its text so far, whether that is all)


class Screen(Protocol):
    """Where replies go."""

    def replies(self, titles: Sequence[str]) -> contextlib.AbstractContextManager[Show]:
        """While open, shows one reply, or one beside another; alone its title may be empty."""

    def difference(self, before: str, after: str) -> None:
        """What changed, word by word."""


class Pipe:
    """Plain text: a reply as it is written, each under its title, the next after it."""

    @contextlib.contextmanager
    def replies(self, titles: Sequence[str]) -> Iterator[Show]:
        written: list[str | None] = [None] * len(titles)

        def show(place: int, text: str, whole: bool) -> None:
            if written[place] is None and titles[place]:
                print(f"[{titles[place]}]", flush=True)
            # A stripped reply may be shorter than what stood there while it was written.
            print(text[len(written[place] or "") :], end="\n" if whole else "", flush=True)
            written[place] = text

        yield show

    def difference(self, before: str, after: str) -> None:
        marks = {"removed": ("[-", "-]"), "added": ("{+", "+}"), "": ("", "")}
        for how, text in differences(before, after):
            print(marks[how][0] + text + marks[how][1], end="")
        print(flush=True)


class Terminal:
    """Colours, and columns for two replies."""

    def __init__(self):
        self._console = Console(highlight=False, markup=False)

    @contextlib.contextmanager
    def replies(self, titles: Sequence[str]) -> Iterator[Show]:
        texts = [""] * len(titles)

        def drawn() -> Table:
            table = Table(box=None, expand=True, padding=(0, 1), show_header=any(titles))
            for title in titles:
                table.add_column(Text(title, style="cyan"), ratio=1, overflow="fold")
            table.add_row(*(Text(visible(text)) for text in texts))
            return table

        with Live(
            drawn(), console=self._console, auto_refresh=False, vertical_overflow="visible"
        ) as live:

            def show(place: int, text: str, whole: bool) -> None:
                texts[place] = text
                live.update(drawn(), refresh=True)

            yield show

    def difference(self, before: str, after: str) -> None:
        styles = {"removed": "red strike", "added": "green underline", "": ""}
        parts = [(visible(text), styles[how]) for how, text in differences(before, after)]
        self._console.print(Text.assemble(*parts))


def differences(before: str, after: str) -> list[tuple[str, str]]:
    """("removed", "added" or "", text) in order; without what was removed it is `after`."""
    old, new = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    found = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for _, i, j, k, m in matcher.get_opcodes():
        same = old[i:j] == new[k:m]
        found += [("removed", "".join(old[i:j]))] if j > i and not same else []
        found += [("" if same else "added", "".join(new[k:m]))] if m > k else []
    return found
