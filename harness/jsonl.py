"""Task files from strangers: each row an object, each field checked, each error with its place.

    FILE -> read_rows -> (file:line, object) -> task_rows -> the fields of a Task, and the item that it is a form of

Also the list of real languages, whose tier and split a row need not repeat.
"""

import functools
import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from harness.escape import in_line
from harness.formats import final_answer, lookup, named, parquet_rows, tsv_rows

TIERS = ("high", "low", "xlow", "synthetic")
SPLITS = ("trained", "held-out", "synthetic")

# Real languages by the size of their part of CC-100 (data.statmt.org/cc-100, compressed): high from 5 GB, low from
# 100 MB, xlow below or absent. 22 are trained on (8 + 7 + 7), 9 are held out (3 + 3 + 3). The rule and the choice are
# ours: the paper's own list is not known to us.
_LANGUAGES = {
    ("high", "trained"): "de es fr id ja ru vi zh",
    ("high", "held-out"): "it pt th",
    ("low", "trained"): "bn ca eo et sw ta te",
    ("low", "held-out"): "eu gl hi",
    ("xlow", "trained"): "an ast frp ht oc qu sc",
    ("xlow", "held-out"): "br wo yo",
}
LANGUAGES = {code: tier_and_split for tier_and_split, codes in _LANGUAGES.items() for code in codes.split()}


def is_text(value: str) -> bool:
    """Whether it can be encoded: JSON escapes can spell half of a surrogate pair, which is no character."""
    return not any("\ud800" <= c <= "\udfff" for c in value)


DIGITS = 4000  # of a whole number; Python reads 4,300 at most, and no task needs as many


class _TooLong(Exception):
    """A whole number of more than `DIGITS` digits."""


def _whole_number(digits: str) -> int:
    if len(digits) > DIGITS:
        raise _TooLong(f"a number of {len(digits):,} digits")
    return int(digits)


@functools.cache  # once in a process, however often a file is read
def _leave_out(place: str, reason: str) -> None:
    print(in_line(f"{place}: this line is left out: {reason}"), file=sys.stderr)


def read_rows(path) -> Iterator[tuple[str, dict]]:
    """(file:line, object) of each row of a file: of TSV and parquet by their endings, else of JSON Lines, blank lines
    left out. Rows of published sets have our names too (`formats.named`).

    ValueError naming the place of anything that is no object; FileNotFoundError if there is no such file.
    """
    readers = {".tsv": tsv_rows, ".parquet": parquet_rows}
    for place, row in readers.get(Path(path).suffix.lower(), json_rows)(path):
        yield place, named(row)


def json_rows(path) -> Iterator[tuple[str, dict]]:
    """The rows of a JSON Lines file. A line with a number that is too long to be read is left out, and that is said:
    one absurd task is no reason to refuse the others."""
    # utf-8-sig: a byte-order mark is no part of the text; surrogateescape: a field that is not UTF-8 is no text
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_int=_whole_number)
            except _TooLong as error:
                _leave_out(f"{path}:{number}", str(error))
                continue
            except (ValueError, RecursionError) as error:
                reason = f"{error}; files of one JSON object per line, .tsv and .parquet are read"
                raise ValueError(f"{path}:{number}: not JSON ({reason})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected an object, found {type(row).__name__}")
            yield f"{path}:{number}", row


def task_rows(
    path, known: tuple[str, ...], renamed: dict[str, str], language: str | None = None
) -> Iterator[tuple[str, dict, str]]:
    """(file:line, the fields of a task by our names, its item) of each row, checked.

    `known`: the fields of a task; `renamed`: what the file calls some of them, as `formats.lookup` reads it;
    `language`: of rows that name none. An item is what a task and its translations have in common. Raises ValueError
    naming file, line and field for anything malformed, for a repeated id and for a file without tasks.
    """
    known = (*known, "item")
    if unknown := set(renamed) - set(known):
        raise ValueError(f"a task has no field {sorted(unknown)}; the fields are {', '.join(known)}")
    names = {name: renamed.get(name, name) for name in known}
    line_of = {}
    for place, row in read_rows(path):
        task = checked(row, names, place, language)
        item = task.pop("item") or item_of(task)
        if task["id"] is None:
            task["id"] = _unused(digest(task), line_of)
        if task["id"] in line_of:
            raise ValueError(f"{place}: id {task['id']!r} stands already in line {line_of[task['id']]}")
        line_of[task["id"]] = place.rpartition(":")[2]
        yield place, task, item
    if not line_of:
        raise ValueError(f"{path}: no tasks in this file")


def item_of(task: dict) -> str:
    """What a task has in common with its translations: the English question, else its id without the language.

    >>> [item_of({"language": "es", "question_en": None, "id": id}) for id in ("es/17", "mgsm-es-017", "test.017")]
    ['17', 'mgsm-017', 'test.017']
    """
    code, id = re.escape(task["language"]), task["id"] or digest(task)
    bare = re.sub(rf"^{code}[-_/.:]|[-_/.:]{code}(?![^-_/.:])", "", id)
    is_original = task["language"] == "en" and bare == id  # of translations with a question_en; not: a row of mgsm-en
    return task["question_en"] or (task["question"] if is_original else bare)


def digest(task: dict) -> str:
    """A name made of what is asked: the same in every file, wherever it stands there."""
    return hashlib.sha256("\n".join((task["question"], *task["choices"])).encode()).hexdigest()[:12]


def _unused(id: str, taken) -> str:
    """The id, or, where a file asks the same twice, the id with a number."""
    names = itertools.chain([id], (f"{id}-{i}" for i in itertools.count(2)))
    return next(name for name in names if name not in taken)


def checked(row: dict, names: dict[str, str], place: str, language: str | None = None) -> dict:
    """The task's fields from one object, `id` and `item` None where it has none; `names` maps ours to the file's,
    `language` stands in for a missing one. ValueError naming place and field."""

    def field(name, kinds=(str,), default=None):
        value = lookup(row, names[name])
        if value is None:
            if default is None:
                raise ValueError(f"{place}: field {names[name]!r} is missing")
            return default
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{place}: field {names[name]!r} should be {kinds[0].__name__}, found {value!r:.80}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{place}: field {names[name]!r} is not a finite number")
        if isinstance(value, str) and not (value.strip() and is_text(value)):
            raise ValueError(f"{place}: field {names[name]!r} is blank, or holds half a surrogate pair")
        return value.replace("\r\n", "\n") if isinstance(value, str) else value

    def optional(name, kinds=(str,)):
        return None if lookup(row, names[name]) is None else field(name, kinds)

    def name_of(name):  # 7 and "7" are the same name
        value = optional(name, (str, int))
        return None if value is None else str(value)

    code = field("language", default=language)
    tier, split = LANGUAGES.get(code, (None, None))
    if code not in LANGUAGES and None in (lookup(row, names["tier"]), lookup(row, names["split"])):
        raise ValueError(
            f"{place}: field {names['language']!r} is {code!r:.40}, a language whose tier and split are not known here "
            "(harness/jsonl.py has the list): a row may have `tier` and `split` of its own, or say them for the whole "
            "file, as --fields tier=:high,split=:trained"
        )
    tier, split = field("tier", default=tier), field("split", default=split)
    for name, value, allowed in (("tier", tier, TIERS), ("split", split, SPLITS)):
        if value not in allowed:
            raise ValueError(f"{place}: field {names[name]!r} is {value!r:.80}, allowed: {', '.join(allowed)}")
    choices = field("choices", (list,), [])
    if not all(isinstance(choice, str) and choice.strip() and is_text(choice) for choice in choices):
        raise ValueError(f"{place}: field {names['choices']!r} should hold strings, found {choices!r:.80}")
    answer, is_worked = _answer(field("answer", (str, int, float)))
    if not answer:
        raise ValueError(f"{place}: field {names['answer']!r} has nothing behind its ####")
    return {
        "id": name_of("id"),
        "item": name_of("item"),
        "language": code,
        "tier": tier,
        "split": split,
        "domain": field("domain", default="math" if is_worked else "other"),
        "question": field("question"),
        "choices": tuple(choice.replace("\r\n", "\n") for choice in choices),
        "answer": answer,
        "question_en": optional("question_en"),
        "system": optional("system"),
        "cost_weight": _cost_weight(optional("cost_weight", (float, int, str)), names["cost_weight"], place),
    }


def _answer(value: str | int | float) -> tuple[str, bool]:
    """The answer as text, and whether a worked solution stood before it, as in GSM8K."""
    if isinstance(value, str):
        return final_answer(value), "####" in value
    # written out: 0.00001, where str has 1e-05, and 0.0 for -0.0
    return format(Decimal(str(value + 0.0)), "f") if isinstance(value, float) else str(value), False


def _cost_weight(value, name: str, place: str) -> float | None:
    """From 0 to 10. A table and a constant of --fields can only hold text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{place}: field {name!r} should be float, found {value!r:.80}") from None
    if value is not None and not 0 <= value <= 10:
        raise ValueError(f"{place}: field {name!r} is {value!r:.80}, allowed: 0 to 10")
    return None if value is None else float(value)
