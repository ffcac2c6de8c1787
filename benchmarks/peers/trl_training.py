"""TRL's trainers: finetuning and reward modelling."""

from __future__ import annotations

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from training_work import B1, B2, CLIP_NORM, EPS, LEARNING_RATE, Work
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from peers import Setup
from peers.gate import Gate
from peers.stepping import Stepping
from peers.transformers_peer import load

ENDLESS = 10**6


def arguments(folder: str) -> dict:
    """The settings that all trainers share; what TRL turns on by itself to save memory is off."""
    return {
        "output_dir": folder, "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "adam_beta1": B1, "adam_beta2": B2, "adam_epsilon": EPS, "max_grad_norm": CLIP_NORM,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip


def numbers(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer for the trainers, which need one to pad: words spell the ids, 0 is padding."""
    words = Tokenizer(WordLevel({str(n): n for n in range(vocab_size)}, unk_token="0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="0", eos_token="1", unk_token="0", padding_side="left"
    )


def scorer(setup: Setup):
    """A reward model of the same weights whose head is zero, as ours begins."""
    model = AutoModelForSequenceClassification.from_pretrained(
        setup.directory, num_labels=1, dtype=getattr(torch, setup.dtype)
    )
    torch.nn.init.zeros_(model.score.weight)
    return model


class Pausing(TrainerCallback):
    """Calls `pause` after each step."""

    def __init__(self, pause):
        self._pause = pause

    def on_step_end(self, args, state, control, **others):
        self._pause()


class _Trained(Stepping):
    """A trainer's own loop, stopped after each step; its batches are all the rows, shuffled."""

    def __init__(self, trainer_class, config_class, model, setup: Setup, rows: Dataset):
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        losses = self.losses

        class Noting(trainer_class):
            def training_step(self, *args, **others):
                loss = super().training_step(*args, **others)
                losses.append(loss.item())
                return loss

        self._trainer = Noting(
            model=model,
            args=config_class(
                **arguments(self._folder.name), per_device_train_batch_size=len(rows),
                max_steps=ENDLESS,
            ),
            train_dataset=rows,
            processing_class=numbers(model.config.vocab_size),
        )  # fmt: skip

        def loop(pause) -> None:
            torch.set_num_threads(setup.threads)  # a setting of each thread
            self._trainer.add_callback(Pausing(pause))
            self._trainer.train()

        self._gate = Gate(loop)

    def step(self) -> None:
        self._gate.step()


class SL(_Trained):
    """SFTTrainer."""

    def __init__(self, setup: Setup, work: Work):
        from trl import SFTConfig, SFTTrainer

        rows = Dataset.from_dict({"input_ids": work.rows})
        super().__init__(SFTTrainer, SFTConfig, load(setup), setup, rows)


class PM(_Trained):
    """RewardTrainer."""

    def __init__(self, setup: Setup, work: Work):
        from trl import RewardConfig, RewardTrainer

        torch.set_num_threads(setup.threads)
        rows = Dataset.from_dict({"chosen_ids": work.rows[::2], "rejected_ids": work.rows[1::2]})
        super().__init__(RewardTrainer, RewardConfig, scorer(setup), setup, rows)
