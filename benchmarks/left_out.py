"""What the engine leaves out, measured: drafts from the text before, and weights in int8.

python benchmarks/left_out.py [--model NAME] [--items N] [--json FILE]

Revisions may repeat the response that they revise, so their tokens could be drafted: where the last
two tokens stand earlier in the text, what followed them there is the draft, and one step checks all
of it. A draft's token is kept where it is what the sampler takes at that place anyway, so that
nothing is sampled otherwise. Kept tokens are counted on what a real model wrote (W5's responses,
critiques and revisions, sampled at temperature 1 and at 0); what a step with more rows costs, and a
step whose weights are int8, is the time of products with as many rows as 32 slots would have.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import workloads
from workloads import STEP_TOKENS, Chain, Workload, critique_forces, revision_forces

from cai_jax import load_model
from cai_jax.decoding import Engine
from cai_jax.script import Sample, Script, Transcript

SLOTS = 32
MATCHED = 2  # last tokens that are looked up
MAX_LENGTH = 768


def main() -> None:
    """Prints, for each length of draft, tokens a step, the step's cost, and the gain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", metavar="NAME")
    parser.add_argument("--items", type=int, default=0, help="only so many prompts")
    parser.add_argument(
        "--drafts", type=lambda t: [int(n) for n in t.split(",")], default=[1, 3, 7]
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    plain = product_seconds(SLOTS)
    rows = [{"int8_cost": product_seconds(SLOTS, int8=True) / plain}]
    print(f"weights in int8: a step's products take {rows[0]['int8_cost']:.2f} of float32's time")
    model = load_model(options.model, "float32")
    workload = workloads.build("W5", model.tokenizer, model.format).first(options.items)
    engine = Engine(model, SLOTS, MAX_LENGTH)
    for temperature in (1.0, 0.0):
        texts = written(engine, workload, temperature)
        for draft in options.drafts:
            cost = product_seconds(SLOTS * (draft + 1)) / plain
            for kind in ("critique", "revision"):
                each = tokens_per_step(texts[kind], draft)
                rows.append(
                    {"temperature": temperature, "draft": draft, "kind": kind}
                    | {"tokens_per_step": each, "step_cost": cost, "gain": each / cost}
                )
                print(
                    f"temperature {temperature:g}, {kind}, draft of {draft}: {each:.2f} tokens a "
                    f"step that costs {cost:.2f}: {each / cost:.2f} times as fast",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def product_seconds(rows: int, int8: bool = False) -> float:
    """The least of some times of 48 products with weights of a small model's MLP."""
    keys = jax.random.split(jax.random.key(0), 48)
    weights = [jax.random.normal(k, (576, 1536), jnp.float32) for k in keys]
    scale = jnp.ones(1536)
    if int8:
        weights = [jnp.round(w * 40).astype(jnp.int8) for w in weights]

    @jax.jit
    def products(x, weights, scale):
        return [(x @ w.astype(jnp.float32)) * scale if int8 else x @ w for w in weights]

    x = jnp.ones((rows, 576), jnp.float32)
    jax.block_until_ready(products(x, weights, scale))
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        jax.block_until_ready(products(x, weights, scale))
        taken.append(time.perf_counter() - began)
    return min(taken)


def written(
    engine: Engine, workload: Workload, temperature: float
) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """ "critique" and "revision" -> (tokens before it, its tokens) of every prompt, one round."""
    sample = Sample(STEP_TOKENS, temperature=temperature)

    def first(item: Chain) -> Script:
        return Script((*workload.form.prompt(item.conversation), sample), item.id)

    def second(item: Chain, answer: Transcript) -> Script:
        said = answer.segments[-1].text.strip()
        forces = critique_forces(workload, item, 0, said)
        return Script((*forces, sample, *revision_forces(workload, item, 0), sample), item.id)

    answers = list(engine.run([first(item) for item in workload.items], 0))
    scripts = [second(item, answer) for item, answer in zip(workload.items, answers, strict=True)]
    found = {"critique": [], "revision": []}
    for script, transcript in zip(scripts, engine.run(scripts, 0), strict=True):
        samples = [n for n, s in enumerate(script.segments) if isinstance(s, Sample)]
        for kind, place in zip(found, samples, strict=True):
            before = [t for one in transcript.segments[:place] for t in one.tokens]
            found[kind].append((tuple(before), transcript.segments[place].tokens))
    return found


def tokens_per_step(texts: list[tuple[tuple[int, ...], tuple[int, ...]]], draft: int) -> float:
    """Tokens that a step yields on the average: what is kept of the draft, and one of its own."""
    steps = sum(steps_taken(before, written, draft) for before, written in texts)
    return sum(len(written) for _, written in texts) / steps


def steps_taken(before: tuple[int, ...], written: tuple[int, ...], draft: int) -> int:
    """Steps in which a text is written when each checks up to `draft` tokens."""
    tokens, end, steps = list(before), len(before) + len(written), 0
    whole = (*before, *written)
    while len(tokens) < end:
        kept = 1  # the step's own token, right by definition
        for guess in looked_up(tokens, draft):
            if len(tokens) + kept == end or whole[len(tokens) + kept - 1] != guess:
                break
            kept += 1
        tokens += whole[len(tokens) : len(tokens) + kept]
        steps += 1
    return steps


def looked_up(tokens: list[int], draft: int) -> list[int]:
    """What followed the last tokens where they stood last before; nothing where they did not."""
    last = tokens[-MATCHED:]
    for start in range(len(tokens) - MATCHED - 1, -1, -1):
        if tokens[start : start + MATCHED] == last:
            return tokens[start + MATCHED : start + MATCHED + draft]
    return []


if __name__ == "__main__":
    main()
