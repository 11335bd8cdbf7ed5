"""A run as one page, `report.html`: it opens without a network, and is written again at each validation.

    config.json, metrics.jsonl, rollouts.jsonl, report.json -> sections -> one file with its style and script inside

Questions, translations and answers are outside text: all of it is escaped.
"""

import json
import os
from html import escape
from pathlib import Path

from data import Tokenizer
from harness import svg
from harness.options import differing
from harness.rows import TAGS, WORDS, groups, parts, question, read_metrics, read_rollouts, tags, verdict
from harness.rundir import read_lines

ROLLOUTS, GROUPS = 30, 6  # how many are shown
NEWEST = 400  # rollouts among which those groups are looked for
CURVES = (  # measure, title, top of the axis: 0 grows with the values
    ("accuracy", "answered right", 1),
    ("tool_rate", "tool rate: rollouts with a call", 1),
    ("cost", "cost per rollout", 0),
    ("gate_rate", "gate rate: groups charged", 1),
    ("reversed_rate", "reversed rate: right calls punished", 1),
    ("mixed_reversed_rate", "reversed rate in mixed groups", 1),
)
ORDER = ("high", "low", "xlow", "held-out", "synthetic")  # of tiers and groups: each has its colour on all drawings
MODES = {"forced": "always translate", "forbidden": "never translate"}


def write_page(run: Path, options, tokenizer: Tokenizer) -> Path:
    """Write `report.html` into a run directory, beside its place and renamed into it. Returns its path.

    `options`: those of the run.
    """
    place, partial = run / "report.html", run / ".report.html.partial"
    partial.write_text(page(run, options, tokenizer), encoding="utf-8")
    os.replace(partial, place)
    return place


def page(run: Path, options, tokenizer: Tokenizer) -> str:
    """The page's HTML."""
    metrics = read_metrics(run)
    spread, newest = some_rows(run / "rollouts.jsonl")
    closing = json.loads((run / "report.json").read_text()) if (run / "report.json").exists() else {}
    sections = {
        "settings": ("Settings that differ from the preset", settings(options)),
        "table": ("Base against result", table(closing) if closing else ""),
        "plane": ("Accuracy and cost", accuracy_over_cost(run, closing)),
        "curves": ("Curves", by_tier_and_domain(metrics)),
        "rollouts": ("Rollouts", some_rollouts(spread, tokenizer)),
        "groups": ("Groups: what is learned is the difference within one", some_groups(newest, tokenizer)),
    }
    shown = {name: section for name, section in sections.items() if section[1]}
    links = "".join(f'<a href="#{name}">{name}</a>' for name in shown)
    body = "".join(f'<section id="{name}"><h2>{head}</h2>{text}</section>' for name, (head, text) in shown.items())
    style, script = ((Path(__file__).with_name(f"report.{kind}")).read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(str(run))}</title><style>\n{style}</style></head>\n<body>"
        f"<h1>{escape(str(run))}</h1><p>{state(metrics, options, closing)}</p><nav>{links}</nav>\n"
        f"{body}\n<script>\n{script}</script></body></html>\n"
    )


def state(metrics: list[dict], options, closing: dict) -> str:
    """How far the run has come, in a sentence or two."""
    done = metrics[-1]["step"] if metrics else 0
    text = f"{done} of {options.steps} steps."
    validated = [row for row in metrics if "validation" in row]
    if validated:
        best = max(validated, key=lambda row: row["validation"]["accuracy"])
        text += f" Best validation after step {best['step']}: accuracy {best['validation']['accuracy']:.3f}."
    if closing:
        text += f" Finished in {closing['seconds'] / 60:.1f} minutes."
    return escape(text)


def settings(options) -> str:
    """What differs from the preset, as it is typed."""
    found = differing(options)
    items = "".join(f"<li><code>{escape(words)}</code></li>" for words in found)
    return f"<p class='quiet'>Preset {escape(options.preset)}{'.' if found else ', nothing differs.'}</p>" + (
        f'<ul class="settings">{items}</ul>' if found else ""
    )


# --- figures --------------------------------------------------------------------------------------------------------


def table(closing: dict) -> str:
    """The closing table: reward with its interval, tool rate and cost of base and result."""
    head = "<th></th><th>items</th><th>base</th><th>result</th><th>difference [95%]</th><th></th>"
    head += "<th>tool rate</th><th>cost</th>"
    found = closing["groups"]
    widest = max(abs(end) for row in found.values() for end in row["accuracy"]["interval"]) or 1
    lines = []
    for group, row in found.items():
        a, tool, cost = row["accuracy"], row["tool_rate"], row["cost"]
        low, high = a["interval"]
        cells = [
            escape(group),
            f"{row['n']}",
            f"{100 * a['before']:.1f}",
            f"<b>{100 * a['after']:.1f}</b>",
            f"{100 * a['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
            svg.interval(low, high, a["difference"], widest),
            f"{tool['before']:.2f} → {tool['after']:.2f}",
            f"{cost['before']:.2f} → {cost['after']:.2f}",
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    best = closing["result"].get("step", "?")
    told = f"Reward is accuracy x 100; the result is the policy of step {best}, which did best in validation."
    return f'<p class="quiet">{escape(told)}</p><div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def accuracy_over_cost(run: Path, closing: dict) -> str:
    """Base and result in the plane of accuracy and cost, and what eval.py has written about others into the run."""
    points = [
        (name, group, row["cost"][key], row["accuracy"][key])
        for name, key in (("base", "before"), ("result", "after"))
        for group, row in closing.get("groups", {}).items()
    ]
    for report in _evaluations(run):
        mode = MODES.get(report["options"]["mode"], "")
        for policy, by_group in report["group"].items():
            name = f"{mode} ({policy})" if mode else policy
            points += [(name, group, row["cost"], row["accuracy"]) for group, row in by_group.items()]
    if not points:
        return ""
    numbers = colours({group for _, group, _, _ in points})
    points = [point for point in points if point[1] in numbers]
    marks = "".join(
        f"<span>{svg.mark(number)}{escape(name)}</span>"
        for number, name in enumerate(dict.fromkeys(policy for policy, *_ in points))
    )
    told = (
        "Up is better, left is cheaper. What always or never translating would give is drawn once it is measured: "
        f"<code>python eval.py --policy {escape(str(run))} --mode forced --json {escape(str(run))}/forced.json</code>, "
        "and the same with <code>forbidden</code>."
    )
    drawn = f'<figure class="plane wide">{svg.plane(points, numbers)}</figure>'
    return f'<p class="quiet">{told}</p><div class="legend">{marks}</div>{drawn}'


def _evaluations(run: Path) -> list[dict]:
    """What `eval.py --json` has written into a run directory."""
    found = []
    for path in sorted(run.glob("*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # somebody else's file
            continue
        if isinstance(report, dict) and "mode" in report.get("options", {}) and "group" in report:
            found.append(report)
    return found


def by_tier_and_domain(metrics: list[dict]) -> str:
    """Each measure over the steps, a curve for each tier, then for each domain; dots are validations."""
    told = '<p class="quiet">Training rollouts, faint, and their running mean. Dots are validations. '
    told += "A mixed group holds right and wrong answers.</p>"
    text = told if metrics else ""
    for cut in ("tier", "domain"):
        numbers = colours({name for row in metrics for name in row[cut]})
        keys = "".join(f'<span><i class="s{n}"></i>{escape(name)}</span>' for name, n in numbers.items())
        there = [curve for curve in CURVES if any(curve[0] in by for row in metrics for by in row[cut].values())]
        charts = "".join(_curve(metrics, cut, numbers, *curve) for curve in there)
        if numbers:
            text += f'<div class="legend"><b>by {cut}</b>{keys}</div><div class="charts">{charts}</div>'
    return text


def colours(names: set[str]) -> dict[str, int]:
    """name -> number of the page's colour, six at most; tiers and groups in their order, all others by name."""
    if names <= set(ORDER):
        return {name: number for number, name in enumerate(ORDER, start=1) if name in names}
    return {name: number for number, name in enumerate(sorted(names)[:6], start=1)}


def _curve(metrics: list[dict], cut: str, numbers: dict[str, int], measure: str, title: str, top: float) -> str:
    """One measure's drawing."""

    def points(rows: list[tuple[int, dict]], name: str) -> svg.Points:
        return [(step, by[name][measure]) for step, by in rows if by.get(name, {}).get(measure) is not None]

    rows = [(row["step"], row[cut]) for row in metrics]
    validations = [(row["step"], row["validation"].get(cut, {})) for row in metrics if "validation" in row]
    series = {name: points(rows, name) for name in numbers}
    marks = {name: points(validations, name) for name in numbers}
    highest = [y for found in (*series.values(), *marks.values()) for _, y in found]
    axis = [0, 0.25, 0.5, 0.75, 1] if top == 1 else svg.ticks(highest, 0.2)
    return svg.curves(title, series, marks, numbers, axis)


# --- rollouts -------------------------------------------------------------------------------------------------------


def some_rows(log: Path) -> tuple[list[dict], list[dict]]:
    """Rollouts evenly spread over a log, and its newest: of a long log no more is parsed or held in memory."""
    total = sum(1 for _ in read_lines(log)) if log.exists() else 0
    if not total:
        return [], []
    count = min(ROLLOUTS, total)
    spread = [(i + 1) * total // count - 1 for i in range(count)]
    newest = range(max(0, total - NEWEST), total)
    wanted = {*spread, *newest}
    rows = dict(zip(sorted(wanted), read_rollouts(log, wanted), strict=True))
    return [rows[i] for i in spread], [rows[i] for i in newest]


def some_rollouts(rows: list[dict], tokenizer: Tokenizer) -> str:
    """The rollouts, the newest first, and menus that filter them."""
    menus = []
    for tag in TAGS:
        there = {tags(row)[tag] for row in rows} - {""}
        words = [word for word in WORDS.get(tag, sorted(there)) if word in there]
        choices = "".join(f'<option value="{escape(word)}">{escape(word)}</option>' for word in words)
        menus.append(f'<label>{tag} <select name="{tag}"><option value="">all</option>{choices}</select></label>')
    told = '<p class="quiet">What the policy drew is <span class="drawn">green</span>, what was put in, tool results '
    told += 'and the chat around them, is <span class="inserted">grey</span>.</p>'
    shown = f'<div class="filters">{"".join(menus)}<span class="quiet" id="shown"></span></div>'
    return told + shown + "".join(_card(row, tokenizer, with_question=True) for row in rows[::-1]) if rows else ""


def some_groups(rows: list[dict], tokenizer: Tokenizer) -> str:
    """The last of these groups that taught something, their rollouts side by side."""
    whole = [group for group in groups(rows) if len(group) > 1 and any(row.get("advantage") for row in group)]
    text = []
    for number, group in enumerate(reversed(whole[-GROUPS:])):
        row, gate = group[0], tags(group[0])["gate"]
        known = f", confidence {row['confidence']:.2f}, gate {gate}" if gate and "confidence" in row else ""
        head = f"step {row.get('step')}, {row['task']['id']}, answer {row['task']['answer']}{known}"
        largest = max(abs(one["advantage"]) for one in group)
        cards = "".join(_card(one, tokenizer, with_question=False, largest=largest) for one in group)
        asked = f'<div class="text question" dir="auto">{escape(question(row))}</div>'
        opened = " open" if number < 2 else ""
        text.append(
            f"<details{opened}><summary>{escape(head)}</summary>{asked}<div class='group'>{cards}</div></details>"
        )
    return "".join(text)


def _card(row: dict, tokenizer: Tokenizer, with_question: bool, largest: float = 0.0) -> str:
    """A rollout: verdict, figures and text. In a group, `largest` is its largest advantage: a bar shows this one's."""
    found, task, words = row["score"], row["task"], tags(row)
    data = " ".join(f'data-{tag}="{escape(word)}"' for tag, word in words.items())
    advantage = row.get("advantage", 0.0)
    facts = [f'<span class="verdict">{escape(verdict(row) if with_question else words["verdict"])}</span>']
    if with_question:
        facts += [f"<span>step {row.get('step', '-')}</span>", f"<span>{escape(task['id'])}</span>"]
        facts += [f"<span>{escape(words[tag])}</span>" for tag in ("tier", "domain")]
        facts += [f"<span>gate {words['gate']}</span>"] if words["gate"] else []
    else:
        facts.append(f"<span>reward {found['reward']:.2f}</span>")
    facts += [f"<span>cost {found['cost']:.2f}</span>", f"<span>advantage {advantage:+.2f}</span>"]
    facts += [f"<span>stop {escape(row['stop'])}</span>"] if row["stop"] != "end" else []
    asked = f'<div class="text question" dir="auto">{escape(question(row))}</div>' if with_question else ""
    said = "".join(
        f'<span class="{"drawn" if drawn else "inserted"}">{escape(tokenizer.decode(ids))}</span>'
        for ids, drawn in parts(row["ids"], row["sampled"])
    )
    return (
        f'<article class="rollout {words["verdict"]}" {data}><div class="facts">{"".join(facts)}</div>'
        f'{_bar(advantage, largest)}{asked}<div class="text" dir="auto">{said}</div></article>'
    )


def _bar(advantage: float, largest: float) -> str:
    """The advantage as a bar from the middle: to the right it is made likelier, to the left less likely."""
    if not largest:
        return ""
    size = 50 * abs(advantage) / largest
    start = 50 if advantage > 0 else 50 - size
    side = "up" if advantage > 0 else "down"
    return f'<div class="advantage"><i class="{side}" style="left:{start:.1f}%;width:{size:.1f}%"></i></div>'
