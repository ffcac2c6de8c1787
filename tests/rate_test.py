"""Direct RLAIF's score: the expected rating of a response, by a principle drawn for its prompt."""

import numpy as np
import pytest
from scripted import ScriptedEngine, forced

from cai_jax import principles
from cai_jax.batch import pad_tokens
from cai_jax.conversation import Conversation, PaperFormat
from cai_jax.decoding import Engine
from cai_jax.decoding.rate import Judge, check_room, rate, rescaled
from cai_jax.models.scoring import jit_reply_logprobs
from cai_jax.principles import ComparisonPrinciple
from cai_jax.questions import RATED
from cai_jax.questions import rating as question

CONSTITUTION = principles.build(
    "test", critique=[], comparison=[ComparisonPrinciple(f"c{n}", "long? " * n) for n in (1, 2, 3)]
)
PROMPT = Conversation().human("the question")


def judge(engine, form=None, seed=0, params="weights") -> Judge:
    return Judge(engine, params, form or PaperFormat(), CONSTITUTION, seed)


@pytest.mark.parametrize(("points", "score"), [(1, -1.0), (10, 1.0), (5.5, 0.0), (7.75, 0.5)])
def test_ratings_lie_between_minus_one_and_one(points, score):
    assert rescaled(points) == pytest.approx(score)


def test_a_score_is_the_expected_rating():
    given = {"sure": [0.0 if n == 9 else -99.0 for n in range(10)], "split": [-1.0] + [-99.0] * 9}
    given["split"][9] = -1.0
    given["flat"] = [-7.0] * 10

    def answer(script, segment):
        assert segment.options == RATED
        return next(logprobs for word, logprobs in given.items() if word in forced(script))

    engine = ScriptedEngine(answer)
    texts = [("1/a", n, PROMPT, word) for n, word in enumerate(given)]
    found = rate(judge(engine), texts)
    assert [r.score for r in found] == pytest.approx([1.0, 0.0, 0.0])
    assert engine.params is None, "the judge's weights are let go"


def test_responses_to_one_prompt_are_rated_by_one_principle_others_by_others():
    engine = ScriptedEngine(lambda script, segment: [0.0] * 10)
    texts = [(f"{place}/a", n, PROMPT, f"text {n}") for place in range(20) for n in range(2)]
    found = rate(judge(engine), texts)
    drawn = [r.principle for r in found]
    assert drawn[::2] == drawn[1::2] and set(drawn) == {"c1", "c2", "c3"}
    assert [r.principle for r in rate(judge(engine), texts)] == drawn
    assert [r.principle for r in rate(judge(engine, seed=1), texts)] != drawn
    for script, rated in zip(engine.scripts, found, strict=False):
        asked = next(p for p in CONSTITUTION.comparison if p.id == rated.principle)
        assert f"judged by this: {asked.instruction}" in forced(script)


def test_a_real_models_rating_is_that_of_its_own_probabilities(model):
    engine = Engine(model, 4, 1024)
    texts = [("0/a", 0, PROMPT, "yes"), ("0/a", 1, PROMPT, "no, for a reason")]
    found = rate(judge(engine, model.format, params=model.params), texts)
    principle = next(p for p in CONSTITUTION.comparison if p.id == found[0].principle)
    encode = model.tokenizer.encode
    options, filled = pad_tokens([encode(option) for option in RATED], 8)
    for rated, (*_, response) in zip(found, texts, strict=True):
        forces = question(model.format, principle, PROMPT, response)
        tokens = [model.tokenizer.bos_id, *(t for f in forces for t in encode(f.text))]
        read = np.zeros((10, 512), np.int32)
        read[:, -len(tokens) :] = tokens
        real = np.arange(512) >= 512 - len(tokens)
        logprobs, _ = jit_reply_logprobs(
            model.config, model.params, read, np.tile(real, (10, 1)), options, filled, 1.0
        )
        p = np.exp(np.where(filled, logprobs, 0).sum(-1).astype(np.float64))
        points = (p / p.sum() * np.arange(1, 11)).sum()
        assert rated.score == pytest.approx((2 * points - 11) / 9, abs=1e-3)


def test_a_question_that_cannot_fit_is_refused(model):
    longest = question(model.format, CONSTITUTION.comparison[-1], PROMPT, "")
    need = 1 + len(model.tokenizer.encode(longest[0].text)) + len(" 10/10") + 9
    asked = (model.tokenizer, model.format, CONSTITUTION, [PROMPT, Conversation().human("Hi")], 9)
    check_room(*asked, need)
    with pytest.raises(ValueError, match=rf"can need {need} tokens, and .*max_length") as caught:
        check_room(*asked, need - 1)
    assert "\n" not in str(caught.value)
