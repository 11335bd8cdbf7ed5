"""What a step has to say about itself, as JSON: its measures, those of its update, and single rollouts.

docs/manual.md explains every name.
"""

from dataclasses import asdict

import torch

from data import Task
from reward import Score
from sampler import Rollout


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


def step_metrics(tasks: list[Task], scores: list[Score], gates, kappa, no_evidence, group_size: int) -> dict:
    """The measures of a training step over all its rollouts, and by tier and by domain.

    accuracy, tool_rate and cost are means over rollouts, gate_rate, confidence and no_evidence_rate over groups.
    """

    def measure(members: list[int]) -> dict:
        rows = [scores[p * group_size + g] for p in members for g in range(group_size)]
        return {
            "accuracy": _mean(s.correct for s in rows),
            "tool_rate": _mean(s.used_tool for s in rows),
            "cost": _mean(s.cost for s in rows),
            "gate_rate": _mean(gates[p] for p in members),
            "confidence": _mean(kappa[p] for p in members),
            "no_evidence_rate": _mean(no_evidence[p] for p in members),
        }

    out = measure(list(range(len(tasks))))
    for cut in ("tier", "domain"):
        names = sorted({getattr(task, cut) for task in tasks})
        out[cut] = {name: measure([p for p, task in enumerate(tasks) if getattr(task, cut) == name]) for name in names}
    return out


def update_metrics(records: list[dict], norms: list[float]) -> dict:
    """What to log about an update, from its micro-batches and the gradient norms of its optimizer steps."""
    if not norms:
        return {"updates": 0}
    tokens = [record["tokens"] for record in records]

    def mean(name: str) -> float:
        """Over the sampled tokens."""
        return sum(record[name] * n for record, n in zip(records, tokens, strict=True)) / sum(tokens)

    mismatch = torch.cat([record["mismatch"] for record in records if record["mismatch"] is not None])
    return {
        "updates": len(norms),
        "loss": sum(record["loss"] for record in records) / len(norms),
        "ratio_max": max(record["ratio_max"] for record in records),
        **{name: mean(name) for name in ("ratio_mean", "clip_fraction", "approx_kl", "entropy")},
        "grad_norm": sum(norms) / len(norms),
        "sampler_mismatch": float(mismatch.mean()),
        "sampler_mismatch_max": float(mismatch.max()),
    }


def _mean(values) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values)


def rounded(value):
    """Floats to six digits, all the way down: what a log needs."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return round(value, 6) if isinstance(value, float) else value
