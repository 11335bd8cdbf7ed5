"""reward.py: what counts as the answer of a rollout, and what it scores. When it is right: test_answers.py."""

import math
import sys

import pytest
from helpers import random_directory
from hypothesis import given
from hypothesis import strategies as st

from data import CALL, END_THINK, IM_END, THINK, Control, Task, encode_tool_turn, load_tokenizer
from harness.options import Options
from reward import FORMATS, extract, score
from sampler import Rollout
from tools import Call, encode_call

TOKENIZER = load_tokenizer(random_directory())
TASK = Task("t", "de", "high", "trained", "math", "Wie viele?", (), "18")


def rollout(*pieces, answer="18", choices=(), stop="end", calls=()):
    """A rollout whose policy drew `pieces` (strings and `Control`); a list of ids among them was inserted."""
    ids, sampled = [], []
    for piece in pieces:
        part = piece if isinstance(piece, list) else TOKENIZER.encode([piece])
        ids += part
        sampled += [not isinstance(piece, list)] * len(part)
    task = Task(**{**vars(TASK), "answer": answer, "choices": choices})
    return Rollout(task, (1,), tuple(ids), tuple(sampled), (0.0,) * len(ids), tuple(calls), stop)


def call(cost, error=None):
    return Call("text", "result", cost, error, 0.0)


def tool_turn(result):
    return encode_tool_turn([result], TOKENIZER, think=True)


# --- extraction -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, expected", [("18", "18"), (" a b \n", "a b"), ("", None), (" \n", None)])
def test_the_plain_answer_is_the_whole_turn(text, expected):
    """Catches an empty turn that counts as an answer."""
    assert extract(text, "plain") == expected


@given(st.text() | st.text(alphabet="\\boxed{} $%,.18"))
def test_extraction_never_raises(text):
    """Catches malformed braces that raise out of the scorer."""
    for kind in FORMATS:
        found = extract(text, kind)
        assert found is None or (found == found.strip() and found in text)


def test_an_unknown_kind_of_answer_is_an_error():
    """Catches a misspelt kind that falls through to one of the two."""
    with pytest.raises(ValueError, match="'box'.*plain, boxed, math"):
        extract("18", "box")


# --- scores -----------------------------------------------------------------------------------------------------


def test_a_right_answer_scores():
    """Catches an end token that is left in the answer."""
    result = score(rollout("18", IM_END), TOKENIZER)
    assert (result.correct, result.answer, result.format_ok, result.cost, result.used_tool) == (1, "18", True, 0, False)


def test_the_choices_of_the_task_decide():
    """Catches a scorer that does not hand on the choices: a right label would be wrong, a label without one right."""
    choices = ("A) 17", "B) 18")
    found = [score(rollout(text, IM_END, choices=choices), TOKENIZER) for text in ("18", "B", "A", "C")]
    assert [result.correct for result in found] == [1, 1, 0, 0]
    assert score(rollout("B", IM_END), TOKENIZER).correct == 0


def test_mathematics_is_asked_for_only_where_it_is_wanted():
    """Catches a format that is parsed and not used, and a plain run that needs the optional package."""
    pytest.importorskip("math_verify")
    found = [score(rollout("\\boxed{2 \\cdot 3^2}", IM_END), TOKENIZER, kind) for kind in ("boxed", "math")]
    assert [result.correct for result in found] == [0, 1]
    assert score(rollout("2 + 16", IM_END), TOKENIZER, "math").format_ok is False
    wrong = score(rollout("\\boxed{2 + 3^2}", IM_END), TOKENIZER, "math")
    assert (wrong.correct, wrong.answer) == (0, "2 + 3^2")


def test_mathematics_without_its_package_is_an_error_of_one_line(monkeypatch):
    """Catches a run that dies in its first step, or marks all answers wrong, since a package is missing."""
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.setattr("harness.options.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--answer-format math.*pip install math-verify"):
        Options(answer_format="math").check()
    with pytest.raises(ModuleNotFoundError, match="math_verify"):
        score(rollout("\\boxed{19}", IM_END), TOKENIZER, "math")
    Options(answer_format="boxed").check()


def test_a_wrong_answer_is_answered():
    """Catches wrong answers that are counted as unanswered."""
    result = score(rollout("19", IM_END), TOKENIZER)
    assert (result.correct, result.answer, result.format_ok) == (0, "19", True)


def test_the_reward_is_the_verdict_before_any_charge():
    """Catches a reward that is charged for its calls twice, here and in gspo.py, or that a wrong answer gets too."""
    right, wrong = (score(rollout(answer, IM_END, calls=[call(1.0)]), TOKENIZER) for answer in ("18", "19"))
    assert (right.correct, right.reward) == (1, 1.0)
    assert (wrong.correct, wrong.reward) == (0, 0.0)


@pytest.mark.parametrize("stop", ["length", "tool_limit"])
def test_a_rollout_that_did_not_end_by_itself_is_unanswered(stop):
    """Catches a half-written number, cut by the budget, that happens to be right."""
    result = score(rollout("18", stop=stop), TOKENIZER)
    assert (result.correct, result.answer, result.format_ok) == (0, None, False)


def test_an_unboxed_answer_is_wrong_where_a_box_is_asked_for():
    """Catches a fallback to the plain answer, under which nobody would learn the format."""
    assert score(rollout("18", IM_END), TOKENIZER, "boxed").format_ok is False
    assert score(rollout("18", IM_END), TOKENIZER, "boxed").correct == 0
    assert score(rollout("It is \\boxed{18}", IM_END), TOKENIZER, "boxed").correct == 1


def test_an_empty_turn_is_unanswered():
    """Catches an empty answer that equals an empty or a blank gold answer."""
    result = score(rollout(IM_END, answer=" "), TOKENIZER)
    assert (result.correct, result.format_ok) == (0, False)


def test_only_the_turn_after_the_last_tool_result_counts():
    """Catches an answer that is read from the tool's result or from a turn that called."""
    called = encode_call(TOKENIZER)
    right = rollout("\\boxed{1}", Control("<tool_call>"), called[1:], tool_turn("\\boxed{2}"), "\\boxed{18}", IM_END)
    assert score(right, TOKENIZER, "boxed").answer == "18"
    silent = rollout("\\boxed{18}", called, tool_turn("\\boxed{18}"), "no idea", IM_END)
    assert score(silent, TOKENIZER, "boxed").answer is None
    forced = rollout(called, tool_turn("how many?"), "18", IM_END, calls=[call(1.0)])
    assert score(forced, TOKENIZER).correct == 1


def test_what_was_thought_is_not_the_answer():
    """Catches a thought that joins the answer, or a box in it that counts."""
    assert score(rollout(THINK, "\n17?\n", END_THINK, "\n\n18", IM_END), TOKENIZER).answer == "18"
    thought = rollout(THINK, "\\boxed{18}", END_THINK, "no idea", IM_END)
    assert score(thought, TOKENIZER, "boxed").format_ok is False


def test_a_thought_that_never_ends_holds_no_answer():
    """Catches a box inside an unclosed thought that counts as the answer."""
    assert score(rollout(THINK, "\\boxed{18}", IM_END), TOKENIZER, "boxed").answer is None


@pytest.mark.parametrize("error", [None, "malformed", "limit", "engine"])
def test_every_attempted_call_counts_as_tool_use(error):
    """Catches malformed or failed calls that pass as tool-free rollouts, and so as evidence of confidence."""
    assert score(rollout("18", IM_END, calls=[call(0.5, error)]), TOKENIZER).used_tool is True


def test_the_cost_is_the_sum_over_all_calls():
    """Catches a cost of the first or the last call only; a wrong answer costs too."""
    result = score(rollout("19", IM_END, calls=[call(1.25), call(0.5, "malformed"), call(0.0, "engine")]), TOKENIZER)
    assert (result.cost, result.correct) == (1.75, 0)


def test_the_cost_does_not_depend_on_the_order_of_the_calls():
    """Catches a last bit by which two equal rewards of a group differ: it would become an advantage of size 1."""
    costs = [0.1, 0.2, 0.3]
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    one, other = (
        score(rollout("18", IM_END, calls=[call(c) for c in order]), TOKENIZER) for order in (costs, costs[::-1])
    )
    assert one.cost == other.cost
    assert math.isclose(one.cost, 0.6)


@given(st.lists(st.integers(0, TOKENIZER.size - 1), min_size=1, max_size=30), st.sampled_from(["plain", "boxed"]))
def test_no_sequence_of_ids_makes_the_scorer_raise(ids, kind):
    """Catches a random policy that kills training by half a character or a control token in an odd place."""
    end = TOKENIZER.id(IM_END)
    row = Rollout(TASK, (1,), (*ids, end), (True,) * (len(ids) + 1), (0.0,) * (len(ids) + 1), (), "end")
    result = score(row, TOKENIZER, kind)
    assert result.correct in (0, 1) and result.format_ok == (result.answer is not None)


def test_control_tokens_within_an_answer_do_not_verify():
    """Catches a decoder that drops control tokens, so that "<tool_call>18" is right."""
    assert score(rollout(CALL, "18", IM_END), TOKENIZER).correct == 0
    assert score(rollout("18", Control("<|im_start|>"), IM_END), TOKENIZER).correct == 0
