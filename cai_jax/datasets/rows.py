"""Rows of published files, JSON lines or CSV, gzipped or not, checked against a type."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Iterator
from typing import Any, TypeVar

from cai_jax import records

T = TypeVar("T")


def read(cls: type[T], path: str | os.PathLike) -> list[tuple[str, T]]:
    """("FILE, line N", row) for each line of a JSON-lines file, or of a CSV file with a header.

    Args:
      cls: a frozen dataclass; its fields with a default may be absent from a row, and fields of a
        row that it lacks are ignored. Values of a CSV file are text.

    Raises:
      ValueError: the file, line and field of the first bad row, or an empty file.
      OSError: the file cannot be read.
    """
    lines = _csv_rows(path) if ".csv" in str(path).lower() else records.read_rows(path)
    found = [(where, _typed(cls, row, where)) for where, row in lines]
    if not found:
        raise ValueError(f"{path}: the file holds no rows; fetch it again.")
    return found


def _typed(cls: type[T], row: Any, where: str) -> T:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: the row must be a JSON object.")
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in row:
            values[field.name] = row[field.name]
        elif field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        else:
            raise ValueError(f"{where}: the row lacks the field {field.name}.")
    return records.from_json(cls, values, where)


def _csv_rows(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, str]]]:
    text = records.read_text(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 0
    try:
        for row in reader:
            line, where = reader.line_num, f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(
                    f"{where}: the row has more or fewer fields than the header's "
                    f"{len(reader.fieldnames)}; put quotes around text that holds commas."
                )
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {line + 1}: not valid CSV ({error}).") from error
