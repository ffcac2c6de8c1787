"""Several processes as one run: they meet, agree before anything is computed, and write files once.

All hosts of a pod run the same program and read the same workdir; only the first writes to it. What
they tell each other here goes through JAX's coordination service and not over their devices, so
that it works too where the devices of one do not fit those of the others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import jax

# The service has no public name; Orbax reaches it in the same place.
from jax._src import distributed

from cai_jax import outages, storage

START_SECONDS = 300  # for all hosts to start
MEET_SECONDS = 60  # for all hosts to come as far as the first, before compute
WRITE_SECONDS = 1800  # for the first host to come to a file and write it
LEAVE_SECONDS = 20  # for a host that failed to end as Python does, before it is made to
REMINDED = 30  # seconds of waiting after which a host says what for
_turns = itertools.count()


class HostsError(ValueError):
    """Hosts that cannot go on together; the message names the odd one.

    Attributes:
      exit_code: that of the host that is to blame; outages.AGAIN where it is lost.
    """

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


def start() -> None:
    """Joins this process to the others, before anything touches a device.

    Does nothing unless the environment asks for it: JAX_COORDINATOR_ADDRESS (with
    JAX_NUM_PROCESSES and JAX_PROCESS_ID where no cluster manager supplies them), or
    CAI_JAX_MULTIHOST=1 where jax can find the others by itself (TPU pods, Slurm). Every host runs
    the same command. One that waits for the others says so on standard error, and ends with exit
    code 1 where they do not come within START_SECONDS.

    Raises:
      ValueError: the environment asks for it but doesn't say enough.
    """
    coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not coordinator and os.environ.get("CAI_JAX_MULTIHOST") != "1":
        return
    counts = {}
    for argument, name in (
        ("num_processes", "JAX_NUM_PROCESSES"),
        ("process_id", "JAX_PROCESS_ID"),
    ):
        if text := os.environ.get(name):
            if not text.isdecimal():
                raise ValueError(f"The environment variable {name} is {text!r}, not a number.")
            counts[argument] = int(text)
    where = f" at {coordinator}" if coordinator else ""

    def give_up() -> None:  # before JAX does, which aborts the process with a trace of its own
        line = (
            f"cai-jax: the other hosts{where} did not come within {START_SECONDS} seconds; start "
        )
        print(line + "the same command on all of them.", file=sys.stderr, flush=True)
        os._exit(1)

    what = f"for the other hosts{where}; is the same command running on all of them?"
    with _said_when_long(what), _after(START_SECONDS, give_up):
        jax.distributed.initialize(coordinator, **counts, initialization_timeout=START_SECONDS + 60)


def count() -> int:
    """How many processes `start` has joined."""
    return distributed.global_state.num_processes or 1


def first() -> bool:
    """Whether this process is the one that writes and reports."""
    return not distributed.global_state.process_id


def agree(facts: Mapping[str, str], remedy: str) -> None:
    """Returns where all hosts have the same facts. All of them call this at the same place.

    Args:
      facts: what must be the same, by name; the value is shown where it is not.
      remedy: what to do about it.

    Raises:
      HostsError: on every host, naming those that differ from most; or a host did not come here
        within MEET_SECONDS.
    """
    if count() == 1:
        return
    client, turn = distributed.global_state.client, next(_turns)
    mine = json.dumps([socket.gethostname(), dict(facts)])
    client.key_value_set(f"cai_jax/{turn}/{distributed.global_state.process_id}", mine)
    found = []
    for number in range(count()):
        try:
            text = client.blocking_key_value_get(f"cai_jax/{turn}/{number}", MEET_SECONDS * 1000)
        except jax.errors.JaxRuntimeError as error:
            raise HostsError(
                f"host {number} of {count()} has not come as far as this one in {MEET_SECONDS} "
                "seconds; its own log says why.",
                outages.AGAIN,
            ) from error
        found.append(json.loads(text))
    for name in facts:
        values = [other.get(name, "nothing") for _, other in found]
        usual = Counter(values).most_common(1)[0][0]
        odd = [n for n, value in enumerate(values) if value != usual]
        if odd:
            named = ", ".join(f"{n} ({found[n][0]})" for n in odd)
            raise HostsError(
                f"the hosts differ in {name}: host {named} has {values[odd[0]]}, and "
                f"{count() - len(odd)} of {count()} have {usual}; {remedy}"
            )


def once(action: Callable[[], object]) -> None:
    """Has the first host change files that all of them see, while the others wait.

    All hosts call this at the same place. What they have read before is of before the change, what
    they read afterwards of after it.

    Raises:
      HostsError: on the other hosts, where the first one failed; there the error is raised itself.
    """
    if count() == 1:
        action()
        return
    client, turn = distributed.global_state.client, next(_turns)
    client.wait_at_barrier(f"cai_jax/{turn}", WRITE_SECONDS * 1000)
    key = f"cai_jax/{turn}/done"
    if not first():
        if failed := json.loads(client.blocking_key_value_get(key, WRITE_SECONDS * 1000)):
            raise HostsError(*failed)
        return
    failed = None
    try:
        action()
    except BaseException as error:
        why = storage.explained(error)
        said = f"the first host failed: {type(why).__name__}: {why}"
        failed = said, outages.exit_code(why)
        raise
    finally:
        client.key_value_set(key, json.dumps(failed))


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """While open, an error of this host ends its process soon, with the error's exit code.

    Else it would wait minutes for the others to end too, which wait for this one.
    """
    try:
        yield
    except Exception as error:
        if count() > 1:
            code = outages.exit_code(storage.explained(error))
            _start_timer(LEAVE_SECONDS, lambda: os._exit(code))
        raise


def check_devices() -> None:
    """Refuses devices that belong to processes which have not been joined.

    Raises:
      HostsError: such as on one worker of a TPU pod that was started as if it were alone.
    """
    with _said_when_long("for this host's devices; on a TPU slice of several hosts, is the same "
                         "command running on all of them?"):  # fmt: skip
        processes = jax.process_count()
    if processes != count():
        raise HostsError(
            f"the devices here belong to {processes} hosts, which this command did not join; set "
            "CAI_JAX_MULTIHOST=1 and start it on all of them."
        )


@contextlib.contextmanager
def _said_when_long(what: str) -> Iterator[None]:
    """While open for longer than REMINDED seconds, says what is waited for."""
    line = f"cai-jax: {socket.gethostname()} has waited {REMINDED} seconds {what}"
    with _after(REMINDED, lambda: print(line, file=sys.stderr, flush=True)):
        yield


@contextlib.contextmanager
def _after(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Does something unless it is closed within so many seconds."""
    timer = _start_timer(seconds, action)
    try:
        yield
    finally:
        timer.cancel()


def _start_timer(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    return timer
