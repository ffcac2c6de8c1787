"""People's choices: kept at once, taken back, never lost; what comes next; what they come to."""

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from reviewed import write_run

from cai_jax import cli
from cai_jax.datasets import prompts as shipped
from cai_jax.evaluation.snapshot_comparisons import read, standing
from cai_jax.records import Comparison, from_json, read_rows
from cai_jax.review import results
from cai_jax.review.choices import SKIP, Choice, Choices, ChoicesError
from cai_jax.review.tasks import attention_checks, comparisons, next_task, shared, tasks_of_runs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(pairs, ties) of a run, in which rl_cai and sl_cai answer one prompt alike."""
    said = {"sl_cai answers 2": "the same", "rl_cai answers 2": "the same"}
    folder = tmp_path_factory.mktemp("written")
    return tasks_of_runs([write_run(folder / "run", text=lambda name: said.get(name, name))])


@pytest.fixture(scope="module")
def checks():
    return attention_checks(shipped.label_pairs())


def test_a_choice_says_which_answer_on_whichever_side():
    for said, swapped, prob in (("1", False, 1), ("2", True, 0), ("3", False, 0), ("4", True, 1)):
        assert Choice("r", "t", swapped, said).prob_a == prob
    assert Choice("r", "t", False, SKIP).prob_a is None


def test_what_stands_is_the_last_word(tmp_path):
    choices = Choices(tmp_path / "ratings.sqlite")
    for said in ("1", "4"):
        choices.add(Choice("ann", "x", False, said))
    choices.add(Choice("bob", "x", True, "2"))
    choices.add(Choice("ann", "y", False, SKIP))
    assert choices.standing() == [
        Choice("ann", "x", False, "4"), Choice("bob", "x", True, "2"),
        Choice("ann", "y", False, SKIP),
    ]  # fmt: skip
    assert choices.undo("ann") == "y" and choices.undo("ann") == "x"
    assert choices.undo("ann") is None  # not back to what she said before that
    assert choices.standing() == [Choice("bob", "x", True, "2")]
    choices.close()
    rows = sqlite3.connect(tmp_path / "ratings.sqlite").execute("SELECT said FROM choices")
    assert [said for (said,) in rows] == ["1", "4", "2", "skip", "undo", "undo"]  # nothing deleted


def test_choices_outlive_a_kill(tmp_path):
    """What was said to be kept is there after kill -9, whenever it comes."""
    file = tmp_path / "ratings.sqlite"
    code = (
        "import sys; from pathlib import Path; from cai_jax.review.choices import *\n"
        "choices = Choices(Path(sys.argv[1]))\n"
        "for n in range(10**6):\n"
        "    choices.add(Choice('ann', str(n), False, '1')); print(n, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE,
                          text=True, cwd=ROOT) as process:  # fmt: skip
        for _ in range(50):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        last = max([last, *map(int, process.stdout.read().split())])
    kept = [int(choice.task) for choice in Choices(file).standing()]
    assert kept[: last + 1] == list(range(last + 1)) and len(kept) <= last + 2


def test_many_threads_write_at_once(tmp_path):
    choices = Choices(tmp_path / "ratings.sqlite")

    def write(rater):
        for n in range(20):
            choices.add(Choice(rater, str(n), False, "1"))

    threads = [threading.Thread(target=write, args=(f"r{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(choices.standing()) == 80


def test_a_file_that_is_something_else_is_refused(tmp_path):
    (tmp_path / "x.sqlite").write_bytes(b"not a database, but long enough to be read as one" * 9)
    with pytest.raises(ChoicesError, match=r"x\.sqlite cannot be used for ratings"):
        Choices(tmp_path / "x.sqlite")
    other = sqlite3.connect(tmp_path / "y.sqlite")
    other.execute("CREATE TABLE notes (text)")
    other.close()
    with pytest.raises(ChoicesError, match="holds no ratings of ours"):
        Choices(tmp_path / "y.sqlite")
    with pytest.raises(ChoicesError, match="cannot be used"):
        Choices(tmp_path)


def test_pairs_are_all_pairs_of_snapshots_and_equal_texts_are_ties(compared):
    pairs, ties = compared
    assert len(pairs) == 3 * 12 - 1 and len({t.id for t in pairs}) == len(pairs)
    (tie,) = ties
    assert {tie.snapshot_a, tie.snapshot_b} == {"SL-CAI", "RL-CAI"} and tie.prob_a == 0.5


def test_nothing_shown_tells_where_an_answer_is_from(compared):
    pairs, _ = compared
    for task in pairs:
        shown = json.dumps({k: v for k, v in task.shown("ann").items() if k not in
                            ("left", "right", "prompt", "instruction")})  # fmt: skip
        assert not any(name in shown for name in ("CAI", "initial", "run", "held out"))
    sides = Counter(task.swapped(f"rater {n}") for task in pairs for n in range(20))
    assert 0.4 < sides[True] / sides.total() < 0.6
    first = pairs[0]
    assert first.shown("ann") == first.shown("ann")
    by_rater = {first.shown(f"rater {n}")["left"] for n in range(20)}
    assert by_rater == {first.answer_a, first.answer_b}


def rated(rater, pairs, checks, standing=(), **how):
    """All that a rater is given, in order, answering all."""
    how = {"check_every": 0, "overlap": 1.0} | how
    standing, seen = list(standing), []
    while task := next_task(rater, pairs, checks, standing, **how):
        seen.append(task)
        standing.append(Choice(rater, task.id, task.swapped(rater), "1"))
    return seen, standing


def test_everybody_rates_everything_once_unless_told_otherwise(compared, checks):
    pairs, _ = compared
    ann, standing = rated("ann", pairs, checks)
    bob, _ = rated("bob", pairs, checks, standing)
    assert ann == bob == pairs
    half, standing = rated("ann", pairs, checks, overlap=0.5)
    rest, _ = rated("bob", pairs, checks, standing, overlap=0.5)
    assert half == pairs  # who comes first rates all that is there
    assert rest == [t for t in pairs if shared(t, 0.5)] and 5 < len(rest) < 30


def test_attention_checks_come_in_between(compared, checks):
    pairs, _ = compared
    seen, _ = rated("ann", pairs, checks, check_every=5)
    places = [n for n, task in enumerate(seen) if task.better]
    assert places == [5, 11, 17, 23, 29, 35]
    assert len({task.id for task in seen}) == len(seen) == len(pairs) + 6
    assert {task.kind for task in checks} == {"red_team", "helpful"}


def test_a_pair_that_was_skipped_by_one_is_left_for_others(compared, checks):
    pairs, _ = compared
    standing = [Choice("ann", pairs[0].id, False, SKIP)]
    assert next_task("ann", pairs, checks, standing, check_every=0, overlap=0.0) == pairs[1]
    assert next_task("bob", pairs, checks, standing, check_every=0, overlap=0.0) == pairs[0]


def judged(compared, checks, rater, better):
    """Choices of a rater who prefers the answer of the snapshot that comes first in `better`."""
    pairs, _ = compared
    found = []
    for task in [*pairs, *checks[:4]]:
        if task.compared:
            a, b = task.compared.snapshot_a, task.compared.snapshot_b
            prefers_a = better.index(a) < better.index(b)
        else:
            prefers_a = rater != "sleepy"
        left = prefers_a != task.swapped(rater)
        found.append(Choice(rater, task.id, task.swapped(rater), "1" if left else "4"))
    return found


def test_results_count_agreement_checks_and_elo(compared, checks):
    pairs, ties = compared
    tasks = {task.id: task for task in [*pairs, *checks]}
    best_last = ["RL-CAI", "SL-CAI", "initial"]
    choices = judged(compared, checks, "ann", best_last)
    choices += judged(compared, checks, "sleepy", best_last[::-1])
    choices += [Choice("ann", "of another run", False, "1")]
    found = results.results(tasks, ties, choices)
    assert (found["choices"], found["skipped"], found["unknown"]) == (70, 0, 1)
    assert found["agreement"]["pairs"] == 35 and found["agreement"]["same"]["value"] == 0
    assert found["agreement"]["alpha"] < 0
    assert found["raters"] == [
        {"name": "ann", "choices": 35, "skipped": 0, "checks": 4, "passed": 4},
        {"name": "sleepy", "choices": 35, "skipped": 0, "checks": 4, "passed": 0},
    ]
    only_ann = results.results(tasks, ties, choices[: len(pairs)])
    elo = only_ann["standings"]["harmlessness"]["elo"]
    assert elo["SL-CAI"]["value"] == 0
    assert elo["initial"]["value"] < -50 and elo["RL-CAI"]["value"] > 50


def test_few_choices_give_no_elo_yet_and_say_why(compared, checks):
    pairs, ties = compared
    tasks = {task.id: task for task in pairs}
    red = [t for t in pairs if t.kind == "red_team"]
    first = next(t for t in red if t.compared.snapshot_a == "initial")
    found = results.results(tasks, ties, [Choice("ann", first.id, False, "1")])["standings"]
    assert set(found) == {"harmlessness"} and set(found["harmlessness"]["elo"]) == {
        "initial", first.compared.snapshot_b
    }  # fmt: skip
    other = next(t for t in pairs if t.kind == "helpful" and t.compared.snapshot_b == "RL-CAI"
                 and t.compared.snapshot_a == "initial")  # fmt: skip
    sl = next(t for t in red if t.compared.snapshot_b == "SL-CAI")
    said = [Choice("ann", task.id, False, "1") for task in (sl, other)]
    found = results.results(tasks, [], said)["standings"]
    assert found["helpfulness"]["elo"] == {} and "SL-CAI" in found["helpfulness"]["why"]
    assert results.results(tasks, ties, [])["standings"] == {}


def test_exports_are_what_other_stages_read(compared, checks, tmp_path):
    """Elo from the exported file is the page's; Comparison records say who was right."""
    pairs, ties = compared
    tasks = {task.id: task for task in [*pairs, *checks]}
    choices = judged(compared, checks, "ann", ["SL-CAI", "RL-CAI", "initial"])
    file = tmp_path / "snapshot_comparisons.jsonl"
    file.write_text(results.snapshot_lines(tasks, ties, choices), "utf-8")
    made = read(file)
    assert len(made) == len(pairs) + 1 and {c.judge for c in made} == {"ann", "the same text"}
    shown = results.results(tasks, ties, choices)["standings"]
    for kind, name in (("red_team", "harmlessness"), ("helpful", "helpfulness")):
        elo = standing(made, kind, "SL-CAI", True, 0, results.RESAMPLES).elo
        assert {k: vars(v) for k, v in elo.items()} == shown[name]["elo"]
    lines = tmp_path / "comparisons.jsonl"
    lines.write_text(results.comparison_lines(tasks, choices), "utf-8")
    kept = [from_json(Comparison, row, where) for where, row in read_rows(lines)]
    assert len(kept) == len(pairs) and {c.source for c in kept} == {"human"}
    for record, c in zip(kept, comparisons(tasks, choices), strict=True):
        order = ["SL-CAI", "RL-CAI", "initial"]
        assert (record.prob_a == 1) == (order.index(c.snapshot_a) < order.index(c.snapshot_b))


def test_people_are_a_judge_of_evaluate_and_of_figures(checks, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    pairs, ties = tasks_of_runs([run])
    tasks = {task.id: task for task in [*pairs, *checks]}
    choices = judged((pairs, ties), checks, "ann", ["RL-CAI", "SL-CAI", "initial"])
    file = tmp_path / "people.jsonl"
    file.write_text(results.snapshot_lines(tasks, ties, choices), "utf-8")
    evaluate = ["evaluate", f"--config={ROOT / 'experiments' / 'snapshots.py'}",
                f"--workdir={tmp_path / 'judged'}", f"--config.records={file}"]  # fmt: skip
    assert cli.main([*evaluate, f"--config.runs={run}"]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "judged" / "results.json").read_text())
    shown = results.results(tasks, ties, choices)["standings"]["harmlessness"]["elo"]
    elo = found["standings"]["red_team"]["elo"]
    assert {k: pytest.approx(v) for k, v in shown.items()} == elo
    for figure in (2, 3, 8):
        argv = ["figures", f"--figure={figure}", f"--runs={tmp_path / 'judged'}"]
        assert cli.main([*argv, f"--workdir={tmp_path / 'figures'}"]) == 0, capsys.readouterr().err
    other = write_run(tmp_path / "other")
    assert cli.main([*evaluate, f"--config.runs={run},{other}"]) == 2
    assert "which is no snapshot of config.runs" in capsys.readouterr().err


def test_an_evaluation_that_is_not_finished_gives_no_pairs(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "evaluation" / "done.json").unlink()
    with pytest.raises(ValueError, match="has no finished 'evaluation'"):
        tasks_of_runs([run])
