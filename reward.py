"""[5] From a rollout to a score: extract the answer, verify it, add up what the tools cost.

    Rollout -> final turn -> extract -> verify -> Score

Answers are language-independent or English by construction, so one verifier serves every language. The parts of a
score are kept apart: the gate needs correctness without the price, the logs need both.

Left out: partial credit, format rewards, judges.
"""

import math
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

from data import CALL, END_THINK, THINK, Tokenizer
from sampler import Rollout


@dataclass(frozen=True)
class Score:
    """What a rollout achieved, in parts."""

    correct: int  # verified: 1 or 0
    reward: float  # what counts before any charge: `correct`, unless a fork gives partial credit
    answer: str | None  # as extracted; None if there was none to extract
    format_ok: bool  # the rollout ended by itself, with an answer in the form asked for
    cost: float  # of all its calls; 1 = one call on a mean training question
    used_tool: bool  # ended a turn that holds a call, malformed or failed ones included; not: was cut off within one


def score(rollout: Rollout, tokenizer: Tokenizer, answer_format: str = "plain") -> Score:
    """The score of a rollout; `answer_format`: "plain" (the whole final turn) or "boxed" (the last \\boxed{} in it)."""
    found = extract(final_turn(rollout, tokenizer), answer_format) if rollout.stop == "end" else None
    correct = int(found is not None and verify(found, rollout.task.answer))
    return Score(
        correct=correct,
        reward=float(correct),
        answer=found,
        format_ok=found is not None,
        cost=math.fsum(call.cost for call in rollout.calls),  # exact: no last bit by the order of the calls
        used_tool=bool(rollout.calls),
    )


def final_turn(rollout: Rollout, tokenizer: Tokenizer) -> str:
    """The text after the last inserted token, without thoughts and without the end token, which must be there."""
    last_inserted = max((i for i, sampled in enumerate(rollout.sampled) if not sampled), default=-1)
    ids = list(rollout.ids[last_inserted + 1 :])
    if END_THINK.text in tokenizer.control and tokenizer.id(END_THINK) in ids:
        ids = ids[len(ids) - ids[::-1].index(tokenizer.id(END_THINK)) :]
    if tokenizer.control.get(THINK.text) in ids:  # a thought without an end holds no answer
        return ""
    return tokenizer.decode(ids[:-1])


def extract(text: str, answer_format: str = "plain") -> str | None:
    """The answer in a final turn, or None. Raises ValueError for an unknown form of answers."""
    if answer_format == "plain":
        return None if CALL.text in text else text.strip() or None  # a call spelled out as text is no answer
    if answer_format != "boxed":
        raise ValueError(f"answer_format is {answer_format!r}, allowed: plain, boxed")
    start = text.rfind(r"\boxed{")
    depth, begin = 1, start + len(r"\boxed{")
    for i in range(begin, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i].strip() or None
    return None


def verify(answer: str, gold: str) -> bool:
    """Equal as numbers, signs of currency and percent ignored, if both are numbers; else as text after `normalise`."""
    a, b = normalise(answer), normalise(gold)
    number_a, number_b = as_number(a), as_number(b)
    return number_a == number_b if number_a is not None and number_b is not None else a == b


def normalise(text: str) -> str:
    """Compatibility forms, LaTeX dressing, case, blanks and the final full stop taken away."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")  # the minus sign
    text = re.sub(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[,!; ]", "", text).replace("\\$", "$").replace("\\%", "%").strip("$ \t\r\n")
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def as_number(text: str) -> Decimal | None:
    """The number that the whole text is, thousands commas and a percent or currency sign ignored, else None."""
    text = text.removesuffix("%").strip("$€£ ")
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    if not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)", text):
        return None
    return Decimal(text)
