"""Does the policy know what it does not know? Whether calls follow ignorance, and how finely.

    outcomes in every language: free (with the probability of a call), forbidden, forced -> tables of the summary

Called by reproduce.py. The same policy three times: left to itself, with the tool forbidden, with a call on every item.
The probability p of a call is exact, and what a call brings, g = correct with it - correct without it, is measured with
other uniform numbers than the policy's own answers.

A policy that calls with probability p_i is right in native_i + p_i g_i of the cases; a coin that calls as often in
mean(native) + mean(p) mean(g). The difference is Cov(p, g): the lift of choosing *where* to call.

Left out: the hidden states. What is asked is what the policy does.
"""

import numpy as np

from paper.measures import bootstrap, calibration, covariance_parts, share_of, spearman, split_half_ceiling, spread

TABLES = ("language", "domain", "level")  # each within the ones before; what is left is the single item
PARTS = (*TABLES, "item")


def cells(columns: dict[str, np.ndarray], tables: tuple[str, ...] = TABLES) -> list[np.ndarray]:
    """For each of `tables` the number of the cell that each entry is in, [N]: languages, domains of a language, ..."""
    found, number = [], np.zeros(len(columns["language"]), dtype=int)
    for name in tables:
        _, inner = np.unique(columns[name], return_inverse=True)
        _, number = np.unique(number * (inner.max() + 1) + inner, return_inverse=True)
        found.append(number)
    return found


def lift(free: list[dict], forbidden: list[dict], forced: list[dict], columns: dict, draws: int = 300) -> dict:
    """How much of the lift over a coin a table of languages explains, what domains and levels within them add, and what
    is left for the single item: "lift" in points of reward and "shares" in percent, each [value, low, high]; means over
    seeds, with intervals over items."""
    pairs = [(f["call_p"], t["correct"] - n["correct"]) for f, n, t in zip(free, forbidden, forced, strict=True)]
    tables = cells(columns)

    def measured(chosen: np.ndarray) -> np.ndarray:
        """[1 + parts]: the lift, and the share of each part."""
        inside = [table[chosen] for table in tables]
        parts = np.mean([covariance_parts(p[chosen], g[chosen], inside) for p, g in pairs], axis=0)
        total = parts.sum()
        return np.array([total, *(parts / total if total else np.full(len(parts), np.nan))])

    values = measured(np.arange(len(columns["language"])))
    found = np.round(100 * np.stack([values, *bootstrap(measured, columns["item"], draws)], axis=1), 2).tolist()
    return {"lift": found[0], "shares": dict(zip(PARTS, found[1:], strict=True))}


def calibrated(free: list[dict], forbidden: list[dict], forced: list[dict]) -> list[dict]:
    """Bins of the probability of a call: mean p beside the share of wrong answers without the tool, "wrong alone", and
    beside "gain", what a call would bring; all seeds together."""

    def joined(outcomes: list[dict], name: str) -> np.ndarray:
        return np.concatenate([one[name] for one in outcomes])

    native = joined(forbidden, "correct")
    happened = {"wrong alone": 1 - native, "gain": joined(forced, "correct") - native}
    bins = calibration(joined(free, "call_p"), happened)
    return [{name: round(value, 4) for name, value in row.items()} for row in bins]


def follows(free: list[dict], forbidden: list[dict], forced: list[dict], columns: dict) -> dict[str, dict]:
    """Does a call go by ignorance or by its value? Over cells of items, the correlation (Pearson's) of the mean
    probability of a call with the share of wrong answers without the tool, and with what a call brings; and of each
    given the other, the partial correlation. All seeds together, cells weigh the same. Small cells blur the second
    more, since it is a difference of two measured outcomes."""

    def means(outcomes: list[dict], name: str) -> np.ndarray:
        return np.mean([one[name] for one in outcomes], axis=0)

    native = means(forbidden, "correct")
    p, wrong, gain = means(free, "call_p"), 1 - native, means(forced, "correct") - native
    tiers = np.array([name.rpartition("-")[0] for name in columns["language"]])
    found = {}
    for table, names in (("tier and domain", ("language", "domain")), ("language, domain and level", TABLES)):
        parts = columns if "level" in names else columns | {"language": tiers}
        cell = cells(parts, names)[-1]
        called, alone, brings = (np.bincount(cell, values) / np.bincount(cell) for values in (p, wrong, gain))
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN where one of them is constant
            (_, with_alone, with_gain), (*_, between), _ = np.corrcoef([called, alone, brings])
            found[table] = {
                "cells": len(called),
                "wrong alone": with_alone,
                "gain": with_gain,
                "wrong alone, given the gain": _partial(with_alone, with_gain, between),
                "gain, given wrong alone": _partial(with_gain, with_alone, between),
            }
    return {table: {name: round(float(value), 3) for name, value in row.items()} for table, row in found.items()}


def _partial(xy: float, xz: float, yz: float) -> float:
    """The correlation of x and y that is left once both are freed of z, from the three correlations."""
    return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def by_language(outcomes: dict, name: str, columns: dict) -> np.ndarray:
    """[L, N]: the measure of each language's items; every language renders the same N items in the same order."""
    return outcomes[name].reshape(len(dict.fromkeys(columns["language"])), -1)


def rank_correlations(free: list[dict], forbidden: list[dict], columns: dict) -> dict:
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


def language_table(free: list[dict], forbidden: list[dict], forced: list[dict], columns: dict) -> dict:
    """Per language: accuracy without the tool, with a call on every item and left to itself, tool rate and cost; means
    over seeds and domains."""
    names = list(dict.fromkeys(columns["language"].tolist()))

    def rates(outcomes, measure):
        return np.mean([by_language(one, measure, columns).mean(1) for one in outcomes], axis=0).round(4)

    parts = {
        "native": rates(forbidden, "correct"),
        "forced": rates(forced, "correct"),
        "accuracy": rates(free, "correct"),
        "tool_rate": rates(free, "used_tool"),
        "cost": rates(free, "cost"),
    }
    return {name: {part: float(values[i]) for part, values in parts.items()} for i, name in enumerate(names)}
