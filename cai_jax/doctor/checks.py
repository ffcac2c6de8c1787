"""Whether the pieces of a config fit together: one example of every stage, looked at closely.

Everything is computed in float32, whatever the config's dtype: this looks for faults of assembly,
not for rounding.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from cai_jax import constitution as constitutions
from cai_jax.batch import Rollout
from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import LabelPair, PromptRow
from cai_jax.decoding.respond import Reply
from cai_jax.doctor import examples
from cai_jax.doctor.examples import READS, Example, render, token_text
from cai_jax.encoding import end_token, prompt_tokens
from cai_jax.principles import Constitution
from cai_jax.settings import RunSettings
from cai_jax.stages import ppo
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights.load import Model, load_model

TOLERANCE = 1e-3  # nats between the sampler's and the scorer's log-probability of a token


class DoctorError(ValueError):
    """What is wrong with the pieces of a config."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A check. Attributes: check, what holds if all is well; fault, what does not, or empty."""

    check: str
    fault: str


def doctor(
    settings: RunSettings,
    red_team: Sequence[PromptRow],
    helpful: Sequence[PromptRow],
    label_pairs: Sequence[LabelPair],
) -> None:
    """Prints the examples and the checks of a run, then PASS.

    Raises:
      DoctorError: naming the faults.
      ValueError: a model, constitution or text that cannot be used.
    """
    constitution = constitutions.load(settings.constitution)
    model = judge = load_model(settings.model, report=print)
    if settings.feedback_model not in ("", settings.model):
        judge = load_model(settings.feedback_model, report=print)
    shown, findings = examine(settings, model, judge, constitution, red_team, helpful, label_pairs)
    for example in shown:
        print(render(example) + "\n")
    for finding in findings:
        print(f"{'FAULT' if finding.fault else 'ok   '}  {finding.check}")
    faults = [f"{finding.check}: {finding.fault}" for finding in findings if finding.fault]
    if faults:
        raise DoctorError(f"not in order: {'; '.join(faults)}.")
    print("PASS")


def examine(
    settings: RunSettings,
    model: Model,
    judge: Model,
    constitution: Constitution,
    red_team: Sequence[PromptRow],
    helpful: Sequence[PromptRow],
    label_pairs: Sequence[LabelPair],
) -> tuple[list[Example], list[Finding]]:
    """Takes the first prompt that fits through every stage, and checks what comes of it.

    Args:
      model: what answers, revises and is trained.
      judge: the feedback model, from which the preference model starts.
      red_team, helpful: the run's prompts.
      label_pairs: what the feedback model is asked about.
    """
    rows = ppo.fitting(settings.ppo, model.tokenizer, model.format, list(red_team))[:2]
    asked, revised = examples.revise(settings, model, constitution, rows)
    learnt = examples.finetune(settings, model, rows[0], revised, label_pairs[0])
    rollout, reply, rolled_out = examples.rollout(settings, model, rows[0])
    scored = examples.score(settings, judge, label_pairs)
    preferred = (
        [examples.prefer(settings, model, label_pairs)] if settings.algorithm == "dpo" else []
    )
    shown = [
        *asked,
        learnt,
        examples.compare(settings, judge, constitution, label_pairs[:2]),
        scored,
        rolled_out,
        *preferred,
    ]
    findings = _ends(model, "model")
    findings += [] if judge is model else _ends(judge, "feedback model")
    findings += [_one_bos(example) for example in shown]
    findings += [_end_in_labels(e) for e in (learnt, scored, *preferred)]
    contexts = {e.stage: e.part(READS) for e in (asked[0], learnt, rolled_out)}
    findings += [
        _same_contexts(contexts),
        _rows_fit(settings, model, red_team, helpful),
        _rollout_mask(settings, rollout, reply, model.tokenizer),
        _same_logprobs(rollout, reply),
    ]
    return shown, findings


def _ends(model: Model, who: str) -> list[Finding]:
    """Padding, end tokens and stop strings of a model."""
    tokenizer, form = model.tokenizer, model.format
    ends, pad = tokenizer.end_ids, tokenizer.pad_id
    without_logit = [token for token in ends if token >= model.config.vocab_size]
    misspelt = [
        text
        for text in form.stop
        if b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) != text.encode()
    ]
    if not ends:
        unreachable = "the tokenizer names no end token"
    elif without_logit:
        unreachable = f"the model has no logit for {token_text(tokenizer, without_logit[0])}"
    else:
        unreachable = f"tokens cannot spell {misspelt[0]!r}" if misspelt else ""
    control = set(tokenizer.control_tokens.values())
    closing = [t for f in form.end for t in tokenizer.encode(f.text, control=f.control)]
    closing = [token for token in closing if token in control][:1]
    unheard = closing and (closing[0] not in ends or closing[0] != end_token(tokenizer, form))
    return [
        Finding(
            f"{who}: pad differs from the end tokens",
            f"{token_text(tokenizer, pad)} is both" if pad in ends else "",
        ),
        Finding(f"{who}: end tokens and stop strings can be sampled", unreachable),
        Finding(
            f"{who}: the token that closes a turn ends a reply",
            f"{token_text(tokenizer, closing[0])} closes turns and is not it" if unheard else "",
        ),
    ]


def _one_bos(example: Example) -> Finding:
    """One BOS where the tokenizer adds it, none twice; some templates open every turn with it."""
    tokenizer, form, tokens = example.model.tokenizer, example.model.format, example.tokens
    bos = tokenizer.control_tokens.get(tokenizer.bos_token)
    later = form.after_reply(Conversation().human("Hello"))
    opens_turns = any(bos in tokenizer.encode(f.text, control=f.control) for f in later)
    fault = ""
    if tokenizer.bos_id is not None and tokens[0] != tokenizer.bos_id:
        fault = f"it begins with {token_text(tokenizer, tokens[0])}"
    elif bos is not None and any(pair == (bos, bos) for pair in itertools.pairwise(tokens)):
        fault = "there are two in a row"
    elif bos is not None and not opens_turns and bos in tokens[1:]:
        fault = f"there is another at token {tokens.index(bos, 1)}"
    return Finding(f"{example.stage}, {example.title}: one BOS, at the beginning", fault)


def _end_in_labels(example: Example) -> Finding:
    """What is learnt, or where the score is read, is the end of the turn."""
    last = example.tokens[-1]
    fault = ""
    if example.marks[-1] == READS:
        fault = "the last token is masked out"
    elif last not in example.model.tokenizer.end_ids:
        fault = f"the last token is {token_text(example.model.tokenizer, last)}"
    return Finding(f"{example.stage}, {example.title}: the end of turn is in the labels", fault)


def _same_contexts(contexts: dict[str, tuple[int, ...]]) -> Finding:
    """Sampling, finetuning and PPO put the same tokens before a reply to the same prompt."""
    expected = contexts["revise"]
    wrong = [stage for stage, tokens in contexts.items() if tokens != expected]
    return Finding(
        "a prompt has the same tokens when it is sampled from, finetuned on and rolled out",
        f"{wrong[0]} reads other tokens than revise" if wrong else "",
    )


def _rows_fit(
    settings: RunSettings,
    model: Model,
    red_team: Sequence[PromptRow],
    helpful: Sequence[PromptRow],
) -> Finding:
    """Prompts with the longest reply they can get fit a row of the finetuning batches."""
    s, length = settings.revise, settings.finetune.length
    needs = {
        row.id: len(prompt_tokens(model.tokenizer, model.format, row.conversation)) + reply + 1
        for rows, reply in ((red_team, s.revision_tokens), (helpful, s.response_tokens))
        for row in rows
    }
    worst = max(needs, key=needs.__getitem__)
    return Finding(
        "every prompt with its reply fits finetune.length",
        f"prompt '{worst}' can need {needs[worst]} tokens, finetune.length is {length}"
        if needs[worst] > length
        else "",
    )


def _rollout_mask(
    settings: RunSettings, rollout: Rollout, reply: Reply, tokenizer: Tokenizer
) -> Finding:
    """The reply, end token included, and nothing else is what PPO learns from."""
    mask, response = np.asarray(rollout.mask)[0], np.asarray(rollout.response)[0]
    fault = ""
    if tuple(response[mask].tolist()) != tuple(reply.tokens):
        fault = "the mask covers other tokens than were sampled"
    elif reply.stop_reason == "end" and reply.tokens[-1] not in tokenizer.end_ids:
        fault = "the end token that was sampled is not in the mask"
    elif reply.stop_reason == "length" and mask.sum() != settings.ppo.response_tokens:
        fault = f"a reply was cut after {mask.sum()} tokens"
    return Finding("train-rl, a rollout: the mask is the sampled reply, its end included", fault)


def _same_logprobs(rollout: Rollout, reply: Reply) -> Finding:
    """The decoding loop and one forward pass give the sampled tokens the same probabilities."""
    mask = np.asarray(rollout.mask)[0]
    scored, sampled = np.asarray(rollout.logprobs)[0][mask], np.asarray(reply.logprobs)
    check = f"the sampler's log-probabilities equal the scorer's within {TOLERANCE:g}"
    if scored.shape != sampled.shape:
        return Finding(check, f"{sampled.size} tokens were sampled and {scored.size} scored")
    apart = float(np.abs(scored - sampled).max())
    fault = "" if apart <= TOLERANCE else f"they are up to {apart:.2g} nats apart"
    return Finding(check, fault)
