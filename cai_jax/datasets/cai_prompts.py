"""The shipped prompts as a TFDS dataset: array_record files, read without TensorFlow.

`prepared("red_team")` gives a builder ready for `as_data_source(split="train")`. The prepared files
lie in the user's cache folder under the content hash of the shipped files, so an edited file is
prepared anew. Nothing here touches the network.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import tensorflow_datasets as tfds

from cai_jax import records
from cai_jax.datasets import cache
from cai_jax.datasets.files import cache_folder

FOLDER = Path(__file__).parent
SPLITS = {
    "red_team": ("train", "test"),
    "helpful": ("train", "test"),
    "label_pairs": ("test",),
}
_EXTRA_FIELDS = {
    "red_team": ("category",),
    "helpful": ("category", "good", "poor"),
    "label_pairs": ("kind", "better", "worse"),
}


class CaiPrompts(tfds.core.GeneratorBasedBuilder):
    """Red-team prompts, helpful prompts and clear-cut label pairs written for cai_jax.

    Configs `red_team` and `helpful` have the splits train and test, `label_pairs` has test. A row
    holds "id", "turns" ({"role", "text"} sequences) and text fields of its config, all UTF-8 bytes.
    """

    VERSION = tfds.core.Version("1.0.0")
    # tfds 4.9.10 would look for download checksums beside this file, through importlib_resources,
    # which it does not declare; nothing is downloaded here.
    code_path = None
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SPLITS]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        extra = _EXTRA_FIELDS[self.builder_config.name]
        return tfds.core.DatasetInfo(
            builder=self,
            description="Prompts and pairs of the cai_jax quickstart.",
            features=tfds.features.FeaturesDict(
                {
                    "id": text,
                    "turns": tfds.features.Sequence({"role": text, "text": text}),
                    **dict.fromkeys(extra, text),
                }
            ),
            disable_shuffling=True,  # rows keep the order of the shipped file
        )

    def _split_generators(self, dl_manager):
        return {s: self._generate_examples(s) for s in SPLITS[self.builder_config.name]}

    def _generate_examples(self, split: str):
        kind = self.builder_config.name
        fields = ("id", "turns", *_EXTRA_FIELDS[kind])
        for number, (where, row) in enumerate(records.read_rows(FOLDER / f"{kind}.jsonl")):
            missing = [field for field in fields if field not in row]
            if missing:
                raise ValueError(f"{where}: the row lacks the field {missing[0]}.")
            if row.get("split", "test") not in SPLITS[kind]:
                raise ValueError(f"{where}: split must be one of {', '.join(SPLITS[kind])}.")
            if row.get("split", "test") == split:
                yield number, {field: row[field] for field in fields}


def content_hash() -> str:
    """First 12 hex digits of the sha256 of the shipped files and the builder's version."""
    digest = hashlib.sha256(f"{CaiPrompts.VERSION} {tfds.__version__}".encode())
    for kind in SPLITS:
        data = (FOLDER / f"{kind}.jsonl").read_bytes()
        digest.update(f"\n{kind} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:12]


def prepared(kind: str) -> CaiPrompts:
    """The builder of "red_team", "helpful" or "label_pairs", its files prepared on first use.

    Raises:
      ValueError: a shipped file is malformed, naming file and line.
      OSError: the cache folder cannot be written.
    """
    folder = cache_folder() / "datasets" / content_hash() / kind
    return cache.prepared(functools.partial(_builder, kind), folder, "the shipped prompts")


def rows(kind: str, split: str) -> list[dict]:
    """All rows of a split in the shipped order, text decoded, turns as a list of dicts."""
    return [_plain(row) for row in prepared(kind).as_data_source(split=split)]


def _builder(kind: str, folder: Path) -> CaiPrompts:
    return CaiPrompts(config=kind, data_dir=folder, file_format="array_record")


def _plain(row: dict) -> dict:
    turns = zip(row["turns"]["role"], row["turns"]["text"], strict=True)
    plain = {key: value.decode() for key, value in row.items() if key != "turns"}
    return plain | {"turns": [{"role": r.decode(), "text": t.decode()} for r, t in turns]}
