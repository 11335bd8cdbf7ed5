"""What became of translated tasks: yield by language and by check, samples to read, as JSON and as a page.

    outcomes -> report -> dict (JSON) -> page (HTML that needs nothing else)

A share says how many translations pass a check, not how many are right: the samples are there to be read. They are
drawn at random but always the same for the same tasks, and nothing in a report depends on the time or on the machine.

Left out: plots, and figures across reports.
"""

import html
import random
from dataclasses import dataclass

from harness.jsonl import is_text
from translation.checks import BACKWARD, FORWARD, RoundTrip, Verdict


@dataclass(frozen=True)
class Outcome:
    """What became of one task in one language. Without a round trip, `verdict` says what prevented it."""

    id: str
    language: str
    source: tuple[str, ...]
    trip: RoundTrip | None
    verdict: Verdict

    @property
    def kept(self) -> bool:
        return not self.verdict.failures


FUNNEL = ("engine", "protected", *FORWARD, *BACKWARD, "way back", "solver")


def report(outcomes: list[Outcome], head: dict) -> dict:
    """`head`, and for each language: tasks, kept and yield; each check by itself; the funnel, how many are left when
    the checks are made one after the other; mean scores; ten kept and ten rejected tasks drawn at random."""
    languages = {}
    for code in dict.fromkeys(outcome.language for outcome in outcomes):
        rows = [outcome for outcome in outcomes if outcome.language == code]
        kept, rejected = [row for row in rows if row.kept], [row for row in rows if not row.kept]
        checks, funnel, left = {}, {}, rows
        for name in FUNNEL:
            failed = sum(name in row.verdict.failures for row in rows)
            if made := sum(name in row.verdict.made for row in rows):
                checks[name] = {"made": made, "passed": made - failed, "share": round(1 - failed / made, 4)}
                left = [row for row in left if name not in row.verdict.failures]
                funnel[name] = len(left)
        draw = random.Random(f"samples {code}")
        languages[code] = {
            "tasks": len(rows),
            "kept": len(kept),
            "yield": round(len(kept) / len(rows), 4),
            "checks": checks,
            "funnel": funnel,
            "means": _means([row.verdict.scores for row in rows]),
            "samples": {
                name: [_sample(row) for row in draw.sample(part, min(10, len(part)))]
                for name, part in (("kept", kept), ("rejected", rejected))
            },
        }
    return {**head, "languages": languages}


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in scores for name in row)
    values = {name: [row[name] for row in scores if name in row] for name in names}
    return {name: round(sum(found) / len(found), 4) for name, found in values.items()}


def _sample(outcome: Outcome) -> dict:
    texts = {
        "source": outcome.source,
        "translation": outcome.trip and outcome.trip.translation,
        "back": outcome.trip and outcome.trip.back,
    }
    return {"id": outcome.id, "reasons": outcome.verdict.failures, **{k: "\n".join(t or ()) for k, t in texts.items()}}


_STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.6rem 0 1.4rem}th,td{border-bottom:1px solid #ddd;padding:.3rem .6rem;
text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}pre{white-space:pre-wrap}
table.pairs{table-layout:fixed;width:100%}table.pairs td{white-space:pre-wrap;overflow-wrap:anywhere}
table.pairs tr.why td{border:0;color:#777;font-size:13px;padding-bottom:0}"""


def page(content: dict) -> str:
    """The report as one HTML page that needs nothing else."""
    head = {name: value for name, value in content.items() if name != "languages"}
    parts = ["<h1>Fidelity of the translated tasks</h1>", f"<pre>{_escape(_lines(head))}</pre>"]
    codes = list(content["languages"])
    names = [name for name in FUNNEL if any(name in row["checks"] for row in content["languages"].values())]
    summary = [
        [
            code,
            row["tasks"],
            row["kept"],
            f"{row['yield']:.0%}",
            *[f"{row['checks'][name]['share']:.0%}" if name in row["checks"] else "" for name in names],
        ]
        for code, row in content["languages"].items()
    ]
    parts += [
        "<h2>Yield, and the share that passes each check by itself</h2>",
        _table(["language", "tasks", "kept", "yield", *names], summary),
        "<h2>Funnel: tasks left after each check</h2>",
        _table(
            ["language", "tasks", *names],
            [
                [code, row["tasks"], *[row["funnel"].get(n, "") for n in names]]
                for code, row in content["languages"].items()
            ],
        ),
    ]
    for code in codes:
        for kind, samples in content["languages"][code]["samples"].items():
            parts.append(
                f"<h2>{_escape(code)}: {len(samples)} {kind}, drawn at random</h2><table class='pairs'>"
                "<tr><th>source</th><th>translation</th><th>translated back</th></tr>"
            )
            for row in samples:
                why = "".join(f" · {name}: {reason}" for name, reason in row["reasons"].items())
                parts.append(
                    f"<tr class='why'><td colspan='3'>{_escape(row['id'] + why)}</td></tr><tr>"
                    + "".join(f"<td dir='auto'>{_escape(row[text])}</td>" for text in ("source", "translation", "back"))
                    + "</tr>"
                )
            parts.append("</table>")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Fidelity</title><style>{_STYLE}</style>"
        + "\n".join(parts)
        + "</html>\n"
    )


def _escape(text) -> str:
    """For HTML; characters that no page can hold are shown by their code."""
    text = "".join(c if c in "\n\t" or (c >= " " and is_text(c)) else f"\\u{ord(c):04x}" for c in str(text))
    return html.escape(text)


def _lines(head: dict) -> str:
    return "\n".join(f"{name}: {_say(value)}" for name, value in head.items())


def _say(value, between: str = "; ") -> str:
    """What a report begins with, in words: routes are dictionaries of dictionaries of lists."""
    if isinstance(value, dict):
        return between.join(f"{name} {_say(part, ', ')}" for name, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table(names: list[str], rows: list[list]) -> str:
    head = "".join(f"<th>{_escape(name)}</th>" for name in names)
    cells = [
        "".join(
            f"<td class='n'>{_escape(cell)}</td>" if i else f"<td>{_escape(cell)}</td>" for i, cell in enumerate(row)
        )
        for row in rows
    ]
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"
