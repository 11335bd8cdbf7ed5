"""A step's update on rows laid end to end that share their prompts, against the same update on padded rows.

    python -m bench.update

The rollouts are one step's of the shipped base model, all of them scored. Both forms run in turns, forward and backward
over the whole step, and must give the same log-probs and the same gradient of a weight of the first layer.
"""

import argparse
import statistics
import time

import torch

import logprob
from harness.options import Options
from harness.rundir import load_policy
from logprob import token_logps
from sampler import rollout
from tiny.languages import LexiconTranslator, languages
from tiny.world import tasks


def padded_logps(model, rollouts, temperature: float, valid_vocab: int):
    """The log-probs of `logprob.policy_logps`, [N] of the sampled tokens, by rows with their prompts, padded."""
    rows = [[*r.prompt_ids, *r.ids] for r in rollouts]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    place = [(b, len(r.prompt_ids) + t) for b, r in enumerate(rollouts) for t, drawn in enumerate(r.sampled) if drawn]
    row, t = torch.tensor(place).T
    return token_logps(model(ids)[row, t - 1], model.lm_head.weight, ids[row, t], temperature, valid_vocab)[0]


def shared_logps(model, rollouts, temperature: float, valid_vocab: int):
    logps, _, sampled = logprob.policy_logps(model, rollouts, temperature, valid_vocab)
    return logps[sampled]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16, help="tasks of the batch, each with eight rollouts")
    parser.add_argument("--repeats", type=int, default=10, help="rounds; the table has the medians")
    args = parser.parse_args()
    model, tokenizer = load_policy("tiny")
    questions = tasks("test", languages("low"), args.prompts, "bench")
    generator = torch.Generator().manual_seed(0)
    half = args.prompts // 2  # half of the rows call: long beside short
    rollouts = []
    for part, mode in ((questions[:half], "free"), (questions[half:], "forced")):
        rollouts += rollout(model, tokenizer, part, 8, LexiconTranslator(), generator, Options().sampling(mode))
    seconds, found = {padded_logps: [], shared_logps: []}, {}
    for repeat in range(args.repeats + 1):  # the first round warms up
        for form, times in seconds.items():
            start = time.perf_counter()
            logps = form(model, rollouts, 1.0, tokenizer.size)
            logps.sum().backward()
            if repeat:
                times.append(time.perf_counter() - start)
            found[form] = (logps.detach(), model.layers[0].mlp.up_proj.weight.grad.clone())
            model.zero_grad()
    for mine, theirs in zip(*found.values(), strict=True):
        assert (mine - theirs).abs().max() < 1e-4 * (1 + theirs.abs().max()), "both forms compute the same"
    prompts, answers = sum(len(r.prompt_ids) for r in rollouts), sum(len(r.ids) for r in rollouts)
    padded = len(rollouts) * max(len(r.prompt_ids) + len(r.ids) for r in rollouts)
    once = sum(map(len, {r.prompt_ids for r in rollouts})) + answers
    print(
        f"{len(rollouts)} rollouts of {args.prompts} prompts, {prompts} prompt and {answers} answer tokens, "
        f"{torch.get_num_threads()} threads; median (min, max) of seconds, forward and backward"
    )
    for (form, times), tokens in zip(seconds.items(), (padded, once), strict=True):
        name = form.__name__.removesuffix("_logps")
        print(f"{name}, {tokens:5} tokens{statistics.median(times):8.3f} ({min(times):.3f}, {max(times):.3f})")
    ratio = statistics.median(seconds[padded_logps]) / statistics.median(seconds[shared_logps])
    print(f"shared is {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
