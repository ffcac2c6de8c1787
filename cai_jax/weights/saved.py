"""A checkpoint of ours as a model: its params as Orbax keeps them, beside what a directory has."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

import jax

from cai_jax.mesh import DEFAULT_RULES, param_shardings
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig
from cai_jax.models.transformer import Params
from cai_jax.saved_params import CheckpointError, load_params, named, save_params, saved_shapes
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights.hugging_face import config_of, json_of, read_json
from cai_jax.weights.names import WeightsError
from cai_jax.weights.words import read_words, write_json, write_words

PARAMS = "params"
_FINGERPRINT = "cai_jax_fingerprint"  # in config.json


@dataclasses.dataclass(frozen=True)
class Saved:
    """A model of which all is known but the values of its params. As weights.stored.Stored.

    Attributes:
      directory: with config.json, tokenizer files and the folder PARAMS.
      fingerprint: of the model that it was made from.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    template: str | None
    directory: Path
    fingerprint: str

    def params(self, dtype: str, mesh: jax.sharding.Mesh | None) -> Params:
        """Reads the params; on a mesh each process its own devices' part.

        Raises:
          WeightsError: they are damaged, or another model's.
          ValueError: a dimension that the mesh does not divide, before anything is read.
        """
        layout = mesh and param_shardings(_shapes(self.config), mesh, DEFAULT_RULES)
        try:
            params, metadata = load_params(self.directory / PARAMS, layout)
        except CheckpointError as error:
            raise WeightsError(str(error)) from error
        if metadata.get("fingerprint") != self.fingerprint:
            raise WeightsError(
                f"{self.directory / PARAMS} was not written with the config.json beside it; "
                "import the model again"
            )
        return jax.tree.map(lambda x: x.astype(dtype), params)


def open_checkpoint(directory: Path) -> Saved:
    """Opens what `write_checkpoint` wrote; names and shapes are checked, no param is read.

    Raises:
      WeightsError: a file is missing or damaged, or the params are not those of config.json.
    """
    directory = Path(directory)
    if not (directory / "config.json").exists() and (directory / "inputs.json").exists():
        raise WeightsError(
            f"{directory} is a stage of a run; `cai-jax export-weights --workdir="
            f"{directory.parent} --stage={directory.name} --to=DIR` makes a model of it"
        )
    raw = read_json(directory / "config.json")
    config = config_of(raw, directory / "config.json")
    words = read_words(directory, raw, config.vocab_size)
    try:
        found = saved_shapes(directory / PARAMS)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    expected = {name: x.shape for name, x in named(_shapes(config)).items()}
    there = {name: x.shape for name, x in named(found).items()}
    for name in [*expected, *there]:
        if expected.get(name) != there.get(name):
            raise WeightsError(
                f"{directory / PARAMS} has {name} in shape {there.get(name)}, where config.json "
                f"asks for {expected.get(name)}; import the model again"
            )
    return Saved(config, *words, directory, str(raw.get(_FINGERPRINT, "")))


def write_checkpoint(
    directory: Path,
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    template: str | None,
    fingerprint: str,
    source: Path | None = None,
) -> None:
    """Writes a model that `open_checkpoint` reads, each param bit for bit.

    The params come last and appear whole: a directory that has them is complete.

    Args:
      params: all of one dtype, which is kept.
      fingerprint: of what they were read from.
      source: a directory whose tokenizer files are copied, as `words.write_words` says.

    Raises:
      CheckpointError: the params cannot be written.
      OSError: the directory cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (dtype,) = {str(x.dtype) for x in jax.tree.leaves(params)}
    write_words(directory, tokenizer, template, source)
    description = json_of(config, tokenizer) | {"torch_dtype": dtype, _FINGERPRINT: fingerprint}
    write_json(directory / "config.json", description)
    save_params(directory / PARAMS, params, {"fingerprint": fingerprint})


def fingerprint_as(fingerprint: str, dtype: str) -> str:
    """Of a model's params kept in `dtype`: the model's own in float32, which changes no value."""
    if dtype == "float32":
        return fingerprint
    return hashlib.sha256(f"{fingerprint} in {dtype}".encode()).hexdigest()[:16]


def _shapes(config: ModelConfig) -> Params:
    return jax.eval_shape(functools.partial(transformer.init, config), jax.random.key(0))
