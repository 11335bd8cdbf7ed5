"""Translations that were paid for, in an SQLite file that outlives the process and is shared between processes.

    answers -> Cache.keep -> one thread, one transaction for all that waits -> promises kept

Used by service.py. What is handed over is safe once its promise is kept: a killed process loses no text that somebody
has been given.

Left out: anything that expires. An entry is the answer of one version of an engine.
"""

import contextlib
import sqlite3
import threading
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor

from translation.engines import CacheFailed

Key = tuple[str, str, str, str]  # engine, version, route, text


class Cache:
    """Translations in an SQLite file that the processes of a machine may share. The first answer to a text is kept.

    One thread writes. What arrives while it waits for the disk goes into its next transaction, and shares that sync: a
    sync for each text would take longer than many an engine does. With a write-ahead log a commit is one sync, and
    nobody who reads waits for it.
    """

    def __init__(self, path, patience: float = 60.0):
        """`patience`: seconds to wait for another process that holds the file."""
        self.failure, self._lock, self._pending = None, threading.Lock(), []  # failure: the first of a write
        self._writer = ThreadPoolExecutor(1, "cache")
        try:
            self._writing = Database(path, patience)
            self._writing.db.execute("PRAGMA journal_mode = WAL")
            self._writing.db.execute("PRAGMA synchronous = FULL")  # a commit outlives the machine's power, too
            self._writing.db.execute(
                "CREATE TABLE IF NOT EXISTS translations (engine, version, route, text, translation, "
                "PRIMARY KEY (engine, version, route, text)) WITHOUT ROWID"
            )
            self._reading = self._writing if str(path) == ":memory:" else Database(path, patience)
        except sqlite3.Error as error:
            raise ValueError(f"{path}: no cache of translations ({error})") from None

    def get(self, key: Key) -> str | None:
        with self._reading.use() as db:
            return find(db, key)

    def keep(self, answers: dict[Key, str], promises: dict[Key, Future]) -> None:
        """Store the answers, soon. Each promise is kept once its text is on the disk, by the answer that stands there:
        another process may have been first. If it cannot be stored, it gets CacheFailed."""
        with self._lock:
            self._writer.submit(self._write)  # first: if there is no writer any more, nothing is left pending
            self._pending += [(key, answer, promises[key]) for key, answer in answers.items()]

    def _write(self) -> None:
        """All that is pending, in one transaction."""
        with self._lock:
            pending, self._pending = self._pending, []
        if not pending:  # an earlier transaction took it along
            return
        try:
            with self._writing.use() as db, db:
                rows = [(*key, answer) for key, answer, _ in pending]
                db.executemany("INSERT OR IGNORE INTO translations VALUES (?, ?, ?, ?, ?)", rows)
                kept = [find(db, key) for key, _, _ in pending]
        except BaseException as failure:  # whatever it is, others are waiting
            self.failure = self.failure or failure
            for _, _, promise in pending:
                fail(promise, failure)
            return
        for (_, _, promise), answer in zip(pending, kept, strict=True):
            with contextlib.suppress(InvalidStateError):  # as in fail()
                promise.set_result(answer)


class Database:
    """A connection to an SQLite file that threads use in turn."""

    def __init__(self, path, patience: float):
        self._path, self._lock = path, threading.Lock()
        self.db = sqlite3.connect(path, timeout=patience, check_same_thread=False)

    @contextlib.contextmanager
    def use(self):
        """The connection, for one thread at a time. CacheFailed for whatever SQLite cannot do."""
        with self._lock:
            try:
                yield self.db
            except sqlite3.Error as error:
                raise CacheFailed(f"{self._path}: the cache of translations failed ({error})") from None


def find(db: sqlite3.Connection, key: Key) -> str | None:
    """The translation that stands there."""
    query = "SELECT translation FROM translations WHERE (engine, version, route, text) = (?, ?, ?, ?)"
    return (db.execute(query, key).fetchone() or (None,))[0]


def fail(promise: Future, error: BaseException) -> None:
    """Tell who waits for it, unless it is kept: Ctrl-C may come between the handing over and the note of it."""
    with contextlib.suppress(InvalidStateError):
        promise.set_exception(error)
