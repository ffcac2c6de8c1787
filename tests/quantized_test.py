"""Every type of GGUF tensor that is read: what its blocks say, whole and by rows."""

import dataclasses

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from weights_test import CONFIG, random_params, write_gguf

from cai_jax.models.config import RopeScaling
from cai_jax.weights import names
from cai_jax.weights.gguf import open_gguf
from cai_jax.weights.names import WeightsError

WIDE = dataclasses.replace(CONFIG, embed=256, heads=32, mlp=256)  # whole blocks of 256
NAME = "blk.1.ffn_up.weight"  # of shape [256, 256]

# (type, largest error of a value of a normal distribution): as little as its bits allow.
WRITTEN = {
    Kind.F32: 0.0, Kind.F16: 2e-3, Kind.BF16: 0.02, Kind.Q8_0: 0.02, Kind.Q5_0: 0.2, Kind.Q5_1: 0.2,
    Kind.Q4_0: 0.4, Kind.Q4_1: 0.3,
}  # fmt: skip
# Where a block's scales, of 16 bits, begin: the gguf package reads these types but writes none.
SCALES = {
    Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda k: k.name)
def test_what_was_quantised_is_read(tmp_path, kind):
    params = random_params(WIDE)
    stored = open_gguf(write_gguf(tmp_path / "m.gguf", params, WIDE, quantize=kind))
    whole = dict(names.disassemble(stored.whole()[1], WIDE, "gguf"))
    for name, tensor in names.disassemble(params, WIDE, "gguf"):
        blocks = gguf.quants.quantize(tensor, kind) if tensor.ndim == 2 else tensor
        expected = gguf.quants.dequantize(blocks, kind) if tensor.ndim == 2 else tensor
        if not name.endswith(("attn_q.weight", "attn_k.weight")):  # written by rows of pairs
            np.testing.assert_array_equal(whole[name], expected)
        assert abs(whole[name] - tensor).max() <= WRITTEN[kind]
    by_rows(stored)


def by_rows(stored):
    whole = stored.read(NAME)
    part = stored.read(NAME, (slice(3, 9), slice(40, 200)))
    np.testing.assert_array_equal(part, whole[3:9, 40:200])


def blocks_of(kind, rows=256):
    """Random blocks with scales that are sane numbers."""
    rng = np.random.default_rng(0)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (rows, size), np.uint8)
    for at in SCALES[kind]:
        scales = rng.uniform(0.01, 0.1, rows).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(rows, 2)
    return blocks


@pytest.mark.parametrize("kind", SCALES, ids=lambda k: k.name)
def test_k_quants_are_read(tmp_path, kind):
    blocks = blocks_of(kind)
    raw = (NAME, blocks, kind)
    path = write_gguf(tmp_path / "m.gguf", random_params(WIDE), WIDE, drop=NAME, raw=raw)
    stored = open_gguf(path)
    whole = stored.read(NAME)
    np.testing.assert_array_equal(whole, gguf.quants.dequantize(blocks, kind))
    by_rows(stored)
    if kind in WRITTEN_OUT:
        for row in (0, 100, 255):
            expected = WRITTEN_OUT[kind](blocks[row].tobytes())
            np.testing.assert_allclose(whole[row], expected, rtol=1e-5)


def half(data: bytes) -> float:
    return float(np.frombuffer(data, np.float16)[0])


def q4_k(block: bytes) -> list[float]:
    """One block, value by value, as ggml-quants.c has it: 8 parts of 32 values."""
    d, least, scales, nibbles = half(block[:2]), half(block[2:4]), block[4:16], block[16:]
    found = []
    for part in range(8):
        if part < 4:
            scale, minimum = scales[part] & 63, scales[part + 4] & 63
        else:
            scale = (scales[part + 4] & 15) | (scales[part - 4] >> 6 << 4)
            minimum = (scales[part + 4] >> 4) | (scales[part] >> 6 << 4)
        for i in range(32):
            byte = nibbles[part // 2 * 32 + i]
            found.append(d * scale * (byte >> 4 if part % 2 else byte & 15) - least * minimum)
    return found


def q6_k(block: bytes) -> list[float]:
    """Two parts of 128; low 4 bits, high 2 bits, and a signed scale for every 16 values."""
    found = [0.0] * 256
    low, high, scales, d = block[:128], block[128:192], block[192:208], half(block[208:])
    for part in range(2):
        for i in range(32):
            for quarter in range(4):
                byte = low[part * 64 + i + 32 * (quarter % 2)]
                bits = byte >> 4 if quarter > 1 else byte & 15
                bits |= (high[part * 32 + i] >> (2 * quarter) & 3) << 4
                scale = scales[part * 8 + quarter * 2 + i // 16]
                scale -= 256 * (scale > 127)
                found[part * 128 + quarter * 32 + i] = d * scale * (bits - 32)
    return found


WRITTEN_OUT = {Kind.Q4_K: q4_k, Kind.Q6_K: q6_k}


# --- Llama 3.1's rotary factors ---


def llama_cpp_factors(factor, low=1.0, high=4.0, context=8192, theta=10000.0, head_dim=8):
    """As llama.cpp's convert_hf_to_gguf.py writes them."""
    found = []
    for k in range(0, head_dim, 2):
        wave = 2 * np.pi * theta ** (k / head_dim)
        if wave < context / high:
            found.append(1.0)
        elif wave > context / low:
            found.append(factor)
        else:
            smooth = (context / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rotary_factors_of_published_models_are_known(tmp_path, factor):
    factors = llama_cpp_factors(factor)
    assert len(set(factors.tolist())) > 1
    raw = ("rope_freqs.weight", factors, Kind.F32)
    stored = open_gguf(write_gguf(tmp_path / "m.gguf", random_params(CONFIG), raw=raw))
    assert stored.config.rope_scaling == RopeScaling(factor, 1.0, 4.0, 8192)


@pytest.mark.parametrize("factors", [llama_cpp_factors(16.0), llama_cpp_factors(8.0)[:-1]])
def test_other_rotary_factors_are_refused(tmp_path, factors):
    raw = ("rope_freqs.weight", factors, Kind.F32)
    path = write_gguf(tmp_path / "m.gguf", random_params(CONFIG), raw=raw)
    with pytest.raises(WeightsError, match=r"rope_freqs\.weight, whose factors are neither"):
        open_gguf(path)
