"""A policy is measured as it was trained: what eval.py takes from the run that a --policy belongs to.

    --policy runs/low -> runs/low/config.json -> chat format, answer form, tool, prices, tasks

An option on the command line goes before the run's. Of several runs the first one decides, because policies that are
compared answer under the same conditions; where another run was trained under others, a line says so.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

from harness.options import Options, typed

# What a policy knows of the world around it. Where it runs, and how long, is the machine's.
INHERITED = (
    "data fields translator tool_noise price_call price_char system tool_schema think answer_format max_new_tokens "
    "max_calls"
).split()


def run_of(policy) -> Path | None:
    """The run directory that a policy's name lies in: the path itself, or that of its `best/` or checkpoint; None for
    a model directory."""
    for directory in (Path(policy), Path(policy).parent):
        if (directory / "config.json").is_file() and "lang_tier" in read_settings(directory):
            return directory
    return None


def read_settings(run: Path) -> dict:
    """The options of a run, from its config.json. ValueError if that is not readable."""
    place = run / "config.json"
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{place}: not readable ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{place}: expected an object, found {type(found).__name__}")
    return found


def inherited(given: dict) -> dict:
    """The options that policies bring with them; `given`: those on the command line. Says what it takes, and which
    runs differ in it. ValueError for a config.json that holds something else than options."""
    given_here = {*given, "fields"} if "data" in given else set(given)  # fields are those of the run's own file
    names = [name for name in INHERITED if name not in given_here]
    runs = {run: _checked(run, names) for run in map(run_of, given.get("policy", ())) if run is not None}
    if not runs:
        return {}
    (first, taken), *others = runs.items()
    defaults = {field.name: field.default for field in fields(Options)}
    if changed := [typed(name, taken[name]) for name in names if taken.get(name, defaults[name]) != defaults[name]]:
        print(f"as {first} was trained: {' '.join(changed)}")
    for run, other in others:
        different = [
            f"{typed(name, other.get(name))}, not {taken.get(name)!r}"
            for name in names
            if other.get(name) != taken.get(name)
        ]
        if different:
            print(
                f"{run} was trained with {'; '.join(different)}: measured as {first}, unless an option says otherwise"
            )
    return taken


def _checked(run: Path, names: list[str]) -> dict:
    """The run's values of these options, those that its version of the program had."""
    kinds, found = get_type_hints(Options), read_settings(run)
    for name in (name for name in names if name in found):
        if kinds[name] is str and type(found[name]) in (int, float):  # was a number when the run was made
            found[name] = str(found[name])
        plain = {int: (int,), float: (float, int), bool: (bool,)}.get(kinds[name], (str,))
        if not isinstance(found[name], plain) or isinstance(found[name], bool) != (kinds[name] is bool):
            raise ValueError(f"{run / 'config.json'}: {name} is {found[name]!r}, which is no value of this option")
    return {name: found[name] for name in names if name in found}
