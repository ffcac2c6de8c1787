"""SL, PM and PPO killed with SIGKILL at random moments: state, records and metrics bit for bit.

What a whole run leaves is resume_test's; here the optimisers' states are compared too. A moment is
a row of a drawn stage's metrics.jsonl and some milliseconds more: into the next step, the next
save, the next rollout.
"""

import random
import subprocess
import sys
import textwrap

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run

from cai_jax.saved_params import load_params

# Trains in a process that may end; then in one after another, each killed at its moment and going
# on where the last was killed, and again in one that may end. Processes are forked from one that
# has imported everything and computed nothing.
PROGRAM = """
    import dataclasses, os, random, signal, sys, time
    from pathlib import Path

    import jax, jax.numpy as jnp
    from fakes import tiny_model
    from ppo_test import ROWS, SETTINGS as PPO, SOURCE, scorer
    from preference_model_test import SETTINGS as PM, separable
    from supervised_test import SETTINGS as SL, chain, reply

    from cai_jax.decoding import Engine
    from cai_jax.stages import ppo, preference_model, supervised
    from cai_jax.saved_params import save_params

    def train(folder):
        cache = f"{os.environ['CAI_JAX_CACHE']}/compiled"
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        model, silent = tiny_model(), lambda done, total, metrics: None
        words = model.tokenizer, model.format
        copy = lambda tree: jax.tree.map(jnp.array, tree)

        settings = dataclasses.replace(SL, epochs=4, save_every=2)
        texts = [chain("No.", "Ask a doctor.")] * 2, [reply("Hi")]
        params = supervised.finetune(
            settings, model.config, copy(model.params),
            supervised.examples(settings, *words, *texts), folder / "sl", 0, silent,
        )
        save_params(folder / "sl" / "params", params, {})

        settings = dataclasses.replace(PM, epochs=2, save_every=2)
        params = preference_model.train_preference_model(
            settings, model.config, copy(model.params),
            preference_model.examples(settings, *words, separable(24, 0)), folder / "pm", 0, silent,
        )
        save_params(folder / "pm" / "params", params, {})

        settings = dataclasses.replace(
            PPO, updates=5, batch_size=8, epochs=1, minibatches=2, save_every=2
        )
        params = ppo.train_ppo(
            settings, Engine(model, 8, 128), model.format, copy(model.params), copy(model.params),
            [scorer(model)], ROWS, folder / "ppo", 0, SOURCE, silent,
        )
        save_params(folder / "ppo" / "params", params, {})

    def rows(folder, stage):
        file = folder / stage / "metrics.jsonl"
        return file.read_bytes().count(b"\\n") if file.exists() else 0

    def ended(folder, moment):
        pid = os.fork()
        if not pid:
            try:
                train(folder)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                os._exit(1)
            os._exit(0)
        if moment:
            stage, row, delay = moment
            while rows(folder, stage) < row:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    sys.exit(f"it ended before row {row} of {stage}")
                time.sleep(0.001)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    folder, draw, kills = Path(sys.argv[1]), random.Random(sys.argv[2]), int(sys.argv[3])
    assert ended(folder / "whole", None) == 0
    moments = []
    for _ in range(kills):
        number, stage = draw.choice(list(enumerate(("sl", "pm", "ppo"))))
        row = draw.randint(1, rows(folder / "whole", stage))
        moments.append((number, row, draw.uniform(0, 0.1), stage))
    for _, row, delay, stage in sorted(moments):
        code = ended(folder / "killed", (stage, row, delay))
        print(f"{1000 * delay:.0f} ms after row {row} of {stage}: exit code {code}")
        assert code in (-9, 0)
    assert ended(folder / "killed", None) == 0
"""


def left_by(folder) -> dict[str, bytes]:
    """Records, metrics, final params and the arrays of the newest checkpoint of each stage."""
    found = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*.jsonl"))
        if file.name != "perf.jsonl"
    }
    for stage in ("sl", "pm", "ppo"):
        params, _ = load_params(folder / stage / "params")
        checkpoints = folder / stage / "checkpoints"
        last = max(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())
        saved = ocp.PyTreeCheckpointer().restore(checkpoints / str(last) / "state")
        trees = {"params": params, str(last): saved}
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
            found[f"{stage}{jax.tree_util.keystr(path)}"] = np.asarray(leaf).tobytes()
    return found


def check(folder, cache, seed: int, kills: int) -> None:
    """Fails unless a run killed so many times leaves what one that was not leaves."""
    print(f"seed {seed}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM), str(folder), str(seed),
         str(kills)],
        env=tiny_run.environment(cache), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = left_by(folder / "killed"), left_by(folder / "whole")
    assert found.keys() == expected.keys()
    assert any("opt_state" in name for name in expected)
    assert not [name for name in expected if found[name] != expected[name]]


@pytest.mark.nightly  # a minute each, on two cores
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("chain", range(4))
def test_killed_at_twenty_moments(tiny_cache, tmp_path, chain):
    check(tmp_path, tiny_cache, random.SystemRandom().randrange(10**6), 5)
