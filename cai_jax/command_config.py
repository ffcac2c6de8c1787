"""A config from the command line: the file that --config names, and what its flags change."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from cai_jax import storage


class UsageError(ValueError):
    """A command line that cannot be understood."""


def parse(arguments: list[str], needs_workdir: bool = True):
    """(ConfigDict, workdir, force) from flags; workdir is None where none is needed or given.

    Raises:
      UsageError: a flag or config key that does not exist, or a config file that cannot be read.
      StorageError: a workdir where nothing can be written.
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
            said = re.sub(r"invalid literal.*: ('.*')", r"\1 is no whole number", _sentence(error))
            said = re.sub(r"could not convert.*: ('.*')", r"\1 is no number", said)
            raise UsageError(f"{said}.") from error
    finally:
        for folder in folders:
            sys.path.remove(folder)
    if not values.workdir and needs_workdir:
        raise UsageError("--workdir=DIR is missing: the folder for records and checkpoints.")
    return config, storage.path(values.workdir) if values.workdir else None, values.force


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
