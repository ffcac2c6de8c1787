import io
import re

import pytest

from cai_jax import progress
from cai_jax.evaluation.intervals import Interval
from cai_jax.pipeline import counter
from cai_jax.progress import Progress, ResultRow


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def shown(do, terminal=False, clock=None):
    file = io.StringIO()
    with Progress(file, terminal=terminal, clock=clock or Clock()) as run:
        do(run)
    return file.getvalue()


def test_a_log_gets_lines_at_start_end_and_every_20_seconds(clock):
    def do(run):
        with run.stage("Revise", total=100, unit="prompts") as stage:
            for _ in range(100):
                clock.now += 0.5
                stage.advance(tokens=50)

    assert shown(do, clock=clock).splitlines() == [
        "Revise: 100 prompts",
        "Revise: 40/100 prompts, 100 tok/s, 0:20, 0:30 left",
        "Revise: 80/100 prompts, 100 tok/s, 0:40, 0:10 left",
        "✓ Revise: done, 100/100 prompts, 0:50, 100 tok/s",
    ]


def test_items_of_a_former_run_do_not_count_in_the_rate(clock):
    def do(run):
        with run.stage("PPO", total=10, unit="updates", done=4) as stage:
            clock.now = 30
            stage.advance(3, note="kl 0.10")
            clock.now = 3690

    assert shown(do, clock=clock).splitlines() == [
        "PPO: 10 updates (4 from a former run)",
        "PPO: 7/10 updates, 0.10 updates/s, 0:30, 0:30 left, kl 0.10",
        "✓ PPO: done, 7/10 updates, 1:01:30, 0.00 updates/s",
    ]


def test_a_stage_may_be_told_of_more_than_was_known_when_it_began():
    with Progress(io.StringIO()) as shown, shown.stage("labels", 2, "askings") as bar:
        counter(bar)(8, 32)
        assert (bar.done, bar.total) == (8, 32)
        counter(bar)(32, 32)


def test_a_failing_stage_says_stopped():
    def do(run):
        with pytest.raises(KeyError), run.stage("PPO", total=2):
            raise KeyError

    assert shown(do).splitlines()[-1] == "✗ PPO: stopped, 0/2 items, 0:00"


def test_a_log_holds_no_control_codes():
    def do(run):
        run.show_chain("a", "b", "c", "d")
        with run.stage("s", 1) as stage:
            stage.advance()

    assert "\x1b" not in shown(do) and "\r" not in shown(do)


def test_a_terminal_gets_a_bar_with_rate_and_time_left(clock):
    def do(run):
        with run.stage("Revise", total=10, unit="prompts") as stage:
            clock.now = 10
            stage.advance(5, note="loss 2.00")
            run._bars.refresh()

    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(do, terminal=True, clock=clock))
    assert "5/10 prompts" in text and "0.50 prompts/s" in text and "0:10 left" in text
    assert (
        text.rstrip()
        .splitlines()[-1]
        .endswith("✓ Revise: done, 5/10 prompts, 0:10, 0.50 prompts/s")
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_text_is_never_markup_and_never_drives_the_terminal(terminal):
    text = "[bold]x[/bold] [/] [link=http://a]\x1b[2J\x1b]0;title\x07\rover"

    def do(run):
        run.say(text)
        run.show_chain(text, text, text, text)
        row = ResultRow(text[:20], (Interval(1, 1, 1, 1),), "whole", note=text)
        run.results_table(text, ["[red]c"], [row], [text])
        with run.stage("[bold]s", 1) as stage:
            stage.advance(note="[bold]n")

    output = shown(do, terminal=terminal)
    assert output.count("[bold]x[/bold] [/] [link=http://a]") >= 7
    assert "\x1b[2J" not in output and "\x07" not in output and "\x1b]0;" not in output
    assert "[red]c" in output and "[bold]s" in output


def test_chain_names_its_parts_in_order_and_cuts_long_ones():
    output = shown(lambda run: run.show_chain("P" * 5, "R" * 1000, "", "V"))
    places = [output.index(name) for name in ("Prompt", "Response", "Critique", "Revision")]
    assert places == sorted(places)
    assert output.count("R") == 600 + 2 and "(400 more characters)" in output
    assert "(empty)" in output


@pytest.mark.parametrize(
    ("cell", "style", "text"),
    [
        (Interval(0.375, 0.2, 0.5, 24), "share", "38% [20, 50]"),
        (Interval(1.2, 0.9, 1.514, 24), "number", "1.20 [0.90, 1.51]"),
        (Interval(-104.4, -120.0, -0.2, 24), "whole", "-104 [-120, 0]"),
        (Interval(0.0, 0.0, 0.0, 24), "whole", "0"),
        (Interval(float("nan"), 0.0, 1.0, 0), "share", "-"),
        (None, "share", "-"),
    ],
)
def test_format_estimate(cell, style, text):
    assert progress.format_estimate(cell, style) == text


def test_results_table():
    rows = [
        ResultRow("PM score", (Interval(1, 0.5, 1.5, 24), None), "number", "Own PM."),
        ResultRow("refusals", (Interval(0.5, 0.3, 0.7, 24), Interval(1, 0.8, 1, 48)), "share"),
        ResultRow("PM score 2", (None, None), "number", "Own PM."),
    ]
    output = shown(lambda run: run.results_table("T", ["initial", "SL-CAI"], rows, ["Seed 0."]))
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    assert lines[0] == "T" and lines[1].split() == ["initial", "SL-CAI", "n"]
    assert re.fullmatch(r"PM score \[1\] +1.00 \[0.50, 1.50\] +- +24", lines[3])
    assert re.fullmatch(r"refusals +50% \[30, 70\] +100% \[80, 100\] +24-48", lines[4])
    assert lines[5].startswith("PM score 2 [1]")
    assert lines[6:] == ["[1] Own PM.", "Seed 0."]


def test_a_row_with_the_wrong_number_of_cells():
    row = ResultRow("x", (None,), "share")
    with pytest.raises(ValueError, match=r"Row 'x' has 1 cells for 2 columns."):
        shown(lambda run: run.results_table("T", ["a", "b"], [row]))
