"""[5] From a rollout to a score: extract the answer, verify it, add up what the tools cost.

    Rollout -> final turn -> extract -> normalise (STEPS) -> equal as texts, numbers or lists? -> Score

Answers are language-independent or English by construction, so one verifier serves every language. Nobody sees a wrong
verdict, and the policy learns it. Two rules follow:

    Dressing may be missing on either side, but must not contradict.  5% is 5, and 5 is 5%; $5 is neither 5% nor €5.
    What no step can read is text, and equal to the same text only.   1e3 is not 1000; "3 apples" is not 3.

Numbers are read as in English: 1,000 is 1000, 1.000 is 1, and 3,5 is a list. The order of a list counts.
The parts of a score are kept apart: the gate needs correctness without the price, the logs need both.

Left out: symbolic mathematics (the format "math" asks math-verify), partial credit, format rewards, judges.
"""

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from data import CALL, END_THINK, THINK, Tokenizer
from harness.answers import LONGEST, chosen, equal, equal_in_mathematics, meant
from sampler import Rollout

FORMATS = ("plain", "boxed", "math")  # the whole final turn; what is in its last \boxed{}; that, read as mathematics


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
    """The score of a rollout; `answer_format` is one of FORMATS."""
    task = rollout.task
    found = extract(final_turn(rollout, tokenizer), answer_format) if rollout.stop == "end" else None
    correct = int(found is not None and verify(found, task.answer, task.choices))
    if answer_format == "math" and found is not None and not correct and not task.choices:
        correct = int(equal_in_mathematics(found, task.answer))
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
    if answer_format not in FORMATS:
        raise ValueError(f"answer_format is {answer_format!r}, allowed: {', '.join(FORMATS)}")
    if answer_format == "plain":
        return None if CALL.text in text else text.strip() or None  # a call spelled out as text is no answer
    boxes, braces = {}, []  # where a box begins -> what it holds, None while it is open; where open braces begin
    for part in re.finditer(r"\\boxed\s*(?:\{|((?:-?\d[\d.,]*|(?<=\s)[A-Za-z])\b))|\\?[{}]", text):
        if part[0].startswith(r"\boxed"):
            boxes[part.end()] = part[1]  # \boxed 7 is complete
        if part[0].endswith("{") and part[0] != r"\{":
            braces.append(part.end())
        elif part[0] == "}" and braces and (begin := braces.pop()) in boxes:
            boxes[begin] = text[begin : part.start()].strip()
    return next((held for held in reversed(boxes.values()) if held != ""), None)  # the prompt itself says \boxed{}


def verify(answer: str, gold: str, choices: tuple[str, ...] = ()) -> bool:
    """Whether two answers are the same. Where the gold names one of the choices, so must the answer."""
    answer, gold, options = normalise(answer), normalise(gold), [normalise(choice) for choice in choices]
    place, in_english = meant(gold, options)
    return equal(answer, gold) if place is None else place in (chosen(answer, options), chosen(answer, in_english))


def normalise(text: str) -> str:
    """The text after all STEPS, over and over while they change it: there is dressing within dressing.

    >>> [name for name, step, before, after in STEPS if step(before) != after]
    []
    """
    text = " ".join(text.rpartition("####")[2].split())  # GSM8K's answers stand behind a worked solution
    for _ in range(DEPTH if len(text) <= LONGEST else 0):
        before = text
        for _, step, _, _ in STEPS:
            text = step(text)
        if (text := " ".join(text.split())) == before:
            break
    return text


def swap(pattern: str, by: str | Callable) -> Callable[[str], str]:
    """The step that replaces what matches."""
    return partial(re.compile(pattern).sub, by)


def shape(found: re.Match) -> str:
    """Raised and lowered characters stay exponents and indices, where NFKC makes 25 of 2⁵."""
    form = SHAPES.get(unicodedata.decomposition(found[0][0]).partition(" ")[0])
    return form % unicodedata.normalize("NFKC", found[0]).replace("\u2044", "}{") if form else found[0]


DEPTH = 9  # of dressing within dressing; what is dressed deeper is not worth the time
SHAPES = {"<super>": "^{%s}", "<sub>": "_{%s}", "<circle>": "(%s)", "<fraction>": r"\frac{%s}"}
SIGNS = {"٬": ",", "٫": ".", "،": ", ", "、": ", ", "٪": "%", "\u2044": "/"}
INSIDE = r"(?:[^{}]|\{[^{}]*\})*"
ARGUMENT = r" ?(?:\{([^{}]*)\}|(\w))"
STEPS = (  # in this order: name, step, an example of before and after
    (
        "invisible",
        swap("[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufe0f\ufeff]", ""),
        "1\u200b8",
        "18",
    ),
    ("raised", swap(r"[⁰¹²³⁴-⁹⁺⁻]+|[₀-₉]+|[^\0-\x7f]", shape), "x₁ 2⁻¹⁰ 1½", r"x_{1} 2^{−10} 1\frac{1}{2}"),
    ("Unicode", partial(unicodedata.normalize, "NFKC"), "１８ ﬁsh", "18 fish"),
    ("digits", swap(r"\d", lambda found: str(unicodedata.decimal(found[0]))), "१८", "18"),
    ("dashes", swap("[‐-—−]", "-"), "–5", "-5"),
    ("apostrophes", swap("[‘’‛ʼ′]", "'"), "Children’s", "Children's"),
    ("quotes", swap("[“”„«»]", '"'), "“yes”", '"yes"'),
    ("separators", swap(f"[{''.join(SIGNS)}]", lambda found: SIGNS[found[0]]), "1٬234٫5", "1,234.5"),
    ("display", swap(r"\\[()\[\]]|(?<!\\)\$\$", " "), r"\(18\)", " 18 "),
    ("formula", swap(r"(?<!\\)\$(?=\S)((?:\\.|[^$\\])+)(?<=\S)\$(?!\d)", r" \1 "), "$5$ km", " 5  km"),
    ("groups", swap(r",\\!|\{,\}(?=\d{3}|\d\d\{,)", ","), r"9{,}500 9,\!500", "9,500 9,500"),
    ("blanks", swap(r"(?:\s|\\[,:;! ]|\\q?quad(?![A-Za-z])|~(?=\\))+", " "), r"2\;3", "2 3"),
    ("sizes", swap(r"\\(?:left|right|displaystyle)(?![A-Za-z])", ""), r"\left(1\right)", "(1)"),
    ("fonts", swap(r"\\(?:(?:text|math)(?:bf|it|rm|sf)|mbox|bm|boldsymbol) ?\{", r"\\text{"), r"\bm{1}", r"\text{1}"),
    ("texts", swap(r"(?<![\d}])(?<![\d}] )\\text ?\{(" + INSIDE + r")\}", r"\1"), r"\text{7}\text{ m}", r"7\text{ m}"),
    ("fractions", swap(r"\\[dtc]?frac" + 2 * ARGUMENT, r"\\frac{\1\2}{\3\4}"), r"\dfrac12", r"\frac{1}{2}"),
    ("degrees", swap(r"\^\{?\\circ\}?|\^\{o\}|\\degree", "°"), r"45^\circ", "45°"),
    ("escapes", swap(r"\\([$%#&_{}])", r"\1"), r"\$5", "$5"),
    ("Markdown", swap(r"""^(?:(\*\*?)([^*]+)\1|(__?)([^_]+)\3|(["`])([^"`]+)\5)$""", r"\2\4\6"), "**73**", "73"),
    ("brackets", swap(r"^\(([^(),]+)\)$|^\{([^{},]+)\}$", r"\1\2"), "(C)", "C"),
    ("full stop", swap(r"(?<=[^\s.…]) ?[.。।॥۔։።។။]$", ""), "18。", "18"),
    ("powers", swap(r"([\^_])(-?\d+|[A-Za-z])", r"\1{\2}"), "2^5", "2^{5}"),
    ("case", str.casefold, "Kitchen", "kitchen"),
)
