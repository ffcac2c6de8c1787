"""Every setting of a run with its default, once. An experiment changes what it is about."""

from ml_collections import ConfigDict


def optimizer(learning_rate: float) -> ConfigDict:
    """AdamW at a constant rate, the paper's schedule."""
    return ConfigDict(
        {
            "kind": "adamw",
            "learning_rate": learning_rate,
            "schedule": "constant",
            "warmup_steps": 4,
            "weight_decay": 0.0,
            "b1": 0.9,
            "b2": 0.95,
            "eps": 1e-8,
            "clip_norm": 1.0,
            "moment_dtype": "float32",
        }
    )


def get_config() -> ConfigDict:
    """The paper's settings where it gives them (2212.08073, 2204.05862), ours where it does not."""
    config = ConfigDict()
    config.seed = 0
    config.constitution = "constitutions/default.yaml"

    # A name that `cai-jax fetch` knows, a .gguf file or a directory in Hugging Face layout. `model`
    # answers, criticises and revises, and is where SL-CAI starts; `feedback_model` labels and is
    # where the preference model starts. Empty means the same as `model`.
    config.model = "smollm2-135m-instruct"
    config.feedback_model = ""
    config.dtype = "float32"
    # Layers' kernels of models that are not trained, the feedback model as it labels and PPO's
    # reference, in 8 bits: half of bfloat16's memory, and what it costs is in docs/models.md.
    config.frozen_int8 = False

    # What makes RL-CAI of SL-CAI: "ppo" against the preference model, or "dpo" on the comparisons
    # themselves. The preference model is trained either way; evaluation scores with it.
    config.algorithm = "ppo"

    # Adapters of this rank beside frozen kernels are trained in place of all params, in every
    # stage that trains, and scaled by alpha / rank; 0 trains all params. They want learning rates
    # ten times as high.
    config.lora = ConfigDict({"rank": 0, "alpha": 32.0})

    # Files of prompts, of people's comparisons by helpfulness and of clear-cut pairs, one JSON
    # object a line (README, "Your own"); empty takes what ships with the project. Limits cut each
    # list, that of held-out helpful prompts the held-out comparisons too; 0 takes all.
    config.prompts = ConfigDict(
        {
            "red_team": "",
            "helpful": "",
            "held_out_red_team": "",
            "held_out_helpful": "",
            "helpful_comparisons": "",
            "held_out_comparisons": "",
            "label_pairs": "",
            "red_team_limit": 0,
            "helpful_limit": 0,
            "held_out_red_team_limit": 0,
            "held_out_helpful_limit": 0,
            "helpful_comparisons_limit": 0,
            "label_pairs_limit": 0,
        }
    )

    # The decoding engine: Scripts in progress at a time, and the longest context of one, in tokens,
    # a prefix that all Scripts share left out. Fewer run at a time where memory_gb, what their
    # cache may take on a device, holds fewer; 0 stands for most of what is free. With few_sizes
    # calls are padded to fewer sizes: less to compile, right for a run of minutes.
    config.engine = ConfigDict(
        {"slots": 32, "max_length": 1024, "memory_gb": 0.0, "few_sizes": False}
    )

    # Mesh of devices; -1 takes what is left. Rows of a batch are split over slice, data and fsdp,
    # params over fsdp, sequence and tensor. On several TPU slices `slice` is their number;
    # `sequence` splits the tokens of a row in training, for contexts too long for one device.
    config.mesh = ConfigDict({"slice": 1, "data": 1, "fsdp": -1, "sequence": 1, "tensor": 1})

    # Without `critique` a response is revised directly. `principles` says how many of the
    # constitution's are drawn from, the first so many in an order that the seed draws; 0 is all.
    config.revise = ConfigDict(
        {
            "rounds": 4,
            "critique": True,
            "principles": 0,
            "few_shots": 3,
            "response_tokens": 128,
            "critique_tokens": 128,
            "revision_tokens": 128,
            "temperature": 1.0,
            "top_p": 1.0,
            "helpful_samples": 2,
            "shard_size": 512,
        }
    )
    # Here and below: a batch goes through the model in so many `microbatches` to one step of the
    # optimiser; `compute_dtype` is that of activations and products, float32 or bfloat16.
    config.finetune = ConfigDict(
        {
            "revisions": "all",
            "epochs": 1,
            "batch_size": 32,
            "microbatches": 1,
            "length": 1024,
            "save_every": 100,
            "remat": "full",
            "compute_dtype": "float32",
            "optimizer": optimizer(1e-5),
        }
    )
    # `mode` is multiple_choice, chain_of_thought, rating or contrastive; `principles` is drawn, all
    # or together; `target` is soft or hard. The settings from `principles` to `per_token`, and
    # they alone, can be changed afterwards by `cai-jax compare --relabel` without the model.
    config.compare = ConfigDict(
        {
            "response_tokens": 128,
            "temperature": 1.0,
            "top_p": 1.0,
            "mode": "multiple_choice",
            "few_shots": 4,
            "plain_text": False,
            "chain_tokens": 128,
            "chain_temperature": 1.0,
            "principles": "drawn",
            "both_orders": False,
            "chains": 1,
            "target": "soft",
            "clamp": (0.0, 1.0),
            "sharpness": 1.0,
            "per_token": False,
            "shard_size": 512,
        }
    )
    # With `halves` PPO optimises a model that knows half of the prompts, and one that knows the
    # others scores the same responses, to tell over-optimisation; PPO then holds that model too.
    config.preference_model = ConfigDict(
        {
            "epochs": 1,
            "batch_size": 32,
            "microbatches": 1,
            "length": 1024,
            "ai_weight": 1.0,
            "human_weight": 1.0,
            "held_out": 0.05,
            "members": 1,
            "halves": False,
            "save_every": 100,
            "remat": "full",
            "compute_dtype": "float32",
            "optimizer": optimizer(1e-5),
        }
    )
    # What the papers leave open, and why these defaults: docs/ppo.md. `reward` is preference_model
    # or rating, `advantage` gae or leave_one_out (with `samples` to a prompt). 0 turns off
    # `baseline_responses`, `stop_update_at_kl` (nats a token), `kl_target` (nats a response) and
    # `stop_when_held_out_falls`; the last needs `halves`. `stock_phrase` is counted in the
    # responses where it is not empty.
    config.ppo = ConfigDict(
        {
            "updates": 1000,
            "batch_size": 64,
            "samples": 1,
            "prompt_tokens": 512,
            "response_tokens": 128,
            "temperature": 1.0,
            "reward": "preference_model",
            "deviations": 0.0,
            "truncated_score_at": "end_token",
            "truncation_penalty": 0.0,
            "baseline_responses": 0,
            "scale_score": False,
            "epochs": 1,
            "minibatches": 4,
            "microbatches": 1,
            "stop_update_at_kl": 0.0,
            "kl_coefficient": 0.001,
            "kl_target": 0.0,
            "kl_horizon": 10_000,
            "kl_estimator": "k1",
            "kl_placement": "tokens",
            "advantage": "gae",
            "whiten": True,
            "gamma": 1.0,
            "lam": 0.95,
            "clip": 0.2,
            "value_init": "preference_model",
            "value_trunk": "own",
            "value_coefficient": 0.1,
            "value_clip": 0.2,
            "stock_phrase": "",
            "stop_when_held_out_falls": 0,
            "save_every": 50,
            "remat": "full",
            "compute_dtype": "float32",
            "optimizer": optimizer(1e-6),
            "value_optimizer": optimizer(1e-5),
        }
    )
    # Of Rafailov et al. (2305.18290): beta and the learning rate.
    config.dpo = ConfigDict(
        {
            "epochs": 1,
            "batch_size": 32,
            "microbatches": 1,
            "length": 1024,
            "beta": 0.1,
            "ai_weight": 1.0,
            "human_weight": 1.0,
            "save_every": 100,
            "remat": "full",
            "compute_dtype": "float32",
            "optimizer": optimizer(1e-6),
        }
    )
    # With `best_of` over 1 SL-CAI gets a column more: of so many answers the one that the
    # preference model scores highest.
    config.evaluate = ConfigDict(
        {
            "samples": 1,
            "response_tokens": 128,
            "temperature": 1.0,
            "top_p": 1.0,
            "best_of": 1,
            "batch_size": 16,
            "resamples": 1000,
        }
    )
    return config
