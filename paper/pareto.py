"""At which prices is the gated policy the best of a set? Shares of the prices, with what else would win beside them.

    policies -> points (accuracy, cost) by seed -> share of [0, 1] and [0, 0.5], by tier, for each set

Called by comparisons.py. A share depends on the set, so that a share without its set says nothing. The paper states its
87% beside an unconstrained policy, over a range of prices that is not known to us: that set comes first.

Beside each share stand nulls, policies without a gate that are put in the gated one's place: a coin that translates as
often, a router at its cost, and a plain cost of the same weight. What they win too is no merit of the gate.

Left out: families. How whole families compare is `dominance` in comparisons.py.
"""

import itertools

import numpy as np

from paper.measures import Point, coin, pareto_shares

SETS = (  # the gated policy stands last
    ("unconstrained", "gated"),
    ("base", "unconstrained", "gated"),
    ("never translate", "always translate", "unconstrained", "gated"),
    ("never translate", "always translate", "unconstrained", "plain cost", "gated"),
)
RANGES = (1.0, 0.5)  # prices from 0 to this
CUTS = ("trained", "high", "low", "xlow")  # all three tiers together, and each

Points = dict[str, list[Point]]  # name of a policy -> its point with each seed
Families = dict[str, list[list[Point]]]  # name of a family -> for each seed the points of its members


def share_of_prices(families: Families, ours: str, highest: float) -> list[float]:
    """[share, deviation]: the share of the prices in [0, highest] at which `ours` is the best, of the points that are
    means over seeds; and its standard deviation over all choices of one seed for each family."""

    def share(chosen) -> float:
        return pareto_shares(dict(zip(families, chosen, strict=True)), highest)[ours]

    means = [[tuple(point) for point in np.mean(seeds, axis=0).tolist()] for seeds in families.values()]
    by_choice = [share(chosen) for chosen in itertools.product(*families.values())]
    return [round(share(means), 4), round(float(np.std(by_choice)), 4)]


def coin_points(free: list[dict], forbidden: list[dict], forced: list[dict], mask: np.ndarray) -> list[Point]:
    """The coin that translates as often as a policy does on these items, from that policy's own outcomes: left to
    itself, with the tool forbidden, and with a call on every item; a dict (measure -> [N]) for each seed."""

    def point(outcomes: dict) -> Point:
        return float(outcomes["correct"][mask].mean()), float(outcomes["cost"][mask].mean())

    triples = zip(free, forbidden, forced, strict=True)
    return [coin(float(f["used_tool"][mask].mean()), point(n), point(t)) for f, n, t in triples]


def shares_by_set(policies: dict[str, Points], nulls: dict[str, Points]) -> list[dict]:
    """An entry for each set, range of prices and cut: "set", "highest price", "cut", and "shares", contender -> [share,
    deviation] of the gated policy, and of each null in its place.

    policies: cut -> what there is, under the names of `SETS`; nulls: the same for the nulls. A set with a policy that
    is missing is left out, and a null where it is in the set itself.
    """
    found = []
    for names, highest, cut in itertools.product(SETS, RANGES, CUTS):
        if not set(names) <= set(policies[cut]):
            continue
        others = {name: policies[cut][name] for name in names[:-1]}
        contenders = {"gated": policies[cut]["gated"], **nulls[cut]}
        shares = {}
        for name, seeds in contenders.items():
            if name not in others:
                families = {key: [[point] for point in points] for key, points in (others | {name: seeds}).items()}
                shares[name] = share_of_prices(families, name, highest)
        found.append({"set": list(names), "highest price": highest, "cut": cut, "shares": shares})
    return found
