"""RL-CAI: PPO against the preference model, with a KL penalty to SL-CAI (section 4.2).

The companion paper (2204.05862, section 4) gives the objective, r_PM - lambda * KL, clip 0.2 and
gamma 1. What both papers leave open is chosen in the config, and docs/ppo.md gives the reason of
each default: the penalty is spread over the tokens, the score falls on the last token, advantages
are GAE's and whitened, and the value function is a trunk of its own that starts as the preference
model, or a head on the policy's. The feedback model's own ratings can take the preference model's
place, and leave one out that of the value function.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np

from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding.engine import Engine
from cai_jax.decoding.rate import Judge, rate
from cai_jax.encoding import prompt_tokens
from cai_jax.evaluation.goodhart import HeldOut, turned, watch
from cai_jax.models.lora import NONE, Lora
from cai_jax.models.transformer import Params
from cai_jax.prompts import Format
from cai_jax.records import Provenance
from cai_jax.returns import adapted_kl_coefficient, agreed_score, baseline, normalised_score
from cai_jax.shards import Shards
from cai_jax.training import ppo_steps, rollout
from cai_jax.training.advantages import KL_METRICS, advantages_of
from cai_jax.training.checkpoint import Checkpoints
from cai_jax.training.loop import not_finite
from cai_jax.training.metrics import MetricsLog
from cai_jax.training.ppo_settings import Settings
from cai_jax.training.preemption import save_and_stop
from cai_jax.training.rollout import Answer, Models, Sampled, Scores, minibatches, stream


def fitting(settings: Settings, tokenizer, form: Format, rows: list[PromptRow]) -> list[PromptRow]:
    """Prompts of at most `settings.prompt_tokens`.

    Raises:
      ValueError: there are none.
    """
    kept = [
        row
        for row in rows
        if len(prompt_tokens(tokenizer, form, row.conversation)) <= settings.prompt_tokens
    ]
    if not kept:
        raise ValueError(
            f"none of {len(rows)} prompts fits ppo.prompt_tokens ({settings.prompt_tokens}); "
            "raise it."
        )
    return kept


def train_ppo(
    settings: Settings,
    engine: Engine,
    form: Format,
    policy_params: Params,
    ref_params: Params,
    pms: Sequence[Params],
    rows: list[PromptRow],
    directory: Path,
    seed: int,
    provenance: Provenance,
    progress: Callable[[int, int, dict], None],
    mesh: jax.sharding.Mesh | None = None,
    held_out: HeldOut | None = None,
    judge: Judge | None = None,
    asked: Callable[[], bool] = lambda: False,
    adapters: Lora = NONE,
) -> Params:
    """Trains the policy; resumes from the newest checkpoint in `directory`.

    Args:
      engine: decodes with the policy; its params are set at every update.
      policy_params: the start; its buffers are taken over, unless adapters are trained in its
        place.
      ref_params: frozen; of any float dtype. With adapters they can be the same arrays: the
        reference is then the policy with its adapters off.
      pms: frozen too: the preference model's members, the first of which the value function can
        start as; empty where ratings are the score.
      rows: prompts; each update takes the next of an endless reshuffled stream.
      mesh: over which the models, optimiser states and batches are split; None for one device.
      held_out: a preference model that scores the responses too, and trains nothing.
      judge: the feedback model, where its ratings are the score.
      asked: whether to save and stop, from `preemption.noted`; asked twice an update.

    Returns:
      the policy, its adapters beside its kernels.

    Raises:
      ValueError: no prompt fits, before anything is computed.
      ScriptError: a response's question to the judge does not fit its engine.
      TrainingError: a loss is not finite, and its rollout is in `directory`/bad_batch.npz; or the
        policy that is trained is not the one that sampled.
      Terminated: `asked` said so, and the message's update is saved.
    """
    s, config = settings, engine.config
    rows = fitting(s, engine.tokenizer, form, rows)
    length = rollout.scored_length(s.prompt_tokens, s.response_tokens)
    sampling = {"seed": seed, "max_new_tokens": s.response_tokens, "temperature": s.temperature}

    def scored(answers: list[Answer]) -> Scores:
        if s.reward == "rating":
            texts = [(a.name, a.sample, a.row.conversation, a.reply.text) for a in answers]
            found = rate(judge, texts)
            values = np.array([rated.score for rated in found], np.float32)
            return Scores(values, [rated.principle for rated in found], np.zeros((0, len(values))))
        each = rollout.preference_scores(
            config, pms, engine.tokenizer, form, [a.row.conversation for a in answers],
            [a.reply for a in answers], truncated_at=s.truncated_score_at, batch_size=s.batch_size,
            length=length, mesh=mesh,
        )  # fmt: skip
        values = np.asarray(agreed_score(each, s.deviations))
        return Scores(values, [None] * len(answers), each)

    begin = Shards(directory / "start_responses", 1)
    if s.baseline_responses and not begin.done():
        prompts = stream(rows, s.baseline_responses, 0, seed)
        engine.params = policy_params
        answers = rollout.sample(engine, form, prompts, stream="ppo start", samples=1, **sampling)
        scores, none = scored(answers), [None] * len(answers)
        begin.write(
            0, rollout.records(-1, answers, scores, provenance, np.zeros(len(none)), none, none)
        )
    of_start = [r.score for r in begin.read(Sampled)] if s.baseline_responses else []
    mean, deviation = baseline(of_start, s.scale_score)
    states, steps, adapted = ppo_steps.start(
        s, config, policy_params, pms, mean, deviation, mesh, adapters, seed
    )
    checkpoints = Checkpoints(directory / "checkpoints", keep=2)

    def stop(done: int, coefficient: float) -> NoReturn:
        extra = {"update": done, "kl_coefficient": coefficient}
        save_and_stop(checkpoints, done, states, extra, f"update {done} of {s.updates}")

    log = MetricsLog(directory / "metrics.jsonl")
    shards = Shards(directory / "rollouts")
    done, kl_coefficient, saving = 0, s.kl_coefficient, 0.0
    if (restored := checkpoints.restore(states)) is not None:
        states, extra = restored
        done, kl_coefficient = extra["update"], extra["kl_coefficient"]
    log.truncate(done)
    for update in range(done, s.updates):
        window = s.stop_when_held_out_falls
        if window and turned(log.rows(), window):
            break
        clock = [time.perf_counter()]
        prompts = stream(rows, s.batch_size // s.samples, update, seed)
        policy, value = ppo_steps.trained(s, states, adapted)
        engine.params = policy
        engine.lay_out()
        clock.append(time.perf_counter())
        answers = rollout.sample(engine, form, prompts, stream="ppo", samples=s.samples, **sampling)
        clock.append(time.perf_counter())
        scores = scored(answers)
        rolled = rollout.make_rollout(
            config, Models(policy, ref_params, value), engine.tokenizer, form,
            [a.row.conversation for a in answers], [a.reply for a in answers], scores.values,
            prompt_tokens_limit=s.prompt_tokens, response_tokens_limit=s.response_tokens,
            temperature=s.temperature, dtype=s.compute_dtype, mesh=mesh,
        )  # fmt: skip
        texts = [(a.row.conversation, a.reply.text) for a in answers]
        monitored, others = watch(
            engine, form, texts, scores.values, s.stock_phrase, held_out, length, mesh
        )
        if asked():  # nothing is trained on the rollout yet: it is drawn again
            stop(update, kl_coefficient)
        truncated = np.array([a.truncated for a in answers])
        credit = normalised_score(scores.values, truncated, mean, deviation, s.truncation_penalty)
        data, metrics = advantages_of(
            rolled, kl_coefficient, s.gamma, s.lam, np.asarray(credit), estimator=s.kl_estimator,
            placement=s.kl_placement, samples=s.samples, whitened=s.whiten,
        )  # fmt: skip
        jax.block_until_ready(data)
        clock.append(time.perf_counter())
        parts = minibatches(data, s.minibatches, s.epochs, seed, update)
        metrics |= ppo_steps.train_on(s, states, steps, parts, update, mesh, directory)
        values = {name: float(v) for name, v in jax.device_get(metrics).items()} | monitored
        values["objective/kl_coefficient"] = kl_coefficient
        values["objective/truncated"] = float(truncated.mean())
        if len(pms) > 1:
            values["objective/members_deviation"] = float(scores.members.std(0).mean())
        bad = [name for name, v in values.items() if not np.isfinite(v)]
        if bad:
            when = f"PPO update {update}"
            raise not_finite(bad[0], values[bad[0]], when, data, directory, checkpoints)
        clock.append(time.perf_counter())
        kl = np.where(rolled.mask, np.asarray(rolled.logprobs) - rolled.ref_logprobs, 0).sum(-1)
        reward = np.asarray(data.reward).tolist()
        shards.write(
            update, rollout.records(update, answers, scores, provenance, kl, reward, others)
        )
        values |= _perf(clock) | ({"perf/checkpoint_seconds": saving} if saving else {})
        saving = 0.0
        log.write(update + 1, values)
        progress(update + 1, s.updates, values)
        kl_coefficient = adapted_kl_coefficient(
            kl_coefficient, values[KL_METRICS[s.kl_estimator]], s.kl_target, s.kl_horizon,
            s.batch_size,
        )  # fmt: skip
        if (update + 1) % s.save_every == 0 and update + 1 < s.updates:
            extra = {"update": update + 1, "kl_coefficient": kl_coefficient}
            began = time.perf_counter()
            checkpoints.save(update + 1, states, extra)
            saving = time.perf_counter() - began  # told with the next update
        if asked():
            stop(update + 1, kl_coefficient)
    checkpoints.close()
    return ppo_steps.trained(s, states, adapted)[0]


def _perf(clock: list[float]) -> dict[str, float]:
    """Seconds of an update and of its parts, from the times when each part began or ended."""
    names = ("reshard", "rollout", "scoring", "update")
    spans = zip(names, itertools.pairwise(clock), strict=True)
    parts = {f"perf/{name}_seconds": end - begin for name, (begin, end) in spans}
    return parts | {"perf/step_seconds": time.perf_counter() - clock[0]}
