"""One prompt and its group of rollouts, from prompt to gradient, as text: `train.py --explain`.

    tasks of the first step -> a group that teaches something -> what each stage makes of it, a function a paragraph
    FILE:STEP:TASK -> the same for a group that a run has logged

Every figure comes from the function that training calls, named beside it with its stage. Left out: the optimizer.
"""

import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

import gspo
from data import Task, Tokenizer, load_tokenizer
from harness.escape import on_screen
from harness.inherit import read_settings, run_of
from harness.options import require
from harness.rows import parts, read_rollouts
from harness.rundir import load_policy, policy_directory
from harness.tasks import cost_weight, training_tasks
from harness.terminal import fit
from logprob import policy_logps
from reward import Score, score
from sampler import Rollout, rollout
from tools import Call

SEARCHED = 8  # groups of the first step among which one is chosen
WIDTH = 110
TOKENS = 48  # of a rollout that are shown one by one


@dataclass(frozen=True)
class Group:
    """The rollouts of a prompt, their scores, and the trainer's log-probs of what was drawn."""

    rollouts: list[Rollout]
    scores: list[Score]
    logps: Tensor  # [G, T], 0 where the policy did not draw
    probe: Tensor | None  # [1, E] right or wrong, of extra rollouts without the tool
    source: str  # where it comes from


@dataclass(frozen=True)
class Lesson:
    """What gspo.py makes of a group: kappa and gates [1], all else [1, G] but the weights [G, T]."""

    kappa: Tensor
    gates: Tensor
    charges: Tensor
    shaped: Tensor
    advantages: dict[str, Tensor]  # by form
    log_ratios: Tensor  # [G, T]
    weights: Tensor  # [G, T] with which a token's log-prob enters the gradient of the objective


def explain(config, translator: Callable, generator: Callable) -> str:
    """The story of a group: of the run that `config` would start, or of the one that `--explain FILE:STEP:TASK` names.

    `translator`: opens that of a configuration; `generator`: of a seed, a step and a purpose, as training has it.
    Raises ValueError for a group that is not in the log.
    """
    if config.explain != "first":
        config, group, tokenizer = logged(config)
    else:
        group, tokenizer = sampled(config, translator(config), generator)
    return "\n".join(story(group, lesson_of(group, config), config, tokenizer))


def sampled(config, translator, generator: Callable) -> tuple[Group, Tokenizer]:
    """Of the first groups of the run's first step the one with most to see, see `instructive`. Its rollouts are those
    that training would draw."""
    model, tokenizer = load_policy(config.model, config.device, getattr(torch, config.dtype))
    tasks = training_tasks(config, config.tiers, config.seed)(0, config.prompts)[:SEARCHED]
    sampling = config.sampling("free", config.temperature)
    rollouts = rollout(model, tokenizer, tasks, config.group_size, translator, generator(config.seed, 0, 0), sampling)
    probes = []
    if config.confidence == "probe":
        sampling = config.sampling("forbidden", config.temperature)
        rng = generator(config.seed, 0, 1)
        probes = rollout(model, tokenizer, tasks, config.probe_rollouts, translator, rng, sampling)
    scores, right = ([score(r, tokenizer, config.answer_format) for r in some] for some in (rollouts, probes))
    found = []
    for p in range(len(tasks)):
        mine = slice(p * config.group_size, (p + 1) * config.group_size)
        own = right[p * config.probe_rollouts : (p + 1) * config.probe_rollouts]
        probe = torch.tensor([[float(s.correct) for s in own]]) if own else None
        source = f"group {p + 1} of step 1 of {config.model}, seed {config.seed}"
        group = Group(rollouts[mine], scores[mine], torch.zeros(config.group_size, 0), probe, source)
        found.append((instructive(group), -p, group))
    _, _, group = max(found, key=lambda entry: entry[:2])
    with torch.no_grad():
        logps, _, _ = policy_logps(model, group.rollouts, config.temperature, tokenizer.size)  # [6]
    return replace(group, logps=logps.float().cpu()), tokenizer


def instructive(group: Group) -> int:
    """How much there is to see: right and wrong answers, with and without a call, each counts once."""
    return len({(s.correct, s.used_tool) for s in group.scores})


def logged(config):
    """(the run's configuration, the group, its tokenizer) of --explain FILE:STEP or FILE:STEP:TASK."""
    found = re.fullmatch(r"(.+?):(\d+)(?::(.+))?", config.explain)
    require(found is not None, f"--explain {config.explain}: FILE:STEP:TASK was expected, as rollouts.jsonl:12:TASK")
    path, step, name = Path(found[1]), int(found[2]), found[3]
    rows = [row for row in read_rollouts(path) if row.get("step") == step]
    there = list(dict.fromkeys(row["task"]["id"] for row in rows))
    require(bool(there), f"--explain {config.explain}: {path} holds no rollout of step {step}")
    name = name or there[0]
    require(name in there, f"--explain {config.explain}: of step {step} there are {', '.join(there)}")
    rows = [row for row in rows if row["task"]["id"] == name]
    if run := run_of(path.parent):
        names = {field.name for field in fields(config)} - {"explain", "evaluation_data"}
        config = replace(config, **{key: value for key, value in read_settings(run).items() if key in names})
    size = config.group_size
    require(len(rows) >= size, f"{path}: {len(rows)} of the group's {size} rollouts are logged; --log-rollouts {size}")
    rollouts = [_rollout(row) for row in rows[:size]]
    longest = max(len(r.ids) for r in rollouts)
    logps = torch.tensor([[*r.logps, *[0.0] * (longest - len(r.ids))] for r in rollouts])
    probe = (
        torch.tensor([[rows[0]["confidence"]]]) if config.confidence == "probe" and "confidence" in rows[0] else None
    )
    group = Group(rollouts, [Score(**row["score"]) for row in rows[:size]], logps, probe, f"{path}, step {step}")
    return config, group, load_tokenizer(policy_directory(path.parent))


def _rollout(row: dict) -> Rollout:
    """The rollout that a row was written from."""
    task = Task(**row["task"] | {"choices": tuple(row["task"]["choices"])})
    calls = tuple(Call(**call) for call in row["calls"])
    ids, drawn = tuple(row["ids"]), tuple(map(bool, row["sampled"]))
    return Rollout(task, tuple(row["prompt_ids"]), ids, drawn, tuple(row["logps"]), calls, row["stop"])


def lesson_of(group: Group, config) -> Lesson:
    """The functions of gspo.py, in the order of a training step, on one group before the policy moves."""

    def row(values) -> Tensor:
        return torch.tensor([list(values)])  # [1, G]

    correct, reward = row(float(s.correct) for s in group.scores), row(s.reward for s in group.scores)
    used_tool, cost = row(s.used_tool for s in group.scores), row(s.cost for s in group.scores)
    valid = row(not r.engine_failed for r in group.rollouts)
    kappa = gspo.confidence(correct, used_tool, config.confidence, group.probe, valid)
    gates = gspo.gate(kappa, config.gate, config.threshold)
    charges = gspo.charge(cost, gates, cost_weight(group.rollouts[0].task, config))
    shaped = gspo.shaped_reward(reward, charges, config.penalty)
    advantages = {
        form: gspo.shaped_advantages(reward, shaped, form, config.advantage_scale, valid) for form in gspo.FORMS
    }
    drawn = torch.zeros(group.logps.shape, dtype=torch.bool)
    for i, r in enumerate(group.rollouts):
        drawn[i, : len(r.ids)] = torch.tensor(r.sampled)
    logps, clips = group.logps.clone().requires_grad_(), (config.clip_low, config.clip_high)
    loss, _ = gspo.gspo_loss(logps, group.logps, drawn, advantages[config.advantage][0], *clips, config.ratio)
    loss.backward()  # by the log-probs themselves: what the gradient of each is multiplied with
    log_ratios = gspo.log_ratio(group.logps, group.logps, drawn, config.ratio)
    return Lesson(kappa, gates, charges, shaped, advantages, log_ratios, -logps.grad)


# --- the story --------------------------------------------------------------------------------------------------------


def story(group: Group, lesson: Lesson, config, tokenizer: Tokenizer) -> list[str]:
    """The lines, a paragraph for each function."""
    task, prompt = group.rollouts[0].task, group.rollouts[0].prompt_ids
    lines = [f"One prompt and its {len(group.rollouts)} rollouts: {group.source}"]
    lines += ["", fit(f"[1] data.Task {task.id}: the answer is {task.answer!r}", WIDTH)]
    lines += _wrapped(_visible(task.question_en)) if task.question_en else []
    lines += [f"[1] data.encode_prompt: {len(prompt)} ids", *_wrapped(_visible(tokenizer.decode(prompt)))]
    lines += _wrapped(" ".join(map(str, prompt)))
    lines += ["", "[2, 4] sampler.rollout: what the policy drew, and in ⟦ ⟧ what was inserted"]
    for who, i in _alike(r.ids for r in group.rollouts):
        r = group.rollouts[i]
        said = "".join(
            _visible(tokenizer.decode(ids)) if drawn else f"⟦{_visible(tokenizer.decode(ids))}⟧"
            for ids, drawn in parts(r.ids, r.sampled)
        )
        lines += [f"  {who}: {sum(r.sampled)} drawn of {len(r.ids)} ids, stop {r.stop}", *_wrapped(said)]
    lines += ["", f"[3] tools.run_call: each costs {config.price_call:g} + {config.price_char:.4g} per character sent"]
    lines += _calls(group)
    lines += ["", "[5] reward.score: extracted, verified"]
    for who, i in _alike((s.answer, s.cost) for s in group.scores):
        s = group.scores[i]
        lines.append(fit(f"  {who}: {s.answer!r} is {'right' if s.correct else 'wrong'}, cost k = {s.cost:.2f}", WIDTH))
    return [*lines, "", *_algorithm(group, lesson, config), "", *_gradient(group, lesson, config, tokenizer)]


def _alike(keys: Iterable) -> list[tuple[str, int]]:
    """("1, 5", 0), ("2, 3", 1), …: which rollouts are alike, numbered from 1, and the place of their first."""
    found: dict[object, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return [(", ".join(str(i + 1) for i in places), places[0]) for places in found.values()]


def _calls(group: Group) -> list[str]:
    """A line for each call."""
    lines = []
    for who, i in _alike(tuple((call.text, call.result, call.cost) for call in r.calls) for r in group.rollouts):
        for call in group.rollouts[i].calls:
            sent = f"{len(call.text)} characters" if call.text is not None else "malformed"
            error = f" ({call.error})" if call.error else ""
            lines.append(fit(f"  {who}: {sent}, cost {call.cost:.2f}{error} -> {_visible(call.result)}", WIDTH))
    return lines or ["  none"]


def _algorithm(group: Group, lesson: Lesson, config) -> list[str]:
    """From scores to advantages: gspo.py's functions on [1, G]."""
    own = [s for s, r in zip(group.scores, group.rollouts, strict=True) if not (s.used_tool or r.engine_failed)]
    kappa, is_open = float(lesson.kappa), float(lesson.gates)
    told = {
        "native": f"{sum(s.correct for s in own)} of the {len(own)} rollouts without a call are right",
        "group": f"{sum(s.correct for s in group.scores)} of all {len(group.scores)} rollouts are right",
        "probe": "share of right ones among extra rollouts without the tool",
    }[config.confidence]
    why = f"kappa {'>=' if kappa >= config.threshold else '<'} tau = {config.threshold:g}: "
    said = (
        "g = 1, calls are charged" if is_open == 1 else "g = 0, calls are free" if is_open == 0 else f"g = {is_open:g}"
    )
    weight = cost_weight(group.rollouts[0].task, config)
    formula = "c (1 - h)" if config.penalty == "multiply" else "c - h"
    lines = [
        f"[7] gspo.confidence ({config.confidence}): kappa = {kappa:.2f}, {told}",
        f"[7] gspo.gate ({config.gate}): {why if config.gate == 'threshold' else ''}{said}",
        f"[7] gspo.charge: h = lambda k g, lambda = {weight:g}",
        f"[7] gspo.shaped_reward ({config.penalty}): r = {formula}",
        f"[7] gspo.shaped_advantages: A in all forms, scale {config.advantage_scale}; * trains",
    ]
    if config.advantage_scale == "batch":
        lines.append("    (the batch is this group here; in training it is the step's)")
    heads = [f"A {form}{'*' if form == config.advantage else ''}" for form in lesson.advantages]
    lines.append("     c  call     k     h     r" + "".join(f"{head:>14}" for head in heads))
    for i, s in enumerate(group.scores):
        figures = "".join(f"{float(A[0, i]):+z14.3f}" for A in lesson.advantages.values())
        h, r = float(lesson.charges[0, i]), float(lesson.shaped[0, i])
        call = "yes" if s.used_tool else "no"
        lines.append(f"  {i + 1}  {s.reward:g}  {call:>4}  {s.cost:4.2f}  {h:4.2f}  {r:4.2f}{figures}")
    return lines


def _gradient(group: Group, lesson: Lesson, config, tokenizer: Tokenizer) -> list[str]:
    """From log-probs to the weight of each drawn token in the gradient."""
    lines = [
        "[6] logprob.policy_logps: log-probs of the drawn tokens, below, behind each token",
        f"[7] gspo.log_ratio ({config.ratio}): {lesson.log_ratios.abs().max():g}, since the policy has not moved yet",
        "[7] gspo.gspo_loss: what the gradient of a token's log-prob is multiplied with, over this group alone; its",
        f"    minibatch holds {config.prompts // config.minibatches} groups. Once a ratio has left "
        f"[{1 - config.clip_low:g}, {1 + config.clip_high:g}] on the side of A's sign, it is 0.",
    ]
    for who, i in _alike(
        (r.ids, float(lesson.advantages[config.advantage][0, n])) for n, r in enumerate(group.rollouts)
    ):
        ids, sampled = group.rollouts[i].ids, group.rollouts[i].sampled
        drawn = [t for t, is_drawn in enumerate(sampled) if is_drawn]
        weights = sorted({round(float(lesson.weights[i, t]), 4) for t in drawn})
        each = f"{weights[0]:+z.4f}" if len(weights) == 1 else f"{weights[0]:+z.4f} to {weights[-1]:+z.4f}"
        lines.append(f"  {who}: {each} for each of {len(drawn)} tokens")
        tokens = [f"{_visible(tokenizer.decode([ids[t]]))} {float(group.logps[i, t]):z.2f}" for t in drawn[:TOKENS]]
        more = f" | … {len(drawn) - TOKENS} more" if len(drawn) > TOKENS else ""
        lines += _wrapped(" | ".join(tokens) + more)
    return [*lines, "[9] train.update: backward() carries these weights into the model, the optimizer takes a step"]


def _visible(text: str) -> str:
    """The text on one line."""
    return on_screen(text).replace("\n", "⏎")


def _wrapped(text: str) -> list[str]:
    indent = "     "
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
