"""[4] Rollouts: batched decoding with a KV cache, and tool calls in the middle.

    tasks -> prefill each prompt once -> draw, write, (call, splice), part -> Rollout

The sampler writes the mask itself: it knows which tokens the policy drew, so nobody derives roles from text later. The
end of a turn counts as drawn, because when to stop is the policy's choice; a tool's result does not. It is spliced in
as ids on the same row and the same cache: no token of a row is run or tokenized twice.

A group is a tree. Its rollouts begin with one prompt, and many go on with the same call and read the same result. As
long as they have said the same they share a *seat*, that is a row of the cache, and the model is run once for all of
them; each draws its own token, and where these differ they part. In the tiny world that makes decoding twice as fast. A
large model's rollouts part after a few tokens, and then each has a seat of its own.

What token t of rollout i becomes is decided by one number, `uniforms[i, t]`, drawn before decoding begins: the token is
where that number falls in the cumulative distribution. So the batch size, the order in which rows finish and when a
tool answers cannot change a result. (Floating point is the fine print: a matrix product over another number of rows may
differ in its last bit, which moves a boundary by about 1e-7.)

A row that calls is parked while a pool of threads runs the call, and the others go on; where rows have ended, others
that wait come in. Left out: top-k, top-p and other truncations. They would make the sampling distribution differ from
the one whose log-probs are trained.

Shapes: U seats, M most rows on one of them, C channels, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data import CALL, IM_END, Chat, Task, Tokenizer, encode_prompt
from harness.cuda_graph import step
from model import Cache, Qwen3
from tools import Call, Prices, Translator, calls_in, encode_call, fit_results, run_call

MODES = ("free", "forced", "forbidden")
BLOCK = 64  # rows that read many ids are run so many at a time


@dataclass(frozen=True)
class Rollout:
    """One answer of the policy to one task. `ids`, `sampled` and `logps` are of one length and all after the prompt."""

    task: Task
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    sampled: tuple[bool, ...]  # true iff the policy drew this token; false for tool results and forced calls
    logps: tuple[float, ...]  # the sampler's log-prob where sampled, 0 elsewhere
    calls: tuple[Call, ...]
    stop: str  # end: by itself; length: no room was left; tool_limit: it was told "no more calls", and called again

    @property
    def engine_failed(self) -> bool:
        """The translator failed at least once: not the policy's doing, so no evidence about it."""
        return any(call.error == "engine" for call in self.calls)


@dataclass(frozen=True)
class Sampling:
    """How rollouts are sampled. ValueError for values that make no sense."""

    max_new_tokens: int  # limit on a row's ids after the prompt, inserted ones included
    mode: str = "free"  # "forced" begins each rollout with an inserted call; "forbidden" masks the call token
    temperature: float = 1.0  # 0: greedy decoding, with the log-probs of temperature 1
    max_calls: int = 2  # per rollout
    max_rows: int | None = None  # decoded at a time; None: all
    workers: int = 0  # calls that run at a time, beside the decoding; 0: each is answered before the next token
    chat: Chat = Chat()
    prices: Prices = Prices()

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}, allowed: {', '.join(MODES)}")
        lowest = {"max_new_tokens": 1, "temperature": 0, "max_calls": 0, "max_rows": 1, "workers": 0}
        for name, low in lowest.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, is {value}")


@torch.no_grad()
def rollout(
    model: Qwen3,
    tokenizer: Tokenizer,
    tasks: list[Task],
    group_size: int,
    translator: Translator,
    generator: torch.Generator,
    sampling: Sampling,
) -> list[Rollout]:
    """`group_size` rollouts of each task, group after group.

    `generator` is a CPU generator and is advanced by one draw, of a size that depends on nothing but the number of
    rollouts and `max_new_tokens`. Raises ValueError if a forced call alone does not fit into `max_new_tokens`.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, is {group_size}")
    if sampling.mode == "forced" and sampling.max_new_tokens <= (length := len(encode_call(tokenizer))):
        raise ValueError(f"max_new_tokens is {sampling.max_new_tokens}, a forced call alone has {length}")
    uniforms = torch.rand(len(tasks) * group_size, sampling.max_new_tokens, generator=generator, dtype=torch.float64)
    prompts = [encode_prompt(task, tokenizer, sampling.chat) for task in tasks]
    rows = [Row(i, tasks[i // group_size], prompts[i // group_size]) for i in range(len(uniforms))]
    pool = ThreadPoolExecutor(sampling.workers) if sampling.workers else InLine()
    try:
        if rows:
            decode(model, rows, group_size, uniforms, Setting(tokenizer, translator, pool, sampling))
    finally:
        pool.shutdown(cancel_futures=True)
    return [row.finish() for row in rows]


@dataclass
class Row:
    """A rollout in the making."""

    index: int  # which rollout: row of `uniforms`
    task: Task
    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)  # those that have run
    running: list[Future] = field(default_factory=list)  # those that run: the row is parked until all have a result
    turn: int = 0  # where in `ids` the current assistant turn begins
    unread: list[int] = field(default_factory=list)  # ids that the model has not been run on
    stop: str | None = None

    @property
    def is_speaking(self) -> bool:
        return self.stop is None and not self.running

    def write(self, ids: list[int], sampled: bool, logps: list[float] | None = None) -> None:
        """The one place where ids, mask and log-probs grow, so they are always of one length."""
        self.ids += ids
        self.sampled += [sampled] * len(ids)
        self.logps += logps or [0.0] * len(ids)
        self.unread += ids

    def finish(self) -> Rollout:
        ids, sampled, logps = tuple(self.ids), tuple(self.sampled), tuple(self.logps)
        return Rollout(self.task, tuple(self.prompt_ids), ids, sampled, logps, tuple(self.calls), self.stop)


Seat = list[Row]  # a row of the cache, and the rollouts that share it: those that have said the same so far


@dataclass(frozen=True)
class Setting:
    """What all rows of one call of `rollout` share."""

    tokenizer: Tokenizer
    translator: Translator
    pool: Executor
    sampling: Sampling


class InLine(Executor):
    """A pool without threads: a call has its result when it has been submitted, so nothing depends on time."""

    def submit(self, function, /, *args, **keywords) -> Future:
        future: Future = Future()
        future.set_result(function(*args, **keywords))
        return future


def decode(model: Qwen3, all_rows: list[Row], group_size: int, uniforms: Tensor, setting: Setting) -> None:
    """Run these rows, each to its stop. One turn of the loop is one token of each row that is speaking:

    1. where enough rows have finished, rows that wait come in;
    2. rows whose calls have all run get the results spliced in, and speak again;
    3. rows of one seat that go on differently part; those that have finished leave;
    4. the model reads what each seat has not read yet: `hidden` [U, C] is its state after each seat's last token;
    5. each row draws its token by its own number, and writes it.
    """
    waiting = deque(all_rows)
    at_a_time = min(setting.sampling.max_rows or len(waiting), len(waiting))
    block = min(group_size, at_a_time)  # whole groups begin together, and share their prefill
    at_a_time -= at_a_time % block

    def come_in(count: int) -> tuple[list[Seat], Tensor, Cache]:
        return prefill(model, [waiting.popleft() for _ in range(min(count, len(waiting)))], setting)

    seats, hidden, cache = come_in(at_a_time)
    while (going := sum(row.stop is None for seat in seats for row in seat)) or waiting:
        room = (at_a_time - going) // block * block
        if waiting and room > 0.3 * at_a_time:  # 1.
            new_seats, new_hidden, new_cache = come_in(room)
            seats, hidden = seats + new_seats, torch.cat([hidden, new_hidden])
            cache.extend(new_cache)
        for row in (row for seat in seats for row in seat):  # 2.
            if row.running and all(future.done() for future in row.running):
                read_results(row, setting)
        seats, hidden = part(seats, hidden, cache)  # 3.
        catch_up(model, cache, seats, hidden)  # 4.
        if any(row.is_speaking for seat in seats for row in seat):
            speak(model, seats, hidden, uniforms, setting)  # 5.
        elif unfinished := [future for seat in seats for row in seat for future in row.running if not future.done()]:
            wait(unfinished, return_when=FIRST_COMPLETED)


def prefill(model: Qwen3, rows: list[Row], setting: Setting) -> tuple[list[Seat], Tensor, Cache]:
    """Run each distinct prompt once: a seat for each, with the rows that share it, and hidden [U, C] at its end.

    In forced mode the rows also begin with their call.
    """
    by_prompt: dict[int, Seat] = {}
    for row in rows:
        by_prompt.setdefault(id(row.prompt_ids), []).append(row)  # the rows of a group hold the very same list
    seats = list(by_prompt.values())
    prompts = [seat[0].prompt_ids for seat in seats]
    cache = model.new_cache(len(prompts), max(map(len, prompts)))
    hidden = model.embed_tokens.weight.new_empty(len(prompts), model.config.hidden_size)
    read(model, cache, range(len(prompts)), prompts, hidden)
    if setting.sampling.mode == "forced":
        call = encode_call(setting.tokenizer)
        for row in rows:
            row.write(call, sampled=False)
            end_turn(row, setting)
    return seats, hidden, cache


def part(seats: list[Seat], hidden: Tensor, cache: Cache) -> tuple[list[Seat], Tensor]:
    """Rows that go on differently get seats of their own, and copies of what they have had in common until here.

    Finished rows leave. To drop their seats is to copy the cache, so that waits until somebody parts, or until three
    seats in ten are empty.
    """
    texts: dict[tuple, Seat] = {}  # (number of the seat, what its rows read next): those rows
    for number, seat in enumerate(seats):
        for row in (row for row in seat if row.stop is None):
            texts.setdefault((number, tuple(row.unread) if row.is_speaking else None), []).append(row)
    come_from = [number for number, _ in texts]
    if len(set(come_from)) == len(come_from) > 0.7 * len(seats):
        stayed = dict(zip(come_from, texts.values(), strict=True))
        return [stayed.get(number, []) for number in range(len(seats))], hidden
    index = torch.tensor(come_from, dtype=torch.long, device=hidden.device)
    cache.keep(index)
    return list(texts.values()), hidden[index]


def catch_up(model: Qwen3, cache: Cache, seats: list[Seat], hidden: Tensor) -> None:
    """Run the model on what each seat has not read yet; its state after its last token goes into `hidden` [U, C].

    Seats that read one token are run where they are, with all others riding along. Those that read a spliced tool turn
    are taken out and put back, so that nobody waits for them.
    """
    unread = [seat[0].unread if seat and seat[0].is_speaking else [] for seat in seats]
    short = [i for i, ids in enumerate(unread) if len(ids) == 1]
    long = [i for i, ids in enumerate(unread) if len(ids) > 1]
    if short:
        index = torch.tensor(short, device=hidden.device)
        hidden[index] = run_on(model, cache, [ids if len(ids) == 1 else [] for ids in unread])[index]
    read(model, cache, long, unread, hidden)
    for row in (row for i in short + long for row in seats[i]):
        row.unread = []


def read(model: Qwen3, cache: Cache, rows: Sequence[int], unread: list[list[int]], hidden: Tensor) -> None:
    """Run the model on the unread ids of these rows of the cache; the state after each one's last goes into `hidden`.

    Rows of about a length are run together, `BLOCK` at a time: what pads a row to the longest is computed as well. Over
    all rows at once, rollouts with calls take 1.5 times as long, and an evaluation 1.7 times. And no more than half of
    the rows, of which there is a copy meanwhile.
    """
    by_length = sorted(rows, key=lambda i: len(unread[i]))
    at_once = min(BLOCK, max(1, len(cache.lengths) // 2))
    for first in range(0, len(by_length), at_once):
        index = torch.tensor(block := by_length[first : first + at_once], device=hidden.device)
        taken = cache.take(index)
        hidden[index] = run_on(model, taken, [unread[i] for i in block])
        cache.put(index, taken)


def run_on(model: Qwen3, cache: Cache, unread: list[list[int]]) -> Tensor:
    """Run the model on further ids of each row of the cache, any number of them: hidden [B, C] after each row's last.

    Rows are padded on the right, as `Cache` describes.
    """
    device = cache.lengths.device
    ids = pad(unread, device)  # [B, T]
    counts = torch.tensor([len(row) for row in unread], device=device)
    lengths = cache.lengths + counts
    cache.reserve(int(cache.lengths.max()) + ids.shape[1])
    hidden = step(model, ids, cache) if ids.shape[1] == 1 else model(ids, cache)
    cache.lengths = lengths
    return hidden[torch.arange(len(unread), device=device), (counts - 1).clamp(min=0)]


def pad(rows: list[list[int]], device) -> Tensor:
    """Rows of ids as one tensor [B, T], zeros on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)


def speak(model: Qwen3, seats: list[Seat], hidden: Tensor, uniforms: Tensor, setting: Setting) -> None:
    """A token for each row that is speaking. It may end the row's turn, which may begin a call.

    Seats that do not speak ride along: one product over all of them is faster than picking the others out.
    """
    speaking = [(i, j, row) for i, seat in enumerate(seats) for j, row in enumerate(seat) if row.is_speaking]
    seat, place, rows = (list(column) for column in zip(*speaking, strict=True))
    numbers = uniforms.new_zeros(len(seats), max(map(len, seats)))  # [U, M] of each seat's rows
    numbers[seat, place] = uniforms[[row.index for row in rows], [len(row.ids) for row in rows]]
    tokens, logps = draw(model.logits(hidden), numbers.to(hidden.device), setting)
    for row, token, logp in zip(rows, tokens[seat, place].tolist(), logps[seat, place].tolist(), strict=True):
        row.write([token], sampled=True, logps=[logp])
        if token == setting.tokenizer.id(IM_END):
            end_turn(row, setting)
        elif token == setting.tokenizer.control.get("<|endoftext|>"):  # Qwen3's other end token
            row.stop = "end"
        if row.is_speaking and len(row.ids) >= setting.sampling.max_new_tokens:
            row.stop = "length"


def draw(logits: Tensor, uniforms: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Tokens and log-probs by inverse CDF: the first token whose cumulative probability exceeds the number.

    logits [U, V] of the seats, uniforms [U, M] in [0, 1) of each one's rows -> two of [U, M]. Rows of the head beyond
    the tokenizer are never drawn.
    """
    temperature = setting.sampling.temperature
    logits = logits[:, : setting.tokenizer.size].float() / (temperature or 1.0)
    if setting.sampling.mode == "forbidden":
        logits[:, setting.tokenizer.id(CALL)] = -torch.inf
    probabilities = logits.softmax(-1)  # [U, V]
    if temperature == 0:
        tokens = logits.argmax(-1, keepdim=True).expand_as(uniforms)
    else:
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        numbers = uniforms * cumulative[:, -1:]  # the last one is 1 but for rounding
        tokens = torch.searchsorted(cumulative, numbers, right=True)  # right: a token of probability 0 is never drawn
    return tokens, probabilities.gather(-1, tokens).log()


def end_turn(row: Row, setting: Setting) -> None:
    """The row's turn is over: it was the answer, or the row is parked and its calls begin to run."""
    wanted = calls_in(row.ids[row.turn :], setting.tokenizer)
    if not wanted:
        row.stop = "end"
    for number, call in enumerate(wanted, start=len(row.calls)):
        is_allowed = number < setting.sampling.max_calls
        arguments = (call, row.task, setting.translator, setting.sampling.prices, is_allowed)
        row.running.append(setting.pool.submit(run_call, *arguments))


def read_results(row: Row, setting: Setting) -> None:
    """All calls of the row's turn have run: splice their results in."""
    was_told = any(call.error == "limit" for call in row.calls)
    done = [future.result() for future in row.running]
    row.calls, row.running = row.calls + done, []
    if was_told:  # that no more calls are allowed, and calls again
        row.stop = "tool_limit"
        return
    room = setting.sampling.max_new_tokens - len(row.ids) - 1  # at least one token of an answer must fit behind it
    turn = fit_results([call.result for call in done], setting.tokenizer, room, setting.sampling.chat.think)
    if turn is None:
        row.stop = "length"
        return
    row.write(turn, sampled=False)
    row.turn = len(row.ids)
