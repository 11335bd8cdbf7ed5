"""A table of predicted memory: published Qwen3 shapes on one GPU and on eight, as Markdown.

    python -m bench.memory

Figures are forecast.py's, in GB (10^9 bytes), for the tokens named above the table. A cell is the larger of the two
phases, and fits if 5% of the card stay free. On a GPU, --measure NAME runs an update on random weights and
adds `max_memory_allocated` of an update.

Left out: times. What is measured here is memory alone.
"""

import argparse

import torch

import train
from data import Task
from harness import distributed, forecast
from harness.options import PRESETS
from model import Config, Qwen3
from sampler import Rollout

SHAPES = {  # name: hidden, MLP, layers, query heads, tied, as published
    "0.6B": (1024, 3072, 28, 16, True),
    "1.7B": (2048, 6144, 28, 16, True),
    "4B": (2560, 9728, 36, 32, True),
    "8B": (4096, 12288, 36, 32, False),
}
MACHINES = {"1 x 80 GB": (1, 80), "1 x 141 GB": (1, 141), "8 x 80 GB": (8, 80), "8 x 141 GB": (8, 141)}
PROMPT = 500  # ids of a prompt with the schema of the tool, rounded up
FREE = 0.05


def shape(name: str) -> Config:
    hidden, mlp, layers, heads, tied = SHAPES[name]
    return Config(151_936, hidden, mlp, layers, heads, 8, 128, tie_word_embeddings=tied)


def batch(options: dict) -> forecast.Batch:
    """The largest micro-batch."""
    return forecast.Batch.largest(options["micro_tokens"], options["group_size"], PROMPT, options["max_new_tokens"])


def cell(name: str, ranks: int, gigabytes: int, options: dict) -> str:
    """Predicted GB of the larger phase on each GPU, and whether it fits."""
    sampling = forecast.rollouts(
        shape(name),
        options["max_rows"],
        options["group_size"],
        PROMPT,
        options["max_new_tokens"],
        options["dtype"],
        ranks,
    )
    training = forecast.update(shape(name), batch(options), options["dtype"], options["checkpoint_activations"], ranks)
    phases = {"rollouts": sum(sampling.values()) / 1e9, "update": sum(training.values()) / 1e9}
    largest = max(phases, key=phases.get)
    verdict = "fits" if phases[largest] <= (1 - FREE) * gigabytes else "**does not fit**"
    return f"{phases[largest]:.0f} GB ({largest}), {verdict}"


def table(options: dict) -> str:
    """The Markdown table, a row for each shape."""
    lines = [
        f"{options['max_rows']} rows of {PROMPT} + {options['max_new_tokens']} ids sampled at a time on each GPU; "
        f"micro-batches of {batch(options).rows} such rows, prompts shared; {options['dtype']}; activations "
        f"{'checkpointed' if options['checkpoint_activations'] else 'kept'}; all predicted, none measured.",
        "",
        "| Qwen3 | " + " | ".join(MACHINES) + " |",
        "|---|" + "---|" * len(MACHINES),
    ]
    for name in SHAPES:
        lines.append(f"| {name} | " + " | ".join(cell(name, *machine, options) for machine in MACHINES.values()) + " |")
    return "\n".join(lines)


def measure_update(config: Config, options: dict) -> tuple[int, int]:
    """(`max_memory_allocated`, prediction) in bytes of an update with two of the largest micro-batches on a GPU."""
    device = distributed.start("cuda", options["dtype"])
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3(config)
    model.checkpoint_activations = options["checkpoint_activations"]
    model = distributed.shard(model, getattr(torch, options["dtype"]))
    rows, new, tokens = batch(options).rows, options["max_new_tokens"], options["micro_tokens"]
    task = Task("t", "en", "high", "trained", "math", "?", (), "1")
    answer = Rollout(task, (1,) * PROMPT, (1,) * new, (True,) * new, (0.0,) * new, (), "length")
    advantages = torch.tensor([1.0, -1.0] * rows)
    setting = train.Config(prompts=1, group_size=2 * rows, minibatches=1, micro_tokens=tokens)
    optimizer = train.adamw(model, setting)
    for is_warm in (False, True):  # the first step makes the moments
        if is_warm:
            torch.cuda.reset_peak_memory_stats()
        train.update(model, optimizer, [answer] * 2 * rows, advantages, setting, config.vocab_size)
    predicted = forecast.update(config, batch(options), options["dtype"], options["checkpoint_activations"], 1)
    return torch.cuda.max_memory_allocated(), sum(predicted.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=SHAPES, help="also run an update of this shape on the GPU here")
    measured = parser.parse_args().measure
    options = PRESETS["qwen3-4b"]
    print(table(options))
    if measured and not torch.cuda.is_available():
        parser.error("--measure: torch finds no GPU here")
    if measured:
        with distributed.together():
            peak, predicted = measure_update(shape(measured), options)
        print(
            f"\n{measured}, update, {torch.cuda.get_device_name()}: **measured {peak / 1e9:.1f} GB**, "
            f"predicted {predicted / 1e9:.1f} GB"
        )


if __name__ == "__main__":
    main()
