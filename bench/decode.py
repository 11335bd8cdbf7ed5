"""A decoding step by its parts: what share of it is arithmetic that it cannot do without.

    python -m bench.decode                              # some seconds on one core
    python -m bench.decode --shape 0.6B --rows 64       # random weights; 2.4 GB

A step runs the model on one token of each row behind `--context` others, and draws the next ones. Each part is run by
itself on tensors of the step's sizes:

    products    of the seven weights of each layer and of the head, over as many rows
    attention   over the keys and values of all layers, the new ones written to the cache
    draw        of a token by its number: probabilities, summed in fp64, over the vocabulary

What is left of the step are norms, rotary embeddings, SwiGLU's own arithmetic, and Python.
"""

import argparse
from collections.abc import Callable

import torch

from bench.gpu_parts import wide_tokenizer
from bench.memory import SHAPES, shape
from bench.turns import in_turns, ratios, spread
from harness.options import Options
from harness.rundir import load_policy
from model import Qwen3
from sampler import InLine, Setting, draw


def products(model: Qwen3, rows: int) -> Callable[[], None]:
    """The products of a step, each on an input of the right size."""
    weights = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    weights += [model.lm_head.weight] * model.config.tie_word_embeddings
    inputs = {size: torch.randn(rows, size) for size in {weight.shape[1] for weight in weights}}

    def run() -> None:
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    return run


def parts(model: Qwen3, rows: int, context: int, setting: Setting) -> dict[str, Callable[[], None]]:
    """The whole step first, then each part by itself."""
    c, cache = model.config, model.new_cache(rows, context + 1)
    ids, numbers = torch.zeros(rows, 1, dtype=torch.long), torch.linspace(0, 0.999, rows, dtype=torch.float64)[:, None]
    heads = (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)
    q, k, v = (torch.randn(rows, 1, count, c.head_dim) for count in heads)
    logits, layers = torch.randn(rows, c.vocab_size), cache.layers(torch.full((rows, 1), context), torch.float32)

    def step() -> None:
        cache.lengths.fill_(context)
        draw(model.logits(model(ids, cache)[:, -1]), numbers, setting)

    def attention() -> None:
        for layer in layers:
            layer.attend(q, k, v)

    def drawing() -> None:
        draw(logits, numbers, setting)

    return {"step": step, "products": products(model, rows), "attention": attention, "draw": drawing}


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", choices=["tiny", *SHAPES], default="tiny", help="the shipped base, or random weights"
    )
    parser.add_argument("--rows", type=int, default=256, help="rows that are decoded at a time")
    parser.add_argument("--context", type=int, default=48, help="ids that each row holds")
    parser.add_argument("--repeats", type=int, default=20, help="turns; the table has the medians")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # CPU seconds of several threads cannot be compared
    model, tokenizer = load_policy("tiny")
    if args.shape != "tiny":
        model = Qwen3(shape(args.shape))
        tokenizer = wide_tokenizer(model.config.vocab_size)
    setting = Setting(tokenizer, None, InLine(), Options().sampling("free"))
    seconds, _ = in_turns(parts(model, args.rows, args.context, setting), args.repeats)
    print(f"{args.shape}, {args.rows} rows of {args.context} ids; CPU seconds of one thread, median (min, max)")
    for name, times in seconds.items():
        share = "" if name == "step" else f"   {spread(ratios(seconds, name, 'step'))} of the step"
        print(f"{name:10}{spread(times, 4)}{share}")


if __name__ == "__main__":
    main()
