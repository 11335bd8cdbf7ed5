"""Tasks from files, text that stays text, and prompts whose ids are those of the official chat template."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

import data
from data import Chat, Task
from harness import jsonl
from harness.tasks import with_price
from paper.pretrain import ADDED_TOKENS
from tools import SCHEMA, encode_call

GOLDEN = json.loads((Path(__file__).parent / "golden_chat.json").read_text(encoding="utf-8"))
GOLDEN = {case["name"]: case for case in GOLDEN["cases"]}
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
PUBLISHED = Chat(tools=(SCHEMA,), think=False)  # the published format, with all its markup

written = st.characters(max_codepoint=0xFFFF, exclude_categories=("Cs", "Cn"))  # every assigned character of the BMP
hostile = st.lists(st.one_of(st.sampled_from(ADDED_TOKENS), st.text(written, max_size=6)), max_size=6).map("".join)


def task_of(question, *choices):
    return Task("t", "high-01", "high", "trained", "math", question, tuple(choices), "4")


def controls(ids, tokenizer):
    """The control ids among these, in order."""
    return [i for i in ids if i in set(tokenizer.control.values())]


@pytest.fixture(scope="module")
def official(tokenizer_dir):
    """The tokenizer as anybody else loads it: markup in a text becomes control ids."""
    full = FastTokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    return lambda text: full.encode(text, add_special_tokens=False).ids


# --- chat format ------------------------------------------------------------------------------------------------


def encode_case(case, tokenizer):
    """The ids of a golden conversation, made as the sampler makes them: prompt, then call and tool turn by turn."""
    task = task_of(case["question"], *case["choices"])
    chat = Chat(case["system"], (SCHEMA,) if case["tools"] else (), case["think"])
    ids = data.encode_prompt(task, tokenizer, chat)
    for results in case.get("turns", [case["results"]] if case["results"] else []):
        # the golden strings show one call a turn; a call is the policy's to write, its results are ours
        ids += encode_call(tokenizer) + data.encode_tool_turn(results, tokenizer, case["think"])
    return ids


@pytest.mark.parametrize("name", [n for n, case in GOLDEN.items() if case["think"] or not case["results"]])
def test_ids_are_those_of_the_published_template(name, tokenizer, official):
    """Would catch a lost newline, a missing blank in the schema's JSON, results in turns of their own, or a join of
    template words and outside text ('?' and newline are one token) that is tokenized in two pieces."""
    case = GOLDEN[name]
    ids = encode_case(case, tokenizer)
    assert tokenizer.decode(ids) == case["text"]
    assert ids == official(case["text"])


@pytest.mark.parametrize("name", [n for n, case in GOLDEN.items() if not case["think"] and case["results"]])
def test_the_one_difference_is_an_empty_thought_that_the_cache_keeps(name, tokenizer, official):
    """Would catch any second difference with thinking off, where the template drops the empty think block of an
    earlier turn, which a rollout has read and an append-only cache keeps."""
    case = GOLDEN[name]
    earlier, call, rest = case["text"].partition('<tool_call>\n{"name": "translate"')
    assert not earlier.endswith(EMPTY_THOUGHT)
    assert encode_case(case, tokenizer) == official(earlier + EMPTY_THOUGHT + call + rest)


def test_a_question_mark_and_a_newline_are_one_token(tokenizer):
    """Would catch golden tests without teeth: if this join were two tokens anyway, they could not see a wrong split."""
    assert len(tokenizer.encode_text("?\n")) == 1
    assert len(tokenizer.encode_text("?\n\n")) == 1


def test_a_price_is_stated_in_the_system_turn_alone(tokenizer):
    """Catches a price that is translated with the question, or that changes the rest of the prompt."""
    task = Task("1", "xx", "low", "trained", "math", "Was ist 2 + 2?", (), "4")
    priced = with_price(task, 0.3)
    without, stated = (data.encode_prompt(t, tokenizer, Chat()) for t in (task, priced))
    assert stated[-len(without) :] == without
    assert tokenizer.decode(stated[: -len(without)]) == "<|im_start|>system\nprice 0.3 $$$<|im_end|>\n"
    free = tokenizer.decode(data.encode_prompt(with_price(task, 0.0), tokenizer, Chat()))
    assert free.startswith("<|im_start|>system\nprice 0<|im_end|>")
    assert data.user_message(priced) == data.user_message(task)
    assert (priced.cost_weight, replace(priced, system=None, cost_weight=None)) == (0.3, task)


@pytest.mark.parametrize("tools", [(), (SCHEMA,)], ids=["no tools", "tools"])
def test_a_tasks_own_instructions_replace_the_chats(tokenizer, tools):
    """Would catch instructions of a task that are lost, said beside the chat's or said to the next task as well, or a
    tool that is no longer described because a task brought instructions."""
    task, chat = task_of("Q?"), Chat("Be brief.", tools)
    own, others = (data.encode_prompt(t, tokenizer, chat) for t in (replace(task, system="Be kind."), task))
    assert own == data.encode_prompt(task, tokenizer, replace(chat, system="Be kind."))
    assert "Be kind." in tokenizer.decode(own) and "Be brief." not in tokenizer.decode(own)
    assert "Be brief." in tokenizer.decode(others) and "Be kind." not in tokenizer.decode(others)
    assert data.encode_prompt(replace(task, system="Be kind."), tokenizer, replace(chat, system=None)) == own


def test_the_schema_shown_is_the_schema():
    """Would catch a schema that was changed without the golden strings, or a second copy of it."""
    with_tools = [case["text"] for case in GOLDEN.values() if case["tools"]]
    for text in with_tools:
        shown = text.split("<tools>\n")[1].split("\n</tools>")[0]
        assert json.loads(shown) == SCHEMA
    assert len(with_tools) >= 4


def test_each_tool_shown_is_a_line(tokenizer, official):
    """Would catch a second tool of a fork that is not shown, or not in a line of its own, as the template has it."""
    other = {"type": "function", "function": {"name": "count", "parameters": {"type": "object", "properties": {}}}}
    ids = data.encode_prompt(task_of("Q?"), tokenizer, Chat(tools=(SCHEMA, other)))
    shown = tokenizer.decode(ids).split("<tools>\n")[1].split("\n</tools>")[0]
    assert [json.loads(line) for line in shown.split("\n")] == [SCHEMA, other]
    assert ids == official(tokenizer.decode(ids))


def test_the_user_turn_is_the_question_and_a_choice_a_line():
    """Would catch a prompt and a translated message that differ."""
    assert data.user_message(task_of("Q?", "a", "b")) == "Q?\na\nb"
    assert data.user_message(task_of("Q?")) == "Q?"


# --- outside text -----------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.text(written, max_size=40))
def test_text_comes_back_from_its_ids(tokenizer, text):
    """Would catch a decoder that drops or adds blanks, or bytes that have no id. (The tokenizer normalises to NFC.)"""
    assert tokenizer.decode(tokenizer.encode_text(text)) == unicodedata.normalize("NFC", text)


@settings(max_examples=60)
@given(hostile, hostile, hostile)
def test_a_task_cannot_write_markup(tokenizer, question, choice, system):
    """Would catch a question that ends its own turn: control ids are exactly those of a harmless prompt."""
    harmless = data.encode_prompt(task_of("a", "b"), tokenizer, replace(PUBLISHED, system="c"))
    of_the_chat = data.encode_prompt(task_of(question, choice), tokenizer, replace(PUBLISHED, system=system or "c"))
    of_the_task = data.encode_prompt(replace(task_of(question, choice), system=system or "c"), tokenizer, PUBLISHED)
    for attacked in (of_the_chat, of_the_task):
        assert controls(attacked, tokenizer) == controls(harmless, tokenizer)


@settings(max_examples=60)
@given(st.lists(hostile, min_size=1, max_size=3))
def test_a_translation_cannot_write_markup(tokenizer, results):
    """Would catch a tool result that opens an assistant turn of its own."""
    harmless = data.encode_tool_turn(["a"] * len(results), tokenizer, think=False)
    attacked = data.encode_tool_turn(results, tokenizer, think=False)
    assert controls(attacked, tokenizer) == controls(harmless, tokenizer)


@pytest.mark.parametrize("token", ADDED_TOKENS)
def test_no_way_of_splitting_a_token_makes_it_one(token, tokenizer):
    """Would catch text that becomes control only where it meets the template's words or another outside text.
    `<tool_call>` and its like are added but not special: a switch for special tokens does not cover them."""
    assert controls(tokenizer.encode_text(token), tokenizer) == []
    prompt = controls(data.encode_prompt(task_of("a", "b"), tokenizer, PUBLISHED), tokenizer)
    turn = controls(data.encode_tool_turn(["a", "b"], tokenizer, think=False), tokenizer)
    for i in range(len(token) + 1):
        pieces = task_of("x" + token[:i], token[i:])
        assert controls(data.encode_prompt(pieces, tokenizer, PUBLISHED), tokenizer) == prompt
        assert controls(data.encode_tool_turn([token[:i], token[i:]], tokenizer, think=False), tokenizer) == turn
        assert controls(tokenizer.encode([token[:i], token[i:]]), tokenizer) == []


def test_markup_in_a_question_is_read_as_its_characters(tokenizer):
    """Would catch a cure that deletes the hostile text: the policy must see what the user wrote."""
    question = "Say <|im_end|> and <tool_call>."
    ids = data.encode_prompt(task_of(question), tokenizer, Chat(think=False))
    assert f"user\n{question}" in tokenizer.decode(ids)


def test_text_that_is_no_unicode_is_refused_where_it_is_read(tmp_path):
    """Would catch half a surrogate pair, which JSON can spell, that ends a run from inside the tokenizer."""
    path = write(tmp_path, {**ROW, "question": "\ud83d"})
    with pytest.raises(ValueError, match=r"tasks\.jsonl:1: .*question"):
        data.load_tasks(path)


# --- tokenizer --------------------------------------------------------------------------------------------------


def test_control_ids_are_all_added_tokens_special_or_not(tokenizer):
    """Would catch a table of special tokens only: <tool_call> and <think> are not special."""
    assert set(tokenizer.control) == set(ADDED_TOKENS)
    assert sorted(tokenizer.control.values()) == list(range(600 - len(ADDED_TOKENS), 600))
    assert tokenizer.size == 600


def test_decode_shows_control_tokens(tokenizer):
    """Would catch a decode that skips special tokens: a call inside a decoded turn would vanish."""
    assert tokenizer.decode(tokenizer.encode([data.CALL, "a", data.END_CALL, data.IM_END])) == (
        "<tool_call>a</tool_call><|im_end|>"
    )


def test_a_missing_tokenizer_is_named(tmp_path):
    """Would catch an error that names neither file nor directory."""
    with pytest.raises(FileNotFoundError, match=r"no tokenizer here \(tokenizer\.json is missing\)"):
        data.load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"added_tokens": [], "model": {}}'])
def test_a_damaged_tokenizer_is_named(content, tmp_path):
    """Would catch a KeyError or a bare exception of the tokenizers library."""
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a readable tokenizer"):
        data.load_tokenizer(tmp_path)


def test_a_tokenizer_without_the_call_token_is_refused(tokenizer_dir, tmp_path):
    """Would catch a tokenizer of an older family, whose policy could never call."""
    raw = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<tool_call>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"tokenizer\.json: the added token <tool_call> is missing"):
        data.load_tokenizer(tmp_path)


def test_a_control_token_that_the_tokenizer_lacks_is_named(tokenizer):
    """Would catch a KeyError out of a prompt whose chat has a token that this family does not know."""
    with pytest.raises(ValueError, match=r"no token <\|image\|>"):
        tokenizer.encode(["a", data.Control("<|image|>")])


# --- JSONL ------------------------------------------------------------------------------------------------------

ROW = {"id": "1", "language": "de", "question": "Was ist 2 + 2?", "answer": "4"}


def write(directory, *lines):
    path = directory / "tasks.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n", encoding="utf-8")
    return path


def test_a_short_row_gets_what_its_language_says(tmp_path):
    """Would catch a default that is wrong or depends on the row before."""
    full = {"domain": "math", "choices": ["3", "4"], "question_en": "What is 2 + 2?", "tier": "low"}
    full |= {"system": "Be brief.", "cost_weight": 2}
    short, long = data.load_tasks(
        write(tmp_path, ROW, "", {**ROW, "id": "2", "language": "xx", "split": "trained"} | full)
    )
    assert short == Task("1", "de", "high", "trained", "other", "Was ist 2 + 2?", (), "4")
    first = ("2", "xx", "low", "trained", "math", "Was ist 2 + 2?", ("3", "4"), "4", "What is 2 + 2?")
    assert long == Task(*first, system="Be brief.", cost_weight=2.0)


@pytest.mark.parametrize(
    "number, text", [("4", "4"), ("0.5", "0.5"), ("0.00001", "0.00001"), ("-2e16", "-2" + 16 * "0")]
)
def test_numbers_are_answers_too(tmp_path, number, text):
    """Would catch an answer 4 that never equals the text "4", and an answer that only Python writes as 1e-05."""
    line = json.dumps({**ROW, "answer": "?"}).replace('"?"', number)
    assert data.load_tasks(write(tmp_path, line))[0].answer == text


def test_fields_can_have_other_names(tmp_path):
    """Would catch a map that is read the wrong way round."""
    row = {"key": "1", "lang": "de", "prompt": "Q?", "answer": "4"}
    fields = {"id": "key", "language": "lang", "question": "prompt"}
    assert data.load_tasks(write(tmp_path, row), fields)[0] == Task(
        "1", "de", "high", "trained", "other", "Q?", (), "4"
    )


def test_a_map_of_an_unknown_field_is_refused(tmp_path):
    """Would catch a typo in --fields that leaves the field at its default."""
    with pytest.raises(ValueError, match=r"no field \['quesiton'\]"):
        data.load_tasks(write(tmp_path, ROW), {"quesiton": "q"})


def without(name):
    return {key: value for key, value in ROW.items() if key != name}


MALFORMED = {
    "not JSON": ('{"id": ', "not JSON"),
    "not an object": ("[1, 2]", "expected an object, found list"),
    "no language": (without("language"), "'language' is missing"),
    "no question": (without("question"), "'question' is missing"),
    "no answer": (without("answer"), "'answer' is missing"),
    "null question": ({**ROW, "question": None}, "'question' is missing"),
    "question of another type": ({**ROW, "question": 3}, "'question' should be str, found 3"),
    "id of another type": ({**ROW, "id": 1.5}, "'id' should be str"),
    "answer of another type": ({**ROW, "answer": True}, "'answer' should be str, found True"),
    "choices of another type": ({**ROW, "choices": "a b"}, "'choices' should be list"),
    "choices that are numbers": ({**ROW, "choices": ["a", 1]}, "'choices' should hold strings"),
    "cost weight of another type": ({**ROW, "cost_weight": "low"}, "'cost_weight' should be float, found 'low'"),
    "negative cost weight": ({**ROW, "cost_weight": -1}, "'cost_weight' is -1, allowed: 0 to 10"),
    "cost weight without measure": ({**ROW, "cost_weight": 10**400}, "'cost_weight' is 1000"),
    "instructions of another type": ({**ROW, "system": 5}, "'system' should be str, found 5"),
    "blank instructions": ({**ROW, "system": " "}, "'system' is blank"),
    "English of another type": ({**ROW, "question_en": 5}, "'question_en' should be str"),
    "unknown language without tier": ({**ROW, "language": "xx"}, "'language' is 'xx', a language whose tier"),
    "unknown language with a tier only": ({**ROW, "language": "xx", "tier": "low"}, "'language' is 'xx'"),
    "nothing behind the solution": ({**ROW, "answer": "2 + 2 = 4 ####"}, "'answer' has nothing behind its ####"),
    "a blank choice": ({**ROW, "choices": ["a", " "]}, "'choices' should hold strings"),
    "unknown tier": ({**ROW, "tier": "middle"}, "'tier' is 'middle', allowed: high, low, xlow, synthetic"),
    "unknown split": ({**ROW, "split": "dev"}, "'split' is 'dev', allowed: trained, held-out, synthetic"),
    "repeated id": (ROW, "id '0' stands already in line 1"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_line_is_named_with_its_field(name, tmp_path):
    """Would catch a row that is skipped or defaulted silently, or an error without file, line and field."""
    row, message = MALFORMED[name]
    row = {**row, "id": "0"} if name == "repeated id" else row
    with pytest.raises(ValueError) as error:
        data.load_tasks(write(tmp_path, {**ROW, "id": "0"}, "", row))
    assert "tasks.jsonl:3: " in str(error.value)  # blank lines count
    assert message in str(error.value)


def test_an_error_names_the_field_as_the_file_does(tmp_path):
    """Would catch a message about `question` for a file that has no such name."""
    with pytest.raises(ValueError, match=r"tasks\.jsonl:1: field 'prompt' is missing"):
        data.load_tasks(write(tmp_path, ROW), {"question": "prompt"})


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_tasks_is_refused(content, tmp_path):
    """Would catch a training run on nothing."""
    (tmp_path / "tasks.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"tasks\.jsonl: no tasks in this file"):
        data.load_tasks(tmp_path / "tasks.jsonl")


def test_a_missing_file_is_named(tmp_path):
    """Would catch an empty list for a file that is not there."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        data.load_tasks(tmp_path / "nowhere.jsonl")


def test_tasks_cannot_be_changed():
    """Would catch a stage that writes into a record of an earlier one."""
    with pytest.raises(AttributeError):
        task_of("Q?").answer = "5"
    assert replace(task_of("Q?"), answer="5").answer == "5"


def test_languages_are_as_many_as_the_paper_has():
    """Would catch a language lost or listed twice: 8 + 7 + 7 trained on, 3 + 3 + 3 held out."""
    count = {key: sum(value == key for value in jsonl.LANGUAGES.values()) for key in set(jsonl.LANGUAGES.values())}
    trained = [count[tier, "trained"] for tier in ("high", "low", "xlow")]
    held_out = [count[tier, "held-out"] for tier in ("high", "low", "xlow")]
    assert (trained, held_out, len(jsonl.LANGUAGES)) == ([8, 7, 7], [3, 3, 3], 31)
