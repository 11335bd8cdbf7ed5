"""What was wrong with a step: the update's numbers of each of its rollouts, once more, and nothing is trained.

    bad-step-000012.jsonl, the run beside it -> replay -> a line per rollout, the ones that are not finite marked

The weights are those of the newest sound checkpoint from before the step, else those that the run began with. They are
the step's own if it came right behind; the page says how many steps lie between. Advantages are as they were kept,
rounded to four digits; one that was not finite is NaN again.

Left out: several minibatches. Each rollout is scored by the weights that sampled it, so every ratio is 1.
"""

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch

from data import Task
from harness.escape import in_line
from harness.modeldir import damage_of, is_finite
from harness.options import require
from harness.rundir import load_policy, read_lines
from logprob import policy_logps
from sampler import Rollout
from tools import Call


def replay(config, gspo_loss: Callable) -> str:
    """The table for the file `config.replay`, under the options of the run that it lies in.

    Raises ValueError naming file and line for what is no rollout; FileNotFoundError if there is no such file.
    """
    path = Path(config.replay)
    step, rollouts, advantages = read_bad_step(path)
    saved = path.parent / "config.json"
    require(saved.is_file(), f"--replay {path}: no run around it (config.json is missing)")
    known = {field.name for field in fields(config)}
    options = {name: value for name, value in json.loads(saved.read_text(encoding="utf-8")).items() if name in known}
    config = replace(config, **options)
    weights, behind = weights_before(path.parent, step, config.model)
    model, tokenizer = load_policy(weights)
    ids = [i for rollout in rollouts for i in (*rollout.prompt_ids, *rollout.ids)]
    require(0 <= min(ids) and max(ids) < model.config.vocab_size, f"{path}: an id is none of {weights}'s")
    head = ["advantage", "log-prob", "mismatch", "entropy", "loss", "gradient"]
    lines = [
        f"step {step} of {path.parent}, {len(rollouts)} rollouts, by the weights of {weights} ({behind})",
        "  row " + " ".join(f"{name:>10}" for name in head) + "  task",
    ]
    bad = 0
    for row, (rollout, advantage) in enumerate(zip(rollouts, advantages, strict=True), start=1):
        numbers = numbers_of(model, rollout, advantage, config, tokenizer.size, gspo_loss)
        wrong = [name for name, value in numbers.items() if not math.isfinite(value)]
        bad += bool(wrong)
        cells = " ".join(f"{value:10.4g}" for value in numbers.values())
        mark = f"  <- not finite: {', '.join(wrong)}" if wrong else ""
        lines.append(f"{row:5} {cells}  {in_line(rollout.task.id)}{mark}")
    broken = [name for name, weight in model.named_parameters() if not is_finite(weight.detach())]
    lines.append(f"{bad} of {len(rollouts)} rollouts are not finite" + "".join(f"; weight {name}" for name in broken))
    return "\n".join([*lines, "nothing was trained or written"])


def numbers_of(model, rollout: Rollout, advantage: float, config, vocab: int, gspo_loss: Callable) -> dict[str, float]:
    """What the update computes of one rollout alone: the mean log-prob and entropy of its sampled tokens, the largest
    difference to the sampler's log-probs, its loss, and the norm of that loss's gradient."""
    model.zero_grad(set_to_none=True)
    logps, entropies, sampled = policy_logps(model, [rollout], config.temperature, vocab)  # [1, T] each
    A, clips = torch.tensor([advantage]), (config.clip_low, config.clip_high)
    loss, _ = gspo_loss(logps, logps.detach(), sampled, A, *clips, config.ratio)
    loss.backward()
    theirs = torch.tensor([rollout.logps])
    squares = [weight.grad.double().square().sum() for weight in model.parameters() if weight.grad is not None]
    return {
        "advantage": advantage,
        "log-prob": float(logps.detach()[sampled].mean()),
        "mismatch": float((logps.detach() - theirs)[sampled].abs().max()),
        "entropy": float(entropies[sampled].mean()),
        "loss": float(loss.detach()),
        "gradient": float(sum(squares)) ** 0.5,
    }


def read_bad_step(path: Path) -> tuple[int, list[Rollout], list[float]]:
    """(step, its rollouts, their advantages) from a file of `Run.until_divergence`. ValueError naming file and line."""
    rollouts, advantages, steps = [], [], []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row = json.loads(line)
            task = Task(**{**row["task"], "choices": tuple(row["task"]["choices"])})
            sampled, calls = tuple(map(bool, row["sampled"])), tuple(Call(**call) for call in row["calls"])
            logps = tuple(math.nan if x is None else float(x) for x in row["logps"])
            rollout = Rollout(task, tuple(row["prompt_ids"]), tuple(row["ids"]), sampled, logps, calls, row["stop"])
            ids = (*rollout.prompt_ids, *rollout.ids)
            whole = len(rollout.ids) == len(sampled) == len(logps) and any(sampled) and rollout.prompt_ids
            require(bool(whole) and all(type(i) is int for i in ids), "ids, sampled and logps do not fit each other")
            advantage = math.nan if row["advantage"] is None else float(row["advantage"])
            steps.append(int(row["step"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a rollout of a bad step ({error!r:.80})") from None
        rollouts.append(rollout)
        advantages.append(advantage)
    require(len(set(steps)) == 1, f"{path}: no rollouts, or of several steps; expected a bad-step-….jsonl")
    return steps[0], rollouts, advantages


def weights_before(run: Path, step: int, model: str) -> tuple[Path, str]:
    """The newest sound checkpoint of a run from before a step, else `model`; and how far it lies behind."""
    for checkpoint in sorted(run.glob("step-*[0-9]"), reverse=True):
        done = int(checkpoint.name.removeprefix("step-"))
        if done < step and not damage_of(checkpoint, must_be_sealed=True):
            between = step - 1 - done
            return checkpoint, f"{between} steps before this one began" if between else "those of this step"
    return Path(model), f"{step - 1} steps before this one began" if step > 1 else "those of this step"
