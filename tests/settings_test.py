"""Settings: what a config must hold, and the sentence for each way to get it wrong."""

import copy
import sys
from pathlib import Path

import pytest

from cai_jax.settings import ConfigError, differences, run_settings

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def common():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        from common import get_config
    finally:
        sys.path.pop(0)
    return get_config().to_dict()


def changed(config: dict, key: str, value) -> dict:
    config = copy.deepcopy(config)
    *groups, last = key.split(".")
    place = config
    for name in groups:
        place = place[name]
    place[last] = value
    return config


def test_the_defaults_build(common):
    settings = run_settings(common)
    assert settings.revise.rounds == 4
    assert settings.compare.clamp == (0.0, 1.0)
    assert settings.ppo.value_optimizer.learning_rate == 1e-5
    assert settings.ppo.optimizer.learning_rate == 1e-6


def test_differences_from_the_defaults(common):
    config = changed(common, "seed", 3)
    config = changed(config, "ppo.updates", 6)
    config = changed(config, "ppo.optimizer.kind", "adafactor")
    config = changed(config, "compare.clamp", (0.4, 0.6))
    assert differences(config, common) == [
        "settings, where they differ from their (defaults):",
        "  compare: clamp (0.4, 0.6) ((0.0, 1.0))",
        "  ppo: optimizer.kind adafactor (adamw), updates 6 (1000)",
        "  seed: 3 (0)",
    ]
    assert differences(common, common) == []


def test_a_list_is_a_tuple_and_a_whole_number_a_float(common):
    # JSON and command-line overrides know neither tuples nor the difference between 1 and 1.0.
    settings = run_settings(changed(common, "compare.clamp", [0.4, 0.6]))
    assert settings.compare.clamp == (0.4, 0.6)
    settings = run_settings(changed(common, "ppo.gamma", 1))
    assert type(settings.ppo.gamma) is float


def test_settings_are_frozen(common):
    with pytest.raises(AttributeError):
        run_settings(common).ppo.updates = 3


def test_every_missing_key_is_named(common):
    def keys(group, prefix=""):
        for name, value in group.items():
            yield prefix + name
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{name}.")

    names = list(keys(common))
    assert len(names) > 80
    for name in names:
        config = copy.deepcopy(common)
        *groups, last = name.split(".")
        place = config
        for group in groups:
            place = place[group]
        del place[last]
        with pytest.raises(ConfigError, match=rf"^config\.{name} is missing"):
            run_settings(config)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("nosuch", 1, r"config\.nosuch is not a setting; known here: algorithm, compare"),
        ("ppo.nosuch", 1, r"config\.ppo\.nosuch is not a setting; known here: advantage"),
        ("ppo.optimizer.nosuch", 1, r"config\.ppo\.optimizer\.nosuch is not a setting"),
        ("ppo.updates", "x", r"config\.ppo\.updates is 'x'; it must be of type int"),
        ("ppo.updates", 2.0, r"config\.ppo\.updates is 2\.0; it must be of type int"),
        ("ppo.updates", True, r"config\.ppo\.updates is True; it must be of type int"),
        ("ppo.gamma", True, r"config\.ppo\.gamma is True; it must be of type float"),
        ("ppo.gamma", None, r"config\.ppo\.gamma is None"),
        ("ppo.gamma", float("nan"), r"config\.ppo\.gamma is nan"),
        ("ppo.kl_coefficient", -1.0, r"config\.ppo\.kl_coefficient is -1\.0"),
        ("ppo", 3, r"config\.ppo is 3; it must be a group of settings"),
        ("compare.clamp", 0.5, r"config\.compare\.clamp is 0\.5; it must be a tuple"),
        ("compare.clamp", (0.6, 0.4), r"config\.compare.*clamp is \(0\.6, 0\.4\)"),
        ("compare.clamp", ("a", "b"), r"config\.compare.*clamp"),
        ("compare.mode", "guess", r"config\.compare.*mode is 'guess'"),
        ("finetune.revisions", "first", r"config\.finetune.*revisions is 'first'"),
        ("finetune.remat", "some", r"config\.finetune.*remat is 'some'"),
        ("algorithm", "grpo", r"config\.algorithm is 'grpo'; it must be 'ppo' or 'dpo'"),
        ("dpo.beta", 0.0, r"config\.dpo: dpo\.beta is 0\.0; it must be above 0"),
        ("dpo.length", 0, r"config\.dpo\.length is 0; it must be at least 1"),
        ("dpo.remat", "some", r"config\.dpo.*remat is 'some'"),
        ("evaluate.best_of", 0, r"config\.evaluate\.best_of is 0; it must be at least 1"),
        ("ppo.remat", "some", r"config\.ppo.*remat is 'some'"),
        ("ppo.minibatches", 7, r"config\.ppo.*batch_size \(64\) is not a multiple"),
        ("ppo.updates", 0, r"config\.ppo\.updates is 0; it must be at least 1"),
        ("ppo.temperature", 0.0, r"config\.ppo.*temperature is 0\.0"),
        ("revise.rounds", 0, r"config\.revise\.rounds is 0; it must be at least 1"),
        ("revise.principles", -1, r"config\.revise\.principles is -1; it must be at least 0"),
        ("revise.critique", 1, r"config\.revise\.critique is 1; it must be of type bool"),
        ("revise.few_shots", -1, r"config\.revise\.few_shots is -1; it must be at least 0"),
        ("revise.top_p", 0.0, r"config\.revise\.top_p is 0\.0; it must be above 0"),
        ("revise.top_p", 1.1, r"config\.revise\.top_p is 1\.1; it must be in \[0, 1\]"),
        ("evaluate.temperature", -0.1, r"config\.evaluate\.temperature is -0\.1"),
        ("compare.chain_temperature", -0.1, r"config\.compare\.chain_temperature is -0\.1"),
        ("prompts.red_team_limit", -1, r"config\.prompts\.red_team_limit is -1"),
        ("dtype", "float64", r"config\.dtype is 'float64'"),
        ("finetune.optimizer.kind", "sgd", r"config\.finetune\.optimizer: .*sgd"),
        ("finetune.optimizer.b1", 1.0, r"config\.finetune\.optimizer: .*b1"),
        ("preference_model.ai_weight", -1.0, r"config\.preference_model\.ai_weight is -1\.0"),
        ("preference_model.halves", 1, r"config\.preference_model\.halves is 1; .* type bool"),
        ("ppo.stop_when_held_out_falls", -1, r"config\.ppo\.stop_when_held_out_falls is -1"),
        ("preference_model.members", 0, r"config\.preference_model\.members is 0; .* at least 1"),
        (
            "preference_model.held_out",
            1.5,
            r"preference_model\.held_out is 1\.5; .* in \[0, 1\]",
        ),
        ("ppo.deviations", 1.0, r"ppo\.deviations is 1\.0, and one .* raise .*\.members"),
        ("ppo.stop_when_held_out_falls", 3, r"is 3, and no held-out .*halves=True too"),
        ("ppo.advantage", "grpo", r"config\.ppo: ppo\.advantage is 'grpo'; .* gae, leave_one_out"),
        ("ppo.advantage", "leave_one_out", r"ppo\.samples is 1, .*raise ppo\.samples"),
        ("ppo.samples", 7, r"batch_size \(64\) is not a multiple of ppo\.samples \(7\)"),
        ("ppo.samples", 0, r"config\.ppo"),
        ("ppo.reward", "rating", r"value_init is 'preference_model', .*set ppo\.value_init='zero"),
        ("ppo.value_init", "zeros", r"config\.ppo: ppo\.value_init is 'zeros'"),
        ("ppo.compute_dtype", "float16", r"ppo\.compute_dtype is 'float16'; .* float32, bfloat16"),
        ("ppo.value_trunk", "two", r"config\.ppo: ppo\.value_trunk is 'two'"),
        ("ppo.value_trunk", "shared", r"value_init is 'preference_model', whose head"),
        ("ppo.value_coefficient", -0.1, r"config\.ppo\.value_coefficient is -0\.1"),
        ("ppo.kl_estimator", "k4", r"ppo\.kl_estimator is 'k4'; it must be one of k1, k2, k3"),
        ("ppo.kl_placement", "first", r"ppo\.kl_placement is 'first'"),
        ("ppo.kl_target", -1.0, r"config\.ppo\.kl_target is -1\.0; it must be at least 0"),
        ("ppo.truncated_score_at", "end", r"ppo\.truncated_score_at is 'end'"),
        ("ppo.truncation_penalty", -1.0, r"config\.ppo\.truncation_penalty is -1\.0"),
        ("ppo.baseline_responses", -1, r"config\.ppo\.baseline_responses is -1"),
        ("ppo.scale_score", True, r"ppo\.baseline_responses is 0, and ppo\.scale_score"),
        ("ppo.stop_update_at_kl", -0.1, r"config\.ppo\.stop_update_at_kl is -0\.1"),
        ("engine.slots", 0, r"config\.engine\.slots is 0; it must be at least 1"),
        ("mesh.data", 0, r"config\.mesh\.data is 0"),
        ("mesh.sequence", 0, r"config\.mesh\.sequence is 0"),
        ("mesh", {"data": 1, "fsdp": 1, "tensor": 1}, r"config\.mesh\.sequence is missing"),
    ],
)
def test_each_bad_value_has_its_sentence(common, key, value, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        run_settings(changed(common, key, value))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_an_adaptive_coefficient_has_somewhere_to_start_and_a_horizon(common):
    adaptive = changed(common, "ppo.kl_target", 6.0)
    assert run_settings(adaptive).ppo.kl_target == 6.0
    for key, value in (("ppo.kl_coefficient", 0.0), ("ppo.kl_horizon", 63)):
        with pytest.raises(ConfigError, match=r"config\.ppo: ppo\.kl_target is 6\.0, and .*64"):
            run_settings(changed(adaptive, key, value))


def test_ratings_leave_no_preference_model_to_watch(common):
    rated = changed(changed(common, "ppo.reward", "rating"), "ppo.value_init", "zero_head")
    assert run_settings(rated).rated and not run_settings(common).rated
    halves = changed(rated, "preference_model.halves", True)
    with pytest.raises(ConfigError, match=r"reward is 'rating', and .*halves=True"):
        run_settings(halves)
    assert not run_settings(changed(halves, "algorithm", "dpo")).rated
