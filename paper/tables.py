"""The tables of the experiments as a page of Markdown, each beside what the paper reports and what was to be shown.

    summary (of comparisons.py) -> goals, markdown -> tables.md

Called by reproduce.py only. A number with a ± is the mean and the standard deviation over seeds.

Left out: every computation. What is printed here stands in the summary; only factors of 100 and digits are chosen.
"""

import re

import numpy as np

from paper.comparisons import GROUPS, TRAINED

PAPER_GAIN = {"high": 4.6, "low": 23.5, "xlow": 17.5, "synthetic": 18.7}
PAPER_COST, PAPER_PARETO = 63, 87
PAPER_SET = ["unconstrained", "gated"]  # that its Pareto share is of
HONEST = (
    "The paper's figures are for a 4B model, real languages and a real translator; ours are for a model of about a "
    "million parameters in a constructed world with a lexicon for a translator, so that signs can be compared "
    "and sizes cannot."
)


def titled(text: str) -> str:
    """Tiers as they are written in text: "held-out xlow" -> "held-out XLow". Codes of languages stay: "high-01"."""
    names = {"high": "High", "low": "Low", "xlow": "XLow"}
    return re.sub(r"\b(high|low|xlow)\b(?!-)", lambda found: names[found[0]], text)


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
            titled(f"gain {group}"),
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
            titled(f"held-out {tier}"),
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
    weight = summary["headline"].partition("-")[2]
    for entry in summary["pareto by set"]:
        if weight in entry["shares"]:
            share = list(entry["shares"][weight].values())[-1]  # of the gated policy
            what = f"Pareto share, {entry_title(entry)}"
            paper = f"{PAPER_PARETO}%, of prices not stated" if entry["set"] == PAPER_SET else ""
            row(what, paper, f">= {PAPER_PARETO}%", f"{plus_minus(share, 0, 100)}%", share[0] >= PAPER_PARETO / 100)
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
    parts += pareto_by_set_sections(summary["pareto by set"], summary["headline"].partition("-")[0])
    parts += [pareto_section(title, shares) for title, shares in summary["pareto"].items()]
    if "dominance" in summary:
        parts.append(frontier_section(summary["dominance"]))
    if "introspection" in summary:
        parts.append(introspection_section(summary["introspection"]))
    for title, key in (("By domain", "domains"), ("By language", "languages")):
        if key in summary:
            names = list(next(iter(summary[key].values())))
            rows = [[titled(part), *(f"{row[name]:.2f}" for name in names)] for part, row in summary[key].items()]
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
        parts.append(section(title, "", ["policy", *map(titled, GROUPS)], rows))
    shown = (*TRAINED, "synthetic")
    rows = []
    for policy, row in policies.items():
        kept = [plus_minus(row.get(name), 0, 100) for name in ("headroom", "reward_kept", "cost_kept")]
        gains = [interval(row["groups"][group]["gain"]) for group in shown]
        rows.append([policy, *gains, *kept, row["seeds"], f"`{row['command']}`"])
    rows.append(["*the paper*", *(f"+{PAPER_GAIN[group]}" for group in shown), "", 100, PAPER_COST, "", ""])
    head = [
        "policy",
        *(titled(f"gain {group}") for group in shown),
        "headroom",
        "reward kept",
        "cost kept",
        "seeds",
        "command",
    ]
    note = (
        "Gain in reward with its interval. Over the trained tiers, in percent: headroom, (accuracy - base) / (oracle - "
        "base); reward and cost kept, relative to the unconstrained policy."
    )
    return [*parts, section("Gain over the base, and what is recovered and kept", note, head, rows)]


def entry_title(entry: dict) -> str:
    """An entry of "pareto by set" in words: the set, and the range of prices."""
    return f"{{{', '.join(entry['set'])}}}, prices 0 to {entry['highest price']:g}"


def pareto_by_set_sections(entries: list[dict], family: str) -> list[str]:
    """The gated policy's share in every set, and all shares in the largest set, at each cost weight."""
    weights = list(dict.fromkeys(weight for entry in entries for weight in entry["shares"]))
    if not weights:
        return []
    rows = []
    for entry in entries:
        gated = {weight: list(shares.values())[-1] for weight, shares in entry["shares"].items()}
        cells = [plus_minus(gated.get(weight), 0, 100) for weight in weights]
        rows.append([", ".join(entry["set"]), f"0 to {entry['highest price']:g}", *cells])
    note = (
        f"Percent of the prices at which the gated policy ({family}) has the highest utility of the set, over the "
        "trained tiers, by cost weight. It depends on the set: beside the unconstrained policy the question is whether "
        "to mind the cost at all, beside a plain cost of the same weight whether the gate is worth having. The paper "
        f"states {PAPER_PARETO}% beside an unconstrained policy, over prices that our source does not give."
    )
    found = [section("Pareto share of the gated policy, by set", note, ["set", "prices", *weights], rows)]
    for entry in entries[-2:]:
        rows = [[w, *(plus_minus(share, 0, 100) for share in shares.values())] for w, shares in entry["shares"].items()]
        title = f"Pareto shares in {entry_title(entry)}"
        found.append(section(title, "Percent, over the trained tiers.", ["cost weight", *entry["set"]], rows))
    return found


def pareto_section(title: str, shares: dict) -> str:
    names = list(shares["trained"])
    rows = [["trained tiers, by seed", *(plus_minus(shares["trained"][name], 0, 100) for name in names)]]
    for cut in ("by group", "by domain", "by language"):
        rows += [[titled(part), *(f"{100 * share[name]:.0f}" for name in names)] for part, share in shares[cut].items()]
    low, high = (100 * x for x in shares["interval"])
    note = (
        "Percent of the prices from 0 to 1 at which the policy has the highest utility of the set. "
        f"{names[-1]} over the trained tiers: interval [{low:.0f}, {high:.0f}]."
    )
    return section(f"Pareto shares in {{{title}}}, by language", note, ["", *names], rows)


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
    head = ["domain", "items per cell", "span of native accuracy", "rank correlation", "ceiling", "share of ceiling"]
    rows = [
        [
            domain,
            row["items per cell"],
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
    return section(f"Ablation: {study}", "Reward / tool rate / cost, one seed.", ["command", *map(titled, shown)], rows)
