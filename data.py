"""[1] Tasks, languages, and the chat format as token ids.

    JSONL line -> Task -> encode_prompt -> ids

A rollout starts here. The one idea of this file: *ids are built from pieces, text is never searched for markup*.
A prompt is a list of control tokens (`Control("<|im_end|>")`) and strings. Control tokens become their ids; each
run of strings between two of them, template words and outside text together, is encoded in one call by a second
tokenizer that has no control tokens at all. For the published template the ids are those of the official
tokenizer, and a question or a translation that contains the characters `<|im_end|>` stays a few harmless pieces.

Left out: other chat formats, multi-turn data, truncation. A prompt that is too long is an error where it is used.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

TIERS = ("high", "low", "xlow", "synthetic")
SPLITS = ("trained", "held-out", "synthetic")

# Real languages by the size of their part of CC-100 (data.statmt.org/cc-100, compressed): high from 5 GB, low from
# 100 MB, xlow below or absent. 22 are trained on (8 + 7 + 7), 9 are held out (3 + 3 + 3). The rule and the choice are
# ours: the paper's own list is not in our source.
_LANGUAGES = {
    ("high", "trained"): "de es fr id ja ru vi zh",
    ("high", "held-out"): "it pt th",
    ("low", "trained"): "bn ca eo et sw ta te",
    ("low", "held-out"): "eu gl hi",
    ("xlow", "trained"): "an ast frp ht oc qu sc",
    ("xlow", "held-out"): "br wo yo",
}
LANGUAGES = {code: tier_and_split for tier_and_split, codes in _LANGUAGES.items() for code in codes.split()}


@dataclass(frozen=True)
class Task:
    """One question with a checkable answer. Created once, never changed."""

    id: str
    language: str
    tier: str  # high | low | xlow | synthetic: how much of the language the base model saw
    split: str  # trained | held-out | synthetic: what RL may see of it
    domain: str
    question: str
    choices: tuple[str, ...]  # shown one a line below the question; may be empty
    answer: str  # language-independent (a number, a name) or English
    question_en: str | None = None  # the same question in English, where it is known
    price: float | None = None  # what a call of mean length costs here, stated in the prompt; None: as configured


def user_message(task: Task) -> str:
    """The text of the user turn, which is also what the translate tool translates: question, then one choice a line."""
    return "\n".join((task.question, *task.choices))


def is_text(value: str) -> bool:
    """Whether it can be encoded: JSON escapes can spell half of a surrogate pair, which is no character."""
    return not any("\ud800" <= c <= "\udfff" for c in value)


# --- JSONL ------------------------------------------------------------------------------------------------------


def load_tasks(path, fields: dict[str, str] | None = None) -> list[Task]:
    """The tasks of a JSONL file, one object a line; `fields` maps our names to the file's, {"language": "lang"}.

    `id`, `language`, `question` and `answer` are required. `tier` and `split` default to the entry of `LANGUAGES`,
    `domain` to "other". Raises ValueError naming file, line and field for anything malformed, for a repeated id
    and for a file without tasks; FileNotFoundError if there is no such file.
    """
    names = {name: name for name in Task.__dataclass_fields__} | (fields or {})
    if unknown := set(names) - set(Task.__dataclass_fields__):
        raise ValueError(
            f"a task has no field {sorted(unknown)}; the fields are {', '.join(Task.__dataclass_fields__)}"
        )
    tasks, line_of = [], {}
    for place, row in read_rows(path):
        task = _task(row, names, place)
        if task.id in line_of:
            raise ValueError(f"{place}: id {task.id!r} stands already in line {line_of[task.id]}")
        line_of[task.id] = place.rpartition(":")[2]
        tasks.append(task)
    if not tasks:
        raise ValueError(f"{path}: no tasks in this file")
    return tasks


def read_rows(path) -> Iterator[tuple[str, dict]]:
    """(file:line, object) of each line of a JSONL file, blank ones left out. ValueError naming the place of anything
    that is no object; FileNotFoundError if there is no such file."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # a field that is not UTF-8 is no text
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected an object, found {type(row).__name__}")
            yield f"{path}:{number}", row


def _task(row: dict, names: dict[str, str], place: str) -> Task:
    def field(name, kinds=(str,), default=None):
        value = row.get(names[name])
        if value is None:
            if default is None:
                raise ValueError(f"{place}: field {names[name]!r} is missing")
            return default
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{place}: field {names[name]!r} should be {kinds[0].__name__}, found {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{place}: field {names[name]!r} is not a finite number")
        if isinstance(value, str) and not (value.strip() and is_text(value)):
            raise ValueError(f"{place}: field {names[name]!r} is blank, or holds half a surrogate pair")
        return value

    language = field("language")
    tier, split = LANGUAGES.get(language, (None, None))
    tier, split = field("tier", default=tier), field("split", default=split)
    for name, value, allowed in (("tier", tier, TIERS), ("split", split, SPLITS)):
        if value not in allowed:
            raise ValueError(f"{place}: field {names[name]!r} is {value!r}, allowed: {', '.join(allowed)}")
    choices = field("choices", (list,), [])
    if not all(isinstance(choice, str) and is_text(choice) for choice in choices):
        raise ValueError(f"{place}: field {names['choices']!r} should hold strings, found {choices!r}")
    question_en, price = row.get(names["question_en"]), row.get(names["price"])
    if price is not None and not 0 <= field("price", (float, int)) <= 10:
        raise ValueError(f"{place}: field {names['price']!r} is {price!r}, allowed: 0 to 10 a call of mean length")
    answer = field("answer", (str, int, float))
    if isinstance(answer, float):  # written out: 0.00001, where str has 1e-05
        answer = format(Decimal(str(answer)), "f")
    return Task(
        id=field("id"),
        language=language,
        tier=tier,
        split=split,
        domain=field("domain", default="other"),
        question=field("question"),
        choices=tuple(choices),
        answer=str(answer),
        question_en=None if question_en is None else field("question_en"),
        price=None if price is None else float(price),
    )


# --- tokenizer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Control:
    """A piece of a prompt that is one added token of the vocabulary, named by its text."""

    text: str


IM_START, IM_END = Control("<|im_start|>"), Control("<|im_end|>")
THINK, END_THINK = Control("<think>"), Control("</think>")
CALL, END_CALL = Control("<tool_call>"), Control("</tool_call>")
RESPONSE, END_RESPONSE = Control("<tool_response>"), Control("</tool_response>")


class Tokenizer:
    """A Hugging Face `tokenizer.json`, split in two: text that can never become a control id, and the control ids.

    `control` maps each added token, special or not, to its id. `size` is one more than the largest id that has a
    token: rows of the model's head from there on are padding and must never be sampled.
    """

    def __init__(self, directory):
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{directory}: no tokenizer here (tokenizer.json is missing)")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            self._full = FastTokenizer.from_str(json.dumps(raw))
            # Disabling *special* tokens is not enough: <tool_call> and <think> are added tokens but not special ones.
            # So the second tokenizer has no added tokens, nor vocabulary entries of their text.
            self.control = {token["content"]: token["id"] for token in raw["added_tokens"]}
            raw["added_tokens"] = []
            raw["model"]["vocab"] = {t: i for t, i in raw["model"]["vocab"].items() if t not in self.control}
            self._plain = FastTokenizer.from_str(json.dumps(raw))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{path}: not a readable tokenizer ({error})") from None
        for piece in (IM_START, IM_END, CALL, END_CALL, RESPONSE, END_RESPONSE):
            if piece.text not in self.control:
                raise ValueError(f"{path}: the added token {piece.text} is missing")
        self.size = 1 + max(self._full.get_vocab(with_added_tokens=True).values())

    def encode_text(self, text: str) -> list[int]:
        """Ids of outside text; never a control id, whatever the text says."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode(self, pieces: list) -> list[int]:
        """Ids of a list of `Control` and `str` pieces; adjacent strings are joined before they are encoded."""
        ids, text = [], ""
        for piece in pieces:
            if isinstance(piece, str):
                text += piece
                continue
            ids += (self.encode_text(text) if text else []) + [self.control[piece.text]]
            text = ""
        return ids + (self.encode_text(text) if text else [])

    def id(self, control: Control) -> int:
        return self.control[control.text]

    def decode(self, ids) -> str:
        """The text of the ids, control tokens included."""
        return self._full.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(directory) -> Tokenizer:
    """The tokenizer of a model directory. FileNotFoundError without tokenizer.json, ValueError if it is broken."""
    return Tokenizer(directory)


# --- chat format ------------------------------------------------------------------------------------------------

# The system turn's words around the schema, and the markup, are those of the chat template published with Qwen3.
TOOLS_INTRO = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_OUTRO = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within ",
    CALL,
    END_CALL,
    " XML tags:\n",
    CALL,
    '\n{"name": <function-name>, "arguments": <args-json-object>}\n',
    END_CALL,
)
TOOL_SCHEMA = {
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


@dataclass(frozen=True)
class Chat:
    """How a model is talked to; a preset's choice. The default is the bare format that the tiny base was trained on."""

    system: str | None = None  # instructions in the system turn
    tool_schema: bool = False  # describe the tool in the system turn
    think_block: bool = False  # open each assistant turn with Qwen3's empty think block: thinking is off
    answer: str = "plain"  # plain: the whole last turn is the answer; boxed: what stands in the last \boxed{}

    def prompt(self, task: Task, tokenizer: Tokenizer) -> list[int]:
        return encode_prompt(task, tokenizer, self.system, not self.think_block, self.tool_schema)


def encode_prompt(
    task: Task, tokenizer: Tokenizer, system: str | None = None, think: bool = False, tools: bool = True
) -> list[int]:
    """The prompt's ids, up to where the assistant begins.

    `think=False` closes the thinking with an empty think block, as Qwen3's template does; `think=True` leaves the
    turn open. `tools` puts the schema of the translate tool into the system turn. A task with a price has it stated at
    the end of the instructions, "price 0.3 $$$": a small model counts signs before it reads digits. It is no part of
    the user message, so it is never translated.
    """
    pieces = []
    if task.price is not None:
        stated = f"price {task.price:g} {'$' * round(10 * task.price)}".rstrip()
        system = "\n\n".join(filter(None, (system, stated)))
    if tools:
        intro = f"{system}\n\n" if system else ""
        pieces += [IM_START, "system\n" + intro + TOOLS_INTRO + "\n" + json.dumps(TOOL_SCHEMA, ensure_ascii=False)]
        pieces += [*TOOLS_OUTRO, IM_END, "\n"]
    elif system:
        pieces += [IM_START, f"system\n{system}", IM_END, "\n"]
    pieces += [IM_START, "user\n" + user_message(task), IM_END, "\n"]
    return tokenizer.encode(pieces + _open_assistant(think))


def encode_tool_turn(results: list[str], tokenizer: Tokenizer, think: bool = False) -> list[int]:
    """What follows the assistant's `<|im_end|>`: one user turn with all the results, and the assistant begins again."""
    pieces = ["\n", IM_START, "user"]
    for result in results:
        pieces += ["\n", RESPONSE, f"\n{result}\n", END_RESPONSE]
    return tokenizer.encode([*pieces, IM_END, "\n", *_open_assistant(think)])


def encode_call(tokenizer: Tokenizer) -> list[int]:
    """An assistant turn that calls the tool on the whole message, `<|im_end|>` included, in the canonical JSON."""
    call = json.dumps({"name": "translate", "arguments": {}})
    return tokenizer.encode([CALL, f"\n{call}\n", END_CALL, IM_END])


def _open_assistant(think: bool) -> list:
    return [IM_START, "assistant\n"] + ([] if think else [THINK, "\n\n", END_THINK, "\n\n"])
