"""The experiments: which policies are made, with which options of train.py, and on what each is evaluated.

    train.py's defaults -> all_jobs -> [Job]

Called by reproduce.py, which runs them. To compare an idea of your own, add a job with its options here.

Left out: seeds and the number of items, which are options of reproduce.py, and how a job is run (runs.py).
"""

import re
from dataclasses import dataclass

from gspo import ESTIMATORS
from harness.options import require
from paper.outcomes import CLEAN
from train import Config

FREELY = ("test/free", "test/last")
ROUTED = ("test/forbidden", "test/forced", "validation/forbidden", "validation/forced")  # what routers choose from
LANGUAGES = ("languages/free", "languages/forbidden", "languages/forced")
ON_CLEAN = (f"{CLEAN}/free", f"{CLEAN}/last")
# Translators that nobody trained with: a perfect one, a worse one, and one that is best where languages are rare.
SHIFTED = ("test/free/noise=0", "test/free/noise=0.05,0.2,0.5", "test/free/noise=0.2,0.05,0.01")
COMPARED = (*FREELY, *ON_CLEAN, *SHIFTED)  # of the policies that the claims are about
EVERYTHING = (*COMPARED, *ROUTED, *LANGUAGES)
BASE = ("test/free", *ROUTED, *LANGUAGES, *(f"{CLEAN}/{mode}" for mode in ("free", "forbidden", "forced")))
MODES = ("free", "forced", "forbidden", "last")  # of evaluations; last: freely, from the last checkpoint
WORDS = ("price", "noise")  # what else an evaluation may say
PLAIN = "--gate always --penalty subtract"  # the cost of the literature
GSPO = "--advantage joint --advantage-scale group --ratio sequence"  # reward and charge divided together, as published
TOKENS = "--advantage joint --advantage-scale none --ratio token"  # neither GSPO's scale nor its ratio
# Cost weights, in train.py's default, the most telling first; 1.4 so that the cheapest member that keeps the reward is
# no accident of the grid.
GRID = (1, 0.5, 2, 0.25, 4, 1.4)
PRICES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)  # at which the cost-conditioned policy is asked
ROUTED_FOR = (0.1, 0.2, 0.4, 0.8)  # prices that routers are tuned for


@dataclass(frozen=True)
class Job:
    """A policy to make and to evaluate. An evaluation is a label that `read_label` understands."""

    name: str  # FAMILY-WEIGHT for the members of a family, which differ in the cost weight alone
    experiment: str  # main | price | ablations
    options: str  # of train.py; of the base model only those of sampling matter
    evaluations: tuple[str, ...] = FREELY
    trains: bool = True  # false: the base model as it is
    study: str = ""  # which ablation


def read_label(label: str) -> tuple[str, str, dict[str, str]]:
    """(part, mode, further words) of an evaluation: PART/MODE or PART/MODE/KEY=VALUE. ValueError for what is none.

    >>> read_label("test/free/noise=0.2,0.05,0.01")
    ('test', 'free', {'noise': '0.2,0.05,0.01'})
    """
    part, mode, *words = label.split("/")
    found = dict(word.partition("=")[::2] for word in words)
    require(mode in MODES, f"evaluation {label}: the mode is {mode}, there are {', '.join(MODES)}")
    require(set(found) <= set(WORDS), f"evaluation {label}: its further words may be {', '.join(WORDS)}, as price=0.2")
    return part, mode, found


def family_of(name: str) -> str:
    """The name of a policy without its cost weight: "native-0.5" and "native-1" are one family."""
    return name.rpartition("-")[0] or name


def headline(default: Config) -> str:
    """The name of the gated policy with train.py's default options."""
    return f"{default.confidence}-{default.cost_weight:g}"


def weights(default: Config, quick: bool = False) -> list[float]:
    """The cost weights of a family, the most telling first."""
    return scaled(default, GRID[:1] if quick else GRID)


def scaled(default: Config, factors: tuple[float, ...]) -> list[float]:
    """These cost weights, in train.py's default, as train.py takes them."""
    return [round(default.cost_weight * factor, 6) for factor in factors]


def all_jobs(default: Config, quick: bool = False, bases: tuple[str, ...] = ()) -> list[Job]:
    """Every policy that there is to compare, in the order in which they are run: what says the most comes first."""
    jobs = [Job("base", "main", "", BASE, trains=False)]

    def add(name: str, options: str, weight: float | None = None, evaluations=FREELY) -> None:
        """A job of the main table; with a weight, a member of the family `name`."""
        if weight is not None:
            name, options = f"{name}-{weight:g}", f"{options} --cost-weight {weight:g}"
        jobs.append(Job(name, "main", options, evaluations))

    gated, (usual, *others) = f"--confidence {default.confidence}", weights(default, quick)
    add("unconstrained", "--gate never --cost-weight 0", evaluations=COMPARED)
    add(default.confidence, gated, usual, EVERYTHING)
    add("plain", PLAIN, usual, COMPARED)
    add("low", "--lang-tier low")  # the README's first command
    add("forbidden", "--max-calls 0", evaluations=("test/forbidden",))
    for weight in others:
        # The plain cost that costs as much as the default gate has about half of its weight.
        evaluations = (*FREELY, *ON_CLEAN) if weight == usual / 2 else FREELY
        add(default.confidence, gated, weight, evaluations)
        add("plain", PLAIN, weight, evaluations)
    for estimator in ESTIMATORS:
        if estimator != default.confidence:
            add(estimator, f"--confidence {estimator}", usual)
    add("clipped", "--advantage clipped --gate always", usual)  # in spirit AdaTIR's, arXiv 2601.14696
    for factor in (1,) if quick else (1, 0.25, 4):
        for name, options in ((f"joint-{default.confidence}", gated), ("joint-plain", PLAIN)):
            add(name, f"{options} {GSPO}", *scaled(default, (factor,)))
    if quick:
        return jobs
    asked = tuple(f"test/free/price={price:g}" for price in PRICES)
    # every call at the price that is told: where most calls are free, as with the gate, there is little to follow
    jobs.append(Job("priced", "price", f"--model tiny/priced --data tiny-prices {PLAIN}", asked))
    for study, settings in ablations(default, bases).items():
        for setting in settings:
            words = setting.removeprefix("base")
            trains, name = words == setting, re.sub(r"[^\w.]+", "-", setting).strip("-")
            words = small(words, default) if trains else words.strip()
            jobs.append(Job(name, "ablations", words, FREELY[:1], trains=trains, study=study))
    return jobs


def small(words: str, default: Config) -> str:
    """These options at half of the prompts, which is half of the time, unless they name a number of prompts."""
    return words if "--prompts" in words else " ".join([f"--prompts {default.prompts // 2}", *words.split()])


def ablations(default: Config, bases: tuple[str, ...]) -> dict[str, list[str]]:
    """study -> options of each of its runs; "base ..." is the base model without training, under these options.

    What two studies share is run once: 17 runs.
    """
    gated = f"--confidence {default.confidence}"
    G, P = default.group_size, default.prompts // 2
    models = ("tiny/eager", *bases)  # tiny/eager uses the tool in half of the items
    return {
        "form of the objective": [
            gated,
            GSPO,
            "--advantage decoupled --advantage-scale group --ratio token",
            TOKENS,
            f"{TOKENS} --penalty multiply --cost-weight {default.cost_weight / 2:g}",  # the default before GSPO's form
        ],
        "gate and penalty": [gated, f"{gated} --penalty multiply", PLAIN],
        "threshold": [f"--threshold {threshold:g}" for threshold in (0.5, default.threshold)],
        "tool noise": ["--tool-noise 0", gated, "--tool-noise 0.1", f"{PLAIN} --tool-noise 0", PLAIN],
        "steps": [f"--steps {default.steps // divisor}" for divisor in (2, 1)],
        "group size": [f"--group-size {G * k} --prompts {P // k}" for k in (1, 2)],
        "tool rate of the base": [
            f"{policy} --model {model}" for model in (default.model, *models) for policy in ("base", gated, PLAIN)
        ],
    }
