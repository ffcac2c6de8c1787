"""A whole run with a tiny model of each family that transformers saved, and its way back there."""

import architectures
import pytest
import tiny_run

pytestmark = pytest.mark.nightly  # a minute each, on two cores

FAMILIES = (
    "llama", "mistral", "mixtral with a window", "qwen2 with windows", "qwen3", "qwen3_moe",
    "gemma", "gemma2", "gemma3", "gpt_neox", "olmo2", "smollm3", "phi3",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_completes(family, tiny_cache, tmp_path):
    transformers = pytest.importorskip("transformers")
    experiment = tiny_run.write(tmp_path / "experiment")
    theirs = architectures.theirs(family, max_position_embeddings=4096)
    (tmp_path / "model").mkdir()
    architectures.save(theirs, tmp_path / "model")
    run, exported = tmp_path / "run", tmp_path / "exported"
    model = f"--config.model={tmp_path / 'model'}"
    ended = tiny_run.run_apart(experiment.command("run", run, model), tiny_cache)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (run / "summary.json").is_file()
    export = ["export-weights", f"--workdir={run}", "--stage=ppo", f"--to={exported}"]
    ended = tiny_run.run_apart(export, tiny_cache)
    assert ended.returncode == 0, ended.stderr
    trained = transformers.AutoModelForCausalLM.from_pretrained(exported)
    assert type(trained) is type(theirs)
    before, after = theirs.state_dict(), trained.state_dict()
    assert before.keys() == after.keys()
    moved = [name for name in before if not (before[name] == after[name]).all()]
    assert len(moved) > len(before) / 2, "training moves nearly every tensor"
