"""What a run will take, before it is started: its plan, the bytes at the peak of its three phases, and on the disk.

`train.py --dry-run` prints it, `bench/memory.py` makes a table of it. The forecast counts what
the code keeps, tensor by tensor: what autograd saves is exact up to a few numbers a token, what lives for a moment only
(logits, gathered layers, copies of the cache) is counted where it is largest. tests/test_forecast.py holds the former
against autograd's own account.

Left out: what the allocator loses to fragments, the CUDA context, NCCL's buffers. Leave 5% for them.

Shapes: B rows, T time, S cache slots, C channels, H heads, K key/value heads, D head dim, I MLP channels, V vocabulary.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data import Task, encode_prompt, load_tasks, load_tokenizer
from harness.escape import on_screen
from harness.rundir import policy_directory
from harness.tasks import check_prompts, evaluation_tasks, is_tiny, training_tasks
from harness.template import remark, require_a_free_start
from logprob import CHUNK_BYTES
from model import GPU_GROWTH, Config, read_config

SIZE = {"float64": 8, "float32": 4, "bfloat16": 2}
FREE = 0.05  # of the memory that should stay free: for what is left out above


def parameters(c: Config) -> tuple[int, int]:
    """Numbers of parameters: (of one layer, of what is in no layer: embedding, last norm and, untied, the head)."""
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    attention = c.hidden_size * (2 * queries + 2 * keys) + 2 * c.head_dim
    tables = 1 if c.tie_word_embeddings else 2
    return (
        attention + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size,
        tables * c.vocab_size * c.hidden_size + c.hidden_size,
    )


def adapters(c: Config, lora: int) -> int:
    """Parameters of one layer's adapters of rank `lora`: A and B of each projection."""
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return lora * (4 * c.hidden_size + 2 * queries + 2 * keys + 3 * (c.hidden_size + c.intermediate_size))


def held(c: Config, dtype: str, ranks: int, lora: int) -> dict[str, int]:
    """Bytes that one rank always holds: fp32 weights and moments, split over the ranks; or, whole, frozen weights in
    the dtype of the computation, and the adapters' own."""
    layer, ends = parameters(c)
    total = c.num_hidden_layers * layer + ends
    if lora:
        trained = c.num_hidden_layers * adapters(c, lora)
        return {"weights": SIZE[dtype] * total, "adapters": 4 * trained, "moments": 8 * trained}
    return {"weights": 4 * total // ranks, "moments": 8 * total // ranks}


def policy_copy(c: Config, dtype: str, ranks: int, lora: int) -> int:
    """Bytes of the policy that rollouts are sampled from, beyond the trained weights: of one with adapters, what is
    merged."""
    layer, ends = parameters(c)
    if lora:
        return SIZE[dtype] * c.num_hidden_layers * projections(c)
    return SIZE[dtype] * (c.num_hidden_layers * layer + ends) if ranks > 1 or dtype != "float32" else 0


def projections(c: Config) -> int:
    """Parameters of one layer that get adapters: all but its norms."""
    return parameters(c)[0] - 2 * c.head_dim - 2 * c.hidden_size


@dataclass(frozen=True)
class Batch:
    """A micro-batch of `rows` rollouts of `new` ids each, the `prompt` ids run once for each group of `group`."""

    rows: int
    group: int
    prompt: int
    new: int

    @classmethod
    def largest(cls, micro_tokens: int, group: int, prompt: int, new: int, most: int | None = None) -> "Batch":
        """As many full rows as fit into `--micro-tokens`, of the `most` that there are; one is run even if it does not
        fit."""
        rows = max(1, micro_tokens // (prompt + new))
        return cls(min(rows, most or rows), group, prompt, new)

    @property
    def prompts(self) -> int:
        return -(-self.rows // self.group)

    @property
    def tokens(self) -> int:
        """What all of the model but attention runs on."""
        return self.prompts * self.prompt + self.scored

    @property
    def scored(self) -> int:
        """What carries loss, if nothing is inserted."""
        return self.rows * self.new

    @property
    def slots(self) -> tuple[int, int, int]:
        """Queries and keys of both calls of attention, prompts and answers, and the pairs in the latter's mask."""
        prompts, keys = self.prompts * self.prompt, self.prompt + self.new
        return prompts + self.scored, prompts + self.rows * keys, self.scored * keys


def saved_by_layer(c: Config, dtype: str, batch: Batch, lora: int = 0) -> int:
    """Bytes that autograd saves in one layer's forward, parameters excluded; on a GPU, that is with repeated keys."""
    e = SIZE[dtype]
    wide = max(4, e)  # of the norms' statistics
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    normalised = 0 if lora else e  # what the gradient of a norm's weight needs
    norms = 2 * (c.hidden_size * (wide + normalised) + wide)  # each in wide precision and normalised, and 1/rms
    norms += (queries + keys) * (wide + normalised) + (c.num_attention_heads + c.num_key_value_heads) * wide
    inputs = e * (2 * c.hidden_size + queries)  # of q/k/v, of gate/up, of o
    mlp = 4 * e * c.intermediate_size  # gate, silu(gate), up and their product
    query_slots, key_slots, _ = batch.slots
    attention = query_slots * (2 * e * queries + 4 * c.num_attention_heads)  # queries, result, log-sums
    attention += key_slots * 2 * e * queries  # keys and values
    merged = e * projections(c) if lora else 0
    return batch.tokens * (norms + inputs + mlp) + attention + merged


def saved(c: Config, dtype: str, batch: Batch, checkpoint: bool, lora: int = 0) -> int:
    """Bytes that autograd holds when the backward begins, parameters excluded.

    With `checkpoint`, each layer's input, and what one layer saves while the backward runs it again.
    """
    e = SIZE[dtype]
    wide = max(4, e)
    layer = saved_by_layer(c, dtype, batch, lora)
    layers = c.num_hidden_layers * (e * c.hidden_size * batch.tokens if checkpoint else layer)
    layers += layer if checkpoint else 0
    query_slots, key_slots, pairs = batch.slots
    once = batch.tokens * (16 + 2 * e * c.head_dim // 2)  # ids, places, rotary tables
    once += 8 * (query_slots + key_slots) + e * pairs  # which tokens, and the mask
    norm = batch.tokens * (c.hidden_size * (wide + (0 if lora else e)) + wide)  # the last one
    return layers + once + norm + batch.scored * (e * c.hidden_size + 40 + 2 * wide)  # 40: ids and places


def update(c: Config, batch: Batch, dtype: str, checkpoint: bool, ranks: int, lora: int = 0) -> dict[str, int]:
    """Bytes on one rank at the peak of an update, by kind.

    Gradients are counted whole on each rank, because they are summed over ranks only with an update's last micro-batch.
    """
    e, (layer, ends) = SIZE[dtype], parameters(c)
    trained = c.num_hidden_layers * adapters(c, lora) if lora else c.num_hidden_layers * layer + ends
    is_split = (ranks > 1 or dtype != "float32") and not lora
    logits = min(CHUNK_BYTES, batch.scored * c.vocab_size * e)
    head = 4 * logits + 3 * e * batch.scored * c.hidden_size
    head += 0 if lora else (4 + e) * c.vocab_size * c.hidden_size  # its gradient
    one_layer = e * batch.tokens * (3 * c.intermediate_size + 2 * c.hidden_size)  # gradients inside the MLP
    one_layer += 16 * c.hidden_size * c.intermediate_size if lora else 0  # what is added to a matrix, and gradients
    activations = saved(c, dtype, batch, checkpoint, lora)
    if checkpoint:  # while the head works no layer has been run again yet
        head = max(head - saved_by_layer(c, dtype, batch, lora), 0)
    return {
        **held(c, dtype, ranks, lora),
        "gradients": 4 * trained,
        "gathered": (2 * e * ends + 2 * e * layer + (4 + e) * layer) if is_split else 0,  # two layers, one's gradients
        "activations": activations,
        "working": max(head, one_layer),
    }


def rollouts(
    c: Config, rows: int, group: int, prompt: int, new: int, dtype: str, ranks: int, lora: int = 0
) -> dict[str, int]:
    """Bytes on one rank at the peak of sampling `rows` rollouts at a time, by kind: `prompt` + `new` ids each.

    Sampling begins before there are gradients and after autograd has let go of everything.
    """
    e = SIZE[dtype]
    slots = prompt + new + GPU_GROWTH  # a GPU's cache may have grown at the last token
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    prompts = -(-rows // group)
    cache = 2 * c.num_hidden_layers * keys * e * rows * slots
    readers = (rows + 1) // 2  # rows that read a result together; one layer's keys and values are copied for each head
    expanded = 2 * queries * e * readers * slots if queries != keys else 0
    decode = expanded + rows * slots + 24 * rows * c.vocab_size  # two in fp32, sums and a copy in fp64
    prefill = prompts * prompt * (e * (3 * c.intermediate_size + 4 * c.hidden_size) + (1 + e) * prompt)
    return {
        **held(c, dtype, ranks, lora),
        "copy": policy_copy(c, dtype, ranks, lora),
        "cache": cache + cache // 2,  # keys, values, and a copy of either, or of half of the rows
        "working": max(decode, prefill),
    }


def closing(c: Config, rows: int, prompt: int, new: int, dtype: str, ranks: int, lora: int = 0) -> dict[str, int]:
    """Bytes on one rank at the peak of the closing evaluation, by kind: rows without groups, each with its own prompt.

    Training's weights and moments are still there, and base and result are read whole, one after the other: the first
    is let go before the second is read.
    """
    layer, ends = parameters(c)
    parts = rollouts(c, rows, 1, prompt, new, dtype, ranks, lora)
    return {**parts, "copy": SIZE[dtype] * (c.num_hidden_layers * layer + ends)}


def on_disk(c: Config, dtype: str = "float32", lora: int = 0) -> int:
    """Bytes that a run's policies take at most: two checkpoints and a third that is being written, each with weights
    and both moments, and `best/` twice, while a better one is written, in
    fp32 if its source is. Logs are small beside them."""
    layer, ends = parameters(c)
    return 3 * _checkpoint(c, dtype, lora) + 2 * 4 * (c.num_hidden_layers * layer + ends)


def _checkpoint(c: Config, dtype: str, lora: int) -> int:
    """Bytes of one: weights and moments in fp32; or merged weights, and adapters and their moments."""
    layer, ends = parameters(c)
    total = c.num_hidden_layers * layer + ends
    return SIZE[dtype] * total + 12 * c.num_hidden_layers * adapters(c, lora) if lora else 12 * total


def on_host(c: Config, is_gpu: bool, dtype: str = "float32", lora: int = 0) -> int:
    """Bytes beyond the model's own that the rank that writes a checkpoint takes from the host's memory."""
    return _checkpoint(c, dtype, lora) if is_gpu else 0


def describe(parts: dict[str, int]) -> str:
    """The sum in GB (10^9 bytes), and what it is made of."""
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items() if size)
    return f"{sum(parts.values()) / 1e9:.2f} GB ({listed})"


# --- before a run -----------------------------------------------------------------------------------------------


def introduction(config, task: Task, tokenizer, base) -> str:
    """The resolved configuration, the first prompt as the policy will see it, and whether `base`, the directory that it
    comes from, has a chat template of another kind."""
    prompt = tokenizer.decode(encode_prompt(task, tokenizer, config.chat_format))
    said = remark(base, tokenizer, config.chat_format)
    return f"{json.dumps(asdict(config), indent=2)}\nfirst prompt:\n{on_screen(prompt)}" + (f"\n{said}" if said else "")


def dry_run(config) -> str:
    """What train.py would do with this configuration: the introduction, the memory it would take, and its plan.

    Reads the model's config.json and tokenizer, not its weights. Raises as train.py would for what cannot be read.
    """
    base = policy_directory(config.model)
    require_a_free_start(base)
    tokenizer, shape = load_tokenizer(base), read_config(base)
    draw_tasks = training_tasks(config, config.tiers, config.seed)
    check_prompts(config, tokenizer)
    tests = [evaluation_tasks(config, *part) for part in _evaluations(config)]
    items = max((len(tasks) for groups in tests for tasks in groups.values()), default=0)
    longest = _longest_prompt(config, tokenizer, draw_tasks, tests)
    count, new = config.prompts * config.group_size, config.max_new_tokens
    batch = Batch.largest(config.micro_tokens, config.group_size, longest, new, count // config.minibatches)
    lines = []
    for ranks in (1, 8):
        rows = min(config.max_rows, -(-config.prompts // ranks) * config.group_size)
        tested = min(config.max_rows, -(-items // ranks))
        sampling = rollouts(shape, rows, config.group_size, longest, new, config.dtype, ranks, config.lora_rank)
        training = update(shape, batch, config.dtype, config.checkpoint_activations, ranks, config.lora_rank)
        ending = closing(shape, tested, longest, new, config.dtype, ranks, config.lora_rank)
        peak = max(sum(phase.values()) for phase in (sampling, training, ending))
        lines += [
            f"predicted memory of each of {ranks} ranks:" if ranks > 1 else "predicted memory of one process:",
            f"  rollouts, {rows} rows of {longest} + {new} ids at a time: {describe(sampling)}",
            f"  update, micro-batches of {batch.rows} such rows, prompts shared: {describe(training)}",
            f"  closing evaluation, {tested} such rows, no two of one prompt: {describe(ending)}",
            f"  {_verdict(peak, config.device, ranks)}",
        ]
    most = count * new
    return "\n".join(
        [
            introduction(config, draw_tasks(0, 1)[0], tokenizer, base),
            *lines,
            *_storage(shape, config),
            f"plan: {config.steps} steps, each {config.prompts} prompts x {config.group_size} = {count} rollouts and "
            f"{config.minibatches} optimizer steps",
            f"  in all {config.steps * count:,} rollouts and at most {config.steps * most:,} tokens, {most:,} a step",
            f"  every {config.eval_every} steps validation, {config.validation_items} items in each of "
            f"{', '.join(config.tiers)}; every {config.save_every} steps a checkpoint",
            "nothing was written",
        ]
    )


def _evaluations(config) -> list[tuple[str, int]]:
    return [("validation", config.validation_items), ("test", config.test_items)]


def _longest_prompt(config, tokenizer, draw_tasks, tests: list[dict]) -> int:
    """Ids of the longest prompt of the file; of the embedded world, whose tasks have no end, of one step and all items
    of the evaluations."""
    if is_tiny(config):
        tasks = [
            *draw_tasks(0, config.prompts),
            *(task for groups in tests for part in groups.values() for task in part),
        ]
    else:
        tasks = load_tasks(config.data, config.field_names)
    return max(len(encode_prompt(task, tokenizer, config.chat_format)) for task in tasks)


def _verdict(peak: int, device: str, ranks: int) -> str:
    """Whether the largest phase fits into the memory of the device here."""
    is_gpu = device.startswith("cuda")
    if not (torch.cuda.is_available() if is_gpu else hasattr(os, "sysconf")):  # Windows has none
        return f"{peak / 1e9:.2f} GB at the peak; how much there is cannot be told here"
    if is_gpu:
        have, place = torch.cuda.mem_get_info(device)[1], "the GPU"
    else:  # all ranks share it
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks
        place = f"this machine for each of {ranks} ranks" if ranks > 1 else "this machine"
    fits = "fits" if peak <= (1 - FREE) * have else "does not fit"
    return f"{fits}: {peak / 1e9:.2f} GB at the peak, {have / 1e9:.2f} GB on {place}, {FREE:.0%} of it left free"


def _storage(shape: Config, config) -> list[str]:
    """Lines about the disk that `--out` is on and about the host's memory."""
    there = Path(config.directory).absolute()
    there = next(place for place in (there, *there.parents) if place.exists())
    need, free = on_disk(shape, config.dtype, config.lora_rank), shutil.disk_usage(there).free
    fits = "fits" if need <= free else "does not fit"
    host = on_host(shape, config.device.startswith("cuda"), config.dtype, config.lora_rank)
    return [
        f"predicted disk: {fits}: checkpoints and best/ take at most {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
        f"predicted host memory, beyond what is told above: {host / 1e9:.2f} GB while a checkpoint is written",
    ]
