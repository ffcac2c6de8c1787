"""Rows of published files, JSON or CSV, gzipped or not, checked against a type."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from cai_jax import records

T = TypeVar("T")


def read(cls: type[T], path: str | os.PathLike, key: str | None = None) -> list[tuple[str, T]]:
    """("FILE, line N", row) for each row of a file, in its order.

    The file is CSV with a header if its name says so; else JSON: an object a line, or one array,
    or, with `key`, one object that holds the array under that key ("FILE, entry N", from 0).

    Args:
      cls: a frozen dataclass; its fields with a default may be absent from a row, and fields of a
        row that it lacks are ignored. Values of a CSV file are text.

    Raises:
      ValueError: the file, line and field of the first bad row, or an empty file.
      OSError: the file cannot be read.
    """
    return [(where, _typed(cls, row, where)) for where, row in untyped(path, key)]


def untyped(path: str | os.PathLike, key: str | None = None) -> list[tuple[str, Any]]:
    """The same rows before they are checked: whatever JSON holds."""
    if ".csv" in Path(path).suffixes:
        lines = _csv_rows(path)
    else:
        text = records.read_text(path)
        whole = key is not None or text.lstrip().startswith("[")
        lines = _entries(path, text, key) if whole else records.rows_of(text, path)
    found = list(lines)
    if not found:
        raise ValueError(f"{path}: the file holds no rows.")
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


def _entries(path: str | os.PathLike, text: str, key: str | None) -> Iterator[tuple[str, Any]]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from error
    if key is not None:
        entries = entries.get(key) if isinstance(entries, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f'{path}: the file must hold an object with a list "{key}".')
    for number, entry in enumerate(entries):
        yield f"{path}, entry {number}", entry


def _csv_rows(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(records.read_text(path), newline=""), strict=True)
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
