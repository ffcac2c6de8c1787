import subprocess
import sys

import jax
import numpy as np

from cai_jax import rng


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_key_depends_on_every_part_and_on_nothing_else():
    parts = [
        (0, "a"),
        (1, "a"),
        (2**32, "a"),
        (-1, "a"),
        (0, "b"),
        (0, "a", 5),
        (0, "a", "5"),
        (0, "a", 5, 6),
        (0, "a", 6, 5),
        (0, "a", 2**32 + 5),
    ]
    seen = {tuple(data(rng.key(*p))) for p in parts}
    assert len(seen) == len(parts)
    assert (data(rng.key(3, "x", "id", 7)) == data(rng.key(3, "x", "id", np.int64(7)))).all()


def test_key_is_the_same_in_another_process():
    # Python's own hash of a string changes from process to process; this one must not.
    code = (
        "import jax; from cai_jax import rng; "
        "print(*jax.random.key_data(rng.key(7, 'sample', 'example-3', 2)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = data(rng.key(7, "sample", "example-3", 2))
    assert done.stdout.split() == [str(word) for word in here]


def test_example_keys_follow_the_id_not_the_place():
    ids = [f"red/{n}" for n in range(7)]
    keys = data(rng.example_keys(0, "s", ids))
    assert (keys[::-1] == data(rng.example_keys(0, "s", ids[::-1]))).all()
    assert (keys[2:4] == data(rng.example_keys(0, "s", ids[2:4]))).all()
    assert (keys[3] == data(rng.key(0, "s", ids[3]))).all()
    assert len(np.unique(keys, axis=0)) == 7
    assert data(rng.example_keys(0, "s", [])).shape[0] == 0


def test_many_ids_do_not_collide():
    # 32-bit ids would collide about 4.6 times among 200,000.
    keys = data(rng.example_keys(0, "s", [str(n) for n in range(200_000)]))
    assert len(np.unique(keys, axis=0)) >= 199_990


def test_permutations_differ_between_epochs_seeds_and_streams():
    base = rng.permutation(1000, 0, "shuffle", 0)
    assert (np.sort(base) == np.arange(1000)).all()
    assert (base == rng.permutation(1000, 0, "shuffle", 0)).all()
    for other in [(0, "shuffle", 1), (1, "shuffle", 0), (0, "other", 0)]:
        assert (base == rng.permutation(1000, *other)).mean() < 0.02
    assert rng.permutation(0, 0, "shuffle", 0).shape == (0,)
    # Pinned: another order here would change what a continued run trains on.
    assert rng.permutation(6, 0, "shuffle", 0).tolist() == [4, 1, 3, 0, 2, 5]


def test_counter_bits_are_uniform_and_salted():
    bits = np.asarray(rng.counter_bits((64, 33, 7), 1))
    assert bits.shape == (64, 33, 7)
    assert abs(bits.astype(np.float64).mean() / 2**32 - 0.5) < 0.01
    assert len(np.unique(bits)) > bits.size - 10
    other = np.asarray(rng.counter_bits((64, 33, 7), 2))
    correlation = np.corrcoef(bits.ravel(), other.ravel())[0, 1]
    assert abs(correlation) < 0.03
    for bit in range(32):
        assert abs(((bits >> bit) & 1).mean() - 0.5) < 0.02
