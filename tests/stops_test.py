"""The stop automaton, against searching the text."""

import itertools
import random

import numpy as np
import pytest

from cai_jax.decoding.stops import FREE, MATCHED, byte_automaton, cut_at_stop, stop_tables

TOKENS = [b"", b"\n", b"\n\n", b"H", b"Hu", b"man", b":", b"\n\nHuman:", b"\xc3", b"\xa9", b"n\nH"]


def walk(table, state, tokens):
    for token in tokens:
        state = int(table[state, token])
        if state == MATCHED:
            return MATCHED
    return state


def searched(stops, tokens, token_bytes):
    """How many tokens it takes until the text holds a stop string, or None."""
    text = b""
    for n, token in enumerate(tokens, 1):
        text += token_bytes[token]
        if any(stop.encode() in text for stop in stops):
            return n
    return None


@pytest.mark.parametrize(
    "stops",
    [
        ("\n\nHuman:",),
        ("\n\nHuman:", "\n\nAssistant:"),
        ("Human", "man:"),  # they overlap
        ("\n\n", "\n\nHuman:"),  # one begins the other
        ("\nH", "n\nHu"),  # one is found while another is under way
        ("é",),  # its two bytes are two tokens
        ("aaa", "aab", "b"),
        ("H",),
    ],
)
def test_the_automaton_matches_when_the_text_does(stops):
    token_bytes = [*TOKENS, b"a", b"b", b"aa"]
    table, starts = stop_tables([stops], token_bytes)
    rng = random.Random(0)
    matched = 0
    for _ in range(3000):
        tokens = rng.choices(range(len(token_bytes)), k=rng.randint(1, 12))
        expected = searched(stops, tokens, token_bytes)
        state = starts[stops]
        for n, token in enumerate(tokens, 1):
            state = int(table[state, token])
            assert (state == MATCHED) == (n == expected)
            if state == MATCHED:
                matched += 1
                break
    assert matched > 50


def test_all_short_texts_of_two_letters():
    stops = ("abab", "ba", "bb")
    table = byte_automaton(stops)
    end = len(table)
    for length in range(1, 8):
        for letters in itertools.product(b"ab", repeat=length):
            state = 0
            for letter in letters:
                state = end if state == end else int(table[state, letter])
            assert (state == end) == any(stop.encode() in bytes(letters) for stop in stops)


def test_stop_sets_share_a_table_and_stay_apart():
    sets = [("man",), (), ("Hu", "\n"), ("man",)]
    table, starts = stop_tables(sets, TOKENS)
    assert table.dtype == np.int16
    human, nl = [TOKENS.index(b) for b in (b"Hu", b"man")], TOKENS.index(b"\n")
    assert walk(table, starts["man",], human) == MATCHED
    assert walk(table, starts["man",], [nl, human[0]]) != MATCHED
    assert walk(table, starts["Hu", "\n"], [human[0]]) == MATCHED
    assert walk(table, starts[()], [*human, nl, 7]) == FREE


def test_a_control_token_adds_no_text_and_keeps_the_state():
    table, starts = stop_tables([("\n\n",)], TOKENS)
    assert walk(table, starts["\n\n",], [1, 0, 1]) == MATCHED


def test_few_more_stop_strings_keep_the_tables_shape():
    one, _ = stop_tables([("\n\nHuman:",)], TOKENS)
    two, _ = stop_tables([("\n\nHuman:", "\n\nAssistant:"), ("END",)], TOKENS)
    assert one.shape == two.shape


def test_the_cut_is_at_the_first_stop_string_in_the_text():
    assert cut_at_stop(b"one\n\nHuman: two", ("Human", "\n\nHuman:")) == 3
    assert cut_at_stop(b"\n\nHuman:", ("\n\nHuman:",)) == 0
    assert cut_at_stop(b"one", ("two",)) is None
    assert cut_at_stop("aé".encode(), ("é",)) == 1
