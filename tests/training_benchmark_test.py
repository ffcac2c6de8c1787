"""The training benchmark's peers, memory and table, on a tiny random model."""

import dataclasses
import json

import numpy as np
import peak
import pytest
import tables
import training_memory
import training_work
from fakes import CHATML, CONFIG, tiny_model
from peers import Setup
from peers.gate import Gate
from peers.stepping import Stepping

from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import PromptRow
from cai_jax.encoding import prompt_tokens
from cai_jax.weights.safetensors import write_directory


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(chat=True, vocab_size=261, tied_embeddings=True)


@pytest.fixture(scope="module")
def setup(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_directory(folder, tiny.config, tiny.params, tiny.tokenizer, CHATML)
    return dataclasses.replace(Setup.of(folder, "float32", threads=2), directory=folder)


def stepped(peer: Stepping, steps: int) -> Stepping:
    for _ in range(steps):
        peer.step()
    return peer


def of(name: str, tiny) -> training_work.Work:
    """4 rows of 12 tokens."""
    whole = training_work.build(name, tiny.config.vocab_size, tiny.tokenizer, tiny.format)
    return dataclasses.replace(whole, rows=tuple(row[:12] for row in whole.rows[:4]))


def asked(tiny) -> training_work.Work:
    rows = [
        PromptRow(f"p{n}", "helpful", "", Conversation().human(text))
        for n, text in enumerate(("Hi", "What?", "A dog", "Two"))
    ]
    tokens = [tuple(prompt_tokens(tiny.tokenizer, tiny.format, r.conversation)) for r in rows]
    return training_work.Work("PPO", "iterations", 1, tuple(tokens), tuple(rows), 5, 2)


def test_the_work_is_the_same_each_time_and_of_its_size(tiny):
    words = (tiny.config.vocab_size, tiny.tokenizer, tiny.format)
    for name in training_work.NAMES:
        assert training_work.build(name, *words) == training_work.build(name, *words)
    sl = training_work.build("SL", *words)
    assert sl.size == 2048 == sum(map(len, sl.rows)) and min(map(min, sl.rows)) >= 261 // 4
    ppo = training_work.build("PPO", *words)
    assert len(ppo.rows) == len(ppo.prompts) == 16 and ppo.response == 32


RATE = 3e-3  # at the benchmark's, no loss moves enough to tell optimisers apart


def test_ours_and_trl_begin_with_the_same_losses(tiny, setup, monkeypatch):
    """Before the first step, and after one and two steps of both optimisers."""
    pytest.importorskip("trl.trainer.reward_trainer")
    from peers import ours_training, trl_training

    monkeypatch.setitem(ours_training.OPTIMIZER, "learning_rate", RATE)
    monkeypatch.setattr(trl_training, "LEARNING_RATE", RATE)
    for name in ("SL", "PM"):
        work = of(name, tiny)
        ours = stepped(getattr(ours_training, name)(setup, work), 3).losses
        theirs = stepped(getattr(trl_training, name)(setup, work), 3).losses
        assert ours == pytest.approx(theirs, abs=1e-3), name
        assert ours[0] > ours[2] + 0.02


def test_ours_and_tunix_begin_with_the_same_losses(tiny, setup, monkeypatch):
    pytest.importorskip("tunix")
    from peers import ours_training, tunix_training

    monkeypatch.setitem(ours_training.OPTIMIZER, "learning_rate", RATE)
    monkeypatch.setattr(tunix_training, "LEARNING_RATE", RATE)
    work = of("SL", tiny)
    ours = stepped(ours_training.SL(setup, work), 3).losses
    theirs = stepped(tunix_training.SL(setup, work), 4).losses  # a step behind
    assert ours == pytest.approx(theirs[:3], abs=1e-3)


@pytest.mark.slow
def test_our_ppo_writes_all_tokens_of_each_update(tiny, setup):
    from peers import ours_training

    peer = ours_training.PPO(setup, asked(tiny))
    peer.step()
    assert peer.run(greedy=False, seed=0).details["response_tokens"] == 5


def test_trls_ppo_goes_step_by_step(tiny, setup):
    pytest.importorskip("trl.experimental.ppo", reason="TRL 1.9 has PPO")
    from peers import trl_ppo

    stepped(trl_ppo.PPO(setup, asked(tiny)), 2)


def test_a_gate_stops_after_each_step_and_tells_of_an_end():
    done = []

    def loop(pause):
        for n in range(2):
            done.append(n)
            pause()
        raise ValueError("no more")

    gate = Gate(loop)
    assert done == []
    gate.step()
    assert done == [0]
    gate.step()
    assert done == [0, 1]
    with pytest.raises(RuntimeError, match="ended before"):
        gate.step()


def test_the_least_memory_of_ppo_by_hand():
    config = dataclasses.replace(CONFIG, tied_embeddings=False)
    found = training_memory.minimum(config, 1000, 4, 2, 10, 6)
    scorer = 1000 - config.embed * config.vocab_size + config.embed + 1
    assert found["policy"] == found["reference"] == found["gradients"] == 4000
    assert found["value model"] == found["preference model"] == 4 * scorer
    assert found["optimiser"] == 2 * 4 * (1000 + scorer)
    assert found["cache"] == 4 * 2 * 4 * 16 * config.layers * config.kv_heads * config.head_dim
    logits = 2 * 2 * 6 * config.vocab_size
    inside = 2 * 16 * (2 * config.embed + 3 * config.mlp + 2 * config.heads * config.head_dim)
    inside += 2 * config.heads * 16**2
    assert found["activations"] == 4 * (config.layers * 32 * config.embed + max(logits, inside))
    held = 2 * 4000 + 2 * 4 * scorer + found["optimiser"]
    assert found["least"] == held + max(found["cache"], 4000 + found["activations"])


def test_the_table_of_steps():
    def row(peer, seconds, **more):
        rates = [2048 / s for s in seconds]
        details = {"losses": [4.0, 3.5], "peak_bytes": 2_500_000_000}
        return tables.Measured("SL", peer, "tokens", 1, 1, seconds, rates, details=details, **more)

    rows = [row("ours", [10.0, 16.0]), row("TRL", [20.0, 40.0]), row("lost", [], failure="gone")]
    table = tables.training(rows, {("SL", "TRL"): 2.0})
    assert (
        "| SL | TRL | 30 (20-40) | 76.8 tokens/s | 2.25 (2-2.5) | 2 | 4.0000, 3.5000 | 2.5 |"
        in (table)
    )
    assert "failed: gone" in table
    json.dumps([dataclasses.asdict(r) for r in rows])


def test_the_peak_is_of_what_was_held_since_it_was_forgotten():
    peak.forget()
    before = peak.peak()
    held = np.ones(2**23)
    assert peak.peak() - before > 0.9 * held.nbytes
