"""Scripts as token programs, and what a slot's context is after each way a Sample can end."""

import numpy as np
import pytest
from fakes import PiecesTokenizer

from cai_jax.decoding.schedule import (
    END,
    LENGTH,
    STOP,
    ScriptError,
    Slot,
    bucket,
    compile_script,
    read_limits,
)
from cai_jax.decoding.sharing import shared_prefix
from cai_jax.decoding.stops import MATCHED, stop_tables
from cai_jax.script import Choose, Force, Sample, Script
from cai_jax.tokenizer import BytesTokenizer

BYTES = BytesTokenizer()
PIECES = PiecesTokenizer((b"\n\nHuman:", b".\n\n", b"Human", "é".encode(), b"\xa9\n\n", b"a\n"))
BOS, END_ID = 256, 257


def program(*segments, tokenizer=BYTES):
    return compile_script(Script(segments, id="x"), tokenizer)


def written(tokens, stop=(), tokenizer=PIECES, reason=None, burst=100):
    """A slot that sampled `tokens` (pieces' bytes or ids) after "Hi", then was forced "!"."""
    by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    ids = [by_bytes[t] if isinstance(t, bytes) else t for t in tokens]
    if reason is None:
        reason = END if ids[-1] in tokenizer.end_ids else STOP if stop else LENGTH
    segments = (Force("Hi"), Sample(100, stop=stop), Force("!"), Choose(("y", "n")))
    slot = Slot(program(*segments, tokenizer=tokenizer), 0, 0, tokenizer)
    slot.fed(len(slot.feed))
    for start in range(0, len(ids), burst):
        part = ids[start : start + burst]
        slot.drew(part, [-1.0] * len(part), 5, reason if start + burst >= len(ids) else 0)
    return slot


def context_of(slot, tokenizer=PIECES):
    """What stands in the slot or is about to be read, between "Hi" and "!"."""
    tokens = slot.context + slot.feed
    assert tokens[:3] == [BOS, *b"Hi"] and tokens[-1] == ord("!")
    return tokens[3:-1]


def test_a_program_is_its_segments_tokens():
    p = program(Force("ab"), Force("c"), Sample(5, stop=("x",)), Force("de"), Choose(("f", "ghi")))
    assert p.tokens == ((97, 98), (99,), (), (100, 101), ((102,), (103, 104, 105)))
    assert p.prefix == (BOS, 97, 98, 99)
    assert p.longest == 1 + 3 + (5 + 8) + 2 + 3


def test_control_tokens_are_read_from_marked_forces_only():
    p = program(Force("<|end|>", control=True), Force("<|end|>"), Choose(("<|end|>",)))
    assert p.tokens[0] == (END_ID,)
    assert p.tokens[1] == p.tokens[2][0] == tuple(b"<|end|>")


def test_a_tokenizer_without_bos_adds_none():
    tokenizer = BytesTokenizer()
    tokenizer.bos_id = None
    assert program(Force("ab"), Sample(1), tokenizer=tokenizer).prefix == (97, 98)
    with pytest.raises(ScriptError, match="'x' asks for text before it forces any"):
        program(Sample(1), tokenizer=tokenizer)
    with pytest.raises(ScriptError, match="'x' asks for text before it forces any"):
        program(Force(""), Choose(("a",)), tokenizer=tokenizer)
    assert program(Sample(1)).prefix == (BOS,)  # a BOS is something to read


@pytest.mark.parametrize("options", [(), ("",), ("a", "")])
def test_empty_options_are_refused(options):
    with pytest.raises(ScriptError, match="script 'x' has a Choose with an empty option"):
        program(Force("a"), Choose(options))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("stop", ("a", "")),
    ],
)
def test_settings_that_mean_nothing_are_refused(field, value):
    with pytest.raises(ScriptError, match=f"script 'x' has a Sample whose {field} is"):
        program(Force("a"), Sample(**{"max_new_tokens": 1, field: value}))


def test_the_shared_prefix_leaves_each_program_a_token():
    def shared(*texts, least=2):
        return shared_prefix([program(Force(t), Sample(1)) for t in texts], least)

    assert shared("abcd", "abxy") == 3  # the BOS counts
    assert shared("abcd", "abcd") == 4
    assert shared("abcd", "ab") == 2
    assert shared("abcd", "ab", least=3) == 0
    assert shared("abcd", "xbcd") == 0
    assert shared("abcd") == 4  # alone, it shares with itself, so its slot is as short as any
    assert shared("abcd", "abce", "xyz", "abcf") == 0


@pytest.mark.parametrize("burst", [1, 2, 100])
def test_after_an_end_token_the_context_is_the_text_without_it(burst):
    slot = written([b"a", b"b", END_ID], burst=burst)
    assert context_of(slot) == [97, 98]
    result = slot.results[1]
    assert result.text == "ab" and result.tokens == (97, 98, END_ID)
    assert result.stop_reason == "end" and len(result.logprobs) == 3
    assert slot.results[2].text == "!"
    assert context_of(written([END_ID])) == []


@pytest.mark.parametrize("burst", [1, 2, 100])
def test_after_the_most_tokens_the_context_is_all_of_them(burst):
    slot = written([b"a", b"b", b"c"], burst=burst)
    assert context_of(slot) == [97, 98, 99]
    assert slot.results[1].text == "abc" and slot.results[1].stop_reason == "length"


@pytest.mark.parametrize("burst", [1, 2, 100])
@pytest.mark.parametrize(
    ("tokens", "stop", "text"),
    [
        ([b"a", b"\n\nHuman:"], ("\n\nHuman:",), "a"),  # one token is the stop string
        ([b"\n\nHuman:"], ("\n\nHuman:",), ""),  # the very first one
        ([b"a", b"\n\nHuman:"], ("Human",), "a\n\n"),  # the token begins before it
        ([b"a", b".\n\n", b"Human", b":"], ("\n\nHuman:",), "a."),  # it straddles three tokens
        ([b"a\n", b"\n", b"H"], ("\n\nH",), "a"),  # and cuts the first of them
        ([b"a", b"b", b"c"], ("c", "bc"), "a"),  # two end at once: the text ends at the earlier
        ([b"a", b"\xc3", b"\xa9\n\n"], ("\n\n",), "aé"),  # it begins inside a token inside a char
        ([b"\xc3", b"\xa9\n\n"], ("\n\n",), "é"),
        ([b"a", "é".encode()], ("é",), "a"),
        ([b"a", b"\xc3", b"\xa9"], ("é",), "a"),
        ([258, b"a", 258, b"b"], ("b",), "a"),  # tokens without text
    ],
)
def test_after_a_stop_string_the_context_is_the_text_before_it(tokens, stop, text, burst):
    slot = written(tokens, stop, burst=burst)
    context = context_of(slot)
    assert slot.results[1].text == text and slot.results[1].stop_reason == "stop"
    assert PIECES.decode(context) == text
    assert len(slot.results[1].tokens) == len(slot.results[1].logprobs) == len(tokens)
    # Tokens wholly before the stop string are those that were sampled.
    kept = 0
    while kept < len(context) and context[kept] == slot.results[1].tokens[kept]:
        kept += 1
    rest = PIECES.decode(context[kept:])
    assert "\ufffd" not in rest and len(rest) <= 2
    assert context[kept:] == PIECES.encode(rest)


def test_random_texts_are_cut_where_the_stop_string_is_found():
    """The context's bytes are the text's, and the context keeps all tokens that it can."""
    table, starts = stop_tables(
        [("\n\nH", "é", "b!")], [PIECES.token_bytes(i) for i in range(PIECES.vocab_size)]
    )
    rng = np.random.default_rng(0)
    choices = [*range(259, PIECES.vocab_size), *b"ab!\nH", 0xC3, 0xA9, 258]
    cut = 0
    for _ in range(400):
        state, tokens = starts["\n\nH", "é", "b!"], []
        while state != MATCHED and len(tokens) < 20:
            tokens.append(int(rng.choice(choices)))
            state = int(table[state, tokens[-1]])
        if state != MATCHED:
            continue
        cut += 1
        slot = written(tokens, ("\n\nH", "é", "b!"), reason=STOP, burst=int(rng.integers(1, 6)))
        data = b"".join(map(PIECES.token_bytes, tokens))
        data = data[: min(i for s in ("\n\nH", "é", "b!") if (i := data.find(s.encode())) >= 0)]
        assert slot.results[1].text == data.decode(errors="replace")
        context = context_of(slot)
        if "\ufffd" not in slot.results[1].text:
            assert b"".join(map(PIECES.token_bytes, context)) == data
    assert cut > 200


def test_a_token_that_the_tokenizer_does_not_know_has_no_text():
    """Embeddings are often padded to a round number of rows."""
    slot = written([b"a", 1000, b"b"], reason=LENGTH)
    assert slot.results[1].text == "ab" and context_of(slot) == [97, 1000, 98]


def test_a_choose_after_a_choose_needs_nothing_read():
    p = program(Force("ab"), Choose(("x",)), Choose(("y",)), Force("c"), Choose(("z",)))
    slot = Slot(p, 0, 0, BYTES)
    slot.fed(3)
    slot.chose([-1.0])
    assert not slot.feed and slot.options == ((121,),)
    slot.chose([-2.0])
    assert slot.feed == [99]
    slot.fed(1)
    slot.chose([-3.0])
    assert slot.segment is None
    assert [r.option_logprobs for r in slot.transcript.segments] == [(), (-1,), (-2,), (), (-3,)]


def test_a_choose_right_after_a_sample_reads_the_last_token_again():
    slot = Slot(program(Force("ab"), Sample(9), Choose(("x",))), 0, 0, BYTES)
    slot.fed(3)
    slot.drew([120, END_ID], [-1.0, -1.0], 1, END)
    assert slot.context + slot.feed == [BOS, 97, 98, 120] and slot.feed == [120]


def test_buckets():
    assert read_limits(128, 1000) == (128, 256, 384, 512, 768, 1000)
    assert read_limits(128, 512) == (128, 256, 384, 512)
    assert read_limits(64, 64) == (64,)
    assert [bucket(n, (4, 16, 64)) for n in (0, 4, 5, 64, 99)] == [4, 4, 16, 64, 64]
