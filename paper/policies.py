"""A policy as the tables see it: what happened to each item, with each seed; and the policies that are made by hand.

    outcomes of items, by seed -> Policy -> points (accuracy, cost)

Called by reproduce.py, comparisons.py and figures.py. All policies are evaluated on the same items with the same
uniform numbers, so differences are paired.

Left out: what is said of two policies side by side (comparisons.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paper.measures import Point, oracle, route, tune_threshold

TRAINED = ("high", "low", "xlow")
HELD_OUT = tuple(f"held-out {tier}" for tier in TRAINED)
GROUPS = (*TRAINED, *HELD_OUT, "synthetic")
REVERSED = ("reversed", "mixed_reversed")  # rates of training: over all groups, over those with a wrong answer too


@dataclass(frozen=True)
class Policy:
    """A row of the tables: outcomes on the test items, one dict (measure -> [N]) for each seed."""

    name: str
    family: str  # policies that differ in the price alone: together they are a frontier
    command: str
    seeds: list[dict[str, np.ndarray]]
    validation: Point | None = None  # (accuracy, cost) of what train.py chose, on validation items, mean over seeds
    curves: list[dict] = field(default_factory=list)  # of its training, by seed

    def mean(self, measure: str) -> np.ndarray:
        """Mean over seeds of each item's value, [N]."""
        return np.mean([seed[measure] for seed in self.seeds], axis=0)

    def point(self, mask: np.ndarray, seed: int | None = None) -> Point:
        """(accuracy, cost) on the chosen items, of one seed or of all."""
        seeds = self.seeds if seed is None else [self.seeds[seed]]
        return tuple(float(np.mean([one[name][mask].mean() for one in seeds])) for name in ("correct", "cost"))

    def points(self, mask: np.ndarray) -> list[Point]:
        """(accuracy, cost) on the chosen items with each seed."""
        return [self.point(mask, seed) for seed in range(len(self.seeds))]

    def punished(self, tier: str, rate: str) -> float:
        """The share of right answers with a call that training punished, in the groups that `rate` (of `REVERSED`)
        stands for: the mean over training and over seeds. NaN where nothing is known."""
        curves = [curve["tier"][tier][f"{rate}_rate"] for curve in self.curves if tier in curve["tier"]]
        values = [value for curve in curves for value in curve if value is not None]
        return float(np.mean(values)) if values else float("nan")


def routers(models: list[dict], prices: Sequence[float], suffix: str) -> list[Policy]:
    """The hand-made router, one for each price, and the oracle: both choose between a model's own outcomes with the
    tool forbidden and forced, so that they differ from that model in *when* it calls and in nothing else.

    models: for each seed, evaluation ("test/forbidden", ...) -> measure -> [N]. The threshold on the log-prob of the
    native answer is the best one on validation items. The native attempt costs nothing, the call what it costs.
    """
    found, source = [], "no training: from the outcomes with the tool forbidden and forced"
    for price in prices:
        seeds = []
        for model in models:
            threshold = tune_threshold(model["validation/forbidden"], model["validation/forced"], price)
            native = model["test/forbidden"]
            seeds.append(route(native["logp"] < threshold, native, model["test/forced"]))
        found.append(Policy(f"router{suffix} {price:g}", f"router{suffix}", source, seeds))
    best = [oracle(model["test/forbidden"], model["test/forced"]) for model in models]
    return [*found, Policy(f"oracle{suffix}", f"oracle{suffix}", source, best)]


def masks(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The groups of languages, and "trained", the three tiers that RL trains on together."""
    found = {group: columns["group"] == group for group in GROUPS}
    return {"trained": np.isin(columns["group"], TRAINED), **found}


def families(pool: dict[str, Policy]) -> dict[str, list[Policy]]:
    """Policies by family; the family's utility at a price is that of its best member."""
    found = {}
    for policy in pool.values():
        found.setdefault(policy.family, []).append(policy)
    return found


def weight_of(name: str) -> float:
    """The cost weight in a policy's name, FAMILY-WEIGHT; infinite for a name that ends in no number."""
    try:
        return float(name.rpartition("-")[2])
    except ValueError:
        return float("inf")
