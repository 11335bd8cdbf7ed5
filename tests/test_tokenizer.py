"""tokenizer.json as strangers leave it, and Qwen3's own, whose ids of prompts and tool turns are its template's."""

import hashlib
import itertools
import json
import os
from pathlib import Path

import pytest
from helpers import REAL, needs_real
from tokenizers import Tokenizer as FastTokenizer

import data
from data import Chat, Task
from harness.jsonl import json_rows
from harness.options import BOXED
from harness.template import render
from tools import SCHEMA, encode_call

PUBLISHED = (Path(__file__).parent / "qwen3_chat_template.jinja").read_text(encoding="utf-8")
QWEN3 = Path(os.environ.get("QWEN3_TOKENIZER") or "unset")  # a directory with the tokenizer.json published with Qwen3
needs_qwen3 = pytest.mark.skipif(
    not (QWEN3 / "tokenizer.json").is_file(), reason="QWEN3_TOKENIZER names no directory with Qwen3's tokenizer.json"
)


@pytest.fixture
def changed(tokenizer_dir, tmp_path):
    """A function that loads the small tokenizer after a change of its JSON."""

    def load(change):
        raw = json.loads((tokenizer_dir / "tokenizer.json").read_text())
        change(raw)
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8-sig")
        return data.load_tokenizer(tmp_path)

    return load


def test_truncation_and_padding_are_ignored(changed, tokenizer):
    """Catches every question cut to 16 ids, because somebody once tokenized with truncation and saved."""

    def limit(raw):
        raw["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "direction": "Right", "stride": 0}
        raw["padding"] = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None}
        raw["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "!"}

    text = "How many books has Cleo, who has 2 books and gets 8 books?"
    assert changed(limit).encode_text(text) == tokenizer.encode_text(text) and len(tokenizer.encode_text(text)) > 4


def add(raw, content, id):
    raw["added_tokens"].append({**raw["added_tokens"][0], "content": content, "id": id})


CLASHES = {
    "the id of a letter": (lambda raw: add(raw, "<|new|>", raw["model"]["vocab"]["a"]), "'<|new|>' has the id", "'a'"),
    "one id twice": (
        lambda raw: add(raw, "<|new|>", next(t["id"] for t in raw["added_tokens"] if t["content"] == "<tool_call>")),
        "'<|new|>' has the id",
        "'<tool_call>'",
    ),
    "a gap": (lambda raw: add(raw, "<|new|>", 900), "'<|new|>' has the id 900", "would be read as"),
    "one token twice": (lambda raw: add(raw, "<tool_call>", 900), "'<tool_call>' has two ids", "900"),
}


@pytest.mark.parametrize("name", CLASHES)
def test_added_tokens_that_clash_are_refused_by_name(name, changed):
    """Catches text that becomes a control id, whatever the second tokenizer is kept from."""
    change, *said = CLASHES[name]
    with pytest.raises(ValueError) as error:
        changed(change)
    assert all(words in str(error.value) for words in ("tokenizer.json: the added token", *said))
    assert "\n" not in str(error.value)


def test_a_sound_tokenizer_with_a_byte_order_mark_is_read(changed, tokenizer):
    """Catches checks that refuse Qwen3's own way: added tokens beside the vocabulary, or in it under the same id."""
    assert changed(lambda raw: None).control == tokenizer.control


# --- Qwen3's own ------------------------------------------------------------------------------------------------------

# SHA-256, first 16 characters, of the ids that the published template, rendered with jinja2, and the tokenizer as
# anybody loads it (tokenizers 0.23.3) give for every tenth row of the file, by language: `published` below makes them.
GOLDEN = {
    "mgsm": {
        "en": "604286c75bdc5f19",
        "es": "36371674a946955c",
        "fr": "fbb7747eace88299",
        "de": "7b45e1f76b750b49",
        "ru": "6ae5ec5311c63a35",
        "zh": "36942272e3aad584",
        "ja": "d44b9ef5c41619a2",
        "th": "b72a3802a3b78045",
        "sw": "a3e8ae7f4ddadba1",
        "bn": "279378f32120794c",
        "te": "37af874a9f9377ca",
    },
    "xcopa": {
        "et": "c7033febd7ea720b",
        "ht": "c20eef4fde032b8c",
        "id": "7fb7a3a23f945ad8",
        "it": "465d0d6a3a722659",
        "qu": "e64b80ff42d9c40a",
        "sw": "2883f95566841195",
        "ta": "4f33a112785ad6ea",
        "th": "cb8be90bd47487e1",
        "tr": "56b2ae8216b85617",
        "vi": "f64a767e9662d245",
        "zh": "ef205b3eb3e895e9",
    },
}


@pytest.fixture(scope="module")
def qwen3():
    return data.load_tokenizer(QWEN3)


def every_tenth(name: str):
    return itertools.islice(json_rows(REAL / f"{name}.jsonl"), 0, None, 10)


def conversation(row: dict) -> tuple[str, str]:
    """The question of a row, and what the tool may have answered."""
    return row["question"], row.get("question_en") or row.get("question_mt_en") or row["question"]


def published(row: dict, official: FastTokenizer) -> list[list[int]]:
    """By the template: the prompt of the preset qwen3-4b, and a conversation with a call and thinking left on."""
    question, translation = conversation(row)
    messages = [{"role": "system", "content": BOXED}, {"role": "user", "content": question}]
    call = {"type": "function", "function": {"name": "translate", "arguments": {}}}
    more = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": translation}]
    texts = [
        render(PUBLISHED, messages, Chat(tools=(SCHEMA,), think=False)),
        render(PUBLISHED, messages[1:] + more, Chat(think=True)),
    ]
    return [official.encode(text, add_special_tokens=False).ids for text in texts]


def ours(row: dict, tokenizer) -> list[list[int]]:
    """The same by `data.py`, as the sampler puts them together."""
    question, translation = conversation(row)
    task = Task("t", "xx", "low", "trained", "math", question, (), "4")
    prompt = data.encode_prompt(task, tokenizer, Chat(BOXED, (SCHEMA,), think=False))
    turns = data.encode_prompt(task, tokenizer, Chat()) + encode_call(tokenizer)
    return [prompt, turns + data.encode_tool_turn([translation], tokenizer, think=True)]


def digest(rows: list[list[list[int]]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@needs_qwen3
@needs_real
@pytest.mark.parametrize("name", ["mgsm", "xcopa"])
def test_ids_of_real_questions_are_those_of_the_published_template(name, qwen3):
    """Catches a join, a blank or a form of Unicode that is tokenized in another way in any of 21 languages."""
    rows = {}
    for _, row in every_tenth(name):
        rows.setdefault(row["lang"], []).append(ours(row, qwen3))
    assert {language: digest(found) for language, found in rows.items()} == GOLDEN[name]


SAMPLES = (
    "¿Cuántas manzanas?\n",
    "రాజు 3",
    "何個ありますか。",
    "ქალაქი?\n\n1. a",
    "e\u0301 \u0e01\u0e33",
    "a\u00a0b",
    "🙂?",
)


@needs_qwen3
@pytest.mark.parametrize("question", SAMPLES, ids=ascii)
def test_ids_are_those_of_the_template_where_text_meets_its_words(question, qwen3):
    """Catches the same without the data: line breaks at the end, composed forms, no-break blanks, emoji."""
    row = {"question": question, "question_en": question[::-1]}
    assert ours(row, qwen3) == published(row, FastTokenizer.from_file(str(QWEN3 / "tokenizer.json")))


@needs_qwen3
def test_the_size_and_the_control_ids_are_those_of_qwen3(qwen3):
    """Catches a table that is off by one, and a head whose padding rows are sampled."""
    assert (qwen3.size, len(qwen3.control)) == (151669, 26)
    assert qwen3.control["<|im_end|>"] == 151645 and qwen3.control["<tool_call>"] == 151657
