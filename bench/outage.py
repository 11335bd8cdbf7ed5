"""Calls of the translator through an outage: is any text lost, mixed up with another, or paid twice?

    python -m bench.outage

A server that speaks LibreTranslate's protocol fails 20% of the requests (half of them with HTTP 503, half by hanging
up) and never answers another 2%. Threads ask it 2,000 times through `translators.Service`; every fifth call repeats
the text of another. Which requests fail follows from the text and the number of times it was asked. The server counts
what it answered, which is what a paid service would charge for: also an answer that came after the client had given
up, so that on a machine which stands still for longer than --timeout a text may be paid twice.

Left out: a server that is gone for good, and answers that are wrong. The tests have both.
"""

import argparse
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.servers import Reply, libre, serving, silent
from tools import TranslationError
from translation.engines import Libre
from translation.service import Service

FAILS, HANGS = 0.20, 0.02


class Unreliable:
    """What the server does with a request. `fates` counts what became of them, `answered` the answers to each text."""

    def __init__(self):
        self.fates, self.asked, self.answered, self.lock = Counter(), Counter(), Counter(), threading.Lock()

    def fate(self, text: str) -> str:
        with self.lock:
            self.asked[text] += 1
            rng = random.Random(f"{text} {self.asked[text]}")
            fate = rng.choices(
                ["hung", "HTTP 503", "hung up", "answered"], [HANGS, FAILS / 2, FAILS / 2, 1 - FAILS - HANGS]
            )[0]
            self.fates[fate] += 1
            self.answered[text] += fate == "answered"
        return fate

    def answer(self, request, server) -> Reply | None:
        fate = self.fate(request.json["q"])
        if fate == "hung":
            return silent(request, server)
        return {"HTTP 503": Reply("", 503), "hung up": None, "answered": libre(request)}[fate]


def outage(calls: int, threads: int, timeout: float) -> dict:
    """What became of the calls, by the callers, by the service's meters and by the server."""
    texts = [f"text {i % (calls - calls // 5)}" for i in range(calls)]
    random.Random(0).shuffle(texts)
    unreliable, start = Unreliable(), time.perf_counter()
    with serving(lambda request, server: unreliable.answer(request, server)) as server:
        service = Service(Libre(server.url, timeout=timeout), concurrency=threads, price=1.0)
        with ThreadPoolExecutor(threads) as pool:
            answers = list(pool.map(lambda text: service.attempt([text], "es")[0], texts))
    failed = sum(isinstance(answer, TranslationError) for answer in answers)
    translated = sum(answer == text.upper() for text, answer in zip(texts, answers, strict=True))
    return {
        "texts": len(set(texts)),
        "translated": translated,
        "failed": failed,
        "lost or mixed up": calls - translated - failed,
        "requests": dict(unreliable.fates),
        "most answers to a text": max(unreliable.answered.values()),
        "answered characters": sum(len(text) for text in unreliable.answered.elements()),
        "meters": service.meters,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000, help="calls, of which a fifth repeat a text")
    parser.add_argument("--threads", type=int, default=16, help="callers, and requests at a time")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds after which a request has hung")
    args = parser.parse_args()
    found = outage(args.calls, args.threads, args.timeout)
    meters = found["meters"]
    print(f"{args.calls} calls for {found['texts']} texts by {args.threads} threads, {found['seconds']:.1f} s")
    print(f"requests: {sum(found['requests'].values())}, of which {found['requests']}")
    print(
        f"calls: {found['translated']} translated, {found['failed']} counted as failed, "
        f"{found['lost or mixed up']} lost or mixed up"
    )
    print(
        f"answers to one text: at most {found['most answers to a text']}; paid {meters['spent']:.0f} characters, "
        f"the server answered {found['answered characters']}"
    )
    whole = not found["lost or mixed up"] and found["failed"] == meters["failures"]
    paid_once = found["most answers to a text"] == 1 and meters["spent"] == found["answered characters"]
    if not (whole and paid_once):
        sys.exit("a text was lost, or paid twice")


if __name__ == "__main__":
    main()
