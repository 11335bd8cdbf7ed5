"""The tables of the experiments as a page of Markdown, each beside what the paper reports and what was to be shown.

    summary (of comparisons.py) -> goals, markdown -> tables.md

Called by reproduce.py only. A number with a ± is the mean and the standard deviation over seeds.
"""

import numpy as np

from paper.comparisons import GROUPS, TRAINED

PAPER_GAIN = {"high": 4.6, "low": 23.5, "xlow": 17.5, "synthetic": 18.7}
PAPER_COST, PAPER_PARETO = 63, 87
HONEST = (
    "The paper's figures are for a 4B model, real languages and a real translator; ours are for a model of about a "
    "million parameters in a constructed world with a lexicon for a translator, so that signs can be compared "
    "and sizes cannot."
)


def goals(summary: dict) -> list[list[str]]:
    """Rows of what was to be shown: what, the paper, the goal, here, whether it is reached. None without our policy."""
    ours = summary["policies"].get(summary["headline"])
    if ours is None:
        return []
    gain = {group: ours["groups"][group]["gain"] for group in GROUPS}
    rows = []

    def row(what, paper, goal, here, reached):
        rows.append([what, paper, goal, here, "yes" if reached else "no"])

    for group in TRAINED:
        row(
            f"gain {group}",
            f"+{PAPER_GAIN[group]}",
            f">= +{PAPER_GAIN[group]}",
            interval(gain[group]),
            gain[group][0] >= PAPER_GAIN[group],
        )
    new = gain["synthetic"]
    row("gain synthetic", f"+{PAPER_GAIN['synthetic']}", ">= +25", interval(new), new[0] >= 25)
    for tier in TRAINED:
        here, there = gain[f"held-out {tier}"][0], gain[tier][0]
        row(
            f"held-out {tier}",
            "transfers",
            ">= 80% of the gain",
            f"{here:+.1f} of {there:+.1f}",
            here >= 0.8 * there > 0,
        )
    for name in dict.fromkeys((summary["headline"], summary["at full reward"])):
        if name and "reward_kept" in (policy := summary["policies"][name]):
            reward, cost = policy["reward_kept"][0], policy["cost_kept"][0]
            here = f"{name}: {100 * cost:.0f}% at {100 * reward:.1f}%"
            row("cost at full reward", f"{PAPER_COST}%", "<= 63% at >= 98%", here, cost <= 0.63 and reward >= 0.98)
    for shares in summary["pareto by cost weight"].values():
        name, share = list(shares.items())[-1]  # of the gated policy
        here = f"{name}: {plus_minus(share, 0, 100)}%"
        row("Pareto share, same cost weight", f"{PAPER_PARETO}%", ">= 87%", here, share[0] >= 0.87)
    tools = [ours["groups"][tier]["tool_rate"][0] for tier in TRAINED]
    row(
        "tool rate",
        "follows resources",
        "High < Low <= XLow",
        " / ".join(f"{x:.2f}" for x in tools),
        ours["ordered in every seed"],
    )
    for domain, entry in summary.get("introspection", {}).items():
        if entry["span of native accuracy"] >= 0.3:
            row(
                f"rank correlation, {domain}",
                "",
                ">= 0.8 of its ceiling",
                f"{entry['share of ceiling']:.2f}",
                entry["share of ceiling"] >= 0.8,
            )
    row("headroom recovered", "", ">= 75%", f"{plus_minus(ours['headroom'], 0, 100)}%", ours["headroom"][0] >= 0.75)
    for other, share in summary["dominance"]["against"].items():
        if other in ("plain", "router"):
            here = f"{plus_minus(share, 0, 100)}%"
            row(f"frontier against {other}", "", ">= 80% of paying prices", here, share[0] >= 0.8)
    return rows


def section(title: str, note: str, head: list[str], rows: list[list]) -> str:
    """A heading, a sentence and a Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, rule, *rows)]
    return "\n\n".join(filter(None, (f"## {title}", note, "\n".join(lines))))


def plus_minus(value: list[float] | None, digits: int = 2, factor: float = 1) -> str:
    """Mean and, if there are several seeds, standard deviation; "-" for what is not defined."""
    if value is None or np.isnan(value[0]):
        return "-"
    mean, deviation = (factor * x for x in value)
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation else "")


def interval(value: list[float]) -> str:
    """mean [low, high], with their signs."""
    mean, low, high = (f"{x:+.1f}" for x in value)
    return f"{mean} [{low}, {high}]"


def markdown(summary: dict) -> str:
    """The summary as a page of tables. Sections whose runs are missing are left out."""
    parts = ["# Tables", summary["settings"], HONEST, *policy_sections(summary["policies"])]
    if summary["goals"]:
        head, note = ["", "the paper", "goal", "here", "reached"], f"Of {summary['headline']} where no other is named."
        parts.append(section("What was to be shown", note, head, summary["goals"]))
    parts += [pareto_section(title, shares) for title, shares in summary["pareto"].items()]
    if len(summary["pareto by cost weight"]) > 1:
        parts.append(cost_weight_section(summary["pareto by cost weight"]))
    if "dominance" in summary:
        parts.append(frontier_section(summary["dominance"]))
    if "introspection" in summary:
        parts.append(introspection_section(summary["introspection"]))
    for title, key in (("By domain", "domains"), ("By language", "languages")):
        if key in summary:
            names = list(next(iter(summary[key].values())))
            rows = [[part, *(f"{row[name]:.2f}" for name in names)] for part, row in summary[key].items()]
            parts.append(section(f"{title}: {summary['headline']}", "", ["", *names], rows))
    if "price" in summary:
        parts.append(price_section(summary["price"]))
    parts += [ablation_section(study, rows) for study, rows in summary["ablations"].items() if len(rows) > 1]
    return "\n\n".join(parts) + "\n"


def policy_sections(policies: dict) -> list[str]:
    parts = []
    for title, name, digits in (("Reward", "reward", 1), ("Tool rate", "tool_rate", 2), ("Cost", "cost", 2)):
        rows = [
            [policy, *(plus_minus(row["groups"][group][name], digits) for group in GROUPS)]
            for policy, row in policies.items()
        ]
        parts.append(section(title, "", ["policy", *GROUPS], rows))
    shown = (*TRAINED, "synthetic")
    rows = []
    for policy, row in policies.items():
        kept = [plus_minus(row.get(name), 0, 100) for name in ("headroom", "reward_kept", "cost_kept")]
        gains = [interval(row["groups"][group]["gain"]) for group in shown]
        rows.append([policy, *gains, *kept, row["seeds"], f"`{row['command']}`"])
    rows.append(["*the paper*", *(f"+{PAPER_GAIN[group]}" for group in shown), "", 100, PAPER_COST, "", ""])
    head = ["policy", *(f"gain {group}" for group in shown), "headroom", "reward kept", "cost kept", "seeds", "command"]
    note = (
        "Gain in reward with its interval. Over the trained tiers, in percent: headroom, (accuracy - base) / (oracle - "
        "base); reward and cost kept, relative to the unconstrained policy."
    )
    return [*parts, section("Gain over the base, and what is recovered and kept", note, head, rows)]


def pareto_section(title: str, shares: dict) -> str:
    names = list(shares["trained"])
    rows = [["trained tiers, by seed", *(plus_minus(shares["trained"][name], 0, 100) for name in names)]]
    for cut in ("by group", "by domain", "by language"):
        rows += [[part, *(f"{100 * share[name]:.0f}" for name in names)] for part, share in shares[cut].items()]
    low, high = (100 * x for x in shares["interval"])
    note = (
        f"Percent of the prices in [0, 1] at which the policy has the highest utility. {names[-1]} over the trained "
        f"tiers: interval [{low:.0f}, {high:.0f}]; the paper: {PAPER_PARETO}."
    )
    return section(f"Pareto share: {title}", note, ["", *names], rows)


def cost_weight_section(found: dict) -> str:
    rows = [[weight, *(plus_minus(share, 0, 100) for share in shares.values())] for weight, shares in found.items()]
    head = ["cost weight", *(name.partition("-")[0] for name in next(iter(found.values())))]
    return section("Pareto share at each cost weight", "Of the headline set, over the trained tiers.", head, rows)


def frontier_section(found: dict) -> str:
    note = (
        f"Percent of the prices at which a call can pay (0 to {found['highest price']:.2f}) where the family "
        f"{found['family']} has more utility than the other; a family's utility is that of its best member there."
    )
    rows = [[name, plus_minus(share, 0, 100)] for name, share in found["against"].items()]
    return section(f"Frontier of {found['family']}", note, ["against", "share"], rows)


def introspection_section(domains: dict) -> str:
    note = (
        "Over the languages of the three tiers, within a domain: rank correlation of the policy's own failure with the "
        "tool forbidden and its tool rate. Ceiling: the square root of the product of their split-half reliabilities, "
        "each stepped up to the full length (Spearman and Brown)."
    )
    head = ["domain", "items a cell", "span of native accuracy", "rank correlation", "ceiling", "share of ceiling"]
    rows = [
        [
            domain,
            row["items a cell"],
            row["span of native accuracy"],
            plus_minus(row["rank correlation"]),
            plus_minus(row["ceiling"]),
            row["share of ceiling"],
        ]
        for domain, row in domains.items()
    ]
    return section("Does the tool rate follow the language?", note, head, rows)


def price_section(prices: dict) -> str:
    others = sorted({name for row in prices.values() for name in row["others"]})
    rows = [
        [
            price,
            *(f"{row[name]:.3f}" for name in ("accuracy", "cost", "utility")),
            *(f"{row['others'][name]:.3f}" for name in others),
        ]
        for price, row in prices.items()
    ]
    note = (
        "Over the trained tiers, at the price that the prompt states; on the right the utility of the best member of "
        "each other family at that price."
    )
    head = ["price", "accuracy", "cost", "utility", *others]
    return section("One policy that is told the price", note, head, rows)


def ablation_section(study: str, runs: dict) -> str:
    shown, rows = (*TRAINED, "synthetic"), []
    for row in runs.values():
        groups = [row["groups"][group] for group in shown]
        cells = [f"{g['reward'][0]:.1f} / {g['tool_rate'][0]:.2f} / {g['cost'][0]:.2f}" for g in groups]
        rows.append([f"`{row['command']}`", *cells])
    return section(f"Ablation: {study}", "Reward / tool rate / cost, one seed.", ["command", *shown], rows)
