"""What kernels in 8 bits cost: perplexity, labels, and what a reference says of a policy's samples.

python benchmarks/frozen_int8.py [--model NAME] [--json FILE]

The model in float32 beside itself with `int8.quantized` and beside itself in bfloat16, on texts
that ship with the project: the perplexity of helpful answers, clear-cut pairs labelled by
principles of the default constitution in both orders, and the log-probabilities of answers that the
float32 model samples to held-out prompts, as PPO's reference gives them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from cai_jax import constitution as constitutions
from cai_jax import load_model, prompts
from cai_jax.datasets import prompts as shipped
from cai_jax.decoding import Engine
from cai_jax.decoding.respond import respond
from cai_jax.encoding import prompt_tokens
from cai_jax.evaluation.snapshots import perplexities, response_logprobs
from cai_jax.models import int8
from cai_jax.models.transformer import Params, frozen
from cai_jax.prompts import CHOICES
from cai_jax.script import Choose, Script
from cai_jax.weights.load import Model

PRINCIPLES = 4  # that each pair is labelled by
SAMPLED = 64  # tokens of an answer, at most
BATCH = 8


def main() -> None:
    """Prints a table: a row for each way to hold the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", metavar="NAME_OR_PATH")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load_model(options.model, "float32")
    held = {
        "float32": model.params,
        "bfloat16": frozen(model.params, "bfloat16"),
        "int8": int8.quantized(model.params),
    }
    answers = sampled(model)
    measured = {name: measure(model, params, answers) for name, params in held.items()}
    rows = [row(name, found, measured["float32"]) for name, found in measured.items()]
    print("| weights | MB | perplexity | other choice | label moves by | nats a token | KL |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['weights']} | {r['megabytes']:.0f} | {r['perplexity']:.3f} | "
            f"{r['other_choice']:.1%} of {r['askings']} | {r['label_moves']:.4f} | "
            f"{r['nats_off']:.4f} | {r['kl']:.5f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def sampled(model: Model) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) in tokens, of held-out prompts of both kinds."""
    rows = [row for kind in ("red_team", "helpful") for row in shipped.prompts(kind, "test")]
    replies = respond(
        Engine(model, 32), model.format, [(row.id, row.conversation) for row in rows],
        stream="int8", seed=0, samples=1, max_new_tokens=SAMPLED, temperature=1.0,
    )  # fmt: skip
    return [
        (prompt_tokens(model.tokenizer, model.format, row.conversation), list(reply.tokens))
        for row, (reply,) in zip(rows, replies, strict=True)
    ]


def measure(model: Model, params: Params, answers: list) -> dict[str, np.ndarray]:
    """What a model with these params says of the texts, the pairs and the answers."""
    texts = [(c.prompt, c.good) for c in shipped.helpful_comparisons("test")]
    words = model.tokenizer, model.format
    nats, tokens = perplexities(model.config, params, *words, texts, BATCH)
    return {
        "bytes": np.array(sum(x.nbytes for x in jax.tree.leaves(params))),
        "perplexity": np.exp((nats * tokens).sum() / tokens.sum()),
        "labels": labels(model, params),
        "logprobs": np.concatenate(response_logprobs(params, model.config, answers, BATCH, 1.0)),
    }


def labels(model: Model, params: Params) -> np.ndarray:
    """P(A) of every pair by each principle in both orders."""
    constitution = constitutions.load("constitutions/default.yaml")
    scripts = []
    for pair in shipped.label_pairs():
        for principle in constitution.comparison[:PRINCIPLES]:
            for first, second in ((pair.better, pair.worse), (pair.worse, pair.better)):
                asked = prompts.comparison(
                    model.format, constitution, 4, 0, pair.prompt, principle, first, second
                )
                scripts.append(Script((*asked, Choose(CHOICES)), str(len(scripts))))
    asked_of = dataclasses.replace(model, params=params)
    transcripts = Engine(asked_of, 32).run(scripts)
    a, b = np.array([t.segments[-1].option_logprobs for t in transcripts]).T
    return 1 / (1 + np.exp(b - a))


def row(name: str, found: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> dict:
    """A row of the table; what is compared is compared with float32."""
    off = exact["logprobs"] - found["logprobs"]  # of tokens that float32 sampled
    choices = (found["labels"] > 0.5) != (exact["labels"] > 0.5)
    return {
        "weights": name,
        "megabytes": float(found["bytes"]) / 1e6,
        "perplexity": float(found["perplexity"]),
        "other_choice": float(choices.mean()),
        "askings": len(choices),
        "label_moves": float(np.abs(found["labels"] - exact["labels"]).mean()),
        "nats_off": float(np.abs(off).mean()),
        "kl": float((np.exp(-off) - 1 + off).mean()),  # k3, of float32 from the other
    }


if __name__ == "__main__":
    main()
