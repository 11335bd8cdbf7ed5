"""The experiments: which policies are made, with which options of train.py, and on what each is evaluated.

    train.py's defaults -> all_jobs -> [Job]

Called by reproduce.py, which runs them. To compare an idea of your own, add a job with its options here.

Left out: seeds and the number of items, which are options of reproduce.py, and how a job is run (runs.py).
"""

import re
from dataclasses import dataclass

from gspo import ESTIMATORS, PENALTIES, RATIOS, SCALES
from train import Config

FREELY = ("test/free",)
ROUTED = ("test/forbidden", "test/forced", "validation/forbidden", "validation/forced")  # what routers choose from
EVERYTHING = (*FREELY, *ROUTED, "languages/free", "languages/forbidden")
SMALL = {"--prompts": 32, "--cost-weight": 0.2}  # of the ablations: half the time of the main runs
PLAIN = "--gate always --penalty subtract"  # the cost of the literature
# Cost weights, in train.py's default: once, half and twice; four times, to see what a high price does to calls that are
# needed; and halfway between, so that the cheapest member that keeps the reward is no accident of the grid.
GRID = (1, 0.5, 2, 4, 1.4, 0.7)
PRICES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)  # at which the cost-conditioned policy is asked


@dataclass(frozen=True)
class Job:
    """A policy to make and to evaluate. An evaluation is PART/MODE or PART/MODE/PRICE, as in "test/free/0.2"."""

    name: str
    experiment: str  # main | ablations | price
    options: str  # of train.py; of the base model only those of sampling matter
    evaluations: tuple[str, ...] = FREELY
    trains: bool = True  # false: the base model as it is
    study: str = ""  # which ablation


def headline(default: Config) -> str:
    """The name of the gated policy with train.py's default options."""
    return f"{default.confidence}-{default.cost_weight:g}"


def weights(default: Config, quick: bool = False) -> list[float]:
    """The cost weights of a family, the most telling first."""
    return [round(default.cost_weight * factor, 6) for factor in (GRID[:1] if quick else GRID)]


def all_jobs(default: Config, quick: bool = False, bases: tuple[str, ...] = ()) -> list[Job]:
    """Every policy that there is to compare, in the order in which they are run: what says the most comes first."""
    jobs = [
        Job("base", "main", "", EVERYTHING, trains=False),
        Job("forbidden", "main", "--max-calls 0", ("test/forbidden",)),
        Job("unconstrained", "main", "--gate never --cost-weight 0"),
    ]
    others = [estimator for estimator in ESTIMATORS if estimator != default.confidence]
    for families, count in ((("plain", default.confidence), len(GRID)), (others, 3)):
        for weight in weights(default, quick)[:count]:
            for family in families:
                name = f"{family}-{weight:g}"
                words = PLAIN if family == "plain" else f"--confidence {family}"
                evaluations = EVERYTHING if name == headline(default) else FREELY
                jobs.append(Job(name, "main", f"{words} --cost-weight {weight:g}", evaluations))
    if quick:
        return jobs
    asked = tuple(f"test/free/{price:g}" for price in PRICES)
    # every call at the price that is told: where most calls are free, as with the gate, there is little to follow
    jobs.append(Job("priced", "price", f"--model tiny/priced --data tiny-prices {PLAIN}", asked))
    for study, settings in ablations(default, bases).items():
        for setting in settings:
            words = setting.removeprefix("base")
            trains, name = words == setting, re.sub(r"[^\w.]+", "-", setting).strip("-")
            words = small(words) if trains else words.strip()
            jobs.append(Job(name, "ablations", words, trains=trains, study=study))
    return jobs


def small(words: str) -> str:
    """These options after those of a small run, as far as they do not say otherwise."""
    return " ".join([f"{option} {value}" for option, value in SMALL.items() if option not in words] + words.split())


def ablations(default: Config, bases: tuple[str, ...]) -> dict[str, list[str]]:
    """study -> options of each of its runs; "base ..." is the base model without training, under these options."""
    policies = ("base", "", PLAIN)
    models = (default.model, "tiny/eager", *bases)  # tiny/eager uses the tool in half of the items
    by_gspo = "--advantage-scale group --ratio sequence"
    objectives = ("--advantage-scale none --ratio token", "--advantage-scale group --ratio token", by_gspo)
    gated = f"--confidence {default.confidence}"
    charged = [f"{policy} --cost-weight {weight}" for weight in (0.2, 0.8) for policy in (PLAIN, gated)]
    return {
        "advantage scale and ratio": [f"--advantage-scale {s} --ratio {r}" for s in SCALES for r in RATIOS],
        "estimator, with GSPO's scale and ratio": [f"--confidence {estimator} {by_gspo}" for estimator in ESTIMATORS],
        "gate and penalty": [f"--gate {g} --penalty {p}" for g in (default.gate, "always") for p in PENALTIES],
        "threshold": [f"--threshold {threshold:g}" for threshold in (0.5, 0.75, 0.95, 1)],
        "cost weight": [f"--cost-weight {weight:g}" for weight in (0.05, 0.1, 0.2, 0.4, 0.8)],
        "cost weight, plain cost": [f"{PLAIN} --cost-weight {weight:g}" for weight in (0.1, 0.2, 0.4)],
        "estimator": [f"--confidence {estimator}" for estimator in ESTIMATORS],
        "does the plain cost over-suppress": [
            f"{policy} {objective}" for objective in objectives for policy in ("--gate never --cost-weight 0", *charged)
        ],
        "steps": [f"--steps {default.steps * factor // 2}" for factor in (1, 2, 4)],
        "group size": [f"--group-size {size} --prompts {256 // size}" for size in (4, 8, 16)],  # 256 rollouts
        "prompts per step": [f"--prompts {prompts}" for prompts in (SMALL["--prompts"], default.prompts)],
        "tool noise": [f"{policy} --tool-noise {noise:g}" for noise in (0, 0.02, 0.1) for policy in policies],
        "tool rate of the base": [f"{policy} --model {model}" for model in models for policy in policies],
    }
