"""import-weights and export-weights, as typed: bit for bit there and back, and in transformers."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights_test
from fakes import CHATML, tiny_model
from safetensors.numpy import load_file
from weights_test import CONFIG, random_params, write_gguf

from cai_jax import cli
from cai_jax.models import heads, transformer
from cai_jax.saved_params import save_params
from cai_jax.training import optimizer, state
from cai_jax.training.checkpoint import Checkpoints
from cai_jax.training.optimizer import OptimizerConfig
from cai_jax.weights.load import load_model
from cai_jax.weights.safetensors import write_directory

TOKENS = np.array([[5, 80, 81, 200, 7, 9], [90, 91, 92, 93, 94, 95]])
OPTIMIZER = OptimizerConfig(
    kind="adamw", learning_rate=1e-3, schedule="constant", warmup_steps=1, weight_decay=0.0,
    b1=0.9, b2=0.95, eps=1e-8, clip_norm=1.0, moment_dtype="float32",
)  # fmt: skip


@pytest.fixture
def typed(capsys):
    """typed(arguments) -> (exit code, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A chat model in Hugging Face layout, bfloat16, in several files."""
    folder, model = tmp_path_factory.mktemp("models") / "chat", tiny_model(chat=True)
    write_directory(
        folder, model.config, model.params, model.tokenizer, CHATML,
        dtype="bfloat16", shard_bytes=20_000,
    )  # fmt: skip
    return folder


def moved(params, by):
    """Params of the same shapes that are others."""
    return jax.tree.map(lambda x: x + jnp.float32(by), params)


@pytest.fixture(scope="module")
def run(directory, tmp_path_factory):
    """A run that has finetuned and has a preference model, and whose PPO is underway."""
    folder, params = tmp_path_factory.mktemp("run"), tiny_model(chat=True).params
    (folder / "config.json").write_text(
        json.dumps({"model": str(directory), "feedback_model": "", "dtype": "float32"})
    )
    save_params(folder / "finetune" / "params", moved(params, 0.01), {})
    scorer = heads.with_scalar_head(params)
    scorer["scalar_head"]["kernel"] += np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
    save_params(folder / "preference_model" / "params", scorer, {})
    for stage in ("finetune", "preference_model"):
        (folder / stage / "inputs.json").write_text("{}")
        (folder / stage / "done.json").write_text("{}")
    opt = optimizer.make(OPTIMIZER, 8)
    checkpoints = Checkpoints(folder / "ppo" / "checkpoints", keep=2)
    for step in (2, 4):
        policy = heads.beside_scalar_head(moved(params, step / 100))
        value = moved(scorer, step)
        states = {"policy": state.create(policy, opt), "value": state.create(value, opt)}
        checkpoints.save(step, states, {"update": step, "kl_coefficient": 0.1})
    checkpoints.close()
    checkpoints = Checkpoints(folder / "dpo" / "checkpoints", keep=2)
    checkpoints.save(3, state.create(moved(params, 0.07), opt), {})
    checkpoints.close()
    return folder


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def tensors(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_is_exact(typed, directory, tmp_path, dtype):
    ours, back = tmp_path / "ours", tmp_path / "back"
    chosen = f"--dtype={dtype}"
    assert typed("import-weights", f"--from={directory}", f"--to={ours}", chosen)[0] == 0
    assert sorted(p.name for p in ours.iterdir()) == [
        "chat_template.jinja", "config.json", "params", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    theirs, mine = load_model(directory), load_model(ours)
    same(theirs.params, mine.params)
    assert (theirs.config, theirs.format) == (mine.config, mine.format)
    assert theirs.tokenizer.end_ids == mine.tokenizer.end_ids
    assert (theirs.fingerprint == mine.fingerprint) == (dtype == "float32")
    code, out, _ = typed("export-weights", f"--from={ours}", f"--to={back}", "--dtype=bfloat16")
    assert (code, out) == (0, f"{ours} written to {back}\n")
    expected, found = tensors(directory), tensors(back)
    assert expected.keys() == found.keys()
    for name in expected:
        assert expected[name].dtype == found[name].dtype == jnp.bfloat16
        assert expected[name].tobytes() == found[name].tobytes(), name
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (directory / name).read_bytes() == (back / name).read_bytes(), name


def test_a_checkpoint_of_ours_on_a_mesh_and_in_bfloat16(typed, directory, tmp_path):
    from cai_jax.mesh import MESH_AXES, layout, make_mesh

    ours = tmp_path / "ours"
    assert typed("import-weights", f"--from={directory}", f"--to={ours}")[0] == 0
    mesh = make_mesh(dict.fromkeys(MESH_AXES, 1) | {"fsdp": -1})
    expected = load_model(directory, "bfloat16", mesh)
    found = load_model(ours, "bfloat16", mesh)
    same(expected.params, found.params)
    assert layout(expected.params) == layout(found.params)


def test_a_run_in_transformers(typed, run, tmp_path):
    """SL-CAI's logits, in one file and in several, are transformers' of what was written."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = tiny_model(chat=True)
    sl_cai = dataclasses.replace(model, params=moved(model.params, 0.01))
    expected = np.asarray(sl_cai.logits(jnp.asarray(TOKENS)))
    for name, more in (("one", ()), ("several", ("--shard_gb=0.00004",))):
        out = tmp_path / name
        code, said, _ = typed("export-weights", f"--workdir={run}", f"--to={out}", *more)
        assert code == 0 and "after finetune written to" in said
        assert (len(list(out.glob("*.safetensors"))) > 1) == (name == "several")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        with torch.no_grad():
            found = theirs(torch.tensor(TOKENS)).logits.numpy()
        np.testing.assert_allclose(found, expected, atol=2e-4)
        words = transformers.AutoTokenizer.from_pretrained(out)
        text = "Hé, <b>x</b>"
        assert words.encode(text, add_special_tokens=False) == model.tokenizer.encode(text)
        assert words.chat_template == CHATML
        same(load_model(out).params, moved(model.params, 0.01))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors(out).values())


def test_the_preference_model_in_transformers(typed, run, tmp_path):
    """The score of each row at its last token, whatever padding follows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "pm"
    code, said, err = typed(
        "export-weights", f"--workdir={run}", "--stage=preference_model", f"--to={out}"
    )
    assert (code, err) == (0, "") and "after preference_model" in said
    loaded, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert type(loaded).__name__ == "LlamaForSequenceClassification"
    assert not any(report["missing_keys"]) and not any(report["unexpected_keys"]), report
    assert loaded.config.num_labels == 1 and loaded.config.pad_token_id not in (257, 260)
    model = tiny_model(chat=True)
    scorer = heads.with_scalar_head(model.params)
    scorer["scalar_head"]["kernel"] += np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
    lengths, pad = (6, 3), model.tokenizer.pad_id
    padded = np.array(
        [[*row[:n], *[pad] * (6 - n)] for row, n in zip(TOKENS, lengths, strict=True)]
    )
    padded[1, 2] = 260  # an end of turn at the end is no padding
    mask = np.arange(6) < np.array(lengths)[:, None]
    hidden = transformer.hidden_states(
        model.config, scorer, jnp.asarray(padded), jnp.arange(6) * jnp.ones((2, 1), jnp.int32),
        jnp.asarray(mask, jnp.int32),
    )  # fmt: skip
    expected = np.asarray(heads.scalar(scorer, heads.last_token(hidden, jnp.asarray(mask))))
    with torch.no_grad():
        found = loaded.eval()(torch.tensor(padded), attention_mask=torch.tensor(mask)).logits
        unmasked = loaded(torch.tensor(padded)).logits  # where rows end is seen by the pad alone
    assert abs(expected).max() > 0.3
    np.testing.assert_allclose(found.numpy()[:, 0], expected, atol=2e-4)
    np.testing.assert_allclose(unmasked.numpy()[:, 0], expected, atol=2e-4)
    words = transformers.AutoTokenizer.from_pretrained(out)
    assert words.pad_token_id == pad


def test_a_bias_is_told_and_left_out(typed, run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    scorer = heads.with_scalar_head(tiny_model(chat=True).params)
    scorer["scalar_head"]["bias"] += 0.25
    save_params(other / "preference_model" / "params", scorer, {})
    code, _, err = typed(
        "export-weights", f"--workdir={other}", "--stage=preference_model", f"--to={tmp_path / 'x'}"
    )
    assert code == 0 and "are lower by 0.25, each of them" in err


@pytest.mark.parametrize(
    ("stage", "step", "by"), [("ppo", 4, 0.04), ("ppo", 2, 0.02), ("dpo", 3, 0.07)]
)
def test_a_stage_underway(typed, run, tmp_path, stage, step, by):
    before = sorted(run.rglob("*"))
    out = tmp_path / "out"
    command = ("export-weights", f"--workdir={run}", f"--stage={stage}", f"--step={step}")
    assert typed(*command, f"--to={out}")[0] == 0
    same(load_model(out).params, moved(tiny_model(chat=True).params, by))
    assert sorted(run.rglob("*")) == before  # the trainer's folder is as it was


def test_gguf_comes_out_too(typed, tmp_path, monkeypatch):
    """Any model can be written for other software, not a run's alone; its turns end there too."""
    monkeypatch.setattr(weights_test, "TEMPLATE", CHATML.replace("<|im_end|>", "<|im_start|>"))
    path = write_gguf(tmp_path / "m.gguf", random_params(CONFIG))
    assert typed("export-weights", f"--from={path}", f"--to={tmp_path / 'out'}")[0] == 0
    same(load_model(tmp_path / "out").params, load_model(path).params)
    ends = json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"]
    assert ends == list(load_model(path).tokenizer.end_ids) and 1 in ends


def test_nothing_is_replaced_unasked(typed, directory, tmp_path):
    ours, out = tmp_path / "ours", tmp_path / "out"
    for verb, target in (("import-weights", ours), ("export-weights", out)):
        command = (verb, f"--from={directory}", f"--to={target}")
        assert typed(*command)[0] == 0
        code, _, err = typed(*command)
        assert code == 2 and "--force" in err
        assert typed(*command, "--force")[0] == 0
    code, _, err = typed("export-weights", f"--from={directory}", f"--to={ours}", "--force")
    assert code == 2 and "another layout" in err


def test_a_smaller_model_leaves_no_old_file(typed, directory, tmp_path):
    out = tmp_path / "out"
    command = ("export-weights", f"--from={directory}", f"--to={out}", "--force")
    assert typed(*command, "--shard_gb=0.00004")[0] == 0
    assert typed(*command)[0] == 0
    assert [p.name for p in out.glob("*.safetensors*")] == ["model.safetensors"]
    same(load_model(out).params, load_model(directory).params)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("export-weights --to=x", "give either --from"),
        ("export-weights --from=a --workdir=b --to=x", "give either --from"),
        ("export-weights --from=a --stage=ppo --to=x", "belong to --workdir"),
        ("export-weights --workdir=RUN --step=4 --to=x", "give its --stage too"),
        ("export-weights --workdir=RUN --stage=ppo --to=x", "no finished 'ppo'"),
        ("export-weights --workdir=RUN --stage=ppo --to=x", "--step=N"),
        ("export-weights --workdir=RUN --stage=ppo --step=3 --to=x", "it has those of 2, 4"),
        ("export-weights --workdir=RUN --stage=finetune --step=3 --to=x", "it has none"),
        ("export-weights --workdir=RUN --to=x --shard_gb=0", "above 0"),
        ("export-weights --workdir=RUN --to=x --dtype=int8", "invalid choice"),
        ("export-weights --workdir=RUN --to=s3://b/x", "neither a local path nor gs://"),
        ("import-weights --from=RUN/finetune --to=x", "export-weights --workdir="),
        ("import-weights --from=nowhere --to=x", "no model at 'nowhere'"),
    ],
)
def test_bad_input_is_one_sentence(typed, run, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(*command.replace("RUN", str(run)).split(" "))
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1 and err.startswith("cai-jax: ")
    assert not (tmp_path / "x").exists()


def test_a_bucket_is_refused_for_models(typed, directory):
    pytest.importorskip("gcsfs")
    code, _, err = typed("export-weights", f"--from={directory}", "--to=gs://b/x")
    assert code == 2 and "written to disks" in err and "gcloud storage cp" in err


def test_checkpoints_of_ours_that_lie_are_refused(typed, directory, tmp_path):
    ours = tmp_path / "ours"
    assert typed("import-weights", f"--from={directory}", f"--to={ours}")[0] == 0
    raw = json.loads((ours / "config.json").read_text())

    def refused(words, **change):
        (ours / "config.json").write_text(json.dumps(raw | change))
        with pytest.raises(ValueError, match=words):
            load_model(ours)

    refused("has layers/down/kernel in shape", intermediate_size=64)
    refused("has lm_head/kernel in shape", tie_word_embeddings=True)
    refused("was not written with the config.json", cai_jax_fingerprint="0" * 16)
    refused("and only", model_type="mamba")
    (ours / "config.json").write_text(json.dumps(raw))
    for victim in (ours / "params" / "params").rglob("*"):
        if victim.is_file():
            victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(ours)
