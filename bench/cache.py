"""What it costs to keep translations in a file: the pipeline with a cache on the disk against one in memory.

    python -m bench.cache                # about two minutes on one core

The engine is the embedded world's lexicon, which answers in a tenth of a millisecond: next to any real engine, local or
on a network, the disk matters less. It is asked for one text at a time, as a server is, and for 50, as Apertium is, by
one worker and by eight. Both sides write the journal, take turns, and must give the same translations. Each turn begins
with empty files in `--out`, so that the disk is the one that a run would write to.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from data import Task
from tiny import world
from tiny.languages import LexiconTranslator, languages
from translation.journal import Journal
from translation.pipeline import fill
from translation.protect import KINDS
from translation.service import Service

PROTECT = list(KINDS[:-1])


class Lexicon(LexiconTranslator):
    """With a version, so that its answers may be kept, and a number of texts in one request."""

    version = "bench"

    def __init__(self, batch: int):
        super().__init__()
        self.batch = batch


def passage(directory: Path, cache: str, batch: int, workers: int, tasks: list[Task], codes: list[str]):
    """Round trips of all tasks in all languages: (seconds, CPU seconds, the lines of the journal)."""
    service = Service(Lexicon(batch), cache, concurrency=workers)
    journal = Journal(directory / "journal.jsonl", {})
    wall, cpu = time.perf_counter(), time.process_time()
    fill(journal, service, tasks, dict.fromkeys(codes, True), PROTECT, workers)
    return time.perf_counter() - wall, time.process_time() - cpu, journal.done


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200, help="tasks, each translated into four languages and back")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the table has the medians")
    parser.add_argument("--out", default=".", help="directory on the disk that is measured")
    args = parser.parse_args(argv)
    tasks, codes = world.tasks("test", ["en"], args.items, "bench"), languages("low")[:4]
    count, rows = args.items * len(codes), []
    for batch, workers in ((1, 1), (1, 8), (50, 1), (50, 8)):
        clocks = {"memory": [], "file": []}
        for repeat in range(args.repeats + 1):  # the first round warms up
            found = {}
            for kind in clocks:
                with tempfile.TemporaryDirectory(dir=args.out, prefix=".bench-cache-") as name:
                    cache = ":memory:" if kind == "memory" else str(Path(name) / "cache.sqlite")
                    wall, cpu, found[kind] = passage(Path(name), cache, batch, workers, tasks, codes)
                if repeat:
                    clocks[kind].append((wall, cpu))
            assert found["memory"] == found["file"] and len(found["file"]) == count, "the same, wherever it is kept"
        ratios = [memory[0] / file[0] for memory, file in zip(*clocks.values(), strict=True)]
        wall, cpu = (
            {kind: count / statistics.median(turn[clock] for turn in turns) for kind, turns in clocks.items()}
            for clock in (0, 1)
        )
        rows.append(
            f"{batch:5}{workers:8}{wall['memory']:11,.0f}{wall['file']:9,.0f}    {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}, {max(ratios):.2f}){cpu['file'] / cpu['memory']:9.2f}"
        )
    print(f"tasks per second, {args.items} tasks into {len(codes)} languages and back; median (min, max) of the ratios")
    print("batch workers  in memory  in file    file / memory       by CPU time")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
