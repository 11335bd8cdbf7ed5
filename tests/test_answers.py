"""When two answers are the same: cases by hand, and pairs of values in many languages' ways of writing them.

`TRANSLATE_R1_PAIRS=100000 python -m pytest tests/test_answers.py -k "pair or ways"` draws more pairs: 100,000 take some
minutes.
"""

import doctest
import json
import os
import random
import re
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reward
from harness import answers
from harness.answers import equal_in_mathematics
from reward import STEPS, extract, normalise, verify

ROWS = Path(__file__).with_name("answer_cases.jsonl").read_text(encoding="utf-8").splitlines()
CASES = [json.loads(row) for row in ROWS]
PAIRS = int(os.environ.get("TRANSLATE_R1_PAIRS", 3000))


def of_kind(kind):
    """The cases of a kind, named after what they are about."""
    found = [case for case in CASES if case["kind"] == kind]
    return pytest.mark.parametrize("case", found, ids=[f"{case['why']}-{i}" for i, case in enumerate(found)])


@of_kind("verify")
def test_a_verdict_is_right(case):
    """Catches what the row's `why` names. A wrong no starves the policy, a wrong yes teaches it nonsense."""
    choices = tuple(case.get("choices", ()))
    assert verify(case["answer"], case["gold"], choices) is case["right"]
    if not choices:
        assert verify(case["gold"], case["answer"]) is case["right"]


@of_kind("extract")
def test_an_extracted_answer_is_right(case):
    """Catches what the row's `why` names: a box that is missed, cut, empty or not the last."""
    assert extract(case["text"], case["format"]) == case["want"]


def test_the_cases_are_many_and_of_both_verdicts():
    """Catches a file of cases that is not read."""
    verdicts = [case["right"] for case in CASES if case["kind"] == "verify"]
    assert len(CASES) >= 150 and min(verdicts.count(True), verdicts.count(False)) >= 150


@pytest.mark.parametrize("module", [reward, answers], ids=["reward", "answers"])
def test_the_examples_in_the_docstrings_hold(module):
    """Catches a step whose example is of another step, or out of date."""
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


@pytest.mark.parametrize("left_out", range(len(STEPS)), ids=[name for name, *_ in STEPS])
def test_no_step_is_without_effect(left_out, monkeypatch):
    """Catches a step that another one does already: it could go."""
    rest = tuple(step for i, step in enumerate(STEPS) if i != left_out)
    monkeypatch.setattr(reward, "STEPS", rest)
    assert any(
        verify(case["answer"], case["gold"], tuple(case.get("choices", ()))) is not case["right"]
        for case in CASES
        if case["kind"] == "verify"
    )


@given(st.text(), st.text())
def test_verification_never_raises_and_is_symmetric(a, b):
    """Catches a rollout that kills training, say by digits that Fraction refuses."""
    assert verify(a, b) == verify(b, a)
    assert verify(a, a)


PIECES = r"1 8 05 000 , . ; / - + ( ) [ ] { } $ € % \% x = ² ½ ① ٣ ** _ ^ 。 km \text{ \frac \frac12 \, \boxed".split()


@given(st.lists(st.sampled_from(PIECES)).map("".join), st.lists(st.sampled_from(PIECES)).map("".join))
def test_verification_of_markup_never_raises_and_is_symmetric(a, b):
    """Catches half a command or a bracket without its partner that raises out of the scorer."""
    assert verify(a, b) == verify(b, a)
    assert verify(a, a)
    assert verify(a, b, (a, b, "a")) in (True, False)


@given(st.integers(-(10**30), 10**30))
def test_thousands_commas_do_not_change_a_number(n):
    """Catches a comma rule that works for one group of digits only, and numbers that pass through floats."""
    assert verify(f"{n:,}", str(n))
    assert not verify(f"{n:,}", str(n + 1))


LONG = {
    "digits": "9" * 10_000,
    "digits that Python refuses to read": "9" * 900 + "." + "1" * 99,
    "blanks": "1" + " " * 64_000 + "8",
    "blanks in front": " " * 64_000 + "18",
    "fractions": r"\frac{" * 200,
    "fonts": r"\text{" * 166,
    "formulas": "$a" * 500,
    "brackets": "(" * 1000,
    "lists": "1," * 500,
    "groups": "1,000" * 200,
    "characters that become eighteen": "ﷺ" * 1000,
    "stars": "*" * 1000,
    "boxes": r"\boxed{" * 10_000,
    "boxes within boxes": r"\boxed{" * 5000 + "}" * 5000,
    "boxes without braces": r"\boxed" * 10_000 + " " * 10_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_long_answer_takes_no_long_time(text):
    """Catches a pattern that tries all ways to split a text, and digits beyond what int() reads."""
    begin = time.process_time()
    extract(text, "boxed")
    assert verify(text, text)
    assert not verify(text, text + "1") and not verify(text, "19") and not verify("19", text, ("a", text))
    assert time.process_time() - begin < 2


def test_a_long_text_is_compared_as_text():
    """Catches a limit that makes long answers wrong, or right."""
    words = "word " * 500
    assert verify(words, words.replace(" ", "  ")) and not verify(words, words + "more")
    assert not verify("9" * 2000 + ".0", "9" * 2000) and verify("9" * 900 + ".0", "9" * 900)


def test_normalising_twice_changes_nothing():
    """Catches a verdict that depends on how deep an answer is dressed."""
    for case in CASES:
        text = normalise(case.get("answer", ""))
        assert normalise(text) == text


# --- mathematics ------------------------------------------------------------------------------------------------

MATHEMATICS = [
    ("x+1", "1+x", True),
    ("2^5", "32", True),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
    (r"3.5 \times 10^3", "3500", True),
    ("x+1", "x+2", False),
    ("18", r"\frac{", False),
    ("}{", "1", False),
    ("x" * 5000, "x", False),
]


@pytest.mark.parametrize("answer, gold, right", MATHEMATICS)
def test_mathematics_is_left_to_math_verify(answer, gold, right):
    """Catches sides that are swapped or handed over without their box, and a text that raises."""
    pytest.importorskip("math_verify")
    assert equal_in_mathematics(answer, gold) is right


# --- pairs of values --------------------------------------------------------------------------------------------
# A value is drawn, then one beside it that looks like it, and both are written as ten languages and LaTeX write them.

# name -> sign between groups, decimal sign, zero, digits in the groups before the last
STYLES = {
    "English": (",", ".", "0", 3),
    "Indian English": (",", ".", "0", 2),
    "German": (".", ",", "0", 3),
    "French": ("\u202f", ",", "0", 3),
    "Russian": ("\xa0", ",", "0", 3),
    "Swiss": ("’", ".", "0", 3),
    "Arabic": ("٬", "٫", "٠", 3),
    "Persian": ("٬", "٫", "۰", 3),
    "Hindi": (",", ".", "०", 2),
    "Bengali": (",", ".", "০", 2),
    "Thai": (",", ".", "๐", 3),
    "Japanese": ("，", "．", "０", 3),
    "SI": ("\u2009", ".", "0", 3),
    "LaTeX": ("{,}", ".", "0", 3),
    "LaTeX, thin": (r"\,", ".", "0", 3),
    "plain": ("", ".", "0", 3),
}
COMMA_IS_DECIMAL = ("German", "French", "Russian")  # English reads some of their numbers as others
UNITS = {
    "": ("%s",),
    "$": (r"\$%s", r"%s\$", r"%s\text{ dollars}", "%s USD"),
    "€": ("€%s", "%s €", r"%s\text{ euros}"),
    "£": ("£%s", "%s£"),
    "₹": ("₹%s", "Rs. %s", "%s rupees"),
    "%": ("%s%%", "%s %%", r"%s\%%", "%%%s", "%s percent", "%s٪"),
    "km": ("%s km", r"%s\text{ km}", r"%s\,\mathrm{km}"),
    "kg": ("%s kg", r"%s~\text{kg}"),
    "°": ("%s°", r"%s^\circ", "%s degrees"),
}
DRESSES = "%s|%s|%s|$%s$|\\(%s\\)|\\[%s\\]|**%s**|%s.|%s。|%s۔| %s |%s\u200b|“%s”|`%s`".split("|")
FONTS = r"%s|\text{%s}|\mathbf{%s}|\text{\textbf{%s}}".split("|")  # for what has no braces
EXPONENTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
INDICES = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(frozen=True)
class Value:
    """A number; or the numbers of a "list", of brackets "[)", of a power "^" or with an index "_"."""

    kind: str
    numbers: tuple[Fraction, ...]
    unit: str = ""
    name: str = ""  # left of an equals sign
    places: int | None = 0  # decimal ones; None: written as a fraction


def decimal(value: Fraction, places: int, style: str) -> str:
    """A decimal number in a style, with its minus."""
    group, point, zero, size = STYLES[style]
    text = str(int(abs(value) * 10**places)).zfill(places + 1)
    whole, part = text[: len(text) - places], text[len(text) - places :]
    head, groups = whole[:-3], [whole[-3:]]
    while group and head:
        head, groups = head[:-size], [head[-size:], *groups]
    text = (group.join(groups) if group else whole) + (point + part if part else "")
    digits = {ord("0") + i: chr(ord(zero) + i) for i in range(10)}
    return ("-" if value < 0 else "") + text.translate(digits)


def english(text: str) -> set:
    """What a text in a style with a decimal comma, or a list without blanks, means if it is read as in English."""
    sign, bare = (-1, text[1:]) if text.startswith("-") else (1, text)
    if re.fullmatch(r"\d+\.\d+", bare):
        return {("number", (sign * Fraction(bare),))}
    if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+|[1-9]\d?(,\d\d)+,\d{3}", bare):
        return {("number", (sign * Fraction(bare.replace(",", "")),))}
    if re.fullmatch(r"\d+,\d+", bare):
        whole, part = bare.split(",")
        return {("list", (sign * Fraction(whole), Fraction(part)))}
    return set()


def write(value: Value, style: str, rng: random.Random) -> tuple[str, set, set]:
    """A text for the value, what the text may mean, and which of the unit and the name it shows."""
    meanings, shown = {(value.kind, value.numbers)}, set()
    first, last = value.numbers[0], value.numbers[-1]
    if value.kind in "^_":
        turned = str(last).translate(EXPONENTS if value.kind == "^" else INDICES)
        text = rng.choice([f"{first}{value.kind}{{{last}}}", f"{first}{turned}"])
    elif value.kind != "number":
        text = rng.choice([", ", ","]).join(map(str, value.numbers))
        if value.kind == "list":
            meanings |= english(text)
        elif value.kind != "list":
            opening, closing = (r"\{", r"\}") if value.kind == "{}" else value.kind
            left, right = rng.choice([("", ""), (r"\left", r"\right")])
            text = f"{left}{opening}{text}{right}{closing}"
    elif value.places is None:
        (whole, top), bottom = divmod(abs(first.numerator), first.denominator), first.denominator
        forms = [rf"%s/{bottom}", rf"\frac{{%s}}{{{bottom}}}", rf"\dfrac{{%s}}{{{bottom}}}"]
        forms = [form % abs(first.numerator) for form in forms]
        if whole and top:
            forms += [rf"{whole}\frac{{{top}}}{{{bottom}}}"] if max(top, bottom) < 100 else []
            forms += [f"{whole} {top}/{bottom}"] if max(top, bottom) < 100 else []
        text = ("-" if first < 0 else "") + rng.choice(forms)
    else:
        text = decimal(first, value.places + rng.choice([0, 0, 1]) * (value.places > 0), style)
        if style in COMMA_IS_DECIMAL:
            meanings |= english(text)
    if value.unit and rng.random() < 0.8:
        text = rng.choice(UNITS[value.unit]) % text
        shown.add("unit")
    if value.name and rng.random() < 0.8:
        text = value.name + rng.choice([" = ", "="]) + text
        shown.add("name")
    if text.startswith("-"):
        text = rng.choice("-−–‑－") + text[1:]
    if not set("{\\") & set(text):
        text = rng.choice(FONTS) % text
    return rng.choice(DRESSES) % text, meanings, shown


def draw(rng: random.Random) -> Value:
    """Any value."""
    kind = rng.choice(["whole"] * 5 + ["decimal"] * 4 + ["fraction"] * 3 + ["^", "_", "list", "()", "[)", "[]", "{}"])
    unit, name = rng.choice(list(UNITS)), rng.choice(["", "", "", "x", "y", r"\theta"])
    if kind == "whole":
        size = rng.choice([30, 1000, 10**5, 10**7])
        return Value("number", (Fraction(rng.randrange(-size // 5, size)),), unit, name)
    if kind == "decimal":
        places, size = rng.choice([1, 1, 2, 2, 3, 4]), rng.choice([100, 10**4, 10**7])
        return Value("number", (Fraction(rng.randrange(-size // 5, size), 10**places),), unit, name, places)
    if kind == "fraction":
        bottom = rng.choice([2, 3, 4, 5, 7, 8, 10, 12, 100, 567])
        return tidy(Value("number", (Fraction(rng.randrange(-bottom, 40 * bottom), bottom),), unit, name, None))
    if kind in "^_":
        return Value(kind, (Fraction(rng.randrange(2, 30)), Fraction(rng.randrange(2, 30))), "", name)
    count = rng.randrange(2, 5) if kind in ("list", "{}") else 2
    numbers = tuple(Fraction(rng.choice([rng.randrange(-9, 10), rng.randrange(1000)])) for _ in range(count))
    return Value(kind, numbers, "", name)


def tidy(value: Value) -> Value:
    """With enough decimal places, and fractions that are whole as whole numbers."""
    number, places = value.numbers[0], value.places
    if value.kind == "number" and places is None and number.denominator == 1:
        places = 0
    while value.kind == "number" and places is not None and (number * 10**places).denominator > 1:
        places += 1
    return replace(value, places=places)


def beside(value: Value, rng: random.Random) -> Value:
    """A value that a careless reading takes for this one, or any other."""
    number, how = value.numbers[0], rng.randrange(10)
    digits = "".join(str(abs(n)) for n in value.numbers) if value.places == 0 else ""
    if value.kind == "number" and value.places:
        digits = str(int(abs(number) * 10**value.places))
    cut = rng.randrange(1, len(digits)) if len(digits) > 1 else 0
    parts = (Fraction(digits[:cut]), Fraction(digits[cut:])) if cut else ()
    if how == 0:  # another sign
        return replace(value, numbers=(-number, *value.numbers[1:]))
    if how == 1 and value.kind == "number":
        return replace(value, unit=rng.choice(list(UNITS)[1:]), name=rng.choice(["x", "y"]))
    if how in (2, 3) and value.kind == "number" and value.places is not None:  # another place of the point
        return tidy(replace(value, numbers=(number * Fraction(10) ** rng.choice([-3, -2, -1, 1, 2, 3]),)))
    if how == 4 and value.places:  # a zero behind the point
        step = Fraction(10) ** value.places
        return tidy(replace(value, numbers=(number // 1 + (number % 1) / 10 + 1 / (10 * step),)))
    if how in (5, 6) and parts:  # the same digits, cut in two
        return Value(rng.choice(["list", "()", "[)", "[]", "{}", "^", "_"]), parts, "", value.name)
    if how == 7 and parts and parts[1]:
        return tidy(Value("number", (parts[0] / parts[1],), value.unit, value.name, None))
    if how == 8 and value.kind != "number":  # the same digits, joined
        places = rng.choice([0, 0, 1, 2])
        return Value("number", (Fraction(int(digits), 10**places),), "", value.name, places)
    if how == 8 and value.places is None:  # a whole before the fraction
        top = int(f"{rng.randrange(1, 9)}{abs(number.numerator)}")
        return tidy(replace(value, numbers=(Fraction(top, number.denominator),)))
    if how == 9 and value.kind not in ("number", "^", "_"):
        return replace(value, numbers=tuple(rng.sample(value.numbers, len(value.numbers))))
    return draw(rng)


def test_no_pair_of_different_values_is_judged_equal():
    """Catches a wrong yes, whatever language the number is written in: nobody would see it, the policy would learn it.

    Left out are pairs where the text of one value says the other in English: the German 1.234, the French 3,5.
    """
    rng, judged, ambiguous, wrong = random.Random(0), 0, 0, []
    while judged < PAIRS:
        values = [draw(rng)]
        values.append(tidy(beside(values[0], rng)))
        if any(value.kind in "^_" and min(value.numbers) < 0 for value in values):
            continue
        (a, of_a, in_a), (b, of_b, in_b) = (write(value, rng.choice(list(STYLES)), rng) for value in values)
        one, other = values
        contradict = any(
            part in in_a & in_b and getattr(one, part) != getattr(other, part) for part in ("unit", "name")
        )
        if (one.kind, one.numbers) == (other.kind, other.numbers):
            if not contradict:
                continue
        elif of_a & of_b:
            ambiguous += 1
            continue
        judged += 1
        if verify(a, b):
            wrong.append((a, b, one, other))
    print(f"{judged} pairs of different values, {ambiguous} more were ambiguous")
    assert not wrong


def test_all_ways_to_write_a_value_are_judged_equal():
    """Catches a wrong no: a right answer that is refused for its dress."""
    rng, judged, wrong = random.Random(1), 0, []
    styles = [style for style in STYLES if style not in COMMA_IS_DECIMAL]
    while judged < PAIRS:
        value = draw(rng)
        (a, of_a, _), (b, of_b, _) = (write(value, rng.choice(styles), rng) for _ in range(2))
        if len(of_a | of_b) > 1:  # a list without blanks that is a number too: 1,234
            continue
        judged += 1
        if not verify(a, b):
            wrong.append((a, b, value))
    assert not wrong
