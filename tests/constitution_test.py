"""Constitutions as data: what loads, what is refused and how, draws, differences, round trips."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cai_jax.constitution import (
    ComparisonExample,
    ComparisonPrinciple,
    Constitution,
    ConstitutionError,
    CritiqueExample,
    CritiquePrinciple,
    ReasonedExample,
    build,
    diff,
    draw,
    import_paper,
    load,
    save,
)

ROOT = Path(__file__).parents[1]
PAPER = Path(__file__).parents[2] / "shared" / "data" / "anthropic-cai-paper" / "prompts"

SMALL = """\
name: Small
critique:
  - id: harm
    critique_request: Point out the harm.
    revision_request: Rewrite it without harm.
  - id: bias
    critique_request: Point out the bias.
    revision_request: Rewrite it without bias.
comparison:
  - id: harm
    instruction: Which is less harmful?
critique_examples:
  - prompt: Hello
    response: Go away.
    critique_request: Point out the harm.
    critique: It's rude.
    revision_request: Rewrite it without harm.
    revision: Hello!
comparison_examples:
  - prompt: |
      Human: Hi

      Assistant: Hello!

      Human: How are you?
    chosen: Fine, thank you.
    rejected: None of your business.
reasoned_examples:
  - prompt: Hi
    response_a: Hello!
    response_b: What?
    reasoning: (A) is friendlier.
    answer: A
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "c.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def test_load_reads_every_part(write):
    small = load(write(SMALL))
    assert small.name == "Small"
    assert small.critique[1] == CritiquePrinciple(
        "bias", "Point out the bias.", "Rewrite it without bias."
    )
    assert small.comparison == (ComparisonPrinciple("harm", "Which is less harmful?"),)
    assert small.critique_examples[0].revision == "Hello!"
    assert small.comparison_examples[0] == ComparisonExample(
        "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: How are you?\n\nAssistant:",
        "Fine, thank you.",
        "None of your business.",
    )
    assert small.reasoned_examples[0].answer == "A"


def test_hash_follows_content_only(write):
    small = load(write(SMALL))
    assert re.fullmatch("[0-9a-f]{16}", small.hash)
    spelled = SMALL.replace("Point out the bias.", ">-\n      Point out\n      the bias.", 1)
    spelled = "# a comment\n" + spelled.replace("id: harm", "'id':   'harm'")
    assert spelled != SMALL
    assert load(write(spelled, "other.yaml")).hash == small.hash
    assert load(write(SMALL.replace("Small", "Renamed"))).hash == small.hash
    for old, new in [
        ("Rewrite it without bias.", "Rewrite it without any bias."),
        ("id: bias", "id: prejudice"),
        ("Hello!", "Good day!"),
        ("answer: A", "answer: B"),
    ]:
        assert load(write(SMALL.replace(old, new))).hash != small.hash, old
    swapped = build("Small", critique=small.critique[::-1], comparison=small.comparison)
    kept = build("Small", critique=small.critique, comparison=small.comparison)
    assert swapped.hash != kept.hash != small.hash


def test_block_scalar_line_break_is_not_part_of_the_text(write):
    text = SMALL.replace("Point out the bias.", "|\n      Point out the bias.")
    assert load(write(text)) == load(write(SMALL))


HARM = "    revision_request: Rewrite it without harm.\n  - id: bias"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            HARM,
            "  - id: bias",
            "line 3: critique principle 'harm' lacks 'revision_request'; "
            "add the text that asks for the rewrite.",
        ),
        (
            "  - id: harm\n    critique_request",
            "  - critique_request",
            "line 3: critique principle 1 lacks 'id'; add a short name of its own.",
        ),
        (
            "instruction: Which",
            "intruction: Which",
            "line 11: comparison principle 'harm' has an unknown field 'intruction'; "
            "rename it to 'instruction' or remove it.",
        ),
        (
            "name: Small",
            "name: Small\nweather: fine",
            "line 2: the constitution has an unknown field 'weather'; remove it.",
        ),
        (
            "name: Small\n",
            "",
            "line 1: the constitution lacks 'name'; add its title.",
        ),
        (
            "comparison:\n  - id: harm\n    instruction: Which is less harmful?\n",
            "",
            "line 1: the constitution lacks 'comparison'; add a list of principles.",
        ),
        (
            "instruction: Which is less harmful?",
            "instruction: ''",
            "line 11: comparison principle 'harm': 'instruction' is empty; "
            "write the question that asks which answer is better.",
        ),
        (
            "instruction: Which is less harmful?",
            "instruction:",
            "line 11: comparison principle 'harm': 'instruction' is empty; "
            "write the question that asks which answer is better.",
        ),
        (
            "id: bias",
            "id: harm",
            "line 6: critique principle 'harm' is named again (first in line 3); rename one.",
        ),
        (
            "revision: Hello!",
            "revision: 42",
            "line 18: critique example 1: 'revision' is the number '42'; "
            "write text, in quotes if need be.",
        ),
        (
            "revision: Hello!",
            "revision: no",
            "line 18: critique example 1: 'revision' is the yes-or-no value 'no'; "
            "write text, in quotes if need be.",
        ),
        (
            "revision: Hello!",
            "revision: [Hello]",
            "line 18: critique example 1: 'revision' is a list; write text, in quotes if need be.",
        ),
        (
            "answer: A",
            "answer: C",
            "line 33: reasoned example 1: 'answer' is 'C'; write A or B.",
        ),
        (
            "critique:\n  - id: harm",
            "critique: be good\nx:\n  - id: harm",
            "line 3: the constitution has an unknown field 'x'; remove it.",
        ),
        (
            "comparison:\n  - id: harm\n    instruction: Which is less harmful?",
            "comparison: be good",
            "line 9: 'comparison' is the text 'be good'; write a list, one '-' an entry.",
        ),
        (
            "comparison:\n  - id: harm\n    instruction: Which is less harmful?",
            "comparison: []",
            "line 9: 'comparison' has no entries; add at least one comparison principle.",
        ),
        (
            "  - id: harm\n    instruction: Which is less harmful?",
            "  - be good",
            "line 10: comparison principle 1 is the text 'be good'; "
            "write it as 'field: text' lines.",
        ),
        (
            "    instruction: Which",
            "    id: more\n    instruction: Which",
            "line 11: comparison principle 1 has 'id' twice; keep one of them.",
        ),
        (
            "Which is less harmful?",
            "'Which is less harmful? Options:'",
            "line 11: comparison principle 'harm': 'instruction' holds 'Options:', "
            "which the prompt adds itself; remove it.",
        ),
        (
            "critique_request: Point out the bias.",
            "critique_request: 'CritiqueRequest: Point out the bias.'",
            "line 7: critique principle 'bias': 'critique_request' holds 'CritiqueRequest:', "
            "which the prompt adds itself; remove it.",
        ),
        (
            "revision_request: Rewrite it without bias.",
            '"revision_request": "Rewrite it without bias.\\n\\nRevision:"',
            "line 8: critique principle 'bias': 'revision_request' holds 'Revision:', "
            "which the prompt adds itself; remove it.",
        ),
        (
            "\n      Human: How are you?\n",
            "",
            "line 20: comparison example 1: 'prompt' ends with an assistant turn; "
            "end it with a human turn.",
        ),
        (
            "    critique_request: Point out the bias.",
            "   critique_request: Point out the bias.",
            "line 7: not valid YAML (expected <block end>, but found '<block mapping start>'); "
            "check indentation, colons and quotes.",
        ),
        (
            "critique: It's rude.",
            "critique: It's rude: very.",
            "line 16: not valid YAML (mapping values are not allowed here); "
            "check indentation, colons and quotes.",
        ),
        (
            "Which is",
            "Which \x07 is",
            "line 11: character #x0007 is not allowed in YAML; remove it.",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(write, old, new, message):
    assert SMALL.count(old) >= 1
    path = write(SMALL.replace(old, new, 1))
    with pytest.raises(ConstitutionError) as caught:
        load(path)
    assert str(caught.value) == f"{path}, {message}"
    assert isinstance(caught.value, ValueError)


def test_files_that_hold_no_constitution(write, tmp_path):
    def message(path):
        with pytest.raises(ConstitutionError) as caught:
            load(path)
        return str(caught.value).removeprefix(str(path))

    for text in ("", "\n\n", "# only a comment\n"):
        assert message(write(text)) == (
            ": the file is empty; start from constitutions/default.yaml."
        )
    assert message(tmp_path / "none.yaml") == ": no such file; give a constitution's path."
    assert message(tmp_path) == ": this is a folder; give a .yaml file in it."
    assert message(write(b"name: a\nx: \xff\n")) == ", line 2: not UTF-8; save it as UTF-8."
    assert message(write("- a\n- b\n")) == (
        ", line 1: the constitution is a list; write it as 'field: text' lines."
    )
    assert message(write("[" * 100_000)) == ": nested too deeply; a constitution has two levels."
    assert message(write("name: a\n---\nname: b\n")).startswith(", line 2: not valid YAML")


def test_draw_depends_on_the_key_alone_and_is_uniform():
    principles = [ComparisonPrinciple(str(i), "?") for i in range(16)]
    assert draw(principles, 0, "critique", "red-000", 1) == draw(
        tuple(principles), 0, "critique", "red-000", 1
    )
    counts = Counter(draw(principles, 0, "critique", f"red-{i}", 0).id for i in range(16_000))
    # 15 degrees of freedom: a fair draw stays below 37.7 in 999 of 1000 worlds; this key is fixed.
    assert sum((counts[str(i)] - 1000) ** 2 / 1000 for i in range(16)) < 37.7


@pytest.mark.parametrize(
    "other",
    [
        lambda i: (1, "critique", f"red-{i}", 0),
        lambda i: (0, "compare", f"red-{i}", 0),
        lambda i: (0, "critique", f"red-{i}", 1),
        lambda i: (0, "critique", f"red-{i + 1}", 0),
    ],
)
def test_draws_with_different_keys_are_independent(other):
    principles = [ComparisonPrinciple(str(i), "?") for i in range(4)]
    pairs = Counter(
        (draw(principles, 0, "critique", f"red-{i}", 0).id, draw(principles, *other(i)).id)
        for i in range(8_000)
    )
    # 15 degrees of freedom again: all 16 pairs are equally frequent.
    assert sum((pairs[str(i), str(j)] - 500) ** 2 / 500 for i in range(4) for j in range(4)) < 37.7


def test_draw_tells_keys_apart():
    principles = [ComparisonPrinciple(str(i), "?") for i in range(10_000)]
    keys = [(1,), ("1",), (1, 1), (11,), ("a", "b"), ("ab",), ("a,b",), (-1,)]
    assert len({draw(principles, *key).id for key in keys}) == len(keys)
    # Fixed for good: a changed draw would change every record.
    assert draw(principles, 0, "critique", "red-000", 0).id == "708"


def test_draw_refuses_what_it_cannot_use():
    principles = [ComparisonPrinciple("a", "?")]
    with pytest.raises(ValueError, match="no principles to draw from"):
        draw([], 0)
    with pytest.raises(ValueError, match="needs a key"):
        draw(principles)
    with pytest.raises(TypeError):
        draw(principles, 0.5)


def test_diff(write):
    a = load(write(SMALL))
    assert diff(a, a) == "No difference."
    assert diff(a, replace(a, name="B")) == "No difference.\nname: Small -> B"
    text = SMALL.replace("Point out the bias.", "Point out any bias, please.")
    text = text.replace("id: harm\n    instruction", "id: safety\n    instruction")
    text = text.replace("rejected: None of your business.", "rejected: Bah!")
    text = text.replace("prompt: Hi\n", "prompt: Hello there\n")
    assert diff(a, load(write(text, "b.yaml"))).splitlines() == [
        "critique principle changed: bias",
        "  critique_request: Point out [-the bias.-] {+any bias, please.+}",
        "comparison principle removed: harm",
        "comparison principle added: safety",
        "comparison example changed: Human: Hi Assistant: Hello! Human: How are you? Assistant:",
        "  rejected: [-None of your business.-] {+Bah!+}",
        "reasoned example removed: Hi",
        "reasoned example added: Hello there",
    ]
    turned = replace(a, critique=a.critique[::-1], hash="turned")
    assert diff(a, turned) == "critique principles in another order"


def test_diff_never_is_silent_about_different_hashes(write):
    """Two examples may share a prompt, and a text may change in white space only."""
    twice = ReasonedExample("Hi", "a", "b", "Because.", "A")
    base = load(write(SMALL))
    parts = {"critique": base.critique, "comparison": base.comparison}
    one = build("x", **parts, reasoned_examples=[twice])
    two = build("x", **parts, reasoned_examples=[twice, twice])
    assert diff(one, two) == "reasoned example added: Hi"
    assert diff(two, one) == "reasoned example removed: Hi"
    spaced = build("x", **parts, reasoned_examples=[replace(twice, reasoning="Because.\n\n1.")])
    closer = build("x", **parts, reasoned_examples=[replace(twice, reasoning="Because.\n1.")])
    assert "only white space differs" in diff(spaced, closer)


def test_round_trip_keeps_the_hash(write, tmp_path):
    for original in (load(write(SMALL)), *map(load, sorted(ROOT.glob("constitutions/*.yaml")))):
        save(original, tmp_path / "saved.yaml")
        assert load(tmp_path / "saved.yaml") == original


def test_round_trip_of_awkward_texts(tmp_path):
    rng = random.Random(0)
    alphabet = ["a", " ", "  ", "\n", "\n\n", ":", "- ", "#", "'", '"', "{}", "é", "’", "\t", "|"]
    alphabet += [
        "yes",
        "1",
        "\u2028",
        "\x85",
        "\\",
        "%",
        "&",
        "*",
        "]]]",
        "😀",
        "~",
        "null",
        "---",
        "\r",
        "\x07",
    ]
    for number in range(150):

        def text():
            return "".join(rng.choices(alphabet, k=rng.randint(1, 12))) + "."

        original = build(
            "Odd: \n'name'" if number == 0 else text().strip(),
            critique=[CritiquePrinciple("1", text(), text())],
            comparison=[ComparisonPrinciple("null", text())],
            critique_examples=[CritiqueExample(*(text() for _ in range(6)))],
            reasoned_examples=[ReasonedExample(text(), text(), text(), text(), "B")],
        )
        save(original, tmp_path / "odd.yaml")
        assert load(tmp_path / "odd.yaml") == original


TOPICS = {
    "harm": "hurt",
    "toxicity": "insult",
    "illegality": "law|crime",
    "social-bias": "racism",
    "controversy": "disagree",
    "misogyny": "women",
    "age-appropriate": "child",
    "danger": "injured|safer",
    "sensitivity": "feel",
    "wellbeing": "year from now|long run",
    "preachiness": "lectur",
    "over-reaction": "alarm",
    "evasiveness": "dodge|openly",
    "good-person": "wise, kind",
    "honesty": "true|truthful",
}


def test_default_covers_what_the_paper_covers():
    default = load(ROOT / "constitutions" / "default.yaml")
    assert len(default.critique) == len(default.comparison) == 16
    critique = {p.id: p.critique_request for p in default.critique}
    comparison = {p.id: p.instruction for p in default.comparison}
    for topic, word in TOPICS.items():
        assert re.search(word, critique[topic]), topic
        assert re.search(word, comparison[topic]), topic
    # The sixteenth: bait when criticising, all three virtues when comparing.
    assert set(critique) - set(TOPICS) == {"bait"}
    assert set(comparison) - set(TOPICS) == {"helpful-honest-harmless"}


def test_shipped_constitutions_have_usable_examples():
    default, general = (load(ROOT / f"constitutions/{n}.yaml") for n in ("default", "general"))
    assert [len(general.critique), len(general.comparison)] == [3, 3]
    for constitution in (default, general):
        requests = {p.critique_request for p in constitution.critique}
        for example in constitution.critique_examples:
            assert example.critique_request in requests
            assert sum(len(text.split()) for text in vars(example).values()) < 140
        assert any(e.response == e.revision for e in constitution.critique_examples)
        assert {e.answer for e in constitution.reasoned_examples} == {"A", "B"}
        assert constitution.comparison_examples
        assert all(p.instruction.endswith("?") for p in constitution.comparison)
    assert [len(default.critique_examples), len(default.comparison_examples)] == [3, 4]


def test_default_is_not_pasted_from_the_paper():
    if not PAPER.exists():
        pytest.skip("the paper's files are not beside this checkout")
    paper, default = import_paper(PAPER), load(ROOT / "constitutions" / "default.yaml")

    def runs(constitution: Constitution) -> set[tuple[str, ...]]:
        """Every eight words in a row."""
        texts = [text for p in constitution.critique + constitution.comparison
                 for text in vars(p).values()]  # fmt: skip
        words = [re.findall(r"\w+", text.lower()) for text in texts]
        return {tuple(w[i : i + 8]) for w in words for i in range(len(w) - 7)}

    assert not runs(paper) & runs(default)


def _rows(name: str) -> list[dict]:
    text = (ROOT / "cai_jax" / "datasets" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("name", "prefix", "keys", "group", "counts"),
    [
        ("red_team", "red", {"split", "category"}, "split", {"train": 48, "test": 24}),
        (
            "helpful",
            "help",
            {"split", "category", "good", "poor"},
            "split",
            {"train": 32, "test": 16},
        ),
        (
            "label_pairs",
            "pair",
            {"kind", "better", "worse"},
            "kind",
            {"harmful": 30, "benign": 30},
        ),
    ],
)
def test_shipped_prompts_are_well_formed(name, prefix, keys, group, counts):
    rows = _rows(name)
    assert Counter(row[group] for row in rows) == counts
    assert [row["id"] for row in rows] == [f"{prefix}-{i:03d}" for i in range(len(rows))]
    for row in rows:
        assert set(row) == {"id", "turns"} | keys
        roles = [turn["role"] for turn in row["turns"]]
        assert roles == ["human", "assistant", "human"][: len(roles)]
        assert roles[-1] == "human"
        texts = [turn["text"] for turn in row["turns"]]
        texts += [row[key] for key in keys]
        assert all(text == text.strip() and text for text in texts)


def test_shipped_prompts_repeat_nothing():
    prompts = [row["turns"][-1]["text"] for n in ("red_team", "helpful", "label_pairs")
               for row in _rows(n)]  # fmt: skip
    first = [row["turns"][0]["text"] for n in ("red_team", "helpful", "label_pairs")
             for row in _rows(n)]  # fmt: skip
    assert len(set(map(str.lower, prompts))) == len(set(map(str.lower, first))) == 180
    examples = {
        example.prompt.lower()
        for path in ROOT.glob("constitutions/*.yaml")
        for c in [load(path)]
        for example in c.critique_examples + c.comparison_examples + c.reasoned_examples
    }
    assert not examples & set(map(str.lower, prompts))


def test_length_does_not_give_away_the_better_answer():
    for kind in ("harmful", "benign"):
        rows = [row for row in _rows("label_pairs") if row["kind"] == kind]
        assert sum(len(row["better"]) > len(row["worse"]) for row in rows) == 15
    longer = sum(len(row["good"]) > len(row["poor"]) for row in _rows("helpful"))
    assert 16 <= longer <= 32


def test_multi_turn_and_borderline_prompts_are_in_both_splits():
    for split in ("train", "test"):
        rows = [row for row in _rows("red_team") if row["split"] == split]
        assert len({row["category"] for row in rows}) == 13
        assert sum(len(row["turns"]) == 3 for row in rows) >= len(rows) / 6
