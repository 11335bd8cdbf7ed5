"""The tables of the experiments as a page of Markdown, each beside what the paper reports and what was to be shown.

    summary (of reproduce.py) -> markdown -> tables.md

Called by reproduce.py only. A number with a ± is the mean and the standard deviation over seeds.

Left out: every computation. What is printed here stands in the summary; only factors of 100 and digits are chosen.
"""

import re

import numpy as np

from paper.introspection import PARTS
from paper.policies import GROUPS, TRAINED

PAPER_GAIN = {"high": 4.6, "low": 23.5, "xlow": 17.5, "synthetic": 18.7}
PAPER_COST, PAPER_PARETO = 63, 87
HONEST = (
    "The paper's figures are for a 4B model, real languages and a real translator; ours are for a model of about a "
    "million parameters in a constructed world with a lexicon for a translator, so that signs can be compared "
    "and sizes cannot."
)


def titled(text: str) -> str:
    """Tiers as they are written in text: "held-out xlow" -> "held-out XLow". Codes of languages stay: "high-01"."""
    names = {"high": "High", "low": "Low", "xlow": "XLow"}
    return re.sub(r"\b(high|low|xlow)\b(?!-)", lambda found: names[found[0]], text)


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


def percent(share: float, digits: int = 0) -> str:
    """A share in percent; "-" for what is not defined."""
    return "-" if np.isnan(share) else f"{100 * share:.{digits}f}%"


def interval(value: list[float]) -> str:
    """mean [low, high], with their signs."""
    mean, low, high = (f"{round(x, 1) + 0.0:+.1f}" for x in value)  # + 0.0: no -0.0
    return f"{mean} [{low}, {high}]"


def with_deviation(value: list[float]) -> str:
    """mean [low, high] over items and, if there are several seeds, ± the deviation over them; "-" if not defined."""
    if np.isnan(value[0]):
        return "-"
    return interval(value[:3]) + (f" ± {value[3]:.1f}" if value[3] else "")


def reward_at_cost(one: dict) -> str:
    return f"{one['reward']:.1f} at {one['cost']:.2f}"


def markdown(summary: dict) -> str:
    """The summary as a page of tables. Sections whose runs are missing are left out."""
    parts = ["# Tables", summary["settings"], HONEST, *policy_sections(summary["policies"])]
    if summary["goals"]:
        head = ["", "the paper", "goal", "here", "reached"]
        note = f"Of {summary['headline']} where no other is named, on clean items where it was evaluated on them."
        parts.append(section("What was to be shown", note, head, summary["goals"]))
    default = summary["headline"].rpartition("-")[2]
    if default in summary["pareto"]:
        parts.append(pareto_section(f"Pareto shares, cost weight {default}", summary["pareto"][default]))
        parts.append(weights_section(summary["pareto"]))
    if summary["over-suppression"]:
        parts.append(suppression_section("Does the plain cost over-suppress?", summary["over-suppression"]))
    if of_clean := summary["clean"]["pareto"]:  # fewer policies are evaluated on clean items
        if default in of_clean:
            parts.append(pareto_section(f"Pareto shares on clean items, cost weight {default}", of_clean[default]))
        parts.append(weights_section(of_clean, " on clean items"))
        parts.append(suppression_section("Plain cost and gate on clean items", summary["clean"]["over-suppression"]))
    if summary["clean"]["given up"]:
        parts.append(given_up_section(summary["clean"]["given up"]))
    parts += [utility_section(family, weights) for family, weights in summary["utility"].items()]
    if summary["shift"]:
        parts.append(shift_section(summary["shift"]))
    if "dominance" in summary:
        parts.append(frontier_section(summary["dominance"]))
    if "lift" in summary:
        parts += [lift_section(summary["lift"]), calibration_section(summary["calibration"])]
        parts.append(follows_section(summary["follows"]))
        parts.append(introspection_section(summary["introspection"]))
    for title, key in (("By domain", "domains"), ("By language", "languages")):
        if key in summary:
            names = list(next(iter(summary[key].values())))
            rows = [[titled(part), *(f"{row[name]:.2f}" for name in names)] for part, row in summary[key].items()]
            parts.append(section(f"{title}: {summary['headline']}", "", ["", *names], rows))
    if "price" in summary:
        parts.append(price_section(summary["price"]))
    parts.append(names_only_section(summary["names only"]))
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
        gains = []
        for group in (row["groups"][group] for group in shown):
            low, high = group["gain, languages resampled"]
            gains.append(f"{interval(group['gain'])} ({low:+.1f}, {high:+.1f})")
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
        "Gain in reward with its interval over items and, in round brackets, with languages resampled too. Over the "
        "trained tiers, in percent: headroom, (accuracy - base) / (oracle - base); reward and cost kept, relative to "
        "the unconstrained policy."
    )
    return [*parts, section("Gain over the base, and what is recovered and kept", note, head, rows)]


def place(entry: dict) -> list[str]:
    """Which share of prices it is, in words."""
    return [", ".join(entry["set"]), f"0 to {entry['highest price']:g}", titled(entry["cut"])]


def pareto_section(title: str, entries: list[dict]) -> str:
    """The shares of one gated policy, with what else would win beside them."""
    contenders = list(dict.fromkeys(name for entry in entries for name in entry["shares"]))
    rows = [
        [*place(entry), *(plus_minus(entry["shares"].get(name), 0, 100) for name in contenders)] for entry in entries
    ]
    note = (
        "Percent of the prices at which the gated policy has the highest utility of the set; beside it the share of "
        "what stands in its place: a coin that translates as often (from the gated policy's own outcomes with the tool "
        "forbidden and forced), the router whose cost is nearest, the plain cost of the same weight. What they win too "
        "is no merit of the gate. ± is over all choices of one seed for each policy. The paper states "
        f"{PAPER_PARETO}% beside an unconstrained policy, over prices that are not known to us."
    )
    return section(title, note, ["set", "prices", "languages", *contenders], rows)


def weights_section(by_weight: dict[str, list[dict]], where: str = "") -> str:
    """The gated policy's share at every cost weight."""
    shares = {
        weight: {tuple(place(entry)): entry["shares"]["gated"] for entry in entries}
        for weight, entries in by_weight.items()
    }
    places = dict.fromkeys(found for of_weight in shares.values() for found in of_weight)
    rows = [[*found, *(plus_minus(shares[weight].get(found), 0, 100) for weight in shares)] for found in places]
    title = f"Pareto share of the gated policy{where}, by cost weight"
    return section(title, "Percent.", ["set", "prices", "languages", *shares], rows)


def suppression_section(title: str, entries: list[dict]) -> str:
    def cell(one: dict) -> str:
        rates = f"{percent(one['mixed_reversed'])} / {percent(one['reversed'])}"
        return f"{reward_at_cost(one)}, {rates}"

    rows = [
        [
            entry["form"],
            entry["cost weight"],
            titled(entry["tier"]),
            cell(entry["plain"]),
            cell(entry["gated"]),
            interval(entry["difference"]),
            *(
                with_deviation(entry[name]) if name in entry else "-"
                for name in ("at equal cost", "at equal cost, last")
            ),
        ]
        for entry in entries
    ]
    note = (
        "Reward at cost, and the share of right answers with a call that training punished: in groups that hold a "
        "wrong answer too / in all groups. Difference: gated less plain, with its interval over items. At equal cost: "
        "gated less what the family of plain costs, from unconstrained to no call at all, has for as much, between two "
        "of which a coin may choose; interval over items, ± over seeds. Then the same of the last checkpoints."
    )
    head = ["form", "cost weight", "languages", "plain cost", "gated", "difference", "at equal cost", "of the last"]
    return section(title, note, head, rows)


def given_up_section(entries: list[dict]) -> str:
    """Domain by domain, what the gated policy saves and what it gives up for that."""
    rows = [
        [
            titled(entry["tier"]),
            entry["domain"],
            *(reward_at_cost(entry[who]) for who in ("unconstrained", "gated")),
            interval(entry["difference"]),
        ]
        for entry in entries
    ]
    note = "Reward at cost, and the gated policy's reward less the unconstrained one's with its interval over items."
    head = ["languages", "domain", "unconstrained", "gated", "difference"]
    return section("What the gate gives up on clean items", note, head, rows)


def utility_section(family: str, weights: dict) -> str:
    prices = list(next(iter(weights.values())))
    rows = [[weight, *(f"{utilities[price]:.3f}" for price in prices)] for weight, utilities in weights.items()]
    note = "Accuracy - price x cost over the trained tiers, by the cost weight of training and the price of judgement."
    return section(f"A price other than trained for: {family}", note, ["cost weight", *prices], rows)


def shift_section(tables: dict) -> str:
    rows = [
        [words, policy, *(f"{reward:.1f} at {cost:.2f}" for reward, cost in tiers.values())]
        for words, table in tables.items()
        for policy, tiers in table.items()
    ]
    note = "Reward at cost with another translator than in training; `--tool-noise` of High, Low, XLow, or one for all."
    head = ["tool noise", "policy", *map(titled, TRAINED)]
    return section("Another translator at test time", note, head, rows)


def lift_section(policies: dict) -> str:
    def cell(value: list[float], digits: int) -> str:
        mean, low, high = value
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    note = (
        "What choosing where to call is worth, against a coin that calls as often: the covariance of the probability "
        "of a call and of what a call brings, in points of reward. Shares of it, in percent: what a table of languages "
        "explains, what domains within languages and levels within those add, and what is left for the single item. "
        "Intervals over items; no shares of a lift whose interval holds 0."
    )
    rows = [
        [name, cell(found["lift"], 1), *(cell(s, 0) if found["lift"][1] > 0 else "-" for s in found["shares"].values())]
        for name, found in policies.items()
    ]
    head = ["policy", "lift", *PARTS]
    return section("Introspection: what the lift over a coin is made of", note, head, rows)


def calibration_section(bins: list[dict]) -> str:
    note = (
        "Items in every language by the probability of a call. Wrong alone: share of wrong answers with the tool "
        "forbidden. Gain: what a call brings. A policy that knew its ignorance would call where it is wrong alone, one "
        "that knew the value of a call where that gains."
    )
    names = list(bins[0])
    return section("Calibration of the call", note, names, [[f"{row[name]:.2f}" for name in names] for row in bins])


def follows_section(tables: dict) -> str:
    names = [name for name in next(iter(tables.values())) if name != "cells"]
    rows = [
        [table, f"{row['cells']:.0f}", *(plus_minus([row[name], 0]) for name in names)] for table, row in tables.items()
    ]
    note = (
        "Over cells of items, the correlation of the probability of a call with the share of wrong answers without the "
        "tool and with what a call brings, and of each given the other. Small cells blur the gain more."
    )
    return section("Ignorance, or the value of a call?", note, ["cells by", "cells", *names], rows)


def names_only_section(parts: dict) -> str:
    names = list(next(iter(parts.values())))
    rows = [[part, *(f"{100 * shares[name]:.0f}" for name in names)] for part, shares in parts.items()]
    note = "Percent of the items whose sentences are those of a training item but for personal names."
    return section("Items that differ from training items in names only", note, ["items", *names], rows)


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
            percent(row["share of ceiling"]),
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
        rates = row.get("mixed_reversed", {})
        cells.append(" / ".join(percent(rate) for rate in rates.values()))
        rows.append([f"`{row['command']}`", *cells])
    note = "Reward / tool rate / cost, one seed. Reversed: in groups that hold a wrong answer, High / Low / XLow."
    return section(f"Ablation: {study}", note, ["command", *map(titled, shown), "reversed"], rows)
