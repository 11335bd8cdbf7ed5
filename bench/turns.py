"""Several ways to do one thing, timed in turns, so that all of them share whatever else the machine does.

    seconds, found = in_turns({"ours": ours, "theirs": theirs}, repeats=5)
    print("\n".join(table(seconds, "theirs")))

Ratios are taken turn by turn and their median is told, never the ratio of two medians: a turn in which the machine was
slow was slow for both. Left out: outliers are not dropped, their spread is printed.
"""

import statistics
import time
from collections.abc import Callable

import torch


def in_turns(
    ways: dict[str, Callable], repeats: int, clock: Callable[[], float] = time.process_time
) -> tuple[dict[str, list[float]], dict]:
    """(seconds of each way in each turn, what each way returned last). One more turn, which is not counted, warms up.

    CPU seconds unless another `clock` is given: other programs on the machine do not change them much. They add up over
    threads, so one-threaded ways can be compared by them and others cannot.
    """
    settle_memory()
    seconds, found = {name: [] for name in ways}, {}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            found.pop(name, None)  # what the last turn left is not held through this one
            start = clock()
            found[name] = way()
            if turn:
                seconds[name].append(clock() - start)
    return seconds, found


def settle_memory() -> None:
    """Let the C library keep freed memory, as it does in a run from the first update on: it does once it has freed a
    block of nearly 32 MB. Before, the kernel maps and clears all tensors of a decoding step anew: a fifth of its time.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def gpu_clock() -> float:
    """The wall's clock, once the GPU has done all that it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def ratios(seconds: dict[str, list[float]], over: str, under: str) -> list[float]:
    """Turn by turn, the seconds of `over` over those of `under`: how many times as fast `under` is."""
    return [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]


def spread(values: list[float], digits: int = 2) -> str:
    """median (min, max)"""
    return "{:.{d}f} ({:.{d}f}, {:.{d}f})".format(statistics.median(values), min(values), max(values), d=digits)


def table(seconds: dict[str, list[float]], first: str) -> list[str]:
    """A line per way: its seconds, and of all but `first`, how many times as long as `first` it takes."""
    lines = []
    for name, times in seconds.items():
        against = "" if name == first else f"   {spread(ratios(seconds, name, first))} times as long as {first}"
        lines.append(f"{name:24}{spread(times, 3)} s{against}")
    return lines
