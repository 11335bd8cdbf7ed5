"""How the update grows with the length of the prompt: groups of eight answers of 32 ids, prompts of 64 to 512.

    python -m bench.growth               # about a minute on one core

The work of the matrix products grows with the prompt; that of attention with its square, but only among the prompt's
own tokens. So the last doubling should cost little more than twice the time.
"""

import argparse
import random
from functools import partial

import torch

from bench.turns import in_turns, ratios, spread
from data import Task
from harness.rundir import load_policy
from logprob import policy_logps
from sampler import Rollout

ANSWER, GROUP = 32, 8


def rollouts(prompt: int, groups: int, rng: random.Random) -> list[Rollout]:
    """Groups of random ids: the time of a forward and a backward does not depend on what they are."""
    task = Task("bench", "en", "high", "trained", "other", "?", (), "0")
    found = []
    for _ in range(groups):
        ids = tuple(rng.randrange(5, 1900) for _ in range(prompt))
        for _ in range(GROUP):
            answer = tuple(rng.randrange(5, 1900) for _ in range(ANSWER))
            found.append(Rollout(task, ids, answer, (True,) * ANSWER, (0.0,) * ANSWER, (), "end"))
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=16, help="groups of the batch, each with eight answers")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the table has the medians")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # CPU seconds of several threads cannot be compared
    model, tokenizer = load_policy("tiny")
    batches = {length: rollouts(length, args.groups, random.Random(length)) for length in (64, 128, 256, 512)}

    def passage(batch: list[Rollout]) -> None:
        policy_logps(model, batch, 1.0, tokenizer.size)[0].sum().backward()
        model.zero_grad()

    turns = {length: partial(passage, batch) for length, batch in batches.items()}
    seconds, _ = in_turns(turns, args.repeats)
    print(f"{args.groups} groups of {GROUP}, answers of {ANSWER} ids; CPU seconds of one thread, median (min, max)")
    before = None
    for length, times in seconds.items():
        factor = f"{spread(ratios(seconds, length, before))} times the row above" if before else ""
        print(f"prompt of {length:4}   {spread(times, 3)} s   {factor}".rstrip())
        before = length


if __name__ == "__main__":
    main()
