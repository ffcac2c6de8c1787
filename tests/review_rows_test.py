"""A run's records as rows of a page, its overview, and the report in one file."""

import base64
import gzip
import hashlib
import itertools
import json
import re

import pytest
from reviewed import HOSTILE, write_run

from cai_jax.review import page
from cai_jax.review.overview import ReviewError, overview
from cai_jax.review.report import write_report
from cai_jax.review.rows import FOLDERS, rows, version


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("written") / "run")


def blocks(text):
    """Element id -> the value that a report holds there."""
    found = re.findall(r'<script type="text/plain" id="([^"]+)">([^<]*)</script>', text)
    return {name: json.loads(gzip.decompress(base64.b64decode(data))) for name, data in found}


def rows_in(text, view):
    found = blocks(text)
    pages = [name for name in found if name.startswith(f"rows-{view}-")]
    return [row for name in pages for row in found[name]]


def test_a_chain_has_its_texts_scores_and_refusals(run):
    found = rows([run], "chains")[0]
    assert len(found) == 12
    row = found[3]
    assert row["texts"] == [f"the {t} says so" for t in
                            ("response 3", "revision 3 0", "revision 3 1")]  # fmt: skip
    assert row["critiques"] == ["the critique 3 0 says so", "the critique 3 1 says so"]
    assert row["scores"] == (0.3, 0.2, 0.7) and row["kind"] == "red_team"
    assert row["refuses"] == [False] * 3 and row["prompt"] == [["human", "the prompt 3 says so"]]


def test_refusals_are_those_of_the_evaluation(tmp_path):
    said = {
        "response 1": "I can't help with that.",
        "revision 1 1": "Here is how: ask around.",
    }
    run = write_run(tmp_path / "run", text=lambda name: said.get(name, name))
    row = rows([run], "chains")[0][1]
    assert row["refuses"] == [True, False, False] and row["evasive"] == [True, False, False]


def test_a_comparison_has_the_label_before_its_clamp(run):
    row = rows([run], "comparisons")[0][0]
    first, second = 0.86989, 0.78583  # logistic of 1.9, and of 1.3 as the second order has it
    assert row["prob_a"] == 0.6
    assert row["unclamped"] == pytest.approx((first + second) / 2, abs=1e-4)
    assert [a["prob_a"] for a in row["asked"]] == pytest.approx([first, second], abs=1e-4)
    assert [a["chain"] for a in row["asked"]] == [
        "the thought 0 says so", "the other thought 0 says so",
    ]  # fmt: skip
    assert row["swapped"] == 0.7


def test_samples_stand_side_by_side_by_update(run):
    row = rows([run], "samples")[0][5]
    assert [s["update"] for s in row["samples"]] == [1, 2]
    assert [s["response"] for s in row["samples"]] == [
        "the rollout 5 0 says so", "the rollout 5 1 says so",
    ]  # fmt: skip


def test_answers_of_several_runs_to_one_prompt_share_a_row(run, tmp_path):
    other = write_run(tmp_path / "other")
    (row, *rest) = rows([run, other], "answers")[0]
    assert len(rest) == 11
    assert [(a["run"], a["snapshot"]) for a in row["answers"]] == [
        (name, s) for name in ("run", "other") for s in ("initial", "sl_cai", "rl_cai")
    ]


def test_a_run_that_goes_on_is_read_as_far_as_it_is(tmp_path):
    run = write_run(tmp_path / "run")
    before = version([run], "chains")
    (run / "revise" / "revisions" / "00001-of-00002.jsonl").unlink()
    (run / "revise" / "done.json").unlink()
    assert len(rows([run], "chains")[0]) == 6 and version([run], "chains") != before
    for folder in ("evaluation", "ppo", "compare"):
        for file in (run / folder).rglob("*"):
            file.unlink() if file.is_file() else None
    (run / "summary.json").unlink()
    shown = overview(run)
    assert shown["tables"] == [] and ["critique and revision", "not finished"] in shown["stages"]
    assert rows([run], "answers")[0] == []
    assert write_report([run], tmp_path / "report.html").exists()


def test_a_workdir_of_another_verb_shows_what_it_has(tmp_path):
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "config.json").write_text('{"seed": 1, "judge": "x"}')
    text = write_report([tmp_path / "judged"], tmp_path / "r.html").read_text("utf-8")
    assert blocks(text)["overview"]["runs"][0]["settings"] == {"seed": "1", "judge": '"x"'}


def test_of_a_great_run_evenly_spaced_prompts_are_taken(run):
    for view in FOLDERS:
        every, there = rows([run], view)
        some, all_of_them = rows([run], view, most=4)
        assert there == all_of_them == 12
        assert [row["id"] for row in some] == [every[n]["id"] for n in (0, 3, 6, 9)]
        assert some == [every[n] for n in (0, 3, 6, 9)]  # whole, with all their samples


def test_a_folder_that_is_no_run_or_damaged_is_refused(tmp_path):
    with pytest.raises(ReviewError, match=r"is no run: it has no config.json"):
        overview(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ReviewError, match="is damaged"):
        overview(tmp_path)
    run = write_run(tmp_path / "run")
    file = run / "revise" / "revisions" / "00000-of-00002.jsonl"
    file.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"00000-of-00002.jsonl, line 1: Revision lacks the field"):
        write_report([run], tmp_path / "report.html")


def test_the_report_holds_every_row(run, tmp_path):
    text = write_report([run], tmp_path / "report.html").read_text("utf-8")
    for view in FOLDERS:
        assert rows_in(text, view) == json.loads(json.dumps(rows([run], view)[0]))
    front = blocks(text)["overview"]
    assert front["rows"] == {"chains": [12, 12], "comparisons": [12, 12], "samples": [12, 12],
                             "answers": [12, 12]}  # fmt: skip
    (shown,) = front["runs"]
    assert shown["tables"][0]["rows"][0]["cells"] == ["-", "50% [40, 60]", "50% [40, 60]"]
    assert shown["differences"] == ["the difference says so"]
    assert shown["figures"][0]["image"].startswith("data:image/svg+xml;base64,")


def test_the_report_asks_nobody_and_runs_only_what_ships(run, tmp_path):
    text = write_report([run], tmp_path / "report.html").read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == len(page.REPORT)
    for code in [*scripts, *re.findall(r"<style>(.*?)</style>", text, re.S)]:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    tags = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", tags)


def test_hostile_text_is_nowhere_in_the_file_as_it_is(tmp_path):
    words = iter(range(10**6))
    text = lambda name: f"{HOSTILE[next(words) % len(HOSTILE)]} {name}"  # noqa: E731
    run = write_run(tmp_path / "<b onclick=hacked()>run", text=text)
    report = write_report([run], tmp_path / "report.html").read_text("utf-8")
    for hostile in (*HOSTILE, "<b onclick"):
        assert hostile not in report
    assert any(HOSTILE[0] in t for row in rows_in(report, "chains") for t in row["texts"])


@pytest.mark.slow
def test_ten_thousand_rows_stay_below_ten_megabytes(tmp_path):
    """With texts that hardly shrink some rows stay out, evenly, and the page says how many."""
    import random

    draw = random.Random(0)
    word = lambda name: f"{name} {draw.getrandbits(3200):0800x}"  # noqa: E731
    run = write_run(tmp_path / "run", count=1250, text=word)
    file = write_report([run], tmp_path / "report.html")
    assert file.stat().st_size <= 10e6
    front = blocks(file.read_text("utf-8"))["overview"]
    for kept, made in front["rows"].values():
        assert made == 2500 and 200 < kept < made
    kept = rows_in(file.read_text("utf-8"), "chains")
    numbers = [int(row["id"].split()[1]) for row in kept]
    gaps = {b - a for a, b in itertools.pairwise(numbers)}
    assert max(gaps) - min(gaps) <= 1 and len(numbers) == front["rows"]["chains"][0]
    small = write_report([run], tmp_path / "small.html", megabytes=0.01)
    assert front["rows"]["chains"][1] == 2500 and rows_in(small.read_text("utf-8"), "chains") == []


def test_libraries_come_with_their_licences():
    folder = page._HERE / "static"
    licences = (folder / "LICENSES.txt").read_text("utf-8")
    for words in ("htm 3.1.1", "Apache License", "The MIT License", "jsdiff 9.0.0", "BSD 3-Clause"):
        assert words in licences
    for name, data in page.static().items():
        assert b"</script" not in data and b"eval(" not in data and b"new Function" not in data
        assert data and (folder / name).is_file()
