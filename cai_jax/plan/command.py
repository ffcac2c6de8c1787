"""`cai-jax plan --config=FILE.py --topology=NAME`: its flags."""

from __future__ import annotations

import re

from cai_jax.command_config import UsageError, parse


def plan(arguments: list[str]) -> int:
    """Compiles a config's programs for a TPU; returns the exit code, 1 where one does not fit.

    Raises:
      UsageError: a flag that makes no sense.
      ValueError: a config or topology that cannot be used.
    """
    flags = ("--topology=", "--slices=", "--price=")
    own = [a for a in arguments if a.startswith(flags) or a == "--search"]
    given = dict(a.removeprefix("--").split("=", 1) for a in own if "=" in a)
    if "topology" not in given:
        raise UsageError("--topology=NAME is missing: a TPU type such as v5e-16.")
    slices = given.get("slices", "1")
    if not slices.isdecimal() or int(slices) < 1:
        raise UsageError(f"--slices={slices} is no number of slices.")
    price = given.get("price", "0")
    if not re.fullmatch(r"\d+(\.\d+)?", price):
        raise UsageError(f"--price={price} is no price of a chip for an hour.")
    config, _, _ = parse([a for a in arguments if a not in own], needs_workdir=False)
    from cai_jax.plan.topology import without_a_tpu

    without_a_tpu()
    from cai_jax.plan import report
    from cai_jax.plan.search import search
    from cai_jax.progress import Progress
    from cai_jax.settings import run_settings

    settings, where = run_settings(config), (given["topology"], int(slices))
    with Progress() as progress:
        if "--search" in own:
            fits = search(settings, *where, progress)
        else:
            fits = report.plan(settings, *where, float(price), progress)
    return 0 if fits else 1
