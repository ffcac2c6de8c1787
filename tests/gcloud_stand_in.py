#!/usr/bin/env python3
"""Stands in for the command-line client of the cloud, in tests of tpu/.

It checks every argument against the documented grammar of the commands that are used (the reference
pages of `gcloud compute tpus queued-resources`, 2026-11), notes the call, and plays a scenario: the
file $SCENARIO holds for each command what its calls answer, [exit code, output], in order; the last
answers all that follow. A third element of an ssh's answer plays its hosts: for each the exit code
with which `cai-jax` ends there.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ANY, WORD = r".+", r"[a-z][a-z0-9-]*"
WIDE = {"--project": WORD, "--zone": r"[a-z]+-[a-z]+\d-[a-z]", "--quiet": None, "--format": ANY}
NODES = {"--node": r"all|\d+", "--worker": r"all|\d+", "--batch-size": r"\d+|all"}
# Command -> (how many positional arguments, flags with the pattern of their value or None).
GRAMMAR = {
    "create": (
        (1, 1),
        {
            "--node-id": WORD, "--node-count": r"\d+", "--node-prefix": WORD,
            "--accelerator-type": r"v\w+-\d+", "--runtime-version": ANY, "--spot": None,
            "--reserved": None, "--async": None, "--network": WORD, "--labels": ANY,
        },
    ),
    "describe": ((1, 1), {}),
    "delete": ((1, 1), {"--force": None, "--async": None}),
    "ssh": ((1, 1), NODES | {"--command": r"(?s).+"}),
    "scp": ((2, 99), NODES | {"--recurse": None, "--compress": None}),
}  # fmt: skip


def fault(command: str, arguments: list[str]) -> str | None:
    """What is wrong with a command line, or None."""
    if command not in GRAMMAR:
        return f"Invalid choice: '{command}'"
    (least, most), flags = GRAMMAR[command]
    flags, positional, given = flags | WIDE, [], set()
    for word in arguments:
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, equals, value = word.partition("=")
        if name not in flags:
            return f"unrecognized arguments: {name}"
        if (flags[name] is None) == bool(equals):
            return f"argument {name}: wrong number of values"
        if equals and not re.fullmatch(flags[name], value):
            return f"argument {name}: invalid value '{value}'"
        if name in given:
            return f"argument {name}: given twice"
        given.add(name)
    if not least <= len(positional) <= most:
        return f"{command} takes {least} to {most} positional arguments, {len(positional)} given"
    if command == "create":
        if not {"--accelerator-type", "--runtime-version"} <= given:
            return "--accelerator-type and --runtime-version must be specified"
        if ("--node-id" in given) == ("--node-count" in given):
            return "exactly one of --node-id and --node-count must be specified"
        if {"--spot", "--reserved"} <= given:
            return "at most one of --spot and --reserved can be specified"
    if command == "scp" and sum(":" in word for word in positional) != 1:
        return "scp copies to or from one resource"
    return None


def play(words: list[str], codes: list[int]) -> None:
    """Runs an ssh's command in the shell of hosts on which cai-jax ends with these codes."""
    (command,) = (word.removeprefix("--command=") for word in words if word.startswith("--command"))
    for code in codes:
        with tempfile.TemporaryDirectory() as home:
            tool = Path(home, "cai_jax", ".venv", "bin", "cai-jax")
            tool.parent.mkdir(parents=True)
            tool.write_text(f"#!/bin/sh\nexit {code}\n")
            tool.chmod(0o755)
            subprocess.run(["bash", "-c", command], cwd=home)


def main() -> int:
    scenario = Path(os.environ["SCENARIO"])
    script = json.loads(scenario.read_text())
    group, arguments = sys.argv[1:4], sys.argv[4:]
    if group != ["compute", "tpus", "queued-resources"] or not arguments:
        print(f"ERROR: (gcloud) unknown command {sys.argv[1:]}", file=sys.stderr)
        return 2
    command, rest = arguments[0], arguments[1:]
    if wrong := fault(command, rest):
        script["faults"] = [*script.get("faults", []), wrong]
        scenario.write_text(json.dumps(script))
        print(f"ERROR: (gcloud.compute.tpus.queued-resources.{command}) {wrong}", file=sys.stderr)
        return 2
    script["calls"] = [*script.get("calls", []), [command, *rest]]
    answers = script.get(command) or [[0, ""]]
    code, output, *hosts = answers[0]
    if len(answers) > 1:
        script[command] = answers[1:]
    scenario.write_text(json.dumps(script))
    for codes in hosts:
        play(rest, codes)
    print(output, file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
