"""Several processes as one run: starting, agreeing, writing once; what is said of the odd one."""

import json
import subprocess
import sys
import textwrap
import time

import jax
import processes
import pytest
import tiny_run

from cai_jax import hosts


@pytest.fixture
def alone(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "CAI_JAX_MULTIHOST", "JAX_NUM_PROCESSES"):
        monkeypatch.delenv(name, raising=False)


def test_hosts_are_joined_only_when_asked(alone, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    hosts.start()
    assert calls == []
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    hosts.start()
    limit = hosts.START_SECONDS + 60
    given = {"num_processes": 4, "process_id": 3, "initialization_timeout": limit}
    assert calls == [(("host:1234",), given)]
    monkeypatch.setenv("JAX_PROCESS_ID", "three")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID is 'three', not a number"):
        hosts.start()


def test_one_process_is_the_first_and_agrees_with_itself():
    did = []
    hosts.once(lambda: did.append(1))
    hosts.agree({"the config": "a"}, "")
    hosts.check_devices()
    assert did == [1] and hosts.first() and hosts.count() == 1


def test_devices_of_hosts_that_were_not_joined_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(hosts.HostsError, match=r"belong to 4 hosts, .* set CAI_JAX_MULTIHOST=1"):
        hosts.check_devices()


def test_who_waits_says_so(monkeypatch, capfd):
    monkeypatch.setattr(hosts, "REMINDED", 0.05)
    with hosts._said_when_long("for bread"):
        time.sleep(0.3)
    with hosts._said_when_long("for nothing"):
        pass
    time.sleep(0.1)
    assert capfd.readouterr().err.strip().endswith("has waited 0.05 seconds for bread")


def test_a_host_that_is_left_alone_says_so_and_ends(tmp_path):
    program = (
        "from cai_jax import hosts; hosts.START_SECONDS = 2; hosts.REMINDED = 1; hosts.start()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env=tiny_run.environment(tmp_path) | processes.two()[1],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 1
    waited, gave_up = ended.stderr.splitlines()
    assert "has waited 1 seconds for the other hosts at localhost:" in waited
    assert "did not come within 2 seconds; start the same command on all of them." in gave_up


# What three of a run's processes see; the third is told other things.
PROGRAM = """
    import json, os, sys, time
    from pathlib import Path

    from cai_jax import hosts, outages
    from cai_jax.storage import Unreachable

    hosts.start()
    number, folder = int(os.environ["JAX_PROCESS_ID"]), Path(sys.argv[1])
    said = []

    def said_by(function, *arguments):
        try:
            function(*arguments)
            said.append("fine")
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")

    said_by(hosts.agree, {"the config": "a", "the commit": "b"}, "nothing to do.")
    said_by(hosts.agree, {"the config": "a" if number < 2 else "z"}, "use one config.")

    def write():
        time.sleep(0.5)  # others would read too early
        (folder / "written").write_text(str(number))

    before = (folder / "written").exists()
    hosts.once(write)
    said.append([before, (folder / "written").read_text()])
    said_by(hosts.once, lambda: (folder / "absent").read_text())
    try:
        hosts.once(lambda: (_ for _ in ()).throw(Unreachable("the bucket is away")))
    except Exception as error:
        said.append([str(error), outages.exit_code(error)])
    hosts.MEET_SECONDS = 1
    if number < 2:
        said_by(hosts.agree, {}, "")
    said.append(hosts.first())
    print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder)]
    started = [
        subprocess.Popen(
            program, env=tiny_run.environment(folder) | joined, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for joined in processes.several(3)
    ]  # fmt: skip
    ended = [process.communicate(timeout=120) for process in started]
    assert all(p.returncode == 0 for p in started), [err[-2000:] for _, err in ended]
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def test_the_odd_host_is_named_on_all(three):
    for same, other, *_ in three:
        assert same == "fine"
        assert other.startswith("HostsError: the hosts differ in the config: host 2 (")
        assert other.endswith(") has z, and 2 of 3 have a; use one config.")


def test_the_first_host_writes_and_the_others_wait(three):
    assert [said[2] for said in three] == [[False, "0"]] * 3
    assert [said[-1] for said in three] == [True, False, False]


def test_where_the_first_host_fails_the_others_say_why(three):
    first, *others = (said[3] for said in three)
    assert first.startswith("FileNotFoundError: ")
    assert all(o.startswith("HostsError: the first host failed: FileNotFound") for o in others)


def test_a_host_that_does_not_come_is_named(three):
    for said in three[:2]:
        assert said[5].startswith("HostsError: host 2 of 3 has not come as far as this one in 1 s")


def test_all_hosts_have_the_exit_code_of_the_one_that_failed(three):
    first, *others = (said[4] for said in three)
    assert first == ["the bucket is away", 75]
    assert others == [["the first host failed: Unreachable: the bucket is away", 75]] * 2


def test_a_host_that_fails_alone_does_not_wait_for_the_others(tmp_path):
    program = """
        import os, time
        from cai_jax import hosts

        hosts.LEAVE_SECONDS = 1
        hosts.start()
        with hosts.leaving():
            if os.environ["JAX_PROCESS_ID"] == "1":
                raise hosts.HostsError("lost", 75)
            time.sleep(100)
    """
    first, second = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)], stderr=subprocess.DEVNULL,
            env=tiny_run.environment(tmp_path) | joined,
        )
        for joined in processes.two()
    ]  # fmt: skip
    try:
        assert second.wait(timeout=30) == 75
    finally:
        first.kill()
        second.kill()
