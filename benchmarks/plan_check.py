"""What `cai-jax plan` predicts beside what is measured, where it can be: on this machine's CPU.

python benchmarks/plan_check.py [--json FILE]

Each training step of SmolLM2-135M's shape, compiled as `plan` compiles it, runs on made-up numbers
in a process of its own. Memory is the most that the process holds, less what it held before its
state was made; time is the mean of some steps, beside operations at the rate of a large product
measured in the same process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = ("finetune", "preference model", "PPO, policy", "PPO, value")
SIZES = {"batch_size": 8, "length": 256}
STEPS = 3


@dataclasses.dataclass(frozen=True)
class Checked:
    """Bytes and seconds of one program, predicted and measured."""

    name: str
    predicted_bytes: int
    measured_bytes: int
    predicted_seconds: float
    measured_seconds: float


def main() -> None:
    """Prints a table, a process a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", choices=NAMES, help="measure it in this process")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.program:
        print(json.dumps(dataclasses.asdict(check(options.program))))
        return
    print("program              memory, GB: predicted  measured  ratio    time, s: bound  measured")
    rows = []
    for name in NAMES:
        command = [sys.executable, __file__, "--program", name]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        row = Checked(**json.loads(ended.stdout.splitlines()[-1]))
        rows.append(row)
        sizes = (row.predicted_bytes / 1e9, row.measured_bytes / 1e9)
        print(
            f"{name:21}{sizes[0]:23.2f}{sizes[1]:10.2f}{sizes[0] / sizes[1]:7.2f}"
            f"{row.predicted_seconds:15.2f}{row.measured_seconds:10.2f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(r) for r in rows], indent=1) + "\n")


def check(name: str) -> Checked:
    """Compiles and runs one program; to be called in a process of its own."""
    import jax
    import jax.numpy as jnp
    import machine
    import peak

    from cai_jax import cli
    from cai_jax.mesh import MESH_AXES, make_mesh
    from cai_jax.plan.program import compile_program
    from cai_jax.plan.shapes import shape_of
    from cai_jax.plan.training import training_steps
    from cai_jax.settings import run_settings

    config = cli.parse([f"--config={ROOT}/experiments/common.py"], needs_workdir=False)[0]
    for group in ("finetune", "preference_model"):
        config[group].update(SIZES)
    config.ppo.update({"batch_size": 16, "minibatches": 2, "prompt_tokens": 192,
                       "response_tokens": 64})  # fmt: skip
    s = run_settings(config)
    mesh = make_mesh(dict.fromkeys(MESH_AXES, 1), jax.devices()[:1])
    shape = shape_of(s.model)
    program = next(p for p in training_steps(s, shape, mesh) if p.name == name)
    row = compile_program(program, mesh)
    rate = machine.measure().large
    (part,) = program.parts
    step = part.lowered.compile()
    before = resident()
    peak.forget()
    inputs, _ = part.lowered.args_info
    shardings, _ = step.input_shardings
    state, batch = jax.tree.map(
        lambda info, where: jax.device_put(jnp.ones(info.shape, info.dtype), where),
        tuple(inputs), tuple(shardings),
    )  # fmt: skip
    state, _ = jax.block_until_ready(step(state, batch))
    began = time.perf_counter()
    for _ in range(STEPS):
        state, _ = jax.block_until_ready(step(state, batch))
    seconds = (time.perf_counter() - began) / STEPS
    measured = peak.peak() - before
    return Checked(name, row.held + row.temporary, measured, program.flops / rate, seconds)


def resident() -> int:
    """Bytes that this process holds now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


if __name__ == "__main__":
    main()
