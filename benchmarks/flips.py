"""How often another number of slots flips a sampled token of a real model.

python benchmarks/flips.py [--model NAME] [--slots 4,8,16,32] [--seeds 4] [--json FILE]

Products of other shapes add up in another order, so log-probs differ in their last digits; where
two tokens are that close to a tie, another is drawn, and from there on the text is another. Each
number of slots answers the Scripts of W2 at temperature 1 and at 0, and is compared with the first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import tables
import workloads

from cai_jax import load_model
from cai_jax.decoding import Engine
from cai_jax.script import Script
from cai_jax.weights.load import Model

MAX_LENGTH = 384


def main() -> None:
    """Prints a table: for each setting, the share of texts and of tokens that are the first's."""
    options = parse()
    model = load_model(options.model, "float32")
    workload = workloads.build("W2", model.tokenizer, model.format)
    model = dataclasses.replace(model, tokenizer=workload.tokenizer)
    rows = []
    for temperature in (1.0, 0.0):
        scripts = [workloads.at(item.script, temperature) for item in workload.items]
        seeds = range(options.seeds if temperature else 1)
        first = None
        for slots in options.slots:
            texts = sampled(model, slots, scripts, seeds)
            first = first or texts
            row = {
                "temperature": temperature,
                "slots": slots,
                "texts": len(texts),
                "same_texts": sum(a == b for a, b in zip(first, texts, strict=True)) / len(texts),
                "tokens": sum(map(len, texts)),
                "same_tokens": tables.same_tokens(first, texts),
                "first_flips": first_flips(first, texts),
            }
            rows.append(row)
            print(
                f"temperature {temperature:g}, {slots:2d} slots: {row['same_texts']:.1%} of "
                f"{row['texts']} texts are those of {options.slots[0]} slots; "
                f"{row['first_flips']:.2g} tokens flip for each that is sampled before a flip",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"model": options.model, "rows": rows}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", metavar="NAME")
    parser.add_argument(
        "--slots", type=lambda text: [int(n) for n in text.split(",")], default=[4, 8, 16, 32]
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def sampled(model: Model, slots: int, scripts: list[Script], seeds: range) -> list[tuple[int, ...]]:
    """Tokens of every Script's last segment, seed after seed."""
    engine = Engine(model, slots, MAX_LENGTH)
    return [t.segments[-1].tokens for seed in seeds for t in engine.run(scripts, seed)]


def first_flips(a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> float:
    """First differences over the tokens that were sampled behind equal contexts."""
    flips = sum(x != y for x, y in zip(a, b, strict=True))
    behind = 0
    for x, y in zip(a, b, strict=True):
        same = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), len(x))
        behind += same + (x != y)
    return flips / behind


if __name__ == "__main__":
    main()
