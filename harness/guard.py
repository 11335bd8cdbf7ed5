"""What a run is kept from: evaluation data among its tasks, an engine that fails all the time, numbers that are none,
a second process in its directory, an unsaved end.

    training tasks, --evaluation-data -> guard -> silence, a count, or an error
    rollouts -> stop_at_outage -> ToolOutage
    loss, gradient, weights -> stop_at_divergence -> Diverged;  a policy -> finite_states -> the same, while it samples
    run directory -> locked -> one process at a time
    Ctrl-C, SIGTERM, SIGHUP -> interrupts -> the step ends, and is saved;  outside the steps -> stoppable -> a line

A task of evaluation data is found whatever it is called and however it is typeset.
"""

import contextlib
import errno
import json
import math
import os
import signal
import socket
import sys
import time
import unicodedata
from collections import Counter
from pathlib import Path

from data import Task
from harness import distributed
from harness.escape import in_line
from harness.formats import lookup
from harness.jsonl import read_rows
from harness.modeldir import is_finite
from harness.options import clear_errors
from model import Qwen3
from sampler import Rollout

try:
    import fcntl
except ImportError:  # not on this system: there is no lock
    fcntl = None

# Forms of the same character that copies of a text differ in. NFKC does the no-break spaces.
ONE_FORM = str.maketrans("‘’‚‛′´`" + "“”„‟″" + "‐‑‒–—−", "'" * 7 + '"' * 5 + "-" * 6)


def guard(
    pool: list[Task], source: str, evaluation_data: tuple[str, ...], allowed: bool, fields: dict[str, str] | None = None
) -> None:
    """Refuse to train on tasks of `evaluation_data`, or print that it is allowed, and how many there are.

    pool: the training tasks, read from the file `source` with these `fields`. Raises ValueError naming the files, the
    first such task and the flag that allows it.
    """
    places = {}
    for path in evaluation_data:
        places = evaluation_places(path, fields or {}) | places
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


def evaluation_places(path: str, fields: dict[str, str]) -> dict[tuple[str, str], str]:
    """What tells the tasks of a file, in any format with ids or questions, by our names or as `fields` calls them ->
    file:line of the first with it.

    Raises ValueError naming file and line for what is no such task, or the file if it is empty.
    """
    places = {}
    for place, row in read_rows(path):
        found = traces(row) + traces({ours: lookup(row, theirs) for ours, theirs in fields.items()})
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


class Outage(Exception):
    """What a step needs is not there: the step is not taken, and the run can go on later."""


class ToolOutage(Outage):
    """The engine failed in so many calls of a step that the policy would learn that the tool is useless."""


LAST_CALLS, HANDFUL = 20, 5  # calls that a share is one of, if a step has fewer; failures that are no accident


def stop_at_outage(rollouts: list[Rollout], max_tool_errors: float, earlier: list | None = None) -> None:
    """ToolOutage, with what the engine said most often, if it failed in more than this share of the calls that reached
    it (--max-tool-errors): of those in the rollouts or of the last 20, whichever are more.

    At least five must have failed, or two that were all; with `--max-tool-errors 0` one is enough. `earlier` holds up
    to 20 calls of the steps before, and keeps as many for the next. Calls count and not rollouts: a policy that calls
    in 7% of its rollouts would never come near a share of these.
    """
    earlier = [] if earlier is None else earlier
    asked = [call for r in rollouts for call in r.calls if call.error in (None, "engine")]
    last = (earlier + asked)[-max(LAST_CALLS, len(asked)) :]
    failures = Counter(call.result for call in last if call.error == "engine")
    failed, every = failures.total(), max(1, len(last) / LAST_CALLS)
    earlier[:] = [last[int(i * every)] for i in range(min(len(last), LAST_CALLS))]  # evenly spaced
    enough = 1 if max_tool_errors == 0 else 2 if failed == len(last) else HANDFUL
    if failed >= enough and failed > max_tool_errors * len(last):
        said = in_line(failures.most_common(1)[0][0].removeprefix("error: "))
        count = f"{failed} of {len(last)} calls"
        raise ToolOutage(f"the translator failed in {count} ({said}); --max-tool-errors is {max_tool_errors}")


# --- numbers ----------------------------------------------------------------------------------------------------------


class Diverged(Exception):
    """A number that training goes by is not finite. `rows`: the step's rollouts, as rollouts.jsonl has them."""

    rows: list[dict] = []


def stop_at_divergence(numbers: dict[str, float], model: Qwen3 | None = None) -> None:
    """Diverged, on all ranks, if on one of them a number or a weight is not finite; says which."""
    found = [f"the {name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
    parts = distributed.parts(model) if model is not None else {}
    found += [f"the weight {name} is not finite" for name, part in parts.items() if not is_finite(part)]
    if reason := distributed.any_rank(found[0] if found else ""):
        raise Diverged(reason)


@contextlib.contextmanager
def finite_states(policy: Qwen3):
    """While a policy samples: Diverged before a token is drawn from a state that is not finite."""

    def check(head, inputs) -> None:
        if not inputs[0].isfinite().all():
            raise Diverged("the policy's states are not finite")

    hook = policy.lm_head.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


# --- one process ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(directory):
    """Around a run: its directory is this command's alone. If another one has it, a line says whose it is, exit 2.

    The system lets go of the lock when its process ends, however that ends; of several ranks only the writer takes it.
    """
    file, refusal, is_new = None, "", not os.path.exists(directory)
    with clear_errors():
        if distributed.rank() == 0 and fcntl is not None:
            try:
                file, refusal = _take(Path(directory))
            except OSError as error:
                refusal = str(error)
        if distributed.any_rank(refusal):
            raise ValueError(refusal) if refusal else SystemExit(2)
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                os.unlink(file.name)  # while it is locked: whoever opened it by now looks whether it is still there
                if is_new:
                    os.rmdir(directory)  # a start that failed leaves no directory
            file.close()


def _take(directory: Path):
    """(the locked file, ""), or (None, who has it)."""
    directory.mkdir(parents=True, exist_ok=True)
    place = directory / ".lock"
    while True:
        file = open(place, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            return None, f"{directory} belongs to {_holder(file.read())}; --out names another directory"
        except OSError as error:
            print(f"{directory} is not locked against a second process: the file system has no locks ({error})")
            return None, ""
        if place.exists() and os.path.samestat(os.fstat(file.fileno()), place.stat()):
            break
        file.close()  # its holder ended, and took the file away, between our two calls
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    signature = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    with contextlib.suppress(OSError):  # on a full disk the lock holds without; what follows will say that it is full
        os.write(file.fileno(), signature.encode())
    return file, ""


def _holder(text: str) -> str:
    try:
        found = json.loads(text)
        return f"process {found['pid']} on {found['host']}, which has been running since {found['since']}"
    except (ValueError, KeyError, TypeError):  # between taking the lock and signing it
        return "another process, which has just begun"


# --- signals ----------------------------------------------------------------------------------------------------------

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Stopped(BaseException):
    """One of the signals came; its argument is the number."""


@contextlib.contextmanager
def interrupts():
    """A list that Ctrl-C, SIGTERM and SIGHUP are added to, so that a step can finish and be saved.

    A second Ctrl-C is not caught. Another SIGTERM or SIGHUP is ignored: what ends a job often sends several signals.
    """
    asked = []
    with _handled(asked.append, {signal.SIGINT: signal.SIG_DFL}):
        yield asked


@contextlib.contextmanager
def stoppable(advice: str):
    """Around what is not a step: the same signals end it with a line, which closes with the advice."""

    def stop(number: int) -> None:
        raise _Stopped(number)

    try:
        with _handled(stop, dict.fromkeys(SIGNALS, signal.SIG_DFL)):
            yield
    except _Stopped as reason:
        (number,) = reason.args
        print(f"\nstopped by {signal.Signals(number).name}: {advice}", file=sys.stderr)
        sys.exit(128 + number)


@contextlib.contextmanager
def _handled(handler, second: dict):
    """The first of the signals goes to the handler; those that follow are treated as `second` says, else ignored.

    What the process was told to ignore, as nohup does, it goes on ignoring.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    caught = [number for number in SIGNALS if before[number] != signal.SIG_IGN]

    def receive(number, frame) -> None:
        for other in caught:
            signal.signal(other, second.get(other, signal.SIG_IGN))
        if number != signal.SIGINT:
            _leave_lost_terminal()
        handler(number)

    for number in caught:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


def _leave_lost_terminal() -> None:
    """Print nowhere from here on if the terminal was closed: to print there is an error, which would lose the step."""
    for stream in (1, 2):
        try:
            os.get_terminal_size(stream)
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal, and gone; others than terminals have no size either
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
