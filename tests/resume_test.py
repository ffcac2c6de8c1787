"""Killed with SIGKILL at any moment and started again, a run ends as one that was not killed.

Processes are forked from one that has imported everything and computed nothing, which spares each
the seconds that imports take.
"""

import json
import random
import subprocess
import sys
import textwrap

import pytest
import tiny_run

DRIVER = """
    import glob, json, os, signal, sys, time

    import cai_jax.pipeline, cai_jax.report
    from cai_jax.cli import main

    argv, workdir, moments = json.loads(sys.argv[1])
    said = []
    for moment in moments:
        pid = os.fork()
        if not pid:
            os.dup2(os.open(f"{workdir}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY), 1)
            os.dup2(1, 2)
            os._exit(main(argv))
        start = time.time()
        while True:
            if isinstance(moment, str):
                due = glob.glob(f"{workdir}/{moment}")
            else:
                due = moment is not None and time.time() - start > moment
            if due:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, 0 if due else os.WNOHANG)
            if ended:
                said.append(os.waitstatus_to_exitcode(status))
                break
            time.sleep(0.001)
    print(json.dumps(said))
"""

# For each: when this appears, the process is killed. What follows it is then missing.
MOMENTS = {
    "between shards of revisions": "revise/revisions/00000-of-00002.jsonl",
    "while a checkpoint of finetuning is written": "finetune/checkpoints/3.orbax*",
    "after a checkpoint of finetuning": "finetune/checkpoints/6",
    "before SL-CAI is marked as finished": "finetune/params",
    "between shards of comparisons": "compare/comparisons/00000-of-00002.jsonl",
    "after a checkpoint of the preference model": "preference_model/checkpoints/2",
    "after an update that no checkpoint holds": "ppo/rollouts/00002.jsonl",
    "between a snapshot's perplexity and answers": "evaluation/perplexity-sl_cai.json",
    "while figures are drawn": "figures/ppo.png",
}


def run(command: list[str], workdir, cache, moments: list) -> list[int]:
    """Exit codes of one process after another, each killed at its moment (None: never)."""
    what = json.dumps([command, str(workdir), moments])
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(DRIVER), what],
        env=tiny_run.environment(cache),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=900,
    )
    return json.loads(ended.stdout)


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if found[name] != expected[name]]
    assert not different


@pytest.mark.slow
def test_killed_in_every_stage(finished, tiny_cache, tmp_path):
    experiment, uninterrupted = finished
    workdir = tmp_path / "run"
    command = experiment.command("run", workdir)
    codes = run(command, workdir, tiny_cache, [*MOMENTS.values(), None])
    log = (tmp_path / "run.log").read_text()
    assert codes == [-9] * len(MOMENTS) + [0], log[-2000:]
    assert_same(tiny_run.left_by(workdir), tiny_run.left_by(uninterrupted))
    assert not list(workdir.glob("*/checkpoints"))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_random(finished, tiny_cache, tmp_path, seed):
    experiment, uninterrupted = finished
    draw = random.Random(seed)
    # The first process alone could take a minute: each gets some way, the last goes to the end.
    moments = [draw.uniform(0.5, 8) for _ in range(30)]
    workdir = tmp_path / "run"
    codes = run(experiment.command("run", workdir), workdir, tiny_cache, [*moments, None])
    assert set(codes) <= {-9, 0}
    assert codes[-1] == 0
    assert_same(tiny_run.left_by(workdir), tiny_run.left_by(uninterrupted))
