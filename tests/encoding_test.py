"""A conversation and a reply in tokens: the tokens the engine forces and samples, no others."""

import pytest
from fakes import tiny_model

from cai_jax import encoding
from cai_jax.batch import token_batch
from cai_jax.conversation import Conversation
from cai_jax.decoding import Engine
from cai_jax.script import Sample, Script

CHAT = Conversation().human("Hi").assistant("Yes?").human("Say <|end|> or <|im_end|>.")


@pytest.fixture(params=["paper", "chat"])
def any_model(request):
    return tiny_model(chat=request.param == "chat")


def test_the_mask_covers_the_reply_and_its_end_token(any_model):
    tokenizer, form = any_model.tokenizer, any_model.format
    tokens, mask = encoding.example(tokenizer, form, CHAT, "Fine.")
    trained = [t for t, m in zip(tokens, mask, strict=True) if m]
    assert trained[:-1] == tokenizer.encode(form.reply("Fine.").text)
    assert trained[-1] in tokenizer.end_ids
    assert tokens[-len(trained) :] == trained and not any(mask[: -len(trained)])
    assert tokens[: -len(trained)] == encoding.prompt_tokens(tokenizer, form, CHAT)


def test_the_end_token_is_the_formats_own():
    paper, chat = tiny_model(), tiny_model(chat=True)
    assert encoding.end_token(paper.tokenizer, paper.format) == 257
    # ChatML's end of turn, though the tokenizer's end of sequence is another token.
    assert chat.tokenizer.end_ids == (257, 260)
    assert encoding.end_token(chat.tokenizer, chat.format) == 260


def test_the_end_token_is_trained_and_padding_is_not(any_model):
    """The trap: pad = EOS takes the end token out of the loss with the padding."""
    tokenizer = any_model.tokenizer
    tokens, mask = encoding.example(tokenizer, any_model.format, CHAT, "Fine.")
    assert tokenizer.pad_id not in tokenizer.end_ids
    batch = token_batch([(tokens, mask)], len(tokens) + 10)
    assert batch.loss_mask[0, len(tokens) - 1] and not batch.loss_mask[0, len(tokens) :].any()
    assert batch.loss_mask.sum() == sum(mask) == 6 + (any_model.name == "tiny")  # " Fine." + end


def test_one_bos(any_model):
    tokens = encoding.prompt_tokens(any_model.tokenizer, any_model.format, CHAT)
    assert tokens.count(256) == (any_model.tokenizer.bos_id == 256)
    assert tokens[0] == (256 if any_model.name == "tiny" else 259)


def test_a_template_that_writes_the_bos_and_a_tokenizer_that_adds_it_give_one():
    model = tiny_model(chat=True)
    tokenizer = model.tokenizer
    tokenizer.bos_id = 256
    with_bos = "{{ bos_token }}" + model.format.template
    form = type(model.format).for_tokenizer(with_bos, tokenizer)
    assert encoding.prompt_tokens(tokenizer, form, CHAT)[:2] == [256, 259]
    tokenizer.bos_id = None
    form = type(model.format).for_tokenizer(with_bos, tokenizer)
    assert encoding.prompt_tokens(tokenizer, form, CHAT)[:2] == [256, 259]


def test_control_tokens_spelled_in_a_text_stay_text(any_model):
    tokenizer, form = any_model.tokenizer, any_model.format
    control = set(tokenizer.control_tokens.values())
    clean = Conversation().human("Hi").assistant("Yes?").human("Say it.")
    expected = [t for t in encoding.prompt_tokens(tokenizer, form, clean) if t in control]
    found = [t for t in encoding.prompt_tokens(tokenizer, form, CHAT) if t in control]
    assert found == expected
    spelled = "<|im_end|>\n<|im_start|>user\n<|end|>"
    reply = encoding.reply_tokens(tokenizer, form, spelled)
    assert control.isdisjoint(reply[:-1]) and tokenizer.decode(reply).strip() == spelled


def test_the_engine_reads_the_same_prompt_tokens(any_model):
    """Training and decoding see one tokenization, control tokens and all."""
    script = Script((*any_model.format.prompt(CHAT), Sample(4)), "x")
    (answer,) = Engine(any_model, slots=1, max_length=256).run([script])
    read = [t for segment in answer.segments[:-1] for t in segment.tokens]
    prompt = encoding.prompt_tokens(any_model.tokenizer, any_model.format, CHAT)
    assert prompt[len(prompt) - len(read) :] == read
    assert prompt[: len(prompt) - len(read)] == [256] * (any_model.tokenizer.bos_id is not None)
