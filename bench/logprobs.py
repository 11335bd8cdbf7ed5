"""Log-probs and their gradients against what they cannot do without, and against the logits kept whole.

    python -m bench.logprobs                       # some minutes on one core, at Qwen3-0.6B's head
    python -m bench.logprobs --tokens 4096 --dtype bfloat16 --only-memory

Three ways take turns over the same hidden states [N, C], head [V, C] and targets:

    bare      the four matrix products alone, in the same chunks: logits, logits once more, and the two gradients
    full      log_softmax of all logits, gather, and autograd's backward, as in a textbook
    chunked   logprob.token_logps

The bare products are a bound and compute nothing else. The other two must agree in log-probs and both gradients. Peak
memory is what a fresh process takes beyond its inputs, by Linux's account.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import logprob


def bare(hidden, head, targets):
    grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head)
    rows = max(1, logprob.CHUNK_BYTES // (len(head) * hidden.element_size()))
    with torch.no_grad():
        for part in hidden.split(rows):
            part @ head.T
        for part, grad in zip(hidden.split(rows), grad_hidden.split(rows), strict=True):
            logits = part @ head.T
            torch.mm(logits, head, out=grad)
            grad_head.addmm_(logits.T, part)


def full(hidden, head, targets):
    logps = (hidden @ head.T).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    logps.sum().backward()
    return logps.detach()


def chunked(hidden, head, targets):
    logps, _ = logprob.token_logps(hidden, head, targets)
    logps.sum().backward()
    return logps.detach()


WAYS = {way.__name__: way for way in (bare, full, chunked)}


def inputs(args) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator, dtype = torch.Generator().manual_seed(0), getattr(torch, args.dtype)
    hidden = torch.randn(args.tokens, args.hidden, generator=generator).to(dtype)
    head = (torch.randn(args.vocab, args.hidden, generator=generator) / args.hidden**0.5).to(dtype)
    return (
        hidden.requires_grad_(),
        head.requires_grad_(),
        torch.randint(args.vocab, (args.tokens,), generator=generator),
    )


def resident(field: str) -> float:
    """MB that this process holds (VmRSS), or held at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024 / 1e6


def peak(way: str, argv: list[str]) -> float:
    """MB that one call takes beyond its inputs, in a process of its own; gradients are a part of it."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.logprobs", *argv, "--peak-of", way], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def agreed(found: dict[str, list[torch.Tensor]], tolerance: float) -> bool:
    """Whether log-probs and gradients of both ways are the same but for rounding."""
    pairs = zip(found["full"], found["chunked"], strict=True)
    return all((a.float() - b.float()).norm() <= tolerance * a.float().norm() for a, b in pairs)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="N")
    parser.add_argument("--hidden", type=int, default=1024, help="C")
    parser.add_argument("--vocab", type=int, default=151_936, help="V")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of hidden states and head")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the table has the medians")
    parser.add_argument("--only-memory", action="store_true", help="measure no times")
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    tensors = inputs(args)
    if args.peak_of:
        held = resident("VmRSS")
        WAYS[args.peak_of](*tensors)
        print(resident("VmHWM") - held)
        return
    print(f"N {args.tokens}, C {args.hidden}, V {args.vocab}, {args.dtype}, {torch.get_num_threads()} threads")
    if not args.only_memory:
        clocks, found = {name: [] for name in WAYS}, {}
        for repeat in range(args.repeats + 1):  # the first round warms up
            for name, way in WAYS.items():
                for tensor in tensors[:2]:
                    tensor.grad = None
                start = time.process_time()
                logps = way(*tensors)
                if repeat:
                    clocks[name].append(time.process_time() - start)
                elif name != "bare":
                    found[name] = [logps, tensors[0].grad, tensors[1].grad]
            if not repeat:
                assert agreed(found, 1e-4 if args.dtype == "float32" else 3e-2), "both ways compute the same"
                found.clear()
        for name, times in clocks.items():
            ratios = [mine / theirs for mine, theirs in zip(times, clocks["bare"], strict=True)]
            print(
                f"{name:8}{statistics.median(times):8.2f} CPU seconds, {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f}, {max(ratios):.2f}) times the bare products"
            )
    peaks = {name: peak(name, argv) for name in WAYS}
    for name, megabytes in peaks.items():
        print(f"{name:8}{megabytes:8,.0f} MB at the peak, full logits take {peaks['full'] / megabytes:.1f} times that")


if __name__ == "__main__":
    main()
