"""Drawings of a run as inline SVG: curves over the steps, accuracy over cost, an interval. Colours are the page's.

Values in, text out; every text from outside is escaped here.
"""

import json
import math
from html import escape

Points = list[tuple[float, float]]
WIDTH, HEIGHT = 300, 180  # of a curve's drawing, in units of its own: it scales with the page
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 10, 24  # margins for the axes' numbers


def smooth(points: Points) -> Points:
    """The mean over a window of a tenth of the curve, which the eye would take anyway."""
    half = max(1, len(points) // 20)
    means = []
    for i, (x, _) in enumerate(points):
        some = [y for _, y in points[max(0, i - half) : i + half + 1]]
        means.append((x, sum(some) / len(some)))
    return means


def ticks(values: list[float], least: float) -> list[float]:
    """Round numbers from 0 on, at most six, the last of them no less than all values and `least`."""
    highest = max([least, *values])
    power = 10.0 ** math.floor(math.log10(highest))
    step = next(part * power for part in (0.2, 0.25, 0.5, 1, 2) if 5 * part * power >= highest - 1e-9)
    return [round(i * step, 6) for i in range(math.ceil(highest / step - 1e-9) + 1)]


def curves(
    title: str, series: dict[str, Points], marks: dict[str, Points], colours: dict[str, int], axis: list[float]
) -> str:
    """Curves over the steps: one for each name, its values faint and their running mean strong; `marks` are points on
    top, of validations. `colours`: name -> number of the page's colour; `axis`: its ticks."""
    top = axis[-1]
    steps = [x for points in series.values() for x, _ in points] or [0.0]
    first, last = min(steps), max(steps)

    def at(x: float, y: float) -> str:
        across = (x - first) / max(1, last - first)
        return f"{LEFT + across * (WIDTH - LEFT - RIGHT):.1f},{HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM):.1f}"

    drawn = [_grid(axis)]
    drawn += [_text(LEFT, HEIGHT - 6, f"{first:g}", "start"), _text(WIDTH - RIGHT, HEIGHT - 6, f"step {last:g}", "end")]
    for name, points in series.items():
        number = colours[name]
        for kind, line in (("raw", points), ("mean", smooth(points))):
            path = " ".join(at(*point) for point in line)
            drawn.append(f'<polyline class="{kind} s{number}" points="{path}"><title>{escape(name)}</title></polyline>')
        for x, y in marks.get(name, []):
            cx, cy = at(x, y).split(",")
            told = escape(f"{name}, validation after step {x:g}: {y:.3g}")
            drawn.append(f'<circle class="dot s{number}" cx="{cx}" cy="{cy}" r="3.5"><title>{told}</title></circle>')
    told = escape(json.dumps({name: smooth(points) for name, points in series.items()}, allow_nan=False), quote=True)
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    return f'<figure class="curve" data-series="{told}"><figcaption>{escape(title)}</figcaption>{picture}</figure>'


def plane(points: list[tuple[str, str, float, float]], colours: dict[str, int]) -> str:
    """Accuracy over cost: (policy, group of languages, cost, accuracy) each; `colours` as above, of the groups. The
    first policy's marks are hollow, and a line leads from them to the second's; further policies have other shapes."""
    wide, high, left, bottom, top = 680, 400, 44, 44, 30
    costs = ticks([cost for _, _, cost, _ in points], 0.5)
    policies = list(dict.fromkeys(policy for policy, *_ in points))

    def at(cost: float, accuracy: float) -> tuple[float, float]:
        return left + cost / costs[-1] * (wide - left - 24), high - bottom - accuracy * (high - bottom - top)

    drawn = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        (x0, y), (x1, _) = at(0, share), at(costs[-1], share)
        drawn.append(f'<line class="grid" x1="{x0:.1f}" y1="{y:.1f}" x2="{x1:.1f}" y2="{y:.1f}"/>')
        drawn.append(_text(x0 - 6, y + 4, f"{100 * share:g}", "end"))
    drawn += [_text(at(cost, 0)[0], high - bottom + 17, f"{cost:g}", "middle") for cost in costs]
    drawn.append(_text((left + wide) / 2, high - 6, "cost per task (1 = one call of mean length)", "middle"))
    drawn.append(_text(4, 14, "reward (accuracy x 100)", "start"))
    place = {(policy, group): at(cost, accuracy) for policy, group, cost, accuracy in points}
    for group, number in colours.items():
        ends = [place[policy, group] for policy in policies[:2] if (policy, group) in place]
        if len(ends) == 2:
            ((x0, y0), (x1, y1)) = ends
            drawn.append(f'<line class="arrow s{number}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
    labels = []
    for policy, group, cost, accuracy in points:
        x, y = at(cost, accuracy)
        told = escape(f"{policy}, {group}: reward {100 * accuracy:.1f}, cost {cost:.2f}")
        drawn.append(f"<g><title>{told}</title>{_mark(policies.index(policy), colours[group], x, y)}</g>")
        if policy == policies[min(1, len(policies) - 1)]:
            labels.append((group, x, y))
    drawn += _labels(labels, list(place.values()))
    return f'<svg viewBox="0 0 {wide} {high}" role="img" aria-label="accuracy over cost">{"".join(drawn)}</svg>'


def interval(low: float, high: float, mean: float, widest: float) -> str:
    """A difference and its interval on an axis from -widest to +widest, as wide as a cell."""
    wide = 120

    def at(value: float) -> float:
        return round(wide / 2 + value / widest * (wide / 2 - 4), 1)

    return (
        f'<svg class="interval" viewBox="0 0 {wide} 14" aria-hidden="true">'
        f'<line class="grid" x1="{wide / 2}" y1="0" x2="{wide / 2}" y2="14"/>'
        f'<line class="mean s1" x1="{at(low)}" y1="7" x2="{at(high)}" y2="7"/>'
        f'<circle class="dot s1" cx="{at(mean)}" cy="7" r="3.5"/></svg>'
    )


def mark(shape: int) -> str:
    """A policy's mark for the legend, in the colour of text."""
    return f'<svg class="key" viewBox="0 0 14 14" aria-hidden="true">{_mark(shape, 0, 7, 7)}</svg>'


def _mark(shape: int, number: int, x: float, y: float) -> str:
    """Of policy 0 a ring, of 1 a disc, of 2 a triangle, of 3 a square, then a diamond."""
    if shape < 2:
        return f'<circle class="{("ring", "dot")[shape]} s{number}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    corners = {2: [(0, -6), (6, 5), (-6, 5)], 3: [(-5, -5), (5, -5), (5, 5), (-5, 5)]}
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners.get(shape, [(0, -6), (6, 0), (0, 6), (-6, 0)]))
    return f'<polygon class="dot s{number}" points="{path}"/>'


def _labels(labels: list[tuple[str, float, float]], marks: list[tuple[float, float]]) -> list[str]:
    """Labels (text, x, y) of marks, each where it covers no mark and no other label, if there is such a place."""
    drawn, boxes = [], [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    for text, x, y in labels:
        long = 7.2 * len(text)
        places = [(x + 10, y - 7), (x - 10 - long, y - 7), (x - long / 2, y - 23), (x - long / 2, y + 9)]
        places += [(x + 6, y - 20), (x + 6, y + 6), (x - long - 6, y - 20), (x - long - 6, y + 6)]

        def covered(place: tuple[float, float], long: float = long) -> float:
            (x0, y0), x1, y1 = place, place[0] + long, place[1] + 14
            return sum(max(0, min(x1, c) - max(x0, a)) * max(0, min(y1, d) - max(y0, b)) for a, b, c, d in boxes)

        x0, y0 = min(places, key=covered)
        boxes.append((x0, y0, x0 + long, y0 + 14))
        drawn.append(_text(x0, y0 + 11, text, "start", "label"))
    return drawn


def _grid(axis: list[float]) -> str:
    lines = []
    for value in axis:
        y = HEIGHT - BOTTOM - value / axis[-1] * (HEIGHT - TOP - BOTTOM)
        lines.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        lines.append(_text(LEFT - 5, y + 4, f"{value:g}", "end"))
    return "".join(lines)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
