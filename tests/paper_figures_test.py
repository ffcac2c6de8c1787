"""The paper's figures from records that the tests write: their numbers, captions and complaints."""

import csv
import json
from pathlib import Path

import pytest

from cai_jax import cli
from cai_jax.conversation import Conversation
from cai_jax.evaluation.goodhart import Baseline
from cai_jax.evaluation.harmfulness import Harmfulness
from cai_jax.evaluation.multiple_choice import Choice
from cai_jax.evaluation.scored_pairs import ScoredPair
from cai_jax.figures import paper_values, style
from cai_jax.figures.command import FIGURES
from cai_jax.records import Provenance
from cai_jax.shards import Shards
from cai_jax.training.rollout import Sampled

SHARED = Path(__file__).parents[2] / "shared" / "data" / "paper-figures.json"
SOURCE = Provenance("model@0", "test@0", 0, "")


def interval(value, n=24):
    return {"value": value, "low": value - 5, "high": value + 5, "n": n}


def write(folder: Path, name: str, value) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def noted(folder: Path, **config) -> None:
    write(folder, "config.json", {"seed": 3, "model": "hub/small", **config})
    write(folder, "environment.json", {"devices": ["cpu"], "cpus": 2})


def a_run(
    folder: Path, parameters: int, principles: int = 2, critique: bool = True, **revisions
) -> Path:
    """What a finished run leaves, as far as figures read it."""
    noted(folder, ppo={"updates": 3, "batch_size": 4})
    watched(folder)
    by = {"initial": interval(-20.0), "sl_cai": interval(0.0), "rl_cai": interval(30.0)}
    names = ("helpfulness Elo", "harmlessness Elo")
    results = {
        "parameters": parameters,
        "snapshots": [{"name": name, "style": "whole", "by_snapshot": by} for name in names],
        "pm_by_revision": [interval(1.0), interval(1.5), interval(1.75)],
        "revisions": {
            "prompts": 24,
            "critique": critique,
            "principles": principles,
            "diversity": [
                {m: interval(0.1 * k, 23) for m in ("self_bleu", "distinct_2", "spread")}
                for k in range(3)
            ],
            **revisions,
        },
    }
    write(folder, "evaluation/results.json", results)
    pairs = [ScoredPair("pairs", f"pair{n}", 0.5 + n / 8, 0.5 + (n % 2) * n / 4) for n in range(16)]
    Shards(folder / "evaluation" / "scored_pairs", 1).write(0, pairs)
    return folder


def watched(folder: Path, phrase: str = "", updates: int = 3) -> None:
    """Adds what PPO leaves with a held-out preference model: scores that part as KL grows."""
    noted(folder, ppo={"updates": updates, "batch_size": 4, "stock_phrase": phrase})
    prompt = Conversation().human("Hi")
    start = [
        Baseline(str(n), "helpful", prompt, "Hello.", "end", 1.0 + n, 5.0, SOURCE) for n in (0, 2)
    ]
    Shards(folder / "ppo" / "held_out_responses", 1).write(0, start)
    for u in range(updates):
        said = ["I can't help with that.", *["You are dear to us."] * u, *["Fine."] * (3 - u)]
        rows = [
            Sampled(u, f"{n}", "helpful", prompt, text, "end", 2.0 + u, u * u, SOURCE, 5.0 - u)
            for n, text in enumerate(said[:4])
        ]
        Shards(folder / "ppo" / "rollouts").write(u, rows)


def an_evaluation(folder: Path, parameters: int, right: int = 3) -> Path:
    """What the evaluation of one model leaves: 4 comparisons, `right` of them answered right."""
    noted(folder)
    share = {"value": right / 4, "low": 0.1, "high": 0.9, "n": 4}
    summary = {"accuracy": {"zero_shot": share, "ensembled_chain_of_thought": share}}
    sets = ("hhh", "harmful_vs_ethical", "harm_classes")
    results = {
        "system": folder.name, "parameters": parameters, "evaluations": dict.fromkeys(sets, summary)
    }  # fmt: skip
    write(folder, "results.json", results)
    records = [
        Choice("hhh", f"hhh-{n}", "zero_shot", n % 2, (((0.0, -2.0) if (n % 2 == 0) == (n < right)
               else (-2.0, 0.0)),), (), folder.name, SOURCE)
        for n in range(4)
    ]  # fmt: skip
    Shards(folder / "hhh-zero_shot" / "choices", 1).write(0, records)
    return folder


def a_comparison(folder: Path, **more) -> Path:
    """What a comparison of two runs' snapshots leaves."""
    noted(folder, runs="a,b", judge="judge")
    of = {
        f"{run} {snapshot}": {"run": run, "snapshot": snapshot, "sequences": seen, "parameters": n}
        for run, n in (("a", 1000), ("b", 2000))
        for snapshot, seen in (("initial", 0), ("sl_cai", 0), ("rl_cai", 64))
    }
    elo = {name: interval(10.0 * k) for k, name in enumerate(of)}
    standings = {kind: {"elo": elo, "win_rates": {}} for kind in ("red_team", "helpful")}
    results = {"judge": "judge@1", "anchor": "a sl_cai", "hard": True, "snapshots": of}
    write(folder, "results.json", {**results, "standings": standings, **more})
    return folder


def a_preference_model(folder: Path) -> Path:
    """What `human-preferences` leaves."""
    noted(folder)
    write(folder, "results.json", {"held_out": {}})
    pairs = [ScoredPair("held-out", f"pair{n}", 1.0, 0.0) for n in range(8)]
    Shards(folder / "evaluation" / "scored_pairs", 1).write(0, pairs)
    return folder


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws a figure by the command; returns the rows of its CSV and its caption."""
    captions = []
    original = style.new_figure

    def spy(title, caption, width, height):
        captions.append(caption)
        return original(title, caption, width, height)

    monkeypatch.setattr(style, "new_figure", spy)

    def draw(number: int | str, *folders: Path) -> tuple[list[dict], str]:
        runs, workdir = ",".join(map(str, folders)), tmp_path / "drawn"
        argv = ["figures", f"--figure={number}", f"--runs={runs}", f"--workdir={workdir}"]
        assert cli.main(argv) == 0
        stem = workdir / (f"figure{number}" if isinstance(number, int) else number)
        png = Path(f"{stem}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) > 10_000
        assert Path(f"{stem}.svg").stat().st_size > 5_000
        return list(csv.DictReader(Path(f"{stem}.csv").open())), captions[-1]

    return draw


def ours(rows: list[dict], **fields) -> list[tuple[float, float]]:
    return [
        (float(r["x"]), float(r["y"]))
        for r in rows
        if r["source"] == "ours" and all(r[name] == value for name, value in fields.items())
    ]


def paper(rows: list[dict], **fields) -> list[tuple[float, float]]:
    return ours([{**r, "source": "ours"} for r in rows if r["source"] == "paper"], **fields)


def complaint(capsys, number: int | str, *folders: Path) -> str:
    runs = ",".join(map(str, folders))
    argv = ["figures", f"--figure={number}", f"--runs={runs}", "--workdir=nowhere/drawn"]
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_the_shipped_values_are_the_published_ones():
    if not SHARED.exists():
        pytest.skip("the values read off the figures are not beside this checkout")
    assert json.loads(paper_values.FILE.read_text()) == json.loads(SHARED.read_text())


def test_every_caption_has_what_a_reader_needs(drawn, tmp_path):
    runs = [a_run(tmp_path / "one", 10**6), a_run(tmp_path / "two", 10**7, 3, critique=False)]
    evaluated = an_evaluation(tmp_path / "model", 10**6)
    write(evaluated, "hhh_original.json", ["hhh-0"])
    scored = Harmfulness("p", "RL-CAI", 12, 1.0, 0, 2.5, "rater")
    Shards(runs[0] / "harmfulness", 1).write(0, [scored])
    for number in FIGURES:
        folders = [evaluated] if number in (4, 9, 11, 12) else runs
        _, caption = drawn(number, *folders)
        for words in ("n = ", "Models: small.", "Seeds: 3.", "Hardware: 2 CPU cores.",
                      "Departures from the paper: ", "95% intervals"):  # fmt: skip
            assert words in caption, f"figure {number}: {caption}"
        assert ("Faint: the paper's values" in caption) == (number in (2, 3, 4, 5, 8, 10))


def test_2_elo_of_runs_and_of_comparisons(drawn, tmp_path):
    rows, caption = drawn(2, a_run(tmp_path / "one", 10**6))
    mine = [(r["snapshot"], float(r["helpful_elo"])) for r in rows if r["source"] == "ours"]
    assert mine == [("initial", -20.0), ("SL-CAI", 0.0), ("RL-CAI", 30.0)]
    theirs = [r for r in rows if r["source"] == "paper" and r["run"] == "RL-CAI w/ CoT"]
    assert [(r["helpful_elo"], r["harmless_elo"]) for r in theirs][-1] == ("85", "190")
    assert "each run's own preference model" in caption
    rows, caption = drawn(2, a_comparison(tmp_path / "compared"))
    assert [float(r["harmless_elo"]) for r in rows if r["run"] == "b"] == [30.0, 40.0, 50.0]
    assert "judge@1" in caption


def test_3_elo_by_parameters(drawn, tmp_path):
    rows, _ = drawn(3, a_comparison(tmp_path / "compared"))
    assert ours(rows, panel="harmlessness", series="RL-CAI") == [(1000, 20.0), (2000, 50.0)]
    assert paper(rows, panel="helpfulness", series="RL-CAI") == [(51.5e9, 110.0)]


def test_4_accuracy_by_parameters(drawn, tmp_path):
    folders = [an_evaluation(tmp_path / "b", 2000, 3), an_evaluation(tmp_path / "a", 1000, 2)]
    rows, _ = drawn(4, *folders)
    assert ours(rows, series="zero-shot") == [(1000, 0.5), (2000, 0.75)]
    assert paper(rows, series="Pretrained LM")[-1] == (52e9, 0.676)


def test_5_scores_start_at_zero(drawn, tmp_path):
    rows, _ = drawn(5, a_run(tmp_path / "one", 135_000_000))
    assert ours(rows, series="one, 135M") == [(0, 0.0), (1, 0.5), (2, 0.75)]
    assert paper(rows, series="harmlessness PM, 52b")[-1] == (4, 2.31)
    assert next((r["low"], r["n"]) for r in rows if r["source"] == "ours") == ("-5.0", "24")


def test_5_all_runs_by_one_preference_model(drawn, tmp_path, capsys):
    scores = {
        run: [{"score": interval(start + k), "over_initial": None} for k in range(3)]
        for run, start in (("a", 1.0), ("b", 2.0))
    }
    folder = a_comparison(tmp_path / "compared", pm_by_revision=scores)
    rows, caption = drawn(5, folder)
    # One constant off both: the initial score of b, the larger.
    assert ours(rows, series="b, 2K") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert ours(rows, series="a, 1K") == [(0, -1.0), (1, 0.0), (2, 1.0)]
    assert "revisions by judge@1" in caption and "own preference model" not in caption
    said = complaint(capsys, 5, a_comparison(tmp_path / "by_people", pm_by_revision={}))
    assert "by_people holds no scores of revisions" in said
    said = complaint(capsys, 5, folder, a_run(tmp_path / "run", 9))
    assert "name the one kind or the other" in said


def test_6_score_and_diversity_by_principles(drawn, tmp_path, capsys):
    runs = [a_run(tmp_path / "many", 9, principles=4), a_run(tmp_path / "few", 9, principles=1)]
    rows, _ = drawn(6, *runs)
    assert ours(rows, series="score") == [(1, 0.75), (4, 0.75)]
    for name in ("self-BLEU", "distinct word pairs", "spread"):
        assert ours(rows, series=name) == [(1, 0.2), (4, 0.2)]
    assert "all drew on 4" in complaint(capsys, 6, runs[0])
    other = a_run(tmp_path / "other", 9, principles=2, prompts=12)
    assert "of 12 and 24 prompts" in complaint(capsys, 6, other, runs[0])
    few = a_run(tmp_path / "small", 9, principles=2, diversity=[{}, {}, {}])
    assert "too few last revisions of two words" in complaint(capsys, 6, few, runs[0])
    old = json.loads((other / "evaluation" / "results.json").read_text())
    del old["revisions"]
    write(other, "evaluation/results.json", old)
    assert "other does not say how its revisions were made" in complaint(capsys, 6, other)


def test_7_critiqued_and_direct(drawn, tmp_path, capsys):
    critiqued, direct = a_run(tmp_path / "one", 9), a_run(tmp_path / "two", 9, critique=False)
    rows, _ = drawn(7, critiqued, direct)
    assert ours(rows, series="direct, two") == ours(rows, series="critiqued, one")
    assert ours(rows, panel="diversity", series="direct, two") == [(0, 0.0), (1, 0.1), (2, 0.2)]
    said = complaint(capsys, 7, critiqued)
    assert "has none without critiques" in said and "--config.revise.critique=False`" in said
    assert "has none with critiques" in complaint(capsys, 7, direct)


def test_8_elo_by_sequences(drawn, tmp_path):
    rows, _ = drawn(8, a_run(tmp_path / "one", 9))
    assert ours(rows, panel="harmlessness", series="one") == [(0, 0.0), (12, 30.0)]
    assert paper(rows, panel="harmlessness", series="HH RLHF")[1] == (470_000, 33.0)


def test_9_reliability_of_the_labels(drawn, tmp_path):
    rows, caption = drawn(9, an_evaluation(tmp_path / "model", 9, right=3))
    # Probabilities of (A): .88 right, .12 right, .88 right, and one .88 that is wrong.
    low, high = ours(rows, series="zero-shot")
    assert low == (pytest.approx(0.1192, abs=1e-4), 0.0)
    assert high == (pytest.approx(0.8808, abs=1e-4), pytest.approx(2 / 3))
    assert "Expected calibration error: zero-shot 0." in caption


def test_10_harmfulness_over_prompts(drawn, tmp_path, capsys):
    folder = a_run(tmp_path / "one", 9)
    said = complaint(capsys, 10, folder)
    assert "harmfulness/*.jsonl" in said and "`cai-jax harmfulness" in said
    rows = [
        Harmfulness(f"p{p}", "RL-CAI", 12, t, k, 1.0 + p + k * 0.5, "rater")
        for p in range(2) for k in range(2) for t in (0.0, 1.0)
    ]  # fmt: skip
    Shards(folder / "harmfulness", 1).write(0, rows)
    found, caption = drawn(10, folder)
    assert ours(found, series="one, T=1") == ours(found, series="one, T=0") == [(12, 1.75)]
    assert {r["n"] for r in found if r["source"] == "ours"} == {"2"}
    assert paper(found, series="RL-CAI")[0] == (0, 1.76)
    assert "by rater" in caption
    with pytest.raises(ValueError, match=r"score is 4.5, not in \[0, 4\]"):
        Harmfulness("p", "RL-CAI", 12, 1.0, 0, 4.5, "rater")


def test_11_the_original_comparisons(drawn, tmp_path, capsys):
    folder = an_evaluation(tmp_path / "model", 9, right=3)
    assert "--config.hhh_alignment=DIR` leaves it" in complaint(capsys, 11, folder)
    write(folder, "hhh_original.json", ["hhh-2", "hhh-3"])
    rows, _ = drawn(11, folder)
    assert ours(rows, series="zero-shot") == [(9, 0.5)]


def test_12_two_panels(drawn, tmp_path):
    rows, _ = drawn(12, an_evaluation(tmp_path / "model", 9))
    panels = dict.fromkeys(r["panel"] for r in rows)
    assert [p.split(" (")[0] for p in panels] == ["harmful or ethical", "nine kinds of harm"]
    assert ours(rows, series="zero-shot") == [(9, 0.75), (9, 0.75)]


def test_calibration_of_the_preference_model(drawn, tmp_path):
    rows, caption = drawn("calibration", a_run(tmp_path / "one", 9))
    # Differences n/8 of even n are right, -n/8 of odd n wrong; at 0 a tie.
    small, large = ours(rows, series="pairs")
    assert small == (pytest.approx(3.5 / 8), 3.5 / 8) and large == (pytest.approx(11.5 / 8), 0.5)
    assert "1 / (1 + exp(-difference))" in caption and "calibration error: pairs 0." in caption


def test_calibration_of_a_preference_model_of_people(drawn, tmp_path, capsys):
    folder = a_preference_model(tmp_path / "pm")
    rows, caption = drawn("calibration", folder)
    assert ours(rows, series="held-out") == [(1.0, 1.0)]
    assert "a smaller preference model" in caption and "Models: small." in caption
    assert "none of" in complaint(capsys, 2, folder)


def test_over_optimisation(drawn, tmp_path):
    rows, caption = drawn("over-optimisation", a_run(tmp_path / "one", 9))
    # KL is the square of the update, a batch has four responses; the zeros are 2 and 5.
    train, held_out = [0.0, 1.0, 2.0], [0.0, -1.0, -2.0]
    for name, values in (("train PM", train), ("held-out PM", held_out)):
        of = {"series": name}
        assert ours(rows, panel="score by KL", **of) == list(zip(range(3), values, strict=True))
        assert ours(rows, panel="score by samples", **of) == list(
            zip((0, 4, 8), values, strict=True)
        )
    for panel, values in (
        ("length", [2.0, 3.0, 4.0]), ("repetition", [0.0, 0.0, 0.0]),
        ("refusals", [0.25, 0.25, 0.25]), ("stock phrase", [0.0, 0.25, 0.5]),
    ):  # fmt: skip
        assert ours(rows, panel=panel) == list(zip(range(3), values, strict=True))
    assert "at the last point: 4.00 [4.00, 4.00]." in caption
    assert 'Stock phrase: "are dear to us", which most responses of the last point' in caption
    assert "its mean over 2 responses of SL-CAI" in caption and "; 12 samples to the" in caption


def test_over_optimisation_of_two_runs_with_phrases_of_their_own(drawn, tmp_path):
    one, two = a_run(tmp_path / "one", 9), a_run(tmp_path / "two", 9)
    watched(two, "Can't HELP", updates=50)
    rows, caption = drawn("over-optimisation", one, two)
    assert len(ours(rows, panel="score by KL", series="two, train PM")) == 17  # 3 updates a point
    last = ours(rows, panel="score by samples", series="two, held-out PM")[-1]
    assert last == (4 * 48.5, pytest.approx(-48.5))
    shares = ours(rows, panel="stock phrase", series="two, responses")
    assert {y for _, y in shares} == {0.25}
    assert 'one, "are dear to us", which most' in caption and 'two, "Can\'t HELP".' in caption


def test_over_optimisation_without_a_held_out_model(capsys, tmp_path):
    folder = a_run(tmp_path / "one", 9)
    (folder / "ppo" / "held_out_responses" / "00000-of-00001.jsonl").unlink()
    said = complaint(capsys, "over-optimisation", folder)
    assert "with --config.preference_model.halves=True makes one" in said


def test_calibration_on_the_438(drawn, tmp_path):
    folder = an_evaluation(tmp_path / "model", 9)
    records = [
        Choice("hhh", f"hhh-{n}", "preference_model", n % 2, ((2.0, 0.0),), (), "pm", SOURCE)
        for n in range(4)
    ]
    Shards(folder / "hhh-preference_model" / "choices", 1).write(0, records)
    rows, _ = drawn("calibration", folder)
    assert ours(rows, series="HHH comparisons") == [(2.0, 0.5)]


@pytest.mark.parametrize("number", FIGURES)
def test_folders_of_another_kind_are_refused(capsys, tmp_path, number):
    wrong = a_run if number in (4, 9, 11, 12) else an_evaluation
    said = complaint(capsys, number, wrong(tmp_path / "wrong", 9))
    named = f"figure {number}" if isinstance(number, int) else f"{number} figure"
    assert named in said and "cai-jax" in said


def test_what_is_no_folder_or_no_figure(capsys, tmp_path):
    assert "nowhere holds no results" in complaint(capsys, 4, Path("nowhere"))
    assert "there is no figure 1; known are 2, 3," in complaint(
        capsys, 1, a_run(tmp_path / "one", 9)
    )
    folder = a_run(tmp_path / "two", 9)
    (folder / "evaluation" / "results.json").write_text("{")
    assert "JSON files are damaged" in complaint(capsys, 5, folder)


def test_a_word_that_is_not_understood(capsys):
    assert cli.main(["figures", "--figure=two", "--runs=a", "--workdir=b"]) == 2
    said = capsys.readouterr().err
    assert "there is no figure two; known are 2, 3," in said and said.count("\n") == 1
    assert cli.main(["figures", "--figure=2", "--workdir=b"]) == 2
    assert "required: --runs; `cai-jax figures --help`" in capsys.readouterr().err
