"""Policies side by side, from what happened to each item: everything that the tables of the experiments say.

    {name: Policy} -> summarise, introspection, ... -> summary.json

Called by reproduce.py and figures.py. A policy has one set of outcomes per seed, on the same items, so differences are
paired. [mean, deviation] is over seeds; an interval is a 95% percentile bootstrap over items of the mean over seeds.
"Reward" is accuracy x 100, as in the paper.

Left out: the formulas, which are in measures.py, and how anything is printed (tables.py, figures.py).
"""

from dataclasses import dataclass

import numpy as np

from eval import paired_difference
from paper.measures import (
    Point,
    bootstrap,
    frontier,
    headroom_recovered,
    oracle,
    pareto_shares,
    route,
    share_of,
    spearman,
    split_half_ceiling,
    tune_threshold,
)

TRAINED = ("high", "low", "xlow")
HELD_OUT = tuple(f"held-out {tier}" for tier in TRAINED)
GROUPS = (*TRAINED, *HELD_OUT, "synthetic")
# What a gated policy is compared with. A Pareto share depends on the set, so that a share without its set says nothing.
# The paper states its share beside an unconstrained policy, over a range of prices that our source does not give.
SETS = (
    ("unconstrained", "gated"),
    ("base", "unconstrained", "gated"),
    ("always translate", "unconstrained", "plain cost", "gated"),
)
RANGES = (1.0, 0.5)  # prices from 0 to this


@dataclass(frozen=True)
class Policy:
    """A row of the tables: outcomes on the test items, one dict (measure -> [N]) for each seed."""

    name: str
    family: str  # policies that differ in the price alone: together they are a frontier
    command: str
    seeds: list[dict[str, np.ndarray]]
    validation: Point | None = None  # (accuracy, cost) of what train.py chose, on validation items, mean over seeds

    def mean(self, measure: str) -> np.ndarray:
        """Mean over seeds of each item's value, [N]."""
        return np.mean([seed[measure] for seed in self.seeds], axis=0)

    def point(self, mask: np.ndarray, seed: int | None = None) -> Point:
        """(accuracy, cost) on the chosen items, of one seed or of all."""
        seeds = self.seeds if seed is None else [self.seeds[min(seed, len(self.seeds) - 1)]]
        return tuple(float(np.mean([one[name][mask].mean() for one in seeds])) for name in ("correct", "cost"))


def routers(models: list[dict], prices: list[float], suffix: str) -> list[Policy]:
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


def spread(values: list[float]) -> list[float]:
    """[mean, standard deviation over seeds]; the deviation of a single seed is 0."""
    return [round(float(np.mean(values)), 4), round(float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, 4)]


def masks(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The groups of languages, and "trained", the three tiers that RL trains on together."""
    found = {group: columns["group"] == group for group in GROUPS}
    return {"trained": np.isin(columns["group"], TRAINED), **found}


def policy_summary(policy: Policy, pool: dict[str, Policy], columns: dict) -> dict:
    """Reward, tool rate, cost and gain by group, and what is recovered and kept over the trained tiers."""
    base, groups = pool["base"], {}
    for group, mask in masks(columns).items():
        values = {
            name: spread([float(seed[name][mask].mean()) for seed in policy.seeds])
            for name in ("correct", "used_tool", "cost")
        }
        groups[group] = {
            "reward": [round(100 * value, 2) for value in values["correct"]],
            "tool_rate": values["used_tool"],
            "cost": values["cost"],
        }
        if group in GROUPS:  # one rendering of each item, so tasks can be resampled as items
            gain = paired_difference(base.mean("correct")[mask], policy.mean("correct")[mask])
            groups[group]["gain"] = [round(100 * value, 2) for value in gain]
    out = {"family": policy.family, "command": policy.command, "seeds": len(policy.seeds), "groups": groups}
    rates = [[seed["used_tool"][columns["group"] == tier].mean() for tier in TRAINED] for seed in policy.seeds]
    out["ordered in every seed"] = all(bool(high < low <= xlow) for high, low, xlow in rates)
    trained = masks(columns)["trained"]
    points = [policy.point(trained, seed) for seed in range(len(policy.seeds))]
    if "oracle" in pool:
        limits = base.point(trained)[0], pool["oracle"].point(trained)[0]
        out["headroom"] = spread([headroom_recovered(accuracy, *limits) for accuracy, _ in points])
    if "unconstrained" in pool:  # the mean over its seeds, so that every policy is measured against the same
        whole = pool["unconstrained"].point(trained)
        for i, name in enumerate(("reward_kept", "cost_kept")):
            out[name] = spread([share_of(point[i], whole[i]) for point in points])
    return out


def summarise(pool: dict[str, Policy], ours: str, columns: dict) -> dict:
    """Everything about policies on the test items; `ours` names the gated policy with the default options."""
    found = {"headline": ours, "policies": {name: policy_summary(p, pool, columns) for name, p in pool.items()}}
    family, _, weight = ours.partition("-")
    found["at full reward"] = cheapest_at_full_reward(pool, family)
    sets = [members_of(names, family, weight) for names in SETS]
    sets.append(["base", "never translate", *sets[-1]])
    found["pareto"] = {", ".join(names): pareto(pool, names, columns) for names in sets if set(names) <= set(pool)}
    found["pareto by set"] = pareto_by_set(pool, family, columns)
    if ours in pool:
        found["dominance"] = dominance(pool, family, columns)
        found["domains"] = domain_table(pool[ours], columns)
    if prices := [float(name.split()[1]) for name in pool if name.startswith("priced ")]:
        found["price"] = against_price(pool, columns, prices)
    return found


# --- Pareto shares and frontiers --------------------------------------------------------------------------------


def members_of(names: tuple[str, ...], family: str, weight: str) -> list[str]:
    """The policies that a set of `SETS` means at this cost weight."""
    return [{"plain cost": f"plain-{weight}", "gated": f"{family}-{weight}"}.get(name, name) for name in names]


def shares_by_seed(pool: dict[str, Policy], families: dict[str, list[str]], mask, highest: float = 1.0) -> dict:
    """Family -> [mean, deviation] over seeds of its Pareto share of the prices in [0, highest]. The same seed of all
    policies is compared; one with a single seed takes part in each comparison."""
    count = max(len(pool[name].seeds) for names in families.values() for name in names)
    by_seed = [
        pareto_shares(
            {family: [pool[name].point(mask, seed) for name in names] for family, names in families.items()}, highest
        )
        for seed in range(count)
    ]
    return {family: spread([shares[family] for shares in by_seed]) for family in families}


def pareto(pool: dict[str, Policy], names: list[str], columns: dict) -> dict:
    """Shares of the prices in [0, 1] for a set of policies: over the trained tiers together (mean and deviation over
    seeds; the interval is of the last policy named), and by group, domain and language."""
    trained = masks(columns)["trained"]

    def shares(mask) -> dict[str, float]:
        return pareto_shares({name: [pool[name].point(mask)] for name in names})

    rows = np.flatnonzero(trained)
    interval = bootstrap(lambda chosen: shares(rows[chosen])[names[-1]], columns["item"][rows], 300)
    cuts = {"group": masks(columns)}
    cuts["domain"] = {name: trained & (columns["domain"] == name) for name in np.unique(columns["domain"])}
    cuts["language"] = {name: columns["language"] == name for name in np.unique(columns["language"])}
    return {
        "trained": shares_by_seed(pool, {name: [name] for name in names}, trained),
        "interval": [round(x, 4) for x in interval],
        **{
            f"by {cut}": {
                str(part): {name: round(share, 4) for name, share in shares(mask).items()}
                for part, mask in parts.items()
            }
            for cut, parts in cuts.items()
        },
    }


def pareto_by_set(pool: dict[str, Policy], family: str, columns: dict) -> list[dict]:
    """An entry per set of `SETS` and range of `RANGES`: "set", "highest price" and "shares", cost weight -> {policy:
    [mean, deviation] of its share over the trained tiers}, of each weight at which all policies of the set are there.
    """
    trained = masks(columns)["trained"]
    weights = sorted(float(policy.name.partition("-")[2]) for policy in pool.values() if policy.family == family)
    found = []
    for names in SETS:
        for highest in RANGES:
            shares = {}
            for weight in (f"{weight:g}" for weight in weights):
                chosen = members_of(names, family, weight)
                if set(chosen) <= set(pool):
                    shares[weight] = shares_by_seed(pool, {name: [name] for name in chosen}, trained, highest)
            found.append({"set": list(names), "highest price": highest, "shares": shares})
    return found


def cheapest_at_full_reward(pool: dict[str, Policy], family: str, kept: float = 0.98) -> str | None:
    """The name of the family's cheapest member among those that keep this share of the unconstrained reward, both on
    validation items; of the most accurate one if none does. None if the runs are missing."""
    members = [policy for policy in pool.values() if policy.family == family and policy.validation]
    if not members or "unconstrained" not in pool:
        return None
    least = kept * pool["unconstrained"].validation[0]
    enough = [policy for policy in members if policy.validation[0] >= least]
    if enough:
        return min(enough, key=lambda policy: policy.validation[1]).name
    return max(members, key=lambda policy: policy.validation[0]).name


def paying_prices(pool: dict[str, Policy], columns: dict) -> float:
    """The highest price at which any call can pay: over tiers and domains, the most that forcing the base to call adds
    to accuracy, over what it costs. At most 1."""
    native, forced = pool["never translate"], pool["always translate"]
    gains = []
    for tier in TRAINED:
        for domain in np.unique(columns["domain"]):
            cell = (columns["group"] == tier) & (columns["domain"] == domain)
            (before, _), (after, cost) = native.point(cell), forced.point(cell)
            gains.append((after - before) / cost)
    return min(1.0, max(gains))


def families(pool: dict[str, Policy]) -> dict[str, list[Policy]]:
    """Policies by family; the family's utility at a price is that of its best member."""
    found = {}
    for policy in pool.values():
        found.setdefault(policy.family, []).append(policy)
    return found


def dominance(pool: dict[str, Policy], ours: str, columns: dict) -> dict:
    """Against each other family: the share of the prices at which a call can pay where `ours` has more utility."""
    highest, trained = paying_prices(pool, columns), masks(columns)["trained"]
    members = {family: [policy.name for policy in policies] for family, policies in families(pool).items()}
    against = {}
    for name in members:
        if name != ours:
            pair = {name: members[name], ours: members[ours]}
            against[name] = shares_by_seed(pool, pair, trained, highest)[ours]
    return {"family": ours, "highest price": round(highest, 4), "against": against}


def against_price(pool: dict[str, Policy], columns: dict, prices: list[float]) -> dict:
    """What the cost-conditioned policy does when told a price, and the utilities of it and of other families there."""
    trained, members, out = masks(columns)["trained"], families(pool), {}
    for price in prices:
        accuracy, cost = pool[f"priced {price:g}"].point(trained)
        best = {
            name: round(float(frontier([p.point(trained) for p in rows], price)), 4)
            for name, rows in members.items()
            if name != "priced"
        }
        out[f"{price:g}"] = {
            "accuracy": round(accuracy, 4),
            "cost": round(cost, 4),
            "utility": round(accuracy - price * cost, 4),
            "others": best,
        }
    return out


# --- introspection ----------------------------------------------------------------------------------------------


def by_language(outcomes: dict, name: str, columns: dict) -> np.ndarray:
    """[L, N]: the measure of each language's items; every language renders the same N items in the same order."""
    return outcomes[name].reshape(len(dict.fromkeys(columns["language"])), -1)


def introspection(free: list[dict], forbidden: list[dict], columns: dict) -> dict:
    """Per domain: does the tool rate follow the language's native failure? `free` and `forbidden`: the same
    policy left to itself and with the tool masked, per seed. Rank correlation over languages, beside its ceiling."""
    languages = len(dict.fromkeys(columns["language"]))
    domains, out = columns["domain"].reshape(languages, -1)[0], {}
    for domain in dict.fromkeys(domains.tolist()):
        cell = domains == domain
        pairs = [
            (1 - by_language(native, "correct", columns)[:, cell], by_language(own, "used_tool", columns)[:, cell])
            for own, native in zip(free, forbidden, strict=True)
        ]
        failure = np.mean([x.mean(1) for x, _ in pairs], axis=0)
        correlation = [spearman(x.mean(1), y.mean(1)) for x, y in pairs]
        ceiling = [split_half_ceiling(x, y) for x, y in pairs]
        out[domain] = {
            "items per cell": int(cell.sum()),
            "span of native accuracy": round(float(np.ptp(failure)), 3),
            "rank correlation": spread(correlation),
            "ceiling": spread(ceiling),
            "share of ceiling": round(share_of(float(np.mean(correlation)), float(np.mean(ceiling))), 3),
        }
    return out


def language_table(free: list[dict], forbidden: list[dict], columns: dict) -> dict:
    """Per language: native accuracy, accuracy, tool rate and cost, means over seeds and domains."""
    names = list(dict.fromkeys(columns["language"].tolist()))

    def rates(outcomes, measure):
        return np.mean([by_language(one, measure, columns).mean(1) for one in outcomes], axis=0).round(4)

    parts = {
        "native": rates(forbidden, "correct"),
        "accuracy": rates(free, "correct"),
        "tool_rate": rates(free, "used_tool"),
        "cost": rates(free, "cost"),
    }
    return {name: {part: float(values[i]) for part, values in parts.items()} for i, name in enumerate(names)}


def domain_table(policy: Policy, columns: dict) -> dict:
    """Per tier and domain: accuracy, tool rate and cost of a policy, means over seeds."""
    names = {"accuracy": "correct", "tool_rate": "used_tool", "cost": "cost"}
    cells = {
        f"{group} {domain}": (columns["group"] == group) & (columns["domain"] == domain)
        for group in GROUPS
        for domain in dict.fromkeys(columns["domain"].tolist())
    }
    return {
        cell: {name: round(float(policy.mean(measure)[mask].mean()), 4) for name, measure in names.items()}
        for cell, mask in cells.items()
    }
