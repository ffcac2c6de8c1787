r"""Conversations, and the plain-text form in which the paper's models read them.

"\n\nHuman: ...\n\nAssistant: ..." is both a file format (parse, render) and a prompt format
(PaperFormat). Models with a chat template of their own read through chat_template.ChatFormat,
which has the same interface.
"""

from __future__ import annotations

import dataclasses
import re

from cai_jax.script import Force

ROLES = ("system", "human", "assistant")
_MARKER = re.compile(r"\n\n(Human|Assistant):")


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one side said.

    Attributes:
      role: "system", "human" or "assistant".
      text: without the role's name and without the space that follows it.
    """

    role: str
    text: str

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"a turn's role is one of {', '.join(ROLES)}, not {self.role!r}")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Turns in order."""

    turns: tuple[Turn, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "turns", tuple(self.turns))

    def human(self, text: str) -> Conversation:
        """This conversation with a human turn added."""
        return Conversation((*self.turns, Turn("human", text)))

    def assistant(self, text: str) -> Conversation:
        """This conversation with an assistant turn added."""
        return Conversation((*self.turns, Turn("assistant", text)))


def parse(text: str) -> Conversation:
    r"""Reads "\n\nHuman: ...\n\nAssistant: ..."; the inverse of `render`.

    Only "\n\nHuman:" and "\n\nAssistant:" separate turns, so blank lines and colons inside a turn
    stay. One space after the colon belongs to the marker. A last "\n\nAssistant:" with nothing
    after it asks for a reply and is not a turn.

    Raises:
      ValueError: there is no human turn, or something stands before the first turn.
    """
    before, *parts = _MARKER.split(text)
    if not parts:
        raise ValueError(r'a conversation starts with "\n\nHuman:", and this text has no turn')
    if before.strip():
        raise ValueError(
            rf'a conversation starts with "\n\nHuman:", and this text starts with {before[:40]!r}'
        )
    turns = [
        Turn(role.lower(), said.removeprefix(" "))
        for role, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if parts[-2:] == ["Assistant", ""]:
        turns.pop()
    if not any(turn.role == "human" for turn in turns):
        raise ValueError(
            r'a conversation has at least one "\n\nHuman:" turn, and this text has none'
        )
    return Conversation(tuple(turns))


def render(conversation: Conversation) -> str:
    r"""Writes "\n\nHuman: ...\n\nAssistant: ..."; ends with "\n\nAssistant:" after a human turn.

    Raises:
      ValueError: there is no turn, or a system turn, for which the format has no place.
    """
    if not conversation.turns:
        raise ValueError("a conversation without turns cannot be written")
    if any(turn.role == "system" for turn in conversation.turns):
        raise ValueError(
            "the plain-text format has no system turn; use a model with a chat template, or put "
            "the text into the first human turn"
        )
    text = "".join(f"\n\n{turn.role.capitalize()}: {turn.text}" for turn in conversation.turns)
    return text + "\n\nAssistant:" if conversation.turns[-1].role == "human" else text


@dataclasses.dataclass(frozen=True)
class PaperFormat:
    """How a plain-text model reads a conversation: as in the paper, section 3.1."""

    def prompt(self, conversation: Conversation) -> tuple[Force, ...]:
        """Everything up to where the assistant writes its next turn.

        Raises:
          ValueError: the last turn is not human, or there is a system turn.
        """
        require_human_last(conversation)
        return (Force(render(conversation)),)

    def after_reply(self, conversation: Conversation) -> tuple[Force, ...]:
        """What follows an assistant's text: `conversation`, then the next assistant turn opened.

        Raises:
          ValueError: `conversation` does not start and end with a human turn, or has a system turn.
        """
        require_human_first(conversation)
        return self.prompt(conversation)

    def reply(self, text: str) -> Force:
        """An assistant's text as the model would have written it after `prompt`."""
        return Force(" " + text)

    @property
    def end(self) -> tuple[Force, ...]:
        """What closes an assistant turn: nothing."""
        return ()

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings at which a sampled reply is over."""
        return ("\n\nHuman:", "\n\nAssistant:")


def require_human_last(conversation: Conversation) -> None:
    """Raises ValueError unless a reply of the assistant is due."""
    if not conversation.turns or conversation.turns[-1].role != "human":
        raise ValueError("the assistant replies to a human turn, and the last turn here is not one")


def require_human_first(conversation: Conversation) -> None:
    """Raises ValueError unless the conversation can follow an assistant's reply."""
    if not conversation.turns or conversation.turns[0].role != "human":
        raise ValueError("a human turn follows a reply, and the first turn here is not one")
