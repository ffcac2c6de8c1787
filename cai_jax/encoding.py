"""A conversation and a reply as the tokens that training and scoring read.

The same pieces, tokenized one by one, that the engine forces and samples; so a model is trained and
scored on exactly the tokens it would have seen.
"""

from __future__ import annotations

from cai_jax.conversation import Conversation
from cai_jax.prompts import Format
from cai_jax.script import Force
from cai_jax.tokenizer import Tokenizer


def prompt_tokens(tokenizer: Tokenizer, form: Format, conversation: Conversation) -> list[int]:
    """BOS if the tokenizer has one, and everything up to the assistant's next turn."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return bos + _encode(tokenizer, form.prompt(conversation))


def reply_tokens(tokenizer: Tokenizer, form: Format, text: str) -> list[int]:
    """A whole reply: its text and the end token that a model samples after it."""
    return [*_encode(tokenizer, (form.reply(text),)), end_token(tokenizer, form)]


def end_token(tokenizer: Tokenizer, form: Format) -> int:
    """The token that ends a reply: the chat format's end of turn, else the end of sequence."""
    closing = _encode(tokenizer, form.end)
    return next((token for token in closing if token in tokenizer.end_ids), tokenizer.end_ids[0])


def example(
    tokenizer: Tokenizer, form: Format, conversation: Conversation, text: str, whole: bool = True
) -> tuple[list[int], list[bool]]:
    """A training example: tokens, and a mask that is True on the reply and its end token.

    A reply that was cut off, not `whole`, has no end token: to stop there is not to be learnt.
    """
    prompt = prompt_tokens(tokenizer, form, conversation)
    reply = reply_tokens(tokenizer, form, text)[: None if whole else -1]
    return prompt + reply, [False] * len(prompt) + [True] * len(reply)


def _encode(tokenizer: Tokenizer, forces: tuple[Force, ...]) -> list[int]:
    return [t for force in forces for t in tokenizer.encode(force.text, control=force.control)]
