"""The engine against the plain forward pass: the same contexts, tokens and log-probabilities."""

import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import PiecesTokenizer, tiny_model

from cai_jax.decoding import Engine, bursts, calls, reading, session
from cai_jax.decoding import engine as engine_module
from cai_jax.decoding.memory import slot_bytes
from cai_jax.decoding.schedule import ScriptError
from cai_jax.models import transformer
from cai_jax.models.scoring import jit_reply_logprobs
from cai_jax.script import Choose, Force, Sample, Script

LENGTH = 256  # all plain forward passes here are padded to it, so that one compilation serves
SHARED = "\n\nHuman: Everybody reads this first."


@functools.partial(jax.jit, static_argnames=("config",))
def _forward(config, params, tokens):
    ones = jnp.ones_like(tokens)
    hidden = transformer.hidden_states(config, params, tokens, jnp.cumsum(ones, 1) - 1, ones)
    return transformer.logits(params, hidden)


def forward(model, tokens):
    """Logits float64[T, V] after each token, from one pass over the whole text."""
    padded = np.zeros((1, LENGTH), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_forward(model.config, model.params, padded), np.float64)[0, : len(tokens)]


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def summed(model, context, option):
    """Log-probability of `option`'s tokens after `context`."""
    scores = log_softmax(forward(model, [*context, *option]))[len(context) - 1 : -1]
    return scores[np.arange(len(option)), option].sum()


def bytes_of(tokenizer, tokens):
    return [tokenizer.token_bytes(t) if t < tokenizer.vocab_size else b"" for t in tokens]


def context_after(sample, result, tokenizer):
    """The tokens that a Sample leaves in the context; None where its text is no UTF-8."""
    if result.stop_reason == "end":
        return list(result.tokens[:-1])
    if result.stop_reason == "length":
        return list(result.tokens)
    pieces = bytes_of(tokenizer, result.tokens)
    data = b"".join(pieces)
    cut = min(place for stop in sample.stop if (place := data.find(stop.encode())) >= 0)
    for kept in range(len(pieces), -1, -1):
        size = len(b"".join(pieces[:kept]))
        if size <= cut:
            try:
                return [*result.tokens[:kept], *tokenizer.encode(data[size:cut].decode())]
            except UnicodeDecodeError:
                continue
    return None


def check(model, script, transcript):
    """Every segment of a transcript, against plain forward passes over the context it implies."""
    tokenizer = model.tokenizer
    context = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert transcript.id == script.id and len(transcript.segments) == len(script.segments)
    for segment, result in zip(script.segments, transcript.segments, strict=True):
        if isinstance(segment, Force):
            assert result.text == segment.text
            context += tokenizer.encode(segment.text, control=segment.control)
            continue
        if isinstance(segment, Choose):
            expected = [summed(model, context, tokenizer.encode(o)) for o in segment.options]
            np.testing.assert_allclose(result.option_logprobs, expected, atol=1e-4)
            continue
        tokens, n = list(result.tokens), len(context)
        assert 1 <= len(tokens) <= segment.max_new_tokens
        logits = forward(model, context + tokens)[n - 1 : -1]
        scores = log_softmax(logits / (segment.temperature or 1.0))
        np.testing.assert_allclose(
            result.logprobs, scores[np.arange(len(tokens)), tokens], atol=1e-4
        )
        if segment.temperature == 0:
            best = logits.max(-1)
            assert (logits[np.arange(len(tokens)), tokens] >= best - 1e-4).all()
        elif segment.top_p < 1:
            chosen = scores[np.arange(len(tokens)), tokens][:, None]
            mass_above = np.where(scores > chosen + 1e-4, np.exp(scores), 0).sum(-1)
            assert (mass_above < segment.top_p + 1e-4).all()  # else the nucleus ends before it
        ends = [t in tokenizer.end_ids for t in tokens]
        pieces = bytes_of(tokenizer, tokens)
        whole = data = b"".join(pieces)
        stops = [data.find(stop.encode()) for stop in segment.stop]
        assert not any(ends[:-1])
        if ends[-1]:
            assert result.stop_reason == "end"
        elif any(place >= 0 for place in stops):
            assert result.stop_reason == "stop"
            data = data[: min(place for place in stops if place >= 0)]
            before = len(whole) - len(pieces[-1])
            assert all(whole.find(s.encode(), 0, before) < 0 for s in segment.stop)  # seen at once
        else:
            assert result.stop_reason == "length" and len(tokens) == segment.max_new_tokens
        assert result.text == data.decode(errors="replace")
        after = context_after(segment, result, tokenizer)
        if after is None:
            return
        context += after


def assert_same(transcripts, others):
    """The same texts, and the same numbers up to rounding."""
    for a, b in zip(transcripts, others, strict=True):
        assert a.id == b.id
        for x, y in zip(a.segments, b.segments, strict=True):
            assert (x.text, x.tokens, x.stop_reason) == (y.text, y.tokens, y.stop_reason)
            np.testing.assert_allclose(x.logprobs, y.logprobs, atol=1e-4)
            np.testing.assert_allclose(x.option_logprobs, y.option_logprobs, atol=1e-4)


def random_scripts(count, seed=0, shared=""):
    """Scripts of two or three further segments, of every kind and order, of under 128 tokens."""
    draw = random.Random(seed)

    def text(least, most):
        return "".join(draw.choices("abé :\n(A)Hum", k=draw.randint(least, most)))

    def segment():
        kind = draw.choice("fsssc")
        if kind == "f":
            return Force(text(0, 10))
        if kind == "c":
            longest = draw.choice((1, 12))
            return Choose(tuple(text(1, longest) for _ in range(draw.randint(1, 4))))
        return Sample(
            max_new_tokens=draw.choice((1, 5, 20, 20)),
            stop=draw.choice(((), ("e",), ("\n\nHuman:", "ab"), ("é", "a", "H"))),
            temperature=draw.choice((0.0, 0.7, 1.0, 1.0)),
            top_p=draw.choice((1.0, 1.0, 0.6)),
        )

    def script(name):
        segments = [Force(shared), Force(text(0, 25))]
        while len(segments) < 4 or (len(segments) < 5 and draw.random() < 0.6):
            segments.append(segment())
        return Script(segments, name)

    return [script(f"{seed}/{i}") for i in range(count)]


@pytest.fixture(scope="module", autouse=True)
def small_steps():
    """Short bursts and chunks: their seams are everywhere, and few sizes are compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "STEPS", 16)
        patch.setattr(calls, "SIZES", (16, 64))
        patch.setattr(engine_module, "SIZES", (16,))
        yield


@pytest.fixture(scope="module")
def model():
    """A model whose tokens are bytes, and pieces that straddle stop strings and characters."""
    draw = random.Random(0)
    pieces = {"".join(draw.choices("abeH\n: ", k=k)).encode() for k in (2, 3, 4) for _ in range(40)}
    pieces |= {b"\n\nHuman:", b"\nHuman", "é".encode(), b"\xa9\n\n", b"b\xc3"}
    tokenizer = PiecesTokenizer(tuple(sorted(pieces)))
    # A few rows more than the tokenizer has tokens, as many published models have.
    model = tiny_model(vocab_size=tokenizer.vocab_size + 5)
    # A first dimension that is always large serves as the bias of the output: bytes that are no
    # text alone come seldom, and end tokens often enough.
    embedding, kernel = (
        np.array(model.params["embed"]["embedding"]),
        np.array(model.params["lm_head"]["kernel"]),
    )
    embedding[:, 0] = 5
    kernel[0] = 0
    kernel[0, 128:256] = -2
    kernel[0, 257] = 1
    params = model.params | {
        "embed": {"embedding": jnp.asarray(embedding)},
        "lm_head": {"kernel": jnp.asarray(kernel)},
    }
    return dataclasses.replace(model, tokenizer=tokenizer, params=params)


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, slots=4, max_length=128)


def check_all(model, scripts, transcripts):
    for script, transcript in zip(scripts, transcripts, strict=True):
        check(model, script, transcript)


@pytest.mark.slow
def test_random_scripts_equal_plain_forward_passes(engine, model):
    scripts = random_scripts(60, seed=1)
    transcripts = engine.run(scripts, seed=3)
    assert not engine.stats.shared
    check_all(model, scripts, transcripts)
    reasons = [r.stop_reason for t in transcripts for r in t.segments]
    assert min(map(reasons.count, ("end", "stop", "length"))) > 5


@pytest.mark.slow
def test_random_scripts_with_a_shared_prefix_equal_plain_forward_passes(engine, model):
    scripts = random_scripts(30, seed=2, shared=SHARED)
    transcripts = engine.run(scripts, seed=3)
    assert engine.stats.shared
    check_all(model, scripts, transcripts)


@pytest.fixture(scope="module")
def alone(model, engine):
    """Scripts with a common beginning, and their Transcripts when it is not shared."""
    segments = Sample(20, ("b",)), Force("!"), Sample(20, ("☃",), top_p=0.9)
    scripts = [Script((Force(f"{SHARED} {i}"), *segments), f"{i}") for i in range(12)]
    other = Script((Force("\n"), *segments), "other")
    transcripts = engine.run([*scripts[:5], other, *scripts[5:]], seed=7)
    assert not engine.stats.shared
    return scripts, transcripts[:5] + transcripts[6:]


@pytest.mark.parametrize("slots", [1, 3, 32])
def test_samples_depend_on_seed_and_id_only(model, alone, slots, monkeypatch):
    """Not on the slots, the order, the Scripts beside it, a shared prefix or a burst's length."""
    monkeypatch.setattr(calls, "STEPS", 3)
    scripts, expected = alone
    engine = Engine(model, slots=slots, max_length=128)
    assert_same(engine.run(scripts[::-1], seed=7)[::-1], expected)
    assert engine.stats.shared
    assert_same(engine.run(scripts[3:5], seed=7), expected[3:5])


def test_scripts_that_begin_alike_share_what_slots_hold(engine, model, monkeypatch):
    """Families of Scripts with beginnings within beginnings; some ask for nothing."""
    monkeypatch.setattr(session, "LEAST_FORK", 2)
    draw = random.Random(0)
    for trial in range(6):
        families = ["".join(draw.choices("abé\n", k=draw.randint(3, 30))) for _ in range(3)]
        scripts = []
        for n in range(24):
            begin = draw.choice(families)
            begin = begin[: draw.randint(2, len(begin))] + draw.choice(("", "x", "ab", "é" * 9))
            end = draw.choice(
                (
                    (Sample(draw.choice((1, 6, 17)), draw.choice((("☃",), ("a", "b")))),),
                    (Choose(("a", "be")), Sample(3, ("☃",), 0.0)),
                    (Choose(("a", "be")),),
                    (),
                )
            )
            scripts.append(Script((Force(begin), *end), f"{trial}/{n}"))
        transcripts = engine.run(scripts, seed=trial)
        assert engine.stats.forked
        check_all(model, scripts, transcripts)


def test_another_seed_id_or_segment_samples_otherwise(engine, alone):
    scripts, expected = alone
    other_seed = engine.run(scripts, seed=8)
    same = [a.segments[1] == b.segments[1] for a, b in zip(expected, other_seed, strict=True)]
    assert sum(same) < 3
    sample = Sample(10, ("☃",))
    twice = [Script((Force(SHARED), sample, Force(SHARED), sample), f"{i}") for i in range(12)]
    tokens = [t.segments[n].tokens for t in engine.run(twice) for n in (1, 3)]
    assert len(set(tokens)) == 24


def test_more_scripts_than_slots(engine, model):
    scripts = [
        Script((Force(f"{i}"), Sample(1 + i % 9, ("☃",)), Choose(("a",))), f"{i}")
        for i in range(70)
    ]
    seen = []
    transcripts = engine.run(scripts, progress=lambda done, total: seen.append((done, total)))
    assert [t.id for t in transcripts] == [s.id for s in scripts]
    assert seen == sorted(seen) and seen[-1][0] <= 70 and {total for _, total in seen} == {70}
    assert engine.stats.sampled == sum(len(t.segments[1].tokens) for t in transcripts)
    assert 0.3 < engine.stats.occupancy <= 1
    check_all(model, scripts[::7], transcripts[::7])


def test_finished_scripts_are_handed_out_while_others_run_and_survive_a_cancellation(engine):
    """The short ones first; what was handed out is what a whole run returns."""
    scripts = [
        Script((Force(f"{i}"), Sample(40 if i % 4 == 0 else 2, ("☃",))), f"{i}") for i in range(40)
    ]
    whole = {t.id: t for t in engine.run(scripts)}
    kept = []

    def keep(transcript):
        kept.append(transcript)
        if len(kept) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(scripts, on_finish=keep)
    assert len(kept) == 20 and [t.id for t in kept] != [s.id for s in scripts[:20]]
    assert_same(kept, [whole[t.id] for t in kept])
    kept.clear()
    returned = engine.run(scripts[:12], on_finish=kept.append)  # the engine is as good as new
    assert sorted(t.id for t in kept) == sorted(t.id for t in returned)
    assert_same(returned, [whole[s.id] for s in scripts[:12]])


def test_as_many_options_as_slots(engine, model):
    """Then a scoring call is as wide as the cache, but its rows are not the slots in order."""
    scripts = [Script((Force(f"({i}"), Choose((" (A)", " (B)"))), f"{i}") for i in range(8)]
    check_all(model, scripts, engine.run(scripts))


def test_a_choice_leaves_no_trace(engine, model):
    options, greedy = Choose(("ab:", "e", "\n\nHuman: e")), Sample(9, ("☃",), temperature=0.0)
    scripts = [
        Script((Force("ab"), options, Force("é"), options, greedy), "chosen"),
        Script((Force("ab"), Force("é"), greedy), "plain"),
        Script((Force("ab"), options, options), "twice"),
    ]
    chosen, plain, twice = transcripts = engine.run(scripts)
    check_all(model, scripts, transcripts)
    assert chosen.segments[-1].tokens == plain.segments[-1].tokens
    assert twice.segments[1] == twice.segments[2]


def test_a_sampled_context_is_the_forced_one(engine, model):
    """After any end of a Sample, the Script goes on as one that was forced the sampled text."""
    options = Choose(("a", "b", " e:", "\n"))
    settings = (Sample(5), Sample(40, ("a", "\n")), Sample(60, ("e", "b"), 0.0), Sample(90))
    sampled = [
        Script((Force(f"é{i}"), settings[i % 4], options, Force("."), options), f"{i}")
        for i in range(32)
    ]
    forced, answers, reasons = [], [], set()
    for script, answer in zip(sampled, engine.run(sampled), strict=True):
        result = answer.segments[1]
        same_tokens = model.tokenizer.encode(result.text) == context_after(
            script.segments[1], result, model.tokenizer
        )
        if same_tokens:
            reasons.add(result.stop_reason)
            answers.append(answer)
            forced.append(
                Script((script.segments[0], Force(result.text), *script.segments[2:]), script.id)
            )
    assert reasons == {"end", "stop", "length"}
    for a, b in zip(answers, engine.run(forced), strict=True):
        for place in (2, 4):
            np.testing.assert_allclose(
                a.segments[place].option_logprobs, b.segments[place].option_logprobs, atol=1e-4
            )


def test_stop_strings_wherever_they_stand(engine, model):
    """The same sample again, stopped at strings that are known to come."""
    draw = random.Random(0)
    free = [Script((Force(f"{i}"), Sample(30, ("☃",))), f"{i}") for i in range(12)]
    scripts = []
    for script, answer in zip(free, engine.run(free), strict=True):
        text = answer.segments[1].text
        if "\ufffd" in text or len(text) < 8:
            continue
        at = draw.randrange(len(text) - 4)
        for n, stop in enumerate(
            ((text[:1],), (text[at : at + 4],), (text[at : at + 3], text[at + 1 : at + 4]))
        ):
            scripts.append(Script((*script.segments[:1], Sample(30, stop)), f"{script.id}"))
            place = min(text.find(s) for s in stop)
            (stopped,) = engine.run(scripts[-1:])
            assert stopped.segments[1].text == text[:place], n
            assert stopped.segments[1].stop_reason == "stop"
            check(model, scripts[-1], stopped)
    assert len(scripts) >= 9


def test_logprobs_are_those_of_the_training_forward(engine, model):
    """Prompts padded on the left as PPO pads them; the same numbers as while sampling."""
    scripts = [
        Script((Force("ab:é"[: 1 + i % 4] * (1 + i)), Sample(4 + i, ("☃",))), f"{i}")
        for i in range(6)
    ]
    for temperature in (1.0, 0.7):
        at = [dataclasses.replace(s.segments[1], temperature=temperature) for s in scripts]
        scripts = [Script((s.segments[0], a), s.id) for s, a in zip(scripts, at, strict=True)]
        results = [t.segments for t in engine.run(scripts)]
        prompts = np.zeros((6, 32), np.int32)
        replies = np.zeros((6, 16), np.int32)
        prompt_mask, mask = prompts.astype(bool), replies.astype(bool)
        for row, (forced, sampled) in enumerate(results):
            prompt = [model.tokenizer.bos_id, *forced.tokens]
            prompts[row, -len(prompt) :], prompt_mask[row, -len(prompt) :] = prompt, True
            replies[row, : len(sampled.tokens)], mask[row, : len(sampled.tokens)] = (
                sampled.tokens,
                True,
            )
        logprobs, _ = jit_reply_logprobs(
            model.config, model.params, prompts, prompt_mask, replies, mask, temperature
        )
        for row, (_, sampled) in enumerate(results):
            found = logprobs[row, : len(sampled.tokens)]
            np.testing.assert_allclose(sampled.logprobs, found, atol=1e-4)


@pytest.mark.slow
def test_weights_in_bfloat16_give_nearly_the_same_logprobs(engine, model):
    """Reading, scoring and sampling, several slots at a time; on CPU too."""
    coarse = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    halved = Engine(dataclasses.replace(model, params=coarse), slots=4, max_length=128)
    scripts = [
        Script((Force(f"({i} ab:é\n"), Choose((" (A)", " (B)", "é")), Sample(6)), f"{i}")
        for i in range(6)
    ]
    for exact, near in zip(engine.run(scripts), halved.run(scripts), strict=True):
        a, b = (found.segments[1].option_logprobs for found in (exact, near))
        np.testing.assert_allclose(b, a, rtol=0.02, atol=0.05)
        assert not np.array_equal(a, b)
        assert len(near.segments[2].logprobs) > 0


def test_other_params_of_the_same_shapes(model):
    engine = Engine(model, slots=4, max_length=128)
    other = dataclasses.replace(model, params=jax.tree.map(lambda x: 0.9 * x, model.params))
    scripts = random_scripts(4, seed=5)
    first = engine.run(scripts)
    engine.params = other.params
    check_all(other, scripts, engine.run(scripts))
    engine.params = model.params
    assert_same(engine.run(scripts), first)


def test_control_tokens_spelled_in_a_text_stay_text(engine, model):
    (end,) = model.tokenizer.end_ids
    spelled = Script((Force("<|end|>"), Choose(("<|end|>", "a"))), "spelled")
    meant = Script((Force("<|end|>", control=True), Choose(("a",))), "meant")
    answers = engine.run([spelled, meant])
    assert end not in answers[0].segments[0].tokens and answers[1].segments[0].tokens == (end,)
    check_all(model, [spelled, meant], answers)


def test_scripts_without_anything_to_sample(engine):
    empty, forced = engine.run([Script((), "empty"), Script((Force("ab"), Force("")), "forced")])
    assert empty.segments == () and [r.text for r in forced.segments] == ["ab", ""]
    assert engine.run([]) == []


def test_one_begins_with_bos_alone(engine, model):
    script = Script((Sample(5, ("☃",)), Choose(("a",))), "bos")
    check(model, script, *engine.run([script]))


def test_what_cannot_run_is_refused_before_anything_runs(engine, model):
    fine = Script((Force("a"), Sample(5)), "fine")
    with pytest.raises(ScriptError, match="two scripts share the id 'fine'"):
        engine.run([fine, fine])
    long = Script((Force("a"), Sample(200)), "long")
    with pytest.raises(
        ScriptError, match=r"'long' can need 202 tokens, the engine's max_length is 128; shorten"
    ):
        engine.run([fine, long])
    small = dataclasses.replace(model, config=dataclasses.replace(model.config, context=64))
    with pytest.raises(ScriptError, match=r"'long' can need 202 tokens, the model's context is 64"):
        Engine(small, slots=4, max_length=512).run([fine, long])
    with pytest.raises(ScriptError, match="'none' has a Choose with an empty option"):
        engine.run([fine, Script((Force("a"), Choose(())), "none")])


def test_one_script_that_is_too_long_does_not_keep_the_others_from_running(engine, model):
    scripts = random_scripts(5, seed=6)
    long = [Script((Force("a"), Sample(n)), f"long {n}") for n in (200, 5000)]
    errors = []
    answers = engine.run([long[0], *scripts, long[1]], seed=1, refused=errors.append)
    assert answers[0] is None and answers[-1] is None
    assert_same(answers[1:-1], engine.run(scripts, seed=1))
    assert [str(e).split("; ")[0] for e in errors] == [
        "script 'long 200' can need 202 tokens, the engine's max_length is 128",
        f"script 'long 5000' can need 5002 tokens, the model's context is {model.config.context}",
    ]
    assert engine.run(long, refused=errors.append) == [None, None]


@pytest.mark.slow
def test_slots_are_as_many_as_memory_holds(model):
    scripts = random_scripts(9, seed=7)
    whole = Engine(model, slots=4, max_length=128)
    expected = whole.run(scripts)
    each = slot_bytes(model.config, whole.dtype, 128)
    tight = Engine(model, slots=4, max_length=128, memory_bytes=int(2.5 * each))
    assert_same(tight.run(scripts), expected)
    assert (whole.stats.slots, tight.stats.slots) == (4, 2)
    tight.memory_bytes = each // 2
    with pytest.raises(ScriptError, match=r"a slot of 128 tokens takes .* GB and .*; lower max_"):
        tight.run(scripts)


@pytest.mark.slow
def test_weights_of_another_dtype_are_held_in_the_engine_s():
    """PPO's policy trains in float32 and samples in what its config says."""
    model = tiny_model()
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    rounded = dataclasses.replace(model, params=rounded)
    engine, scripts = Engine(rounded, 4, 128), random_scripts(8, seed=3)
    expected = engine.run(scripts)
    engine.params = jax.tree.map(lambda x: x.astype(jnp.float32), rounded.params)
    assert_same(engine.run(scripts), expected)
    kinds = {x.dtype for x in jax.tree.leaves(engine._unstacked) if x.ndim > 1}
    assert kinds == {jnp.dtype("bfloat16")}


def test_an_end_token_does_not_come_before_min_new_tokens(engine, model):
    sample = Sample(40, ("☃",), min_new_tokens=25)
    scripts = [Script((Force(f"{i}"), sample), f"{i}") for i in range(24)]
    free = [Script((Force(f"{i}"), Sample(40, ("☃",))), f"{i}") for i in range(24)]
    lengths, before = (
        [len(t.segments[1].tokens) for t in engine.run(some)] for some in (scripts, free)
    )
    assert min(lengths) > 25 and min(before) < 25
    assert len(set(lengths)) > 1  # and later it does end


def test_top_k_keeps_the_likeliest(engine, model):
    scripts = [Script((Force(f"{i}"), Sample(20, ("☃",), top_k=2)), f"{i}") for i in range(8)]
    for script, answer in zip(scripts, engine.run(scripts), strict=True):
        prompt = [model.tokenizer.bos_id, *model.tokenizer.encode(script.segments[0].text)]
        tokens = list(answer.segments[1].tokens)
        logits = forward(model, prompt + tokens)[len(prompt) - 1 : -1]
        second = np.sort(logits, -1)[:, -2]
        assert (logits[np.arange(len(tokens)), tokens] >= second - 1e-4).all()


def test_a_script_may_fill_a_slot_to_its_last_token(engine, model):
    text = "b" * 3
    script = Script(
        (Force(text), Sample(128 - 1 - 3 - 8 - 2 - 1, ("☃",)), Force("::"), Choose(("e",))), "full"
    )
    check(model, script, *engine.run([script]))


def test_a_shared_prefix_is_read_once_and_takes_no_room_in_a_slot(engine, model):
    sample = Sample(20, ("☃",))
    scripts = [
        Script((Force("me" * 50 + f"{i}"), sample, Choose(("a",))), f"{i}") for i in range(9)
    ]
    transcripts = engine.run(scripts)
    assert min(len(t.segments[0].tokens) for t in transcripts) + 20 + 8 > 128
    assert engine.stats.shared > 8 * 98 and engine.stats.read < 98 + 9 * 6
    check_all(model, scripts, transcripts)


def test_other_data_of_the_same_sizes_compiles_nothing(engine):
    jitted = [f for m in (bursts, reading) for f in vars(m).values() if hasattr(f, "_cache_size")]
    assert len(jitted) > 5

    def scripts(seed):
        stops = (("b",), ("\n\nHuman:", "a"))[seed % 2]
        rule = {"stop": stops, "temperature": 0.5 + 0.1 * seed, "top_p": 1.0 - 0.1 * seed}
        return [
            Script((Force(f"{seed}{i} ab"), Sample(9, **rule), Choose(("ab", "e"))), f"{seed}/{i}")
            for i in range(8)
        ]

    engine.run(scripts(0))
    engine.run(scripts(1))
    before = [f._cache_size() for f in jitted]
    for seed in (2, 3, 4):
        engine.run(scripts(seed), seed=seed)
        assert engine.stats.compiled == 0
    assert [f._cache_size() for f in jitted] == before
