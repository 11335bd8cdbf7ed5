"""[1] Tasks, and the chat format as token ids: the first of nine stages, which train.py [9] goes through in order.

    row of a file -> Task -> encode_prompt -> ids

The one idea of this file: *ids are built from pieces, text is never searched for markup*. A prompt is a list of control
tokens (`Control("<|im_end|>")`) and strings. Control tokens become their ids. Each run of strings between two of them,
template words and outside text together, is encoded in one call by a second tokenizer that has no control tokens.
For the published template the ids are those of the official tokenizer. A question or a translation that contains the
characters `<|im_end|>` stays a few harmless pieces.

Words that all stages use ("the paper" is Translate-R1, arXiv 2606.06835):

    rollout      one answer of the policy to one task, tool calls and their results included
    group        the rollouts of one task, which share its prompt; what is learned is the difference within a group
    turn         what one side says until `<|im_end|>`; a rollout has several if it calls the tool
    step         draw tasks, sample their groups, learn from them; in one or more minibatches, an optimizer step each
    micro-batch  the rows of a minibatch that fit into one forward
    preset       a set of numbers: `tiny`, an embedded world of invented languages with a model of a million parameters
                 (tiny/), or `qwen3-4b`, real languages and a real model

Left out: other chat formats, multi-turn data, truncation; the length of a prompt is not limited.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from harness.jsonl import task_rows
from harness.tokenizer import read_tokenizer, require_its_ids


@dataclass(frozen=True)
class Task:
    """One question with a checkable answer. Created once, never changed."""

    id: str
    language: str
    tier: str  # high | low | xlow: by how much text of the language there is; synthetic: none
    split: str  # of the languages: trained | held-out | synthetic, what RL may see of them
    domain: str
    question: str
    choices: tuple[str, ...]  # shown one per line below the question; may be empty
    answer: str  # language-independent (a number, a name) or English
    question_en: str | None = None  # the same question in English, where it is known
    system: str | None = None  # its own instructions in the system turn; None: the chat's
    cost_weight: float | None = None  # its own lambda, what a cost of 1 takes off a right answer; None: as configured


def user_message(task: Task) -> str:
    """The text of the user turn, also what the translate tool translates: the question, then one choice per line."""
    return "\n".join((task.question, *task.choices))


def load_tasks(path: str | Path, fields: dict[str, str] | None = None) -> list[Task]:
    """The tasks of a file, one per row: JSON Lines, TSV or parquet; `fields` maps our names to the file's, which may
    be paths, or constants behind a colon: {"question": "prompt.0.content", "language": ":es"}.

    `language`, `question` and `answer` are required. `tier` and `split` default to the entry of
    `harness.jsonl.LANGUAGES`, `domain` to "other", `id` to a name made of the question. Raises ValueError naming file,
    line and field for anything malformed, for a repeated id and for a file without tasks; FileNotFoundError.
    """
    return [Task(**row) for _, row, _ in task_rows(path, tuple(Task.__dataclass_fields__), fields or {})]


@dataclass(frozen=True)
class Control:
    """A piece of a prompt that is one added token of the vocabulary, named by its text."""

    text: str


IM_START, IM_END = Control("<|im_start|>"), Control("<|im_end|>")
THINK, END_THINK = Control("<think>"), Control("</think>")
CALL, END_CALL = Control("<tool_call>"), Control("</tool_call>")
RESPONSE, END_RESPONSE = Control("<tool_response>"), Control("</tool_response>")


class Tokenizer:
    """Two encoders of one Hugging Face `tokenizer.json`: one for text, which can never yield a control id, and a table
    of the control ids.

    `control` maps each control token (each *added token* of the file, special or not) to its id. `size` is one more
    than the largest id that has a token: rows of the model's head from there on are padding, and never sampled.
    """

    def __init__(self, directory):
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{directory}: no tokenizer here (tokenizer.json is missing)")
        raw = read_tokenizer(path)
        # Disabling *special* tokens is not enough: <tool_call> and <think> are added tokens but not special ones. So
        # the second tokenizer has no added tokens, nor vocabulary entries of their text.
        self.control = {token["content"]: token["id"] for token in raw["added_tokens"]}
        words = {text: id for text, id in raw["model"]["vocab"].items() if text not in self.control}
        plain = {**raw, "added_tokens": [], "model": {**raw["model"], "vocab": words}}
        try:
            self._full, self._plain = (FastTokenizer.from_str(json.dumps(content)) for content in (raw, plain))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{path}: not a readable tokenizer ({error})") from None
        for piece in (IM_START, IM_END, CALL, END_CALL, RESPONSE, END_RESPONSE):
            if piece.text not in self.control:
                raise ValueError(f"{path}: the added token {piece.text} is missing")
        require_its_ids(path, self.control, self._full)
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
            ids += (self.encode_text(text) if text else []) + [self.id(piece)]
            text = ""
        return ids + (self.encode_text(text) if text else [])

    def id(self, control: Control) -> int:
        """The id of a control token. ValueError if this tokenizer has none of that name."""
        if control.text not in self.control:
            raise ValueError(f"the tokenizer has no token {control.text}")
        return self.control[control.text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, control tokens included."""
        return self._full.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a model directory. FileNotFoundError without tokenizer.json, ValueError if it is broken."""
    return Tokenizer(directory)


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


@dataclass(frozen=True)
class Chat:
    """How a model is talked to; a preset's choice. The default is the bare format that the tiny base was trained on."""

    system: str | None = None  # instructions in the system turn, for tasks that bring none of their own
    tools: tuple[dict, ...] = ()  # JSON schemas of tools, described in the system turn
    think: bool = True  # False: open each assistant turn with Qwen3's empty think block


def encode_prompt(task: Task, tokenizer: Tokenizer, chat: Chat) -> list[int]:
    """The prompt's ids, up to where the assistant begins: system turn, if there is anything to say in it, user turn."""
    pieces, system = [], task.system or chat.system
    if chat.tools:
        instructions = f"{system}\n\n" if system else ""
        schemas = "".join("\n" + json.dumps(schema, ensure_ascii=False) for schema in chat.tools)
        pieces += [IM_START, "system\n" + instructions + TOOLS_INTRO + schemas]
        pieces += [*TOOLS_OUTRO, IM_END, "\n"]
    elif system:
        pieces += [IM_START, f"system\n{system}", IM_END, "\n"]
    pieces += [IM_START, "user\n" + user_message(task), IM_END, "\n"]
    return tokenizer.encode(pieces + _open_assistant(chat.think))


def encode_tool_turn(results: list[str], tokenizer: Tokenizer, think: bool) -> list[int]:
    """What follows the assistant's `<|im_end|>`: one user turn with all the results, and the assistant begins again."""
    pieces = ["\n", IM_START, "user"]
    for result in results:
        pieces += ["\n", RESPONSE, f"\n{result}\n", END_RESPONSE]
    return tokenizer.encode([*pieces, IM_END, "\n", *_open_assistant(think)])


def _open_assistant(think: bool) -> list:
    return [IM_START, "assistant\n"] + ([] if think else [THINK, "\n\n", END_THINK, "\n\n"])
