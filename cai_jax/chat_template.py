"""Chat templates: how an instruct model reads a conversation, from the model file's own Jinja.

A template is foreign code: it runs in a sandbox and sees placeholders, never what people or models
said. What it writes around the placeholders may contain control tokens; the texts that then take
their places may not. This guards what a template can reach, not how long it runs.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import re

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2.utils import Namespace

from cai_jax.conversation import Conversation, Turn, require_human_first, require_human_last
from cai_jax.script import Force
from cai_jax.tokenizer import Tokenizer

_ROLES = {"system": "system", "human": "user", "assistant": "assistant"}
# Private-use characters: no template writes or trims them.
_PLACEHOLDER = re.compile("\ue000([0-9]+)\ue001")


class ChatTemplateError(ValueError):
    """A chat template that cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How a model with a chat template reads a conversation. Same interface as PaperFormat.

    Attributes:
      template: Jinja source.
      bos_token, eos_token: what the template knows under these names.
      strip_bos: whether the tokenizer puts the BOS before every context itself; a BOS that the
        template writes is then left out, so that there is one.

    Raises:
      ChatTemplateError: the template is no Jinja, reaches outside its sandbox, drops or reorders
        turns, or writes an assistant turn differently when it asks for it than when it has it.
    """

    template: str
    bos_token: str = ""
    eos_token: str = ""
    strip_bos: bool = False

    @classmethod
    def for_tokenizer(cls, template: str, tokenizer: Tokenizer) -> ChatFormat:
        """The format of `template` with the tokenizer's own BOS and EOS."""
        return cls(
            template=template,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            strip_bos=tokenizer.bos_id is not None,
        )

    def __post_init__(self):
        # A context grows by sampling: prompt, reply, after_reply. It must come out as the template
        # would have written the whole.
        first = (Turn("human", ""),)
        answered = (*first, Turn("assistant", ""))
        opened = self._literals(first, opens_reply=True)
        closed = self._literals(answered, opens_reply=False)
        whole = self._literals((*answered, Turn("human", "")), opens_reply=True)
        if whole[:2] != opened or closed[:2] != opened or not whole[2].startswith(closed[2]):
            raise ChatTemplateError(
                "the chat template writes an assistant turn differently when it asks for it than "
                "when it has it, so a sampled conversation would not read like a given one"
            )

    def prompt(self, conversation: Conversation) -> tuple[Force, ...]:
        """Everything up to where the assistant writes its next turn.

        A template may add a system turn of its own when the conversation has none.

        Raises:
          ValueError: the last turn is not human.
          ChatTemplateError: the template has no place for these turns.
        """
        require_human_last(conversation)
        return _forces(self._literals(conversation.turns, opens_reply=True), conversation.turns)

    def after_reply(self, conversation: Conversation) -> tuple[Force, ...]:
        """Closes the assistant turn before, adds `conversation`, opens the next assistant turn.

        Raises:
          ValueError: `conversation` does not start and end with a human turn.
          ChatTemplateError: the template has no place for these turns.
        """
        require_human_first(conversation)
        require_human_last(conversation)
        before = (Turn("human", ""), Turn("assistant", ""))
        literals = self._literals((*before, *conversation.turns), opens_reply=True)
        return _forces(literals[len(before) :], conversation.turns)

    def reply(self, text: str) -> Force:
        """An assistant's text as the model would have written it after `prompt`."""
        return Force(text)

    @property
    def end(self) -> tuple[Force, ...]:
        """What closes an assistant turn."""
        turns = (Turn("human", ""), Turn("assistant", ""))
        return _forces(self._literals(turns, opens_reply=False)[-1:], ())

    @property
    def stop(self) -> tuple[str, ...]:
        """No strings: the model's end token ends a reply."""
        return ()

    def _literals(self, turns: tuple[Turn, ...], opens_reply: bool) -> list[str]:
        """What the template writes before, between and after the texts of `turns`."""
        messages = [
            {"role": _ROLES[turn.role], "content": f"\ue000{i}\ue001"}
            for i, turn in enumerate(turns)
        ]
        try:
            text = _compile(self.template).render(
                messages=messages,
                add_generation_prompt=opens_reply,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                tools=None,
                documents=None,
            )
        except ChatTemplateError:
            raise
        except Exception as error:  # foreign code: it can fail in any way
            raise ChatTemplateError(f"the chat template fails: {error}") from error
        pieces = _PLACEHOLDER.split(text)
        if pieces[1::2] != [str(i) for i in range(len(turns))]:
            raise ChatTemplateError(
                "the chat template drops, repeats or reorders turns; roles given: "
                + ", ".join(turn.role for turn in turns)
            )
        literals = pieces[::2]
        if self.strip_bos and self.bos_token:
            literals[0] = literals[0].removeprefix(self.bos_token)
        return literals


def with_turn_end(tokenizer: Tokenizer, chat_format: ChatFormat) -> Tokenizer:
    """The tokenizer with the template's end of turn among its end ids.

    Files exist whose end of sequence is another token; a reply would then never stop.
    """
    text = "".join(force.text for force in chat_format.end)
    control = set(tokenizer.control_tokens.values())
    ends = [token for token in tokenizer.encode(text, control=True) if token in control]
    return tokenizer.ending_with(ends[:1])


def _forces(literals: list[str], turns: tuple[Turn, ...]) -> tuple[Force, ...]:
    """Literals and texts in turn; literals may hold control tokens, texts may not."""
    forces = [Force(literals[0], control=True)]
    for turn, literal in zip(turns, literals[1:], strict=True):
        forces += [Force(turn.text), Force(literal, control=True)]
    return tuple(force for force in forces if force.text)


class _Namespace(Namespace):
    """Jinja's namespace without names that Python gives a meaning to."""

    def __init__(self, **attributes):
        for name in attributes:
            _refuse_private(name)
        super().__init__(attributes)

    def __setitem__(self, name, value):
        _refuse_private(name)
        super().__setitem__(name, value)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which by itself lets a forbidden attribute pass as an undefined one."""

    def unsafe_undefined(self, obj, attribute):
        _refuse_private(attribute)
        raise ChatTemplateError(f"the chat template reaches for {attribute!r}, which is forbidden")


class _Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %} marks what the assistant wrote; it adds nothing."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse_private(name: str) -> None:
    if name.startswith("_"):
        raise ChatTemplateError(f"the chat template reaches for {name!r}, a Python internal")


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    """The template under the settings that templates are written for (transformers')."""
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals = {
        "range": environment.globals["range"],  # the sandbox's own, with a limit
        "namespace": _Namespace,
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template is not valid Jinja: line {error.lineno}, {error.message}"
        ) from error


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Jinja's own filter escapes HTML, which templates do not expect."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str):
    raise ChatTemplateError(f"the chat template refuses these turns: {message}")
