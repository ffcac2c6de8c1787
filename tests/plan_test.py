"""`cai-jax plan`: names, shapes, steps from shapes alone, what to change where one is too large."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import pytest
from fakes import tiny_model

from cai_jax import cli
from cai_jax.mesh import make_mesh
from cai_jax.models import heads
from cai_jax.plan import report
from cai_jax.plan.shapes import LLAMA_3_8B, shape_of
from cai_jax.plan.topology import Chip, layout_of
from cai_jax.plan.training import params_of, training_steps
from cai_jax.progress import Progress
from cai_jax.settings import ConfigError, run_settings
from cai_jax.training import flops
from cai_jax.weights.safetensors import write_directory

ROOT = Path(__file__).parents[1]
ONE = {"slice": 1, "data": 1, "fsdp": 1, "sequence": 1, "tensor": 1}


def settings(**changes):
    """The defaults at a tiny size; changes as "group.key"."""
    config = cli.parse([f"--config={ROOT}/experiments/common.py"], needs_workdir=False)[0]
    small = {"batch_size": 4, "length": 16, "remat": "none"}
    for group in ("finetune", "preference_model", "dpo"):
        config[group].update(small)
    config.ppo.update({"batch_size": 8, "prompt_tokens": 8, "response_tokens": 8, "remat": "none"})
    for name, value in changes.items():
        group, _, key = name.partition("__")
        if key:
            config[group][key] = value
        else:
            config[name] = value
    return run_settings(config)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("v5e-16", ("v5e", "4x4")),
        ("v6e-8", ("v6e", "2x4")),
        ("v4-32", ("v4", "2x2x4")),  # 32 TensorCores are 16 chips
        ("v5p-128", ("v5p", "4x4x4")),
        ("v5p:2x2x1", ("v5p", "2x2x1")),
    ],
)
def test_names_that_tpus_are_rented_under(name, found):
    assert layout_of(name) == found


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("v9-16", "is unknown; .* Kinds: v4, v5e"), ("v4-9", "sizes of v4: 8, 16"), ("v5e", "v5e-16")],
)
def test_names_that_nobody_rents(name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        layout_of(name)


def test_a_shape_needs_no_weights(tmp_path):
    assert shape_of("llama-3.1-8b") == LLAMA_3_8B
    params = sum(x.size for x in jax.tree.leaves(params_of(LLAMA_3_8B)))
    assert params == 8_030_261_248  # as its model card counts
    model = tiny_model()
    write_directory(tmp_path, model.config, model.params, model.tokenizer, None)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert shape_of(str(tmp_path)) == model.config
    with pytest.raises(ConfigError, match="shape is unknown"):
        shape_of("nowhere")


def steps_of(model, **changes):
    mesh = make_mesh(ONE, jax.devices()[:1])
    return {step.name: step for step in training_steps(settings(**changes), model.config, mesh)}


def test_every_step_of_a_run_and_what_it_holds(model):
    """On one device all is in one place, so that bytes can be counted by hand."""
    trunk = 4 * sum(x.size for x in jax.tree.leaves(model.params))
    head = 4 * (model.config.embed + 1)
    unembedding = model.params.get("lm_head")
    scorer = trunk + head - (4 * unembedding["kernel"].size if unembedding else 0)
    steps = steps_of(model)
    assert list(steps) == ["finetune", "preference model", "PPO, policy", "PPO, value"]
    near = lambda n: pytest.approx(n, abs=200)  # counters and rates  # noqa: E731
    assert steps["finetune"].state == near(3 * trunk)
    assert steps["preference model"].state == near(3 * scorer)
    reference_and_pm = trunk + scorer
    assert steps["PPO, policy"].beside == near(reference_and_pm + 3 * scorer)
    assert steps["PPO, value"].beside == near(reference_and_pm + 3 * trunk)
    tokens = {"finetune": 64, "preference model": 128, "PPO, policy": 32, "PPO, value": 32}
    for name, n in tokens.items():
        params = (
            model.params
            if name in ("finetune", "PPO, policy")
            else heads.with_scalar_head(model.params)
        )
        assert steps[name].flops == n * flops.flops_per_token(*flops.shape_of(params), 16)

    assert list(steps_of(model, algorithm="dpo")) == ["finetune", "preference model", "DPO"]
    shared = steps_of(model, ppo__value_init="zero_head", ppo__value_trunk="shared")
    assert list(shared)[2:] == ["PPO"] and shared["PPO"].beside == near(reference_and_pm)
    rated = steps_of(model, ppo__reward="rating", ppo__advantage="leave_one_out", ppo__samples=2)
    assert list(rated)[2:] == ["PPO, policy"] and rated["PPO, policy"].beside == near(2 * trunk)


def test_a_compiled_step_is_the_one_that_training_takes(model):
    """What the compiler says it needs is the state and a batch, and less with microbatches."""
    whole = report.compile_step(steps_of(model)["finetune"])
    batch = 4 * 16 * (3 * 4 + 1)
    assert whole.arguments == pytest.approx(whole.step.state + batch, abs=100)
    assert whole.received == 0 < whole.moved
    split = report.compile_step(steps_of(model, finetune__microbatches=4)["finetune"])
    assert split.temporary < whole.temporary
    again = steps_of(model, finetune__remat="full")["finetune"]
    assert again.flops == pytest.approx(whole.step.flops * 4 / 3)


def test_changes_that_need_less_memory_begin_with_the_smallest(model):
    def said(ways, name="finetune", **changes):
        s = settings(finetune__batch_size=16, **changes)
        step = next(x for x in steps_of(model).values() if x.name == name)
        return [(text, getattr(t, step.group)) for text, t in report.changes(step, s, ways)]

    found = said(2)
    f = "config.finetune"
    split = [f"{f}.remat=full, {f}.microbatches={n}" for n in (2, 4, 8)]
    moments = f"{split[-1]}, {f}.optimizer.moment_dtype=bfloat16"
    assert [text for text, _ in found] == [f"{f}.remat=full", *split, moments]
    assert [(g.remat, g.microbatches) for _, g in found[:2]] == [("full", 1), ("full", 2)]
    assert found[-1][1].microbatches == 8 and found[-1][1].optimizer.moment_dtype == "bfloat16"
    tight = {"finetune__remat": "full", "finetune__microbatches": 4}
    assert next(text for text, _ in said(2, **tight)) == f"{f}.microbatches=8"

    o = "config.ppo"  # 8 rows in 4 minibatches
    begun = f"{o}.remat=full, {o}.microbatches=2"
    expected = [
        f"{o}.remat=full", begun, f"{begun}, config.dtype=bfloat16",
        f"{begun}, config.dtype=bfloat16, {o}.optimizer.moment_dtype=bfloat16, "
        f"{o}.value_optimizer.moment_dtype=bfloat16",
    ]  # fmt: skip
    assert [text for text, _ in said(1, "PPO, policy")] == expected


def test_the_first_change_that_fits_is_told(model, monkeypatch):
    """What is held, known from shapes, is too much without another dtype: the rest is not tried."""
    (step,) = (x for x in steps_of(model).values() if x.name == "PPO, policy")
    tried = []

    def compiled(step):
        tried.append(step)
        return report.Compiled(step, step.state, 1000 * len(tried), 0, 0, 0.0)

    monkeypatch.setattr(report, "compile_step", compiled)
    mesh, s = make_mesh(ONE, jax.devices()[:1]), settings()
    row = report.Compiled(step, step.state, 10**9, 0, 0, 0.0)
    held = step.state + step.beside
    of = lambda hbm: report.remedy(row, s, model.config, mesh, Chip(hbm, 1, 1, 1), Progress())  # noqa: E731
    assert "with config.ppo.remat=full it fits" in of(held + 2000)
    tried.clear()
    assert "config.dtype=bfloat16 it fits" in of(held - 1) and len(tried) == 1
    tried.clear()
    assert "split it over more chips" in of(step.state // 4) and not tried


def test_bounds_are_of_one_chip():
    step = dataclasses.make_dataclass("Step", ["flops", "beside"])(4e12, 7)
    row = report.Compiled(step, arguments=1, temporary=2, moved=30, received=50, seconds=0.0)
    chip = Chip(hbm=100.0, flops=1e12, hbm_rate=10.0, ici_rate=5.0)
    assert row.bounds(chip, 4) == {"arithmetic": 1.0, "memory": 3.0, "links": 10.0}
    assert row.total == 10


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--topology=NAME is missing"),
        (["--topology=v5e-16", "--slices=two"], "--slices=two is no number of slices"),
        (["--topology=v5e-16", "--slices=0"], "--slices=0 is no number of slices"),
        (["--topology=v9-16"], "--topology=v9-16 is unknown"),
    ],
)
def test_a_command_line_that_cannot_be_planned(flags, sentence, capsys):
    assert cli.main(["plan", f"--config={ROOT}/experiments/quickstart.py", *flags]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install -e '.[plan]'",
)
def test_a_tiny_run_is_planned_for_a_tpu(tmp_path):
    """In a process of its own, as JAX's settings have to stand before its first use."""
    import subprocess

    import tiny_run

    experiment = tiny_run.write(tmp_path)
    command = [
        sys.executable, "-m", "cai_jax.cli", "plan", f"--config={experiment.config}",
        "--topology=v5e-4", "--config.finetune.batch_size=4",
        "--config.preference_model.batch_size=4", "--config.ppo.batch_size=16",
        "--config.ppo.minibatches=2",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    for word in ("4 chips of 17.2 GB", "fsdp 4", "PPO, value", "bound by"):
        assert word in ended.stdout
    assert not ended.stderr.strip()
