"""Throughput of the pipeline of `translation/pipeline.py` with Apertium, by language and route, on one core.

    python -m bench.throughput --input gsm8k.jsonl

For each language the tasks are protected, translated, translated once more with the engine's marks, and translated
back where there is a way: first with an empty cache, then ten times with a full one. Apertium's programs are processes
of their own, one at a time, so that one core is busy; `taskset` picks it. Tasks are counted by the wall's clock and by
the CPU time of this process and of theirs, which other work on the core does not change much.

Left out: verification and reports, which take milliseconds, and the journal's writes to disk.
"""

import argparse
import os
import sys
import time

from data import Task
from translation.apertium import ROUTES, Apertium
from translation.pipeline import BATCH, english_tasks, round_trips
from translation.protect import KINDS
from translation.service import Service

PROTECT = list(KINDS[:-1])


def passage(service: Service, tasks: list[Task], language: str, way_back: bool) -> tuple[float, float]:
    """Seconds on the wall's clock and of CPU time for the round trips of all tasks."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])  # of this process and of its children
    for i in range(0, len(tasks), BATCH):
        for line in round_trips(service, tasks[i : i + BATCH], language, PROTECT, way_back):
            if "error" in line:
                sys.exit(f"{line['id']}: {line['error']}")
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def row(engine: Apertium, tasks: list[Task], language: str) -> str:
    """The language's line of the table: routes, and tasks per second."""
    there, back = (way.split() for way in ROUTES[language].split(","))
    service = Service(engine)
    clocks = passage(service, tasks, language, bool(back))
    cached = sum(passage(service, tasks, language, bool(back))[0] for _ in range(10)) / 10
    rates = (f"{len(tasks) / seconds:,.1f}" for seconds in (*clocks, cached))
    return f"| {language} | {' '.join(there)} | {' '.join(back) or '-'} | {' | '.join(rates)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="JSONL file of English tasks, as for translation/pipeline.py")
    parser.add_argument("--items", type=int, default=32, help="the first so many tasks")
    parser.add_argument("--languages", help="codes, separated by commas (default: all that are installed)")
    args = parser.parse_args()
    try:
        engine, tasks = Apertium(), english_tasks(args.input, {}, args.items)
    except (ValueError, OSError) as error:
        sys.exit(f"no table: {error}")
    characters = sum(len(task.question) for task in tasks) / len(tasks)
    print(f"{len(tasks)} tasks of {characters:.0f} characters on average, apertium {engine.version}\n")
    print("| | route there | route back | tasks/s | tasks per CPU second | cached tasks/s |")
    print("|---|---|---|---:|---:|---:|")
    codes = [code for code, ways in ROUTES.items() if ways.split(",")[0]]
    for code in args.languages.split(",") if args.languages else codes:
        modes = ROUTES.get(code, "").replace(",", " ").split()
        if code in codes and all((engine.modes / f"{mode}.mode").exists() for mode in modes):
            print(row(engine, tasks, code), flush=True)
        else:
            print(f"{code}: no route from English is installed", file=sys.stderr)


if __name__ == "__main__":
    main()
