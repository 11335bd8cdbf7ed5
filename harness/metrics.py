"""What a step has to say about itself, as JSON: its measures, those of its update, and single rollouts.

docs/manual.md explains every name.
"""

from dataclasses import asdict

import torch
from torch import Tensor

from data import Task
from harness import distributed
from harness.guard import stop_at_divergence
from reward import Score
from sampler import Rollout


def step_metrics(
    tasks: list[Task],
    rollouts: list[Rollout],
    scores: list[Score],
    kappa: Tensor,
    gates: Tensor,
    shaped: Tensor,
    advantages: Tensor,
) -> dict:
    """The measures of a training step over all its rollouts, and by tier and by domain.

    accuracy, tool_rate and cost are means over rollouts, gate_rate, confidence and no_evidence_rate over groups.
    reversed_rate is the share of right answers with a call whose advantage is below 0: sign reversal (AdaTIR, arXiv
    2601.14696). mixed_reversed_rate is the same in groups that also hold a wrong answer. None where there is no such
    answer.
    kappa and gates [P], shaped rewards and advantages [P, G]; rollouts and scores group after group.
    """
    G = advantages.shape[1]
    groups = [range(first, first + G) for first in range(0, len(scores), G)]
    mixed = [len({scores[i].correct for i in group if not rollouts[i].engine_failed}) == 2 for group in groups]
    tool_free = [[not (scores[i].used_tool or rollouts[i].engine_failed) for i in group] for group in groups]

    def measure(members: list[int]) -> dict:
        rows = [scores[i] for p in members for i in groups[p]]

        def reversed_in(chosen: list[int]) -> float | None:
            signs = [
                float(advantages[p, i % G]) < 0
                for p in chosen
                for i in groups[p]
                if scores[i].correct and scores[i].used_tool and not rollouts[i].engine_failed
            ]
            return mean(signs) if signs else None

        return {
            "accuracy": mean(s.correct for s in rows),
            "tool_rate": mean(s.used_tool for s in rows),
            "cost": mean(s.cost for s in rows),
            "gate_rate": mean(gates[p] for p in members),
            "confidence": mean(kappa[p] for p in members),
            "no_evidence_rate": mean(not any(tool_free[p]) for p in members),
            "reversed_rate": reversed_in(members),
            "mixed_reversed_rate": reversed_in([p for p in members if mixed[p]]),
        }

    out = measure(list(range(len(tasks))))
    for cut in ("tier", "domain"):
        names = sorted({getattr(task, cut) for task in tasks})
        out[cut] = {name: measure([p for p, task in enumerate(tasks) if getattr(task, cut) == name]) for name in names}
    right = torch.tensor([[scores[i].correct for i in group] for group in groups])
    silent = (advantages == 0).all(-1)  # groups that teach nothing
    return out | {
        "reward": float(shaped.mean()),
        "all_right_rate": float((silent & (right == 1).all(-1)).float().mean()),
        "all_wrong_rate": float((silent & (right == 0).all(-1)).float().mean()),
        "unanswered": sum(not s.format_ok for s in scores) / len(scores),
        "malformed_calls": sum(call.error == "malformed" for r in rollouts for call in r.calls),
        "tool_error_rate": sum(r.engine_failed for r in rollouts) / len(rollouts),
        "tokens": sum(len(r.ids) for r in rollouts) / len(rollouts),
    }


class UpdateLog:
    """What is recorded of an update while it runs. It takes values and changes none."""

    def __init__(self, rollouts: list[Rollout]):
        self._rollouts, self._records, self._norms = rollouts, [], []
        self._losses, self._open = [], []  # of the minibatch that has no step yet

    def begin_again(self) -> None:
        """The minibatch under way is to be taken again: what is recorded of it does not count."""
        self._losses, self._open = [], []

    def micro_batch(self, batch: list[int], share: float, loss, metrics: dict, logps, entropies, sampled) -> None:
        """A micro-batch of these rollouts, `share` of its minibatch; one without weight leaves no record."""
        self._losses.append(loss.item())
        if not share:
            return
        record = {name: float(value) for name, value in metrics.items()}
        record |= {"loss": loss.item() * share, "tokens": int(sampled.sum()), "mismatch": None}
        record["entropy"] = float(entropies.sum() / sampled.sum())
        if not self._norms:  # same weights as the sampler had: what remains is the two computations' difference
            theirs = [torch.tensor(self._rollouts[i].logps, device=logps.device) for i in batch]
            theirs = torch.nn.utils.rnn.pad_sequence(theirs, batch_first=True)  # [B, T]
            record["mismatch"] = (logps.detach() - theirs)[sampled].abs().cpu()
        self._open.append(record)

    def step(self, norm: float) -> None:
        """The norm of a minibatch's gradient before clipping; the optimizer steps next. Diverged if this or a loss is
        not finite on any rank."""
        stop_at_divergence({"loss": sum(self._losses), "gradient norm": norm})
        self._norms.append(norm)
        self._records += self._open
        self._losses, self._open = [], []

    def metrics(self) -> dict:
        """Means over all ranks: ratios, clipping and entropy over sampled tokens, the loss over optimizer steps."""
        if not self._norms:
            return {"updates": 0}
        records, steps = distributed.gather(self._records), len(self._norms)
        tokens = [record["tokens"] for record in records]

        def over_tokens(name: str) -> float:
            return sum(record[name] * n for record, n in zip(records, tokens, strict=True)) / sum(tokens)

        mismatch = torch.cat([record["mismatch"] for record in records if record["mismatch"] is not None])
        return {
            "updates": steps,
            "loss": sum(record["loss"] for record in records) / steps,
            "ratio_max": max(record["ratio_max"] for record in records),
            **{name: over_tokens(name) for name in ("ratio_mean", "clip_fraction", "approx_kl", "entropy")},
            "grad_norm": sum(self._norms) / steps,
            "sampler_mismatch": float(mismatch.mean()),
            "sampler_mismatch_max": float(mismatch.max()),
        }


def logged_rows(
    rollouts: list[Rollout],
    scores: list[Score],
    advantages: Tensor,
    kappa: Tensor,
    gates: Tensor,
    step: int,
    count: int,
) -> list[dict]:
    """`count` rollouts of a step as rows for rollouts.jsonl: whole groups, since what is learned is the difference
    within one, evenly spread over the step's prompts and others in the next step. advantages [P, G], kappa, gates [P].
    """
    P, G = advantages.shape
    some = min(P, -(-count // G))
    chosen = sorted({(step - 1 + i * P // some) % P for i in range(some)})
    kept = [(p, i) for p in chosen for i in range(G)][:count]
    rows = [rollout_row(rollouts[p * G + i], scores[p * G + i], step, float(advantages[p, i])) for p, i in kept]
    known = [{"confidence": round(float(kappa[p]), 4), "gate": float(gates[p])} for p, _ in kept]
    return [row | more for row, more in zip(rows, known, strict=True)]


def rollout_row(rollout: Rollout, score: Score, step: int, advantage: float) -> dict:
    """A rollout and its score as one JSON object, as `eval.py --show` reads it."""
    return {
        "step": step,
        "advantage": round(advantage, 4),
        "task": asdict(rollout.task),
        "prompt_ids": list(rollout.prompt_ids),
        "ids": list(rollout.ids),
        "sampled": [int(s) for s in rollout.sampled],
        "logps": [round(x, 4) for x in rollout.logps],
        "calls": [asdict(call) for call in rollout.calls],
        "stop": rollout.stop,
        "score": asdict(score),
    }


def mean(values) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values)


def rounded(value):
    """Floats to six digits, all the way down: what a log needs."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return round(value, 6) if isinstance(value, float) else value
