"""Ask a policy something: `eval.py --chat`.

    a question, typed or drawn -> how likely a call is -> the call, its result, the answer, what it cost

The probability of calling is read before anything is drawn: it is that of the call token as the first one.
"""

import random
import sys
from collections.abc import Callable, Iterator

import torch

from data import CALL, Task, Tokenizer, encode_prompt
from harness.escape import in_line, on_screen
from harness.options import require
from harness.rows import parts
from harness.terminal import has_colours
from model import Qwen3
from reward import score
from sampler import Rollout, pad, rollout
from tools import Translator

INVITATION = "question (empty: one of the test's; Ctrl-D ends): "


def talk(
    options, model: Qwen3, tokenizer: Tokenizer, tasks: list[Task], translator: Translator, ask: Callable = input
) -> None:
    """Answer --question, or what is typed until the input ends; an empty line stands for one of `tasks`.

    With --mode forced or forbidden that answer stands beside the free one. ValueError for a --language that no task is
    in.
    """
    languages = {task.language: task for task in reversed(tasks)}
    language = options.language or tasks[0].language
    require(language in languages, f"--language {language}: there are {', '.join(sorted(languages))}")
    if not options.language:
        print(f"questions are taken to be in {language}; --language names another")
    for turn, task in enumerate(_questions(options.question, languages[language], tasks, options.seed, ask)):
        print(answer(options, model, tokenizer, task, translator, options.seed + turn))


def _questions(question: str, like: Task, tasks: list[Task], seed: int, ask: Callable) -> Iterator[Task]:
    """The tasks to answer: the one that was given, else one for each line."""
    if question:
        yield typed(question, like)
        return
    drawn = iter(random.Random(seed).sample(tasks, len(tasks)))
    while True:
        try:
            text = ask(INVITATION).strip()
        except EOFError:
            print()
            return
        task = typed(text, like) if text else next(drawn, None)
        if task is not None:
            yield task


def typed(question: str, like: Task) -> Task:
    """A question whose answer nobody knows, in the language of another task."""
    return Task("typed", like.language, like.tier, like.split, "typed", question, (), "", system=like.system)


@torch.no_grad()
def call_probabilities(model: Qwen3, tokenizer: Tokenizer, prompts: list[list[int]], rows: int = 256) -> list[float]:
    """How likely the policy is, at temperature 1, to begin its answer to each prompt with a call, in [0, 1]: exact, one
    forward pass over the prompts, `rows` at a time."""
    found = []
    for first in range(0, len(prompts), rows):
        some = prompts[first : first + rows]
        ends = torch.tensor([len(prompt) - 1 for prompt in some])
        # padding stands behind the prompt, where no token of it can look
        hidden = model(pad(some, model.embed_tokens.weight.device))[torch.arange(len(some)), ends]  # [B, C]
        logits = model.logits(hidden)[:, : tokenizer.size].float()  # [B, V]
        found += logits.softmax(-1)[:, tokenizer.id(CALL)].tolist()
    return found


def answer(options, model: Qwen3, tokenizer: Tokenizer, task: Task, translator: Translator, seed: int) -> str:
    """A question and what becomes of it, as text."""
    prompt = encode_prompt(task, tokenizer, options.chat_format)
    (share,) = call_probabilities(model, tokenizer, [prompt])
    question = on_screen("\n".join((task.question, *task.choices)))
    lines = ["", f"{task.language}: {question}", f"probability of calling: {share:.2f} |{'#' * round(20 * share):20}|"]
    for mode in dict.fromkeys(("free", options.mode)):
        sampling = options.sampling(mode, 0.0 if options.greedy else 1.0)
        generator = torch.Generator().manual_seed(seed)
        (found,) = rollout(model, tokenizer, [task], 1, translator, generator, sampling)
        lines += _told(mode, found, tokenizer, options.answer_format)
    return "\n".join(lines)


def _told(mode: str, found: Rollout, tokenizer: Tokenizer, answer_format: str) -> list[str]:
    """A rollout: its text, its calls, its answer and its cost."""
    drawn, inserted = ("\033[1;32m{}\033[0m", "\033[2m{}\033[0m") if has_colours(sys.stdout) else ("{}", "⟦{}⟧")
    text = "".join(
        (drawn if is_drawn else inserted).format(on_screen(tokenizer.decode(ids)))
        for ids, is_drawn in parts(found.ids, found.sampled)
    )
    lines = [f"{mode}> {text}"]
    for call in found.calls:
        sent = "malformed" if call.text is None else repr(call.text)
        lines.append(f"  call: {sent} -> {call.result!r}, cost {call.cost:.2f}")
    result = score(found, tokenizer, answer_format)
    known = f", {'right' if result.correct else f'wrong: it is {found.task.answer!r}'}" if found.task.answer else ""
    said = "no answer" if result.answer is None else f"answer: {in_line(result.answer)}"
    return [*lines, f"  {said}{known}, cost {result.cost:.2f}"]
