"""The main job with one process and with two: seconds per training step, in turn.

    python -m bench.processes            # some minutes; nothing else should run

Both sample the same answers in the first step, and differ later by the order of sums.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def steps(processes: int, count: int, directory: Path) -> list[float]:
    """Seconds of each step of a short run, the first left out."""
    words = ["--lang-tier", "low", "--steps", count, "--processes", processes, "--validation-items", 20]
    words += ["--test-items", 20, "--eval-every", count, "--save-every", count, "--out", directory]
    subprocess.run([sys.executable, "train.py", *map(str, words)], check=True, capture_output=True)
    seconds = [json.loads(line)["seconds"] for line in (directory / "timings.jsonl").read_text().splitlines()]
    return seconds[1:-1]  # the last one holds the validation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="training steps of each run")
    parser.add_argument("--repeats", type=int, default=5, help="turns; the table has the medians")
    args = parser.parse_args()
    seconds = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as place:
        for turn in range(args.repeats):
            for processes in (1, 2) if turn % 2 else (2, 1):
                seconds[processes] += steps(processes, args.steps, Path(place) / f"{turn}-{processes}")
    for processes, times in seconds.items():
        print(f"{processes} processes: {statistics.median(times):.2f} s per step ({min(times):.2f}, {max(times):.2f})")
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[2])
    print(f"two processes are {ratio:.2f} times as fast as one with two threads")


if __name__ == "__main__":
    main()
