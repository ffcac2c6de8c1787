"""What a run shows while it works: stage bars, sample chains, the results table.

Of several hosts the first alone does.

On a terminal, a live bar for each running stage; elsewhere (a log, CI) plain lines without control
codes: one when a stage starts, one when it ends, one about every 20 seconds between. Text from
users and models is shown as it is: it is never read as markup, and control characters are replaced.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

import rich.progress
from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from cai_jax import hosts

SECONDS_BETWEEN_LINES = 20.0
LOG_WIDTH = 110
CHAIN_CHARACTERS = 600


class Estimate(Protocol):
    """A number with its interval; `evaluation.intervals.Interval` is one."""

    value: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """One line of the results table.

    Attributes:
      label: what is measured, its direction included, such as "refusal rate".
      cells: one estimate for each column; None where it does not apply.
      style: "share" shows percent, "number" two decimals, "whole" none; or one for each cell.
      note: a footnote, printed below the table under a number.
    """

    label: str
    cells: tuple[Estimate | None, ...]
    style: str | tuple[str, ...]
    note: str = ""


class Stage:
    """One running stage; made by `Progress.stage`."""

    def __init__(self, name: str, total: int, unit: str, done: int, clock: Callable[[], float]):
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self.tokens = 0
        self.note = ""
        self._skipped = done
        self._clock = clock
        self._start = clock()
        self._changed: Callable[[Stage], None] = lambda stage: None
        self._advanced: Callable[[], None] = lambda: None

    def advance(self, items: float = 1, tokens: int = 0, note: str | None = None) -> None:
        """Counts `items` as done; with `tokens` the rate is shown in tokens.

        Args:
          note: replaces the short text at the bar's end, such as "loss 2.31".
        """
        self.done += items
        self.tokens += tokens
        if note is not None:
            self.note = note
        self._advanced()
        self._changed(self)

    @property
    def elapsed(self) -> float:
        """Seconds since the stage started."""
        return self._clock() - self._start

    @property
    def rate(self) -> str:
        """Tokens or items a second since the start; items a former run made don't count."""
        count, unit = (
            (self.tokens, "tok") if self.tokens else (self.done - self._skipped, self.unit)
        )
        if not count or self.elapsed <= 0:
            return ""
        return f"{_three_digits(count / self.elapsed)} {unit}/s"

    @property
    def left(self) -> str:
        """Time left at the present rate, empty while unknown."""
        fresh = self.done - self._skipped
        if fresh <= 0 or self.done >= self.total:
            return ""
        return _duration(self.elapsed / fresh * (self.total - self.done))


class Progress:
    """Shows a run. Use as a context: `with Progress() as progress, progress.stage(...) as stage`.

    Args:
      file: where to write, standard output if None.
      terminal: whether to draw live bars; None asks the file.
      clock: seconds, for tests.

    Attributes: first_step, when a stage's first item was done, in seconds since the epoch, or None.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        plain = {"file": file, "highlight": False, "markup": False, "quiet": not hosts.first()}
        console = Console(force_terminal=terminal, **plain)
        if not console.is_terminal:
            console = Console(force_terminal=False, width=LOG_WIDTH, color_system=None, **plain)
        self.console = console
        self.first_step: float | None = None
        self._clock = clock
        self._bars = rich.progress.Progress(
            rich.progress.SpinnerColumn(style="cyan"),
            _column("{task.description}", "bold"),
            rich.progress.BarColumn(bar_width=18, complete_style="cyan", finished_style="cyan"),
            _column("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            _column("{task.fields[rate]}", "green"),
            rich.progress.TimeElapsedColumn(),
            _column("{task.fields[left]}", "magenta"),
            _column("{task.fields[note]}", "dim"),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *error) -> None:
        self._bars.stop()

    def say(self, text: str, style: str = "") -> None:
        """Prints a line of plain text above the bars."""
        self.console.print(Text(visible(text), style=style))

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "items", done: int = 0) -> Iterator[Stage]:
        """A stage of `total` items, of which `done` were made by a former run."""
        stage = Stage(visible(name), total, unit, done, self._clock)
        stage._advanced = self._advanced
        show = self._live_stage if self.console.is_terminal else self._logged_stage
        ended = "stopped"
        close = show(stage)
        try:
            yield stage
            ended = "done"
        finally:
            close()
            parts = [f"{stage.done:.0f}/{stage.total} {unit}", _duration(stage.elapsed), stage.rate]
            mark, style = ("✓ ", "green") if ended == "done" else ("✗ ", "red")
            rest = f": {ended}, " + ", ".join(filter(None, parts))
            self.console.print(Text.assemble((mark, style), (stage.name, "bold"), rest))

    def _advanced(self) -> None:
        if self.first_step is None:
            self.first_step = time.time()

    def _live_stage(self, stage: Stage) -> Callable[[], None]:
        task = self._bars.add_task(
            stage.name, total=stage.total, completed=stage.done, unit=stage.unit,
            rate="", left="", note="",
        )  # fmt: skip

        def changed(stage: Stage) -> None:
            left = f"{stage.left} left" if stage.left else ""
            note = visible(stage.note)
            self._bars.update(task, completed=stage.done, rate=stage.rate, left=left, note=note)

        stage._changed = changed

        def close() -> None:
            self._bars.remove_task(task)
            self._bars.refresh()

        return close

    def _logged_stage(self, stage: Stage) -> Callable[[], None]:
        resumed = f" ({stage.done:.0f} from a former run)" if stage.done else ""
        self.say(f"{stage.name}: {stage.total} {stage.unit}{resumed}")
        last = self._clock()

        def changed(stage: Stage) -> None:
            nonlocal last
            if self._clock() - last < SECONDS_BETWEEN_LINES or stage.done >= stage.total:
                return
            last = self._clock()
            left = f"{stage.left} left" if stage.left else ""
            counts = f"{stage.done:.0f}/{stage.total} {stage.unit}"
            parts = [counts, stage.rate, _duration(stage.elapsed), left, stage.note]
            self.say(f"{stage.name}: " + ", ".join(filter(None, parts)))

        stage._changed = changed
        return lambda: None

    def show_chain(self, prompt: str, response: str, critique: str | None, revision: str) -> None:
        """Prints one prompt, response, critique (unless None) and revision, long ones cut."""
        parts = []
        for name, style, text in (
            ("Prompt", "bold", prompt),
            ("Response", "yellow", response),
            ("Critique", "magenta", critique),
            ("Revision", "green", revision),
        ):
            if text is None:
                continue
            parts.append(Rule(Text(name, style=style), align="left", style="dim"))
            parts.append(Text(_cut(visible(text).strip()) or "(empty)"))
        self.console.print(Panel(Group(*parts), box=box.ROUNDED, border_style="dim"))

    def results_table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[ResultRow],
        footnotes: Sequence[str] = (),
    ) -> None:
        """Prints the table, intervals in brackets; `footnotes` follow the rows' numbered notes.

        Raises:
          ValueError: a row has not one cell for each column.
        """
        table = Table(box=box.SIMPLE_HEAVY, title=Text(visible(title), style="bold"))
        table.add_column("")
        for column in columns:
            table.add_column(Text(visible(column)), justify="right", no_wrap=True)
        table.add_column("n", justify="right", style="dim", no_wrap=True)
        notes = list(dict.fromkeys(row.note for row in rows if row.note))
        for row in rows:
            if len(row.cells) != len(columns):
                raise ValueError(
                    f"Row {row.label!r} has {len(row.cells)} cells for {len(columns)} columns."
                )
            mark = f" [{notes.index(row.note) + 1}]" if row.note else ""
            styles = row.style
            if isinstance(styles, str):
                styles = (styles,) * len(columns)
            sizes = sorted({cell.n for cell in row.cells if cell is not None})
            table.add_row(
                Text(visible(row.label + mark)),
                *map(format_estimate, row.cells, styles),
                "-".join(str(n) for n in sizes[:: max(1, len(sizes) - 1)]),
            )
        self.console.print(table)
        for number, note in enumerate(notes, start=1):
            self.say(f"  [{number}] {note}")
        for footnote in footnotes:
            self.say(f"  {footnote}")


def format_estimate(cell: Estimate | None, style: str) -> str:
    """An estimate for a reader: "38% [26, 51]", "1.20 [0.90, 1.51]", or a dash for None or NaN.

    Args:
      style: "share", "number" or "whole", as in ResultRow. An interval without width is left out.
    """
    if cell is None or math.isnan(cell.value):
        return "-"
    scale, decimals, unit = {"share": (100, 0, "%"), "number": (1, 2, ""), "whole": (1, 0, "")}[
        style
    ]
    value, low, high = (
        f"{round(scale * x, decimals) + 0.0:.{decimals}f}"
        for x in (cell.value, cell.low, cell.high)
    )
    if cell.low == cell.high or math.isnan(cell.low):
        return f"{value}{unit}"
    return f"{value}{unit} [{low}, {high}]"


def _column(template: str, style: str = "none") -> rich.progress.TextColumn:
    return rich.progress.TextColumn(template, style=style, markup=False)


def visible(text: str) -> str:
    """Control characters (escape sequences, carriage returns) become the replacement mark."""
    text = text.replace("\r\n", "\n")
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _cut(text: str) -> str:
    if len(text) <= CHAIN_CHARACTERS:
        return text
    return (
        f"{text[:CHAIN_CHARACTERS].rstrip()} ... ({len(text) - CHAIN_CHARACTERS} more characters)"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _three_digits(number: float) -> str:
    return (
        f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
    )
