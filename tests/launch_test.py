"""tpu/: the commands against a stand-in for the cloud's client."""

import json
import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

import gcloud_stand_in
import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMMANDS = ("create", "setup", "launch", "status", "logs", "delete")
ABSENT = [1, "ERROR: NOT_FOUND: Resource was not found"]
WAITS = [[0, "WAITING_FOR_RESOURCES"], [0, "PROVISIONING"]]
ACTIVE = [0, "ACTIVE"]


@pytest.fixture
def project(tmp_path):
    """A small repository with tpu/ in it, and the stand-in on its PATH."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "tpu", folder / "tpu")
    (tmp_path / "bin").mkdir()
    client = tmp_path / "bin" / "gcloud"
    client.write_text(f'#!/bin/sh\nexec {sys.executable} {gcloud_stand_in.__file__} "$@"\n')
    client.chmod(0o755)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    return folder


def call(project, name, *options, scenario=None, **settings):
    """Runs tpu/NAME; returns (exit code, what it said, the scenario's file afterwards)."""
    file = project.parent / "scenario.json"
    file.write_text(json.dumps(scenario or {}))
    own = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    own |= {"PATH": f"{project.parent / 'bin'}:{os.environ['PATH']}", "SCENARIO": str(file)}
    own |= {"PROJECT": "p", "ZONE": "us-central1-a", "POLL": "0", "WORKDIR": "~/bucket/runs/x"}
    ended = subprocess.run(
        [str(project / "tpu" / name), *options], env=own | settings, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    after = json.loads(file.read_text())
    assert not after.get("faults"), after["faults"]
    return ended.returncode, ended.stdout + ended.stderr, after


def verbs(after):
    return [words[0] for words in after.get("calls", [])]


def commands(after):
    """The commands that hosts were given."""
    found = [word for words in after["calls"] if words[0] == "ssh" for word in words]
    return [word.removeprefix("--command=") for word in found if word.startswith("--command=")]


def test_a_run_waits_for_its_tpus_installs_and_ends(project):
    scenario = {"describe": [ABSENT, *WAITS, ACTIVE]}
    code, said, after = call(project, "launch", scenario=scenario, ARGS="--config.seed=3")
    assert code == 0, said
    assert verbs(after) == ["describe", "create", *["describe"] * 3, "scp", "ssh", "ssh", "ssh"]
    assert "is PROVISIONING" in said and said.strip().endswith("done: $HOME/bucket/runs/x")
    install, stop, run = commands(after)
    assert "pkill -KILL" in stop
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert f"git checkout --quiet --force {head}" in install and "pip install" in install
    assert stop.startswith("pkill")
    assert "CAI_JAX_MULTIHOST=1 .venv/bin/cai-jax run --config=experiments/llama3_8b.py " in run
    assert run.splitlines()[0].endswith("--workdir=$HOME/bucket/runs/x --config.seed=3")
    assert all({"--node=all", "--worker=all"} <= set(c) for c in after["calls"] if c[0] == "ssh")


def test_a_bucket_is_mounted_without_caches(project):
    scenario = {"describe": [ACTIVE]}
    assert "gcsfuse" not in commands(call(project, "launch", scenario=scenario)[2])[0]
    install = commands(call(project, "launch", scenario=scenario, MOUNT="my-bucket")[2])[0]
    assert "--metadata-cache-ttl-secs=0" in install and " my-bucket ~/bucket" in install


def test_a_preempted_run_is_asked_for_again_and_goes_on(project):
    scenario = {
        "describe": [ACTIVE, ACTIVE, [0, "SUSPENDING"], [0, "SUSPENDED"], *WAITS, ACTIVE],
        "ssh": [[0, ""], [0, ""], [255, "closed"], [0, ""]],
    }
    code, said, after = call(project, "launch", scenario=scenario)
    assert code == 0, said
    assert verbs(after).count("create") == verbs(after).count("delete") == 1
    assert "exit code 255 while cai was SUSPENDING" in said and "restart 1 of 20" in said
    runs = [c for c in commands(after) if "cai-jax run" in c and "pkill" not in c]
    assert len(runs) == 2 and runs[0] == runs[1]


def test_a_dead_host_restarts_the_run_without_new_tpus(project):
    scenario = {"describe": [ACTIVE], "ssh": [[0, ""], [0, ""], [137, "killed"], [0, ""]]}
    code, said, after = call(project, "launch", scenario=scenario)
    assert code == 0 and "exit code 137 while cai was ACTIVE" in said
    assert "create" not in verbs(after)


def test_restarts_have_a_limit(project):
    scenario = {"describe": [ACTIVE], "ssh": [[0, ""], [0, ""], [255, "lost"]]}
    scenario["ssh"] *= 3
    code, said, after = call(project, "launch", scenario=scenario, RESTARTS="2")
    assert code == 2 and "given up after 2 restarts" in said
    assert len([c for c in commands(after) if "cai-jax run" in c and "pkill" not in c]) == 3


def test_what_has_to_be_mended_is_not_tried_again(project):
    scenario = {"describe": [ACTIVE], "ssh": [[0, ""], [0, ""], [2, "cai-jax: no such file"]]}
    code, said, after = call(project, "launch", scenario=scenario)
    assert code == 2 and "no such file" in said and "something to mend" in said
    assert len(commands(after)) == 3


@pytest.mark.parametrize(
    ("client", "hosts", "code"),
    [
        (0, [0, 0], 0),
        (1, [2, 143], 2),
        (255, [143, 2], 2),
        (0, [2], 2),
        (1, [75, 1], 75),
        (2, [137, 75], 137),
        (0, [0, 134], 134),
        (255, [0, 0], 255),
        (255, [], 255),
        (2, [], 2),
    ],
)
def test_what_the_hosts_say_counts_and_not_what_the_client_returns(project, client, hosts, code):
    """The client may return any host's exit code, or one of its own."""
    ssh = [[0, ""], [0, ""], [client, "", hosts], [0, ""]]
    ended, said, _ = call(project, "launch", scenario={"describe": [ACTIVE], "ssh": ssh})
    assert ended == (2 if code == 2 else 0), said
    for number in hosts:
        assert re.search(rf"cai-jax on \S+ ended with exit code {number}\n", said)
    assert ("restart 1 of 20" in said) == (code not in (0, 2))
    if code not in (0, 2):
        assert f"the run ended with exit code {code} while" in said


def test_a_quota_error_is_told(project):
    scenario = {"describe": [ABSENT], "create": [[1, "ERROR: RESOURCE_EXHAUSTED: Quota limit"]]}
    code, said, after = call(project, "launch", scenario=scenario)
    assert code == 2 and "Quota limit" in said and "was refused" in said
    assert verbs(after) == ["describe", "create"]


def test_a_request_that_failed_is_made_again(project):
    scenario = {"describe": [[0, "FAILED"], [0, "FAILED"], [0, "FAILED"], ACTIVE]}
    code, said, after = call(project, "launch", scenario=scenario)
    assert code == 0, said
    assert verbs(after).count("create") == verbs(after).count("delete") == 2


def test_a_client_that_cannot_be_asked_ends_it(project):
    scenario = {"describe": [[1, "ERROR: PERMISSION_DENIED"]]}
    code, said, after = call(project, "launch", scenario=scenario)
    assert code == 2 and "PERMISSION_DENIED" in said and verbs(after) == ["describe"]


def test_files_that_are_not_committed_are_refused_unless_told(project):
    (project / "new.py").write_text("x = 1\n")
    for name in ("launch", "setup"):
        code, said, after = call(project, name, scenario={"describe": [ACTIVE]})
        assert code == 2 and "not committed" in said and "new.py" in said and not verbs(after)
    code, _, after = call(project, "launch", "--dirty", scenario={"describe": [ACTIVE]})
    assert code == 0 and any("git apply" in c for c in commands(after))


def test_a_dry_run_prints_every_command_and_runs_none(project):
    code, said, after = call(project, "launch", "--dry-run", SLICES="2", PROVISION="reserved")
    assert code == 0 and not verbs(after)
    lines = [line for line in said.splitlines() if "tpus " in line]
    assert [re.search(r"tpus (\w+)", line)[1] for line in lines] == ["create", "scp", "ssh", "ssh"]
    for flag in ("--node-count=2", "--node-prefix=cai", "--reserved"):
        assert flag in lines[0]


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({}, {"--node-id=cai", "--spot", "--accelerator-type=v5litepod-64"}),
        ({"PROVISION": "on-demand", "TYPE": "v4-32"}, {"--accelerator-type=v4-32"}),
        ({"SLICES": "2", "PROVISION": "reserved"}, {"--node-count=2", "--reserved"}),
    ],
)
def test_requests(project, settings, flags):
    code, _, after = call(project, "create", **settings)
    assert code == 0 and flags <= set(after["calls"][0])


def test_status_logs_and_delete(project):
    code, said, after = call(project, "status", scenario={"describe": [ACTIVE]})
    assert code == 0 and "cai: ACTIVE" in said and verbs(after) == ["describe", "ssh"]
    code, said, after = call(project, "status", scenario={"describe": [ABSENT]})
    assert code == 0 and "cai: ABSENT" in said and verbs(after) == ["describe"]
    code, _, after = call(project, "logs")
    assert code == 0 and "metrics.jsonl" in commands(after)[0]
    bucket = "gs://my-bucket/x"
    code, said, after = call(project, "logs", "--dry-run", WORKDIR=bucket)
    assert code == 0 and said.startswith(f"gcloud storage cat {bucket}/") and not verbs(after)
    code, _, after = call(project, "delete")
    assert code == 0 and after["calls"][0][:2] == ["delete", "cai"]


@pytest.mark.parametrize(
    ("name", "options", "settings", "sentence"),
    [
        ("launch", ["--fast"], {}, "--fast is unknown"),
        ("launch", [], {"WORKDIR": ""}, "WORKDIR is empty"),
        ("create", [], {"PROVISION": "cheap"}, "PROVISION is cheap; it must be spot"),
        ("create", [], {"PROJECT": ""}, "PROJECT is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(project, name, options, settings, sentence):
    code, said, after = call(project, name, *options, **settings)
    assert code == 2 and sentence in said and not verbs(after)


def test_the_stand_in_knows_the_grammar():
    fault = gcloud_stand_in.fault
    asked = ["x", "--node-id=x", "--accelerator-type=v4-8", "--runtime-version=r"]
    assert fault("create", asked) is None
    assert "unrecognized" in fault("create", [*asked, "--preemptible"])
    assert "exactly one" in fault("create", asked[:1] + asked[2:])
    assert "at most one" in fault("create", [*asked, "--spot", "--reserved"])
    assert "wrong number" in fault("create", [*asked, "--spot=yes"])
    assert "invalid value" in fault("ssh", ["x", "--worker=some"])
    assert "positional" in fault("delete", [])


@pytest.mark.parametrize(
    ("own", "whole", "expected", "requeued"),
    [(0, 0, 0, False), (2, 143, 2, False), (1, 143, 143, True), (75, 75, 75, True)],
)
def test_slurm_queues_a_run_again_unless_a_task_says_what_to_mend(
    tmp_path, own, whole, expected, requeued
):
    """`own` is what the task exits with, `whole` what srun makes of all tasks."""
    asked = tmp_path / "asked"
    for name, text in {
        "srun": f'shift; "$@"; exit {whole}',
        "cai-jax": f'echo "$*" >{asked}; exit {own}',
        "scontrol": f'echo "$*" >{tmp_path}/requeued',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path)}
    ended = subprocess.run(
        ["bash", str(ROOT / "tpu" / "slurm.sbatch"), "c.py", "runs/x", "--config.seed=1 2"],
        env=environment, timeout=60,
    )  # fmt: skip
    assert ended.returncode == expected
    assert asked.read_text() == "run --config=c.py --workdir=runs/x --config.seed=1 2\n"
    assert (tmp_path / "requeued").exists() == requeued
    assert not (tmp_path / "cai-7.mend").exists()


def test_the_jobset_ends_where_something_has_to_be_mended():
    text = string.Template((ROOT / "tpu" / "jobset.yaml").read_text())
    told = text.safe_substitute(CAI_IMAGE="i", CAI_CONFIG="c.py", CAI_WORKDIR="/data/x")
    jobset = yaml.safe_load(told)["spec"]
    (failed,) = jobset["failurePolicy"]["rules"]
    assert failed["action"] == "FailJobSet"
    assert failed["onJobFailureReasons"] == ["PodFailurePolicy"]
    (job,) = jobset["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "cai", "operator": "In", "values": [2]}
    assert [each["name"] for each in pod["containers"]] == ["cai"]
    assert pod["restartPolicy"] == "Never"  # or a policy of exit codes is refused


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_the_shell_is_linted():
    files = [f"tpu/{n}" for n in (*COMMANDS, "anywhere", "slurm.sbatch")]
    ended = subprocess.run(
        ["shellcheck", "--external-sources", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout
