"""[4] Rollouts: batched decoding with a KV cache, and tool calls in the middle.

    tasks -> prefill each prompt once -> fan out to its group -> draw, append, (call, splice) -> Rollout

The sampler writes the mask itself: it knows which tokens the policy drew, so nobody derives roles from text later. A
tool result is spliced in as ids on the same row and the same cache; nothing is prefilled twice or tokenized again.

What token t of rollout i becomes is decided by one number, `uniforms[i, t]`, drawn before decoding begins: the token is
where that number falls in the cumulative distribution. So the batch size, the order in which rows finish and when a
tool answers cannot change a result. (Floating point is the fine print: a matrix product over another number of rows may
differ in its last bit, which moves a boundary by about 1e-7.)

A row that calls is parked while a pool of threads runs the call, and the others go on; a row that ends leaves its place
to one that waits. Left out: top-k, top-p and other truncations. They would make the sampling distribution differ from
the one whose log-probs are trained.
"""

from collections import deque
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data import CALL, IM_END, Chat, Task, Tokenizer, encode_call, encode_tool_turn
from model import Cache, Qwen3
from tools import Call, Prices, Translator, calls_in, run_call

CUT = " …[cut]"  # stands where a tool result was cut to fit into the row
MODES = ("free", "forced", "forbidden")


@dataclass(frozen=True)
class Rollout:
    """One answer of the policy to one task. `ids`, `sampled` and `logps` are of one length and all after the prompt."""

    task: Task
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    sampled: tuple[bool, ...]  # true iff the policy drew this token; false for tool results and forced calls
    logps: tuple[float, ...]  # the sampler's log-prob where sampled, 0 elsewhere
    calls: tuple[Call, ...]
    stop: str  # end | length | tool_limit

    @property
    def engine_failed(self) -> bool:
        """The translator failed at least once: not the policy's doing, so no evidence about it."""
        return any(call.error == "engine" for call in self.calls)


@dataclass
class Row:
    """A rollout in the making."""

    index: int  # which rollout: row of `uniforms`
    task: Task
    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    pending: list[Future] = field(default_factory=list)  # calls that run: the row is parked until all have an answer
    turn: int = 0  # where in `ids` the current assistant turn begins
    unread: list[int] = field(default_factory=list)  # ids that the model has not been run on
    stop: str | None = None

    @property
    def is_speaking(self) -> bool:
        return self.stop is None and not self.pending

    def append(self, ids: list[int], sampled: bool, logps: list[float] | None = None) -> None:
        self.ids += ids
        self.sampled += [sampled] * len(ids)
        self.logps += logps or [0.0] * len(ids)
        self.unread += ids

    def finish(self) -> Rollout:
        return Rollout(
            self.task,
            tuple(self.prompt_ids),
            tuple(self.ids),
            tuple(self.sampled),
            tuple(self.logps),
            tuple(self.calls),
            self.stop,
        )


@dataclass(frozen=True)
class Setting:
    """What stays the same for all rows of a call to `rollout`."""

    tokenizer: Tokenizer
    translator: Translator
    pool: Executor
    chat: Chat
    prices: Prices
    mode: str
    temperature: float
    max_new_tokens: int
    max_calls: int


class InLine(Executor):
    """A pool without threads: a task is done when it has been submitted, so nothing depends on time."""

    def submit(self, function, /, *args) -> Future:
        future = Future()
        future.set_result(function(*args))
        return future


@torch.no_grad()
def rollout(
    model: Qwen3,
    tokenizer: Tokenizer,
    tasks: list[Task],
    group_size: int,
    translator: Translator,
    generator: torch.Generator,
    *,
    mode: str = "free",
    temperature: float = 1.0,
    max_new_tokens: int,
    max_calls: int = 2,
    max_rows: int | None = None,
    chat: Chat | None = None,
    prices: Prices | None = None,
    workers: int = 0,
) -> list[Rollout]:
    """`group_size` rollouts of each task, group after group.

    `mode`: "free"; "forced" begins each rollout with an inserted call; "forbidden" masks the call token. `temperature`
    0 is greedy decoding, with the log-probs of temperature 1. `max_new_tokens` bounds a row's ids after the prompt,
    inserted ones included. `max_rows` rows are decoded at a time (default: all). `workers` calls run at a time, beside
    the decoding; 0: each is answered before the next step, so that even the last bit is the same every time.
    `generator` is a CPU generator and is advanced by one draw, of a size that depends on nothing but the number of
    rollouts and `max_new_tokens`.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, allowed: {', '.join(MODES)}")
    if group_size < 1 or max_new_tokens < 1 or (max_rows is not None and max_rows < 1):
        raise ValueError(
            f"group_size, max_new_tokens and max_rows must be positive: {group_size, max_new_tokens, max_rows}"
        )
    if temperature < 0 or max_calls < 0 or workers < 0:
        raise ValueError(f"temperature, max_calls and workers must not be negative: {temperature, max_calls, workers}")
    if mode == "forced" and max_new_tokens <= len(encode_call(tokenizer)):
        raise ValueError(f"max_new_tokens is {max_new_tokens}, a forced call alone has {len(encode_call(tokenizer))}")
    uniforms = torch.rand(len(tasks) * group_size, max_new_tokens, generator=generator, dtype=torch.float64)
    chat, prices = chat or Chat(), prices or Prices()
    prompts = [chat.prompt(task, tokenizer) for task in tasks]
    rows = [Row(i, tasks[i // group_size], prompts[i // group_size]) for i in range(len(uniforms))]
    at_a_time = max_rows or max(1, len(rows))
    if at_a_time > group_size:
        at_a_time -= at_a_time % group_size  # whole groups begin together, and share their prefill
    pool = ThreadPoolExecutor(workers) if workers else InLine()
    try:
        setting = Setting(tokenizer, translator, pool, chat, prices, mode, temperature, max_new_tokens, max_calls)
        decode(model, rows, at_a_time, group_size, uniforms, setting)
    finally:
        pool.shutdown(cancel_futures=True)
    return [row.finish() for row in rows]


def decode(model: Qwen3, all_rows: list[Row], at_a_time: int, group_size: int, uniforms: Tensor, setting: Setting):
    """Run these rows, each to its stop."""
    waiting = deque(all_rows)
    slots = max((len(row.prompt_ids) for row in waiting), default=0) + setting.max_new_tokens + 1
    rows = [waiting.popleft() for _ in range(min(at_a_time, len(waiting)))]
    hidden, cache = prefill(model, rows, slots, setting) if rows else (None, None)
    while rows:
        rows, hidden, cache = reseat(model, rows, waiting, hidden, cache, group_size, setting)
        for row in rows:
            if row.pending and all(call.done() for call in row.pending):
                read_results(row, setting)
        feed(model, cache, rows, hidden)
        if not any(row.is_speaking for row in rows):
            if calls := [call for row in rows for call in row.pending if not call.done()]:
                wait(calls, return_when=FIRST_COMPLETED)
            continue
        at = [min(len(row.ids), uniforms.shape[1] - 1) for row in rows]
        numbers = uniforms[[row.index for row in rows], at].to(hidden.device)
        tokens, logps = draw(model.logits(hidden), numbers, setting)
        for row, token, logp in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
            if row.is_speaking:
                row.append([token], sampled=True, logps=[logp])
                if token == setting.tokenizer.id(IM_END):
                    end_turn(row, setting)
                elif token == setting.tokenizer.control.get("<|endoftext|>"):  # Qwen3's other end token
                    row.stop = "end"
                if row.is_speaking and len(row.ids) >= setting.max_new_tokens:
                    row.stop = "length"


def reseat(
    model: Qwen3, rows: list[Row], waiting: deque[Row], hidden: Tensor, cache: Cache, group_size: int, setting: Setting
) -> tuple[list[Row], Tensor, Cache]:
    """Finished rows leave their places to waiting ones, whole groups at once; if none waits, they leave the batch.

    Both copy parts of the cache, so neither is done before three rows in ten have finished.
    """
    free = [i for i, row in enumerate(rows) if row.stop is not None]
    block = group_size if len(rows) >= group_size else 1
    if len(free) <= 0.3 * len(rows) or (waiting and len(free) < block):
        return rows, hidden, cache
    if not waiting:
        keep = [i for i, row in enumerate(rows) if row.stop is None]
        index = torch.tensor(keep, dtype=torch.long, device=hidden.device)
        return [rows[i] for i in keep], hidden[index], cache.take(index)
    free = free[: min(len(free), len(waiting)) // block * block]
    new = [waiting.popleft() for _ in free]
    index = torch.tensor(free, device=hidden.device)
    hidden[index], part = prefill(model, new, cache.keys.shape[3], setting)
    cache.put(index, part)
    seated = dict(zip(free, new, strict=True))
    return [seated.get(i, row) for i, row in enumerate(rows)], hidden, cache


def prefill(model: Qwen3, rows: list[Row], slots: int, setting: Setting) -> tuple[Tensor, Cache]:
    """Run each distinct prompt once and fan its cache out to the rows that share it: hidden [B, C] at its end.

    In forced mode the rows also begin with their call.
    """
    device = model.embed_tokens.weight.device
    first_row = {id(row.prompt_ids): row for row in rows}  # a group shares one prompt list
    prompts = [row.prompt_ids for row in first_row.values()]
    place = {key: i for i, key in enumerate(first_row)}
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = int(lengths.max())
    cache = model.new_cache(len(prompts), slots)
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
    hidden = model(ids, cache)[torch.arange(len(prompts), device=device), lengths - 1]  # [P, C]
    cache.lengths = lengths
    fan_out = torch.tensor([place[id(row.prompt_ids)] for row in rows], device=device)
    if setting.mode == "forced":
        for row in rows:
            row.append(encode_call(setting.tokenizer), sampled=False)
            end_turn(row, setting)
    return hidden[fan_out], cache.take(fan_out)


def draw(logits: Tensor, uniforms: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Token and log-prob of each row by inverse CDF: the first token whose cumulative probability exceeds the number.

    logits [B, V], uniforms [B] in [0, 1) -> two of [B]. Rows of the head beyond the tokenizer are never drawn.
    """
    logits = logits[:, : setting.tokenizer.size].float() / (setting.temperature or 1.0)
    if setting.mode == "forbidden":
        logits[:, setting.tokenizer.id(CALL)] = -torch.inf
    logps = logits.log_softmax(-1)  # [B, V]
    if setting.temperature == 0:
        tokens = logps.argmax(-1, keepdim=True)
    else:
        cumulative = logps.double().exp().cumsum(-1)
        numbers = uniforms[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, numbers, right=True)  # right: a token of probability 0 is never drawn
    return tokens[:, 0], logps.gather(-1, tokens)[:, 0]


def feed(model: Qwen3, cache: Cache, rows: list[Row], hidden: Tensor) -> None:
    """Run the model on what each row has not read yet; its state after its last token goes into `hidden` [B, C].

    Rows that read one token are run where they are, with all others riding along. Rows that read a spliced tool turn
    are taken out and put back, so that nobody waits for padding.
    """
    reads = [row.unread if row.is_speaking else [] for row in rows]
    short = [i for i, read in enumerate(reads) if len(read) == 1]
    long = [i for i, read in enumerate(reads) if len(read) > 1]
    if short:
        index = torch.tensor(short, device=hidden.device)
        hidden[index] = append(model, cache, [read if len(read) == 1 else [] for read in reads])[index]
    if long:
        index = torch.tensor(long, device=hidden.device)
        part = cache.take(index)
        hidden[index] = append(model, part, [reads[i] for i in long])
        cache.put(index, part)
    for i in short + long:
        rows[i].unread = []


def append(model: Qwen3, cache: Cache, reads: list[list[int]]) -> Tensor:
    """Append ids to each row of the cache, any number of them: hidden [B, C] after each row's last one.

    Padding goes where the row's next tokens will overwrite it, before anything attends to it; at the end of the cache,
    to its last slot, which no row uses.
    """
    device = cache.lengths.device
    longest = max(map(len, reads))
    ids = torch.tensor([read + [0] * (longest - len(read)) for read in reads], device=device)  # [B, T]
    counts = torch.tensor([len(read) for read in reads], device=device)
    positions = cache.lengths[:, None] + torch.arange(longest, device=device)
    lengths = cache.lengths + counts
    hidden = model(ids, cache, positions.clamp(max=cache.keys.shape[3] - 1))
    cache.lengths = lengths
    return hidden[torch.arange(len(reads), device=device), (counts - 1).clamp(min=0)]


def end_turn(row: Row, setting: Setting) -> None:
    """The row's turn is over: it was the answer, or the row is parked and its calls begin to run."""
    calls = calls_in(row.ids[row.turn :], setting.tokenizer)
    if not calls:
        row.stop = "end"
    for number, call in enumerate(calls, start=len(row.calls)):
        is_allowed = number < setting.max_calls
        arguments = (call, row.task, setting.translator, setting.prices, is_allowed)
        row.pending.append(setting.pool.submit(run_call, *arguments))


def read_results(row: Row, setting: Setting) -> None:
    """All calls of the row's turn have run: splice their results in."""
    calls, was_told = [call.result() for call in row.pending], any(call.error == "limit" for call in row.calls)
    row.calls, row.pending = row.calls + calls, []
    if was_told:  # and calls again
        row.stop = "tool_limit"
        return
    room = setting.max_new_tokens - len(row.ids) - 1
    turn = fit_results([call.result for call in calls], setting.tokenizer, room, not setting.chat.think_block)
    if turn is None:
        row.stop = "length"
        return
    row.append(turn, sampled=False)
    row.turn = len(row.ids)


def fit_results(results: list[str], tokenizer: Tokenizer, room: int, think: bool) -> list[int] | None:
    """The tool turn's ids, the longest result cut and marked so until the turn fits into `room`; None if it cannot."""
    results = list(results)
    turn = encode_tool_turn(results, tokenizer, think)
    while len(turn) > room:
        longest = max(range(len(results)), key=lambda i: len(results[i]))
        kept = tokenizer.encode_text(results[longest].removesuffix(CUT))
        if not kept:
            return None
        surplus = len(turn) - room + (0 if results[longest].endswith(CUT) else len(tokenizer.encode_text(CUT)))
        # rstrip: half of a character decodes to U+FFFD, which is longer encoded than the bytes cut, and would never fit
        results[longest] = tokenizer.decode(kept[: max(0, len(kept) - surplus)]).rstrip("\ufffd") + CUT
        turn = encode_tool_turn(results, tokenizer, think)
    return turn
