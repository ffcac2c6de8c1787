"""chat, as typed: in a pipe, with a run, two stages side by side, the constitution's steps."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fakes import CHATML, tiny_model

from cai_jax import chat, chat_screen
from cai_jax.constitution import load
from cai_jax.conversation import Conversation
from cai_jax.decoding import Engine
from cai_jax.decoding.respond import Reply
from cai_jax.prompts import critique, revision
from cai_jax.saved_params import save_params
from cai_jax.script import Force, Sample, Script
from cai_jax.weights.safetensors import write_directory

GENERAL = Path(__file__).parents[1] / "constitutions" / "general.yaml"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of the tiny models, "plain" and "chat"."""
    folder = tmp_path_factory.mktemp("models")
    for name, template in (("plain", None), ("chat", CHATML)):
        model = tiny_model(chat=template is not None)
        write_directory(folder / name, model.config, model.params, model.tokenizer, template)
    return folder


@pytest.fixture(scope="module")
def workdir(models, tmp_path_factory):
    """A run that has finished finetuning: its params are the start's, and 1 more in a norm."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model": str(models / "plain"),
                "dtype": "float32",
                "constitution": str(GENERAL),
                "revise": {"few_shots": 0},
            }
        )
    )
    params = tiny_model().params
    params = params | {"final_norm": {"scale": params["final_norm"]["scale"] + 1}}
    save_params(folder / "finetune" / "params", params, {})
    (folder / "finetune" / "done.json").write_text("{}")
    return folder


@pytest.fixture
def echo(monkeypatch):
    """Stands in for the model: answers with the human turns it was given; keeps that."""
    asked = []

    def respond(engine, form, prompts, **options):
        ((name, conversation),) = prompts
        asked.append((name, conversation, options))
        said = "+".join(t.text for t in conversation.turns if t.role == "human")
        return [[Reply(said, (), (), "end")]]

    monkeypatch.setattr(chat, "respond", respond)
    return asked


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_chat_in_a_pipe(typed, models, kind):
    command = ("chat", f"--model={models / kind}", "--max_new_tokens=8", "--seed=3")
    code, out, err = typed(*command, lines=["Hello", "", "And?", "/quit", "never read"])
    assert code == 0 and "/quit ends it" in err
    assert (code, out) == typed(*command, lines=["Hello", "And?"])[:2]
    other = typed("chat", f"--model={models / kind}", "--max_new_tokens=8", "--seed=4",
                  lines=["Hello", "And?"])  # fmt: skip
    assert out and out != other[1]


def test_chat_keeps_and_resets_its_history(typed, models, echo):
    command = ("chat", f"--model={models / 'plain'}", "--temperature=0.5")
    _, out, _ = typed(*command, lines=["a", "b", "/reset", "c"])
    assert out.splitlines() == ["a", "a+b", "c"]
    assert echo[1][1] == Conversation().human("a").assistant("a").human("b")
    assert len({name for name, _, _ in echo}) == 3  # each reply has random numbers of its own
    assert echo[0][2]["temperature"] == 0.5


def test_chat_cuts_a_long_history_from_the_front(typed, models, echo):
    command = ("chat", f"--model={models / 'plain'}", "--max_new_tokens=1000")
    _, out, err = typed(*command, lines=["a" * 400, "b" * 300, "c" * 2000, "d"])
    assert out.splitlines() == ["a" * 400, "b" * 300, "b" * 300 + "+d"]
    assert "its first 2 turns are forgotten" in err
    assert "this message alone is too long" in err


def test_chat_with_a_run_uses_its_newest_params(typed, workdir, monkeypatch):
    used = []
    monkeypatch.setattr(chat, "Engine", lambda model, *_: used.append(model))
    assert typed("chat", f"--workdir={workdir}")[0] == 0
    scale = used[0].params["final_norm"]["scale"]
    np.testing.assert_array_equal(scale, tiny_model().params["final_norm"]["scale"] + 1)
    assert "finetune" in used[0].name


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("chat", "give either --model"),
        ("chat --model=a --workdir=b", "give either --model"),
        ("chat --model=nowhere", "no model at 'nowhere'"),
        ("chat --model=nowhere --stage=ppo", "--stage belongs to --workdir"),
        ("chat --model=PLAIN --temperature=-1", "--temperature is -1.0"),
        ("chat --model=PLAIN --max_new_tokens=0", "at least 1"),
        ("chat --model=PLAIN --max_new_tokens=9999", "below 2048"),
        ("chat --model=PLAIN --max_new_tokens=many", "invalid int value"),
        ("chat --workdir=nowhere", "has no config.json"),
        ("chat --workdir=RUN --stage=ppo", "no finished 'ppo'"),
        ("chat --workdir=RUN --stage=pretraining", "invalid choice"),
        ("chat --model=PLAIN --versus=ppo", "--versus belongs to --workdir"),
        ("chat --workdir=RUN --versus=ppo", "--versus needs a --stage"),
        ("chat --workdir=RUN --stage=ppo --versus=ppo", "and another one"),
        ("chat --workdir=RUN --stage=rl", "no finished 'ppo'"),
        ("chat --workdir=RUN --constitution=nowhere.yaml", "no such file"),
    ],
)
def test_bad_input_is_one_sentence(typed, models, workdir, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    arguments = command.replace("PLAIN", str(models / "plain")).replace("RUN", str(workdir))
    code, out, err = typed(*arguments.split(" "))
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1 and err.startswith("cai-jax: ")


def test_params_of_another_model_are_refused(typed, workdir, models, tmp_path):
    small = tiny_model(layers=1)
    write_directory(tmp_path / "small", small.config, small.params, small.tokenizer, None)
    config = workdir / "config.json"
    before = config.read_text()
    try:
        config.write_text(json.dumps({"model": str(tmp_path / "small"), "dtype": "float32"}))
        code, _, err = typed("chat", f"--workdir={workdir}")
    finally:
        config.write_text(before)
    assert code == 2 and "of another shape" in err


def test_replies_stream_and_are_the_same(models, capsys):
    """What is told while a reply is written is each time the beginning of what it becomes."""
    from cai_jax.weights.load import load_model

    model = load_model(str(models / "plain"))
    engine, told = Engine(model, 2, 256), []
    scripts = [
        Script((Force(f"Human {n}:"), Sample(60, ("\n\nHuman:",), 1.0)), id=f"s{n}")
        for n in range(3)
    ]
    plain = engine.run(scripts, seed=1)
    streamed = engine.run(scripts, seed=1, on_text=lambda name, text: told.append((name, text)))
    assert [t.segments[-1].tokens for t in streamed] == [t.segments[-1].tokens for t in plain]
    finals = {t.id: t.segments[-1].text for t in streamed}
    assert len(told) > 20
    last = {}
    for name, text in told:
        assert finals[name].startswith(text) and text.startswith(last.get(name, ""))
        last[name] = text
    assert all(len(last[name]) >= len(finals[name]) - 40 for name in finals)


def test_a_stop_string_is_never_told_before_it_is_whole(models):
    from cai_jax.weights.load import load_model

    model = load_model(str(models / "plain"))
    free = Engine(model, 1, 256).run([Script((Force("a"), Sample(40, (), 1.0)), id="x")], seed=2)
    text = free[0].segments[-1].text
    stop = re.search(r"[ -~]{3}", text[4:])[0]  # characters that the model wrote whole
    told = []
    engine = Engine(model, 1, 256)
    (done,) = engine.run(
        [Script((Force("a"), Sample(40, (stop,), 1.0)), id="x")], 2,
        on_text=lambda _, so_far: told.append(so_far),
    )  # fmt: skip
    final = done.segments[-1].text
    assert final == text[: text.index(stop)] and told
    assert all(final.startswith(so_far) for so_far in told)


def test_two_stages_side_by_side(typed, workdir):
    """Each answers in its own words, and each goes on from its own."""
    command = ("chat", f"--workdir={workdir}", "--max_new_tokens=8", "--temperature=0")
    both = typed(*command, "--stage=finetune", "--versus=initial", lines=["Hello", "And?"])
    alone = [typed(*command, f"--stage={s}", lines=["Hello", "And?"])[1] for s in
             ("finetune", "initial")]  # fmt: skip
    assert both[0] == 0 and "beside" in both[2]
    parts = both[1].split("[finetune]\n")[1:]
    assert len(parts) == 2
    said = [part.split("[initial]\n") for part in parts]
    assert ["".join(half) for half in zip(*said, strict=True)] == alone and alone[0] != alone[1]


def test_critique_and_revise_are_the_stages_prompts(typed, workdir):
    """The same tokens as a Script of the `revise` stage with the same critique forced."""
    command = ("chat", f"--workdir={workdir}", "--max_new_tokens=9", "--temperature=0")
    principle = load(GENERAL).critique[1]
    lines = ["Hello", f"/critique {principle.id}", "/revise", "/revise nothing", "And?"]
    code, out, err = typed(*command, lines=lines)
    assert code == 0 and principle.id in err
    model = chat.model_of_run(workdir, None, lambda _: None)[0]
    engine, sample = Engine(model, 1, 2048), Sample(9, temperature=0.0)
    prompt = Conversation().human("Hello")
    answered = engine.run([Script((*model.format.prompt(prompt), sample), id="a")])[0]
    answer = answered.segments[-1].text.strip()
    forced = critique(model.format, (), prompt, answer, principle)
    criticised = engine.run([Script((*forced, sample), id="b")])[0].segments[-1]
    chain = (*forced, Force(criticised.text), *revision(model.format, principle), sample)
    revised = engine.run([Script(chain, id="c")])[0].segments[-1]
    written = [answer, "[critique]", criticised.text.strip(), "[revision]", revised.text.strip()]
    assert out.startswith("\n".join(written) + "\n")
    shown = "".join(
        {"removed": f"[-{t}-]", "added": f"{{+{t}+}}", "": t}[how]
        for how, t in chat_screen.differences(answer, revised.text.strip())
    )
    assert f"\n{shown}\n" in out
    # The second revision is of another answer, and so of a critique of its own.
    assert "there is no principle 'nothing'; known are" in err


def test_steps_without_an_answer_or_a_constitution_are_refused(typed, workdir, models):
    code, out, err = typed("chat", f"--workdir={workdir}", lines=["/critique", "/revise"])
    assert (code, out) == (0, "") and err.count("there is no answer yet") == 2
    lines = ["Hello", "/critique burn", "/help"]
    code, out, err = typed("chat", f"--workdir={workdir}", "--max_new_tokens=3", lines=lines)
    assert code == 0 and "there is no principle 'burn'; known are" in err and "/revise" in err
    code, out, err = typed(
        "chat", f"--model={models / 'plain'}", "--max_new_tokens=3", lines=["Hello", "/critique"]
    )
    assert code == 0 and "start chat with --constitution=FILE.yaml" in err


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a b c", "a c d"), ("", "new words"), ("old words", ""), ("same", "same"),
        ("two  spaces\nand a line", "two spaces\nand no line"),
    ],
)  # fmt: skip
def test_differences_hold_both_texts(before, after):
    found = chat_screen.differences(before, after)
    assert "".join(t for how, t in found if how != "added") == before
    assert "".join(t for how, t in found if how != "removed") == after
    if before == after:
        assert all(how == "" for how, _ in found)


def test_on_a_terminal_two_replies_stand_beside_each_other(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    screen = chat_screen.Terminal()
    with screen.replies(["one", "two"]) as show:
        show(0, "first reply \x1b[31m", False)
        show(1, "second reply", True)
    screen.difference("old word", "new word")
    out = capsys.readouterr().out
    assert "\x1b[31m" not in out.replace("\x1b[31m\x1b", "")
    assert any("first reply" in line and "second reply" in line for line in out.splitlines())
