"""`cai-jax plan`: names, shapes, steps from shapes alone, what to change where one is too large."""

import dataclasses
import importlib.util
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest
from fakes import GEMMA_LIKE, NEOX_LIKE, tiny_model

from cai_jax import cli
from cai_jax.mesh import make_mesh
from cai_jax.models import heads, lora
from cai_jax.plan import remedies, report, search
from cai_jax.plan.decoding import STOPS, Shapes, decoding_programs
from cai_jax.plan.hours import hours, times_of
from cai_jax.plan.program import Compiled, Part, Program, compile_program
from cai_jax.plan.programs import programs_of
from cai_jax.plan.shapes import LLAMA_3_8B, shape_of
from cai_jax.plan.topology import Chip, Topology, layout_of
from cai_jax.plan.training import params_of, training_steps
from cai_jax.progress import Progress
from cai_jax.settings import ConfigError, run_settings
from cai_jax.training import flops
from cai_jax.weights.safetensors import write_directory

pytestmark = pytest.mark.slow

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
        ("v7x-128", ("v7x", "4x4x4")),
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


def one_device():
    return make_mesh(ONE, jax.devices()[:1])


def steps_of(model, **changes):
    steps = training_steps(settings(**changes), model.config, one_device())
    return {step.name: step for step in steps}


def test_every_step_of_a_run_and_what_it_holds(model):
    """On one device all is in one place, so that bytes can be counted by hand."""
    trunk = 4 * sum(x.size for x in jax.tree.leaves(model.params))
    head = 4 * (model.config.embed + 1)
    unembedding = model.params.get("lm_head")
    scorer = trunk + head - (4 * unembedding["kernel"].size if unembedding else 0)
    steps = steps_of(model)
    assert list(steps) == ["finetune", "preference model", "PPO, policy", "PPO, value"]
    near = lambda n: pytest.approx(n, abs=200)  # counters and rates  # noqa: E731
    assert steps["finetune"].held == near(3 * trunk)
    assert steps["preference model"].held == near(3 * scorer)
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


def test_adapters_and_eight_bits_hold_less(model):
    """The policy's base is the reference, and the value function's a preference model."""
    trunk = 4 * sum(x.size for x in jax.tree.leaves(model.params))
    scorer = jax.eval_shape(heads.with_scalar_head, model.params)
    scorer = 4 * sum(x.size for x in jax.tree.leaves(scorer))
    adapted = lora.adapted(model.params, lora.Lora(2, 4.0), 0, "")
    adapters = 3 * 4 * sum(x.size for x in jax.tree.leaves(adapted.trained))
    head = 3 * 4 * (model.config.embed + 1)
    near = lambda n: pytest.approx(n, abs=400)  # counters, rates, the head itself  # noqa: E731
    rank = {"lora__rank": 2, "lora__alpha": 4.0}
    steps = steps_of(model, **rank)
    assert steps["finetune"].held == near(trunk + adapters)
    assert steps["preference model"].held == near(scorer + adapters + head)
    total = trunk + scorer + 2 * adapters + head
    for name in ("PPO, policy", "PPO, value"):
        assert steps[name].held + steps[name].beside == near(total)
    assert steps["finetune"].flops < 0.8 * steps_of(model)["finetune"].flops
    kernels = sum(x["kernel"].size for x in model.params["layers"].values() if "kernel" in x)
    for more in ({}, rank):
        steps = steps_of(model, **more), steps_of(model, frozen_int8=True, **more)
        whole, half = (s["PPO, policy"].held + s["PPO, policy"].beside for s in steps)
        assert whole - half == pytest.approx(3 * kernels, rel=0.1)  # but scales
    mesh = one_device()
    for changes in ({"frozen_int8": True}, rank, {"frozen_int8": True, **rank}):
        programs = {p.name: p for p in programs_of(settings(**changes), model.config, mesh)}
        for name in ("PPO, policy", "PPO, value", "PPO, to decode", "PPO, log-probs"):
            assert compile_program(programs[name], mesh).moved > 0


def test_a_compiled_step_is_the_one_that_training_takes(model):
    """What the compiler says it needs is the state and a batch, and less with microbatches."""
    whole = compile_program(steps_of(model)["finetune"], one_device())
    batch = 4 * 16 * (3 * 4 + 1)
    assert whole.held == pytest.approx(whole.program.held + batch, abs=100)
    assert not whole.received and whole.moved > 0
    split = compile_program(steps_of(model, finetune__microbatches=4)["finetune"], one_device())
    assert split.temporary < whole.temporary
    again = steps_of(model, finetune__remat="full")["finetune"]
    assert again.flops == pytest.approx(whole.program.flops * 4 / 3)


def test_memory_by_kind_is_all_of_it(model):
    trunk = 4 * sum(x.size for x in jax.tree.leaves(model.params))
    s = settings(engine__slots=4, engine__max_length=128)
    mesh = one_device()
    programs = {p.name: p for p in programs_of(s, model.config, mesh)}
    rows = {name: compile_program(programs[name], mesh) for name in ("finetune", "PPO, policy")}
    for row in rows.values():
        kinds = row.kinds()
        assert kinds["params"] == kinds["gradients"] == trunk
        assert kinds["optimizer"] == pytest.approx(2 * trunk, abs=100)
        assert 0 < kinds["cache, batch"] < 5000 and kinds["temporaries"] > 0
        assert sum(kinds.values()) == row.total
    decode = compile_program(programs["PPO, a token a slot"], mesh)
    token = 2 * 4 * model.config.layers * model.config.kv_heads * model.config.head_dim
    cache = 4 * 128 * token + 4 * 4 * model.config.vocab_size
    stops = STOPS * model.config.vocab_size * 2
    assert decode.kinds()["cache, batch"] == pytest.approx(cache + stops, abs=500)
    assert decode.kinds()["params"] == trunk and decode.kinds()["gradients"] == 0
    assert programs["PPO, to decode"].params == 2 * trunk
    table = report.memory_table([rows["finetune"], decode], HERE)
    assert list(table.columns[5].cells) == ["0.00", "0.00"]
    assert len(table.columns) == 8 and next(iter(table.columns[7].cells)).endswith("%")
    adapted = steps_of(model, lora__rank=2, lora__alpha=4.0)["finetune"]
    assert adapted.params > trunk and adapted.gradients < trunk / 2


def test_a_compiled_decode_step_holds_and_moves_weights_and_cache(model):
    shapes = Shapes(model.config, one_device(), 4, 128, jax.numpy.dtype("float32"))
    programs = {p.name: p for p in decoding_programs(shapes)}
    weights = 4 * sum(x.size for x in jax.tree.leaves(model.params))
    token = 2 * 4 * model.config.layers * model.config.kv_heads * model.config.head_dim
    logits = 4 * 4 * model.config.vocab_size
    step = compile_program(programs["a token a slot"], one_device())
    assert step.program.held == weights + 4 * 128 * token + logits
    assert step.program.beside == weights
    assert step.moved > weights  # CPU's program copies more; a TPU's is in tpu_decode_test
    forward = flops.flops_per_token(*flops.shape_of(model.params), 128) / 3
    assert step.program.flops == pytest.approx(4 * forward)
    assert programs["read 512 tokens"].flops == pytest.approx(512 * forward)
    assert [part.times for part in programs["read 512 tokens"].parts] == [
        model.config.layers - 1,
        1,
    ]


@pytest.mark.parametrize("options", [GEMMA_LIKE, NEOX_LIKE], ids=["gemma", "neox"])
def test_models_of_other_kinds_have_all_programs(options):
    model = tiny_model(**options)
    s = settings(engine__slots=4, engine__max_length=128)
    programs = {p.name: p for p in programs_of(s, model.config, one_device())}
    assert {"finetune", "a token a slot", "read 512 tokens"} <= set(programs)
    token = flops.flops_per_token(*flops.shape_of(model.params), 16, model.config.windows)
    assert programs["finetune"].flops == 4 * 16 * token


def test_what_ppo_holds_stands_beside_what_it_decodes_and_asks(model):
    s = settings(engine__slots=4, engine__max_length=128)
    programs = {p.name: p for p in programs_of(s, model.config, one_device())}
    holds = programs["PPO, policy"].held + programs["PPO, policy"].beside
    assert programs["PPO, a token a slot"].beside == holds
    assert programs["PPO, a token a slot"].parts is programs["a token a slot"].parts
    for name in ("PPO, log-probs", "PPO, values", "PPO, scores"):
        assert programs[name].held + programs[name].beside == holds
    weights = sum(x.nbytes for x in jax.tree.leaves(model.params))
    to_decode = programs["PPO, to decode"]
    assert to_decode.held + to_decode.beside == holds + weights
    assert [part.times for part in to_decode.parts] == [model.config.layers, 1]
    dpo = [p.name for p in programs_of(dataclasses.replace(s, algorithm="dpo"), model.config,
                                       one_device())]  # fmt: skip
    assert not any(name.startswith("PPO") for name in dpo) and dpo[-1] == "DPO"
    rated = settings(ppo__reward="rating", ppo__advantage="leave_one_out", ppo__samples=2)
    names = [p.name for p in programs_of(rated, model.config, one_device())]
    assert "PPO, scores" not in names and "PPO, values" not in names


def test_changes_that_need_less_memory_begin_with_the_smallest(model):
    def said(ways, name="finetune", heads=1, **changes):
        s = settings(finetune__batch_size=16, **changes)
        step = next(x for x in steps_of(model).values() if x.name == name)
        found = remedies.changes(step, s, ways, heads)
        return [(text, getattr(t, step.group), t.mesh) for text, t in found]

    found = said(2)
    f = "config.finetune"
    split = [f"{f}.remat=full, {f}.microbatches={n}" for n in (2, 4, 8)]
    coarse = f"{split[-1]}, {f}.compute_dtype=bfloat16"
    moments = f"{coarse}, {f}.optimizer.moment_dtype=bfloat16"
    assert [text for text, *_ in found] == [f"{f}.remat=full", *split, coarse, moments]
    assert [(g.remat, g.microbatches) for _, g, _ in found[:2]] == [("full", 1), ("full", 2)]
    assert found[-1][1].microbatches == 8 and found[-1][1].optimizer.moment_dtype == "bfloat16"
    tight = {"finetune__remat": "full", "finetune__microbatches": 4}
    assert next(text for text, *_ in said(2, **tight)) == f"{f}.microbatches=8"
    more = said(2, heads=4)
    assert [m.tensor for *_, m in more[-2:]] == [2, 4]
    assert more[-1][0].endswith(", config.mesh.tensor=4, config.mesh.fsdp=-1")

    o = "config.ppo"  # 8 rows in 4 minibatches
    begun = f"{o}.remat=full, {o}.microbatches=2, {o}.compute_dtype=bfloat16"
    moments = f"{o}.optimizer.moment_dtype=bfloat16, {o}.value_optimizer.moment_dtype=bfloat16"
    assert [text for text, *_ in said(1, "PPO, policy")][2:] == [begun, f"{begun}, {moments}"]


def test_fewer_slots_need_less_memory(model):
    shapes = Shapes(model.config, one_device(), 32, 128, jax.numpy.dtype("float32"))
    program = next(decoding_programs(shapes))
    found = list(remedies.changes(program, settings(engine__slots=32), 4, 1))
    assert [t.engine.slots for _, t in found] == [16, 8, 4]
    assert found[-1][0] == "config.engine.slots=4"


def test_the_first_change_that_fits_is_told(model, monkeypatch):
    """What is held, known from shapes, is too much without another dtype: the rest is not tried."""
    (step,) = (x for x in steps_of(model).values() if x.name == "PPO, policy")
    tried = []

    def compiled(program, mesh):
        tried.append(program)
        return Compiled(program, program.held, 1000 * len(tried), 0, {}, 0.0)

    monkeypatch.setattr(remedies, "compile_program", compiled)
    row, held = Compiled(step, step.held, 10**9, 0, {}, 0.0), step.held + step.beside

    def of(hbm):
        found = Topology("here", Chip(hbm, 1, 1, 1, 1), jax.devices()[:1], 1)
        return remedies.remedy(row, settings(), model.config, found, Progress())

    assert "with config.ppo.remat=full it fits" in of(held + 2000)
    tried.clear()
    assert "config.ppo.compute_dtype=bfloat16 it fits" in of(held - 1) and len(tried) == 1
    tried.clear()
    assert "split it over more chips" in of(step.held // 4) and not tried


def test_what_the_compiler_refuses_does_not_fit(model):
    said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "

    class Lowered:
        def __init__(self, rest):
            self.rest = rest

        def compile(self):
            raise jax.errors.JaxRuntimeError(said + self.rest)

    def refused(rest):
        program = Program("x", "ppo", (Part(Lowered(rest)),), 5, 7, 16.0)
        return compile_program(program, one_device())

    row = refused("temporaries (35.5G) exceeds available HBM (31.25G).")
    assert row.temporary == 35.5 * 2**30 and row.total == row.temporary + 12
    assert row.bounds(HERE.chip, 4)["memory"] == 0
    with pytest.raises(jax.errors.JaxRuntimeError):
        refused("other reasons")


def row_of(name, seconds, total=0):
    """A program that arithmetic takes so long on a chip of 1 FLOP/s."""
    return Compiled(Program(name, "ppo", (), 0, 0, seconds), total, 0, 0, {}, 0.0)


class Device:
    """What a mesh asks of one."""

    platform = device_kind = "cpu"


HERE = Topology("here", Chip(100.0, 1.0, 10.0, 5.0, 2.0), [Device() for _ in range(4)], 1)


def test_bounds_are_of_one_chip():
    program = Program("x", "ppo", (Part(None),), 1, 7, 16.0)
    received = {("fsdp",): 50.0, ("slice",): 6.0, ("slice", "fsdp"): 4.0}
    row = Compiled(program, held=1, temporary=2, moved=30, received=received, seconds=0.0)
    found = row.bounds(HERE.chip, 4)
    assert found == {"arithmetic": 4.0, "memory": 3.0, "links": 10.0, "network": 5.0}
    assert row.total == 10


def test_a_run_takes_each_program_as_often_as_its_settings_say(tmp_path):
    import tiny_run

    from cai_jax.run_texts import read_data

    experiment = tiny_run.write(tmp_path)
    config, *_ = cli.parse([f"--config={experiment.config}"], needs_workdir=False)
    s = run_settings(config)
    times = times_of(s, read_data(s))
    token = "a token a slot"
    assert times["critique and revision"][token] == 4 * (6 + 2 * (6 + 6)) / 1
    assert times["helpful responses"][token] == 2 * 2 * 6 / 1
    assert times["finetuning"] == {"finetune": 2 * 1}  # it all packs into one row of 128
    assert times["pairs of responses"][token] == 4 * 2 * 6 / 1
    assert times["AI feedback"][token] == 0  # in one token, without chains
    assert times["preference model"] == {"preference model": 2 * 3}  # 0.7 of 6 pairs, by 2
    assert times["PPO"]["PPO, policy"] == times["PPO"]["PPO, value"] == 3 * 2
    assert times["PPO"]["PPO, a token a slot"] == 3 * 4 * 6 / 1
    assert times["PPO"]["PPO, log-probs"] == 6 and times["PPO"]["PPO, scores"] == 3

    wide = dataclasses.replace(s, engine=dataclasses.replace(s.engine, slots=64))
    longest = times_of(wide, read_data(s))["PPO"]["PPO, a token a slot"]
    assert longest == 3 * 6  # tokens of a response come one after the other

    shape = dataclasses.replace(tiny_model().config, context=4096)
    compiled = {p.name for p in programs_of(s, shape, one_device())}
    counted = {name for stage in times.values() for name in stage}
    assert counted - {"PPO"} == compiled  # which is of one trunk alone

    rows = [row_of(token, 8.0), row_of("PPO, policy", 4.0), row_of("PPO, log-probs", 40.0)]
    stages = {x.name: x for x in hours(times, rows, HERE)}
    assert stages["helpful responses"].seconds == 24 * 2.0
    assert stages["PPO"].seconds == 6 * 1.0 + 6 * 10.0
    assert stages["PPO"].most == "PPO, log-probs"
    lines = report.cost([stages["PPO"]], HERE, price=90.0)
    assert lines[0].startswith("0.018 hours, 0.0733 chip-hours, 7 at 90 a chip-hour: ")


def test_meshes_cover_the_chips_and_divide_the_model(model):
    s = settings(finetune__batch_size=16, preference_model__batch_size=16, ppo__batch_size=64)
    found = list(search.meshes(s, model.config, HERE))
    meshes = [(t.mesh.data, t.mesh.fsdp, t.mesh.tensor) for t in found]
    assert meshes == [(1, 4, 1), (2, 2, 1), (1, 2, 2)]  # 2 heads of keys and values
    wide = settings(finetune__batch_size=16, mesh__tensor=2, finetune__microbatches=2)
    for given in (s, wide):  # what is printed says all, whatever the config says
        for t in search.meshes(given, model.config, HERE):
            words = search.said(t).split()
            assert t.finetune.microbatches == 1
            for axis, size in dataclasses.asdict(t.mesh).items():
                assert f"--config.mesh.{axis}={size}" in words
            for group in ("finetune", "preference_model", "ppo"):
                assert f"--config.{group}.microbatches=1" in words
    few = settings(finetune__batch_size=2, preference_model__batch_size=16, ppo__batch_size=64)
    assert [t.mesh.tensor for t in search.meshes(few, model.config, HERE)] == [2]  # 2 rows


def test_a_batch_is_split_until_its_steps_fit_and_while_that_is_faster(model, monkeypatch):
    """Each group by itself, and nothing is compiled again that does not change."""
    s = settings(finetune__batch_size=8, engine__slots=4, engine__max_length=128)
    s = dataclasses.replace(s, mesh=dataclasses.replace(s.mesh, **ONE))
    fits_in, moves, compiled = {"finetune": 4, "PPO, value": 2}, {}, []

    def compile_program(program, mesh):
        compiled.append(program.name)
        parts = 2 ** (compiled.count(program.name) - 1)
        working = 10**12 if parts < fits_in.get(program.name, 1) else 1
        moved = moves.get((program.name, parts), 10**9)
        return Compiled(program, program.held, working, moved, {}, 1.0)

    monkeypatch.setattr(report, "compile_program", compile_program)

    def found_on(hbm):
        compiled.clear()
        one = Topology("here", Chip(hbm, 1e12, 1, 1, 1), jax.devices()[:1], 1)
        settled, rows = search.split(s, model.config, one, Progress())
        groups = ("finetune", "preference_model", "ppo")
        return [getattr(settled, group).microbatches for group in groups], rows

    parts, rows = found_on(10**9)
    assert parts == [4, 1, 2] and all(row.total < 10**9 for row in rows)
    counts = {name: compiled.count(name) for name in compiled}
    assert counts["finetune"] == 4 and counts["preference model"] == 2
    assert counts["PPO, value"] == counts["PPO, policy"] == 2  # of 2 rows in a minibatch
    assert counts["a token a slot"] == counts["PPO, log-probs"] == 1
    assert "PPO, a token a slot" not in counts and rows[-1].program.name == "PPO, scores"

    moves["preference model", 2] = 10**8
    moves["finetune", 8] = 10**8
    assert found_on(10**9)[0] == [8, 2, 2]
    fits_in["finetune"] = 100  # never
    parts, rows = found_on(10**9)
    assert parts == [8, 2, 2] and max(row.total for row in rows) > 10**9
    _, (row,) = found_on(1000)
    assert not compiled and row.total > 1000


def test_the_fastest_that_fits_comes_first():
    def tried(said, hours, total):
        return search.Tried(said, hours, row_of("x", 0.0, total))

    table = search.ranked(
        [
            tried("slow", 3.0, 9), tried("unseen", math.inf, 300), tried("big", 1.0, 200),
            tried("fast", 2.0, 9),
        ],
        HERE,
    )  # fmt: skip
    assert list(table.columns[3].cells) == ["fast", "slow", "big", "unseen"]
    assert list(table.columns[0].cells) == ["2", "3", "1", ""]
    assert list(table.columns[1].cells)[-1].endswith(" !")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--topology=NAME is missing"),
        (["--topology=v5e-16", "--slices=two"], "--slices=two is no number of slices"),
        (["--topology=v5e-16", "--slices=0"], "--slices=0 is no number of slices"),
        (["--topology=v5e-16", "--price=much"], "--price=much is no price"),
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
    import tiny_run

    experiment = tiny_run.write(tmp_path)
    command = [
        sys.executable, "-m", "cai_jax.cli", "plan", f"--config={experiment.config}",
        "--topology=v5e-4", "--config.finetune.batch_size=4",
        "--config.preference_model.batch_size=4", "--config.ppo.batch_size=16",
        "--config.ppo.minibatches=2", "--price=1.2",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    for word in (
        "4 devices of 16.9 GB", "fsdp 4", "PPO, value", "bound by", "a token a slot", "along fsdp",
        "The run, at the least", "chip-hours, ", "at 1.2 a chip-hour",
    ):  # fmt: skip
        assert word in ended.stdout
    assert not ended.stderr.strip()


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install -e '.[plan]'",
)
def test_gradients_cross_the_network_between_slices():
    """Each device's part of a gradient, compiled for two slices of eight chips."""
    program = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from cai_jax.plan.hlo_collectives import collectives
    from cai_jax.plan.topology import topology, without_a_tpu

    without_a_tpu()
    devices = sorted(topology("v5e:2x4", 2).devices, key=lambda d: (d.slice_index, d.id))
    mesh = Mesh(np.array(devices).reshape(2, 8), ("slice", "fsdp"))
    rows, kernel = (NamedSharding(mesh, P(names, None)) for names in (("slice", "fsdp"), "fsdp"))
    step = jax.jit(jax.grad(lambda w, x: jnp.sum((x @ w) ** 2)), out_shardings=kernel)
    w = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=kernel)
    x = jax.ShapeDtypeStruct((256, 1024), jnp.float32, sharding=rows)
    found = collectives(step.lower(w, x).compile().as_text(), {"slice": 2, "fsdp": 8})
    print(sum(one.bytes for one in found if one.axes == ("slice",)))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, text=True, capture_output=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert int(ended.stdout.split()[-1]) == 1024 * 1024 * 4 // 8
