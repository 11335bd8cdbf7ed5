"""[8] Evaluate policies side by side: accuracy, tool rate and cost by tier, language and domain.

    python eval.py --policy runs/low --policy tiny --tiers low --mode forced
    python eval.py --show runs/low/rollouts.jsonl
    python eval.py --chat --policy runs/low

All policies answer the same tasks with the same uniform numbers (common random numbers), so that their differences are
paired. Policies are measured at temperature 1, whatever they were trained with; `--greedy` figures are another measure.
The share of correct answers times 100 is what the paper calls reward. A *group* here is one of languages: a tier's
trained ones, the held-out ones, the synthetic ones. Rollouts whose engine failed count as they were answered.

Left out: significance tests. A difference comes with its 95% interval from a paired bootstrap over tasks.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data import Task, Tokenizer
from harness import viewer
from harness.chat import talk
from harness.inherit import inherited
from harness.options import Count, Options, Whole, clear_errors, parse, require
from harness.rundir import load_policy, write_json
from harness.tasks import check_prompts, evaluation_tasks
from model import Qwen3
from reward import Score, score
from sampler import Rollout, rollout
from tools import Translator
from translation.engines import NoMoreTranslations
from translation.service import open_translator

MEASURES = ("accuracy", "tool_rate", "cost")
Outcome = tuple[Rollout, Score]


def evaluate(
    model: Qwen3,
    tokenizer: Tokenizer,
    tasks: list[Task],
    translator: Translator,
    options: Options,
    mode: str = "free",
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Outcome]:
    """One rollout of each task and its score. The same seed means the same uniform numbers for any policy."""
    generator = torch.Generator().manual_seed(seed)
    sampling = options.sampling(mode, temperature)
    rollouts = rollout(model, tokenizer, tasks, 1, translator, generator, sampling)
    return [(r, score(r, tokenizer, options.answer_format)) for r in rollouts]


def values(outcomes: list[Outcome]) -> dict[str, np.ndarray]:
    """Each measure's value for each outcome, [N]; the mean of an array is the measure."""
    return {
        "accuracy": np.array([s.correct for _, s in outcomes], dtype=float),
        "tool_rate": np.array([s.used_tool for _, s in outcomes], dtype=float),
        "cost": np.array([s.cost for _, s in outcomes], dtype=float),
    }


def summary(outcomes: list[Outcome]) -> dict[str, float]:
    """n, the measures, and the shares of unanswered rollouts and of rollouts with an engine failure."""
    means = {name: round(float(value.mean()), 4) for name, value in values(outcomes).items()}
    unanswered = float(np.mean([not s.format_ok for _, s in outcomes]))
    failed = float(np.mean([r.engine_failed for r, _ in outcomes]))
    return {"n": len(outcomes), **means, "unanswered": round(unanswered, 4), "tool_error_rate": round(failed, 4)}


def breakdown(outcomes: list[Outcome], key: Callable) -> dict[str, dict]:
    """A summary for each value of `key(task)`, in the order of first appearance."""
    parts = {}
    for outcome in outcomes:
        parts.setdefault(key(outcome[0].task), []).append(outcome)
    return {name: summary(part) for name, part in parts.items()}


def paired_difference(before: np.ndarray, after: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """(mean of after - before, low, high): a 95% percentile interval, tasks resampled together. [N], [N], paired."""
    difference = after - before
    resampled = np.random.default_rng(0).integers(0, len(difference), (draws, len(difference)))
    low, high = np.percentile(difference[resampled].mean(1), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def compare(before: dict[str, list[Outcome]], after: dict[str, list[Outcome]]) -> dict[str, dict]:
    """For each group of tasks and each measure: before, after, difference and its 95% interval."""
    report: dict[str, dict] = {}
    for group in before:
        a, b = values(before[group]), values(after[group])
        report[group] = {"n": len(before[group])}
        for name in MEASURES:
            difference, low, high = (round(x, 4) for x in paired_difference(a[name], b[name]))
            report[group][name] = {
                "before": round(float(a[name].mean()), 4),
                "after": round(float(b[name].mean()), 4),
                "difference": difference,
                "interval": [low, high],
            }
    return report


@dataclass(frozen=True)
class EvalOptions(Options):
    """Options of eval.py."""

    policy: tuple[str, ...] = ()  # a run, measured as it was trained, or a model directory; may be repeated
    mode: Literal["free", "forced", "forbidden"] = "free"  # calls as the policy likes, an inserted call first, none
    tiers: str = ""  # groups of languages, separated by commas (default: all there are)
    part: Literal["validation", "test"] = "test"  # which items
    items: Count = 500  # items rendered in each group
    greedy: bool = False  # take the likeliest token instead of sampling at temperature 1
    by_language: bool = False  # also a table by language
    seed: Whole = 0  # of the uniform numbers
    json: str = ""  # write all figures to this file
    plot: str = ""  # draw accuracy over cost into this file
    chat: bool = False  # ask the policy: questions are typed, or drawn from the items where a line is empty
    question: str = ""  # with --chat: this one, and stop
    language: str = ""  # with --chat: that of typed questions (default: that of the first item)
    show: str = ""  # print the rollouts of this file and stop
    limit: Count = 20  # how many rollouts to show, the last ones
    page: Count = 1  # 2 shows those before the last ones, and so on
    only: str = ""  # show rollouts that are all of these, as low,math,wrong,no-call,open
    groups: bool = False  # show the rollouts of each prompt together, one line each


def main(argv: list[str] | None = None) -> None:
    options = parse(EvalOptions, __doc__, argv, inherited)
    with clear_errors():
        if options.show:
            viewer.show(options.show, options.limit, sys.stdout, options.only, options.page, options.groups)
            return
        require(bool(options.policy), "name at least one --policy, or a file to --show")
        viewer.check_outputs(options.json, options.plot)
        groups = evaluation_tasks(options, options.part, options.items)
        wanted = options.tiers.split(",") if options.tiers else list(groups)
        require(set(wanted) <= set(groups), f"--tiers {options.tiers}: there are {', '.join(groups)}")
        policies = {name: load_policy(name, options.device, getattr(torch, options.dtype)) for name in options.policy}
        for _, tokenizer in policies.values():
            check_prompts(options, tokenizer)
        translator = open_translator(options, {task.language for group in wanted for task in groups[group]})
        if options.chat:
            talk(options, *policies[options.policy[0]], [task for name in wanted for task in groups[name]], translator)
            return
    temperature = 0.0 if options.greedy else 1.0
    outcomes = {}  # policy -> group -> outcomes
    try:
        for name, policy in policies.items():
            for group in wanted:
                found = evaluate(*policy, groups[group], translator, options, options.mode, temperature, options.seed)
                outcomes.setdefault(name, {})[group] = found
    except NoMoreTranslations as reason:
        sys.exit(f"stopped: {reason}; nothing was written, and what --cache holds is not asked for again")
    everything = {name: [o for group in by_group.values() for o in group] for name, by_group in outcomes.items()}
    cuts = {"group": {name: {g: summary(o) for g, o in by_group.items()} for name, by_group in outcomes.items()}}
    for cut in ("domain", "language"):
        cuts[cut] = {name: breakdown(o, lambda task, cut=cut: getattr(task, cut)) for name, o in everything.items()}
    first, *others = options.policy
    differences = {name: compare(outcomes[first], outcomes[name]) for name in others}
    viewer.print_evaluation(options, cuts, first, differences)
    with clear_errors():
        if options.json:
            meters = {"translator": translator.meters} if hasattr(translator, "meters") else {}
            write_json(Path(options.json), {"options": vars(options), **cuts, "differences": differences, **meters})
        if options.plot:
            viewer.plot(cuts["group"], options.plot)


if __name__ == "__main__":
    main()
