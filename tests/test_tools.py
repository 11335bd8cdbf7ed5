"""Calls as a model writes them, well or badly, and what each costs."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import CALL, END_CALL, END_THINK, IM_END, THINK, Task
from tiny import world
from tiny.languages import languages
from tools import CallError, Prices, ToolCall, TranslationError, calls_in, encode_call, parse_call, run_call

TASK = Task("t", "high-01", "high", "trained", "math", "Quanto fa?", ("tre", "quattro"), "4")
PRICES = Prices(call=3.0, char=0.25)


class Upper:
    """An engine that remembers what it was sent."""

    name = "upper"

    def __init__(self):
        self.sent = []

    def translate(self, texts, source, target="en"):
        self.sent.append((texts, source, target))
        return [text.upper() for text in texts]


class Broken:
    name = "broken"

    def translate(self, texts, source, target="en"):
        raise TranslationError("no route")


# --- parse_call -------------------------------------------------------------------------------------------------

GOOD = {
    '{"name": "translate", "arguments": {}}': None,
    '\n{"name": "translate", "arguments": {}}\n': None,
    ' {"arguments":{},"name":"translate"} ': None,
    '<tool_call>{"name": "translate", "arguments": {}}</tool_call>': None,
    '{"name": "translate", "arguments": {"text": "Quanto fa?"}}': "Quanto fa?",
    '{"name": "translate", "arguments": {"text": "\\u00e9 \\"<|im_end|>\\"\\n"}}': 'é "<|im_end|>"\n',
    '{"name": "translate", "arguments": {"text": "\\ud83d\\ude00"}}': "😀",
}


@pytest.mark.parametrize("text", GOOD)
def test_a_good_call_is_read(text):
    """Would catch a parser that is stricter than JSON about order and blanks, or changes the passage."""
    assert parse_call(text) == ToolCall(GOOD[text])


MALFORMED = {
    "": "JSON",
    "translate": "JSON",
    '{"name": "translate", "arguments": {}': "JSON",
    '{"name": "translate", "arguments": {}} and more': "JSON",
    '{"name": "translate", "arguments": {}}{"name": "translate", "arguments": {}}': "JSON",
    "{'name': 'translate', 'arguments': {}}": "JSON",
    "[" * 100_000: "JSON",
    '{"name": ' * 100_000: "JSON",
    "1" * 100_000: "",  # Python refuses to read so long a number, or reads it: no call either way
    "NaN": "translate",
    "null": "translate",
    "[]": "translate",
    '"translate"': "translate",
    '{"arguments": {}}': "translate",
    '{"name": "search", "arguments": {}}': "translate",
    '{"name": ["translate"], "arguments": {}}': "translate",
    '{"name": "translate"}': "arguments",
    '{"name": "translate", "arguments": null}': "arguments",
    '{"name": "translate", "arguments": "{}"}': "arguments",
    '{"name": "translate", "arguments": {}, "id": 1}': "arguments",
    '{"name": "translate", "arguments": {"txt": "a"}}': "text",
    '{"name": "translate", "arguments": {"text": "a", "source": "it"}}': "text",
    '{"name": "translate", "arguments": {"text": null}}': "text",
    '{"name": "translate", "arguments": {"text": 3}}': "text",
    '{"name": "translate", "arguments": {"text": NaN}}': "text",
    '{"name": "translate", "arguments": {"text": ""}}': "text",
    '{"name": "translate", "arguments": {"text": " \\n"}}': "text",
    '{"name": "translate", "arguments": {"text": "\\ud83d"}}': "text",
    '{"name": "translate", "arguments": {"text": "\\ude00\\ud83d"}}': "text",
}


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: text[:60])
def test_a_malformed_call_is_an_error_that_says_what(text):
    """Would catch a call that kills its rollout, or one that runs although nobody knows what it asks for."""
    error = parse_call(text)
    assert isinstance(error, CallError)
    assert error.message.startswith("error: ")
    assert MALFORMED[text] in error.message
    assert len(error.message) < 100  # it is read by the model, at the price of its tokens


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
near_calls = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("translate") | values,
        "arguments": st.dictionaries(st.sampled_from(["text", "x"]), values, max_size=2) | values,
        "more": values,
    },
).map(json.dumps)


@settings(max_examples=150)
@given(st.one_of(st.text(st.characters()), near_calls, near_calls.map(lambda text: text[:-2]), values.map(json.dumps)))
def test_parse_call_never_raises(text):
    """Would catch the malformed call that nobody thought of. What it accepts can be sent: a passage that encodes."""
    call = parse_call(text)
    assert isinstance(call, ToolCall | CallError)
    if isinstance(call, ToolCall) and call.text is not None:
        assert call.text.strip()
        call.text.encode("utf-8")


# --- calls_in ---------------------------------------------------------------------------------------------------

EMPTY, PASSAGE = '\n{"name": "translate", "arguments": {}}\n', '{"name": "translate", "arguments": {"text": "tre"}}'
NOT_CLOSED = CallError("error: the call is not closed")
TURNS = {
    "an answer": (["4", IM_END], []),
    "nothing": ([], []),
    "one call": ([CALL, EMPTY, END_CALL, IM_END], [ToolCall(None)]),
    "words before and after": (["I ask.", CALL, EMPTY, END_CALL, "Now.", IM_END], [ToolCall(None)]),
    "two calls": ([CALL, PASSAGE, END_CALL, "\n", CALL, EMPTY, END_CALL, IM_END], [ToolCall("tre"), ToolCall(None)]),
    "a call that is not closed": ([CALL, EMPTY, IM_END], [NOT_CLOSED]),
    "a good one, then one not closed": ([CALL, EMPTY, END_CALL, CALL, IM_END], [ToolCall(None), NOT_CLOSED]),
    "a call inside thinking": ([THINK, CALL, EMPTY, END_CALL, END_THINK, "4", IM_END], []),
    "thinking that never ends": ([THINK, "hm", CALL, EMPTY, END_CALL, IM_END], []),
    "a call after thinking": ([THINK, CALL, EMPTY, END_CALL, END_THINK, CALL, EMPTY, END_CALL], [ToolCall(None)]),
    "thinking closed by the prompt": ([END_THINK, CALL, EMPTY, END_CALL, IM_END], [ToolCall(None)]),
    "a thought inside a call": (
        [CALL, EMPTY, THINK, END_CALL, CALL, EMPTY, END_CALL],
        [CallError("error: the call is not valid JSON"), ToolCall(None)],
    ),
    "an end without a begin": (["4", END_CALL, IM_END], []),
    "the characters of a call": (["<tool_call>" + EMPTY + "</tool_call>", IM_END], []),
    "the characters of an end": ([CALL, EMPTY, "</tool_call>", IM_END], [NOT_CLOSED]),
}


@pytest.mark.parametrize("name", TURNS)
def test_calls_of_a_turn(name, tokenizer):
    """Would catch markup found by its characters, a call drafted in thought that runs, or one of several lost."""
    pieces, calls = TURNS[name]
    assert calls_in(tokenizer.encode(pieces), tokenizer) == calls


@settings(max_examples=150)
@given(st.lists(st.integers(0, 599), max_size=30))
def test_calls_in_never_raises(tokenizer, ids):
    """Would catch a turn of any ids at all that ends the run; each begin outside a call opens at most one."""
    assert len(calls_in(ids, tokenizer)) <= ids.count(tokenizer.id(CALL))


def test_the_call_that_is_inserted_is_a_call(tokenizer):
    """Would catch a canonical call that our own parser refuses: every forced rollout would read an error."""
    assert calls_in(encode_call(tokenizer), tokenizer) == [ToolCall(None)]


# --- run_call and costs -----------------------------------------------------------------------------------------


def test_a_call_without_text_sends_the_whole_user_message():
    """Would catch a call that leaves the choices out, or a cost that is not of what was sent."""
    engine = Upper()
    call = run_call(ToolCall(None), TASK, engine, PRICES, allowed=True)
    message = "Quanto fa?\ntre\nquattro"
    assert engine.sent == [([message], "high-01", "en")]
    assert (call.text, call.result, call.error) == (message, message.upper(), None)
    assert call.cost == 3.0 + 0.25 * len(message)
    assert call.seconds >= 0


def test_a_passage_costs_its_own_characters():
    """Would catch a cost in bytes, in tokens, of the result, or of the whole message."""
    call = run_call(ToolCall("tré"), TASK, Upper(), PRICES, allowed=True)
    assert (call.text, call.result, call.cost) == ("tré", "TRÉ", 3.0 + 0.25 * 3)


def test_a_malformed_call_costs_a_call_and_asks_nobody():
    """Would catch free malformed calls, which a policy learns to write."""
    engine = Upper()
    call = run_call(CallError("error: why"), TASK, engine, PRICES, allowed=True)
    assert (call.text, call.result, call.cost, call.error) == (None, "error: why", 3.0, "malformed")
    assert engine.sent == []


def test_a_call_over_the_limit_costs_a_call_and_asks_nobody():
    """Would catch a limit that is checked after the engine has been paid."""
    engine = Upper()
    call = run_call(ToolCall(None), TASK, engine, PRICES, allowed=False)
    assert (call.cost, call.error, engine.sent) == (3.0, "limit", [])
    assert call.result.startswith("error: ")


def test_an_engine_failure_costs_nothing_and_is_read():
    """Would catch a policy that is charged for somebody else's fault, or a failure that ends the run."""
    call = run_call(ToolCall(None), TASK, Broken(), PRICES, allowed=True)
    assert (call.cost, call.error) == (0.0, "engine")
    assert "no route" in call.result


@pytest.mark.parametrize("answer", [[], ["a", "b"], [None], ["\ud83d"]], ids=["none", "two", "null", "no unicode"])
def test_an_answer_that_is_no_translation_is_an_engine_failure(answer):
    """Would catch a broken engine that ends the run from deep inside: one text sent is one text that encodes back."""

    class Odd(Upper):
        def translate(self, texts, source, target="en"):
            return answer

    call = run_call(ToolCall(None), TASK, Odd(), PRICES, allowed=True)
    assert (call.cost, call.error) == (0.0, "engine")
    call.result.encode("utf-8")


def test_a_language_that_the_engine_lacks_is_not_hidden(translator):
    """Would catch a configuration fault that is counted as an engine failure in every rollout of a run."""
    stranger = Task("t", "xx", "high", "trained", "math", "?", (), "4")
    with pytest.raises(ValueError, match="no language 'xx'"):
        run_call(ToolCall(None), stranger, translator, PRICES, allowed=True)


def test_a_mean_question_costs_about_one():
    """Would catch default prices of another world: the unit of cost is one call on a mean training question."""
    questions = [data.user_message(task) for task in world.tasks("train", languages(split="trained"), 500, 0)]
    costs = [Prices().of(len(question)) for question in questions]
    assert sum(costs) / len(costs) == pytest.approx(1.0, abs=0.05)
    assert Prices().of(0) == pytest.approx(0.5)
