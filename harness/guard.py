"""What a run is kept from: evaluation data among its tasks, an engine that fails all the time, an unsaved end.

    training tasks, --evaluation-data -> guard -> silence, a count, or an error
    rollouts -> stop_at_outage -> ToolOutage;  Ctrl-C -> interrupts -> the step ends, and is saved

A task of evaluation data is found whatever it is called and however it is typeset.
"""

import contextlib
import signal
import unicodedata

from data import Task
from harness.jsonl import read_rows
from sampler import Rollout

# Forms of the same character that copies of a text differ in. NFKC does the no-break spaces.
ONE_FORM = str.maketrans("‘’‚‛′´`" + "“”„‟″" + "‐‑‒–—−", "'" * 7 + '"' * 5 + "-" * 6)


def guard(pool: list[Task], source: str, evaluation_data: tuple[str, ...], allowed: bool) -> None:
    """Refuse to train on tasks of `evaluation_data`, or print that it is allowed, and how many there are.

    pool: the training tasks, read from the file `source`. Raises ValueError naming the files, the first such task and
    the flag that allows it.
    """
    places = {}
    for path in evaluation_data:
        places = evaluation_places(path) | places
    found = {task.id: next((places[trace] for trace in traces(vars(task)) if trace in places), None) for task in pool}
    leaks = [(task_id, place) for task_id, place in found.items() if place]
    message = f"{len(leaks)} of {len(pool)} training tasks are evaluation data"
    if allowed:
        files = ", ".join(evaluation_data)
        print("--allow-evaluation-data:", f"{message} ({files})" if files else "no --evaluation-data to compare with")
    elif leaks:
        raise ValueError(
            f"{source}: {message}, the first is {leaks[0][0]!r}, which is that of {leaks[0][1]}: "
            "leave them out, or say --allow-evaluation-data"
        )


def evaluation_places(path: str) -> dict[tuple[str, str], str]:
    """What tells the tasks of a JSONL file, in any format with ids or questions -> file:line of the first with it.

    Raises ValueError naming file and line for what is no such task, or the file if it is empty.
    """
    places = {}
    for place, row in read_rows(path):
        found = traces(row)
        if not found:
            raise ValueError(f"{place}: expected an id or a question")
        for trace in found:
            places.setdefault(trace, place)
    if not places:
        raise ValueError(f"{path}: no tasks in this file")
    return places


def traces(row: dict) -> list[tuple[str, str]]:
    """By what a task is known again: its id, also as it was before `translation/pipeline.py` put the language in
    front, and its questions, whatever their case, blanks and forms of quotes and dashes."""
    origin = row["provenance"] if isinstance(row.get("provenance"), dict) else {}
    ids = [str(name) for name in (row.get("id"), origin.get("source_id")) if isinstance(name, str | int)]
    ids += [name.removeprefix(f"{row.get('language')}/") for name in ids]
    texts = [text for text in (row.get("question_en"), row.get("question")) if isinstance(text, str) and text.strip()]
    plain = [unicodedata.normalize("NFKC", text.translate(ONE_FORM)).casefold().split() for text in texts]
    return [*(("id", name) for name in ids), *(("question", " ".join(words)) for words in plain)]


class ToolOutage(Exception):
    """The engine failed in so many rollouts of a step that the policy would learn that the tool is useless."""


def stop_at_outage(rollouts: list[Rollout], max_tool_errors: float) -> None:
    """ToolOutage if the translator failed in more than this share of the rollouts (--max-tool-errors)."""
    failed = sum(r.engine_failed for r in rollouts) / len(rollouts)
    if failed > max_tool_errors:
        message = next(call.result for r in rollouts for call in r.calls if call.error == "engine")
        raise ToolOutage(f"the translator failed in {failed:.0%} of the rollouts ({message})")


@contextlib.contextmanager
def interrupts():
    """A list that a Ctrl-C adds to, so that a step can finish and be saved; the second one is not caught."""
    asked = []
    signal.signal(signal.SIGINT, lambda *_: (asked.append(1), signal.signal(signal.SIGINT, signal.SIG_DFL)))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
