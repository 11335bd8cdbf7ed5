"""Calls beside decoding: what a slow translator adds to the rollout phase.

    python -m bench.overlap

64 rollouts of the shipped base model, each of which calls once (forced mode), with a translator that answers at once
and with one that takes 300 ms: calls in line, one after the other, and calls in a pool of threads. The four settings
take turns, so that they share whatever else the machine does.
"""

import argparse
import statistics
import time

import torch

from harness.options import Options
from harness.rundir import load_policy
from sampler import rollout
from tiny.languages import LexiconTranslator, languages
from tiny.world import tasks


class Slow:
    """A translator that takes its time."""

    def __init__(self, engine, seconds: float):
        self.engine, self.seconds, self.name = engine, seconds, f"{engine.name} after {seconds} s"

    def translate(self, texts: list[str], source: str, target: str = "en") -> list[str]:
        time.sleep(self.seconds)
        return self.engine.translate(texts, source, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="rollouts, each with one call")
    parser.add_argument("--latency", type=float, default=0.3, help="seconds of a call")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the table has the medians")
    args = parser.parse_args()
    model, tokenizer = load_policy("tiny")
    questions = tasks("test", languages("low"), args.rows, "bench")
    settings = [(latency, workers) for latency in (0.0, args.latency) for workers in (0, args.rows)]
    seconds, answers = {setting: [] for setting in settings}, {}
    for repeat in range(args.repeats + 1):  # the first round warms up
        for latency, workers in settings:
            if latency and not workers and repeat > 1:
                continue  # rows x latency seconds: once is enough
            generator, engine = torch.Generator().manual_seed(0), Slow(LexiconTranslator(), latency)
            start = time.perf_counter()
            sampling = Options(workers=workers).sampling("forced")
            rollouts = rollout(model, tokenizer, questions, 1, engine, generator, sampling)
            if repeat:
                seconds[latency, workers].append(time.perf_counter() - start)
            answers[latency, workers] = [r.ids for r in rollouts]
    assert len({str(ids) for ids in answers.values()}) == 1, "the same rollouts, however they are scheduled"
    print(f"{args.rows} rollouts with one call each, {torch.get_num_threads()} threads; median (min, max) of seconds")
    for (latency, workers), times in seconds.items():
        how = f"{workers} workers" if workers else "in line"
        print(f"latency {latency:.1f} s, {how:12}{statistics.median(times):8.2f} ({min(times):.2f}, {max(times):.2f})")
    added = statistics.median(seconds[args.latency, args.rows]) - statistics.median(seconds[0.0, args.rows])
    ratio = statistics.median(seconds[args.latency, 0]) / statistics.median(seconds[args.latency, args.rows])
    print(f"a latency of {args.latency} s adds {added:.2f} s to the phase; in line it takes {ratio:.0f} times as long")


if __name__ == "__main__":
    main()
