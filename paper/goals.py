"""What was to be shown, and whether it is: a row for each claim, computed from the summary.

    summary (of reproduce.py) -> rows: what, the paper, the goal, here, yes or no

Called by reproduce.py. The figures are those on clean items where there are any, and of the last checkpoint where a row
says so.
"""

from paper.policies import TRAINED, weight_of
from paper.tables import (
    PAPER_COST,
    PAPER_GAIN,
    PAPER_PARETO,
    interval,
    percent,
    plus_minus,
    reward_at_cost,
    titled,
    with_deviation,
)

Row = list[str]


def row(what: str, paper: str, goal: str, here: str, reached: bool) -> Row:
    return [what, paper, goal, here, "yes" if reached else "no"]


def rows(summary: dict) -> list[Row]:
    """All that can be computed from what is there; none without our policy."""
    if summary["headline"] not in summary["policies"]:
        return []
    found = [*cost_row(summary), *gain_rows(summary), *suppression_rows(summary)]
    return [*found, *full_reward_row(summary), *pareto_rows(summary), *reversed_row(summary)]


def chosen(summary: dict, name: str, last: bool = False) -> dict | None:
    """The row of a policy: on clean items if there is one, of the last checkpoint if asked for."""
    policies, suffix = summary["policies"], ", last" if last else ""
    return policies.get(f"{name}, clean{suffix}", policies.get(f"{name}{suffix}"))


def cost_row(summary: dict) -> list[Row]:
    """Lambda moves the cost, and no member gives up half of the calls that the reward needs."""
    family = summary["policies"][summary["headline"]]["family"]
    members = {name: entry for name, entry in summary["policies"].items() if entry["family"] == family}
    names = sorted((name for name in members if "," not in name), key=weight_of)
    if len(names) < 4 or summary["at full reward"] not in members:
        return []
    costs = [members[name]["groups"]["trained"]["cost"][0] for name in names]
    needed = members[summary["at full reward"]]["groups"]["trained"]["cost"][0]
    ordered = all(low > high for low, high in zip(costs, costs[1:], strict=False))
    here = ", ".join(f"{cost:.2f} at {weight_of(name):g}" for name, cost in zip(names, costs, strict=True))
    goal = f"falls with the cost weight, never below half of {needed:.2f}, the cost at full reward"
    return [row("the cost follows lambda", "", goal, here, ordered and min(costs) >= needed / 2)]


def gain_rows(summary: dict) -> list[Row]:
    """The gain in each tier as a share of what a call on every item brings, and that on languages in no training."""
    ours, always = chosen(summary, summary["headline"]), chosen(summary, "always translate")
    found, goal = [], ">= 90% of what a call on every item brings"
    for tier in TRAINED:
        gain, forced = ours["groups"][tier]["gain"], always["groups"][tier]["gain"][0]
        here = f"{gains(ours['groups'][tier])}; a call on every item {forced:+.1f}"
        found.append(row(titled(f"gain {tier}"), f"+{PAPER_GAIN[tier]}", goal, here, gain[0] >= 0.9 * forced))
    new = ours["groups"]["synthetic"]
    found.append(row("gain synthetic", f"+{PAPER_GAIN['synthetic']}", ">= +25", gains(new), new["gain"][0] >= 25))
    if main_job := summary["policies"].get("low"):
        forced = summary["policies"]["always translate"]["groups"]["low"]["gain"][0]
        here = f"{gains(main_job['groups']['low'])}; a call on every item {forced:+.1f}"
        reached = main_job["groups"]["low"]["gain"][0] >= 0.9 * forced
        found.append(row("gain Low, trained on Low alone", "", goal, here, reached))
    return found


def gains(group: dict) -> str:
    """A gain with its interval over items, and that over languages."""
    low, high = group["gain, languages resampled"]
    return f"{interval(group['gain'])}, languages resampled [{low:+.1f}, {high:+.1f}]"


def suppression_rows(summary: dict) -> list[Row]:
    """On XLow the plain cost loses what the gate keeps, at the default cost weight and at all others."""
    found, default = [], summary["headline"].rpartition("-")[2]
    entries = [e for e in summary["over-suppression"] if e["tier"] == "xlow" and e["form"] == "default"]
    for entry in sorted(entries, key=lambda e: e["cost weight"] != default):
        plain, gated = (reward_at_cost(entry[who]) for who in ("plain", "gated"))
        here = f"plain {plain}, gated {gated}: {interval(entry['difference'])}"
        what, goal = f"XLow, plain cost against gate, lambda {entry['cost weight']}", "the gate has more"
        found.append(row(what, "over-suppression", goal, here, entry["difference"][1] > 0))
        found.append(equal_cost_row(f"{what}, at equal cost", entry))
    of_clean = [e for e in summary["clean"]["over-suppression"] if (e["tier"], e["cost weight"]) == ("xlow", default)]
    return [*found, *(equal_cost_row("XLow, at equal cost, clean items", entry) for entry in of_clean)]


def equal_cost_row(what: str, entry: dict) -> Row:
    """Of the last checkpoints, if there are all that it takes: nothing was chosen there."""
    last = entry.get("at equal cost, last")
    here = with_deviation(entry["at equal cost"])
    here += f"; of the last checkpoints {with_deviation(last)}" if last else ""
    return row(what, "", "the gate has more", here, (last or entry["at equal cost"])[1] > 0)


def full_reward_row(summary: dict) -> list[Row]:
    entry = chosen(summary, summary["headline"], last=True)
    if entry is None or "reward_kept" not in entry:
        return []
    reward, cost = entry["reward_kept"], entry["cost_kept"]
    here = f"{plus_minus(cost, 0, 100)}% of the cost for {plus_minus(reward, 1, 100)}% of the reward"
    goal = f"<= {PAPER_COST}% of the cost for >= 98.5%, last checkpoint"
    return [row("full reward at", f"{PAPER_COST}%", goal, here, cost[0] <= PAPER_COST / 100 and reward[0] >= 0.985)]


def pareto_rows(summary: dict) -> list[Row]:
    """In the set of the paper's own comparison, on clean items if there are any; beside it the share on test items and
    what stands in the gated policy's place there."""
    found, default = [], summary["headline"].rpartition("-")[2]
    on_clean, on_test = summary["clean"]["pareto"].get(default, []), summary["pareto"][default]
    for cut in ("trained", "low", "xlow"):
        clean, test = (papers_shares(entries, cut) for entries in (on_clean, on_test))
        if not test:
            continue
        gated = (clean or test)["gated"]
        here = [f"{plus_minus(gated, 0, 100)}%"] + ([f"test items {percent(test['gated'][0])}"] if clean else [])
        here += [f"{name} {percent(share[0])}" for name, share in test.items() if name != "gated"]
        where, paper = ("", f"{PAPER_PARETO}%") if cut == "trained" else (titled(f", {cut}"), "95 to 100%")
        what, reached = f"Pareto share beside the unconstrained policy{where}", gated[0] >= 0.95
        found.append(row(what, paper, ">= 95%", ", ".join(here), reached))
    return found


def papers_shares(entries: list[dict], cut: str) -> dict[str, list[float]]:
    """contender -> [share, deviation] of the prices from 0 to 1 beside the unconstrained policy; empty without it."""
    place = (["unconstrained", "gated"], 1, cut)
    found = [entry["shares"] for entry in entries if (entry["set"], entry["highest price"], entry["cut"]) == place]
    return found[0] if found else {}


def reversed_row(summary: dict) -> list[Row]:
    """Right answers with a call that training punished, in groups that hold a wrong answer too: all tiers."""
    weight = summary["headline"].rpartition("-")[2]
    rates = [
        summary["policies"].get(name, {}).get("mixed_reversed") for name in (summary["headline"], f"plain-{weight}")
    ]
    if None in rates:
        return []
    ours, plain = (" / ".join(percent(rate[tier], 1) for tier in TRAINED) for rate in rates)
    here = f"{ours}; plain cost {plain}"
    reached = all(rates[0][tier] <= 0.01 for tier in TRAINED)
    return [row("reversed in mixed groups, High / Low / XLow", "", "gated at most 1%", here, reached)]
