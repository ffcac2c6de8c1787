"""A constitution as a YAML file: load, check, save.

The types and what needs no file come from cai_jax.principles, the paper's own files through
cai_jax.paper_import; all of it is offered here under one name.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cai_jax.paper_import import import_paper
from cai_jax.paper_prompts import ASSISTANT, HUMAN, is_conversation
from cai_jax.principles import (
    NOUNS,
    ComparisonExample,
    ComparisonPrinciple,
    Constitution,
    ConstitutionError,
    CritiqueExample,
    CritiquePrinciple,
    ReasonedExample,
    build,
    diff,
    draw,
)

__all__ = [
    "ComparisonExample",
    "ComparisonPrinciple",
    "Constitution",
    "ConstitutionError",
    "CritiqueExample",
    "CritiquePrinciple",
    "ReasonedExample",
    "build",
    "diff",
    "draw",
    "import_paper",
    "load",
    "save",
]

# Section of the file -> type of its entries.
_SECTIONS = {
    "critique": CritiquePrinciple,
    "comparison": ComparisonPrinciple,
    "critique_examples": CritiqueExample,
    "comparison_examples": ComparisonExample,
    "reasoned_examples": ReasonedExample,
}
_REQUIRED_SECTIONS = ("critique", "comparison")

# What a field holds, for the remedy in a message.
_MEANING = {
    "id": "a short name of its own",
    "critique_request": "the text that asks for the critique",
    "revision_request": "the text that asks for the rewrite",
    "instruction": "the question that asks which answer is better",
    "prompt": "the human's words, or a conversation from 'Human:' on",
    "response": "the assistant's answer",
    "critique": "the critique of that answer",
    "revision": "the rewritten answer",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "response_a": "the first answer",
    "response_b": "the second answer",
    "reasoning": "the thoughts that lead to the choice",
    "answer": "A or B",
}

# What YAML takes an unquoted value for, in plain words.
_PLAIN_TYPES = {
    "str": "text",
    "int": "number",
    "float": "number",
    "bool": "yes-or-no value",
    "timestamp": "date",
}

# Words the prompt templates write themselves.
_TEMPLATE_WORDS = {
    "critique_request": re.compile(r"^\s*(CritiqueRequest:)|(Critique:)\s*$"),
    "revision_request": re.compile(r"^\s*(RevisionRequest:)|(Revision:)\s*$"),
    "instruction": re.compile(r"(Options:)\s*$"),
}


def load(path: str | Path) -> Constitution:
    """Reads and checks a constitution.

    Args:
      path: a YAML file with `name`, `critique` and `comparison`, and optionally
        `critique_examples`, `comparison_examples` and `reasoned_examples`; the entries' fields are
        those of the dataclasses in cai_jax.principles.

    Raises:
      ConstitutionError: the file is missing or breaks the schema; one sentence which names the
        file, the line and the field, and says what to do.
    """
    path = Path(path)
    top = _Mapping(path, _compose(path), "the constitution")
    top.check_keys({"name", *_SECTIONS}, ("name", *_REQUIRED_SECTIONS), {"name": "its title"})
    parts = {}
    for section in _SECTIONS:
        parts[section] = list(_entries(path, top.values.get(section), section))
    return build(top.text("name").strip(), **parts)


def _compose(path: Path) -> yaml.Node:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConstitutionError(f"{path}: no such file; give a constitution's path.") from None
    except IsADirectoryError:
        raise ConstitutionError(f"{path}: this is a folder; give a .yaml file in it.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConstitutionError(f"{path}, line {line}: not UTF-8; save it as UTF-8.") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _fail(path, mark, f"not valid YAML ({error.problem}); check indentation, colons and quotes")
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        message = f"character #x{error.character:04x} is not allowed in YAML; remove it."
        raise ConstitutionError(f"{path}, line {line}: {message}") from None
    except RecursionError:
        message = "nested too deeply; a constitution has two levels."
        raise ConstitutionError(f"{path}: {message}") from None
    if node is None:
        raise ConstitutionError(
            f"{path}: the file is empty; start from constitutions/default.yaml."
        )
    return node


def _fail(path: Path, mark: Any, message: str) -> NoReturn:
    where = path if mark is None else f"{path}, line {mark.line + 1}"
    raise ConstitutionError(f"{where}: {message}.") from None


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a group of fields"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    tag = node.tag.rsplit(":")[-1]
    return "empty" if tag == "null" else f"the {_PLAIN_TYPES.get(tag, tag)} {node.value!r}"


class _Mapping:
    """A YAML mapping whose keys are text; remembers where everything stands."""

    def __init__(self, path: Path, node: yaml.Node, noun: str):
        self.path, self.node, self.noun = path, node, noun
        self.values: dict[str, yaml.Node] = {}
        self.marks: dict[str, yaml.Mark] = {}
        if not isinstance(node, yaml.MappingNode):
            _fail(
                path, node.start_mark, f"{noun} is {_kind(node)}; write it as 'field: text' lines"
            )
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else _kind(key)
            if name in self.values:
                _fail(path, key.start_mark, f"{noun} has '{name}' twice; keep one of them")
            self.values[name] = value
            self.marks[name] = key.start_mark

    def check_keys(self, known: set[str], required: Sequence[str], meaning: dict[str, str]) -> None:
        for name in self.values:
            if name not in known:
                close = difflib.get_close_matches(name, sorted(known), 1)
                remedy = f"rename it to '{close[0]}' or remove it" if close else "remove it"
                message = f"{self.noun} has an unknown field '{name}'; {remedy}"
                _fail(self.path, self.marks[name], message)
        for name in required:
            if name not in self.values:
                remedy = f"add {meaning[name]}" if name in meaning else "add a list of principles"
                _fail(self.path, self.node.start_mark, f"{self.noun} lacks '{name}'; {remedy}")

    def text(self, name: str) -> str:
        """The text of a field; a number, a date or a list in its place is an error."""
        node = self.values[name]
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":str"):
            if node.value.strip():
                return node.value
        elif not (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
            message = f"{self.noun}: '{name}' is {_kind(node)}; write text, in quotes if need be"
            _fail(self.path, node.start_mark, message)
        remedy = f"write {_MEANING.get(name, 'some text')}"
        _fail(self.path, node.start_mark, f"{self.noun}: '{name}' is empty; {remedy}")


def _entries(path: Path, node: yaml.Node | None, section: str) -> Iterator[Any]:
    kind, noun = _SECTIONS[section], NOUNS[section]
    if node is None:
        return
    if not isinstance(node, yaml.SequenceNode):
        _fail(
            path, node.start_mark, f"'{section}' is {_kind(node)}; write a list, one '-' an entry"
        )
    if section in _REQUIRED_SECTIONS and not node.value:
        _fail(path, node.start_mark, f"'{section}' has no entries; add at least one {noun}")
    names = [field.name for field in fields(kind)]
    first_line: dict[str, int] = {}
    for number, item in enumerate(node.value, 1):
        entry = _Mapping(path, item, f"{noun} {number}")
        if "id" in entry.values:
            entry.noun = f"{noun} '{entry.text('id').strip()}'"
        entry.check_keys(set(names), names, {n: _MEANING[n] for n in names})
        texts = {name: entry.text(name) for name in names}
        for name, value in texts.items():
            mark = entry.values[name].start_mark
            match = _TEMPLATE_WORDS[name].search(value) if name in _TEMPLATE_WORDS else None
            if match:
                words = match[1] or match[match.lastindex]
                message = f"'{name}' holds '{words}', which the prompt adds itself; remove it"
                _fail(path, mark, f"{entry.noun}: {message}")
            if name == "answer":
                texts[name] = value.strip()
                if texts[name] not in ("A", "B"):
                    message = f"'answer' is '{texts[name]}'; write A or B"
                    _fail(path, mark, f"{entry.noun}: {message}")
            if name == "prompt":
                texts[name] = _prompt(value)
                if texts[name] is None:
                    message = "'prompt' ends with an assistant turn; end it with a human turn"
                    _fail(path, mark, f"{entry.noun}: {message}")
        if "id" in texts:
            texts["id"] = texts["id"].strip()
            mark = entry.values["id"].start_mark
            if texts["id"] in first_line:
                message = f"is named again (first in line {first_line[texts['id']]}); rename one"
                _fail(path, mark, f"{entry.noun} {message}")
            first_line[texts["id"]] = mark.line + 1
        yield kind(**texts)


def _prompt(text: str) -> str | None:
    """A prompt as the dataclasses hold it; None if the human does not have the last word."""
    if not text.lstrip().startswith("Human:"):
        return text
    text = "\n\n" + text.strip()
    if not text.endswith(ASSISTANT):
        text += ASSISTANT
    before = text.removesuffix(ASSISTANT)
    return text if before.rfind(HUMAN) > before.rfind(ASSISTANT) else None


# Line breaks besides "\n", which every style but the double-quoted one would turn into "\n".
_LINE_BREAKS = re.compile("[\r\x85\u2028\u2029]")


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, so that a person can read and edit them."""

    def represent_text(self, text: str) -> yaml.Node:
        if _LINE_BREAKS.search(text):
            style = '"'
        else:
            style = "|" if "\n" in text and not text[0].isspace() else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def save(constitution: Constitution, path: str | Path) -> None:
    """Writes YAML that `load` reads back to the same hash.

    Raises:
      OSError: the file cannot be written.
    """
    content: dict[str, Any] = {"name": constitution.name}
    for section in _SECTIONS:
        entries = [asdict(item) for item in getattr(constitution, section)]
        for entry in entries:
            if is_conversation(entry.get("prompt", "")):
                entry["prompt"] = entry["prompt"].removesuffix(ASSISTANT).lstrip("\n")
        if entries or section in _REQUIRED_SECTIONS:
            content[section] = entries
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=96)
    Path(path).write_text(text, encoding="utf-8", newline="\n")
