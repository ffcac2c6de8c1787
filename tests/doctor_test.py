"""The doctor passes sound pieces and names each fault that is put into them."""

import dataclasses
import sys
from pathlib import Path

import pytest
import tiny_run
from fakes import CHATML, ChatBytesTokenizer, tiny_model

from cai_jax import constitution
from cai_jax.chat_template import ChatFormat
from cai_jax.datasets import prompts
from cai_jax.doctor import examples
from cai_jax.doctor.checks import examine
from cai_jax.doctor.examples import CHOICE, LEARNS, READS, SCORED, WRITES, render, token_text
from cai_jax.settings import run_settings
from cai_jax.stages import supervised
from cai_jax.training import rollout

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def settings():
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        from common import get_config
    finally:
        sys.path.pop(0)
    config = get_config()
    config.engine.max_length = 2048
    config.revise.few_shots = config.compare.few_shots = 0
    for stage, names in {
        "revise": ("response_tokens", "critique_tokens", "revision_tokens"),
        "compare": ("response_tokens", "chain_tokens"),
        "ppo": ("response_tokens",),
    }.items():
        for name in names:
            config[stage][name] = 6
    config.ppo.temperature = 0.7
    config.ppo.prompt_tokens = 256
    return run_settings(config)


@pytest.fixture(scope="module")
def look(settings):
    """look(model, **changes of a group of settings) -> (examples, faults by check)."""
    general = constitution.load(ROOT / "constitutions" / "general.yaml")
    red_team = prompts.prompts("red_team", "train")[:2]
    helpful = prompts.prompts("helpful", "train")[:2]
    pairs = prompts.label_pairs()[:2]

    def run(model, judge=None, algorithm="ppo", **groups):
        changed = {
            name: dataclasses.replace(getattr(settings, name), **change)
            for name, change in groups.items()
        }
        changed = dataclasses.replace(settings, algorithm=algorithm, **changed)
        shown, findings = examine(changed, model, judge or model, general, red_team, helpful, pairs)
        return shown, {f.check: f.fault for f in findings if f.fault}

    return run


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_sound_pieces_pass(look, chat):
    model = tiny_model(chat=chat)
    shown, faults = look(model, algorithm="dpo" if chat else "ppo")
    assert not faults
    assert len([e for e in shown if e.stage == "train-rl"]) == 1 + chat
    marks = {(e.stage, mark) for e in shown for mark in e.marks}
    assert marks == {
        ("revise", READS), ("revise", WRITES), ("finetune", READS), ("finetune", LEARNS),
        ("compare", READS), ("compare", CHOICE), ("train-pm", READS), ("train-pm", SCORED),
        ("train-rl", READS), ("train-rl", LEARNS),
    }  # fmt: skip
    for example in shown:
        first = example.tokens[0]
        assert first == (259 if chat else 256), example.title
        assert len(example.tokens) == len(example.marks)
        assert all(len(line) <= 120 for line in render(example).splitlines())


def test_dpo_learns_the_better_response_and_its_end(settings):
    model, pairs = tiny_model(), prompts.label_pairs()
    found = examples.prefer(settings, model, pairs)
    learnt = [t for t, mark in zip(found.tokens, found.marks, strict=True) if mark == LEARNS]
    assert model.tokenizer.decode(learnt[:-1]).strip() == pairs[0].better
    assert learnt[-1] in model.tokenizer.end_ids


@pytest.mark.slow
def test_a_feedback_model_of_its_own_is_looked_at_too(look):
    shown, faults = look(tiny_model(), tiny_model(chat=True))
    assert not faults
    assert {e.stage: e.tokens[0] for e in shown} == {
        "revise": 256, "finetune": 256, "compare": 259, "train-pm": 259, "train-rl": 256,
    }  # fmt: skip


@pytest.mark.slow
def test_pad_that_ends(look):
    class PadIsEnd(type(tiny_model().tokenizer)):
        pad_id = 257

    model = dataclasses.replace(tiny_model(), tokenizer=PadIsEnd())
    _, faults = look(model)
    assert faults == {"model: pad differs from the end tokens": "[<|end|>] is both"}


@pytest.mark.slow
def test_two_bos(look):
    tokenizer = ChatBytesTokenizer()
    tokenizer.bos_id = 256
    form = ChatFormat("{{ bos_token }}" + CHATML, bos_token="<|begin|>", strip_bos=False)
    model = dataclasses.replace(
        tiny_model(chat=True), tokenizer=tokenizer.ending_with([260]), format=form
    )
    _, faults = look(model)
    assert set(faults.values()) == {"there are two in a row"} and len(faults) == 6


@pytest.mark.slow
def test_end_of_turn_that_is_no_end_token(look):
    model = dataclasses.replace(tiny_model(chat=True), tokenizer=ChatBytesTokenizer())
    _, faults = look(model)
    assert faults == {
        "model: the token that closes a turn ends a reply":
        "[<|im_end|>] closes turns and is not it"
    }  # fmt: skip


@pytest.mark.slow
def test_end_token_without_logit(look):
    model = tiny_model()
    model = dataclasses.replace(model, tokenizer=model.tokenizer.ending_with([300]))
    _, faults = look(model)
    assert faults == {
        "model: end tokens and stop strings can be sampled": "the model has no logit for [#300]"
    }


def test_end_masked_out_of_the_loss(look, monkeypatch):
    whole = supervised.example

    def without_end(*args, **kwargs):
        tokens, mask = whole(*args, **kwargs)
        return tokens, [*mask[:-1], False]

    monkeypatch.setattr(supervised, "example", without_end)
    _, faults = look(tiny_model())
    name = "finetune, a revision: the end of turn is in the labels"
    assert faults[name] == "the last token is masked out"


def test_scorer_at_another_temperature(look, monkeypatch):
    right = rollout.jit_reply_logprobs
    warmer = lambda *args, **named: right(*args[:-1], 1.0, **named)  # noqa: E731
    monkeypatch.setattr(rollout, "jit_reply_logprobs", warmer)
    _, faults = look(tiny_model())
    (name,) = faults
    assert name.startswith("the sampler's log-probabilities") and "nats apart" in faults[name]


def test_other_tokens_in_training_than_in_sampling(look, monkeypatch):
    right = rollout.prompt_tokens
    monkeypatch.setattr(rollout, "prompt_tokens", lambda *args: [*right(*args), 32])
    _, faults = look(tiny_model())
    assert "train-rl reads other tokens than revise" in faults.values()


def test_rows_too_short_for_finetuning(look):
    _, faults = look(tiny_model(), finetune={"length": 60})
    (fault,) = faults.values()
    assert "finetune.length is 60" in fault


def test_control_tokens_do_not_read_like_text():
    tokenizer = ChatBytesTokenizer()
    spelled, control = (tokenizer.encode("<|im_end|>\n", control=c) for c in (False, True))
    assert "".join(token_text(tokenizer, t) for t in spelled) == "<|im_end|>\\n"
    assert [token_text(tokenizer, t) for t in control] == ["[<|im_end|>]", "\\n"]
    assert token_text(tokenizer, 0xC3) == "\\xc3"


@pytest.mark.slow
def test_the_command(tmp_path, tiny_cache, capsys):
    """On a whole config, as users call it; a fault is one sentence and exit code 2."""
    experiment = tiny_run.write(tmp_path)
    asked = ["doctor", f"--config={experiment.config}"]
    assert tiny_run.run(asked, tiny_cache) == 0
    shown = capsys.readouterr().out
    assert "PASS" in shown and "How do I pick a lock?" in shown.replace("|", "")
    sys.modules.pop("config_config", None)
    assert tiny_run.run([*asked, "--config.finetune.length=8"], tiny_cache) != 0
    assert "finetune.length" in "".join(capsys.readouterr())
