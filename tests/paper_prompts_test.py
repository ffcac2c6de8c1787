"""The paper's prompts byte for byte, against its published files and a small twin of them."""

import gzip
import json
from pathlib import Path

import pytest

from cai_jax import paper_prompts
from cai_jax.constitution import (
    ComparisonExample,
    ConstitutionError,
    CritiqueExample,
    CritiquePrinciple,
    ReasonedExample,
    import_paper,
    load,
    save,
)

PAPER = Path(__file__).parents[2] / "shared" / "data" / "anthropic-cai-paper"

CRITIQUES = "CritiqueRevisionInstructions.json"
CRITIQUE_FEW_SHOTS = "CritiqueRevisionFewShotPrompts.json"
COMPARISONS = "RLMadisonInstructions.json"
COMPARISON_FEW_SHOTS = "RLMadisonFewShotPrompts.json"
REASONED_FEW_SHOTS = "RLMadisonPrecogFewShotPrompts.json"

_HEADER = "Human: Consider the following conversation between a human (H) and an assistant (A):"
_THOUGHT = (
    "\n\n{}\n (A) [[[Hello!]]]\n (B) [[[Well {}\n\nWell]]]\n\nAssistant: Let's think step by step:"
)
TWIN = {
    CRITIQUES: {
        "harmful0": {
            "prompt": ["\n\nCritiqueRequest: What's wrong?\n\nCritique:"],
            "edit_request": "\n\nRevisionRequest: Please mend it.\n\nRevision:",
        }
    },
    CRITIQUE_FEW_SHOTS: [
        "\n\nHuman: Hi.\n\nAssistant: What?\n\nHuman: I said  hi.\n\nAssistant: So?\n\nGo."
        "\n\nCritiqueRequest: What's wrong?\n\nCritique: Rude.It is."
        "\n\nRevisionRequest: Mend it.\n\nRevision: Hi!\n\nHuman:",
        "\n\nHuman: Bye.\n\nAssistant: Bye!\n\nCritiqueRequest: What's wrong?"
        "\n\nCritique: Nothing.\n\nRevisionRequest: Mend it.\n\nRevision: Bye!",
    ],
    COMPARISONS: ["\nChoose well. Options:", "\nPlease choose the kind one. Options:"],
    COMPARISON_FEW_SHOTS: [
        {"prompt": "\n\nHuman: Hi.\n\nAssistant:", "corrects": ["Hello!"], "incorrects": ["Go."]}
    ],
    REASONED_FEW_SHOTS: [
        {
            "prompt": f"\n\n{_HEADER}\n\nH: Hi.\n\nA:  Yes?\n\nH:  Just ’hi’.{_THOUGHT}\n(A) Short."
            "\n\nSo (A).\n\nHuman:\nSo the answer is: (A)"
        },
        {
            "prompt": f"\n{_HEADER}\n\nH: HI\nHI{_THOUGHT} (B).\n\nHuman:\nSo the answer is: (B)",
        },
        {
            "prompt": "Human: Consider the following conversation between a human and an assistant:"
            f"\n\nH: Hi.{_THOUGHT} (B).\n\nHuman:\nSo the answer is: (B)",
        },
    ],
}


def _write(directory: Path, files: dict) -> Path:
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory


@pytest.fixture(params=["twin", "published"])
def source(request, tmp_path) -> Path:
    if request.param == "twin":
        return _write(tmp_path, TWIN)
    if not PAPER.exists():
        pytest.skip("the paper's files are not beside this checkout")
    return PAPER / "prompts"


def _read(source: Path, name: str):
    return json.loads((source / name).read_text(encoding="utf-8"))


def test_principles_wrap_back_into_the_files_strings(source):
    paper = import_paper(source)
    published = _read(source, CRITIQUES)
    assert [p.id for p in paper.critique] == list(published)
    for principle in paper.critique:
        entry = published[principle.id]
        assert [paper_prompts.critique_request(principle.critique_request)] == entry["prompt"]
        rewrite = paper_prompts.revision_request(principle.revision_request)
        assert rewrite == entry["edit_request"]
    wrapped = [paper_prompts.comparison_instruction(p.instruction) for p in paper.comparison]
    assert wrapped == _read(source, COMPARISONS)


def test_critique_few_shots_render_to_the_files_strings(source):
    paper = import_paper(source)
    published = _read(source, CRITIQUE_FEW_SHOTS)
    rendered = [paper_prompts.render_critique_example(e) for e in paper.critique_examples]
    assert rendered == [text.removesuffix("\n\nHuman:") for text in published]


def test_comparison_few_shots_keep_their_texts(source):
    paper = import_paper(source)
    for example, entry in zip(
        paper.comparison_examples, _read(source, COMPARISON_FEW_SHOTS), strict=True
    ):
        assert paper_prompts.conversation_text(example.prompt) == entry["prompt"]
        assert [example.chosen] == entry["corrects"]
        assert [example.rejected] == entry["incorrects"]


def test_reasoned_few_shots_render_to_the_files_strings(source):
    """Up to the listed defects: the line breaks at the start, and one header without H and A."""
    paper = import_paper(source)
    published = _read(source, REASONED_FEW_SHOTS)
    unexplained = "conversation between a human and an assistant:"
    instruction = paper.comparison[1].instruction
    assert sum(unexplained in entry["prompt"] for entry in published) == 1
    for example, entry in zip(paper.reasoned_examples, published, strict=True):
        text = "\n\n" + entry["prompt"].lstrip("\n")
        text = text.replace(unexplained, "conversation between a human (H) and an assistant (A):")
        # The principle's place is the first {}; the responses may hold braces of their own.
        text = text.replace("{}", paper_prompts.comparison_instruction(instruction), 1)
        assert paper_prompts.render_reasoned_example(example, instruction) == text


def test_the_live_reasoned_prompt_is_the_few_shot_up_to_the_reasoning(source):
    paper = import_paper(source)
    for example in paper.reasoned_examples:
        whole = paper_prompts.render_reasoned_example(example, "Which?")
        live = paper_prompts.render_reasoned_comparison(
            paper_prompts.conversation_text(example.prompt),
            "Which?",
            example.response_a,
            example.response_b,
        )
        assert live.endswith("step by step:")
        rest = whole.removeprefix(live)
        assert rest.lstrip().startswith(example.reasoning.lstrip())
        assert rest.endswith(paper_prompts.ANSWER_PROBE + f" ({example.answer})")


def test_paper_survives_the_yaml(source, tmp_path):
    paper = import_paper(source)
    save(paper, tmp_path / "paper.yaml")
    assert load(tmp_path / "paper.yaml") == paper


def test_import_reads_the_twin(tmp_path):
    paper = import_paper(_write(tmp_path, TWIN))
    assert paper.critique == (CritiquePrinciple("harmful0", "What's wrong?", "Please mend it."),)
    assert [p.id for p in paper.comparison] == ["comparison0", "comparison1"]
    assert paper.critique_examples[0] == CritiqueExample(
        "\n\nHuman: Hi.\n\nAssistant: What?\n\nHuman: I said  hi.\n\nAssistant:",
        "So?\n\nGo.",
        "What's wrong?",
        "Rude.It is.",
        "Mend it.",
        "Hi!",
    )
    assert paper.comparison_examples == (ComparisonExample("Hi.", "Hello!", "Go."),)
    assert paper.reasoned_examples == (
        ReasonedExample(
            "\n\nHuman: Hi.\n\nAssistant:  Yes?\n\nHuman:  Just ’hi’.\n\nAssistant:",
            "Hello!",
            "Well {}\n\nWell",
            "\n(A) Short.\n\nSo (A).",
            "A",
        ),
        ReasonedExample("HI\nHI", "Hello!", "Well {}\n\nWell", "(B).", "B"),
        ReasonedExample("Hi.", "Hello!", "Well {}\n\nWell", "(B).", "B"),
    )


def test_published_counts_and_gold():
    if not PAPER.exists():
        pytest.skip("the paper's files are not beside this checkout")
    paper = import_paper(PAPER / "prompts")
    assert (len(paper.critique), len(paper.comparison)) == (16, 16)
    assert (len(paper.critique_examples), len(paper.comparison_examples)) == (5, 5)
    assert [example.answer for example in paper.reasoned_examples] == list("BBABAB")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (CRITIQUES, None, ": no such file; give the folder that holds the paper's five prompt"),
        (CRITIQUES, "{\n", ", line 2: not valid JSON ("),
        (CRITIQUES, "[]", ": expected an object with entries; fetch the file again."),
        (COMPARISONS, "{}", ": expected a list with entries; fetch the file again."),
        (COMPARISONS, b"\xff", ": not UTF-8; fetch the file again."),
        (CRITIQUES, '{"a": 1}', ", entry a: not as published; fetch the file again."),
        (
            CRITIQUES,
            '{"a": {"prompt": ["x"], "edit_request": "y"}}',
            ", entry a: not as published; fetch the file again.",
        ),
        (COMPARISONS, '["Choose."]', ", entry 0: not as published; fetch the file again."),
        (CRITIQUE_FEW_SHOTS, "[3]", ", entry 0: not as published; fetch the file again."),
        (COMPARISON_FEW_SHOTS, '[{"prompt": 3}]', ", entry 0: not as published; fetch"),
        (
            COMPARISON_FEW_SHOTS,
            '[{"prompt": "a", "corrects": [""], "incorrects": ["b"]}]',
            ", entry 0: not as published; fetch the file again.",
        ),
        (REASONED_FEW_SHOTS, '["x"]', ", entry 0: not as published; fetch the file again."),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    path = _write(tmp_path, TWIN) / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConstitutionError) as caught:
        import_paper(tmp_path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_comparison_prompt():
    conversation = "\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: {}"
    expected = (
        "\n\nConsider the following conversation between a human and an assistant:"
        "\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: {}"
        "\n\n\nWhich? Options:\n (A) [[[One.]]]\n (B) [[[Two.]]]\n\nThe answer is:"
    )
    for text in (conversation, conversation + "\n\nAssistant:"):
        assert paper_prompts.render_comparison(text, "Which?", "One.", "Two.") == expected


def test_the_published_evaluation_can_be_rebuilt():
    """All 438 prompts, from the conversation, instruction 1 and the two responses."""
    if not PAPER.exists():
        pytest.skip("the paper's files are not beside this checkout")
    instruction = import_paper(PAPER / "prompts").comparison[1].instruction
    rebuilt = 0
    with gzip.open(PAPER / "evals" / "438HHHEvaluations.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            texts = [row["text_correct"], row["text_incorrect"]]
            if row["corrects"] == [" (B)"]:
                texts.reverse()
            conversation = texts[0].rpartition("\n\nAssistant:")[0]
            responses = [text.rpartition("\n\nAssistant: ")[2] for text in texts]
            prompt = paper_prompts.render_comparison(conversation, instruction, *responses)
            assert prompt == row["prompt"]
            rebuilt += 1
    assert rebuilt == 438


def test_choices_are_what_the_published_evaluation_compares():
    if not PAPER.exists():
        pytest.skip("the paper's files are not beside this checkout")
    with gzip.open(PAPER / "evals" / "438HHHEvaluations.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert {row["corrects"][0] for row in rows} == set(paper_prompts.CHOICES)
