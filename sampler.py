"""[4] Rollouts: batched decoding with a KV cache, and tool calls in the middle.

    tasks -> prefill each prompt once -> fan out to its group -> draw, append, (call, splice) -> Rollout

The sampler writes the mask itself: it knows which tokens the policy drew, so nobody derives roles from text later. A
tool result is spliced in as ids on the same row and the same cache; nothing is prefilled twice or tokenized again.

What token t of rollout i becomes is decided by one number, `uniforms[i, t]`, drawn before decoding begins: the token is
where that number falls in the cumulative distribution. So the batch size, the order in which rows finish and when a
tool answers cannot change a result. (Floating point is the fine print: a matrix product over another number of rows may
differ in its last bit, which moves a boundary by about 1e-7.)

Left out: top-k, top-p and other truncations. They would make the sampling distribution differ from the one whose
log-probs are trained. Calls are answered in line, between two decoding steps.
"""

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
    turn: int = 0  # where in `ids` the current assistant turn begins
    unread: list[int] = field(default_factory=list)  # ids that the model has not been run on
    stop: str | None = None

    def append(self, ids: list[int], sampled: bool, logps: list[float] | None = None) -> None:
        self.ids += ids
        self.sampled += [sampled] * len(ids)
        self.logps += logps or [0.0] * len(ids)
        self.unread += ids

    def finish(self) -> Rollout:
        return Rollout(self.task, tuple(self.prompt_ids), tuple(self.ids), tuple(self.sampled), tuple(self.logps),
                       tuple(self.calls), self.stop)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What stays the same for all rows of a call to `rollout`."""

    tokenizer: Tokenizer
    translator: Translator
    chat: Chat
    prices: Prices
    mode: str
    temperature: float
    max_new_tokens: int
    max_calls: int


@torch.no_grad()
def rollout(model: Qwen3, tokenizer: Tokenizer, tasks: list[Task], group_size: int, translator: Translator,
            generator: torch.Generator, *, mode: str = "free", temperature: float = 1.0, max_new_tokens: int,
            max_calls: int = 2, max_rows: int | None = None, chat: Chat | None = None,
            prices: Prices | None = None) -> list[Rollout]:  # fmt: skip
    """`group_size` rollouts of each task, group after group.

    `mode`: "free"; "forced" begins each rollout with an inserted call; "forbidden" masks the call token. `temperature`
    0 is greedy decoding, with the log-probs of temperature 1. `max_new_tokens` bounds a row's ids after the prompt,
    inserted ones included. `max_rows` rows are decoded at a time (default: all). `generator` is a CPU generator and is
    advanced by one draw, of a size that depends on nothing but the number of rollouts and `max_new_tokens`.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, allowed: {', '.join(MODES)}")
    if group_size < 1 or max_new_tokens < 1 or (max_rows is not None and max_rows < 1):
        raise ValueError(
            f"group_size, max_new_tokens and max_rows must be positive: {group_size, max_new_tokens, max_rows}"
        )
    if temperature < 0 or max_calls < 0:
        raise ValueError(f"temperature and max_calls must not be negative: {temperature, max_calls}")
    if mode == "forced" and max_new_tokens <= len(encode_call(tokenizer)):
        raise ValueError(f"max_new_tokens is {max_new_tokens}, a forced call alone has {len(encode_call(tokenizer))}")
    chat, prices = chat or Chat(), prices or Prices()
    setting = Setting(tokenizer, translator, chat, prices, mode, temperature, max_new_tokens, max_calls)
    uniforms = torch.rand(len(tasks) * group_size, max_new_tokens, generator=generator, dtype=torch.float64)
    prompts = [chat.prompt(task, tokenizer) for task in tasks]
    rows = [Row(i, tasks[i // group_size], prompts[i // group_size]) for i in range(len(uniforms))]
    step = max_rows or max(1, len(rows))
    for first in range(0, len(rows), step):
        decode(model, rows[first : first + step], uniforms, setting)
    return [row.finish() for row in rows]


def decode(model: Qwen3, rows: list[Row], uniforms: Tensor, setting: Setting) -> None:
    """Run these rows, each to its stop."""
    hidden, cache = prefill(model, rows, setting.max_new_tokens)
    if setting.mode == "forced":
        call = encode_call(setting.tokenizer)
        for row in rows:
            row.append(call, sampled=False)
            end_turn(row, setting)
        hidden = feed(model, cache, rows)
    while any(row.stop is None for row in rows):
        if sum(row.stop is None for row in rows) < 0.7 * len(rows):  # finished rows leave, once a copy is worth it
            keep = torch.tensor([i for i, row in enumerate(rows) if row.stop is None], device=hidden.device)
            rows, cache, hidden = [rows[i] for i in keep.tolist()], cache.take(keep), hidden[keep]
        at = [min(len(row.ids), uniforms.shape[1] - 1) for row in rows]
        numbers = uniforms[[row.index for row in rows], at].to(hidden.device)
        tokens, logps = draw(model.logits(hidden), numbers, setting)
        for row, token, logp in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
            if row.stop is None:
                row.append([token], sampled=True, logps=[logp])
                if token == setting.tokenizer.id(IM_END):
                    end_turn(row, setting)
                elif token == setting.tokenizer.control.get("<|endoftext|>"):  # Qwen3's other end token
                    row.stop = "end"
                if row.stop is None and len(row.ids) >= setting.max_new_tokens:
                    row.stop = "length"
        hidden = feed(model, cache, rows)


def prefill(model: Qwen3, rows: list[Row], max_new_tokens: int) -> tuple[Tensor, Cache]:
    """Run each distinct prompt once and fan its cache out to the rows that share it: hidden [B, C] at its end."""
    device = model.embed_tokens.weight.device
    first_row = {id(row.prompt_ids): row for row in rows}  # a group shares one prompt list
    prompts = [row.prompt_ids for row in first_row.values()]
    place = {key: i for i, key in enumerate(first_row)}
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = int(lengths.max())
    cache = model.new_cache(len(prompts), longest + max_new_tokens + 1)  # the last slot takes the padding of appends
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
    hidden = model(ids, cache)[torch.arange(len(prompts), device=device), lengths - 1]  # [P, C]
    cache.lengths = lengths
    fan_out = torch.tensor([place[id(row.prompt_ids)] for row in rows], device=device)
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


def feed(model: Qwen3, cache: Cache, rows: list[Row]) -> Tensor:
    """Run the model on what each row has not read yet: hidden [B, C] after each row's last token.

    Rows that read one token and rows that read a spliced tool turn go separately, so that nobody waits for padding.
    """
    device = cache.lengths.device
    hidden = torch.empty(len(rows), model.config.hidden_size, dtype=cache.keys.dtype, device=device)
    reads = [row.unread if row.stop is None else [] for row in rows]
    for is_long in (False, True):
        members = [i for i, read in enumerate(reads) if (len(read) > 1) == is_long]
        if len(members) == len(rows):
            hidden = append(model, cache, reads)
        elif members:
            index = torch.tensor(members, device=device)
            part = cache.take(index)
            hidden[index] = append(model, part, [reads[i] for i in members])
            cache.put(index, part)
    for row in rows:
        row.unread = []
    return hidden


def append(model: Qwen3, cache: Cache, reads: list[list[int]]) -> Tensor:
    """Append ids to each row of the cache, any number of them: hidden [B, C] after each row's last one.

    Padding of a living row goes to the cache's last slot, which no row uses. A finished row reads nothing; its padding
    goes to its first slot, so that it does not make the others attend over more slots.
    """
    device = cache.lengths.device
    longest = max(1, max(map(len, reads)))
    ids = torch.tensor([read + [0] * (longest - len(read)) for read in reads], device=device)  # [B, T]
    counts = torch.tensor([len(read) for read in reads], device=device)
    steps = torch.arange(longest, device=device)
    padding_slot = torch.where(counts > 0, cache.keys.shape[3] - 1, 0)
    positions = torch.where(steps < counts[:, None], cache.lengths[:, None] + steps, padding_slot[:, None])
    lengths = cache.lengths + counts
    hidden = model(ids, cache, positions)[torch.arange(len(reads), device=device), (counts - 1).clamp(min=0)]
    cache.lengths = lengths
    return hidden


def end_turn(row: Row, setting: Setting) -> None:
    """The row's turn is over: it was the answer, or its calls are run and their results spliced in."""
    calls = calls_in(row.ids[row.turn :], setting.tokenizer)
    if not calls:
        row.stop = "end"
        return
    was_told = any(call.error == "limit" for call in row.calls)
    for call in calls:
        row.calls.append(
            run_call(call, row.task, setting.translator, setting.prices, len(row.calls) < setting.max_calls)
        )
    if was_told:  # and calls again
        row.stop = "tool_limit"
        return
    results = [call.result for call in row.calls[-len(calls) :]]
    turn = fit_results(
        results, setting.tokenizer, setting.max_new_tokens - len(row.ids) - 1, not setting.chat.think_block
    )
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
