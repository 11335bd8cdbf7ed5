"""What policies are compared by: utility, Pareto share, what is kept, routers, and whether calls follow ignorance.

    outcomes of items (correct, cost, ...) -> a point (accuracy, cost) -> shares, ratios, correlations

Called by comparisons.py, pareto.py and introspection.py. Pure functions over numpy arrays, one entry per item; nothing
here knows of models or files.

Left out: p-values. Intervals are paired bootstraps over items, as in eval.py.
"""

import itertools
from collections.abc import Callable

import numpy as np

Point = tuple[float, float]  # accuracy and cost per task, of one policy


def utility(point: Point, price):
    """U(lambda) = accuracy - lambda * cost. `price` (lambda) is a number or an array."""
    accuracy, cost = point
    return accuracy - np.asarray(price) * cost


def frontier(points: list[Point], price):
    """A family's utility: at each price that of its best member there."""
    return np.max([utility(point, price) for point in points], axis=0)


def pareto_shares(families: dict[str, list[Point]], highest: float = 1.0) -> dict[str, float]:
    """For each family the share of prices in [0, highest] at which one of its members has the highest utility.

    Exact: utilities are lines in the price, so a member is the best on one interval. Equal points share an interval.
    """
    points = [point for family in families.values() for point in family]
    return {
        name: sum(_best_interval(point, points, highest) / points.count(point) for point in family) / highest
        for name, family in families.items()
    }


def _best_interval(point: Point, points: list[Point], highest: float) -> float:
    """Length of the interval of prices at which no other point has a higher utility."""
    accuracy, cost = point
    low, high = 0.0, highest
    for other_accuracy, other_cost in points:
        if other_cost > cost:  # the other pays more for a call: it loses from this price on
            low = max(low, (other_accuracy - accuracy) / (other_cost - cost))
        elif other_cost < cost:
            high = min(high, (accuracy - other_accuracy) / (cost - other_cost))
        elif other_accuracy > accuracy:
            return 0.0
    return max(0.0, high - low)


def coin(rate: float, native: Point, forced: Point) -> Point:
    """What a policy has to expect that translates a share `rate` of the items, whichever: a mean of its own points with
    the tool forbidden and with a call on every item."""
    accuracy, cost = (
        (1 - rate) * without + rate * with_call for without, with_call in zip(native, forced, strict=True)
    )
    return accuracy, cost


def at_cost(points: list[Point], cost: float) -> float:
    """The accuracy that a family reaches for at most `cost`: of a member, or of two between which a coin chooses, which
    is a straight line in the plane. NaN if every member costs more."""
    found = [accuracy for accuracy, price in points if price <= cost]
    for low_accuracy, low in points:
        for high_accuracy, high in points:
            if low <= cost < high:
                found.append(low_accuracy + (high_accuracy - low_accuracy) * (cost - low) / (high - low))
    return max(found, default=float("nan"))


def headroom_recovered(accuracy: float, base: float, oracle: float) -> float:
    """(accuracy - base) / (oracle - base); above 1 for a policy that also learned to answer. NaN without room."""
    return (accuracy - base) / (oracle - base) if oracle != base else float("nan")


def share_of(ours: float, whole: float) -> float:
    """Reward kept, cost kept, ceiling reached: `ours` as a share of `whole`, NaN if that is 0."""
    return ours / whole if whole else float("nan")


def spread(values: list[float]) -> list[float]:
    """[mean, standard deviation over seeds]; the deviation of a single seed is 0."""
    return [round(float(np.mean(values)), 4), round(float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, 4)]


# --- routers ----------------------------------------------------------------------------------------------------


def route(translate: np.ndarray, native: dict, forced: dict) -> dict:
    """Outcomes of a policy that takes its `forced` outcome where `translate` [N] is true and else the `native` one.

    native and forced: measure -> [N], of one model on the same items, with the tool forbidden and with a call inserted.
    """
    return {name: np.where(translate, forced[name], native[name]) for name in ("correct", "used_tool", "cost")}


def oracle(native: dict, forced: dict) -> dict:
    """The router that knows the answers: translates exactly where that turns wrong into right."""
    return route((forced["correct"] == 1) & (native["correct"] == 0), native, forced)


def tune_threshold(native: dict, forced: dict, price: float) -> float:
    """The log-prob of the native answer below which translating has the highest total utility on these items.

    A call brings forced correct - price * cost - native correct. -inf: never translate; +inf: always.
    """
    order = np.argsort(native["logp"], kind="stable")
    logp = native["logp"][order]
    gain = (forced["correct"] - price * forced["cost"] - native["correct"])[order]
    totals = np.concatenate([[0.0], np.cumsum(gain)])  # of translating the n least likely answers
    thresholds = np.concatenate([[-np.inf], logp[1:], [np.inf]])
    separable = np.concatenate([[True], logp[1:] > logp[:-1], [True]])  # equal answers are routed alike
    return float(thresholds[np.argmax(np.where(separable, totals, -np.inf))])


# --- does the tool rate follow what the model does not know? ----------------------------------------------------


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs. [N] -> [N]."""
    values = np.asarray(values, dtype=float)
    below = (values[None, :] < values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1)
    return below + (equal + 1) / 2


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation: Pearson's of the ranks. [N], [N] -> [-1, 1]; NaN where one of them is constant."""
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else float("nan")


def reliability(items: np.ndarray, draws: int = 200) -> float:
    """How well the rank order of the row means is known from these items. [L, N] -> [0, 1].

    Split the items in two halves, correlate the rows' means of the halves (rank correlation r, mean over random
    splits), and step up to the full length: 2 r / (1 + r), Spearman and Brown.
    """
    rng, correlations = np.random.default_rng(0), []
    for _ in range(draws):
        order = rng.permutation(items.shape[1])
        half = len(order) // 2
        correlations.append(spearman(items[:, order[:half]].mean(1), items[:, order[half : 2 * half]].mean(1)))
    r = max(0.0, float(np.nanmean(correlations))) if not np.isnan(correlations).all() else float("nan")
    return 2 * r / (1 + r)


def split_half_ceiling(x: np.ndarray, y: np.ndarray) -> float:
    """The highest rank correlation to expect of row means measured with this noise: sqrt(reliability x * that of y).

    x, y [L, N]: L languages, N items each. It is the attenuation formula of classical test theory, for a true
    correlation of 1.
    """
    return float(np.sqrt(reliability(x) * reliability(y)))


def covariance_parts(x: np.ndarray, y: np.ndarray, cells: list[np.ndarray]) -> np.ndarray:
    """The covariance of x and y [N] cut into what each finer table explains, and what is left within its cells.

    `cells`: for each table, the coarsest first, the number of the cell that each entry is in, [N]; each table divides
    the cells of the one before. Returns [tables + 1]; the sum is the (population) covariance:

        Cov(x, y) = Cov(E[x|c1], E[y|c1]) + E[Cov(E[x|c2], E[y|c2] | c1)] + ... + E[Cov(x, y | cn)]

    which is the law of total covariance. Noise in the means of small cells counts as explained.
    """
    means = [(np.full(len(x), x.mean()), np.full(len(y), y.mean()))]
    means += [(_cell_means(x, cell), _cell_means(y, cell)) for cell in cells] + [(x, y)]
    return np.array(
        [((after[0] - before[0]) * (after[1] - before[1])).mean() for before, after in itertools.pairwise(means)]
    )


def _cell_means(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Each entry's mean over the cell that it is in, [N]."""
    with np.errstate(invalid="ignore"):  # the numbers of cells without an entry: nobody looks there
        return (np.bincount(cells, values) / np.bincount(cells))[cells]


def calibration(p: np.ndarray, happened: dict[str, np.ndarray], bins: int = 10) -> list[dict]:
    """Entries by their probability p [N], in bins of equal width: share of the entries, mean p, and the means of what
    `happened`, name -> [N]. Bins without an entry are left out."""
    place = np.minimum((p * bins).astype(int), bins - 1)
    return [
        {"share": float(cell.mean()), "p": float(p[cell].mean())}
        | {name: float(values[cell].mean()) for name, values in happened.items()}
        for cell in (place == i for i in range(bins))
        if cell.any()
    ]


# --- intervals --------------------------------------------------------------------------------------------------


def languages_resampled(values: np.ndarray, languages: np.ndarray, draws: int = 1000) -> tuple[float, float]:
    """A 95% percentile interval of the mean of `values` [N] for other languages of the kind: a two-stage bootstrap that
    draws languages, and then items of each. With two languages it says little more than that there are two."""
    rng = np.random.default_rng(0)
    parts = [values[languages == name] for name in dict.fromkeys(languages.tolist())]
    totals, counts = np.zeros(draws), np.zeros(draws)
    for chosen in rng.integers(0, len(parts), (len(parts), draws)):
        for i, part in enumerate(parts):
            rows = np.flatnonzero(chosen == i)
            totals[rows] += part[rng.integers(0, len(part), (len(rows), len(part)))].sum(1)
            counts[rows] += len(part)
    low, high = np.percentile(totals / counts, [2.5, 97.5])
    return float(low), float(high)


def bootstrap(measure: Callable[[np.ndarray], float | np.ndarray], items: np.ndarray, draws: int = 1000) -> tuple:
    """A 95% percentile interval (low, high) of `measure(chosen)`, `chosen` being entries resampled by item. Of a
    measure that is an array, low and high are arrays.

    `items` [N] says which item each entry renders: an item is drawn with all of its renderings and for all policies.
    """
    rng = np.random.default_rng(0)
    order = np.argsort(items, kind="stable")
    members = np.split(order, np.flatnonzero(items[order][1:] != items[order][:-1]) + 1)
    drawn = [np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))]) for _ in range(draws)]
    low, high = np.nanpercentile([measure(chosen) for chosen in drawn], [2.5, 97.5], axis=0)
    return low, high
