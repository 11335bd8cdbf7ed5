"""[3] The translate tool: finding and parsing calls, running them, and what they cost.

    a turn's ids -> calls_in -> ToolCall | CallError -> run_call -> Call (result, cost, error, seconds)

The tool has one optional argument: {"name": "translate", "arguments": {}} translates the whole user message into
English, {"text": "…"} only that passage. Nothing here raises because of what a model wrote: a malformed call is
answered with a short error that the model can read, is counted, and costs the fixed price of a call. Costs are computed
here and nowhere else.

Left out: the engines themselves (`translation/`), and other tools (docs/forking.md adds one).
"""

import json
import time
from dataclasses import dataclass
from typing import Protocol

from data import CALL, END_CALL, END_THINK, IM_END, THINK, Task, Tokenizer, encode_tool_turn, user_message
from harness.jsonl import is_text

CUT = " …[cut]"  # stands where a result was cut to fit into what is left of the row

# What a system turn may tell the model about the tool, in the form that Qwen3's template shows.
SCHEMA = {
    "type": "function",
    "function": {
        "name": "translate",
        "description": "Translate text into English. Without arguments, translates the whole user message.",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string", "description": "Only this passage, instead of the message."}},
            "required": [],
        },
    },
}


class Translator(Protocol):
    """A translation engine."""

    name: str

    def translate(self, texts: list[str], source: str, target: str = "en") -> list[str]:
        """One translation for each text, in order; languages by code.

        Raises TranslationError if the engine fails, ValueError if it has no such language.
        """
        ...


class TranslationError(Exception):
    """The engine failed to translate: its fault, not the policy's."""


@dataclass(frozen=True)
class ToolCall:
    """A well-formed call. `text` is the passage to translate, None the whole user message."""

    text: str | None


@dataclass(frozen=True)
class CallError:
    """A call that cannot be run, and what the model is told about it."""

    message: str


@dataclass(frozen=True)
class Prices:
    """What calls cost. Per preset chosen such that one call on a mean training question costs 1."""

    call: float = 0.5  # every attempted call, malformed ones included
    char: float = 0.5 / 45  # each character sent: 45 is the mean length of a question of the embedded world

    def of(self, characters: int) -> float:
        return self.call + self.char * characters


@dataclass(frozen=True)
class Call:
    """One attempted call as it went. `error` is None, "malformed", "limit" (well-formed, one too many) or "engine"."""

    text: str | None  # what was to be translated; None if malformed
    result: str  # what came back, or the error that the model reads instead
    cost: float  # 1 = one call on a mean training question
    error: str | None
    seconds: float


def parse_call(text: str) -> ToolCall | CallError:
    """What stands between `<tool_call>` and `</tool_call>`, or with them, as a call. Never raises."""
    text = text.strip().removeprefix(CALL.text).removesuffix(END_CALL.text)
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return CallError("error: the call is not valid JSON")
    if not isinstance(call, dict) or call.get("name") != "translate":
        return CallError("error: the only tool is translate")
    arguments = call.get("arguments")
    if not isinstance(arguments, dict) or set(call) - {"name", "arguments"}:
        return CallError("error: a call has a name and arguments, which is an object")
    if set(arguments) - {"text"} or ("text" in arguments and not _is_passage(arguments["text"])):
        return CallError("error: the only argument is text, a passage to translate")
    return ToolCall(arguments.get("text"))


def _is_passage(value) -> bool:
    """Text that an engine can be sent: encodable, and not blank."""
    return isinstance(value, str) and is_text(value) and bool(value.strip())


def calls_in(turn_ids: list[int], tokenizer: Tokenizer) -> list[ToolCall | CallError]:
    """The calls of an assistant turn, in order. Only the control id `<tool_call>` outside thinking begins one."""
    control = tokenizer.control
    thinks, thoughts_end = control.get(THINK.text), control.get(END_THINK.text)
    begin, end = tokenizer.id(CALL), tokenizer.id(END_CALL)
    calls, opened, thinking = [], None, False
    for i, token in enumerate(turn_ids):
        if opened is None:
            thinking = (thinking or token == thinks) and token != thoughts_end
            opened = i + 1 if token == begin and not thinking else None
        elif token == end:
            calls.append(parse_call(tokenizer.decode(turn_ids[opened:i])))
            opened = None
    return calls if opened is None else [*calls, CallError("error: the call is not closed")]


def encode_call(tokenizer: Tokenizer) -> list[int]:
    """An assistant turn that calls the tool on the whole message, `<|im_end|>` included, in the canonical JSON."""
    call = json.dumps({"name": "translate", "arguments": {}})
    return tokenizer.encode([CALL, f"\n{call}\n", END_CALL, IM_END])


def run_call(call: ToolCall | CallError, task: Task, translator: Translator, prices: Prices, allowed: bool) -> Call:
    """Run one call and meter it. `allowed` is false for calls beyond the limit. An engine's failure costs nothing."""
    if isinstance(call, CallError):
        return Call(None, call.message, prices.of(0), "malformed", 0.0)
    text = user_message(task) if call.text is None else call.text
    if not allowed:
        return Call(text, "error: no more calls are allowed", prices.of(0), "limit", 0.0)
    start = time.perf_counter()
    try:
        results = list(translator.translate([text], task.language) or [])
        if len(results) != 1 or not isinstance(results[0], str) or not is_text(results[0]):
            raise TranslationError(f"{translator.name} answered one text with {results!r:.80}")
        result, cost, error = results[0], prices.of(len(text)), None
    except TranslationError as failure:
        result, cost, error = f"error: the translation failed ({failure})", 0.0, "engine"
    return Call(text, result, cost, error, time.perf_counter() - start)


def fit_results(results: list[str], tokenizer: Tokenizer, room: int, think: bool) -> list[int] | None:
    """The tool turn's ids. While they are more than `room`, the result of most characters is cut, and ends with `CUT`.
    None if nothing is left to cut."""
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
