import numpy as np
import pytest

from cai_jax import batch


def test_pad_tokens_pads_on_the_right_and_masks_by_length_not_by_id():
    # The second row holds id 0, the id used for padding: it is real all the same.
    tokens, mask = batch.pad_tokens([[5, 6, 7], [0, 0], []], 4)
    assert tokens.tolist() == [[5, 6, 7, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert mask.tolist() == [[True] * 3 + [False], [True] * 2 + [False] * 2, [False] * 4]
    assert tokens.dtype == np.int32 and mask.dtype == bool


def test_pad_tokens_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="Example 1 has 5 tokens but a row holds 4"):
        batch.pad_tokens([[1], [1, 2, 3, 4, 5]], 4)


def test_token_batch_by_hand():
    end = 0  # an end token that shares its id with padding must stay a target
    b = batch.token_batch([([7, 8, end], [True, True, True]), ([9], [True])], 4)
    assert b.tokens.tolist() == [[7, 8, 0, 0], [9, 0, 0, 0]]
    assert b.positions.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
    assert b.segment_ids.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    # The first token has nothing before it; the end token is a target; padding is not.
    assert b.loss_mask.tolist() == [[False, True, True, False], [False] * 4]


def test_token_batch_refuses_a_mask_of_another_length():
    with pytest.raises(ValueError, match="Example 0 has 2 tokens but a loss mask of 3"):
        batch.token_batch([([1, 2], [True] * 3)], 4)


def test_pack_by_hand():
    examples = [(list(range(10 * n, 10 * n + size)), [True] * size)
                for n, size in enumerate([3, 4, 2, 5, 1], start=1)]  # fmt: skip
    first, second = batch.pack(examples, length=5, rows=2)
    assert first.tokens.tolist() == [[10, 11, 12, 30, 31], [20, 21, 22, 23, 0]]
    assert first.segment_ids.tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]]
    assert first.positions.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    # The first token of a segment must not be predicted from the segment before it.
    assert first.loss_mask.tolist() == [
        [False, True, True, False, True],
        [False, True, True, True, False],
    ]
    assert second.tokens.tolist() == [[40, 41, 42, 43, 44], [50, 0, 0, 0, 0]]


def test_pack_keeps_every_example_whole_and_once():
    generator = np.random.default_rng(0)
    examples = [
        ([n + 1] * size, [True] * size)
        for n, size in enumerate(generator.integers(1, 17, size=300).tolist())
    ]
    batches = batch.pack(examples, length=16, rows=4)
    again = batch.pack(examples, length=16, rows=4)
    found = []
    for b, c in zip(batches, again, strict=True):
        assert b.tokens.shape == (4, 16)
        assert (b.tokens == c.tokens).all()
        for row, segments in zip(b.tokens, b.segment_ids, strict=True):
            for s in range(1, segments.max() + 1):
                found.append(row[segments == s].tolist())
    assert sorted(found) == sorted(tokens for tokens, _ in examples)
    used = sum((b.segment_ids > 0).sum() for b in batches) / sum(b.tokens.size for b in batches)
    assert used > 0.7


def test_pack_refuses_a_longer_example():
    with pytest.raises(ValueError, match="Example 1 has 6 tokens but a row holds 5"):
        batch.pack([([1], [True]), ([1] * 6, [True] * 6)], length=5, rows=2)
    assert batch.pack([], length=5, rows=2) == []


def test_comparison_batch():
    b = batch.comparison_batch([([1, 2], [3]), ([4], [5, 6, 7])], [0.9, 0.25], [1, 2], 3)
    assert b.tokens.tolist() == [[[1, 2, 0], [3, 0, 0]], [[4, 0, 0], [5, 6, 7]]]
    assert b.mask.sum(-1).tolist() == [[2, 1], [1, 3]]
    assert b.prob_a.dtype == b.weight.dtype == np.float32
    assert b.prob_a.tolist() == [np.float32(0.9), 0.25] and b.weight.tolist() == [1, 2]


@pytest.mark.parametrize(
    "pairs, prob_a, weight, message",
    [
        ([([1], [2])], [1.2], [1], "prob_a 1.2"),
        ([([1], [2])], [float("nan")], [1], "prob_a nan"),
        ([([1], [])], [0.5], [1], "empty text"),
        ([([1], [2])], [0.5], [], "one weight a pair"),
        ([([1], [2, 2, 2, 2])], [0.5], [1], "row holds 3"),
    ],
)
def test_comparison_batch_refuses(pairs, prob_a, weight, message):
    with pytest.raises(ValueError, match=message):
        batch.comparison_batch(pairs, prob_a, weight, 3)


def test_bucket():
    assert [batch.bucket(n, (16, 64)) for n in (0, 1, 16, 17, 64)] == [16, 16, 16, 64, 64]
    with pytest.raises(ValueError, match="65 tokens exceeds the largest bucket, 64"):
        batch.bucket(65, (16, 64))
