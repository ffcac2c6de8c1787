"""A run's folder: one folder a stage, what it was made from, and whether it is finished."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax

from cai_jax import growing, hosts, replacing, storage
from cai_jax.shards import write_atomically

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


class WorkdirError(ValueError):
    """A workdir that cannot be used; the message says which, why and what to do."""


class Workdir:
    """The folder of one run.

    Args:
      path: made if it does not exist; a folder, or gs://BUCKET/FOLDER.
      force: whether a stage that was made from something else is thrown away and made again.
    """

    def __init__(self, path: str | Path, force: bool = False):
        self.path = storage.path(path)
        self.force = force
        self._notes: dict[str, Any] = {}

    def prepare(self, settings: Any, needed_bytes: int) -> None:
        """Checks that the folder can hold the run.

        The run's config and environment are written there when a stage begins.

        Raises:
          WorkdirError: it is not a folder, not writable, or its disk has too little room.
          StorageError: its bucket is not there, forbids it or does not answer.
          HostsError: not all hosts see it.
        """
        probe = self.path / ".probe"

        def write() -> None:
            if storage.in_bucket(probe):
                storage.check(probe)
                return storage.put(probe, b"\0" * 4096)
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"\0" * 4096)

        try:
            hosts.once(write)
        except OSError as error:
            raise WorkdirError(
                f"workdir {self.path} cannot be written ({error.strerror}); choose another one or "
                "mend its permissions."
            ) from error
        seen = {f"what they see in the workdir {self.path}": str(list(self.path.glob(".probe")))}
        hosts.agree(seen, "give a --workdir on storage that all hosts share.")
        hosts.once(probe.unlink)
        free = math.inf if storage.in_bucket(probe) else shutil.disk_usage(self.path).free
        if free < needed_bytes:
            raise WorkdirError(
                f"workdir {self.path} has {free / 1e9:.1f} GB free and the run needs about "
                f"{needed_bytes / 1e9:.1f} GB for checkpoints; make room or choose another one."
            )
        self._notes = {
            "config.json": dataclasses.asdict(settings),
            "environment.json": environment(),
        }

    def note(self, name: str, value: Any) -> None:
        """Adds a file to those that are written when a stage begins."""
        self._notes[name] = value

    def begin(self, stage: str, inputs: dict[str, Any]) -> bool:
        """Whether a stage is still to be done; notes what it is made from.

        Raises:
          WorkdirError: the folder holds the stage made from something else.
        """
        folder = self.path / stage
        replacing.settle(folder)
        made_from = folder / "inputs.json"
        text = _json(inputs)
        if made_from.exists() and (found := made_from.read_text("utf-8")) != text:
            difference = changed(json.loads(found), json.loads(text))
            if not self.force:
                raise WorkdirError(
                    f"{folder} was made with another {difference}; give a new --workdir, or "
                    "--force to throw this stage away and make it again."
                )
            replacing.throw_away(folder)
        if (folder / "done.json").exists():
            self._drop_checkpoints(stage)  # a kill may have come between the mark and the removal
            return False
        for name, value in self._notes.items():
            self.write_json(name, value)
        _write(made_from, text)
        return True

    def finish(self, stage: str, summary: dict[str, Any]) -> None:
        """Marks a stage as finished and drops the checkpoints that it no longer needs."""
        growing.put_all()  # of which the first host alone has any
        _write(self.path / stage / "done.json", _json(summary))
        self._drop_checkpoints(stage)

    def remade(self, stage: str) -> contextlib.AbstractContextManager[Path]:
        """A copy of a stage's folder to change, which takes its place all at once.

        After a kill or an error the stage is as it was, or as it should become.
        """
        return replacing.remade(self.path / stage)

    def require(self, stage: str, verb: str) -> None:
        """Raises WorkdirError unless a stage is finished."""
        replacing.settle(self.path / stage)
        if not (self.path / stage / "done.json").exists():
            raise WorkdirError(
                f"{self.path} has no finished '{stage}'; run `cai-jax {verb}` with this workdir "
                "first, or `cai-jax run` for everything."
            )

    def write_json(self, name: str, value: Any) -> None:
        _write(self.path / name, _json(value))

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def _drop_checkpoints(self, stage: str) -> None:
        checkpoints = self.path / stage / "checkpoints"
        if storage.in_bucket(checkpoints):
            hosts.once(lambda: storage.remove(checkpoints))
        else:
            hosts.once(lambda: shutil.rmtree(checkpoints, ignore_errors=True))


def rl_stage(run: Path) -> str:
    """The stage that makes a run's RL-CAI, by its config: "ppo" or "dpo".

    Raises:
      OSError, ValueError: the config cannot be read.
    """
    config = json.loads((run / "config.json").read_text("utf-8"))
    return config.get("algorithm", "ppo")  # older runs had no choice


def rl_sequences(run: Path) -> int:
    """How many responses a finished run's RL-CAI was trained on, each pass counted.

    Raises:
      OSError, ValueError, KeyError: the run's files cannot be read.
    """
    settings = json.loads((run / "config.json").read_text("utf-8"))
    if rl_stage(run) == "ppo":
        return ppo_updates(run) * settings["ppo"]["batch_size"]
    made = json.loads((run / "dpo" / "done.json").read_text("utf-8"))
    pairs = made["ai"] + made["human"] - made["too_long_and_left_out"]
    return 2 * pairs * settings["dpo"]["epochs"]


def digest(value: Any) -> str:
    """16 hex digits of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(_json(value).encode()).hexdigest()[:16]


def commit() -> str:
    """The code's commit, "+" at its end where files differ from it; empty outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run([*command, "--dirty=+"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def ppo_updates(run: Path) -> int:
    """Updates of a run's PPO: those asked for, or fewer where the held-out score stopped it.

    Raises:
      OSError, ValueError, KeyError: the run's files cannot be read.
    """
    done = run / "ppo" / "done.json"
    found = json.loads(done.read_text("utf-8")) if done.exists() else {}
    if "updates" in found:  # older runs did not say, and none was stopped
        return found["updates"]
    return json.loads((run / "config.json").read_text("utf-8"))["ppo"]["updates"]


def environment() -> dict[str, Any]:
    """Versions, machine and code that a run's numbers belong to."""
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [d.device_kind for d in jax.devices()],
        "processes": jax.process_count(),
        "commit": commit(),
    }


def _write(path: Path, text: str) -> None:
    hosts.once(lambda: write_atomically(path, text.encode()))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def changed(old: dict, new: dict, where: str = "") -> str:
    """The first key in which two inputs differ, with both values."""
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if a != b:
            if isinstance(a, dict) and isinstance(b, dict):
                return changed(a, b, f"{where}{key}.")
            return f"{where}{key} ({a} then, {b} now)"
    return "order of settings"
