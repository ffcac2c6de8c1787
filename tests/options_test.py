"""The tree of a Choose's options."""

import numpy as np

from cai_jax.decoding.options import CONTEXT, OptionTree, edge_arrays, node_arrays

TREE = OptionTree.of(((1, 2, 3), (1, 2), (4,), (1, 5, 3)))


def test_what_options_share_is_one_node_and_one_edge():
    assert TREE.nodes == ((1, CONTEXT), (2, 0), (5, 0))
    assert set(TREE.edges) == {(CONTEXT, 1), (0, 2), (1, 3), (CONTEXT, 4), (0, 5), (2, 3)}
    assert [len(path) for path in TREE.paths] == [3, 2, 1, 3]


def test_sums_follow_each_option():
    logprobs = np.zeros(len(TREE.edges))
    for n, edge in enumerate(TREE.edges):
        logprobs[n] = {(CONTEXT, 1): 1, (0, 2): 10, (1, 3): 100, (CONTEXT, 4): 1000}.get(edge, 0.5)
    assert TREE.sums(logprobs.tolist()) == [111.0, 11.0, 1000.0, 2.0]


def test_arrays():
    single = OptionTree.of(((7,), (8,)))
    assert single.nodes == ()
    tokens, depths, sees = node_arrays([TREE, single], 3, 4)
    assert tokens[0].tolist() == [1, 2, 5, 0] and depths[0].tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal(sees[0], [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
    assert (sees[1:] == np.eye(4)).all()  # padding sees itself, so that it stays finite
    after, ids = edge_arrays([TREE, single], 3, 8)
    assert list(zip(after[0].tolist(), ids[0].tolist(), strict=True))[:6] == list(TREE.edges)
    assert (after[1:] == CONTEXT).all() and ids[1, :2].tolist() == [7, 8]
