"""The main job by phase: where the CPU seconds of `python train.py --lang-tier low` go.

    OMP_NUM_THREADS=1 python -m bench.job                         # the whole job: eight minutes on one core
    OMP_NUM_THREADS=1 python -m bench.job --steps 10 --items 50

It is the job itself, with a clock around five functions of train.py. What is left is the start, the logs and the
checkpoints. Shares depend on the length of the job, because the closing evaluation comes once.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from unittest.mock import patch

import torch

import train
from bench.turns import spread

PHASES = {"sample": "sampling", "update": "update", "validate": "validation", "report": "closing evaluation"}


class Clock:
    """CPU seconds of each call of each phase, in the order of the calls."""

    def __init__(self):
        self.seconds = {name: [] for name in PHASES} | {"outcomes": []}

    def around(self, name: str):
        function = getattr(train, name)

        def call(*arguments):
            start = time.process_time()
            try:
                return function(*arguments)
            finally:
                self.seconds[name].append(time.process_time() - start)

        return call


def run(words: list[str]) -> tuple[dict[str, list[float]], float]:
    """(seconds of each call, seconds of the whole) of a job in this process."""
    clock, start = Clock(), time.process_time()
    with ExitStack() as patches:
        for name in clock.seconds:
            patches.enter_context(patch.object(train, name, clock.around(name)))
        train.main(words)
    return clock.seconds, time.process_time() - start


def table(seconds: dict[str, list[float]], whole: float) -> list[str]:
    """A line per phase. The closing evaluation's is followed by the base's part of it: the first half of its groups."""
    groups = len(seconds["outcomes"]) - len(seconds["validate"])  # a validation of one tier asks once
    closing = seconds["outcomes"][-groups:]
    lines = {PHASES[name]: times for name, times in seconds.items() if name in PHASES}
    shares = {**{name: sum(times) for name, times in lines.items()}, "  of which the base": sum(closing[: groups // 2])}
    shares["the rest"] = whole - sum(sum(times) for times in lines.values())
    calls = {name: f"   {spread(times)} s per call" for name, times in lines.items() if len(times) > 1}
    return [f"{name:22}{total:9.1f} s{total / whole:7.1%}{calls.get(name, '')}" for name, total in shares.items()]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=train.Config.steps, help="training steps")
    parser.add_argument("--items", type=int, default=train.Config.test_items, help="test items in each group")
    parser.add_argument("--options", default="", help="more options of train.py, in quotes")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # CPU seconds of several threads say nothing about the time that they take
    with tempfile.TemporaryDirectory() as place:
        words = f"--lang-tier low --steps {args.steps} --test-items {args.items} --out {place}/run {args.options}"
        seconds, whole = run(words.split())
    print(f"\n{args.steps} steps, {whole:.0f} CPU seconds of one thread")
    print("\n".join(table(seconds, whole)))
    steps = [a + b for a, b in zip(seconds["sample"], seconds["update"], strict=True)]
    print(f"sampling and update of a step: {statistics.median(steps):.2f} s")


if __name__ == "__main__":
    main()
