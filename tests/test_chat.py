"""eval.py --chat: what the policy thinks of calling, what it does, and what that costs."""

import re

import pytest
import torch
from helpers import base_directory, call_main, sums

import eval as eval_file
from data import encode_prompt
from eval import EvalOptions
from harness.chat import answer, call_probabilities, talk
from harness.rundir import load_policy
from sampler import rollout
from tiny.languages import LexiconTranslator
from tiny.world import render

MODEL, TOKENIZER = load_policy(base_directory())
TASKS = [render(item, "low-01") for item in sums()[:5]]
OPTIONS = EvalOptions(max_new_tokens=100)
TRANSLATOR = LexiconTranslator(OPTIONS.noise)


def test_the_probability_of_a_call_is_how_often_the_policy_begins_with_one():
    """Catches the probability of another token, or of a later place: 2,000 rollouts agree within four deviations."""
    prompt = encode_prompt(TASKS[0], TOKENIZER, OPTIONS.chat_format)
    (share,) = call_probabilities(MODEL, TOKENIZER, [prompt])
    sampling = EvalOptions(max_new_tokens=1).sampling()
    found = rollout(MODEL, TOKENIZER, TASKS[:1], 2000, TRANSLATOR, torch.Generator().manual_seed(0), sampling)
    began = sum(r.ids[0] == TOKENIZER.control["<tool_call>"] for r in found) / 2000
    assert 0.02 < share < 0.98 and abs(began - share) < 4 * (share * (1 - share) / 2000) ** 0.5


@pytest.mark.parametrize(
    "mode, modes", [("free", ["free"]), ("forced", ["free", "forced"]), ("forbidden", ["free", "forbidden"])]
)
def test_a_forced_or_forbidden_answer_stands_beside_the_free_one(mode, modes):
    """Catches a mode that replaces what the policy would do, and a call that is not shown or not paid."""
    text = answer(EvalOptions(max_new_tokens=100, mode=mode), MODEL, TOKENIZER, TASKS[0], TRANSLATOR, 3)
    assert re.findall(r"^(\w+)> ", text, flags=re.MULTILINE) == modes
    told = dict(zip(modes, re.split(r"^\w+> ", text, flags=re.MULTILINE)[1:], strict=True))
    if mode == "forced":
        assert "  call: " in told["forced"] and "⟦<tool_call>" in told["forced"] and "cost 0.00" not in told["forced"]
    if mode == "forbidden":
        assert "call: " not in told["forbidden"] and told["forbidden"].rstrip().endswith("cost 0.00")
    assert re.search(r"^probability of calling: 0\.\d\d \|#* *\|$", text, flags=re.MULTILINE)


def test_an_empty_line_is_a_drawn_task_and_a_typed_one_has_no_verdict(capsys):
    """Catches a typed question that is called wrong, and the same task drawn twice."""
    lines = iter(["", "Nora bu?", ""])

    def ask(invitation):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    talk(OPTIONS, MODEL, TOKENIZER, TASKS, TRANSLATOR, ask)
    printed = capsys.readouterr().out
    first, second, third = printed.split("\nlow-01: ")[1:]
    assert second.startswith("Nora bu?") and "right" not in second and "wrong" not in second
    questions = {task.question for task in TASKS}
    asked = [part.split("\nprobability")[0] for part in (first, third)]
    assert set(asked) <= questions and asked[0] != asked[1]


def test_the_command_line_answers_a_question_and_stops(capsys):
    """Catches --question that waits for the keyboard."""
    words = ["--chat", "--policy", base_directory(), "--question", "Nora bu?", "--language", "low-02", "--tiers", "low"]
    call_main(eval_file.main, *words)
    printed = capsys.readouterr().out
    assert "low-02: Nora bu?" in printed and printed.count("probability of calling") == 1


@pytest.mark.parametrize(
    "words, says", [(["--language", "de"], "--language de: there are"), (["--tiers", "no"], "--tiers no")]
)
def test_what_cannot_be_asked_is_one_line(capsys, words, says):
    """Catches a language that the translator does not have, found out about with a traceback at the first call."""
    with pytest.raises(SystemExit) as stop:
        call_main(eval_file.main, "--chat", "--policy", base_directory(), "--question", "a", *words)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and says in line
