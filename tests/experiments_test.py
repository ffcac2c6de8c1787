"""Every experiment builds, holds all settings, says what it is, and runs."""

import ast
import re

import pytest
import tiny_run

from cai_jax import cli
from cai_jax.evaluation_settings import EvaluationSettings
from cai_jax.harmfulness_settings import HarmfulnessSettings
from cai_jax.settings import build, run_settings

FOLDER = tiny_run.ROOT / "experiments"
# Every experiment with every argument it takes.
SIZED = ("quickstart.py", "dpo.py")
EXPERIMENTS = [f"{name}{size}" for name in SIZED for size in ("", ":full", ":smoke")]
EXPERIMENTS += ["sandbox.py", "sandbox.py:tiny", "llama3_8b.py", "llama3_8b_small_slice.py"]
# Those that differ from llama3_8b.py in the model's shape, the mesh and a batch.
SHAPES = ["llama3_70b.py", "mixtral_8x7b.py", "paper_52b.py", "qwen2_7b.py"]
# Those that are no whole run, with their verbs.
OTHERS = {
    "label_ablation.py": "label-ablation",
    "generate_prompts.py": "generate-prompts",
    "evaluations.py": "evaluate",
    "snapshots.py": "evaluate",
    "harmfulness.py": "harmfulness",
    "human_preferences.py": "human-preferences",
}
FIGURES = {
    **{f"figures/fig{n}.py": "run" for n in (2, 3, 5, 6, 7, 8)},
    **{f"figures/fig{n}.py": "evaluate" for n in (4, 9, 11, 12)},
    "figures/fig10.py": "harmfulness",
    "figures/over_optimisation.py": "run",
}
SCALES = ("laptop", "host", "pod")

# What makes a run tiny; all else is the experiment's own. The sizes are those of tiny_run, whose
# compiled programs are there.
TINY = """
    mesh.tensor=1 engine.slots=1 engine.max_length=2048
    revise.rounds=1 revise.few_shots=1 revise.response_tokens=6 revise.critique_tokens=6
    revise.revision_tokens=6 revise.helpful_samples=1
    finetune.epochs=1 finetune.batch_size=1 finetune.length=128
    finetune.microbatches=1 preference_model.microbatches=1 ppo.microbatches=1 dpo.microbatches=1
    compare.response_tokens=6 compare.few_shots=0 compare.chain_tokens=6
    preference_model.epochs=1 preference_model.batch_size=2 preference_model.length=512
    ppo.updates=1 ppo.batch_size=4 ppo.minibatches=2 ppo.prompt_tokens=64 ppo.response_tokens=6
    dpo.epochs=1 dpo.batch_size=2 dpo.length=512
    evaluate.samples=1 evaluate.response_tokens=6 evaluate.batch_size=4 evaluate.resamples=20
    prompts.red_team_limit=2 prompts.helpful_limit=1 prompts.held_out_red_team_limit=1
    prompts.held_out_helpful_limit=1 prompts.helpful_comparisons_limit=2 prompts.label_pairs_limit=2
"""


def config(name: str) -> dict:
    found, _, _ = cli.parse([f"--config={FOLDER / name}", "--workdir=run"])
    return found.to_dict()


def keys(group: dict, prefix: str = "") -> set[str]:
    found = set()
    for name, value in group.items():
        found |= keys(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return found


def test_every_file_is_tested():
    files = {path.name for path in FOLDER.glob("*.py")} - {"common.py"}
    assert files == {name.split(":")[0] for name in EXPERIMENTS} | {*SHAPES, *OTHERS}
    figures = {f"figures/{path.name}" for path in FOLDER.glob("figures/*.py")}
    assert figures == {*FIGURES, "figures/scales.py"}


@pytest.mark.parametrize("name", [*EXPERIMENTS, *SHAPES, "common.py"])
def test_it_builds_and_has_exactly_the_settings_of_common(name):
    found = config(name)
    run_settings(found)
    assert keys(found) == keys(config("common.py"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FIGURES)
def test_a_figures_experiment_builds_at_each_scale(name, scale):
    found = config(f"{name}:{scale}")
    if FIGURES[name] == "run":
        run_settings(found)
        assert keys(found) == keys(config("common.py"))
    elif FIGURES[name] == "evaluate":
        build(EvaluationSettings, found)
    else:
        build(HarmfulnessSettings, found | {"attempts": "rated.jsonl"})
    assert config(name) == config(f"{name}:laptop") and found["seed"] == 0


@pytest.mark.parametrize("name", FIGURES)
def test_a_figures_header_ends_with_how_to_draw_it(name):
    number = re.search(r"\d+", name)
    figure = number[0] if number else "over-optimisation"
    header = ast.get_docstring(ast.parse((FOLDER / name).read_text("utf-8")))
    assert header.startswith(f"Figure {figure}: " if number else "Over-optimisation of ")
    command = header[header.index("Command:") : header.index("Hardware:")]
    *_, last = re.findall(r"cai-jax .*", command.partition("Data:")[0])
    assert last.startswith(f"cai-jax figures --figure={figure} --runs=")
    for verb, file in re.findall(r"cai-jax (\S+) --config=experiments/(\S+?\.py)", command):
        known = {**dict.fromkeys(EXPERIMENTS, "run"), **OTHERS, **FIGURES}
        assert verb == known[file]


def test_a_scale_that_there_is_not(capsys):
    flag = f"--config={FOLDER}/figures/fig5.py:desk"
    assert cli.main(["run", flag, "--workdir=run"]) == 2
    assert "the scale 'desk' is unknown; give one of laptop, host, pod" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", sorted({n.split(":")[0] for n in [*EXPERIMENTS, *SHAPES, *OTHERS, *FIGURES]})
)
def test_its_header_says_what_it_takes_and_gives(name):
    tree = ast.parse((FOLDER / name).read_text("utf-8"))
    header = ast.get_docstring(tree)
    for field in ("Command", "Hardware", "Time", "Expect"):
        assert re.search(rf"^{field}: +\S", header, re.MULTILINE), f"{name} lacks {field}"
    verb = {"paper_52b.py": "plan", **OTHERS, **FIGURES}.get(name, "run")
    assert f"cai-jax {verb} --config=experiments/{name}" in header
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    shared = {"quickstart", "llama3_8b"} - {name.removesuffix(".py")}
    more = {"scales"} if name in FIGURES else shared
    assert imported <= {"common", "ml_collections"} | more


def test_evaluations_has_exactly_the_settings_that_there_are():
    build(EvaluationSettings, config("evaluations.py"))


@pytest.mark.parametrize("name", [*EXPERIMENTS, *SHAPES, *OTHERS, *FIGURES])
def test_what_it_names_exists(name):
    found = config(name)
    if name in (
        "generate_prompts.py",
        "human_preferences.py",
        "harmfulness.py",
        "figures/fig10.py",
    ):
        assert "constitution" not in found
        return
    assert (tiny_run.ROOT / found["constitution"]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name.split(":")[0] for name in EXPERIMENTS}))
def test_one_tiny_pass(name, finished, tiny_cache, tmp_path):
    experiment, _ = finished
    flags = [f"--config.{setting}" for setting in TINY.split()]
    flags.append(f"--config.model={experiment.folder / 'model'}")
    flags.append("--config.feedback_model=")
    for prompts in tiny_run.PROMPTS:
        flags.append(f"--config.prompts.{prompts}={experiment.folder / prompts}.jsonl")
    command = ["run", f"--config={FOLDER / name}", f"--workdir={tmp_path / 'run'}", *flags]
    ended = tiny_run.run_apart(command, tiny_cache)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run" / "summary.json").exists()
