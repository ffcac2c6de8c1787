"""Bytes that a compiled program, or the body of its loop, moves in a device's memory.

Counted on the text of a scheduled HLO module, where each instruction of the body is one pass over
its operands. What stands in a TPU's on-chip memory (S(1) and the like in a layout) costs nothing;
a slice or a gather costs what it takes, an update in place what it writes, a kernel what it says
of itself, if it does. Tiles are not padded, and of a conditional the dearest branch counts.
"""

from __future__ import annotations

import dataclasses
import re

from cai_jax.plan.hlo import (
    Computation,
    Instruction,
    called,
    elements,
    entry_of,
    parse,
    reached,
    rounds,
    size,
)

FREE = (  # moves nothing, or is counted where it starts
    *("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "iota", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "copy-done", "async-done", "async-update"),
    *("slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done"),
)
HOST = ("infeed", "outfeed", "send", "recv", "send-done", "recv-done")
TAKES = ("slice", "dynamic-slice", "gather")  # reads of operand 0 what it gives
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # writes in place the operand of this number
PASSES = ("bitcast", "reshape", "copy", "transpose", "convert")  # where a fusion looks through


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one iteration. Attributes: bytes; largest (bytes, instruction); host transfers by name."""

    bytes: int
    largest: tuple[tuple[int, str], ...]
    host: tuple[str, ...]


def loop_traffic(text: str) -> Traffic:
    """The traffic of the outermost loop's body.

    Raises:
      ValueError: the module's entry has no loop, or several.
    """
    modules = parse(text)
    entry = entry_of(modules)
    loops = [i for i in modules[entry].values() if i.op == "while"]
    if len(loops) != 1:
        raise ValueError(f"The module's entry has {len(loops)} loops; one was expected.")
    parts = [called(loops[0], key)[0] for key in ("body", "condition")]
    costs = [(_cost(modules, modules[c], i), i.name) for c in parts for i in modules[c].values()]
    host = [i.name for c in reached(modules, parts) for i in modules[c].values() if _is_host(i)]
    return Traffic(sum(c for c, _ in costs), tuple(sorted(costs, reverse=True)[:20]), tuple(host))


def program_bytes(text: str) -> int:
    """What a whole program reads from and writes to a device's main memory.

    A loop counts as often as it says that it runs, and once where it does not.
    """
    modules = parse(text)
    return _total(modules, entry_of(modules))


def host_transfers(text: str) -> tuple[str, ...]:
    """Names of the instructions of a whole module that send to the host or receive from it."""
    return tuple(i.name for c in parse(text).values() for i in c.values() if _is_host(i))


def _cost(modules: dict[str, Computation], inside: Computation, one: Instruction) -> int:
    """Bytes that one instruction of a body moves."""
    kinds = [inside[name].type for name in one.operands if name in inside]
    if one.op in FREE:
        return 0
    if kernel := re.search(r'"bytes_accessed":"(\d+)"', one.rest):
        return int(kernel[1])
    if one.op == "conditional":
        branches = called(one, "branch_computations") or [
            *called(one, "true_computation"),
            *called(one, "false_computation"),
        ]
        return max(_total(modules, branch) for branch in branches)
    if one.op == "call":
        return _total(modules, called(one, "to_apply")[0])
    if one.op == "while":
        return _total(modules, called(one, "body")[0]) * (rounds(modules, one) or 1)
    if one.op.endswith("-start"):  # (operands, results, flags)
        parts = elements(one.type)
        taken = one.op == "slice-start" or any(
            i.op in TAKES for c in called(one, "calls") for i in modules[c].values()
        )
        if one.op == "copy-start":  # (result, operand, flag)
            return size(parts[0]) + sum(map(size, kinds))
        read = sum(size(kind) for kind in kinds)
        read = min(read, size(parts[1], main_memory=False)) if taken else read
        return read + size(parts[1])
    if one.op == "fusion":
        fused = modules[called(one, "calls")[0]]
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
            inner = modules[called(user, "calls")[0]]
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
    for result, kind in zip(results, elements(one.type), strict=False):
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


def _is_host(one: Instruction) -> bool:
    target = re.search(r'custom_call_target="([^"]*)"', one.rest)
    function = target[1].lower() if target else ""
    host_memory = re.search(r"S\(5\)", one.type)
    return one.op in HOST or "callback" in function or "host" in function or bool(host_memory)
