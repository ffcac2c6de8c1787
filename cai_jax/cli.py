"""The command line: cai-jax VERB --config=FILE.py --workdir=DIR [--config.key=value ...]."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, MutableMapping

from cai_jax import outages, storage
from cai_jax.command_config import UsageError, defaults_of, parse

USAGE = """cai-jax: Constitutional AI, from a constitution to an assistant.

  cai-jax VERB --config=experiments/quickstart.py --workdir=runs/quickstart [--config.KEY=VALUE]

A whole run, or one stage of it; each continues where a former run stopped:
  run           every stage below, then the table and a report to look at
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
  plan          compile a config's programs for a TPU topology, without one: memory, time, cost,
                what to change where they do not fit: --topology=v5e-16 [--slices=N] [--price=P];
                with --search, which mesh is fastest

Without a config; each takes --help:
  report          runs as one HTML file, which needs no network: --workdir=DIR [DIR ...]
  serve           the same in a browser while a run goes on, and a page where people compare
                  answers blind: --workdir=DIR [DIR ...] [--host=ADDRESS] [--port=N]
  chat            talk: chat --model=NAME_OR_PATH, or chat --workdir=DIR [--stage=rl] and beside it
                  [--versus=finetune]; /critique and /revise run the constitution's steps
  fetch           download and check a model or a data set: fetch [NAME]
  data            list the data sets, or describe one: data [NAME] [--manual_dir=DIR]
  tensorboard     a run's curves as TensorBoard event files: --workdir=DIR [--to=DIR]
  wandb           a run's curves to Weights & Biases: --workdir=DIR [--project=NAME]
  constitution    check FILE | diff FILE FILE | import --from=DIR --to=FILE.yaml
  sandbox         a little world where harm is known: train its models from nothing, or write its
                  texts again: --size=tiny|small|medium|large --workdir=DIR
  sandbox-scores  what is true of the answers of a run of experiments/sandbox.py: --workdir=DIR
  import-weights  any model to a checkpoint of ours, whose slices each host reads for itself:
                  --from=MODEL --to=DIR [--dtype=bfloat16]
  export-weights  to safetensors for other software, a run's model: --workdir=DIR --to=DIR
                  [--stage=finetune|ppo|dpo|preference_model] [--step=N]; or any: --from=MODEL
"""

STAGES = ("revise", "finetune", "compare", "train-pm", "train-rl", "evaluate", "figures")
ALONE = ("label-ablation", "generate-prompts", "harmfulness", "human-preferences")
TOOLS = ("fetch", "data", "constitution")
SANDBOX = ("sandbox", "sandbox-scores")
WEIGHTS = ("import-weights", "export-weights")
CURVES = ("tensorboard", "wandb")
REVIEW = ("report", "serve")


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    2 where the user has something to mend, 75 where the same command may do better later.
    """
    if argv is None:
        from cai_jax.memory import with_huge_pages

        with_huge_pages()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _threads_for_virtual_devices(os.environ)
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
        elif verb == "plan":
            from cai_jax.plan.command import plan

            return plan(rest)
        elif verb in CURVES:
            from cai_jax import curves

            getattr(curves, verb)(rest)
        elif verb in WEIGHTS:
            from cai_jax import weight_verbs

            getattr(weight_verbs, verb.replace("-", "_"))(rest)
        elif verb in REVIEW:
            from cai_jax.review import verbs

            getattr(verbs, verb)(rest)
        elif verb in SANDBOX:
            from cai_jax import sandbox_verbs

            keep_compiled_programs()
            getattr(sandbox_verbs, verb.replace("-", "_"))(rest)
        elif verb in TOOLS:
            from cai_jax import tools

            getattr(tools, verb)(rest)
        elif verb == "chat":
            from cai_jax.chat import chat

            keep_compiled_programs()
            chat(rest)
        else:
            others = (*REVIEW, *CURVES, *TOOLS, *WEIGHTS, *SANDBOX)
            known = ", ".join(("run", *STAGES, *ALONE, "doctor", "plan", "chat", *others))
            raise UsageError(f"there is no verb '{verb}'; known verbs: {known}.")
    except KeyboardInterrupt as stopped:  # or SIGTERM, of training.preemption
        said = str(stopped) or "Stopped"
        print(f"\n{said}; run the same command again to continue.", file=sys.stderr)
        return getattr(stopped, "exit_code", 130)
    except Exception as error:
        explained = storage.explained(error)
        code = outages.exit_code(explained)
        if code == 1 or os.environ.get("CAI_JAX_TRACEBACK"):
            raise
        print(f"cai-jax: {explained}", file=sys.stderr)
        return code
    return 0


def _run(verb: str, arguments: list[str]) -> None:
    if verb == "compare" and "--relabel" in arguments:
        return _relabel([a for a in arguments if a != "--relabel"])
    launched = time.time()
    config, workdir, force = parse(arguments)
    from cai_jax import hosts, pipeline, report
    from cai_jax.decoding.stats import total
    from cai_jax.goodput import Ledger, sentences, wall_time
    from cai_jax.memory import give_back
    from cai_jax.progress import Progress
    from cai_jax.review.report import FILE as REPORT
    from cai_jax.review.report import write_report
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
        _meet(config, workdir)
        with hosts.leaving(), ending(), Progress() as progress:
            return evaluate(config, workdir, force, progress)
    settings = run_settings(config)
    _meet(config, workdir)
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
    with hosts.leaving(), ending(), Progress() as progress:
        differing = [] if defaults is None else differences(config.to_dict(), defaults)
        for line in differing:
            progress.say(line)
        run = Run(settings, Workdir(workdir, force), progress)
        if defaults is not None:
            run.workdir.note("differences.json", differing)
        ledger = Ledger(run.workdir.path, launched)
        for name in STAGES if verb == "run" else (verb,):
            with ledger.stage(name):
                verbs[name](run)
            give_back()
        if verb in ("run", "evaluate"):
            report.table(run)
        ledger.end(progress.first_step)
        if verb == "run":
            path = run.workdir.path
            for line in sentences(wall_time(path), total(path)):
                progress.say(line)
            hosts.once(lambda: write_report([path], path / REPORT))
            progress.say(f"✓ report: open {path / REPORT} in a browser")


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
        hosts,
        human_preferences,
        label_ablation,
    )
    from cai_jax.progress import Progress
    from cai_jax.training.preemption import ending
    from cai_jax.workdir import Workdir

    runs = {
        "label-ablation": label_ablation.run,
        "generate-prompts": generate_prompts.run,
        "harmfulness": harmfulness_scores.run,
        "human-preferences": human_preferences.run,
    }
    _meet(config, workdir)
    with hosts.leaving(), ending(), Progress() as progress:
        runs[verb](config, Workdir(workdir, force), progress)


def _doctor(arguments: list[str]) -> None:
    config, _, _ = parse(arguments, needs_workdir=False)
    from cai_jax.doctor.checks import doctor
    from cai_jax.run_texts import read_data
    from cai_jax.settings import run_settings

    settings = run_settings(config)
    data = read_data(settings)
    keep_compiled_programs()
    doctor(settings, data.red_team, data.helpful, data.label_pairs)


def _meet(config, workdir: str) -> None:
    """Joins all hosts of a run and checks that they run the same thing."""
    import jax

    from cai_jax import hosts
    from cai_jax.workdir import commit, digest

    keep_compiled_programs()
    hosts.start()
    hosts.check_devices()
    facts = {
        "the config": digest(config.to_dict()),
        "the workdir's name": str(workdir),
        "the code's commit": commit() or "none",
        "JAX's version": jax.__version__,
        "how many devices they have": str(jax.local_device_count()),
    }
    hosts.agree(facts, "start the same command, from the same code, on hosts of one kind.")


def _threads_for_virtual_devices(environment: MutableMapping[str, str]) -> None:
    """Gives XLA for CPU threads enough for the devices that it is told to make of one.

    A thread that meets the other devices' waits for them. XLA has as many threads as there are
    cores or devices, and with a model of 135M parameters on 4 devices of 2 cores all of them waited
    and none was left to bring the last device to the meeting.
    """
    asked = re.search(
        r"xla_force_host_platform_device_count=(\d+)", environment.get("XLA_FLAGS", "")
    )
    devices = int(asked[1] if asked else environment.get("JAX_NUM_CPU_DEVICES") or 1)
    if devices > 1:
        environment.setdefault("NPROC", str(4 * devices))  # what XLA takes for the number of cores


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache folder, so that a restart compiles nothing."""
    import jax

    from cai_jax.weights.fetch import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    sys.exit(main())
