"""Ten thousand lines of all kinds: the ids of the libraries that the vocabularies come from.

Unicode, emoji, code, runs of spaces, and texts that spell control tokens; made here, the same ones
every time.
"""

import functools
import itertools
import random
import re
import struct
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizer_test import (
    LINES,
    gguf_metadata,
    llama2_like,
    sentencepiece_model,  # noqa: F401
)
from tokenizers import decoders, models, pre_tokenizers, trainers

from cai_jax.tokenizer import BytesTokenizer, HuggingFaceTokenizer, byte_level_table
from cai_jax.weights import fetch, vocabularies
from cai_jax.weights.llama2c import open_llama2c

COUNT = 10_000
STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260K" / "stories260K.bin"
WORDS = re.findall(
    r"\S+",
    "the a of and to in is you that it he was for on are with as I his they be at one have this "
    "from or had by hot word but what some we can out other were all there when up use your how "
    "said an each she don't it's we'll I'd they've you're I'M DON'T o'clock rock'n'roll",
)
SCRIPTS = (
    "déjà naïve Ünïcödé ça œuvre ß ẞ Ångström", "русский язык, ещё", "العربية לעברית ؟",
    "漢字 かな カナ ﾊﾝｶｸ", "한글 조선글", "ไทย ภาษา", "हिन्दी नमस्ते", "ελληνικά ΑΒΓ", "ქართული",
    "Việt Nam", "e\u0301 o\u0308 n\u0303", "ﬁ ﬂ Ⅷ ½ ² ㎏ １２３ ١٢٣ १२३", "İ ı ſ K Å",
)  # fmt: skip
SIGNS = (
    "😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇫🇷", "❤️", "☎", "→ ⇒ ≠ ∞ ∑", "“quoted” ‘so’ — – …", "€£¥₿",
    "\u200b", "\u200d", "\ufeff", "\u00a0", "\u2028", "\u3000", "\u00ad", "\ue000", "\x00", "\x7f",
    "\x1b[0m", "\ufffd", "\U0010ffff", "\U000e0041", "▁", "▁▁x", "Ġ", "ĠĊ", "Â", "##ing", "@@",
)  # fmt: skip
CODE = (
    "def f(x):\n    return x ** 2  # 3.14",
    "for (int i=0;i<n;++i){a[i]+=b[i]>>2;}",
    "x != y && !z",
    '<div class="a">&nbsp;</div>',
    "SELECT * FROM t WHERE id='1';",
    "$HOME/.cache/*.py",
    "0xFF1e-5",
    "https://example.org/a?b=c&d=%20#e",
    "{{ jinja }} {% raw %}",
    "\\n\\t\\u00e9",
    "a_b_C__d",
    "1,000.50",
    "12345678901234567890",
    "2026-11-29T23:59:60Z",
    "```python\n\tpass\n```",
    "λx.x",
    "$$\\frac{1}{2}$$",
)
SPACES = (" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "    ", "\t\t ", "\x0b", "\x0c", "")
CONTROL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<0x41>",
    "<0x0A>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "[INST]",
    "<<SYS>>",
    "<|im_<|im_end|>end|>",
    "<|im_end",
    "|>",
    "<|",
    "</",
    "\n<s>\n",
    "\n\nHuman: ",
    "\n\nAssistant:",
)


@functools.cache
def lines() -> tuple[str, ...]:
    drawn = random.Random(20261129)

    def anything() -> str:
        code = drawn.choice(
            (drawn.randrange(0x300), drawn.randrange(0x3000), drawn.randrange(0x110000))
        )
        return chr(code) if not 0xD800 <= code < 0xE000 else "\ud7ff"

    def piece() -> str:
        kind = drawn.random()
        if kind < 0.4:
            return drawn.choice(WORDS)
        if kind < 0.95:
            return drawn.choice(drawn.choice((SCRIPTS, SIGNS, CODE, CONTROL)))
        return anything()

    def line() -> str:
        parts = (
            piece() + drawn.choice((" ", " ", " ", *SPACES)) for _ in range(drawn.randrange(9))
        )
        return drawn.choice(SPACES) + "".join(parts)

    return tuple(line() for _ in range(COUNT))


def agree(ours, reference, spelt=str.encode) -> None:
    """Same ids on every line, none of them a control token's, and the line's own bytes.

    Args:
      reference: ids of a line, or None where it says nothing of it.
      spelt: the bytes of a line that the vocabulary can spell.
    """
    control = set(ours.control_tokens.values())
    differ = []
    for line in lines():
        ids = ours.encode(line)
        assert control.isdisjoint(ids), line
        assert b"".join(map(ours.token_bytes, ids)) == spelt(line), line
        if (expected := reference(line)) is not None and ids != expected:
            differ.append((line, ids, expected))
    assert not differ, f"{len(differ)} lines differ, such as {differ[0]}"


def with_spaces(line: str) -> bytes:
    """SentencePiece's own sign for a space is one in a text too."""
    return line.replace("▁", " ").encode()


def test_the_lines_are_of_all_kinds():
    text = "".join(lines())
    assert len(set(lines())) > 0.8 * COUNT
    for part in (*SCRIPTS, *SIGNS, *CODE, *CONTROL):
        assert part in text
    assert len(set(text)) > 400


def test_bytes():
    agree(BytesTokenizer(), lambda line: list(line.encode()))


# --- SentencePiece, from its own file and from GGUF metadata ---


@pytest.fixture(params=["tokenizer.model", "gguf"])
def of_sentencepiece(request, sentencepiece_model, tmp_path):  # noqa: F811
    if request.param == "tokenizer.model":
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model)
        return vocabularies.from_directory(tmp_path, eos_ids=())
    sp = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    ids = range(sp.get_piece_size())
    kinds = [(sp.is_unknown, 2), (sp.is_control, 3), (sp.is_byte, 6)]
    metadata = gguf_metadata(
        model="llama", tokens=[sp.id_to_piece(i) for i in ids],
        token_type=[next((kind for test, kind in kinds if test(i)), 1) for i in ids],
        scores=[sp.get_score(i) for i in ids], bos_token_id=sp.bos_id(), eos_token_id=sp.eos_id(),
        eot_token_id=sp.piece_to_id("<|im_end|>"),
    )  # fmt: skip
    return vocabularies.from_gguf(metadata, tmp_path)


def test_sentencepiece(of_sentencepiece, sentencepiece_model):  # noqa: F811
    """It puts a space before a text, which ours has only if the text does."""
    sp = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    reference = lambda line: sp.encode(line[1:]) if spaced(line) else None  # noqa: E731
    agree(of_sentencepiece, reference, with_spaces)
    assert sum(map(spaced, lines())) > COUNT / 20
    for line in filter(None, lines()):
        assert of_sentencepiece.encode(f" {line}") == sp.encode(line), line


def spaced(line: str) -> bool:
    return len(line) > 1 and line[0] == " "


# --- tokenizer.json ---


def trained(vocab_size=700) -> tokenizers.Tokenizer:
    """Byte-level BPE of these very lines, so that merges meet everything in them."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(lines()[:2000], trainer)
    return backend


def test_tokenizer_json_in_transformers(tmp_path):
    """With special tokens read as text; where a line spells none, also as users call it."""
    transformers = pytest.importorskip("transformers")
    backend = trained()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}'
    )
    ours = vocabularies.from_directory(tmp_path, eos_ids=())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    special = theirs.all_special_tokens
    encode = functools.partial(theirs, add_special_tokens=False)
    split = encode(list(lines()), split_special_tokens=True).input_ids
    known = dict(zip(lines(), split, strict=True))
    agree(ours, known.get)
    spelt = backend.get_added_tokens_decoder()
    plain = [x for x in lines() if not any(t.content in x for t in spelt.values())]
    assert special and COUNT > len(plain) > COUNT / 4
    for line, ids in zip(plain, encode(plain).input_ids, strict=True):
        assert ours.encode(line) == ids, line


def test_tokenizer_json_over_metaspace():
    """Where merges themselves spell a control token, the text is cut; the rest is the library's."""
    backend = llama2_like()
    ours = HuggingFaceTokenizer(backend, bos_token="<s>", eos_token="</s>", adds_bos=True)
    backend.encode_special_tokens = True

    def reference(line):
        ids = backend.encode(line[1:], add_special_tokens=False).ids
        return ids if spaced(line) and not {0, 1, 2} & set(ids) else None

    agree(ours, reference, with_spaces)


# --- GGUF, byte-level: against BPE written out ---

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt-2": (None, GPT2), "smollm": (r"(\p{N})", GPT2), "llama-bpe": (None, LLAMA3),
    "qwen2": (None, LLAMA3.replace("{1,3}", "")),
}  # fmt: skip


def written_out(pre, vocab, merges):
    """encode(text), by the rules of llama.cpp's pre-tokenizer `pre` and byte-pair encoding."""
    regex = pytest.importorskip("regex")
    first, words = PATTERNS[pre]
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
    char = {byte: c for c, byte in byte_level_table().items()}

    @functools.cache
    def of_word(word: str) -> tuple[int, ...]:
        symbols = [char[byte] for byte in word.encode()]
        if pre == "llama-bpe" and "".join(symbols) in vocab:
            return (vocab["".join(symbols)],)
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], 1 << 30))
            if pairs[best] not in ranks:
                break
            symbols[best : best + 2] = ["".join(pairs[best])]
        return tuple(vocab[symbol] for symbol in symbols if symbol in vocab)

    def encode(text: str) -> list[int]:
        parts = filter(None, regex.split(first, text)) if first else [text]
        return [i for part in parts for word in regex.findall(words, part) for i in of_word(word)]

    return encode


@pytest.mark.parametrize("pre", PATTERNS)
def test_gguf_byte_level(tmp_path, pre):
    import json

    spec = json.loads(trained().to_str())
    vocab = dict(spec["model"]["vocab"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    # Whole words that no merge makes, as Llama 3's vocabulary has some.
    for word in ("Ġrock", "Ġwith", "ĠdÃ©jÃł"):
        vocab.setdefault(word, len(vocab))
    tokens = sorted(vocab, key=vocab.get)
    metadata = gguf_metadata(
        pre=pre, tokens=tokens, token_type=[3, 3, 3, *[1] * (len(tokens) - 3)], merges=merges,
    )  # fmt: skip
    ours = vocabularies.from_gguf(metadata, tmp_path)
    agree(ours, written_out(pre, vocab, merges))


def test_smollm2():
    """The real vocabulary of 49,152 tokens, which lacks bytes that only rare planes begin with."""
    import gguf

    path = fetch.cached("smollm2-135m-instruct")
    if path is None:
        pytest.skip("SmolLM2 is not in the cache; `cai-jax fetch` gets it")
    metadata = {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items()}
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = metadata["tokenizer.ggml.merges"]
    lacking = bytes(byte for char, byte in byte_level_table().items() if char not in vocab)
    assert not set(lacking) & set("".join((*SCRIPTS, *SIGNS[:15], *CODE)).encode())
    ours, reference = vocabularies.from_gguf(metadata, path), written_out("smollm", vocab, merges)
    agree(ours, reference, lambda line: line.encode().translate(None, lacking))
    for line in LINES:
        assert ours.encode(line) == reference(line), line
        assert ours.decode(ours.encode(line)) == line


# --- llama2.c ---


def test_stories260k():
    """llama2.c's own way, written out: the best-scored pair of neighbours first."""
    if not STORIES.exists():
        pytest.skip("stories260K is not in ../shared beside this checkout")
    ours = open_llama2c(STORIES).tokenizer
    data, at, vocab, scores = (STORIES.parent / "tok512.bin").read_bytes(), 4, {}, []
    for number in range(512):
        score, length = struct.unpack_from("<fi", data, at)
        at += 8 + length
        vocab.setdefault(data[at - length : at].decode(), number)
        scores.append(score)
    texts = {number: text for text, number in vocab.items()}

    def encode(text: str) -> list[int]:
        ids = []
        for char in text:
            ids += [vocab[char]] if char in vocab else [byte + 3 for byte in char.encode()]
        while True:
            pairs = [vocab.get(texts[a] + texts[b]) for a, b in itertools.pairwise(ids)]
            found = [(-scores[p], i) for i, p in enumerate(pairs) if p is not None]
            if not found:
                return ids
            _, best = min(found)
            ids[best : best + 2] = [pairs[best]]

    agree(ours, lambda line: encode(line.replace("▁", " ")), with_spaces)
