"""The command line: cai-jax VERB --config=FILE.py --workdir=DIR [--config.key=value ...]."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

USAGE = """cai-jax: Constitutional AI, from a constitution to an assistant.

  cai-jax VERB --config=experiments/quickstart.py --workdir=runs/quickstart [--config.KEY=VALUE]

A whole run, or one stage of it; each continues where a former run stopped:
  run           every stage below, then the table
  revise        sample responses to red-team prompts, criticise and revise them
  finetune      SL-CAI: finetune on the revisions
  compare       let the feedback model choose between pairs of responses
  train-pm      train the preference model on its choices
  train-rl      RL-CAI: PPO against the preference model, or with --config.algorithm=dpo DPO on
                the choices themselves
  evaluate      compare the start, SL-CAI and RL-CAI on held-out prompts; with
                --config=experiments/evaluations.py, any one model on the published evaluations;
                with experiments/snapshots.py, the snapshots of several runs, by any judge
  figures       draw the figures again, from the records; with --figure=N --runs=DIR,DIR and no
                --config, a figure of the paper from the records of runs and evaluations, or with
                --figure=calibration or over-optimisation one of the companion paper's
  --force       with a stage whose settings changed: throw it away and make it again
  --relabel     with compare: make the labels again from the answers in the records, no model

On its own, with the experiment of its name (experiments/label_ablation.py and so on):
  label-ablation    ask about the same pairs in every label mode, print how good the labels are
  generate-prompts  sample new prompts from lists of others, filter them, write them for a run
  harmfulness       train a scorer of absolute harmfulness on rated red-team attempts, and score the
                    snapshots of runs (figure 10)
  human-preferences train a preference model on people's comparisons alone and test it on others;
                    it then judges runs: evaluate --config.preference_model=WORKDIR

Before a run, without a workdir:
  doctor        show one example of every stage token by token, and check that all fits together

Without a config; each takes --help:
  chat            talk: chat --model=NAME_OR_PATH, or chat --workdir=DIR [--stage=finetune|ppo|dpo]
  fetch           download and check a model or a data set: fetch [NAME]
  data            list the data sets, or describe one: data [NAME] [--manual_dir=DIR]
  tensorboard     a run's curves as TensorBoard event files: --workdir=DIR [--to=DIR]
  wandb           a run's curves to Weights & Biases: --workdir=DIR [--project=NAME]
  constitution    check FILE | diff FILE FILE | import --from=DIR --to=FILE.yaml
  import-weights  a known model or a .gguf file to Hugging Face layout: --from=MODEL --to=DIR
  export-weights  a run's model to Hugging Face layout: --workdir=DIR [--stage=NAME] --to=DIR
"""

STAGES = ("revise", "finetune", "compare", "train-pm", "train-rl", "evaluate", "figures")
ALONE = ("label-ablation", "generate-prompts", "harmfulness", "human-preferences")
TOOLS = ("chat", "fetch", "data", "constitution", "import-weights", "export-weights")
CURVES = ("tensorboard", "wandb")


class UsageError(ValueError):
    """A command line that cannot be understood."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit code, 2 where the user has something to mend."""
    if argv is None:
        from cai_jax.memory import with_huge_pages

        with_huge_pages()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb == "figures" and any(word.startswith("--figure") for word in rest):
            from cai_jax.figures.command import figures

            figures(rest)
        elif verb == "run" or verb in STAGES:
            _run(verb, rest)
        elif verb in ALONE:
            _alone(verb, rest)
        elif verb == "doctor":
            _doctor(rest)
        elif verb in CURVES:
            from cai_jax import curves

            getattr(curves, verb)(rest)
        elif verb in TOOLS:
            from cai_jax import tools

            if verb == "chat":
                keep_compiled_programs()
            getattr(tools, verb.replace("-", "_"))(rest)
        else:
            known = ", ".join(("run", *STAGES, *ALONE, "doctor", *CURVES, *TOOLS))
            raise UsageError(f"there is no verb '{verb}'; known verbs: {known}.")
    except KeyboardInterrupt as stopped:  # or SIGTERM, of training.preemption
        said = str(stopped) or "Stopped"
        print(f"\n{said}; run the same command again to continue.", file=sys.stderr)
        return getattr(stopped, "exit_code", 130)
    except (ValueError, OSError) as error:
        if os.environ.get("CAI_JAX_TRACEBACK"):
            raise
        print(f"cai-jax: {error}", file=sys.stderr)
        return 2
    return 0


def _run(verb: str, arguments: list[str]) -> None:
    if verb == "compare" and "--relabel" in arguments:
        return _relabel([a for a in arguments if a != "--relabel"])
    config, workdir, force = parse(arguments)
    from cai_jax import pipeline, report
    from cai_jax.memory import give_back
    from cai_jax.mesh import start_multihost
    from cai_jax.progress import Progress
    from cai_jax.run import Run
    from cai_jax.settings import differences, run_settings
    from cai_jax.training.preemption import ending
    from cai_jax.workdir import Workdir

    if verb == "evaluate" and "runs" in config:
        from cai_jax.snapshot_evaluation import compare_runs as evaluate
    elif verb == "evaluate" and "evaluations" in config:
        from cai_jax.evaluations import evaluate_model as evaluate
    else:
        evaluate = None
    if evaluate:
        keep_compiled_programs()
        start_multihost()
        with ending(), Progress() as progress:
            return evaluate(config, workdir, force, progress)
    settings = run_settings(config)
    keep_compiled_programs()
    start_multihost()
    verbs: dict[str, Callable] = {
        "revise": pipeline.revise,
        "finetune": pipeline.finetune,
        "compare": pipeline.compare,
        "train-pm": pipeline.train_pm,
        "train-rl": pipeline.train_rl,
        "evaluate": report.evaluate,
        "figures": report.figures,
    }
    defaults = defaults_of(arguments) if verb == "run" else None
    with ending(), Progress() as progress:
        if defaults is not None:
            for line in differences(config.to_dict(), defaults):
                progress.say(line)
        run = Run(settings, Workdir(workdir, force), progress)
        for name in STAGES if verb == "run" else (verb,):
            verbs[name](run)
            give_back()
        if verb in ("run", "evaluate"):
            report.table(run)


def _relabel(arguments: list[str]) -> None:
    config, workdir, _ = parse(arguments)
    from cai_jax.progress import Progress
    from cai_jax.relabel import relabel
    from cai_jax.settings import run_settings
    from cai_jax.workdir import Workdir

    with Progress() as progress:
        relabel(run_settings(config), Workdir(workdir), progress)


def _alone(verb: str, arguments: list[str]) -> None:
    config, workdir, force = parse(arguments)
    from cai_jax import (
        generate_prompts,
        harmfulness_scores,
        human_preferences,
        label_ablation,
    )
    from cai_jax.mesh import start_multihost
    from cai_jax.progress import Progress
    from cai_jax.training.preemption import ending
    from cai_jax.workdir import Workdir

    runs = {
        "label-ablation": label_ablation.run,
        "generate-prompts": generate_prompts.run,
        "harmfulness": harmfulness_scores.run,
        "human-preferences": human_preferences.run,
    }
    keep_compiled_programs()
    start_multihost()
    with ending(), Progress() as progress:
        runs[verb](config, Workdir(workdir, force), progress)


def _doctor(arguments: list[str]) -> None:
    config, _, _ = parse(arguments, needs_workdir=False)
    from cai_jax.doctor.checks import doctor
    from cai_jax.pipeline import read_data
    from cai_jax.settings import run_settings

    settings = run_settings(config)
    data = read_data(settings)
    keep_compiled_programs()
    doctor(settings, data.red_team, data.helpful, data.label_pairs)


def parse(arguments: list[str], needs_workdir: bool = True):
    """(ConfigDict, workdir, force) from flags; workdir is None where none is needed or given.

    Raises:
      UsageError: a flag or config key that does not exist, or a config file that cannot be read.
    """
    from absl import flags

    given = _config_given(arguments)
    if given is None:
        raise UsageError("--config=FILE.py is missing, such as experiments/quickstart.py.")
    file = Path(given.split(":")[0])
    if not file.is_file():
        raise UsageError(f"--config: there is no file {file}.")
    folders = _import_folders(file)
    sys.path[:0] = folders
    try:
        config, _ = _parsed([f"--config={given}"])
        if hasattr(config, "keys"):  # what stands for a file that was not found raises here
            _check_keys(config, arguments)
        else:
            raise UsageError(f"{file}: get_config() gives {config!r}, which is no ConfigDict.")
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # a config file is code and can fail in any way
        raise UsageError(f"{file} cannot be used: {_sentence(error)}.") from error
    else:
        try:
            config, values = _parsed(arguments)
        except flags.Error as error:
            raise UsageError(f"{_sentence(error)}.") from error
    finally:
        for folder in folders:
            sys.path.remove(folder)
    if not values.workdir and needs_workdir:
        raise UsageError("--workdir=DIR is missing: the folder for records and checkpoints.")
    return config, Path(values.workdir) if values.workdir else None, values.force


def defaults_of(arguments: list[str]) -> dict | None:
    """The settings of the common.py that arguments' config imports; None where there is none."""
    file = Path(_config_given(arguments).split(":")[0])
    common = Path(_import_folders(file)[-1]) / "common.py"
    return _parsed([f"--config={common}"])[0].to_dict() if common.is_file() else None


def _config_given(arguments: list[str]) -> str | None:
    return next((a.split("=", 1)[1] for a in arguments if a.startswith("--config=")), None)


def _import_folders(file: Path) -> list[str]:
    """Where an experiment imports from: its own folder, and the nearest above with a common.py."""
    above = file.resolve().parents
    shared = next((folder for folder in above if (folder / "common.py").is_file()), above[0])
    return list(dict.fromkeys((str(above[0]), str(shared))))


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache folder, so that a restart compiles nothing."""
    import jax

    from cai_jax.weights.fetch import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _parsed(arguments: list[str]):
    """(config, flag values) of arguments that hold --config.

    Raises:
      flags.Error: a flag that does not exist or cannot be read.
      UsageError: a stray word.
    """
    from absl import flags
    from ml_collections import config_flags

    argv = ["cai-jax", *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "experiment", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_bool("force", False, "remake changed stages", flag_values=values)
    if stray := values(argv)[1:]:
        raise UsageError(f"'{stray[0]}' is not understood; flags are written --name=value.")
    return values.config, values


def _check_keys(config: Mapping, arguments: list[str]) -> None:
    """Raises UsageError where a flag sets what the config does not have."""
    for argument in arguments:
        if argument.startswith("--config."):
            place = config
            for name in argument.removeprefix("--config.").split("=")[0].split("."):
                known = sorted(place.keys()) if hasattr(place, "keys") else []
                if name not in known:
                    there = f"known there: {', '.join(known)}" if known else "nothing is below it"
                    raise UsageError(f"{argument}: there is no setting '{name}'; {there}.")
                place = place[name]


def _sentence(error: BaseException) -> str:
    """The line of an error that says what is wrong: a wrapped traceback's last, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or isinstance(error, KeyError | SystemExit):
        return " ".join([type(error).__name__, *lines])
    line = lines[-1].removeprefix("ValueError: ") if "Traceback" in str(error) else lines[0]
    return line.rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
