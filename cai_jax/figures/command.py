"""`cai-jax figures --figure=N --runs=DIR,DIR --workdir=DIR`: the papers' figures from records."""

from __future__ import annotations

import argparse
from typing import NoReturn

from cai_jax import storage
from cai_jax.figures import (
    absolute_harmfulness,
    critiques,
    elo_by_parameters,
    elo_by_sequences,
    elo_plane,
    harm_identification,
    hhh_accuracy,
    hhh_original,
    label_calibration,
    number_of_principles,
    over_optimisation,
    pm_by_generator,
    pm_calibration,
)
from cai_jax.figures.folders import FigureError, read

FIGURES = {
    2: elo_plane.draw,
    3: elo_by_parameters.draw,
    4: hhh_accuracy.draw,
    5: pm_by_generator.draw,
    6: number_of_principles.draw,
    7: critiques.draw,
    8: elo_by_sequences.draw,
    9: label_calibration.draw,
    10: absolute_harmfulness.draw,
    11: hhh_original.draw,
    12: harm_identification.draw,
    "calibration": pm_calibration.draw,
    "over-optimisation": over_optimisation.draw,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FigureError(f"{self.prog}: {message}; `{self.prog} --help` lists what it takes.")


def figures(arguments: list[str]) -> None:
    """Draws one figure of the paper from the records of runs and evaluations.

    Raises:
      FigureError: a figure that is none, or records that do not hold what it shows.
      OSError: a file that cannot be written.
    """
    parser = _Parser(
        prog="cai-jax figures",
        description="Draw a figure of the paper beside the paper's own values.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--figure",
        type=lambda word: int(word) if word.isdecimal() else word,
        required=True,
        metavar="N",
        help="2 to 12, or of the companion paper: calibration, over-optimisation of the "
        "preference model",
    )
    parser.add_argument("--runs", required=True, metavar="DIR,DIR", help="where the records are")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="for the files")
    options = parser.parse_args(arguments)
    if options.figure not in FIGURES:
        raise FigureError(
            f"there is no figure {options.figure}; known are {', '.join(map(str, FIGURES))}."
        )
    folders = [read(storage.path(run.strip())) for run in options.runs.split(",")]
    stem = f"figure{options.figure}" if isinstance(options.figure, int) else options.figure
    for path in FIGURES[options.figure](folders, storage.path(options.workdir) / stem):
        print(path)
