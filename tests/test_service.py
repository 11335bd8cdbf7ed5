"""The service around an engine: what it asks for, how often, at what price, and who else may use its cache."""

import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.helpers import ROOT, environment
from tests.servers import Reply, libre, serving, silent
from tiny import world
from tiny.languages import LexiconTranslator
from tools import TranslationError
from translation.cache import Cache
from translation.engines import BudgetSpent, CacheFailed, Libre, NoMoreTranslations, TransientError
from translation.service import Service


class Scripted:
    """An engine that translates into capitals, does what `script` says for a text first, and remembers its requests."""

    name, version = "scripted", "1"

    def __init__(self, script=lambda text, tries: None, batch: int = 1):
        self.script, self.batch = script, batch
        self.requests, self.lock = [], threading.Lock()

    def translate(self, texts, source, target="en"):
        with self.lock:
            self.requests.append(list(texts))
            tries = [sum(text in request for request in self.requests) for text in texts]
        for text, count in zip(texts, tries, strict=True):
            self.script(text, count)
        return [text.upper() for text in texts]


def failing(error: Exception, times: int = 10**9):
    def script(text: str, tries: int) -> None:
        if tries <= times:
            raise error

    return script


# --- cache ------------------------------------------------------------------------------------------------------


def test_what_was_translated_is_not_asked_for_again(tmp_path):
    """Would catch a run that pays again for every text of the run before it."""
    first, second = Scripted(), Scripted()
    assert Service(first, tmp_path / "cache").translate(["a", "b", "a"], "es") == ["A", "B", "A"]
    service = Service(second, tmp_path / "cache")
    assert service.translate(["b", "c"], "es") == ["B", "C"]
    assert (first.requests, second.requests) == ([["a"], ["b"]], [["c"]])
    meters = service.meters
    assert (meters["texts"], meters["hits"], meters["requests"], meters["characters"]) == (2, 1, 1, 1)


@pytest.mark.parametrize("what", ["engine", "version", "source", "target", "route", "marks"])
def test_another_engine_version_or_route_is_asked_itself(what, tmp_path):
    """Would catch a translation of another language or engine that is taken for this one's."""
    Service(Scripted(), tmp_path / "cache").translate(["a"], "es", "en")
    engine, source, target = Scripted(), "es", "en"
    if what == "engine":
        engine.name = "other"
    elif what == "version":
        engine.version = "2"
    elif what == "source":
        source = "it"
    elif what == "target":
        target = "ca"
    elif what == "route":
        engine.route = lambda source, target: ("es-ca", "ca-en")
    else:
        engine.translate_marked = engine.translate
    Service(engine, tmp_path / "cache").attempt(["a"], source, target, marked=what == "marks")
    assert engine.requests == [["a"]]


def test_the_first_answer_is_kept(tmp_path):
    """Would catch an engine that is not always of one mind, and with it a data set, that changes within a run."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(text, tries):
        asked.set()
        go_on.wait()

    with ThreadPoolExecutor() as pool:
        late = pool.submit(Service(Scripted(slow), tmp_path / "cache").translate, ["a"], "es")
        asked.wait()
        other = Scripted()
        other.translate = lambda texts, source, target: ["first"]
        assert Service(other, tmp_path / "cache").translate(["a"], "es") == ["first"]
        go_on.set()
        assert late.result() == ["first"]


def test_a_failure_is_not_kept(tmp_path):
    """Would catch an outage that goes on for ever in the cache."""
    service = Service(Scripted(failing(TranslationError("no"), times=1)), tmp_path / "cache")
    with pytest.raises(TranslationError):
        service.translate(["a"], "es")
    assert service.translate(["a"], "es") == ["A"]


def test_an_engine_without_a_version_may_not_fill_a_file(tmp_path):
    """Would catch the answers of a noisy lexicon that are kept for one without noise."""
    service = Service(LexiconTranslator(0.1))
    task = world.tasks("train", ["low-01"], 1, 0)[0]
    assert service.translate([task.question], "low-01") == service.engine.translate([task.question], "low-01")
    with pytest.raises(ValueError, match="version"):
        Service(LexiconTranslator(), tmp_path / "cache")


def test_a_file_that_is_no_cache_is_named(tmp_path):
    """Would catch a mistyped path that overwrites a file or ends in an sqlite3 traceback."""
    (tmp_path / "tasks.jsonl").write_text('{"id": 1}\n' * 100)
    with pytest.raises(ValueError, match="tasks.jsonl"):
        Service(Scripted(), tmp_path / "tasks.jsonl")
    with pytest.raises(ValueError, match="none"):
        Service(Scripted(), tmp_path / "none" / "cache")


WORKER = """
import os, sys
from translation.service import Service

class Own:
    name, version = "own", "1"
    def translate(self, texts, source, target="en"):
        return [f"{os.getpid()} {text}" for text in texts]

service = Service(Own(), sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for i in range(int(sys.argv[2])):
    print(service.translate([f"text {i}"], "es")[0], flush=True)
"""


def worker(cache, count: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(cache), str(count)],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_share_a_cache_and_agree(tmp_path):
    """Would catch 'database is locked', a lost answer, and two processes that train on different translations."""
    processes = [worker(tmp_path / "cache", 12) for _ in range(3)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0].splitlines() for process in processes]
    assert answers[0] == answers[1] == answers[2]
    assert [answer.split(" ", 1)[1] for answer in answers[0]] == [f"text {i}" for i in range(12)]


def test_a_killed_process_leaves_what_it_had_answered(tmp_path):
    """Would catch answers that are paid for and lost, or a cache that is broken, after kill -9."""
    process = worker(tmp_path / "cache", 10**6)
    process.stdin.write("go\n")
    process.stdin.flush()
    seen = [process.stdout.readline().rstrip("\n") for _ in range(10)]
    process.kill()
    process.communicate()
    cache = Cache(tmp_path / "cache")
    assert [cache.get(("own", "1", "es-en", f"text {i}")) for i in range(10)] == seen
    assert sqlite3.connect(tmp_path / "cache").execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_full_disk_ends_the_run(tmp_path):
    """Would catch a traceback of sqlite3, a rollout that is counted as an outage, and an answer that is paid for and
    lost while the run goes on. --resume goes on with what was kept."""
    service = Service(Scripted(), tmp_path / "cache")
    service.translate(["kept"], "es")
    service._cache._writing.db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(CacheFailed, match=r"cache: .*full") as end:
        service.translate(["a" * 100_000], "es")
    assert isinstance(end.value, NoMoreTranslations) and not isinstance(end.value, TranslationError)
    again = Scripted()
    assert Service(again, tmp_path / "cache").translate(["kept", "b"], "es") == ["KEPT", "B"]
    assert again.requests == [["b"]]


@contextlib.contextmanager
def held(cache):
    """The file is another process's to write: a commit waits until it is let go."""
    other = sqlite3.connect(cache, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()  # which rolls back


def until(condition) -> None:
    while not condition():
        time.sleep(0.001)


def kept(cache, text: str) -> bool:
    """Whether it is in the file, for another process to read."""
    return Cache(cache).get(("scripted", "1", "es-en", text)) is not None


def test_a_cache_that_another_process_holds_ends_the_run(tmp_path):
    """Would catch a wait without end, or a traceback, where a second process keeps the file to itself."""
    key, cache = ("a", "1", "es-en", "b"), Cache(tmp_path / "cache", patience=0.05)

    def keep() -> str:
        promise = Future()
        cache.keep({key: "c"}, {key: promise})
        return promise.result()

    with held(tmp_path / "cache"):
        assert cache.get(key) is None  # who reads does not wait
        with pytest.raises(CacheFailed, match="locked"):
            keep()
    assert keep() == "c"


def test_those_who_wait_for_the_disk_share_a_commit(tmp_path):
    """Would catch a commit, and so a sync, for each text: slower than many an engine."""
    service, statements = Service(Scripted(), tmp_path / "cache", concurrency=8), []
    service._cache._writing.db.set_trace_callback(statements.append)
    with ThreadPoolExecutor(8) as pool, held(tmp_path / "cache"):
        first = pool.submit(service.translate, ["first"], "es")
        until(lambda: any("INSERT" in statement for statement in statements))  # it waits for the file
        others = [pool.submit(service.translate, [f"text {i}"], "es") for i in range(7)]
        until(lambda: len(service._cache._pending) == 7)
    assert [call.result() for call in (first, *others)] == [["FIRST"], *([f"TEXT {i}"] for i in range(7))]
    assert statements.count("COMMIT") == 2


def test_the_next_text_is_asked_for_while_this_one_is_written(tmp_path):
    """Would catch an engine that waits for the disk after each text, and an answer that is given to anybody before it
    is on the disk."""
    engine = Scripted()
    service = Service(engine, tmp_path / "cache")
    with ThreadPoolExecutor(2) as pool, held(tmp_path / "cache"):
        call = pool.submit(service.translate, ["a", "b", "c"], "es")
        until(lambda: len(engine.requests) == 3)
        other = pool.submit(service.translate, ["a"], "es")
        until(lambda: service.meters["texts"] == 4)
        assert not (call.done() or other.done() or kept(tmp_path / "cache", "a"))
    assert (call.result(), other.result()) == (["A", "B", "C"], ["A"])
    assert all(kept(tmp_path / "cache", text) for text in "abc")


def test_once_a_text_could_not_be_kept_no_other_is_asked_for(tmp_path):
    """Would catch a run that goes on paying for what it loses."""
    service = Service(Scripted(), tmp_path / "cache")
    service._cache._writing.db.execute("PRAGMA max_page_count = 1")

    def script(text, tries):
        if text == "b":
            until(lambda: service._cache.failure is not None)

    service.engine.script = script
    with pytest.raises(CacheFailed):
        service.translate(["a" * 100_000, "b", "c"], "es")
    assert ["c"] not in service.engine.requests


def test_a_cache_whose_writer_is_gone_keeps_nobody_waiting(tmp_path):
    """Would catch a thread that waits for ever for a text that was never handed over, as in a process that ends."""
    service = Service(Scripted(), tmp_path / "cache")
    service._cache._writer.shutdown()
    for _ in range(2):  # and no claim is left
        with pytest.raises(RuntimeError, match="shutdown"):
            service.translate(["a"], "es")


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_ctrl_c_around_the_handing_over_keeps_nobody_waiting(handed_over, tmp_path, monkeypatch):
    """Would catch a text that is told of twice, or never, where the signal comes between two lines."""
    service = Service(Scripted(), tmp_path / "cache")
    keep = service._cache.keep

    def interrupted(*arguments):
        if handed_over:
            keep(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(service._cache, "keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            service.translate(["a"], "es")
    assert service.translate(["a", "b"], "es") == ["A", "B"] and service._cache.failure is None


def test_a_commit_is_on_the_disk_when_it_is_done(tmp_path):
    """Would catch a default of the SQLite at hand by which a power cut takes the last commits."""
    db = Cache(tmp_path / "cache")._writing.db
    assert [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")] == ["wal", 2]


def test_a_damaged_cache_ends_the_run_for_all_who_wait(tmp_path):
    """Would catch garbage that is read as a translation, and threads that wait for ever for the one that failed."""
    service = Service(Scripted(), tmp_path / "cache")
    for i in range(50):
        service.translate([f"text {i} " * 50], "es")
    sqlite3.connect(tmp_path / "cache").execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all of it into the one file
    size = (tmp_path / "cache").stat().st_size
    assert size > 3 * 4096
    with open(tmp_path / "cache", "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    damaged = Service(Scripted(), tmp_path / "cache")
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(damaged.translate, ["text 1 " * 50], "es") for _ in range(4)]
        assert {type(call.exception()) for call in calls} == {CacheFailed}


# --- threads ----------------------------------------------------------------------------------------------------


def test_a_text_on_its_way_is_waited_for():
    """Would catch a group of rollouts that all pay for the translation of their one question."""
    go_on = threading.Event()
    engine = Scripted(lambda text, tries: go_on.wait())
    service = Service(engine)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(service.translate, ["a"], "es") for _ in range(8)]
        while service.meters["texts"] < 8:
            pass
        go_on.set()
        assert [call.result() for call in calls] == [["A"]] * 8
    assert engine.requests == [["a"]]
    assert service.meters["hits"] == 7


@pytest.mark.parametrize("error", [TranslationError("no"), ValueError("no language"), KeyboardInterrupt()], ids=repr)
def test_who_waits_for_a_text_that_fails_is_told(error):
    """Would catch threads that wait for ever for an answer that nobody is getting, or a text that stays claimed."""
    go_on = threading.Event()

    def script(text, tries):
        go_on.wait()
        if tries == 1:
            raise error

    service = Service(Scripted(script))
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(service.translate, ["a"], "es") for _ in range(3)]
        while service.meters["texts"] < 3:
            pass
        go_on.set()
        assert all(isinstance(call.exception(), type(error)) for call in calls)
    assert service.translate(["a"], "es") == ["A"]


def test_so_many_requests_run_at_a_time():
    """Would catch requests that wait for each other without need, or more than a service allows."""
    pair, running, most = threading.Barrier(2), [], []

    def script(text, tries):
        running.append(text)
        most.append(len(running))
        pair.wait(timeout=300)  # breaks if requests are made one at a time
        running.remove(text)

    service = Service(Scripted(script), concurrency=2)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda text: service.translate([text], "es"), "abcdef")) == [[c] for c in "ABCDEF"]
    assert max(most) == 2


# --- retries ----------------------------------------------------------------------------------------------------


def test_a_passing_failure_is_tried_again():
    """Would catch a rollout that is lost to one dropped connection."""
    engine = Scripted(failing(TransientError("busy"), times=3))
    service = Service(engine, retries=3, backoff=0.001)
    assert service.translate(["abc"], "es") == ["ABC"]
    meters = service.meters
    assert (meters["requests"], meters["characters"], meters["failures"]) == (4, 12, 0)


def test_there_is_an_end_to_trying():
    """Would catch a run that hangs on a server that is gone."""
    engine = Scripted(failing(TransientError("busy")))
    service = Service(engine, retries=3, backoff=0.001)
    with pytest.raises(TransientError, match="busy"):
        service.translate(["a"], "es")
    assert (len(engine.requests), service.meters["failures"]) == (4, 1)


def test_no_retry_begins_that_could_end_after_the_deadline():
    """Would catch a call whose retries take the sum of all time limits."""
    engine = Scripted(failing(TransientError("busy")))
    engine.timeout = 30.0
    for deadline, requests in ((29.0, 1), (10_000.0, 3)):
        engine.requests.clear()
        with pytest.raises(TransientError):
            Service(engine, retries=2, backoff=0.001, deadline=deadline).translate(["a"], "es")
        assert len(engine.requests) == requests


@pytest.mark.parametrize("answer", [["A", "B"], [], None, "A", [None], [""], ["\ud83d"]], ids=repr)
def test_a_bad_answer_is_a_failure_and_not_asked_for_again(answer):
    """Would catch an answer that is no translation in the cache, where it stays."""
    engine = Scripted()
    engine.translate = lambda texts, source, target: engine.requests.append(texts) or answer
    with pytest.raises(TranslationError):
        Service(engine, backoff=0.001).translate(["a"], "es")
    assert engine.requests == [["a"]]


def test_what_is_no_text_costs_nothing():
    """Would catch a UnicodeEncodeError from the cache, because of what a model wrote."""
    engine = Scripted()
    service = Service(engine, price=1.0)
    answers = service.attempt(["\ud83d", "a\0", " ", "a"], "es")
    assert [isinstance(answer, TranslationError) for answer in answers] == [True, True, True, False]
    assert (engine.requests, service.meters["failures"], service.meters["spent"]) == ([["a"]], 3, 1.0)


def test_one_bad_text_does_not_take_its_batch_along():
    """Would catch 49 translations that are lost with the 50th."""

    def script(text, tries):
        if text == "bad":
            raise TranslationError("a stage failed")

    engine = Scripted(script, batch=3)
    service = Service(engine)
    answers = service.attempt(["a", "bad", "c", "d"], "es")
    assert [str(answer) for answer in answers] == ["A", "a stage failed", "C", "D"]
    assert engine.requests == [["a", "bad", "c"], ["a"], ["bad"], ["c"], ["d"]]
    assert service.meters["failures"] == 1
    with pytest.raises(TranslationError, match="stage"):
        service.translate(["a", "bad", "c"], "es")


def test_a_language_that_the_engine_lacks_is_not_tried_again():
    """Would catch a configuration fault that is hidden as an outage."""
    service = Service(LexiconTranslator(), backoff=0.001)
    with pytest.raises(ValueError, match="no language 'xx'"):
        service.translate(["a"], "xx")


# --- budget -----------------------------------------------------------------------------------------------------


def test_the_budget_is_used_up_and_not_exceeded():
    """Would catch a run that spends more than it may, or stops with money left for the next text."""
    engine = Scripted()
    service = Service(engine, price=0.1, max_cost=1.0)  # ten characters
    assert service.translate(["four", "4444"], "es") == ["FOUR", "4444"]
    with pytest.raises(BudgetSpent, match="scripted cost 0.8") as end:
        service.translate(["333"], "es")
    assert not isinstance(end.value, TranslationError)  # or the run would go on without a translator
    assert service.translate(["22", "four"], "es") == ["22", "FOUR"]
    with pytest.raises(BudgetSpent):
        service.translate(["1"], "es")
    assert service.translate(["22", "4444"], "es") == ["22", "4444"]  # what is in the cache costs nothing
    assert engine.requests == [["four"], ["4444"], ["22"]]
    assert service.meters["spent"] == pytest.approx(1.0)


def test_threads_do_not_spend_more_together():
    """Would catch a budget that is looked at by everybody before anybody has paid."""
    together = threading.Barrier(2)
    service = Service(Scripted(lambda text, tries: together.wait(timeout=300)), price=1.0, max_cost=8.0)
    with ThreadPoolExecutor(9) as pool:
        calls = [pool.submit(service.translate, [f"{i:04}"], "es") for i in range(9)]
        ends = Counter(type(call.exception()) for call in calls)
    assert ends == {type(None): 2, BudgetSpent: 7}
    assert service.meters["spent"] == 8.0


def test_what_was_not_answered_is_not_paid():
    """Would catch a budget that an outage uses up."""
    service = Service(Scripted(failing(TransientError("busy"), times=2)), backoff=0.001, price=1.0, max_cost=4.0)
    assert service.translate(["four"], "es") == ["FOUR"]
    assert service.meters["spent"] == 4.0


def test_a_budget_needs_a_price():
    """Would catch a limit on spending that never applies."""
    with pytest.raises(ValueError, match="price"):
        Service(Scripted(), max_cost=5.0)


# --- all of it --------------------------------------------------------------------------------------------------


def test_with_an_unreliable_server_every_text_is_translated_or_counted():
    """Would catch a text that is lost, answered in another's place, or paid twice, among failures of all kinds."""
    seen, lock = Counter(), threading.Lock()

    def unreliable(request, server):
        text = request.json["q"]
        with lock:
            seen[text] += 1
            tries = seen[text]
        if text.startswith("bad"):
            return Reply({"error": "cannot"}, 403)
        if text == "slow" and tries == 1:
            return silent(request, server)
        if zlib.crc32(request.body) % 5 == tries % 5:
            return Reply("", 503) if tries % 2 else None
        return libre(request)

    texts = [f"text {i}" for i in range(150)] + [f"bad {i}" for i in range(10)] + ["slow"]
    with serving(unreliable) as server:
        service = Service(Libre(server.url, timeout=3.0), backoff=0.001, retries=20, price=1.0, concurrency=6)
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda text: service.attempt([text], "es")[0], texts * 2))
    for text, answer in zip(texts * 2, answers, strict=True):
        assert isinstance(answer, TranslationError) if text.startswith("bad") else answer == text.upper()
    meters = service.meters
    assert (meters["texts"], meters["failures"]) == (2 * len(texts), 20)
    good = sum(len(text) for text in texts if not text.startswith("bad"))
    refused = sum(len(text) * count for text, count in seen.items() if text.startswith("bad"))
    assert meters["spent"] == good + refused  # a refusal is an answer
