"""Writes the model once in the layouts that peers read, and checks that all of them compute it.

python benchmarks/prepare.py [--model NAME_OR_PATH]      prints the folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import gguf
import numpy as np
from peers import Setup

from cai_jax import load_model
from cai_jax.weights import names
from cai_jax.weights.fetch import cache_folder, fetch
from cai_jax.weights.load import Model
from cai_jax.weights.safetensors import write_directory

MODEL = "smollm2-135m-instruct"
TEXT = "The keys were not on the table, so she looked under the bed and behind the old radio."
# Largest difference of a logit from ours that passes for rounding. With SmolLM2 transformers
# differed by 1.3e-4 and 0.55, llama.cpp by 0.014 and 0.27.
TOLERANCES = {"float32": 0.03, "bfloat16": 1.5}
_KINDS = {
    "float32": gguf.GGMLQuantizationType.F32,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
}
_FILE_TYPES = {"float32": gguf.LlamaFileType.ALL_F32, "bfloat16": gguf.LlamaFileType.MOSTLY_BF16}


def prepare(name: str = MODEL) -> Path:
    """The folder with all layouts, written and checked on first use.

    Raises:
      ValueError: a peer's logits are not ours.
    """
    source = fetch(name)
    folder = cache_folder() / "benchmarks" / name
    marker = folder / "checked.json"
    if marker.exists() and json.loads(marker.read_text())["source"] == source.name:
        return folder
    model = load_model(name)
    write_directory(
        folder / "hugging_face", model.config, model.params, model.tokenizer, model.format.template
    )
    for dtype in _KINDS:
        write_gguf(Setup.of(folder, dtype, 2).gguf[dtype], source, model, dtype)
    differences = check(folder, model)
    marker.write_text(json.dumps({"source": source.name, "differences": differences}))
    return folder


def write_gguf(target: Path, source: Path, model: Model, dtype: str) -> None:
    """The model as a GGUF file whose vocabulary and settings are those of `source`."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub)
    writer.add_file_type(_FILE_TYPES[dtype])
    heads = {"attn_q.weight": model.config.heads, "attn_k.weight": model.config.kv_heads}
    for name, tensor in names.disassemble(model.params, model.config, "gguf"):
        tensor = tensor.astype(np.float32, copy=False)
        kind = name.split(".", 2)[-1]
        if kind in heads:
            tensor = interleaved(tensor, heads[kind])
        # Norms stay float32, as converters leave them.
        stored = _KINDS[dtype] if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's row order of q and k: the two halves of each head in turn.

    Args:
      rows: float32[heads * C, D], a head's first half before its second.
    """
    total, embed = rows.shape
    halves = rows.reshape(heads, 2, total // heads // 2, embed)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(total, embed))


def check(folder: Path, model: Model) -> dict[str, float]:
    """Largest difference of a logit from ours, by peer and dtype, of the peers that are installed.

    Raises:
      ValueError: it is larger than rounding explains.
    """
    tokens = model.tokenizer.encode(TEXT)
    ours = np.asarray(model.logits([tokens])[0])
    found = {}
    for library, module in (
        ("transformers", "transformers_peer"),
        ("llama_cpp", "llama_cpp_peer"),
    ):
        if importlib.util.find_spec(library) is None:
            continue
        logits = importlib.import_module(f"peers.{module}").logits
        for dtype, most in TOLERANCES.items():
            theirs = logits(Setup.of(folder, dtype, threads=2), tokens)
            difference = float(np.abs(theirs[:, : ours.shape[1]] - ours).max())
            found[f"{library} {dtype}"] = difference
            if not difference <= most:
                raise ValueError(
                    f"{library} in {dtype} computes another model: its logits differ from ours by "
                    f"{difference:.3g}, and {most} is what rounding may do."
                )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    print(prepare(parser.parse_args().model))
