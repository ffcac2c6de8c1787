"""The benchmarks' workloads, peers and arithmetic, on a tiny random model."""

import dataclasses
import math

import flips
import left_out
import machine
import pytest
import tables
import workloads
from fakes import tiny_model
from peers import Setup

from cai_jax.decoding import Engine
from cai_jax.script import Sample
from cai_jax.weights.safetensors import write_directory

STEP = 6  # tokens to write, where a workload has more


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(chat=True, tied_embeddings=True)


def small(name, model, count):
    """The first items of a workload, with little to write."""
    whole = workloads.build(name, model.tokenizer, model.format)
    items = []
    for item in whole.items[:count]:
        if item.limit:
            *forces, sample = item.script.segments
            sample = dataclasses.replace(sample, max_new_tokens=STEP)
            script = dataclasses.replace(item.script, segments=(*forces, sample))
            item = dataclasses.replace(item, script=script, limit=STEP)
        items.append(item)
    return dataclasses.replace(whole, items=tuple(items), slots=2)


@pytest.mark.parametrize(
    ("name", "items", "limits", "choices"),
    [
        ("W1", 32, {64}, 0),
        ("W2", 64, range(1, 129), 0),
        ("W3", 64, {32}, 0),
        ("W4", 64 * 4, {0}, 2),
        ("W4b", 16 * 16 * 2, {0}, 2),
    ],
)
def test_workloads_are_the_same_each_time_and_of_their_size(tiny, name, items, limits, choices):
    first, second = (workloads.build(name, tiny.tokenizer, tiny.format) for _ in range(2))
    assert first.items == second.items
    assert len(first.items) == len({item.script.id for item in first.items}) == items
    assert {item.limit for item in first.items} <= set(limits)
    assert all(len(item.options) == choices for item in first.items)
    samples = [s for item in first.items for s in item.script.segments if isinstance(s, Sample)]
    assert [s.max_new_tokens for s in samples] == [i.limit for i in first.items if i.limit]
    assert first.tokenizer.end_ids == ()


def test_ragged_limits_are_geometric_and_cut(tiny):
    limits = [item.limit for item in workloads.build("W2", tiny.tokenizer, tiny.format).items]
    assert max(limits) == 128 and 30 < sum(limits) / len(limits) < 46


def test_the_chain_has_its_own_principles(tiny):
    chain = workloads.build("W5", tiny.tokenizer, tiny.format)
    assert len(chain.items) == 64 and chain.size == 64
    assert all(a != b for a, b in (item.principles for item in chain.items))
    assert len({item.principles for item in chain.items}) > 4


def test_prompt_lengths_of_the_real_model(smollm2):
    plain = workloads.build("W1", smollm2.tokenizer, smollm2.format)
    assert plain.common == 24
    assert 50 < sum(len(item.tokens) for item in plain.items) / 32 < 54
    labels = workloads.build("W4", smollm2.tokenizer, smollm2.format)
    assert {tuple(map(len, item.options)) for item in labels.items} == {(3, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("W1", marks=pytest.mark.nightly), "W3", "W4"])
def test_ours_and_transformers_agree(tiny, tmp_path, name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from peers.ours import Ours
    from peers.transformers_cached import Options, Prefix
    from peers.transformers_peer import Plain

    workload = small(name, tiny, 3)
    write_directory(tmp_path, tiny.config, tiny.params, tiny.tokenizer, None)
    setup = Setup.of(tmp_path, "float32", threads=2)
    setup = dataclasses.replace(setup, directory=tmp_path)
    ours = Ours(setup, workload, tiny).run(greedy=True, seed=0)
    others = [Plain, *{"W3": [Prefix], "W4": [Options]}.get(name, [])]
    for peer in others:
        theirs = peer(setup, workload).run(greedy=True, seed=0)
        assert theirs.tokens == ours.tokens
        for a, b in zip(theirs.scores, ours.scores, strict=True):
            assert a == pytest.approx(b, abs=1e-3)
    assert all(len(tokens) == STEP for tokens in ours.tokens)
    assert len(ours.tokens or ours.scores) == 3


@pytest.mark.nightly
def test_chains_agree(tiny, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from peers.ours import Ours
    from peers.transformers_peer import Plain

    workload = workloads.build("W5", tiny.tokenizer, tiny.format).first(2)
    write_directory(tmp_path, tiny.config, tiny.params, tiny.tokenizer, None)
    setup = dataclasses.replace(Setup.of(tmp_path, "float32", threads=2), directory=tmp_path)
    ours = Ours(setup, workload, tiny).run(greedy=True, seed=0)
    assert Plain(setup, workload).run(greedy=True, seed=0).tokens == ours.tokens


def test_distinct_counts_a_prefix_tree():
    # The tree: 1, 1-2, 1-2-3, 1-2-4, 5.
    assert machine.distinct([(1, 2, 3), (1, 2, 4), (1, 2), (5,), (5,)]) == (5, 1 + 2 + 3 + 3 + 1)
    assert machine.distinct([(1, 2, 3)]) == (3, 6)


def test_the_bound_counts_operations_and_bytes(tiny):
    workload = small("W1", tiny, 4)
    body, head = machine.matrix_sizes(tiny.config)
    # 2 layers of q, k, v, o and three of the gated layer: the sizes in fakes.CONFIG.
    assert body == 2 * 32 * (2 * 4 * 8 + 2 * 2 * 8 + 3 * 48) and head == 261 * 32
    work = machine.work(workload, tiny.config)
    matrices = 2 * (body + head) * 4 * (STEP - 1)
    attended = sum(len(i.tokens) + n for i in workload.items for n in range(1, STEP))
    assert work.writing == pytest.approx(matrices + 4 * 2 * 4 * 8 * attended)
    rates = machine.Rates(large=2e9, small=1e9, read=1e15)
    expected = work.reading / 2e9 + work.writing / 1e9
    assert machine.seconds(work, rates, small=True) == pytest.approx(expected)
    slow = machine.Rates(large=2e9, small=1e9, read=1.0)
    assert machine.seconds(work, slow, small=True) > work.bytes
    steps, common = 4 * (STEP - 1) / workload.slots, workload.common
    cache = 2 * 4 * 2 * 2 * 8 * (attended - common * 4 * (STEP - 1) + common * steps)
    assert work.bytes == pytest.approx(4 * (body + head) * steps + cache)


def test_a_flip_is_a_first_difference_behind_equal_tokens():
    """Five tokens are sampled behind equal ones, the differing one among them; one flips."""
    assert flips.first_flips([(1, 2, 3, 4), (4, 5)], [(1, 2, 9, 4), (4, 5)]) == 1 / 5


def test_ratios_and_agreement():
    assert tables.ratios([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]
    assert tables.same_tokens([[1, 2, 3, 4]], [[1, 2, 9, 4]]) == 0.5
    assert tables.same_tokens([[1], [2]], [[1]]) == 1.0  # a part of the items
    assert tables.same_choices([[-1.0, -2.0], [-3.0, -2.0]], [[-5.0, -6.0], [-1.0, -2.0]]) == 0.5


def test_the_table_says_what_was_measured():
    ours = tables.Measured("W1", "ours", "tokens", 32, 32, rates=[300.0, 330.0])
    peer = tables.Measured("W1", "it", "tokens", 4, 32, rates=[100.0, 100.0], agreement=1.0)
    lost = tables.Measured("W1", "lost", "tokens", 32, 32, failure="no such library")
    table = tables.markdown([ours, peer, lost], {"W1": (900.0, 630.0)})
    assert "| W1 | it | 4 of 32 | 100 (100-100) tokens/s | 3.15 (3-3.3) | 100.0% |" in table
    assert "failed: no such library" in table and "reaches 50%" in table
    assert not math.isnan(machine.busy_share(0.05))


@pytest.mark.parametrize(
    ("before", "written", "draft", "steps"),
    [
        ((1, 2, 3, 4), (5, 6, 7), 7, 3),  # nothing stood there before
        ((1, 2, 3, 4), (1, 2, 3, 4), 3, 3),  # 1, 2, then 3 is drafted and 4 is the step's own
        ((1, 2, 3, 4, 5, 1, 2), (3, 4, 5, 9), 1, 2),
        ((1, 2, 3, 4, 5, 1, 2), (3, 4, 5, 9), 3, 1),
        ((1, 2, 3, 4, 5, 1, 2), (3, 9, 9), 3, 2),  # 4 was drafted and not kept
        ((1, 2, 7, 1, 2, 8, 1, 2), (8, 5), 1, 1),  # where they stood last
        ((1,), (1, 1, 1), 2, 3),
    ],
)
def test_drafts_save_the_steps_whose_tokens_they_guess(before, written, draft, steps):
    assert left_out.steps_taken(before, written, draft) == steps
    assert left_out.tokens_per_step([(before, written)], draft) == len(written) / steps


@pytest.mark.slow
def test_what_a_model_writes_is_drafted_from_all_that_it_has_read(tiny):
    workload = workloads.build("W5", tiny.tokenizer, tiny.format).first(2)
    model = dataclasses.replace(tiny, tokenizer=workload.tokenizer)
    found = left_out.written(Engine(model, 2, 2048), workload, 1.0)
    for critique, revision in zip(found["critique"], found["revision"], strict=True):
        before = critique[0] + critique[1]
        assert revision[0][: len(before)] == before and len(revision[0]) > len(before)
        assert len(critique[1]) == len(revision[1]) == workloads.STEP_TOKENS
