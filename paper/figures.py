"""The figures of the experiments, from what happened to each item. Needs matplotlib, an optional extra.

    emergence.png      the tool rate over training, a line per tier
    plane.png          accuracy over cost, one mark per policy, families joined
    utility.png        utility against the price, the winner marked below
    languages.png      tool rate against native accuracy, one dot per language and domain
    introspection.png  what the lift over a coin is made of; calibration of the call

Called by reproduce.py only. The colours are Okabe and Ito's: colour-blind readers can tell them apart.

Left out: any number that is not in the result files, and styles for print.
"""

import itertools
from pathlib import Path

import numpy as np

from paper.introspection import by_language
from paper.measures import Point, frontier
from paper.policies import TRAINED, Policy, families, masks
from paper.tables import titled

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
REFERENCES = ("base", "never translate", "always translate", "oracle", "forbidden", "unconstrained")  # grey: no family


def draw(out: Path, pool: dict[str, Policy], ours: str, columns: dict, languages: dict, summary: dict) -> None:
    """Write those figures whose data are there; without matplotlib say so and write none.

    columns: of the parts "test" and "languages"; languages: "free" and "forbidden" outcomes of our policy by seed.
    """
    try:
        import matplotlib
    except ImportError:
        print("no figures: they need matplotlib, pip install matplotlib")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 10,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )
    family = ours.rpartition("-")[0]
    trained = masks(columns["test"])["trained"]
    members = families(pool)
    points = {name: [policy.point(trained) for policy in policies] for name, policies in members.items()}
    points = {name: rows for name, rows in points.items() if " on " not in name}  # those of our policy's own outcomes
    styles = styles_of(list(points))
    weights = {
        name: {policy.name.rpartition("-")[2]: policy.point(trained) for policy in members[name]}
        for name in ("plain", family)
        if name in members
    }
    drawn = {"plane": plane(plt, points, styles, weights), "utility": utilities(plt, points, styles)}
    if ours in pool:
        drawn["emergence"] = emergence(plt, pool[ours].curves)
    if languages:
        drawn["languages"] = by_language_and_domain(plt, languages, columns["languages"])
        drawn["introspection"] = introspection(plt, summary["lift"][ours], summary["calibration"])
    for name, figure in drawn.items():
        figure.savefig(out / f"{name}.png", dpi=130)
        plt.close(figure)
        print(f"written to {out / name}.png")


def styles_of(names: list[str]) -> dict[str, dict]:
    """How to draw each family: references grey, a joint form as its family with hollow marks and a broken line."""
    markers, coloured = itertools.cycle(MARKERS), itertools.cycle(zip(COLOURS, MARKERS, strict=True))
    styles = {}
    for name in names:
        if name in REFERENCES:
            styles[name] = {"color": "#777777", "marker": next(markers)}
        elif (form := name.removeprefix("joint-")) != name and form in styles:
            styles[name] = {**styles[form], "markerfacecolor": "white", "linestyle": "--"}
        else:
            styles[name] = dict(zip(("color", "marker"), next(coloured), strict=True))
    return styles


def emergence(plt, curves: list[dict]):
    """How tool use emerges: a line per tier is the mean over seeds, the thin ones are the seeds."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    steps = curves[0]["step"]
    for colour, tier in zip(COLOURS, TRAINED, strict=False):
        if tier in curves[0]["tier"]:
            rates = np.array([curve["tier"][tier]["tool_rate"] for curve in curves], dtype=float)
            axis.plot(steps, rates.T, color=colour, linewidth=0.8, alpha=0.35)
            axis.plot(steps, rates.mean(0), color=colour, linewidth=2.2)
            end = (steps[-1], rates.mean(0)[-1])
            axis.annotate(
                titled(tier), end, (6, 0), textcoords="offset points", va="center", color=colour, weight="bold"
            )
    axis.set(
        xlabel="training step",
        ylabel="tool rate (share of rollouts with a call)",
        xlim=(0, steps[-1]),
        ylim=(0, 1),
        yticks=np.arange(0, 1.1, 0.2),
    )
    return figure


def plane(plt, points: dict, styles: dict, weights: dict):
    """The accuracy-cost plane over the trained tiers: up and to the left is better. The inset shows the families in
    `weights` (family -> cost weight -> point), where the last of them is; one point alone needs none."""
    figure, axis = plt.subplots(figsize=(8, 5.2), layout="constrained")
    lines = {}
    for name, rows in points.items():
        lines[name] = np.array(sorted((cost, 100 * accuracy) for accuracy, cost in rows))
        axis.plot(*lines[name].T, **styles[name], markersize=7, linewidth=1.2, label=name)
    axis.set(
        xlabel="cost per task (1 = one call of mean length)",
        ylabel="reward (accuracy x 100)",
        title="What accuracy costs, over the trained languages",
    )
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    if all(len(found) == 1 for found in weights.values()):
        return figure
    inset = axis.inset_axes([0.36, 0.06, 0.63, 0.58])
    for name in weights:
        inset.plot(*lines[name].T, **styles[name], markersize=5, linewidth=1)
    (left, low), (right, high) = lines[name].min(0), lines[name].max(0)
    inset.set(xlim=(left - 0.13, right + 0.08), ylim=(low - 2, high + 2))
    inset.tick_params(labelsize=8)
    inset.text(0.97, 0.05, "numbers: cost weight", transform=inset.transAxes, ha="right", fontsize=8)
    axis.indicate_inset_zoom(inset, edgecolor="#777777")
    figure.draw_without_rendering()  # so that places on the page are known
    write_beside(inset, {name: (styles[name]["color"], found) for name, found in weights.items()})
    return figure


def write_beside(axis, families: dict[str, tuple[str, dict[str, Point]]]) -> None:
    """Write each point's label beside it, where it covers no line, no marker and no other label; above it if there is
    no such place. families: name -> (colour, label -> point)."""
    scale = axis.figure.dpi / 72  # pixels per point of type; all places below are in pixels
    drawn, labels, written = [], [], []
    for colour, points in families.values():
        places = {label: (cost, 100 * accuracy) for label, (accuracy, cost) in points.items()}
        labels += [(label, place, colour) for label, place in places.items()]
        line = axis.transData.transform(sorted(places.values()))
        along = np.linspace(0, len(line) - 1, 40 * len(line))
        drawn += list(np.stack([np.interp(along, range(len(line)), side) for side in line.T], axis=1))
    for label, place, colour in labels:
        centre = axis.transData.transform(place)
        if not axis.bbox.contains(*centre):
            continue
        half = scale * np.array([2.6 * len(label), 4.0])  # of a label in 8 points
        across = 2.6 * len(label) + 5
        sides = [np.array(side) for side in ((0, 10), (-across, 6), (across, -6), (0, -10), (-across, -6), (across, 6))]
        free = (
            side
            for side in sides
            if all((abs(centre + scale * side - other) > half + 2).any() for other in drawn)
            and all((abs(centre + scale * side - other) > half + size).any() for other, size in written)
        )
        side = next(free, sides[0])
        written.append((centre + scale * side, half))
        words = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
        axis.annotate(label, place, side, textcoords="offset points", **words)


def utilities(plt, points: dict, styles: dict):
    """Utility of each family at each price, without the oracle; the strip below says which is the highest."""
    prices = np.linspace(0, 1, 401)
    lines = {name: frontier(rows, prices) for name, rows in points.items() if name != "oracle"}
    names = list(lines)
    winner = np.argmax([lines[name] for name in names], axis=0)
    figure, (axis, strip) = plt.subplots(
        2, 1, figsize=(8, 4.8), sharex=True, layout="constrained", gridspec_kw={"height_ratios": [12, 1]}
    )
    for name, line in lines.items():
        axis.plot(prices, line, **styles[name], markevery=50, markersize=5, linewidth=1.2, label=name)
    for i, name in enumerate(names):
        strip.fill_between(prices, 0, 1, where=winner == i, color=styles[name]["color"], linewidth=0, step="mid")
        if (winner == i).mean() > 0.08:
            strip.text(
                prices[winner == i].mean(),
                0.5,
                name,
                ha="center",
                va="center",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )
    top = max(line.max() for line in lines.values())
    axis.set(
        ylabel="accuracy - price x cost",
        ylim=(min(0.0, min(line[0] for line in lines.values())), top + 0.03),
        title="Utility against the price per call; the best family below",
    )
    strip.set(xlabel="price per call", yticks=[], ylim=(0, 1), xlim=(0, 1))
    strip.grid(False)
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def by_language_and_domain(plt, languages: dict, columns: dict):
    """A policy that knows what it does not know: the dots of each domain fall from left to right."""
    count = len(dict.fromkeys(columns["language"]))
    domains = columns["domain"].reshape(count, -1)[0]
    native = np.mean([by_language(one, "correct", columns) for one in languages["forbidden"]], axis=0)
    used = np.mean([by_language(one, "used_tool", columns) for one in languages["free"]], axis=0)
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for colour, marker, domain in zip(COLOURS, MARKERS, dict.fromkeys(domains.tolist()), strict=False):
        cell = domains == domain
        axis.scatter(
            native[:, cell].mean(1),
            used[:, cell].mean(1),
            color=colour,
            marker=marker,
            s=30,
            alpha=0.8,
            linewidths=0,
            label=domain,
        )
    axis.set(
        xlabel="accuracy with the tool forbidden",
        ylabel="tool rate",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        title="Calls where it does not know: one dot per language and domain",
    )
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def introspection(plt, lift: dict, bins: list[dict]):
    """Left: the shares of the lift over a coin, with their intervals. Right: wrong answers without the tool, and what a
    call brings, by the probability of a call; the dashed line is a call exactly as often as the policy is wrong."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    shares = np.array(list(lift["shares"].values()), dtype=float)  # [parts, 3]: value, low, high
    left.bar(list(lift["shares"]), shares[:, 0], color=COLOURS[: len(shares)])
    ends = np.abs(shares[:, 1:] - shares[:, :1]).T
    left.errorbar(range(len(shares)), shares[:, 0], yerr=ends, fmt="none", ecolor="#333333", capsize=4)
    left.set(ylabel="percent of the lift over a coin", title=f"Lift: {lift['lift'][0]:.1f} points of reward")
    p = [row["p"] for row in bins]
    for name, colour, marker in zip(("wrong alone", "gain"), COLOURS, MARKERS, strict=False):
        right.plot(p, [row[name] for row in bins], color=colour, marker=marker, label=name)
    right.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1)
    right.set(xlabel="probability of a call", xlim=(0, 1), ylim=(-0.1, 1.05), title="Calibration of the call")
    right.legend(fontsize=9)
    return figure
