"""The public data sets through TFDS: array_record files, read without TensorFlow, at random.

One builder serves all of them: its features are made from the type of a data set's rows. What a
record type can hold, it can store; a field that may be None is a sequence of no or one value.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds

from cai_jax import records
from cai_jax.conversation import Conversation
from cai_jax.datasets import cache
from cai_jax.datasets.card import Dataset
from cai_jax.datasets.files import cache_folder


class Public(tfds.core.GeneratorBasedBuilder):
    """Splits of a data set; a row's fields are those of `dataset.row`. `rows` fill it once."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # as in cai_prompts

    def __init__(self, dataset: Dataset, rows: dict[str, list], **kwargs):
        self._dataset, self._rows = dataset, rows
        name = dataset.name.replace("/", "-")
        super().__init__(config=tfds.core.BuilderConfig(name=name), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._dataset.name}: {self._dataset.what}",
            features=tfds.features.FeaturesDict(
                {name: _feature(hint) for name, hint in _fields(self._dataset.row).items()}
            ),
            disable_shuffling=True,  # rows keep the order of the file
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(rows) for split, rows in self._rows.items()}

    def _generate_examples(self, rows: list):
        hints = _fields(self._dataset.row)
        for number, row in enumerate(rows):
            plain = records.to_json(row)
            yield number, {name: _encode(hint, plain[name]) for name, hint in hints.items()}


class Rows(Sequence):
    """The typed rows of one split; each is read and decoded when it is asked for."""

    def __init__(self, source: Sequence, row: type):
        self._source, self._row = source, row

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        stored = self._source[index % len(self)]
        hints = _fields(self._row)
        return records.from_json(self._row, {f: _decode(h, stored[f]) for f, h in hints.items()})


def load(dataset: Dataset, folder: Path | None = None) -> dict[str, Rows]:
    """Split -> rows of a data set's leak-free splits, prepared in the cache folder on first use.

    A half without rows is left out.

    Args:
      folder: of the publisher's files; by default where `cai-jax fetch` keeps them.

    Raises:
      FileNotFoundError: the files are not there; says how to get them.
      ValueError: a bad row, with file, line and field.
      OSError: the cache folder cannot be written.
    """
    source = Path(folder) if folder else dataset.home
    files = list(dataset.paths(source).values()) or [source]
    target = cache_folder() / "datasets" / _content(dataset, files) / dataset.name.split("/")[-1]
    rows = {} if target.exists() else dataset.splits(source)
    filled = {split: found for split, found in rows.items() if found}
    builder = cache.prepared(functools.partial(_builder, dataset, filled), target, dataset.name)
    return {
        split: Rows(builder.as_data_source(split=split), dataset.row)
        for split in builder.info.splits
    }


def _builder(dataset: Dataset, rows: dict[str, list], folder: Path) -> Public:
    return Public(dataset, rows, data_dir=folder, file_format="array_record")


def _content(dataset: Dataset, files: list[Path]) -> str:
    digest = hashlib.sha256(f"{Public.VERSION} {tfds.__version__} {dataset.name}".encode())
    digest.update(repr(sorted(_fields(dataset.row))).encode())
    for file in files:
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _fields(row: type) -> dict[str, Any]:
    hints = typing.get_type_hints(row)
    return {field.name: hints[field.name] for field in dataclasses.fields(row)}


def _feature(hint: Any) -> Any:
    features = tfds.features
    if hint is Conversation:
        return features.Sequence({"role": features.Text(), "text": features.Text()})
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is tuple:
        return features.Sequence(_feature(typing.get_args(hint)[0]))
    if hint is str or typing.get_origin(hint) is Literal:
        return features.Text()
    return features.Scalar({int: np.int64, float: np.float64, bool: np.bool_}[hint])


def _encode(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return [] if value is None else [_encode(typing.get_args(hint)[0], value)]
    return value


def _decode(hint: Any, value: Any) -> Any:
    if hint is Conversation:
        turns = zip(value["role"], value["text"], strict=True)
        return [{"role": role.decode(), "text": text.decode()} for role, text in turns]
    if isinstance(hint, types.UnionType):
        item = typing.get_args(hint)[0]
        return _decode(item, value[0]) if len(value) else None
    if typing.get_origin(hint) is tuple:
        return [_decode(typing.get_args(hint)[0], item) for item in value]
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if hasattr(value, "item") else value
