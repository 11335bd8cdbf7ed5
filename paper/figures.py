"""The figures of the experiments, from what happened to each item. Needs matplotlib, an optional extra.

    training.png     the tool rate over training, per tier and per domain
    plane.png        accuracy over cost, one mark for each policy, families joined
    utility.png      utility against the price, the winner marked below
    languages.png    tool rate against native accuracy, one dot for each language and domain

Called by reproduce.py only. The colours are Okabe and Ito's: colour-blind readers can tell them
apart.
"""

import itertools
from pathlib import Path

import numpy as np

from paper.comparisons import TRAINED, Policy, by_language, families, masks
from paper.measures import frontier

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"
REFERENCES = ("base", "never translate", "always translate", "oracle", "forbidden", "unconstrained")  # grey: no family


def draw(out: Path, pool: dict[str, Policy], ours: str, columns: dict, languages: dict, curves: list[dict]) -> None:
    """Write those figures whose data are there; without matplotlib say so and write none.

    columns: of the parts "test" and "languages"; languages: "free" and "forbidden" outcomes of our policy by seed;
    curves: of its training, by seed.
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
    family = ours.partition("-")[0]
    trained = masks(columns["test"])["trained"]
    members = families(pool)
    points = {name: [policy.point(trained) for policy in policies] for name, policies in members.items()}
    points = {name: rows for name, rows in points.items() if " on " not in name}  # those of our policy's own outcomes
    colours = itertools.cycle(COLOURS)
    styles = {
        name: (marker, "#777777" if name in REFERENCES else next(colours))
        for name, marker in zip(points, itertools.cycle(MARKERS), strict=False)
    }
    weights = {
        name: {policy.name.partition("-")[2]: policy.point(trained) for policy in members.get(name, [])}
        for name in ("plain", family)
    }
    drawn = {"plane": plane(plt, points, styles, weights), "utility": utilities(plt, points, styles)}
    if curves:
        drawn["training"] = training(plt, curves, ours)
    if languages:
        drawn["languages"] = introspection(plt, languages, columns["languages"], family)
    for name, figure in drawn.items():
        figure.savefig(out / f"{name}.png", dpi=130)
        plt.close(figure)
        print(f"written to {out / name}.png")


def training(plt, curves: list[dict], ours: str):
    """Mean over seeds as a line, their range as a band."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, cut in zip(axes, ("tier", "domain"), strict=True):
        names = TRAINED if cut == "tier" else sorted(curves[0][cut])
        for colour, marker, name in zip(COLOURS, MARKERS, names, strict=False):
            if name not in curves[0][cut]:
                continue
            rates = np.array([curve[cut][name]["tool_rate"] for curve in curves], dtype=float)
            axis.fill_between(curves[0]["step"], rates.min(0), rates.max(0), color=colour, alpha=0.2, linewidth=0)
            axis.plot(
                curves[0]["step"], rates.mean(0), color=colour, marker=marker, markevery=4, markersize=4, label=name
            )
        axis.set(xlabel="training step", title=f"by {cut}", ylim=(0, 1.3), yticks=np.arange(0, 1.1, 0.2))
        axis.legend(fontsize=9, ncols=3, loc="upper center")
    axes[0].set_ylabel("tool rate of the rollouts")
    figure.suptitle(f"How tool use emerges ({ours}, mean and range of {len(curves)} seeds)", fontsize=11)
    return figure


def plane(plt, points: dict, styles: dict, weights: dict):
    """The accuracy-cost plane over the trained tiers: up and to the left is better. A number is the cost weight."""
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for name, rows in points.items():
        rows = sorted(rows, key=lambda point: point[1])
        marker, colour = styles[name]
        axis.plot(
            [cost for _, cost in rows],
            [100 * accuracy for accuracy, _ in rows],
            color=colour,
            marker=marker,
            markersize=7,
            linewidth=1.2,
            label=name,
        )
    for name, place, side in zip(weights, ((-4, 4), (4, -11)), ("right", "left"), strict=True):
        for weight, (accuracy, cost) in weights[name].items():
            axis.annotate(
                weight,
                (cost, 100 * accuracy),
                place,
                textcoords="offset points",
                ha=side,
                fontsize=8,
                color=styles[name][1],
            )
    axis.set(
        xlabel="cost a task (1 = one call of mean length)",
        ylabel="reward (accuracy x 100)",
        title="What accuracy costs, over the trained languages",
    )
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


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
        marker, colour = styles[name]
        axis.plot(prices, line, color=colour, marker=marker, markevery=50, markersize=5, linewidth=1.2, label=name)
    for i, name in enumerate(names):
        strip.fill_between(prices, 0, 1, where=winner == i, color=styles[name][1], linewidth=0, step="mid")
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
        title="Utility against the price of a call; the best family below",
    )
    strip.set(xlabel="price of a call (lambda)", yticks=[], ylim=(0, 1), xlim=(0, 1))
    strip.grid(False)
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def introspection(plt, languages: dict, columns: dict, family: str):
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
        title=f"Calls where it does not know ({family} gate): a dot is a language in a domain",
    )
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
