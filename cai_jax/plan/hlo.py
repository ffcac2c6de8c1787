"""The text of a compiled program, an HLO module: computations, instructions, their types."""

from __future__ import annotations

import dataclasses
import math
import re

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2}  # of others, the digits of the name tell

ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+\w*)\[([\d,]*)\](\{[^{}]*\})?")
LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
CALL = re.compile(r"^([\w\-]+)\((.*?)\)(?:, (.*))?$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Attributes: type, its text; op; operands, names; rest, the attributes' text."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str
    root: bool


Computation = dict[str, Instruction]


def parse(text: str) -> dict[str, Computation]:
    """Computations by name, the entry's with "ENTRY " before it."""
    found: dict[str, Computation] = {}
    for line in text.splitlines():
        if line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            current = found[(head[1] or "") + head[2]] = {}
        elif match := LINE.match(line):
            kind, call = _split_type(match[3])
            if parts := CALL.match(call):
                names = tuple(re.findall(r"%([\w.\-]+)", parts[2]))
                one = Instruction(match[2], kind, parts[1], names, parts[3] or "", bool(match[1]))
                current[one.name] = one
    return found


def entry_of(modules: dict[str, Computation]) -> str:
    """The name of the entry."""
    return next(name for name in modules if name.startswith("ENTRY "))


def size(kind: str, main_memory: bool = True) -> int:
    """Bytes of all arrays of a type's text; of those in main memory, or of all."""
    total = 0
    for name, dims, layout in ARRAY.findall(kind):
        if main_memory and re.search(r"S\([1-9]\d*\)", layout):
            continue
        each = BYTES.get(name) or int(re.search(r"\d+", name)[0]) / 8
        total += each * math.prod(int(d) for d in dims.split(",") if d)
    return int(total)


def elements(kind: str) -> list[str]:
    """A tuple type's elements; a plain type alone."""
    if not kind.startswith("("):
        return [kind]
    parts, depth, start = [], 0, 1
    for n, c in enumerate(kind):
        depth += (c in "([{") - (c in ")]}")
        if (c == "," and depth == 1) or (c == ")" and depth == 0):
            parts.append(kind[start:n])
            start = n + 1
    return parts


def rounds(modules: dict[str, Computation], loop: Instruction) -> int | None:
    """How often a loop's body runs: as it says, or N where it goes on while i < N, from 0."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = modules[called(loop, "condition")[0]]
    root = next(one for one in condition.values() if one.root)
    limits = [condition[n] for n in root.operands if condition[n].op == "constant"]
    if root.op != "compare" or "direction=LT" not in root.rest or len(limits) != 1:
        return None
    return int(re.search(r"#(\d+)#", limits[0].rest)[1])


def called(one: Instruction, key: str) -> list[str]:
    found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", one.rest)
    return re.findall(r"[\w.\-]+", found[1]) if found else []


def reached(modules: dict[str, Computation], names: list[str]) -> list[str]:
    """Computations that these call, they included."""
    seen, todo = [], list(names)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.append(name)
        for one in modules[name].values():
            words = re.findall(r"%([\w.\-]+)", one.rest)
            todo += [word for word in words if word in modules]
    return seen


def _split_type(text: str) -> tuple[str, str]:
    """A line after its "=", cut behind the type.

    The number of a parameter, and a constant that is one, are kept in its attributes.
    """
    depth, end = 0, 0
    while depth or text[end] != " ":
        depth += (text[end] in "([{") - (text[end] in ")]}")
        end += 1
    call = re.sub(r"^(parameter|constant)\((\d+)\)(.*)", r"\1(), #\2#\3", text[end + 1 :])
    return text[:end], call
