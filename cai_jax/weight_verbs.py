"""import-weights and export-weights: models to checkpoints of ours, and out for other software."""

from __future__ import annotations

import argparse
from pathlib import Path

import jax

from cai_jax import storage
from cai_jax.finished_models import (
    PREFERENCE_MODEL,
    STAGES,
    adapters_of_run,
    last_stage,
    trained_in_run,
)
from cai_jax.models.transformer import COMPUTE_DTYPES
from cai_jax.tools import ToolError, say, tool_parser
from cai_jax.weights.classifier import write_classifier
from cai_jax.weights.load import open_model, words_of
from cai_jax.weights.peft import CONFIG, write_adapters
from cai_jax.weights.safetensors import INDEX, SHARD_BYTES, WHOLE, write_directory
from cai_jax.weights.saved import PARAMS, fingerprint_as, write_checkpoint


def import_weights(arguments: list[str]) -> None:
    """Any model that `load_model` reads as a checkpoint of ours, which it reads too.

    Raises:
      ToolError: the directory holds a model, or is in a bucket.
      WeightsError: the source cannot be read.
      CheckpointError: the checkpoint cannot be written.
    """
    parser = tool_parser("import-weights", "Write a model as a checkpoint of ours.")
    parser.add_argument("--from", dest="model", required=True, metavar="NAME_OR_PATH")
    _target_options(parser)
    options = parser.parse_args(arguments)
    target = _target(options, holds=(PARAMS,), other=(WHOLE, INDEX))
    opened = open_model(options.model, say)
    tokenizer, _ = words_of(opened, options.model)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # which has room for all of it
        params = opened.params(options.dtype, None)
        fingerprint = fingerprint_as(opened.fingerprint, options.dtype)
        write_checkpoint(
            target, opened.config, params, tokenizer, opened.template, fingerprint,
            Path(options.model),
        )  # fmt: skip
    print(f"{options.model} written to {target}")


def export_weights(arguments: list[str]) -> None:
    """A run's model, finished or underway, or any other, in Hugging Face layout.

    Raises:
      ToolError: neither or both of --from and --workdir, or the directory holds a model.
      ValueError: there is no such model, stage or step.
    """
    parser = tool_parser("export-weights", "Write a model for other software to read.")
    parser.add_argument("--from", dest="model", metavar="NAME_OR_PATH", help="any model")
    parser.add_argument("--workdir", metavar="DIR", help="of a run")
    parser.add_argument(
        "--stage", choices=(*STAGES, PREFERENCE_MODEL), help="of --workdir; the last finished one"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="of --stage while it is underway: its checkpoint N"
    )
    parser.add_argument(
        "--adapters", action="store_true", help="of --workdir alone, for PEFT (config.lora)"
    )
    parser.add_argument(
        "--shard_gb", type=float, default=SHARD_BYTES / 1e9, metavar="GB", help="size of a file"
    )
    _target_options(parser)
    options = parser.parse_args(arguments)
    if (options.model is None) == (options.workdir is None):
        raise ToolError("give either --from=NAME_OR_PATH or --workdir=DIR of a run.")
    if options.model and (options.stage or options.step is not None):
        raise ToolError("--stage and --step belong to --workdir; leave them out.")
    if options.adapters and (options.step is not None or not options.workdir):
        raise ToolError("--adapters are of a finished stage of --workdir; leave the others out.")
    if options.step is not None and not options.stage:
        raise ToolError("--step is of a stage that is underway; give its --stage too.")
    if not options.shard_gb > 0:
        raise ToolError(f"--shard_gb is {options.shard_gb}; it must be above 0.")
    if options.adapters:
        return _export_adapters(options)
    target = _target(options, holds=(WHOLE, INDEX), other=(PARAMS,))
    written = {"dtype": options.dtype, "shard_bytes": int(options.shard_gb * 1e9)}
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # which has room for all of it
        if options.model:
            start, stage = options.model, None
            opened = open_model(start, say)
            params = opened.params(options.dtype, None)
        else:
            workdir = storage.path(options.workdir)
            stage = options.stage or last_stage(workdir)
            opened, params, start = trained_in_run(workdir, stage, options.step, say)
        tokenizer, _ = words_of(opened, start)
        write = write_classifier if stage == PREFERENCE_MODEL else write_directory
        bias = write(
            target, opened.config, params, tokenizer, opened.template, Path(start), **written
        )
    if bias:
        say(f"the scores of the written model are lower by {bias:.6g}, each of them")
    print(f"{start}{f' after {stage}' if stage else ''} written to {target}")


def _export_adapters(options: argparse.Namespace) -> None:
    """What the stages up to one have added to the run's start, as one adapter."""
    target = _target(options, holds=(CONFIG,), other=(PARAMS, WHOLE, INDEX))
    workdir = storage.path(options.workdir)
    stage = options.stage or last_stage(workdir)
    opened, adapters, start = adapters_of_run(workdir, stage, say)
    write_adapters(target, opened.config, adapters, start)
    print(f"adapters of {start} after {stage} written to {target}")


def _target_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, metavar="DIR")
    parser.add_argument("--dtype", choices=COMPUTE_DTYPES, default="float32")
    parser.add_argument("--force", action="store_true", help="replace the model in DIR")


def _target(options: argparse.Namespace, holds: tuple[str, ...], other: tuple[str, ...]) -> Path:
    """Where to write, if nothing is there that must not be replaced."""
    target = storage.path(options.to)
    if storage.in_bucket(target):
        raise ToolError(
            f"--to is {target}: models are written to disks; write it to one, then copy it with "
            "`gcloud storage cp --recursive`."
        )
    if any((target / name).exists() for name in other):
        raise ToolError(f"{target} holds a model in another layout; give another --to.")
    if any((target / name).exists() for name in holds) and not options.force:
        raise ToolError(f"{target} holds a model; give another --to, or --force to replace it.")
    return target
