"""What the benchmarks ask: the same Scripts every time, and the same tokens for peers.

W1 plain      32 prompts, 64 new tokens each.
W2 ragged     64 prompts for 32 slots, limits drawn geometrically (mean 40) and cut at 128.
W3 critique   64 answered red-team prompts behind the critique few-shots, 32 new tokens each.
W4 labels     64 pairs of answers under 4 principles, (A) against (B).
W4b labels    16 pairs under all principles in both orders.
W5 chain      64 prompts: response, then two rounds of critique and revision.

Nothing ends early, so that everybody writes the same number of tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import numpy as np

from cai_jax import prompts as texts
from cai_jax.constitution import import_paper, load
from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import helpful_comparisons, label_pairs, prompts
from cai_jax.principles import Constitution, CritiqueExample, CritiquePrinciple
from cai_jax.prompts import Forces, Format
from cai_jax.script import Choose, Sample, Script
from cai_jax.tokenizer import Tokenizer

NAMES = ("W1", "W2", "W3", "W4", "W4b", "W5")
OWN_CONSTITUTION = Path(__file__).parents[1] / "constitutions" / "default.yaml"
STEP_TOKENS = 32  # of each response, critique and revision of W3 and W5


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing asked, as a Script and as the tokens that the Script comes to.

    Attributes:
      script: what our engine is given, at temperature 1.
      tokens: everything that is read before the Sample or the Choose.
      group: items of one group share a beginning, such as the conversation they are about.
      limit: tokens to write; 0 where options are compared.
      options: tokens of each option to compare.
    """

    script: Script
    tokens: tuple[int, ...]
    group: int
    limit: int = 0
    options: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Chain:
    """One prompt of W5. Attributes: principles, one for each round of critique and revision."""

    id: str
    conversation: Conversation
    principles: tuple[CritiquePrinciple, ...]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A benchmark.

    Attributes:
      unit: what is counted; "tokens" counts what is written, anything else counts items.
      items: Items, or Chains in W5.
      few_shots: what stands before every critique of W5.
      tokenizer, form: the model's, without end tokens.
    """

    name: str
    unit: str
    items: tuple[Item, ...] | tuple[Chain, ...]
    tokenizer: Tokenizer
    form: Format
    few_shots: tuple[CritiqueExample, ...] = ()
    slots: int = 32

    def first(self, count: int) -> Workload:
        """The same with its first items alone; 0 keeps all."""
        return dataclasses.replace(self, items=self.items[: count or None])

    @property
    def size(self) -> int:
        """How many units one run is."""
        return sum(item.limit for item in self.items) if self.unit == "tokens" else len(self.items)

    @property
    def common(self) -> int:
        """How many first tokens all items share."""
        return common_length([item.tokens for item in self.items])


def build(name: str, tokenizer: Tokenizer, form: Format, paper: Path | None = None) -> Workload:
    """A workload by its name.

    Args:
      tokenizer, form: of the model that is asked.
      paper: folder with the paper's published prompt files; without it the project's own
        constitution and few-shots are used, which are shorter.
    """
    constitution = import_paper(paper) if paper else load(OWN_CONSTITUTION)
    tokenizer = endless(tokenizer)
    make = {
        "W1": lambda: plain(tokenizer, form),
        "W2": lambda: ragged(tokenizer, form),
        "W3": lambda: critique(tokenizer, form, constitution),
        "W4": lambda: labels("W4", tokenizer, form, constitution, 64, 4, (False,)),
        "W4b": lambda: labels("W4b", tokenizer, form, constitution, 16, 16, (False, True)),
        "W5": lambda: chain(tokenizer, form, constitution),
    }
    return make[name]()


def at(script: Script, temperature: float) -> Script:
    """The Script with its Samples at that temperature."""
    segments = [
        dataclasses.replace(s, temperature=temperature) if isinstance(s, Sample) else s
        for s in script.segments
    ]
    return Script(tuple(segments), script.id)


def endless(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without end tokens: every Sample then runs to its limit."""
    other = copy.copy(tokenizer)
    other.end_ids = ()
    return other


def plain(tokenizer: Tokenizer, form: Format) -> Workload:
    """W1."""
    conversations = [row.conversation for row in _asked(32)]
    items = _written("W1", tokenizer, map(form.prompt, conversations), itertools.repeat(64))
    return Workload("W1", "tokens", items, tokenizer, form)


def ragged(tokenizer: Tokenizer, form: Format) -> Workload:
    """W2. The limits are numpy's, whose streams stay the same between versions."""
    drawn = np.random.Generator(np.random.PCG64(0)).geometric(1 / 40, 64)
    limits = np.minimum(drawn, 128).tolist()
    conversations = [row.conversation for row in _asked(64)]
    items = _written("W2", tokenizer, map(form.prompt, conversations), limits)
    return Workload("W2", "tokens", items, tokenizer, form)


def critique(tokenizer: Tokenizer, form: Format, constitution: Constitution) -> Workload:
    """W3. What is criticised are the poor answers of the label pairs, whatever they answer."""
    rows = _red_team()[:64]
    answers = itertools.cycle([pair.worse for pair in label_pairs()])
    principles = itertools.cycle(constitution.critique)
    forces = [
        texts.critique(form, constitution.critique_examples, row.conversation, answer, principle)
        for row, answer, principle in zip(rows, answers, principles, strict=False)
    ]
    items = _written("W3", tokenizer, forces, itertools.repeat(STEP_TOKENS))
    return Workload("W3", "conversations", items, tokenizer, form)


def labels(
    name: str,
    tokenizer: Tokenizer,
    form: Format,
    constitution: Constitution,
    pairs: int,
    principles: int,
    orders: tuple[bool, ...],
) -> Workload:
    """W4 and W4b: which of two answers is better, without few-shots; `orders`: swapped or not."""
    rows = [(pair.prompt, pair.better, pair.worse) for pair in label_pairs()]
    rows += [(row.prompt, row.good, row.poor) for row in helpful_comparisons("train")]
    items = []
    for group, (prompt, *answers) in enumerate(rows[:pairs]):
        for swapped in orders:
            shown = answers[::-1] if swapped else answers
            for principle in constitution.comparison[:principles]:
                forces = texts.comparison(
                    form, constitution, 0, 0, prompt, principle, shown[0], shown[1]
                )
                item = Item(
                    Script((*forces, Choose(texts.CHOICES)), f"{name}/{len(items)}"),
                    tokens_of(tokenizer, forces),
                    group,
                    options=tuple(tuple(tokenizer.encode(text)) for text in texts.CHOICES),
                )
                items.append(item)
    return Workload(name, "prompts", tuple(items), tokenizer, form)


def chain(tokenizer: Tokenizer, form: Format, constitution: Constitution) -> Workload:
    """W5, two rounds; each prompt has other principles."""
    principles = itertools.cycle(constitution.critique)
    items = tuple(
        Chain(row.id, row.conversation, (next(principles), next(principles)))
        for row in _red_team()[:64]
    )
    few_shots = constitution.critique_examples
    return Workload("W5", "prompts", items, tokenizer, form, few_shots)


def critique_forces(workload: Workload, item: Chain, number: int, latest: str) -> Forces:
    """Everything up to where W5's critique of the latest response is written."""
    few_shots, principle = workload.few_shots, item.principles[number]
    return texts.critique(workload.form, few_shots, item.conversation, latest, principle)


def revision_forces(workload: Workload, item: Chain, number: int) -> Forces:
    """What follows W5's critique, up to where the revision is written."""
    return texts.revision(workload.form, item.principles[number])


def tokens_of(tokenizer: Tokenizer, forces: Forces, opening: bool = True) -> tuple[int, ...]:
    """The tokens of Forces, each tokenized by itself; `opening` puts a BOS before them."""
    bos = [tokenizer.bos_id] if opening and tokenizer.bos_id is not None else []
    ids = (tokenizer.encode(force.text, control=force.control) for force in forces)
    return (*bos, *itertools.chain.from_iterable(ids))


def common_length(sequences: list[tuple[int, ...]]) -> int:
    """Length of the longest beginning that all sequences share."""
    low, high = min(sequences), max(sequences)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))


def _written(name: str, tokenizer: Tokenizer, forces, limits) -> tuple[Item, ...]:
    return tuple(
        Item(
            Script((*reads, Sample(limit)), f"{name}/{n}"),
            tokens_of(tokenizer, reads),
            group=n,
            limit=limit,
        )
        for n, (reads, limit) in enumerate(zip(forces, limits, strict=False))
    )


def _red_team() -> list:
    return prompts("red_team", "train") + prompts("red_team", "test")


def _asked(count: int) -> list:
    """Prompts spread evenly over all that ship, which come to about 52 tokens on the average."""
    rows = [*_red_team(), *prompts("helpful", "train"), *prompts("helpful", "test")]
    return [rows[(i + 1) * len(rows) // count - 1] for i in range(count)]
