"""The journal of `translation/pipeline.py`: what was translated stays translated, whatever happens to the process.

Used by `pipeline.py` alone.
"""

import json
import os
import threading
from pathlib import Path

from data import Task


class Journal:
    """Finished round trips, one a line, on disk as soon as they are there. The first line says how they were made."""

    def __init__(self, path: Path, head: dict):
        """Read what is there; a half-written last line is dropped. ValueError if it was made in another way."""
        head, self.done, self._lock = json.loads(json.dumps(head)), {}, threading.Lock()
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
        except ValueError as error:
            raise ValueError(f"{path}: not a journal ({error})") from None
        if lines and lines[0] != head:
            raise ValueError(f"{path} was made with {lines[0]}, not with {head}: remove it, or name another --output")
        self._file = open(path, "ab")
        self._file.truncate(len(whole))
        if not lines:
            self._append([head])
        for line in lines[1:]:
            self._remember(line)

    def add(self, lines: list[dict]) -> None:
        """Keep what is final; what the engine failed on may succeed another time."""
        with self._lock:
            for line in lines:
                self._remember(line)
            self._append([line for line in lines if "error" not in line])

    def find(self, task: Task, language: str) -> dict | None:
        """The line of this task, unless it is of another text with this id."""
        line = self.done.get((task.id, language))
        return line if line and line["source"] == [task.question, *task.choices] else None

    def _remember(self, line: dict) -> None:
        self.done[line["id"], line["language"]] = line

    def _append(self, lines: list[dict]) -> None:
        self._file.write("".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
