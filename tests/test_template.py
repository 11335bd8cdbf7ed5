"""Chat templates of model directories: what differs from the training is noticed, what is saved renders it exactly."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import random_directory

import data
from data import CALL, END_CALL, IM_END, Chat, Task, load_tokenizer
from harness import template
from harness.options import BOXED
from harness.rundir import load_policy
from tools import SCHEMA

PUBLISHED = (Path(__file__).parent / "qwen3_chat_template.jinja").read_text(encoding="utf-8")
BLOCK = "{%- if enable_thinking is defined"
THINKING = (
    PUBLISHED[: PUBLISHED.rindex("{{- '<|im_start|>assistant")]
    + r"{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)
INSTRUCT = PUBLISHED[: PUBLISHED.rindex(BLOCK)] + "{%- endif %}"  # as Qwen3-4B-Instruct-2507: without any thinking
CHATS = [Chat(), Chat(think=False), Chat("Be brief.", (SCHEMA,)), Chat(BOXED, (SCHEMA,), think=False)]


@pytest.fixture
def directory(tmp_path):
    """A model directory that a test may change."""
    return shutil.copytree(random_directory(), tmp_path / "model")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(random_directory())


def with_template(directory: Path, text: str) -> Path:
    (directory / "chat_template.jinja").write_text(text, encoding="utf-8")
    return directory


@pytest.mark.parametrize("chat", CHATS, ids=str)
def test_nothing_is_said_of_the_published_template(directory, tokenizer, chat):
    """Catches a warning in every run, which nobody would read; a directory without a template has none either."""
    assert template.remark(directory, tokenizer, chat) == ""
    assert template.remark(with_template(directory, PUBLISHED), tokenizer, chat) == ""


OTHERS = {
    "another opening": (PUBLISHED.replace("assistant\\n'", "assistant\\n\\n'"), "prompt"),
    "a system turn of its own": ("<|im_start|>system\nYou are Qwen.<|im_end|>\n" + PUBLISHED, "prompt"),
    "another name for results": (PUBLISHED.replace("tool_response>", "result>"), "tool turn"),
    "no think block": (INSTRUCT, "prompt"),
    "broken": (PUBLISHED + "{% if %}", "cannot be rendered"),
    "a refusal": ("{{ raise_exception('no system') }}", "cannot be rendered (no system)"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_template_that_renders_something_else_is_noticed_in_one_line(name, directory, tokenizer):
    """Catches a policy that is trained on prompts which no server will make."""
    text, said = OTHERS[name]
    line = template.remark(with_template(directory, text), tokenizer, CHATS[-1])
    assert line.startswith(f"{directory}: its own chat template") and said in line and "\n" not in line


def test_the_template_is_found_where_either_version_of_transformers_keeps_it(directory):
    """Catches a check that looks into one of two places, or at the wrong one of several templates."""
    config = directory / "tokenizer_config.json"
    assert template.chat_template(directory) is None
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    for found, text in ((PUBLISHED, PUBLISHED), (several, "b"), (None, None)):
        config.write_text(json.dumps({"chat_template": found}), encoding="utf-8-sig")
        assert template.chat_template(directory) == text
    config.write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not a JSON object"):
        template.chat_template(directory)
    assert template.chat_template(with_template(directory, "c")) == "c"


def test_a_model_that_always_thinks_is_refused(directory):
    """Catches Thinking-2507, whose turns begin within a thought: here its answers would be read as thoughts, or not at
    all. Its template is Qwen3's with another end."""
    with pytest.raises(ValueError) as error:
        load_policy(with_template(directory, THINKING))
    assert "opens a thought in every turn" in str(error.value) and "\n" not in str(error.value)
    for text in (PUBLISHED, INSTRUCT, "{% if %}"):
        load_policy(with_template(directory, text))


# --- what is saved ----------------------------------------------------------------------------------------------------


def test_a_policy_that_thinks_keeps_the_template_it_came_with(directory):
    """Catches a template that is replaced where nothing differs."""
    template.keep(directory, Chat())
    assert template.chat_template(directory) is None
    template.keep(with_template(directory, PUBLISHED), Chat(tools=(SCHEMA,)))
    assert template.chat_template(directory) == PUBLISHED


def test_the_saved_template_stands_in_both_places(directory):
    """Catches an old version of a server that still finds the published one."""
    config = directory / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": PUBLISHED, "eos_token": "<|im_end|>"}))
    template.keep(directory, Chat(think=False))
    ours = template.chat_template(directory)
    assert ours != PUBLISHED and json.loads(config.read_text()) == {"chat_template": ours, "eos_token": "<|im_end|>"}


CALLS = [[CALL, '\n{"name": "translate", "arguments": {}}\n', END_CALL]]
PASSAGES = [["I see.\n", CALL, '\n{"name": "translate", "arguments": {"text": "né à 3h"}}\n', END_CALL]]


@pytest.mark.parametrize("turns", [CALLS, PASSAGES, CALLS + PASSAGES], ids=["a call", "a passage", "two turns"])
@pytest.mark.parametrize("system", [None, BOXED])
def test_the_saved_template_renders_the_context_of_the_training(directory, tokenizer, turns, system):
    """Catches the four ids of the empty think block that the published template drops from each earlier turn: 2,300 of
    2,300 tool turns differed when a policy was served."""
    template.keep(directory, Chat(think=False))
    chat = Chat(system, (SCHEMA,), think=False)
    task = Task("t", "fr", "high", "trained", "math", "Combien ?\n\nDis-le.", ("A) un", "B) deux"), "2")
    trained = data.encode_prompt(task, tokenizer, chat)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": data.user_message(task)})
    for turn in turns:
        trained += tokenizer.encode([*turn, IM_END]) + data.encode_tool_turn(["How many?"], tokenizer, think=False)
        said, function = "" if turn[0] == CALL else turn[0], json.loads(turn[-2])
        messages.append({"role": "assistant", "content": said, "tool_calls": [{"function": function}]})
        messages.append({"role": "tool", "content": "How many?"})
    text = template.render(template.chat_template(directory), messages, chat)
    assert text == tokenizer.decode(trained)
    assert text != template.render(PUBLISHED, messages, chat)


def test_the_template_takes_what_an_endpoint_sends(directory, tokenizer):
    """Catches arguments as text, content that is null, and two calls of one turn, as OpenAI's protocol has them."""
    template.keep(directory, Chat(think=False))
    calls = [{"type": "function", "function": {"name": "translate", "arguments": "{}"}}] * 2
    messages = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    messages += [{"role": "tool", "content": "A?"}] * 2
    task = Task("t", "fr", "high", "trained", "math", "Q?", (), "2")
    one = [CALL, '\n{"name": "translate", "arguments": {}}\n', END_CALL]
    trained = data.encode_prompt(task, tokenizer, Chat(think=False)) + tokenizer.encode([*one, "\n", *one, IM_END])
    trained += data.encode_tool_turn(["A?", "A?"], tokenizer, think=False)
    assert template.render(template.chat_template(directory), messages, Chat()) == tokenizer.decode(trained)
