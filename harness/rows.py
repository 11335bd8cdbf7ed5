"""Logged rollouts: read, named by what one looks for, and put into groups.

    rollouts.jsonl -> read_rollouts -> rows;  row -> tags -> low, math, wrong, no-call, shut;  rows -> select -> rows

`eval.py --show` and the page of a run go by the same tags.
"""

import json
from collections.abc import Container, Sequence
from pathlib import Path

from harness.options import require
from harness.rundir import read_lines

# What a rollout is looked for by, in the order of the menus. Each row has one value of each.
TAGS = ("tier", "domain", "verdict", "call", "gate")
WORDS = {"verdict": ("right", "wrong"), "call": ("call", "no-call"), "gate": ("open", "shut")}  # of all runs


def read_rollouts(path, wanted: Container[int] | None = None) -> list[dict]:
    """The rows of a `rollouts.jsonl`; where lines are `wanted`, counted from 0, no others. ValueError naming file and
    line for a line that is no rollout."""
    rows: list[dict] = []
    for number, line in enumerate(read_lines(Path(path))):
        if wanted is not None and number not in wanted:
            continue
        try:
            row = json.loads(line)
            tags(row), parts(row["ids"], row["sampled"])
            _ = row["stop"], row["score"]["cost"] + row.get("advantage", 0), row["task"]["id"], row["task"]["question"]
            _ = [*row["task"]["choices"], row["task"]["answer"], row["score"]["reward"], row["calls"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number + 1}: not a rollout ({error!r})") from None
        rows.append(row)
    return rows


def read_metrics(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl; none if it has not begun."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in read_lines(path) if line] if path.exists() else []


def tags(row: dict) -> dict[str, str]:
    """What a rollout is looked for by: one word for each of TAGS. Rows of an evaluation know of no gate."""
    return {
        "tier": row["task"]["tier"],
        "domain": row["task"]["domain"],
        "verdict": "right" if row["score"]["correct"] else "wrong",
        "call": "call" if row["score"]["used_tool"] else "no-call",
        "gate": "" if row.get("gate") is None else "open" if row["gate"] else "shut",
    }


def select(rows: list[dict], only: str) -> list[dict]:
    """The rows that `only` names: words separated by commas. Words of one kind are alternatives, kinds come together:
    `low,xlow,wrong` is what is wrong in either tier. ValueError for a word that no row could have."""
    known = {tag: {*WORDS.get(tag, ()), *(tags(row)[tag] for row in rows)} - {""} for tag in TAGS}
    wanted: dict[str, set[str]] = {}
    for word in filter(None, only.split(",")):
        kinds = [tag for tag in TAGS if word in known[tag]]
        words = ", ".join(word for tag in TAGS for word in sorted(known[tag]))
        require(bool(kinds), f"--only {only}: {word!r} is none of {words}")
        for tag in kinds:
            wanted.setdefault(tag, set()).add(word)
    return [row for row in rows if all(tags(row)[tag] in words for tag, words in wanted.items())]


def groups(rows: list[dict]) -> list[list[dict]]:
    """The rows of one task in one step, together, in the order of the file."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault((row.get("step"), row["task"]["id"]), []).append(row)
    return list(found.values())


def parts(ids: Sequence[int], sampled: Sequence[int]) -> list[tuple[Sequence[int], bool]]:
    """The stretches of ids that the policy drew, and of those that were inserted: (ids, whether drawn), in order."""
    edges = [0, *(i for i in range(1, len(ids)) if sampled[i] != sampled[i - 1]), len(ids)]
    return [(ids[a:b], bool(sampled[a])) for a, b in zip(edges, edges[1:], strict=False)] if ids else []


def verdict(row: dict) -> str:
    """right, or wrong and what would have been right; a reward of its own where a fork gives partial credit."""
    found = row["score"]
    said = "right" if found["correct"] else f"wrong, the answer is {row['task']['answer']!r}"
    return said if found["reward"] == found["correct"] else f"{said}, reward {found['reward']:.2f}"


def question(row: dict) -> str:
    """The question and its choices, one per line."""
    return "\n".join((row["task"]["question"], *row["task"]["choices"]))
