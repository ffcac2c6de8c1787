"""What Scripts have in common: the order in which they start, and what they then read."""

import random

import pytest
from fakes import tiny_model

from cai_jax.decoding import Engine, session
from cai_jax.decoding.schedule import compile_script
from cai_jax.decoding.sharing import common_length, running_order
from cai_jax.script import Force, Sample, Script
from cai_jax.tokenizer import BytesTokenizer


def program(text, limit=1, name="x"):
    return compile_script(Script((Force(text), Sample(limit)), name), BytesTokenizer())


def test_common_length():
    assert common_length([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_length((1, 2), (1, 2, 3)) == 2
    assert common_length([], [1]) == 0 == common_length([2], [1])


def test_kin_start_one_after_the_other_and_long_families_first():
    texts = ("one a", "two a", "one b", "two b", "one a and more", "three")
    programs = [program(t, limit=9 if t == "two b" else 1) for t in texts]
    order = running_order(programs, 0, least=4)
    assert sorted(order) == list(range(6))
    assert [texts[i] for i in order] == [
        "two a", "two b", "one a", "one a and more", "one b", "three",
    ]  # fmt: skip


@pytest.mark.slow
def test_every_node_of_the_tree_of_beginnings_is_read_once(monkeypatch):
    """Few-shots, then conversations, then principles: a token that Scripts share is read once."""
    monkeypatch.setattr(session, "LEAST_FORK", 1)
    model, draw = tiny_model(), random.Random(0)
    few_shots = "These few shots stand before everything. "
    talks = [f"{i}{i}{i} " + "".join(draw.choices("abc", k=20)) + "/" for i in range(5)]
    texts = [f"{few_shots}{talk}{n}?" for talk in talks for n in range(7)]
    draw.shuffle(texts)
    scripts = [Script((Force(text), Sample(2)), text) for text in texts]
    tokens = [compile_script(script, model.tokenizer).prefix for script in scripts]
    nodes = {prefix[:end] for prefix in tokens for end in range(1, len(prefix) + 1)}
    for slots in (2, 8, 64):
        engine = Engine(model, slots=slots, max_length=128)
        engine.run(scripts)
        assert engine.stats.read == len(nodes), slots
        read = engine.stats.read + engine.stats.shared + engine.stats.forked
        assert read == sum(map(len, tokens))
