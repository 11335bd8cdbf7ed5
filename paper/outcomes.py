"""Result files: what is evaluated, and what happened to each item, packed small.

    item_set -> tasks;  pack -> save_result -> paper/results/runs/NAME-SEED-KEY.json -> load_result -> outcomes

The items of a part follow from their number alone, so a result file holds no questions: only whether each answer was
right, whether the tool was used, and at what cost, in the order of the items.

Left out: rollouts. What a policy wrote is in its run directory, and not kept.
"""

import base64
import functools
import hashlib
import json
import math
import os
import zlib
from pathlib import Path

import numpy as np

from data import Task
from harness.options import require
from harness.rundir import read_lines
from tiny import world
from tiny.languages import languages

# --- items ------------------------------------------------------------------------------------------------------

TIERS = ("high", "low", "xlow")
GROUPS = {  # part -> codes of the languages of each of its groups
    "test": [languages(tier, split) for split in ("trained", "held-out") for tier in TIERS] + [languages("synthetic")],
    "validation": [languages(tier, "trained") for tier in TIERS],
    "languages": [[code] for tier in TIERS for code in languages(tier)],
}
# The part of the clean items, and their keys. After a look at them that changes a default there are other keys and the
# part has another name, so that results on the old items are not taken for results on the new ones.
CLEAN, CLEAN_KEYS = "three keys", ("held back", "held back 2", "held back 3")
LOOKED_AT = ("evaluation", "clean")  # keys by whose items a default was judged, or was changed after a look at them


@functools.cache
def item_set(part: str, count: int) -> list[Task]:
    """What is evaluated. test: `count` items in each of the seven groups of languages; validation: a quarter of that in
    the three tiers that RL trains on; languages: a quarter in every language of the three tiers. Groups and languages
    render the same items; `CLEAN`: the groups of "test", and the `clean_items`."""
    if part == CLEAN:
        return [task for codes in GROUPS["test"] for task in world.render_all(clean_items(count), codes)]
    split = "validation" if part == "validation" else "test"
    count = count if part == "test" else count // 4
    return [task for codes in GROUPS[part] for task in world.tasks(split, codes, count, "evaluation")]


@functools.cache
def clean_items(count: int) -> list[world.Item]:
    """Items by which no default was judged: of `count` with each clean key, those that no key before it has and none of
    `LOOKED_AT`. A third to a half is lost, because the simplest kinds of items are few."""
    first = {}  # digest -> the key that draws it first, and the item
    for key in (*LOOKED_AT, *CLEAN_KEYS):
        for item in world.items("test", count, key):
            first.setdefault(item.digest, (key, item))
    return [item for key, item in first.values() if key not in LOOKED_AT]


def columns(tasks: list[Task]) -> dict[str, np.ndarray]:
    """What the tables are cut by, an array over the tasks each; `item` is the same for all renderings of an item."""
    return {
        "group": np.array([f"held-out {t.tier}" if t.split == "held-out" else t.tier for t in tasks]),
        "language": np.array([t.language for t in tasks]),
        "domain": np.array([t.domain for t in tasks]),
        "level": np.array([t.id.split("-")[-2] for t in tasks]),
        "item": np.array([t.id.partition("/")[2] for t in tasks]),
    }


# --- results ----------------------------------------------------------------------------------------------------

# a stored integer is value x unit, rounded; call_p: the probability that the first token begins a call
UNITS = {"correct": 1, "used_tool": 1, "cost": 1000, "logp": -100, "call_p": 10000}


def pack(values, unit: float) -> str:
    """Numbers as text: integers in units of 1 / unit, compressed."""
    whole = np.rint(np.asarray(values, dtype=float) * unit).astype("<u4")
    return base64.b64encode(zlib.compress(whole.tobytes(), 9)).decode()


def unpack(text: str, unit: float) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4") / unit


@functools.cache
def items_digest(count: int) -> str:
    questions = "\n".join(f"{task.question}\t{task.answer}" for task in item_set("test", count))
    return hashlib.sha256(questions.encode()).hexdigest()[:12]


def key_of(configuration: dict) -> str:
    """The key of a result: equal configurations have equal keys, whatever the order of their options."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:10]


FIELDS = ("name", "seed", "command", "configuration", "machine", "seconds", "best", "curves", "outcomes")


def save_result(path: Path, result: dict) -> None:
    """Write those of `FIELDS` that there are, one line each: small, and a diff says which of them changed."""
    lines = [f'"{name}":{json.dumps(result[name], separators=(",", ":"))}' for name in FIELDS if name in result]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    os.replace(partial, path)


def load_result(key: str, directory: Path) -> dict | None:
    """The result file with this key, checked; None if there is none. ValueError naming a file that is damaged."""
    path = next(iter(sorted(directory.glob(f"*-{key}.json"))), None)
    if path is None:
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        require(key_of(result["configuration"]) == key, "its configuration is not that of its name")
        count = result["configuration"]["items"][0]
        for label, measures in result["outcomes"].items():
            for name, text in measures.items():
                found, due = len(unpack(text, UNITS[name])), len(item_set(label.split("/")[0], count))
                require(found == due, f"{label} {name} has {found} items, not {due}")
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(
            f"{path}: not a result of paper.reproduce ({error!r}); delete it to have it made again"
        ) from None
    return {**result, "path": path}


def outcomes(result: dict, label: str) -> dict[str, np.ndarray]:
    """measure -> one value for each task of the evaluation's part."""
    return {name: unpack(text, UNITS[name]) for name, text in result["outcomes"][label].items()}


CURVES = {  # cut -> measures of metrics.jsonl
    "tier": ("accuracy", "tool_rate", "cost", "reversed_rate", "mixed_reversed_rate"),
    "domain": ("accuracy", "tool_rate"),
}


def curves(log: Path, width: int = 5) -> dict:
    """What training looked like: the means over `width` steps of the measures in `CURVES`, of the steps that have them;
    None where none has."""
    rows = [json.loads(line) for line in read_lines(log)]
    blocks = [rows[i : i + width] for i in range(0, len(rows), width)]
    found = {"step": [block[-1]["step"] for block in blocks]}
    for cut in ("tier", "domain"):
        for name in sorted({name for row in rows for name in row[cut]}):
            for measure in CURVES[cut]:
                values = [[row[cut][name][measure] for row in block if name in row[cut]] for block in blocks]
                values = [[value for value in part if value is not None] for part in values]
                found.setdefault(cut, {}).setdefault(name, {})[measure] = [
                    round(sum(part) / len(part), 3) if part else None for part in values
                ]
    return found


def without_nan(value):
    """What is not defined, such as a correlation with what does not vary, as null: JSON has no word for NaN."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
