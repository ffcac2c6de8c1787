"""The floors of the house: who may import whom, how long a file may be, what an import may cost."""

import ast
import graphlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cai_jax"
LONGEST = 320  # lines a module may have

# A module is on the floor of its longest match: "a.b" of "a.b" or "a.b.c".
FLOORS = {
    0: """outages storage script conversation chat_template tokenizer sentencepiece_tokenizer
          principles paper_prompts paper_import constitution records prompts labels questions
          encoding datasets sandbox""",
    1: "hosts shards growing replacing rng saved_params mesh batch logprobs losses returns",
    2: "models weights",
    3: "decoding",
    4: "training",
    5: "stages evaluation",
    6: """figures progress goodput settings machine memory workdir run run_texts report plan doctor
          finished_models command_config tools event_file curves held_out_comparisons pipeline
          relabel label_ablation generate_prompts evaluation_settings evaluations snapshot_answers
          snapshot_evaluation harmfulness_settings harmfulness_scores human_preferences
          weight_verbs sandbox_models sandbox_labels sandbox_scores sandbox_study sandbox_figures
          sandbox_verbs review chat_screen chat cli""",
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}


def modules(package: Path) -> dict[str, Path]:
    """Dotted name without the package's own, to file; a folder's __init__ has the folder's name."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path, known: dict[str, Path], package: str = "cai_jax") -> tuple[set, set]:
    """(modules of the package, names of foreign packages) that a file imports, wherever it does."""
    own, foreign = set(), set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}, line {node.lineno}: a relative import"
            # `from a import b` imports the module a.b where there is one, else a.
            names = [
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}".removeprefix(f"{package}.") in known
                else node.module
                for alias in node.names
            ]
        else:
            continue
        for name in names:
            if name.split(".")[0] == package:
                own.add(name.removeprefix(package).removeprefix("."))
            else:
                foreign.add(name.split(".")[0])
    return own, foreign


def floor_problems(package: Path, floor_of: dict[str, int], name: str = "cai_jax") -> list[str]:
    """Everything wrong with a package's imports, a sentence each."""
    known = modules(package)
    problems, graph = [], {}
    for module, file in known.items():
        if not module:
            continue  # the package's own front door is checked by what importing it costs
        own, foreign = imports(file, known, name)
        graph[module] = own - {""}
        top = module.split(".")[0]
        if top not in floor_of:
            problems.append(
                f"{file.name} is on no floor; add '{top}' to FLOORS in tests/floors_test.py, and "
                "say in the module what it is for."
            )
            continue
        floor = floor_of[top]
        if "" in own:
            problems.append(f"{module} imports the package itself, which is above every floor.")
        for other in sorted(graph[module]):
            below = floor_of.get(other.split(".")[0], -1)
            if below > floor:
                problems.append(
                    f"{module} (floor {floor}) imports {other} (floor {below}); a module imports "
                    "from its own floor and lower ones."
                )
            if {top, other.split(".")[0]} == {"stages"}:
                problems.append(f"{module} imports {other}; stages never import each other.")
        if floor == 0 and foreign & {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}:
            problems.append(f"{module} is on floor 0, words, and imports JAX.")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        problems.append(f"an import cycle: {' -> '.join(error.args[1])}.")
    return problems


def names_of(file: Path) -> set[str]:
    """What a module has at its top: definitions, assignments and imports."""
    found, rest = set(), list(ast.parse(file.read_text("utf-8")).body)
    while rest:
        node = rest.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):  # what is in it is its own
            found.add(node.name)
            continue
        rest += ast.iter_child_nodes(node)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
    return found


def absent_names(package: Path, name: str = "cai_jax") -> list[str]:
    """Names that a module imports, maybe only once a function runs, and that are nowhere."""
    known, problems = modules(package), []
    for module, file in known.items():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module.split(".")[0] != name:
                continue
            source = node.module.removeprefix(name).removeprefix(".")
            there = names_of(known[source]) if source in known else set()
            for alias in node.names:
                module_of_it = f"{source}.{alias.name}".removeprefix(".")
                if alias.name not in there and module_of_it not in known:
                    problems.append(f"{module} imports {alias.name}, which {source} has not.")
    return problems


def test_every_name_that_is_imported_is_there():
    assert not absent_names(PACKAGE)


def test_an_absent_name_is_seen(tmp_path):
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("X = 1\nimport json as j\ndef f():\n    y = 2\n")
    (package / "b.py").write_text(
        "from pkg import a\nfrom pkg.a import X, j, f\ndef g():\n    from pkg.a import y\n"
    )
    assert absent_names(package, "pkg") == ["b imports y, which a has not."]


def test_modules_import_from_lower_floors_only():
    assert not floor_problems(PACKAGE, FLOOR_OF)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"low": "from pkg import high"}, "low (floor 0) imports high (floor 1)"),
        ({"low": "def f():\n    import pkg.high"}, "low (floor 0) imports high (floor 1)"),
        ({"low": "import jax.numpy as jnp"}, "low is on floor 0, words, and imports JAX"),
        ({"new": ""}, "new.py is on no floor; add 'new'"),
        ({"low": "from pkg.twin import x", "twin": "import pkg.low"}, "an import cycle"),
        ({"stages/a": "from pkg.stages import b"}, "stages never import each other"),
        ({"low": "from pkg import load_model"}, "low imports the package itself"),
    ],
)
def test_each_breach_is_seen(tmp_path, files, problem):
    package = tmp_path / "pkg"
    (package / "stages").mkdir(parents=True)
    names = ("__init__", "low", "twin", "high", "stages/__init__", "stages/a", "stages/b")
    for name in {*names, *files}:
        (package / f"{name}.py").write_text(files.get(name, ""))
    problems = floor_problems(package, {"low": 0, "twin": 0, "high": 1, "stages": 1}, "pkg")
    assert len(problems) == 1 and problem in problems[0]


def test_no_module_is_on_two_floors():
    listed = [name for names in FLOORS.values() for name in names.split()]
    assert len(listed) == len(set(listed))


def test_experiments_import_ml_collections_and_each_other_only():
    for file in sorted((ROOT / "experiments").glob("*.py")):
        _, foreign = imports(file, {})
        allowed = {"ml_collections", "__future__"} | (
            {"common", "quickstart", "llama3_8b"} - {file.stem}
        )
        assert foreign <= allowed | {"experiments"}, f"{file.name} imports {foreign - allowed}"
        assert "cai_jax" not in file.read_text("utf-8").replace("cai_jax: ", "")
    others = {file.stem for file in (ROOT / "experiments").glob("*.py")}
    for file in sorted((ROOT / "experiments" / "figures").glob("*.py")):
        _, foreign = imports(file, {})
        allowed = {"ml_collections"} | (others if file.stem == "scales" else {"scales"})
        assert foreign <= allowed, f"{file.name} imports {foreign - allowed}"


def test_no_module_is_long():
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text("utf-8").splitlines())
        for folder in ("cai_jax", "experiments", "tpu", "benchmarks")
        for file in (ROOT / folder).rglob("*.py")
    }
    long = {file: n for file, n in lengths.items() if n > LONGEST}
    assert not long, f"more than {LONGEST} lines; part them by purpose: {long}"


def test_importing_the_package_is_quick_and_starts_no_backend():
    program = """
        import time
        began = time.perf_counter()
        import cai_jax
        took = time.perf_counter() - began
        import sys
        heavy = {"jax", "tensorflow_datasets", "matplotlib", "orbax"} & set(sys.modules)
        assert not heavy, f"import cai_jax brings {heavy}"
        assert took < 1, f"import cai_jax takes {took:.1f} s"
    """
    run(program)


def test_no_module_works_at_import():
    """Imports every module: no backend starts, so nothing is put on a device or compiled."""
    names = [f"cai_jax.{name}" for name in modules(PACKAGE) if name]
    program = f"""
        import importlib, sys
        for name in {names!r}:
            importlib.import_module(name)
            xla = sys.modules.get("jax._src.xla_bridge")
            assert xla is None or not xla.backends_are_initialized(), f"{{name}} starts JAX"
        assert "tensorflow" not in sys.modules and "torch" not in sys.modules
    """
    run(program)


def run(program: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
