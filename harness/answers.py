r"""Whether two normalised answers are equal, for reward.py [5]: as texts, numbers, equations, lists or choices.

    >>> number("-$1,234.50"), number(r"2\frac{1}{2}\text{ apples}"), number("1e3")
    ((Fraction(-2469, 2), '$'), (Fraction(5, 2), 'apple'), None)
    >>> items("[0, 1)"), items("1,2,3")
    (('[)', ['0', '1']), ('', ['1', '2', '3']))

Numbers are exact, and read as in English: 1,000 is 1000, 1.000 is 1. A text has at most one reading. Without one it
stays text: 1e3, 1.234.567, 2+3, "3 apples".
"""

import re
import string
from fractions import Fraction

LONGEST = 1000  # characters; what is longer is compared as text, so that nothing takes long

# --- equality ---------------------------------------------------------------------------------------------------

EQUATION = re.compile(r"(\\?[a-z][\w{}\\]*(?:\([\w, ]*\))?) ?= ?([^=]+)")  # a name and its value


def equal(a: str, b: str) -> bool:
    """Whether two normalised texts are equal. The name before the only = may be missing on one side: x = 5 is 5."""
    x, y = EQUATION.fullmatch(a), EQUATION.fullmatch(b)
    if bool(x) != bool(y):
        a, b = x[2] if x else a, y[2] if y else b
    return _same(a, b)


def _same(a: str, b: str) -> bool:
    if re.sub(r"\\text\{([^{}]*)\}", r"\1", a) == re.sub(r"\\text\{([^{}]*)\}", r"\1", b):
        return True
    if max(len(a), len(b)) > LONGEST:
        return False
    x, y = number(a), number(b)
    if x or y:
        return bool(x and y) and x[0] == y[0] and _agree({x[1]}, {y[1]})
    if (x := EQUATION.fullmatch(a)) and (y := EQUATION.fullmatch(b)):
        return x[1] == y[1] and _same(x[2], y[2])
    (brackets, x), (others, y) = items(a), items(b)
    if brackets != others or len(x) != len(y) or len(x) == 1:
        return False
    units = [{found[1] for found in map(number, side) if found} for side in (x, y)]  # of the list: €1,5 is not 1,5%
    return _agree(*units) and all(map(_same, x, y))


def _agree(units: set[str], others: set[str]) -> bool:
    """Units may be missing on one side; they must not differ."""
    units, others = units - {""}, others - {""}
    return not units or not others or units == others


LABELLED = re.compile(r"\(?([a-z]|\d\d?)(?:[.):] (.+)|[.):]?)")


def chosen(text: str, choices: list[str]) -> int | None:
    """Which choice a text names: by its words, by its label (A or 1 is the first), or by both. None: it names none.

    A label that could be the words of a choice is no label: of 2, 4 and 6, "3" is none. Labels that all choices show go
    before their order.

    >>> [chosen(text, ["a) red", "b) blue"]) for text in ("blue", "b", "2", "b) blue", "b) red", "c")]
    [1, 1, 1, 1, None, None]
    >>> [chosen(text, ["b) blue", "a) red"]) for text in ("a", "b) blue", "1")]
    [1, 0, 0]
    """
    shown = [LABELLED.fullmatch(choice) for choice in choices]
    places = {found[1]: i for i, found in enumerate(shown) if found and found[2]}
    if len(places) < len(choices):
        places = {}

    def place_of(label: str) -> int:
        return places.get(label, ord(label) - ord("a") if label.isalpha() else int(label) - 1)

    words = []  # of the choices, without their own labels
    for i, (choice, found) in enumerate(zip(choices, shown, strict=True)):
        words.append(found[2] if found and found[2] and place_of(found[1]) == i else choice)
    named = [i for i, choice in enumerate(choices) if text in (choice, words[i])][:1]
    named = named or [i for i, each in enumerate(words) if equal(text, each)]
    if named:
        return named[0] if len(named) == 1 else None
    found = LABELLED.fullmatch(text)
    if not found or not 0 <= (place := place_of(found[1])) < len(choices):
        return None
    if found[2]:  # label and words
        return place if equal(found[2], words[place]) else None
    taken = [re.fullmatch("[a-z]", each) if found[1].isalpha() else number(each) for each in words]
    return None if any(taken) else place


def meant(gold: str, choices: list[str]) -> tuple[int | None, list[str]]:
    """Which choice a gold names, and the choices with its words for that one: the gold of a translated task is a label
    and English words, its choices are in another language.

    >>> meant("b) blue", ["rojo", "azul"]), meant("a) blue", ["red", "blue"])
    ((1, ['rojo', 'blue']), (None, ['red', 'blue']))
    """
    place, found = chosen(gold, choices), LABELLED.fullmatch(gold)
    if place is None and found and found[2] and chosen(found[2], choices) is None:
        place = chosen(found[1], choices)
        choices = [found[2] if i == place else choice for i, choice in enumerate(choices)]
    return place, choices


def labelled(place: int, choices: tuple[str, ...]) -> str:
    """A choice with its label, which it may show already.

    >>> labelled(1, ("red", "blue")), labelled(1, ("1. red", "2. blue"))
    ('B) blue', '2. blue')
    """
    shown = [LABELLED.fullmatch(choice.casefold()) for choice in choices]
    if all(found and found[2] for found in shown):
        return choices[place]
    return f"{string.ascii_uppercase[place]}) {choices[place]}" if place < 26 else f"{place + 1}) {choices[place]}"


SECONDS = 2  # for math-verify to read a side, and to compare


def equal_in_mathematics(answer: str, gold: str) -> bool:
    """What math-verify says of two answers in LaTeX; no if it takes too long. ModuleNotFoundError without it."""
    from math_verify import parse, verify  # an optional package: only --answer-format math needs it

    if max(len(answer), len(gold)) > LONGEST:
        return False
    sides = (parse(f"\\boxed{{{side}}}", parsing_timeout=SECONDS) for side in (gold, answer))
    return verify(*sides, timeout_seconds=SECONDS)


# --- numbers ----------------------------------------------------------------------------------------------------

# The signs of units, and the words for each. In plain text there are no others; in \text any word may be a unit.
UNITS = (
    "$ us$ usd dollar | ¢ cent | € eur euro | £ gbp pound | ₹ inr rs rs. rupee | ¥ jpy yen | % percent | ‰ | °c | °f |"
    "° deg degree | mm | cm | m meter metre | km kilometer kilometre | in inch inche | ft foot feet | mi mile | km/h |"
    "mph | g gram | kg kilogram | ml | l liter litre | s sec second | min minute | h hr hour | day |"
    "week | month | year"
)
NAMES = {word: unit.split()[0] for unit in UNITS.split("|") for word in unit.split()}
MONEY = r"(?:us|r)?[$¢-¥֏؋৳฿៛₠-⃀]"
# These words are part of the number before them: 5 million is not 5.
MULTIPLES = set(
    "hundred thousand million billion trillion k bn mil lakh crore dozen half halve third quarter fourth fifth sixth "
    "seventh eighth ninth tenth hundredth thousandth millionth squared cubed factorial".split()
)

# Groups of three with one separator throughout, 70 000; and the Indian way, 1,00,000.
GROUPED = re.compile(r"([1-9]\d{0,2}([, '])\d{3}(\2\d{3})*|[1-9]\d?(,\d\d)+,\d{3})(\.\d*)?")
DECIMAL = r"\d+\.?\d*|\.\d+"
# 18, 1/2, 2 1/2. Behind a whole the fraction has two digits at most: 1 234/567 may be 1234/567.
AMOUNT = re.compile(rf"(?:(\d+) (?=[1-9]\d?/\d))?(-?(?:{DECIMAL}))(?:/({DECIMAL}))?")
NUMBER = re.compile(
    rf"([+-]?)(?:({MONEY}|%|usd|eur|gbp|inr|rs\.?) ?)?([+-]?)"  # sign, currency, sign,
    r"((?! )(?:\\frac|[\d.,/' {}-])+)([^\d.,/' {}-].*)?"  # amount, unit
)


def number(text: str) -> tuple[Fraction, str] | None:
    """The value of a number and its unit, "" for none; None for any other text."""
    if not (found := NUMBER.fullmatch(text)):
        return None
    sign, before, second_sign, amount, after = found.groups(default="")
    amount = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}$", r" \1/\2", re.sub(" ?/ ?", "/", amount).strip()).strip()
    if GROUPED.fullmatch(amount):
        amount = re.sub("[, ']", "", amount)
    parts = AMOUNT.fullmatch(amount)
    units = {_unit(before), _unit(after)} - {""}
    if not parts or None in units or len(units) > 1 or (sign and second_sign):
        return None
    whole, top, bottom = map(Fraction, (parts[1] or 0, parts[2], parts[3] or 1))
    if not bottom:
        return None
    value = whole + top / bottom
    negative = "-" in (sign, second_sign)
    if negative and not value:  # the left half of a decimal: -0,5 must not be the list 0,5
        return None
    return -value if negative else value, "".join(units)


def _unit(text: str) -> str | None:
    r"""The one name of a unit, "" for none; None for what is no unit.

    >>> _unit("dollars"), _unit("km^{2}"), _unit(r"\text{ apples}"), _unit("apples"), _unit(r"\text{ million}")
    ('$', 'km^{2}', 'apple', None, None)
    """
    found = re.fullmatch(r"(\\text\{)? ?([^{}^]*?) ?\}?(\^\{[23]\})?", text)
    if not found or not found[2]:
        return "" if found and not found[3] else None
    one = found[2].removesuffix("s")
    name = NAMES.get(found[2]) or NAMES.get(one)
    if found[1]:
        is_word = re.fullmatch(r"(?:(?:square|cubic) )?[a-z]+(?:(?: per |/)[a-z]+)?", one) and one not in MULTIPLES
        name = name or (one if is_word else None)
    elif re.fullmatch(MONEY, found[2]):
        name = name or found[2]
    elif re.fullmatch("[a-z]", found[2]):  # 5m may be five times m
        name = None
    return name and name + (found[3] or "")


# --- lists ------------------------------------------------------------------------------------------------------


def items(text: str) -> tuple[str, list[str]]:
    """The brackets around a list, and what stands between its commas; a comma within a number separates nothing.

    Without a blank, it may be the comma of a decimal number in another language: 1,05 and 1.234,5 stay whole.
    """
    opening, inside, closing = re.fullmatch(r"([\[({]?)(.*?)([\])}]?)", text).groups()
    comma = r" ?, | ?,(?!0\d|\d{3}(?!\d))" if ", " in inside else r"(?<!\d[ '.]\d{3}) ?,(?!0\d)"
    return opening + closing, re.split(comma, inside)
