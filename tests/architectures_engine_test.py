"""The engine against transformers, on every architecture: greedy texts, and options."""

import architectures
import jax
import numpy as np
import pytest
from architectures import ARCHITECTURES, LIKE_ANOTHER, logits_of

from cai_jax.decoding import Engine
from cai_jax.script import Choose, Force, Sample, Script
from cai_jax.weights.load import load_model

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SHARED = "Everybody reads these words first, and they are more than a window holds: "
OPTIONS = (" yes, that is the one", " yes, that is not it", " no")
PROMPTS = ("abc", "A somewhat longer one, which passes the window by itself.", "9")
DECODED = [name for name in ARCHITECTURES if name not in LIKE_ANOTHER]


@pytest.mark.parametrize("name", DECODED)
def test_the_engine(name, tmp_path):
    """Behind a prefix that all share: greedy texts token for token, and options, longer than the
    window and with a beginning in common, as a plain pass scores them."""
    theirs = architectures.theirs(name)
    architectures.save(theirs, tmp_path)
    model = load_model(tmp_path)
    scripts = [Script((Force(SHARED + t), Sample(64, temperature=0.0)), t) for t in PROMPTS]
    scripts.append(Script((Force(SHARED + "Is it?"), Choose(OPTIONS)), "choice"))
    engine = Engine(model, slots=2, max_length=160, few_sizes=True)
    *answers, choice = engine.run(scripts)
    assert engine.stats.shared >= len(SHARED)
    for answer in answers:
        prompt = [model.tokenizer.bos_id, *answer.segments[0].tokens]
        with torch.no_grad():
            whole = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=64,
                do_sample=False,
                eos_token_id=list(model.tokenizer.end_ids),
                pad_token_id=model.tokenizer.pad_id,
            )
        assert list(answer.segments[1].tokens) == whole[0, len(prompt) :].tolist()
    context = [model.tokenizer.bos_id, *choice.segments[0].tokens]
    texts = [context + model.tokenizer.encode(option) for option in OPTIONS]
    tokens = np.array([text + [0] * (128 - len(text)) for text in texts])
    places = np.broadcast_to(np.arange(128), tokens.shape)
    scores = logits_of(model.config, model.params, tokens, places, np.ones_like(tokens))
    scores = np.asarray(jax.nn.log_softmax(scores))
    for n, (text, found) in enumerate(zip(texts, choice.segments[1].option_logprobs, strict=True)):
        expected = sum(scores[n, i - 1, text[i]] for i in range(len(context), len(text)))
        assert found == pytest.approx(expected, abs=2e-3)
