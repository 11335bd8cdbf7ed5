"""Policies side by side, from what happened to each item: everything that the tables of the experiments say.

    {name: Policy} -> policy_summary, summarise, shifted -> summary.json

Called by reproduce.py. [mean, deviation] is over seeds; an interval is a 95% percentile bootstrap over items of the
mean over seeds. "Reward" is accuracy x 100, as in the paper.

Left out: what a policy is (policies.py), the formulas, which are in measures.py, shares of prices (pareto.py),
languages (introspection.py), and how anything is printed (tables.py, figures.py).
"""

import numpy as np

from eval import paired_difference
from paper.experiments import PRICES
from paper.measures import (
    Point,
    at_cost,
    bootstrap,
    frontier,
    headroom_recovered,
    languages_resampled,
    share_of,
    spread,
    utility,
)
from paper.pareto import CUTS, coin_points, share_of_prices, shares_by_set
from paper.policies import GROUPS, REVERSED, TRAINED, Policy, families, masks, weight_of

ALONE = ("base", "never translate", "always translate", "unconstrained")  # no member of a family


def reward_and_cost(policy: Policy, mask: np.ndarray) -> dict[str, float]:
    """The two on the chosen items, means over seeds."""
    accuracy, cost = policy.point(mask)
    return {"reward": round(100 * accuracy, 2), "cost": round(cost, 4)}


def difference(before: Policy, after: Policy, mask: np.ndarray) -> list[float]:
    """[mean, low, high]: the reward of `after` less that of `before` on the chosen items, with its interval over them;
    one rendering of each item, so that tasks can be resampled as items."""
    pair = (policy.mean("correct")[mask] for policy in (before, after))
    return [round(100 * value, 2) for value in paired_difference(*pair)]


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
        if group in GROUPS:  # one rendering of each item
            groups[group]["gain"] = difference(base, policy, mask)
            gained = (policy.mean("correct") - base.mean("correct"))[mask]
            resampled = languages_resampled(gained, columns["language"][mask])
            groups[group]["gain, languages resampled"] = [round(100 * value, 2) for value in resampled]
    out = {"family": policy.family, "command": policy.command, "seeds": len(policy.seeds), "groups": groups}
    rates = [[seed["used_tool"][columns["group"] == tier].mean() for tier in TRAINED] for seed in policy.seeds]
    out["ordered in every seed"] = all(bool(high < low <= xlow) for high, low, xlow in rates)
    trained = masks(columns)["trained"]
    points = policy.points(trained)
    if policy.curves:
        for rate in REVERSED:
            out[rate] = {tier: round(policy.punished(tier, rate), 4) for tier in TRAINED}
    if "oracle" in pool:
        limits = base.point(trained)[0], pool["oracle"].point(trained)[0]
        out["headroom"] = spread([headroom_recovered(accuracy, *limits) for accuracy, _ in points])
    if "unconstrained" in pool:  # the mean over its seeds, so that every policy is measured against the same
        whole = pool["unconstrained"].point(trained)
        for i, name in enumerate(("reward_kept", "cost_kept")):
            out[name] = spread([share_of(point[i], whole[i]) for point in points])
    return out


def summarise(
    pool: dict[str, Policy], last: dict[str, Policy], ours: str, columns: dict, own: dict[str, list[dict]]
) -> dict:
    """What compares policies on the test items. `last`: those of `pool` that have a last checkpoint, at that. `ours`
    names the gated policy with the default options; own: its outcomes "free", "forbidden" and "forced", by seed, for
    the coin; empty if they are not there."""
    family = ours.rpartition("-")[0]
    found = {"at full reward": cheapest_at_full_reward(pool, family)}
    found["pareto"] = pareto_by_weight(pool, ours, columns, own)
    found["over-suppression"] = over_suppression(pool, last, family, columns)
    found["utility"] = utilities(pool, family, columns)
    if ours in pool:
        found["dominance"] = dominance(pool, family, columns)
        found["domains"] = domain_table(pool[ours], columns)
    if prices := [float(name.split()[1]) for name in pool if name.startswith("priced ")]:
        found["price"] = against_price(pool, columns, prices)
    return found


def on_clean(pool: dict[str, Policy], last: dict[str, Policy], ours: str, columns: dict) -> dict:
    """Of the clean items, where fewer policies are evaluated: "pareto" and "over-suppression" at their weights, and
    "given up", domain by domain."""
    return {
        "pareto": pareto_by_weight(pool, ours, columns, {}),
        "over-suppression": over_suppression(pool, last, ours.rpartition("-")[0], columns),
        "given up": given_up(pool, ours, columns),
    }


# --- Pareto shares and frontiers --------------------------------------------------------------------------------


def pareto_by_weight(
    pool: dict[str, Policy], ours: str, columns: dict, own: dict[str, list[dict]]
) -> dict[str, list[dict]]:
    """Cost weight -> `pareto` of the gated policy with it; `own` are the outcomes of `ours`, the default."""
    members = [name for name in sorted(pool, key=weight_of) if pool[name].family == ours.rpartition("-")[0]]
    return {name.rpartition("-")[2]: pareto(pool, name, columns, own if name == ours else {}) for name in members}


def pareto(pool: dict[str, Policy], gated: str, columns: dict, own: dict[str, list[dict]]) -> list[dict]:
    """The shares of prices of this gated policy in every set, and of what stands in its place: the plain cost of the
    same weight, the router whose cost is nearest, and, of its `own` outcomes, the coin."""
    plain, points, nulls = f"plain-{gated.rpartition('-')[2]}", {}, {}
    trained = masks(columns)["trained"]
    routed = [policy for policy in pool.values() if policy.family == "router"]
    routed.sort(key=lambda router: abs(router.point(trained)[1] - pool[gated].point(trained)[1]))
    for cut in CUTS:
        mask = masks(columns)[cut]
        seeds = {name: pool[name].points(mask) for name in ALONE if name in pool}
        points[cut] = seeds | {"gated": pool[gated].points(mask)}
        nulls[cut] = {"coin": coin_points(**own, mask=mask)} if own else {}
        if routed:
            nulls[cut]["router"] = routed[0].points(mask)
        if plain in pool:
            points[cut]["plain cost"] = nulls[cut]["plain cost"] = pool[plain].points(mask)
    return shares_by_set(points, nulls)


def over_suppression(pool: dict[str, Policy], last: dict[str, Policy], family: str, columns: dict) -> list[dict]:
    """The plain cost beside the gate at each cost weight that both have, in the default form of the advantage and in
    the joint one, tier by tier: reward, cost and what training punished of both, the difference in reward with its
    interval, and "at equal cost", of the best checkpoints and of the last ones."""
    found = []
    # RL without the tool was evaluated at its best checkpoint alone.
    ends = {name: policy for name, policy in pool.items() if name == "forbidden"}
    for prefix in ("", "joint-"):
        plain = [policy for policy in pool.values() if policy.family == f"{prefix}plain"]
        for one in sorted(plain, key=lambda policy: weight_of(policy.name)):
            weight = one.name.rpartition("-")[2]
            if (other := pool.get(f"{prefix}{family}-{weight}")) is None:
                continue
            for tier in TRAINED:
                mask = masks(columns)[tier]
                row = {"form": prefix.removesuffix("-") or "default", "cost weight": weight, "tier": tier}
                for name, policy in (("plain", one), ("gated", other)):
                    row[name] = reward_and_cost(policy, mask)
                    row[name] |= {rate: round(policy.punished(tier, rate), 4) for rate in REVERSED}
                row["difference"] = difference(one, other, mask)
                row["at equal cost"] = at_equal_cost(pool, other.name, f"{prefix}plain", mask)
                if {other.name, *(policy.name for policy in plain)} <= set(last):
                    row["at equal cost, last"] = at_equal_cost(ends | last, other.name, f"{prefix}plain", mask)
                found.append(row)
    return found


def given_up(pool: dict[str, Policy], ours: str, columns: dict) -> list[dict]:
    """Where `ours` saves and what it gives up for that, by tier and domain: reward and cost of it and of the
    unconstrained policy, and the difference in reward with its interval. Empty without them."""
    if not {ours, "unconstrained"} <= set(pool):
        return []
    found, whole, gated = [], pool["unconstrained"], pool[ours]
    for tier in TRAINED:
        for domain in dict.fromkeys(columns["domain"].tolist()):
            mask = (columns["group"] == tier) & (columns["domain"] == domain)
            row = {"tier": tier, "domain": domain}
            row |= {"unconstrained": reward_and_cost(whole, mask), "gated": reward_and_cost(gated, mask)}
            found.append(row | {"difference": difference(whole, gated, mask)})
    return found


def at_equal_cost(pool: dict[str, Policy], name: str, family: str, mask: np.ndarray) -> list[float]:
    """[points, low, high, deviation]: the reward of the policy `name` less what `family` has for as much, of the means
    over seeds, with its interval over items and the deviation over those seeds that all of them have. The family
    reaches from a weight of 0, the unconstrained policy, to one that is too high, RL without the tool; between two
    members a coin may choose."""
    members = [policy for policy in pool.values() if policy.family == family]
    members += [pool[end] for end in ("unconstrained", "forbidden") if end in pool]
    every = [pool[name], *members]

    def ahead(points: list[Point]) -> float:
        (accuracy, cost), *others = points
        return 100 * (accuracy - at_cost(others, cost))

    outcomes = np.array([[policy.mean(measure)[mask] for measure in ("correct", "cost")] for policy in every])
    if np.isnan(points := ahead(outcomes.mean(2).tolist())):
        return [points] * 4  # no member is as cheap
    items = np.arange(outcomes.shape[2])  # one rendering of each
    low, high = bootstrap(lambda chosen: ahead(outcomes[:, :, chosen].mean(2).tolist()), items, 300)
    common = min(len(policy.seeds) for policy in every)
    by_seed = [ahead([policy.point(mask, seed) for policy in every]) for seed in range(common)]
    return [round(float(value), 2) for value in (points, low, high, spread(by_seed)[1])]


def shifted(policies: dict[str, Policy], columns: dict) -> dict[str, dict[str, list[float]]]:
    """Policy -> tier -> [reward, cost], of policies that were evaluated with another translator."""
    return {
        name: {tier: list(reward_and_cost(policy, columns["group"] == tier).values()) for tier in TRAINED}
        for name, policy in policies.items()
    }


def cheapest_at_full_reward(pool: dict[str, Policy], family: str, kept: float = 0.985) -> str | None:
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


def dominance(pool: dict[str, Policy], ours: str, columns: dict) -> dict:
    """Against each other family: the share of the prices at which a call can pay where `ours` has more utility."""
    highest, trained = paying_prices(pool, columns), masks(columns)["trained"]
    against, members = {}, families(pool)

    def by_seed(family: str) -> list[list[Point]]:
        """For each seed that all of the family's members have, their points."""
        count = min(len(policy.seeds) for policy in members[family])
        return [[policy.point(trained, seed) for policy in members[family]] for seed in range(count)]

    for name in members:
        if name != ours:
            against[name] = share_of_prices({name: by_seed(name), ours: by_seed(ours)}, ours, highest)
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


def utilities(pool: dict[str, Policy], family: str, columns: dict) -> dict[str, dict[str, dict[str, float]]]:
    """Family -> cost weight trained for -> price -> utility over the trained tiers: of the gated policies and of the
    plain costs. Training and judgement may differ in what a call is worth."""
    trained, found = masks(columns)["trained"], {}
    for policy in sorted(pool.values(), key=lambda policy: weight_of(policy.name)):
        if policy.family in (family, "plain"):
            at_price = {f"{price:g}": round(float(utility(policy.point(trained), price)), 4) for price in PRICES}
            found.setdefault(policy.family, {})[policy.name.rpartition("-")[2]] = at_price
    return found


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
