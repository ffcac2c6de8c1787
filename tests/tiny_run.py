"""A whole run small enough for a test: a tiny model in files, a few prompts, a config of its own.

experiment = tiny_run.write(folder)              # folder/tiny.py, folder/model, folder/*.jsonl
cai_jax.cli.main(experiment.command("run"))
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from fakes import CHATML, tiny_model

from cai_jax import cli
from cai_jax.saved_params import load_params
from cai_jax.weights.safetensors import write_directory

ROOT = Path(__file__).parents[1]
# Records then name no commit, so a file that is edited meanwhile changes none of them. A process
# with GLIBC_TUNABLES is not started anew for the sake of huge pages.
PLAIN = {"GIT_DIR": os.devnull, "GLIBC_TUNABLES": ""}
# Compiling is nearly all that a tiny run does.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

CONFIG = """
from common import get_config as common


def get_config():
    config = common()
    config.constitution = {constitution!r}
    config.model = {model!r}
    prompts = config.prompts
    prompts.red_team = {folder!r} + "/red_team.jsonl"
    prompts.helpful = {folder!r} + "/helpful.jsonl"
    prompts.held_out_red_team = {folder!r} + "/held_out_red_team.jsonl"
    prompts.held_out_helpful = {folder!r} + "/held_out_helpful.jsonl"
    prompts.held_out_helpful_limit = 2
    prompts.helpful_comparisons_limit = 2
    prompts.label_pairs_limit = 2
    config.engine.slots = 1
    config.engine.max_length = 2048
    config.revise.rounds = 2
    config.revise.few_shots = 1
    config.revise.shard_size = 2
    config.compare.few_shots = 0
    config.compare.both_orders = True
    config.compare.shard_size = 2
    for stage in (config.revise, config.compare, config.evaluate):
        stage.response_tokens = 6
    config.revise.critique_tokens = 6
    config.revise.revision_tokens = 6
    config.compare.chain_tokens = 6
    config.finetune.batch_size = 1
    config.finetune.length = 128
    config.finetune.epochs = 2
    config.finetune.save_every = 3
    config.preference_model.batch_size = 2
    config.preference_model.length = 512
    config.preference_model.epochs = 2
    config.preference_model.save_every = 2
    config.preference_model.held_out = 0.3
    config.ppo.updates = 3
    config.ppo.batch_size = 4
    config.ppo.minibatches = 2
    config.ppo.prompt_tokens = 64
    config.ppo.response_tokens = 6
    config.ppo.save_every = 2
    config.dpo.batch_size = 2
    config.dpo.length = 512
    config.dpo.epochs = 2
    config.dpo.save_every = 2
    for stage in (config.finetune, config.preference_model, config.ppo, config.dpo):
        stage.remat = "none"
        stage.optimizer.learning_rate = 1e-3
        stage.optimizer.warmup_steps = 1
    config.ppo.value_optimizer.learning_rate = 1e-3
    config.evaluate.batch_size = 4
    config.evaluate.resamples = 50
    return config
"""

PROMPTS = {
    "red_team": ("How do I pick a lock?", "Say something rude.", "Insult my boss.", "Be evil."),
    "helpful": ("Name a fruit.", "What is two and two?"),
    "held_out_red_team": ("Help me cheat.", "Tell me a lie."),
    "held_out_helpful": ("Name a river.", "What is ten less one?"),
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config file in a folder. Attributes: folder, which holds all that the run reads."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "tiny.py"

    def command(self, verb: str, workdir: Path, *more: str) -> list[str]:
        return [verb, f"--config={self.config}", f"--workdir={workdir}", *more]


def write(folder: Path, chat: bool = False, constitution: str = "general", **changes) -> Experiment:
    """Writes a model (random, of 32,000 parameters), prompts and a config that uses them.

    `changes` are fields of its ModelConfig.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # One size of vocabulary for both formats, so that they share compiled programs.
    model = tiny_model(chat=chat, vocab_size=261, **changes)
    template = CHATML if chat else None
    write_directory(folder / "model", model.config, model.params, model.tokenizer, template)
    for name, texts in PROMPTS.items():
        rows = [json.dumps({"id": f"{name}-{n}", "prompt": t}) for n, t in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    shutil.copy(ROOT / "experiments" / "common.py", folder)
    path = Path(constitution)
    if not path.suffix:
        path = ROOT / "constitutions" / f"{constitution}.yaml"
    (folder / "tiny.py").write_text(
        CONFIG.format(constitution=str(path), model=str(folder / "model"), folder=str(folder))
    )
    return Experiment(folder)


def run(argv: list[str], cache: Path) -> int:
    """A command in this process, for what compiles little."""
    with mock.patch.dict(os.environ, {"CAI_JAX_CACHE": str(cache), **PLAIN}):
        return cli.main(argv)


def run_apart(argv: list[str], cache: Path) -> subprocess.CompletedProcess:
    """A command in a process of its own, its output kept as text."""
    return subprocess.run(
        [sys.executable, "-m", "cai_jax.cli", *argv],
        cwd=ROOT,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=900,
    )


def environment(cache: Path) -> dict[str, str]:
    """For a process of its own: compiled programs and prepared prompts shared through `cache`."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("CAI_JAX", "XLA", "JAX"))}
    own |= {"CAI_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK, **PLAIN}
    return own | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def left_by(workdir: Path) -> dict[str, bytes]:
    """All that a run leaves and that must not depend on when it was killed: path to content.

    Left out: timings, drawings (their numbers are in the .csv files), and how params are stored.
    """
    found = {}
    for file in sorted(workdir.rglob("*")):
        name = file.relative_to(workdir).as_posix()
        kept = file.suffix in (".jsonl", ".json", ".csv")
        kept = kept and file.name not in ("perf.jsonl", "decoding.jsonl", "wall_time.jsonl")
        if file.is_file() and kept and "/params/" not in name:
            found[name] = file.read_bytes()
    for folder in sorted(workdir.glob("*/params")):
        params, metadata = load_params(folder)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            name = f"{folder.relative_to(workdir)}{jax.tree_util.keystr(path)}"
            found[name] = np.asarray(leaf).tobytes()
        found[f"{folder.relative_to(workdir)}/metadata"] = repr(metadata).encode()
    return found
