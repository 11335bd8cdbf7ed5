"""Rollouts of a real, random Qwen3 that is told what to say where a test needs it said."""

import math
import threading

import pytest
import torch
from conftest import randomise
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import sampler
from data import CALL, END_CALL, IM_END, Chat
from model import Cache, Qwen3
from paper.pretrain import ADDED_TOKENS
from sampler import Sampling, Setting, draw, rollout
from tools import CUT, SCHEMA, Prices, TranslationError, encode_call, fit_results

PRICES, BARE = Prices(call=3.0, char=0.25), Chat()
GOOD, PASSAGE, BAD = (
    [CALL, '{"name": "translate", "arguments": {}}', END_CALL, IM_END],
    [CALL, '{"name": "translate", "arguments": {"text": "abc"}}', END_CALL, IM_END],
    [CALL, "junk", END_CALL, IM_END],
)
ANSWER = ["4", IM_END]


class Puppet(Qwen3):
    """A random Qwen3 with strings: `scripts` holds, for a prompt, what to say in the first, second, … assistant turn.

    Where the script says nothing, the model speaks for itself. What a row has read is kept in one more layer of its
    cache, and the id to say next travels in channel 0 of the hidden state: nothing is kept on the puppet.
    """

    def __init__(self, config, tokenizer, think=True):
        super().__init__(config)
        self.scripts, self.boost = {}, torch.zeros(config.vocab_size)
        self.tokenizer, self.opening = tokenizer, tokenizer.encode(data._open_assistant(think))

    def say(self, history):
        """The id that the script has next, after these ids; -1 if it has none."""
        for prompt, turns in self.scripts.items():
            if tuple(history[: len(prompt)]) == prompt:
                width = len(self.opening)
                starts = [i for i in range(len(prompt), len(history) + 1) if history[i - width : i] == self.opening]
                turn = turns[len(starts) - 1] if len(starts) <= len(turns) else []
                said = len(history) - starts[-1]
                return turn[said] if said < len(turn) else -1
        return -1

    def forward(self, ids, cache=None, positions=None):
        if cache is None:
            hidden, histories = super().forward(ids), [[row[: t + 1] for t in range(len(row))] for row in ids.tolist()]
        else:
            if positions is None:
                positions = cache.next_positions(ids.shape[1])
            memory = cache.keys[-1, :, 0, :, 0]  # [B, S]
            memory.scatter_(1, positions, ids.to(memory.dtype))
            hidden = super().forward(ids, Cache(cache.keys[:-1], cache.values[:-1], cache.lengths), positions)
            read = memory.long().tolist()
            histories = [[read[b][: p + 1] for p in row] for b, row in enumerate(positions.tolist())]
        hidden = hidden.clone()
        hidden[..., 0] = torch.tensor([[self.say(history) for history in row] for row in histories])
        return hidden

    def logits(self, hidden):
        told = hidden[..., 0].long()
        own = super().logits(torch.cat([torch.zeros_like(hidden[..., :1]), hidden[..., 1:]], dim=-1)) + self.boost
        return own + 60.0 * torch.nn.functional.one_hot(told.clamp(0), own.shape[-1]) * (told >= 0)[..., None]

    def new_cache(self, rows, slots):
        cache = super().new_cache(rows, slots)
        more = torch.zeros_like(cache.keys[:1])
        return Cache(torch.cat([cache.keys, more]), torch.cat([cache.values, more]), cache.lengths)

    def script(self, task, *turns, chat=BARE):
        """Say these turns, lists of pieces, to this task."""
        self.scripts[prompt_of(task, self.tokenizer, chat)] = [self.tokenizer.encode(turn) for turn in turns]
        return self


def prompt_of(task, tokenizer, chat=BARE):
    return tuple(data.encode_prompt(task, tokenizer, chat))


class Says:
    """An engine with one answer to everything."""

    name = "says"

    def __init__(self, answer):
        self.answer, self.sent = answer, []

    def translate(self, texts, source, target="en"):
        self.sent += texts
        return [self.answer] * len(texts)


class Broken:
    name = "broken"

    def translate(self, texts, source, target="en"):
        raise TranslationError("no route")


@pytest.fixture
def puppet(config, tokenizer):
    return randomise(Puppet(config, tokenizer))


@pytest.fixture
def caller(puppet, tokenizer):
    """A puppet without a script that likes control tokens: it calls, mostly badly, closes or not, ends or not."""
    for token, boost in ((CALL, 5.0), (END_CALL, 5.0), (IM_END, 6.0)):
        puppet.boost[tokenizer.id(token)] = boost
    return puppet


def roll(model, tokenizer, tasks, translator=None, group_size=1, seed=0, **options):
    """`rollout` with a seed, 60 new tokens and prices that are easy to add up."""
    sampling = Sampling(**{"max_new_tokens": 60, "prices": PRICES} | options)
    generator = torch.Generator().manual_seed(seed)
    return rollout(model, tokenizer, tasks, group_size, translator or Says("It is 4."), generator, sampling)


def check_record(rollout, tokenizer, limit):
    """What holds for every rollout, whatever the policy and the tool wrote."""
    assert len(rollout.ids) == len(rollout.sampled) == len(rollout.logps)
    assert 1 <= len(rollout.ids) <= limit
    assert rollout.stop in ("end", "length", "tool_limit")
    assert all(logp == 0 for logp, drawn in zip(rollout.logps, rollout.sampled, strict=True) if not drawn)
    assert all(logp <= 0 and math.isfinite(logp) for logp in rollout.logps)


def inserted(rollout):
    """The runs of ids that the policy did not draw."""
    runs, before = [], True
    for token, drawn in zip(rollout.ids, rollout.sampled, strict=True):
        if not drawn:
            runs[-1].append(token) if not before else runs.append([token])
        before = drawn
    return runs


def controls(ids, tokenizer):
    return [i for i in ids if i in set(tokenizer.control.values())]


# --- the record -------------------------------------------------------------------------------------------------


def test_groups_come_one_after_the_other(qwen, tokenizer, tasks):
    """Would catch rollouts in the order in which they finished."""
    rollouts = roll(qwen, tokenizer, tasks[:3], group_size=2, max_new_tokens=4)
    assert [r.task.id for r in rollouts] == [t.id for t in tasks[:3] for _ in range(2)]
    assert [r.prompt_ids for r in rollouts] == [prompt_of(t, tokenizer) for t in tasks[:3] for _ in range(2)]
    assert rollouts[0].ids != rollouts[1].ids


def test_no_tasks_no_rollouts(qwen, tokenizer):
    """Would catch a crash on an empty evaluation cell."""
    assert roll(qwen, tokenizer, []) == []


def test_records_agree_with_themselves_under_random_calls(caller, tokenizer, tasks):
    """Would catch a token that is appended to `ids` and not to `sampled` or `logps`, and a stop without reason."""
    rollouts = roll(caller, tokenizer, tasks[:6], group_size=4)
    for r in rollouts:
        check_record(r, tokenizer, 60)
        assert r.stop == "length" or r.ids[-1] in (tokenizer.id(IM_END), tokenizer.control["<|endoftext|>"])
    assert {r.stop for r in rollouts} >= {"end", "length"}
    assert {call.error for r in rollouts for call in r.calls} >= {"malformed"}


def test_the_end_token_is_drawn_and_kept(puppet, tokenizer, tasks):
    """Would catch an end token that is stripped: when to stop is the policy's to learn."""
    (r,) = roll(puppet.script(tasks[0], ANSWER), tokenizer, tasks[:1])
    assert r.ids == tuple(tokenizer.encode(ANSWER))
    assert r.sampled == (True, True)
    assert (r.stop, r.calls) == ("end", ())


def test_the_other_end_token_ends_a_row_too(puppet, tokenizer, tasks):
    """Would catch a base model that ends with <|endoftext|> and then has to fill its row with noise."""
    (r,) = roll(puppet.script(tasks[0], ["4", data.Control("<|endoftext|>")]), tokenizer, tasks[:1])
    assert (tokenizer.decode(r.ids), r.stop) == ("4<|endoftext|>", "end")


def test_a_row_without_an_end_stops_at_its_length(puppet, tokenizer, tasks):
    """Would catch a row that is one token too long, or whose stop says "end"."""
    (r,) = roll(puppet.script(tasks[0], ["a b c d e f g h i j k l m"]), tokenizer, tasks[:1], max_new_tokens=5)
    assert (len(r.ids), r.stop) == (5, "length")


# --- log-probs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_logps_are_those_of_a_forward_without_a_cache(puppet, tokenizer, tasks, translator, temperature):
    """Would catch a cache that is wrong after a splice, a position lost to padding, or a temperature applied once."""
    puppet.script(tasks[0], GOOD).script(tasks[1], ANSWER).script(tasks[2], BAD, GOOD).script(tasks[3], GOOD)
    rollouts = roll(puppet, tokenizer, tasks[:5], translator, 2, temperature=temperature, max_new_tokens=130)
    assert len({len(inserted(r)[0]) for r in (rollouts[0], rollouts[6])}) == 2  # spliced in one step, one is padded
    assert sum(len(inserted(r)) for r in rollouts) >= 8
    for r in rollouts:
        ids = torch.tensor([r.prompt_ids + r.ids])
        with torch.no_grad():
            logits = puppet.logits(puppet(ids))[0, len(r.prompt_ids) - 1 : -1, : tokenizer.size] / temperature
        expected = logits.log_softmax(-1)[torch.arange(len(r.ids)), list(r.ids)]
        drawn = torch.tensor(r.sampled)
        torch.testing.assert_close(torch.tensor(r.logps)[drawn], expected[drawn], atol=1e-4, rtol=0)
        assert torch.tensor(r.logps)[~drawn].eq(0).all()


def test_the_model_reads_each_row_as_it_is_recorded(caller, tokenizer, tasks):
    """Would catch a token that the cache holds in another order, twice or not at all: the policy would go on from a
    text that the trainer never sees. The puppet's last cache layer holds what was read."""
    caches = []
    hook = caller.register_forward_pre_hook(lambda _, args: caches.append(args[1]))
    (r,) = roll(caller.script(tasks[0], GOOD, BAD), tokenizer, tasks[:1], max_new_tokens=120)
    hook.remove()
    read = caches[-1].keys[-1, 0, 0, :, 0].long().tolist()
    assert len(r.calls) >= 2
    assert tuple(read[len(r.prompt_ids) : len(r.prompt_ids) + len(r.ids) - 1]) == r.ids[:-1]
    assert tuple(read[1 : len(r.prompt_ids)]) == r.prompt_ids[1:]  # a finished row may have written to slot 0


# --- drawing ----------------------------------------------------------------------------------------------------


def setting(tokenizer, mode="free", temperature=1.0):
    return Setting(tokenizer, None, None, Sampling(max_new_tokens=9, mode=mode, temperature=temperature))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_in_proportion_to_the_softmax(tokenizer, temperature):
    """Would catch a truncated, shifted or untempered distribution. Numbers on a grid of N: a token of probability p
    meets between N p - 1 and N p + 1 of them, exactly."""
    N = 4000
    logits = torch.randn(1, tokenizer.size + 9, generator=torch.Generator().manual_seed(0)) * 2
    grid = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    tokens, logps = draw(logits, grid[None], setting(tokenizer, temperature=temperature))
    tokens, logps = tokens[0], logps[0]
    expected = (logits[0, : tokenizer.size].double() / temperature).softmax(-1)
    counts = torch.bincount(tokens, minlength=tokenizer.size)
    assert ((counts - N * expected).abs() <= 1.001).all()
    torch.testing.assert_close(logps.double(), expected.log()[tokens], atol=1e-5, rtol=0)


def test_padded_rows_of_the_head_are_never_drawn(tokenizer):
    """Would catch ids that no tokenizer knows, and log-probs that count them: here they have the highest scores."""
    logits = torch.zeros(3, tokenizer.size + 9)
    logits[:, tokenizer.size :] = 50.0
    numbers = torch.tensor([[0.0], [0.5], [1 - 2**-53]], dtype=torch.float64)
    for temperature in (0.0, 1.0):
        tokens, logps = draw(logits, numbers, setting(tokenizer, temperature=temperature))
        assert (tokens < tokenizer.size).all()
        torch.testing.assert_close(logps, torch.full((3, 1), -math.log(tokenizer.size)))


@pytest.mark.parametrize("number", [0.0, 1e-300, 0.3, 1 - 2**-53])
def test_a_token_of_probability_zero_is_never_drawn(tokenizer, number):
    """Would catch the wrong side of a boundary: 0 must not draw a forbidden first token, nor 1 - 2^-53 one too far."""
    logits = torch.full((1, tokenizer.size), -torch.inf)
    logits[0, 5], logits[0, 8] = 0.0, 0.0
    tokens, _ = draw(logits, torch.tensor([[number]], dtype=torch.float64), setting(tokenizer))
    assert tokens.item() == (5 if number < 0.5 else 8)


def test_temperature_zero_is_the_argmax(qwen, tokenizer, tasks):
    """Would catch a division by zero, or greedy decoding that depends on the numbers."""
    one, two = (roll(qwen, tokenizer, tasks[:2], temperature=0.0, seed=seed, max_new_tokens=8) for seed in (1, 2))
    assert [r.ids for r in one] == [r.ids for r in two]
    for r in one:
        with torch.no_grad():
            logits = qwen.logits(qwen(torch.tensor([r.prompt_ids + r.ids])))[0, len(r.prompt_ids) - 1 : -1]
        logps = logits[:, : tokenizer.size].log_softmax(-1)  # of temperature 1
        assert r.ids == tuple(logps.argmax(-1).tolist())
        torch.testing.assert_close(torch.tensor(r.logps), logps.max(-1).values, atol=1e-4, rtol=0)


# --- scheduling -------------------------------------------------------------------------------------------------


def test_the_batch_size_cannot_change_a_rollout(caller, tokenizer, tasks):
    """Would catch numbers that are drawn as rows need them, a row that reads another's padding, or a shrunk batch whose
    rows and caches no longer belong together."""
    whole, *others = (roll(caller, tokenizer, tasks[:5], group_size=3, max_rows=rows) for rows in (None, 1, 3, 7))
    assert len({len(r.ids) for r in whole}) > 3 and any(r.calls for r in whole)
    for rollouts in others:
        for a, b in zip(whole, rollouts, strict=True):
            same(a, b)


def test_a_rollout_is_the_same_in_other_company(caller, tokenizer, tasks):
    """Would catch a row whose result depends on how long its neighbours' tool turns or prompts are."""
    both = roll(caller, tokenizer, tasks[:2], group_size=2)
    alone = roll(caller, tokenizer, tasks[:1], group_size=2)
    assert [r.ids for r in both[:2]] == [r.ids for r in alone]


@pytest.mark.parametrize("max_rows", [1, 2, None])
def test_the_generator_advances_by_one_draw(caller, tokenizer, tasks, max_rows):
    """Would catch a training run whose next step depends on how this one was scheduled."""
    generator, expected = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    rollout(caller, tokenizer, tasks[:2], 2, Says("4"), generator, Sampling(max_new_tokens=10, max_rows=max_rows))
    torch.rand(4, 10, generator=expected, dtype=torch.float64)
    assert torch.equal(generator.get_state(), expected.get_state())


def same(a, b):
    """Two rollouts are one and the same, but for the last bits of their log-probs and the seconds of their calls."""
    assert (a.ids, a.sampled, a.stop) == (b.ids, b.sampled, b.stop)
    assert [(c.text, c.result, c.cost, c.error) for c in a.calls] == [
        (c.text, c.result, c.cost, c.error) for c in b.calls
    ]
    assert a.logps == pytest.approx(b.logps, abs=1e-5)


class Reversed:
    """Answers its first `hold` calls in the opposite order of their arrival, each once the one after it is answered."""

    name = "reversed"

    def __init__(self, hold):
        self.arrived, self.hold, self.lock = [], hold, threading.Condition()
        self.turn = hold

    def translate(self, texts, source, target="en"):
        with self.lock:
            number = len(self.arrived)
            self.arrived.append(texts[0])
            self.lock.notify_all()
            if number < self.hold:
                mine = lambda: len(self.arrived) >= self.hold and self.turn == number + 1  # noqa: E731
                assert self.lock.wait_for(mine, timeout=60)
                self.turn = number
                self.lock.notify_all()
        return [f"It is {len(texts[0])}."]


@pytest.mark.parametrize("max_rows", [None, 4])
def test_the_order_of_answers_cannot_change_a_rollout(puppet, tokenizer, tasks, max_rows):
    """Would catch a result spliced into another row, or numbers drawn in the order in which rows go on."""
    options = {"group_size": 2, "max_rows": max_rows}
    for task in tasks[:4]:
        puppet.script(task, GOOD)  # and then as it likes
    in_line = roll(puppet, tokenizer, tasks[:4], Reversed(0), **options)
    engine = Reversed(3)
    in_threads = roll(puppet, tokenizer, tasks[:4], engine, workers=4, **options)
    assert engine.turn == 0  # all that were held have been answered, the last one first
    for a, b in zip(in_line, in_threads, strict=True):
        same(a, b)


def test_the_others_go_on_while_a_call_runs(puppet, tokenizer, tasks):
    """Would catch a batch that waits for one row's translator: here the call is answered only after the other row has
    been read to its end."""
    puppet.script(tasks[0], GOOD, ANSWER).script(tasks[1], ["1 2 3 4 5 6 7 8 9", IM_END])
    ended = threading.Event()
    last = tokenizer.encode_text("9")[0]

    class Waits(Says):
        def translate(self, texts, source, target="en"):
            assert ended.wait(60)
            return super().translate(texts, source, target)

    hook = puppet.register_forward_hook(lambda _, args, __: ended.set() if (args[0] == last).any() else None)
    called, other = roll(puppet, tokenizer, tasks[:2], Waits("It is 4."), workers=1)
    hook.remove()
    assert [c.result for c in called.calls] == ["It is 4."] and called.stop == other.stop == "end"


def test_a_waiting_prompt_takes_the_place_of_a_finished_row(puppet, tokenizer, tasks):
    """Would catch rows that are run in blocks, each as slow as its slowest row."""
    puppet.script(tasks[0], ["1 2 3 4 5 6 7 8 9", IM_END])
    for task in tasks[1:4]:
        puppet.script(task, ANSWER)
    shapes = []
    hook = puppet.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape)))
    rollouts = roll(puppet, tokenizer, tasks[:4], max_rows=2)
    hook.remove()
    prompts = [len(prompt_of(task, tokenizer)) for task in tasks[:4]]
    read = [*sorted(prompts[:2]), *prompts[2:]]
    assert [shape for shape in shapes if shape[1] > 1] == [(1, length) for length in read]
    steps = [shape for shape in shapes if shape[1] == 1]
    assert len(steps) < len(rollouts[0].ids)  # the three short ones ended beside the long one


def test_an_error_of_the_caller_ends_the_rollouts(puppet, tokenizer, tasks):
    """Would catch an exception that dies in a thread, and a batch that waits for its answer for ever."""

    class Ends(Says):
        def translate(self, texts, source, target="en"):
            raise ValueError("no such language")

    puppet.script(tasks[0], GOOD, ANSWER)
    for workers in (0, 2):
        with pytest.raises(ValueError, match="no such language"):
            roll(puppet, tokenizer, tasks[:3], Ends("4"), group_size=2, workers=workers)


def test_a_prompt_is_read_once_for_its_group(qwen, tokenizer, tasks):
    """Would catch a prefill for each rollout, which costs the group size in prompt tokens."""
    shapes = []
    hook = qwen.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape)))
    roll(qwen, tokenizer, tasks[:3], group_size=5, max_new_tokens=4)
    hook.remove()
    short, middle, longest = sorted(len(prompt_of(task, tokenizer)) for task in tasks[:3])
    assert shapes[:3] == [(1, short), (1, middle), (1, longest)]
    assert all(3 <= rows <= 15 and length == 1 for rows, length in shapes[3:])


def test_what_rollouts_of_a_group_have_in_common_is_run_once(puppet, tokenizer, tasks):
    """Would catch rows that are run although another one has said the same: a call, its result, an answer. The script
    leaves nothing to chance but the last token."""
    lone, shared = [], []
    puppet.script(tasks[0], GOOD, ANSWER[:1]).script(tasks[1], ANSWER)
    for shapes, group_size in ((lone, 1), (shared, 6)):
        hook = puppet.register_forward_hook(lambda _, args, __, shapes=shapes: shapes.append(tuple(args[0].shape)))
        rollouts = roll(puppet, tokenizer, tasks[:2], group_size=group_size, max_new_tokens=60)
        hook.remove()
    together = len(tokenizer.encode(GOOD)) + 2  # prompts, the call token by token, its result
    assert shared[:together] == lone[:together] and {rows for rows, _ in shared} > {1, 2}
    said = {r.ids for r in rollouts[:6]}
    assert 1 < len(said) and max(rows for rows, _ in shared) <= len(said) + 1


def test_rows_of_a_length_are_read_together(caller, tokenizer, tasks, monkeypatch):
    """Would catch prompts and tool turns that are padded to the longest of all, and rows put back into each other's
    places."""
    found = []
    for block in (64, 1):
        monkeypatch.setattr(sampler, "BLOCK", block)
        sizes = []
        hook = caller.register_forward_hook(lambda _, args, __, sizes=sizes: sizes.append(args[0].numel()))
        rollouts = roll(caller, tokenizer, tasks[:8], group_size=3)
        hook.remove()
        found.append((sum(sizes), rollouts))
    (at_once, some), (by_length, others) = found
    assert by_length < at_once and any(r.calls for r in some)
    for a, b in zip(some, others, strict=True):
        same(a, b)


def test_a_tool_turn_is_read_in_one_piece_and_nothing_twice(puppet, tokenizer, tasks):
    """Would catch a new prefill of the whole row after a call, or a result that is fed token by token."""
    shapes = []
    puppet.script(tasks[0], GOOD, ANSWER)
    hook = puppet.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape)))
    (r,) = roll(puppet, tokenizer, tasks[:1])
    hook.remove()
    (turn,) = inserted(r)
    spliced = [shape for shape in shapes[1:] if shape[1] > 1]
    assert spliced == [(1, 1 + len(turn))]  # with the <|im_end|> that was drawn before it
    assert sum(rows * length for rows, length in shapes) <= len(r.prompt_ids) + len(r.ids)


# --- calls ------------------------------------------------------------------------------------------------------


def test_a_call_is_answered_on_the_row(puppet, tokenizer, tasks):
    """Would catch a result in the wrong place, marked as drawn, or not what the template would have written."""
    engine = Says("It is 4?")
    (r,) = roll(puppet.script(tasks[0], GOOD, ANSWER), tokenizer, tasks[:1], engine)
    call, turn, answer = (
        tokenizer.encode(GOOD),
        data.encode_tool_turn(["It is 4?"], tokenizer, think=True),
        [*tokenizer.encode(ANSWER)],
    )
    assert r.ids == (*call, *turn, *answer)
    assert r.sampled == (True,) * len(call) + (False,) * len(turn) + (True,) * len(answer)
    assert engine.sent == [data.user_message(tasks[0])]
    assert r.calls[0].cost == 3.0 + 0.25 * len(engine.sent[0])
    assert (r.stop, r.engine_failed) == ("end", False)


def test_a_think_block_of_the_chat_is_in_every_assistant_turn(config, tokenizer, tasks):
    """Would catch a tool turn that opens thinking again in a chat whose thinking is off."""
    chat = Chat(system="Be brief.", tools=(SCHEMA,), think=False)
    puppet = randomise(Puppet(config, tokenizer, think=False)).script(tasks[0], GOOD, ANSWER, chat=chat)
    (r,) = roll(puppet, tokenizer, tasks[:1], chat=chat)
    assert r.prompt_ids == tuple(data.encode_prompt(tasks[0], tokenizer, chat))
    assert inserted(r) == [data.encode_tool_turn(["It is 4."], tokenizer, think=False)]
    assert r.stop == "end"


def test_all_calls_of_a_turn_share_one_answer(puppet, tokenizer, tasks):
    """Would catch a second call that is dropped, or answered in a user turn of its own."""
    (r,) = roll(puppet.script(tasks[0], [*PASSAGE[:-1], "\n", *GOOD], ANSWER), tokenizer, tasks[:1], max_new_tokens=120)
    assert [call.text for call in r.calls] == ["abc", data.user_message(tasks[0])]
    assert inserted(r) == [data.encode_tool_turn(["It is 4."] * 2, tokenizer, think=True)]


def test_a_malformed_call_is_answered_with_its_error(puppet, tokenizer, tasks):
    """Would catch a malformed call that ends the rollout, is free, or leaves no trace."""
    engine = Says("4")
    (r,) = roll(puppet.script(tasks[0], BAD, ANSWER), tokenizer, tasks[:1], engine)
    assert [(call.error, call.cost) for call in r.calls] == [("malformed", 3.0)]
    assert inserted(r) == [data.encode_tool_turn([r.calls[0].result], tokenizer, think=True)]
    assert (r.stop, engine.sent) == ("end", [])


def test_calls_over_the_limit_get_an_error_then_the_rollout_stops(puppet, tokenizer, tasks):
    """Would catch a policy that calls for ever, or one that is stopped without having been told."""
    engine = Says("4")
    (r,) = roll(
        puppet.script(tasks[0], GOOD, GOOD, GOOD), tokenizer, tasks[:1], engine, max_calls=1, max_new_tokens=200
    )
    assert [call.error for call in r.calls][:2] == [None, "limit"]
    assert r.calls[1].cost == 3.0
    assert (r.stop, len(engine.sent), len(inserted(r))) == ("tool_limit", 1, 2)
    assert r.ids[-1] == tokenizer.id(IM_END)


def test_after_the_error_a_rollout_can_still_answer(puppet, tokenizer, tasks):
    """Would catch a limit that ends the rollout at once: the answer that follows is the lesson."""
    (r,) = roll(puppet.script(tasks[0], GOOD, ANSWER), tokenizer, tasks[:1], max_calls=0)
    assert ([call.error for call in r.calls], r.stop) == (["limit"], "end")
    assert r.ids[-2:] == tuple(tokenizer.encode(ANSWER))


def test_an_engine_failure_ends_nothing(puppet, tokenizer, tasks):
    """Would catch a run that dies of a network fault, or a policy that pays for it."""
    puppet.script(tasks[0], GOOD, ANSWER).script(tasks[1], ANSWER)
    failed, other = roll(puppet, tokenizer, tasks[:2], Broken())
    assert [(call.error, call.cost) for call in failed.calls] == [("engine", 0.0)]
    assert (failed.stop, failed.engine_failed) == ("end", True)
    assert (other.stop, other.engine_failed) == ("end", False)


@settings(max_examples=25)
@given(
    st.lists(st.one_of(st.sampled_from(ADDED_TOKENS), st.text(max_size=8)), max_size=8).map("".join),
    st.sampled_from([24, 40, 70]),
    st.sampled_from([1, 400]),
)
def test_hostile_results_stay_text_within_the_row(config, tokenizer, tasks, answer, limit, repeat):
    """Would catch a translation that writes markup, pushes a row past its budget, or is cut without a mark."""
    puppet = randomise(Puppet(config, tokenizer)).script(tasks[0], BAD[:1] + GOOD[1:], ANSWER)
    (r,) = roll(puppet, tokenizer, tasks[:1], Says(answer * repeat), max_new_tokens=limit)
    check_record(r, tokenizer, limit)
    template = controls(data.encode_tool_turn(["a"], tokenizer, think=True), tokenizer)
    for run in inserted(r):
        assert controls(run, tokenizer) == template
        uncut = data.encode_tool_turn([answer * repeat], tokenizer, think=True)
        assert run == uncut or CUT in tokenizer.decode(run)
    if not inserted(r):
        assert r.stop == "length"


def test_a_long_result_is_cut_to_the_row_with_a_mark(puppet, tokenizer, tasks):
    """Would catch a limit in characters, a cut that nobody sees, or one that leaves no room to answer."""
    puppet.script(tasks[0], GOOD, ANSWER)
    (r,) = roll(puppet, tokenizer, tasks[:1], Says("wort " * 5000), max_new_tokens=80)
    (turn,) = inserted(r)
    text = tokenizer.decode(turn)
    assert text.startswith("\n<|im_start|>user\n<tool_response>\nwort ")
    assert text.endswith(f"{CUT}\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    assert 80 - 3 <= len(tokenizer.encode(GOOD)) + len(turn) + 1 <= 80  # the budget is used, but for the answer
    assert r.calls[0].result == "wort " * 5000  # the record keeps what the engine said


def test_a_cut_leaves_whole_characters(tokenizer):
    """Would catch half a character at the cut, which decodes to a replacement sign."""
    least = len(data.encode_tool_turn([CUT], tokenizer, True))
    for room in range(least, least + 16):
        turn = fit_results(["語" * 40], tokenizer, room, think=True)
        assert len(turn) <= room
        assert "\ufffd" not in tokenizer.decode(turn)


def test_the_longest_of_two_results_is_cut(tokenizer):
    """Would catch a cut that empties the short result and leaves the long one."""
    short, long = "short", "long " * 100
    turn = fit_results([long, short], tokenizer, 60, think=True)
    text = tokenizer.decode(turn)
    assert f"\n{short}\n" in text and text.count(CUT) == 1


def test_without_room_for_a_result_the_row_ends(puppet, tokenizer, tasks):
    """Would catch a tool turn without its end, or a row that is longer than allowed."""
    (r,) = roll(puppet.script(tasks[0], GOOD), tokenizer, tasks[:1], max_new_tokens=len(tokenizer.encode(GOOD)) + 4)
    assert (r.stop, len(r.calls), inserted(r)) == ("length", 1, [])


# --- modes ------------------------------------------------------------------------------------------------------


def test_forbidden_rollouts_never_call(puppet, tokenizer, tasks):
    """Would catch a call that slips through, or log-probs over a distribution that still holds it."""
    puppet.boost[tokenizer.id(CALL)] = 100.0
    rollouts = roll(puppet, tokenizer, tasks[:3], group_size=3, mode="forbidden", max_new_tokens=12)
    for r in rollouts:
        assert tokenizer.id(CALL) not in r.ids
        assert r.calls == ()
        with torch.no_grad():
            logits = puppet.logits(puppet(torch.tensor([r.prompt_ids + r.ids])))[0, len(r.prompt_ids) - 1 : -1]
        logits[:, tokenizer.id(CALL)] = -torch.inf
        expected = logits[:, : tokenizer.size].log_softmax(-1)[torch.arange(len(r.ids)), list(r.ids)]
        assert r.logps == pytest.approx(expected.tolist(), abs=1e-4)


def test_forbidden_holds_at_temperature_zero(puppet, tokenizer, tasks):
    """Would catch a greedy evaluation in which the forbidden call is the argmax."""
    puppet.boost[tokenizer.id(CALL)] = 100.0
    (r,) = roll(puppet, tokenizer, tasks[:1], mode="forbidden", temperature=0.0, max_new_tokens=6)
    assert tokenizer.id(CALL) not in r.ids


def test_forced_rollouts_begin_with_a_call_that_nobody_drew(puppet, tokenizer, tasks):
    """Would catch a forced call that is trained on, is free, or whose result is missing."""
    call = encode_call(tokenizer)
    turn = data.encode_tool_turn(["It is 4."], tokenizer, think=True)
    for r in roll(puppet, tokenizer, tasks[:3], group_size=2, mode="forced"):
        begin = len(call) + len(turn)
        assert r.ids[:begin] == (*call, *turn)
        assert not any(r.sampled[:begin]) and all(r.sampled[begin : begin + 1])
        assert r.calls[0].cost == 3.0 + 0.25 * len(data.user_message(r.task))
        check_record(r, tokenizer, 60)


def test_logps_after_a_forced_call_are_those_of_a_forward_without_a_cache(qwen, tokenizer, tasks):
    """Would catch a forced call that the model has not read, or has read at the wrong positions."""
    for r in roll(qwen, tokenizer, tasks[:3], mode="forced"):
        with torch.no_grad():
            logits = qwen.logits(qwen(torch.tensor([r.prompt_ids + r.ids])))[0, len(r.prompt_ids) - 1 : -1]
        expected = logits[:, : tokenizer.size].log_softmax(-1)[torch.arange(len(r.ids)), list(r.ids)]
        drawn = torch.tensor(r.sampled)
        assert drawn.any()
        torch.testing.assert_close(torch.tensor(r.logps)[drawn], expected[drawn], atol=1e-4, rtol=0)


def test_a_forced_call_does_not_exceed_the_row(qwen, tokenizer, tasks):
    """Would catch an insertion that ignores the budget."""
    (r,) = roll(qwen, tokenizer, tasks[:1], mode="forced", max_new_tokens=30)
    check_record(r, tokenizer, 30)
    assert r.stop == "length" and not any(r.sampled)


@pytest.mark.parametrize("limit", [1, 5])
def test_a_row_too_short_for_a_forced_call_is_refused(qwen, tokenizer, tasks, limit):
    """Would catch a forced call that is cut and then charged as a malformed call of the policy's."""
    with pytest.raises(ValueError, match="a forced call alone"):
        roll(qwen, tokenizer, tasks[:1], mode="forced", max_new_tokens=limit)


# --- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "always"}, {"group_size": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"max_rows": 0}],
    ids=str,
)
def test_wrong_arguments_are_refused(qwen, tokenizer, tasks, wrong):
    """Would catch a typo in a mode that samples freely, or an empty batch that loops."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        roll(qwen, tokenizer, tasks[:1], **wrong)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, is 0"),
        ({"temperature": -0.5}, "temperature must be at least 0, is -0.5"),
        ({"max_calls": -1}, "max_calls must be at least 0, is -1"),
        ({"max_rows": 0}, "max_rows must be at least 1, is 0"),
        ({"workers": -1}, "workers must be at least 0, is -1"),
        ({"mode": "forbid"}, "mode is 'forbid', allowed: free, forced, forbidden"),
    ],
    ids=str,
)
def test_a_way_of_sampling_that_makes_no_sense_is_refused_where_it_is_made(wrong, message):
    """Would catch a record that is checked only once the weights have been gathered, or a message without a number."""
    with pytest.raises(ValueError) as error:
        Sampling(**{"max_new_tokens": 9} | wrong)
    assert str(error.value) == message


def test_the_prices_are_those_asked_for(puppet, tokenizer, tasks):
    """Would catch prices that stay at their defaults, for good calls or for malformed ones."""
    puppet.script(tasks[0], BAD, PASSAGE, ANSWER)
    (r,) = roll(puppet, tokenizer, tasks[:1], prices=Prices(call=7.0, char=2.0), max_new_tokens=120)
    assert [(call.error, call.cost) for call in r.calls] == [("malformed", 7.0), (None, 7.0 + 2.0 * len("abc"))]
