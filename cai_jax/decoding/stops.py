"""Stop strings as a token automaton, so that the jitted loop sees them the moment they appear.

A stop string may begin inside one token and end inside another. An Aho-Corasick automaton over
bytes knows after each byte how much of any stop string stands at the text's end; running each
token's bytes through it from each state gives a table from (state, token) to state, one gather a
step in the loop.
"""

from __future__ import annotations

import numpy as np

MATCHED = 0  # a stop string has appeared
FREE = 1  # nothing to stop at


def byte_automaton(stops: tuple[str, ...]) -> np.ndarray:
    """Aho-Corasick as a full table int32[N, 256]; state N means matched, state 0 is the start."""
    children: list[dict[int, int]] = [{}]
    accepts = [False]
    for stop in stops:
        node = 0
        for byte in stop.encode():
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                accepts.append(False)
            node = children[node][byte]
        accepts[node] = True
    table = np.zeros((len(children), 256), np.int32)
    fails = [0] * len(children)
    queue = []
    for byte, child in children[0].items():
        table[0, byte] = child
        queue.append(child)
    for node in queue:  # breadth first: a node's failure row is complete before it
        accepts[node] |= accepts[fails[node]]
        table[node] = table[fails[node]]
        for byte, child in children[node].items():
            fails[child] = table[fails[node], byte]
            table[node, byte] = child
            queue.append(child)
    matched = len(children)
    return np.where(np.array([*accepts])[table], matched, table).astype(np.int32)


def token_automaton(stops: tuple[str, ...], token_bytes: list[bytes]) -> np.ndarray:
    """int32[N, V]: the state after a token, from each state; N means matched.

    Args:
      stops: non-empty strings.
      token_bytes: what each of the V tokens adds to the text.
    """
    table = byte_automaton(stops)
    matched = len(table)
    table = np.concatenate([table, np.full((1, 256), matched, np.int32)])
    lengths = np.array([len(b) for b in token_bytes])
    order = np.argsort(-lengths, kind="stable")  # long tokens first: the live ones stay a prefix
    buffer = np.zeros((len(token_bytes), max(lengths.max(), 1)), np.uint8)
    for row, token in enumerate(order):
        buffer[row, : lengths[token]] = np.frombuffer(token_bytes[token], np.uint8)
    states = np.repeat(np.arange(matched, dtype=np.int32)[:, None], len(token_bytes), 1)
    for column in range(buffer.shape[1]):
        live = int((lengths[order] > column).sum())
        states[:, :live] = table[states[:, :live], buffer[:live, column]]
    result = np.empty_like(states)
    result[:, order] = states
    return result


def stop_tables(
    stop_sets: list[tuple[str, ...]], token_bytes: list[bytes]
) -> tuple[np.ndarray, dict[tuple[str, ...], int]]:
    """One table int16[N, V] for many stop sets, and each set's first state.

    N is padded to a power of two, so that other stop strings seldom mean another compilation.
    """
    parts = [np.full((2, len(token_bytes)), FREE, np.int32)]
    parts[0][MATCHED] = MATCHED
    starts: dict[tuple[str, ...], int] = {(): FREE}
    used = 2
    for stops in stop_sets:
        if stops in starts:
            continue
        table = token_automaton(stops, token_bytes)
        parts.append(np.where(table == len(table), MATCHED, table + used))
        starts[stops] = used
        used += len(table)
    padded = 2 if used == 2 else max(64, 1 << (used - 1).bit_length())
    parts.append(np.zeros((padded - used, len(token_bytes)), np.int32))
    return np.concatenate(parts).astype(np.int16), starts


def cut_at_stop(text: bytes, stops: tuple[str, ...]) -> int | None:
    """Where the first stop string begins in the text, or None."""
    places = [place for stop in stops if (place := text.find(stop.encode())) >= 0]
    return min(places, default=None)
