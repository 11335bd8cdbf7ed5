"""Chat templates of model directories: compared with the chat that a policy is trained in, and written beside it.

    directory -> chat_template -> render -> the prompt that a server would make
    directory, chat -> remark -> "", or one line: that prompt is not ours
    checkpoint, chat -> keep -> a template that renders the context of the training

The template published with Qwen3 drops the empty think block of an earlier turn; a rollout has read it, and its cache
keeps it. So a policy trained with the block gets a template of its own: ids are the same in training and behind an
endpoint, tool turns included.
"""

import functools
import json
from pathlib import Path

from data import END_THINK, THINK, Chat, Task, Tokenizer, encode_prompt, encode_tool_turn, user_message
from tools import encode_call

OURS = Path(__file__).parent / "chat_template.jinja"  # Qwen3's, but for the think block
PROBE = Task("probe", "en", "high", "trained", "other", "How many?", ("A) 1", "B) 2"), "1")
EMPTY_THOUGHT = f"{THINK.text}\n\n{END_THINK.text}\n\n"


def chat_template(directory) -> str | None:
    """A directory's template, None if it has none: chat_template.jinja, else the one in tokenizer_config.json."""
    file, config = Path(directory) / "chat_template.jinja", Path(directory) / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8-sig")
    try:
        found = json.loads(config.read_text(encoding="utf-8-sig")).get("chat_template") if config.is_file() else None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config}: not a JSON object ({error})") from None
    if isinstance(found, list):  # of several, by name
        found = next((each.get("template") for each in found if each.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def render(template: str, messages: list[dict], chat: Chat) -> str:
    """The text of a conversation, up to where the assistant begins, as transformers and servers render it. ValueError
    if the template cannot."""
    from jinja2 import TemplateError  # torch brings it

    options = {"add_generation_prompt": True, "enable_thinking": chat.think}
    try:
        return _compiled(template).render(messages=messages, tools=list(chat.tools) or None, **options)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"it cannot be rendered ({str(error).partition(chr(10))[0][:80]})") from None


@functools.cache
def _compiled(template: str):
    """Ready to render, with what transformers lends to a template."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message):
        raise TemplateError(message)

    rules = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    rules.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    rules.globals["raise_exception"] = refuse
    return rules.from_string(template)


def require_a_free_start(directory) -> None:
    """ValueError for a model that was made to think always: its template opens a thought in every assistant turn, which
    a rollout here would begin without."""
    template = chat_template(directory)
    if template is None:
        return
    try:
        opened = [render(template, [{"role": "user", "content": "?"}], Chat(think=think)) for think in (True, False)]
    except ValueError:
        return  # remark() says so
    if all(text.rstrip("\n").endswith(THINK.text) for text in opened):
        raise ValueError(
            f"{directory}: its chat template opens a thought in every turn (a Thinking-2507 model?), which is not "
            "supported: take Qwen3-4B or Qwen3-4B-Instruct-2507"
        )


def remark(directory, tokenizer: Tokenizer, chat: Chat) -> str:
    """One line if the directory's own template renders a prompt or a tool turn that is not ours, else nothing."""
    template = chat_template(directory)
    if template is None:
        return ""
    call = {"type": "function", "function": {"name": "translate", "arguments": {}}}
    messages: list[dict] = [{"role": "system", "content": chat.system}] if chat.system else []
    messages += [{"role": "user", "content": user_message(PROBE)}]
    more: list[dict] = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    more.append({"role": "tool", "content": "How many?"})
    prompt = encode_prompt(PROBE, tokenizer, chat)
    turn = encode_call(tokenizer) + encode_tool_turn(["How many?"], tokenizer, chat.think)
    asked, told = tokenizer.decode(prompt), tokenizer.decode(turn)
    ours = {"prompt": [asked], "tool turn": [asked + told, asked.removesuffix(EMPTY_THOUGHT) + told]}
    try:
        theirs = {"prompt": render(template, messages, chat), "tool turn": render(template, messages + more, chat)}
    except ValueError as error:
        return f"{directory}: its own chat template is not ours: {error}"
    for name, text in theirs.items():
        if text not in ours[name]:
            there, here = _first_difference(text, ours[name][0])
            return f"{directory}: its own chat template renders another {name}: {there!r} where training has {here!r}"
    return ""


def _first_difference(a: str, b: str) -> tuple[str, str]:
    """Thirty characters of each, from the first that differs."""
    i = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[i : i + 30], b[i : i + 30]


def keep(directory: Path, chat: Chat) -> None:
    """Give a saved policy the template of its training: ours with the empty think block, else the one it came with."""
    if chat.think:
        return
    text, config = OURS.read_text(encoding="utf-8"), directory / "tokenizer_config.json"
    (directory / "chat_template.jinja").write_text(text, encoding="utf-8")
    if config.is_file() and "chat_template" in (found := json.loads(config.read_text(encoding="utf-8-sig"))):
        found["chat_template"] = text  # where older versions look
        config.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
