"""The sandbox's models come from nothing, the same from one seed, and go on where they stopped."""

import dataclasses
import hashlib
import json
import random

import jax
import numpy as np
import pytest

from cai_jax import cli, sandbox_models
from cai_jax.progress import Progress
from cai_jax.sandbox import corpus
from cai_jax.sandbox_models import SIZES, Batches, Size, build, model_config, tokenizer
from cai_jax.weights.load import SHIPPED, load_model
from cai_jax.weights.safetensors import write_directory

LEAST = dataclasses.replace(SIZES["tiny"], embed=16, layers=1, heads=2, mlp=24, steps=20)


@pytest.fixture(scope="module")
def words():
    return tokenizer(0, 500)


def test_the_tokenizer_has_the_languages_words_as_pieces_and_every_byte(words):
    assert words.to_model() == tokenizer(0, 500).to_model()
    source = random.Random(9)
    texts = [corpus.document(source) for _ in range(200)]
    for text in [*texts, "é 日 \x00 [[[ \n\n\n"]:
        assert words.decode(words.encode(text)) == text
    tokens = sum(len(words.encode(text)) for text in texts)
    spaces = sum(len(text.split(" ")) for text in texts)
    assert tokens < 2 * spaces
    # What follows a turn's marker is read as it is where both are one text.
    assert words.encode("\n\nHuman: How") == words.encode("\n\nHuman:") + words.encode(" How")


def test_a_batch_hangs_on_its_number_and_the_seed_alone(words):
    def text(source):
        tokens = [words.bos_id, *words.encode(corpus.document(source)), words.end_ids[0]]
        return tokens, [True] * len(tokens)

    batches, again = Batches(text, "0", LEAST, 3), Batches(text, "0", LEAST, 3)
    last = again[2]
    for a, b in zip(jax.tree.leaves(batches[2]), jax.tree.leaves(last), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(batches) == 3
    assert (batches[1].tokens != batches[0].tokens).any()
    assert batches[0].real.mean() > 0.6  # texts are not split over rows
    with pytest.raises(IndexError):
        batches[3]


def test_shipped_models_are_those_of_their_card_and_small():
    folders = sorted(SHIPPED.iterdir())
    assert [folder.name for folder in folders] == [
        "sandbox-small", "sandbox-small-pretrained", "sandbox-tiny", "sandbox-tiny-pretrained",
    ]  # fmt: skip
    for folder in folders:
        card = json.loads((folder / "made.json").read_text())
        assert (
            hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
            == (card["sha256"])
        )
        found = load_model(folder.name)  # from anywhere
        assert found.config == model_config(
            Size(**{f.name: card[f.name] for f in dataclasses.fields(Size)})
        )
        assert folder.name.startswith(f"sandbox-{card['size']}")
    assert sum(file.stat().st_size for file in SHIPPED.glob("*/*")) < 8e6


def test_one_folder_is_of_one_size_and_seed(tmp_path, capsys):
    (tmp_path / "made.json").write_text('{"size": "small"}')
    assert cli.main(["sandbox", "--size=tiny", f"--workdir={tmp_path}"]) == 2
    assert "is of another size or seed; give another --workdir" in capsys.readouterr().err
    assert cli.main(["sandbox", "--size=tiny"]) == 2
    assert "give --size=SIZE and --workdir=DIR, or --texts=DIR" in capsys.readouterr().err


def test_sizes_are_what_the_readme_says():
    counts = {
        name: sum(
            x.size
            for x in jax.tree.leaves(
                jax.eval_shape(
                    lambda key, size=size: sandbox_models.transformer.init(model_config(size), key),
                    jax.random.key(0),
                )
            )
        )
        for name, size in SIZES.items()
    }
    assert 1e5 < counts["tiny"] < counts["small"] / 3
    assert counts["small"] < counts["medium"] / 3 < counts["large"] / 6 < 1.1e6


@pytest.mark.slow
def test_training_goes_on_where_it_stopped_and_leaves_models_that_load(words, tmp_path, capsys):
    found = {}
    for folder in ("whole", "again"):
        with Progress() as progress:
            models = build(LEAST, words, tmp_path / folder, 0, progress)
            if folder == "again":  # only the first of the two, then from the beginning
                next(models)
                models = build(LEAST, words, tmp_path / folder, 0, progress)
            found[folder] = dict(models)
    assert found["whole"].keys() == {"pretrained", "helpful"}
    for a, b in zip(jax.tree.leaves(found["whole"]), jax.tree.leaves(found["again"]), strict=True):
        np.testing.assert_array_equal(a, b)
    write_directory(tmp_path / "model", model_config(LEAST), found["whole"]["helpful"], words, None)
    model = load_model(tmp_path / "model")
    assert model.tokenizer.encode("How do I") == words.encode("How do I")
    assert model.config.embed == 16
    out = capsys.readouterr().out
    assert "training pretrained" in out and "training helpful" in out
