"""Rollouts against `transformers.generate`, and with tools against generating turn by turn, as trainers around it do.

    pip install -r requirements-bench.txt
    OMP_NUM_THREADS=1 python -m bench.rollouts          # some minutes on one core, and 6 GB for the last line

Both sides run the same weights and draw by the same rule with the same numbers (a logits processor hands `generate` its
tokens), so they must write the same ids; rounding may part a row in a hundred. A turn of the peer is one call of
`generate` on all rows that are still speaking, with everything that they hold so far as their prompt; where rows share
a prompt, it is run for each of them.

Left out: servers such as vLLM, which are no libraries to call on a CPU.
"""

import argparse
import statistics
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.gpu_parts import Place, as_transformers, random_model, wide_tokenizer
from bench.memory import SHAPES, shape
from bench.turns import in_turns, ratios, spread
from data import IM_END, encode_prompt
from harness.options import Options
from harness.rundir import load_policy, policy_directory
from sampler import InLine, Rollout, Row, Sampling, Setting, draw, encode_call, end_turn, read_results, rollout
from tiny.languages import LexiconTranslator, languages
from tiny.world import tasks


@dataclass(frozen=True)
class Case:
    """What is sampled: so many tasks, so many rollouts of each."""

    name: str
    policy: str  # a directory, or a published shape, of random weights
    count: int
    group_size: int
    mode: str


CASES = [
    Case("64 rows, no tools", "tiny", 64, 1, "forbidden"),
    Case("256 rows, no tools", "tiny", 256, 1, "forbidden"),
    Case("32 groups of 8, no tools", "tiny", 32, 8, "forbidden"),
    Case("64 groups of 8, half of them call", "tiny/eager", 64, 8, "free"),
    Case("8 rows, no tools, shape of 0.6B", "0.6B", 8, 1, "forbidden"),
]


class DrawnByNumbers:
    """A logits processor: the token that `sampler.draw` takes is left as the only possible one."""

    def __init__(self, numbers: Tensor, begins: Tensor, prompt: int, setting: Setting):
        self.numbers, self.begins, self.prompt, self.setting = numbers, begins, prompt, setting

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        places = (self.begins + ids.shape[1] - self.prompt).clamp(max=self.numbers.shape[1] - 1)
        tokens, _ = draw(scores, self.numbers.gather(1, places[:, None]), self.setting)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)


def generate_turn(peer, rows: list[Row], numbers: Tensor, setting: Setting) -> list[list[int]]:
    """The ids of each row's next turn: one call of `generate`, prompts padded on the left."""
    held = [[*row.prompt_ids, *row.ids] for row in rows]
    longest, limit = max(map(len, held)), setting.sampling.max_new_tokens
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in held])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in held])
    begins, ends = torch.tensor([len(row.ids) for row in rows]), end_tokens(setting)
    drawn = DrawnByNumbers(numbers[[row.index for row in rows]], begins, longest, setting)
    new = peer.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=limit - int(begins.min()),
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=ends[0],
        logits_processor=[drawn],
    )[:, longest:].tolist()
    lengths = [next((i for i, token in enumerate(turn, 1) if token in ends), len(turn)) for turn in new]
    return [turn[: min(n, limit - len(row.ids))] for row, turn, n in zip(rows, new, lengths, strict=True)]


def end_tokens(setting: Setting) -> list[int]:
    """The end of a turn, and Qwen3's other end token."""
    return [setting.tokenizer.id(IM_END), setting.tokenizer.control["<|endoftext|>"]]


def turn_by_turn(peer, tokenizer, questions, group_size: int, translator, generator, sampling: Sampling):
    """What `sampler.rollout` returns, but for the log-probs, by `generate`."""
    numbers = torch.rand(len(questions) * group_size, sampling.max_new_tokens, generator=generator, dtype=torch.float64)
    prompts = [encode_prompt(task, tokenizer, sampling.chat) for task in questions]
    rows = [Row(i, questions[i // group_size], prompts[i // group_size]) for i in range(len(numbers))]
    setting = Setting(tokenizer, translator, InLine(), sampling)
    for row in rows if sampling.mode == "forced" else ():
        row.write(encode_call(tokenizer), sampled=False)
        close(row, setting)
    while speaking := [row for row in rows if row.stop is None]:
        for row, ids in zip(speaking, generate_turn(peer, speaking, numbers, setting), strict=True):
            row.write(ids, sampled=True)
            close(row, setting)
    return [row.finish() for row in rows]


def close(row: Row, setting: Setting) -> None:
    """The row's turn is over: its calls run, and their results become a part of it."""
    if row.ids[-1] == setting.tokenizer.id(IM_END):
        end_turn(row, setting)
        if row.running:
            read_results(row, setting)
    elif row.ids[-1] in end_tokens(setting):
        row.stop = "end"
    if row.stop is None and len(row.ids) >= setting.sampling.max_new_tokens:
        row.stop = "length"


def agreement(ours: list[Rollout], theirs: list[Rollout]) -> float:
    """The share of rollouts in which both sides wrote the same."""
    same = [(a.ids, a.sampled, a.stop) == (b.ids, b.sampled, b.stop) for a, b in zip(ours, theirs, strict=True)]
    return sum(same) / len(same)


def both(policy: str):
    """The policy: our model, its tokenizer, and the same weights in the class of `transformers`."""
    import transformers

    if policy in SHAPES:
        place = Place("cpu", toy=False)
        model = random_model(place, shape(policy), torch.float32)
        return model, wide_tokenizer(model.config.vocab_size), as_transformers(place, model)
    peer = transformers.AutoModelForCausalLM.from_pretrained(policy_directory(policy), dtype=torch.float32).eval()
    return *load_policy(policy), peer


def measure(case: Case, repeats: int) -> str:
    """The case's line of the table."""
    model, tokenizer, peer = both(case.policy)
    questions = tasks("test", languages("low"), case.count, "bench")
    rest = (questions, case.group_size, LexiconTranslator())
    sampling = Options().sampling(case.mode)
    if case.policy in SHAPES:  # sharpened: of random weights all tokens are nearly as likely, and rounding would decide
        sampling = replace(sampling, temperature=0.05, max_new_tokens=32)

    def by(sampler, policy):
        return lambda: sampler(policy, tokenizer, *rest, torch.Generator().manual_seed(0), sampling)

    seconds, found = in_turns({"ours": by(rollout, model), "generate": by(turn_by_turn, peer)}, repeats)
    share = agreement(found["ours"], found["generate"])
    assert share >= 0.99, f"{case.name}: both sides write the same, but only in {share:.1%} of the rows"
    medians = (f"{statistics.median(seconds[side]):9.2f}" for side in ("ours", "generate"))
    return f"{case.name:36}{''.join(medians)}   {spread(ratios(seconds, 'generate', 'ours'))}{share:9.1%}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns; the table has the medians")
    parser.add_argument("--cases", default="1,2,3,4,5", help="which of the five lines, separated by commas")
    parser.add_argument("--rows", type=int, help="so many tasks in each case, instead of its own number")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # CPU seconds of several threads cannot be compared
    print(f"CPU seconds, one thread; median (min, max) of the ratios of {args.repeats} turns")
    print(f"{'':36}     ours generate   times as fast      same rows")
    numbers = {str(number): case for number, case in enumerate(CASES, 1)}
    if unknown := [word for word in args.cases.split(",") if word not in numbers]:
        parser.error(f"--cases {unknown[0]}: there are {', '.join(numbers)}")
    for case in (numbers[word] for word in args.cases.split(",")):
        case = replace(case, count=args.rows) if args.rows else case
        print(measure(case, args.repeats), flush=True)


if __name__ == "__main__":
    main()
