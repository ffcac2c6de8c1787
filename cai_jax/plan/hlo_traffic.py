"""Bytes that a compiled program, or the body of its loop, moves: in memory and between devices.

Counted on the text of a scheduled HLO module, where each instruction of the body is one pass over
its operands. What stands in a TPU's on-chip memory (S(1) and the like in a layout) costs nothing;
a slice or a gather costs what it takes, an update in place what it writes. Tiles are not padded,
and of a conditional the dearest branch counts.
"""

from __future__ import annotations

import dataclasses
import math
import re

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2}  # of others, the digits of the name tell
FREE = (  # moves nothing, or is counted where it starts
    *("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "iota", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "copy-done", "async-done", "async-update"),
    *("slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done"),
)
COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    "collective-permute",
)
HOST = ("infeed", "outfeed", "send", "recv", "send-done", "recv-done")
TAKES = ("slice", "dynamic-slice", "gather")  # reads of operand 0 what it gives
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # writes in place the operand of this number
PASSES = ("bitcast", "reshape", "copy", "transpose", "convert")  # where a fusion looks through

ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+\w*)\[([\d,]*)\](\{[^{}]*\})?")
LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
CALL = re.compile(r"^([\w\-]+)\((.*?)\)(?:, (.*))?$")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one iteration. Attributes: bytes; largest (bytes, instruction); host transfers by name."""

    bytes: int
    largest: tuple[tuple[int, str], ...]
    host: tuple[str, ...]


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


def loop_traffic(text: str) -> Traffic:
    """The traffic of the outermost loop's body.

    Raises:
      ValueError: the module's entry has no loop, or several.
    """
    modules = parse(text)
    entry = next(name for name in modules if name.startswith("ENTRY "))
    loops = [i for i in modules[entry].values() if i.op == "while"]
    if len(loops) != 1:
        raise ValueError(f"The module's entry has {len(loops)} loops; one was expected.")
    called = [_called(loops[0], key)[0] for key in ("body", "condition")]
    costs = [(_cost(modules, modules[c], i), i.name) for c in called for i in modules[c].values()]
    host = [i.name for c in _reached(modules, called) for i in modules[c].values() if _is_host(i)]
    return Traffic(sum(c for c, _ in costs), tuple(sorted(costs, reverse=True)[:20]), tuple(host))


def program_bytes(text: str) -> int:
    """What a whole program reads from and writes to a device's main memory.

    A loop counts as often as it says that it runs, and once where it does not.
    """
    modules = parse(text)
    return _total(modules, next(name for name in modules if name.startswith("ENTRY ")))


def host_transfers(text: str) -> tuple[str, ...]:
    """Names of the instructions of a whole module that send to the host or receive from it."""
    return tuple(i.name for c in parse(text).values() for i in c.values() if _is_host(i))


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """What a module sends between devices, each computation as often as it is run.

    Parts of an asynchronous one share its channel, by which it is counted once; permutations have
    no such parts, and share a channel where they are several.

    Returns:
      Kind -> (how often, bytes that one device ends up with in all).

    Raises:
      ValueError: one stands in a loop whose number of rounds the text does not say.
    """
    modules = parse(text)
    entry = next(name for name in modules if name.startswith("ENTRY "))
    channels: dict[str, tuple[str, int, int]] = {}

    def walk(name: str, times: int | None) -> None:
        for one in modules[name].values():
            kind = one.op.removesuffix("-start")
            if kind in COLLECTIVES:
                if times is None:
                    raise ValueError(f"How often {one.name} is run is not said.")
                # An asynchronous one's type: what goes in, what comes out, flags.
                parts = _elements(one.type)
                result = parts[1] if kind != one.op and len(parts) > 1 else one.type
                channel = re.search(r"\bchannel_id=(\d+)", one.rest)
                key = channel[1] if channel and kind != "collective-permute" else one.name
                rounds = min(times, channels[key][1]) if key in channels else times
                channels[key] = kind, rounds, size(result, main_memory=False)
            if one.op == "while":
                walk(_called(one, "body")[0], times and _product(times, _rounds(modules, one)))
            elif not one.op.endswith(("-done", "-update")):
                for key in ("calls", "to_apply", "branch_computations", "called_computations"):
                    for called in _called(one, key):
                        walk(called, times)

    walk(entry, 1)
    found: dict[str, tuple[int, int]] = {}
    for kind, times, each in channels.values():
        often, total = found.get(kind, (0, 0))
        found[kind] = often + times, total + times * each
    return dict(sorted(found.items()))


def _product(times: int, rounds: int | None) -> int | None:
    return None if rounds is None else times * rounds


def _rounds(modules: dict[str, Computation], loop: Instruction) -> int | None:
    """How often a loop's body runs: as it says, or N where it goes on while i < N, from 0."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = modules[_called(loop, "condition")[0]]
    root = next(one for one in condition.values() if one.root)
    limits = [condition[n] for n in root.operands if condition[n].op == "constant"]
    if root.op != "compare" or "direction=LT" not in root.rest or len(limits) != 1:
        return None
    return int(re.search(r"#(\d+)#", limits[0].rest)[1])


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


def size(kind: str, main_memory: bool = True) -> int:
    """Bytes of all arrays of a type's text; of those in main memory, or of all."""
    total = 0
    for name, dims, layout in ARRAY.findall(kind):
        if main_memory and re.search(r"S\([1-9]\d*\)", layout):
            continue
        each = BYTES.get(name) or int(re.search(r"\d+", name)[0]) / 8
        total += each * math.prod(int(d) for d in dims.split(",") if d)
    return int(total)


def _cost(modules: dict[str, Computation], inside: Computation, one: Instruction) -> int:
    """Bytes that one instruction of a body moves."""
    kinds = [inside[name].type for name in one.operands if name in inside]
    if one.op in FREE:
        return 0
    if one.op == "conditional":
        branches = _called(one, "branch_computations") or [
            *_called(one, "true_computation"),
            *_called(one, "false_computation"),
        ]
        return max(_total(modules, branch) for branch in branches)
    if one.op == "call":
        return _total(modules, _called(one, "to_apply")[0])
    if one.op == "while":
        return _total(modules, _called(one, "body")[0]) * (_rounds(modules, one) or 1)
    if one.op.endswith("-start"):  # (operands, results, flags)
        parts = _elements(one.type)
        taken = one.op == "slice-start" or any(
            i.op in TAKES for c in _called(one, "calls") for i in modules[c].values()
        )
        if one.op == "copy-start":  # (result, operand, flag)
            return size(parts[0]) + sum(map(size, kinds))
        read = sum(size(kind) for kind in kinds)
        read = min(read, size(parts[1], main_memory=False)) if taken else read
        return read + size(parts[1])
    if one.op == "fusion":
        fused = modules[_called(one, "calls")[0]]
        read = sum(
            size(kind) and min(size(kind), _read(modules, fused, _parameter(fused, n)))
            for n, kind in enumerate(kinds)
        )
        return read + _written(fused, one)
    if one.op in TAKES:
        return (size(kinds[0]) and size(one.type, main_memory=False)) + size(one.type)
    if one.op in UPDATES:
        update = kinds[UPDATES[one.op]]
        return size(update) + (size(one.type) and size(update, main_memory=False))
    return sum(map(size, kinds)) + size(one.type)


def _total(modules: dict[str, Computation], name: str) -> int:
    return sum(_cost(modules, modules[name], one) for one in modules[name].values())


def _read(modules: dict[str, Computation], fused: Computation, name: str | None) -> int:
    """Bytes that a fusion reads of something inside it."""
    total = 0
    for user in fused.values():
        if name not in user.operands:
            continue
        if user.op in PASSES:
            total += _read(modules, fused, user.name) if not user.root else size(user.type, False)
        elif user.op in TAKES and user.operands[0] == name:
            total += size(user.type, main_memory=False)
        elif user.op in UPDATES and user.operands[0] == name:
            continue  # in place
        elif user.op == "fusion":
            inner = modules[_called(user, "calls")[0]]
            spots = [n for n, operand in enumerate(user.operands) if operand == name]
            total += sum(_read(modules, inner, _parameter(inner, n)) for n in spots)
        elif user.op not in ("tuple", "get-tuple-element"):
            total += size(fused[name].type, main_memory=False)
    return total


def _written(fused: Computation, one: Instruction) -> int:
    """Bytes of a fusion's results, of one that is updated in place what is new."""
    root = next(i for i in fused.values() if i.root)
    results = [fused[name] for name in root.operands] if root.op == "tuple" else [root]
    total = 0
    for result, kind in zip(results, _elements(one.type), strict=False):
        while result.op in PASSES and result.operands[0] in fused:
            result = fused[result.operands[0]]
        if result.op in UPDATES:
            update = fused[result.operands[UPDATES[result.op]]].type
            total += size(kind) and size(update, main_memory=False)
        else:
            total += size(kind)
    return total


def _parameter(fused: Computation, number: int) -> str | None:
    """A computation's parameter's name. Its number stands where operands do."""
    found = [i for i in fused.values() if i.op == "parameter"]
    return next((i.name for i in found if i.rest.startswith(f"#{number}#")), None)


def _elements(kind: str) -> list[str]:
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


def _called(one: Instruction, key: str) -> list[str]:
    found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", one.rest)
    return re.findall(r"[\w.\-]+", found[1]) if found else []


def _reached(modules: dict[str, Computation], names: list[str]) -> list[str]:
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


def _is_host(one: Instruction) -> bool:
    target = re.search(r'custom_call_target="([^"]*)"', one.rest)
    called = target[1].lower() if target else ""
    host_memory = re.search(r"S\(5\)", one.type)
    return one.op in HOST or "callback" in called or "host" in called or bool(host_memory)
