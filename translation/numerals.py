"""The numbers of a text by value: digits as a locale writes them, and English words.

    "1.500,00 €"                  -> numerals   -> [{1500}]                what each number in digits can mean
    "two hundred fifty, 20%, $3"  -> quantities -> [250, 20%, 3$]          of an English text, words and digits alike
    "the third of May"            -> spelt      -> [{3, 1/3}, {5}]         what a translation may put into digits

Used by `checks.py` alone. Left out: number words of other languages, which would need a table for each.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

# Where a comma begins the decimals and a point groups thousands (CLDR). Engines copy English numbers, so the English
# reading stays possible.
DECIMAL_COMMA = frozenset(
    "an ast br ca da de el es et eu fi fr frp gl hbs hr hu id it nb nn oc pl pt qu ro ru sc sl sr sv tr uk vi".split()
)
HAN_NUMERALS = {"zh", "ja"}  # 2 may become 二; a single numeral can be found, 十二 cannot
HAN_POWERS = {"百": 10**2, "千": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
LONGEST = 1000  # digits of a number; Python reads 4,300 at most, and no task has as many

_SAME = str.maketrans("，．％＄－−–‐‑٪", ",.%$-----%")  # the last five dashes may all be a minus sign
_SWAP = str.maketrans(".,", ",.")
_BLANK_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
_HAN_FRACTION = re.compile(r"((?<!\d)\d+|[一二三四五六七八九十])\s?分[の之]\s?(\d+|[一二三四五六七八九十])")  # 3分の1
_HAN_POWER = re.compile(rf"\s?([{''.join(HAN_POWERS)}])")
_ENGLISH = re.compile(r"(\d*|\d{1,3}(?:,\d{2,3})*,\d{3})(\.\d+)?")  # the groups of 2 are the Indian way
_CURRENCY = "$€£¥₹₽₩"
_NUMBER = (
    rf"(?P<minus>(?<![\w.,)%-])-(?=[{_CURRENCY}]?\.?\d))?(?P<currency>[{_CURRENCY}] ?)?"
    r"(?:(?P<whole>(?<![\d.,/])\d{1,6} )?(?<![\d.,/])(?P<fraction>\d{1,6}/0*[1-9]\d{0,5})(?![\d/]|[.,]\d)"
    r"|(?P<number>(?:(?<![\w.,])\.)?\d+(?:[.,]\d+)*)(?P<ordinal>(?:st|nd|rd|th)\b)?)"
)
_NUMERAL = re.compile(_NUMBER)
_AFTERNOON = re.compile(r"(?: ?(?:-|to|and|until) ?\d{1,2}(?::\d\d)?)? ?p\.?m\b", re.IGNORECASE)  # 1 to 4 PM


@lru_cache(maxsize=64)  # every check asks for it
def plain(text: str) -> str:
    """Digits of all scripts as 0-9, ½ and 3分の1 as fractions, 80 000 as 80000, one sign for each, and 5:00 as 5."""
    out = []
    for c in text.translate(_SAME):
        value = unicodedata.numeric(c, None) if unicodedata.category(c) == "No" else None
        if c.isdecimal():
            out.append(str(unicodedata.digit(c)))
        elif value is not None and value % 1:
            out.append(f" {Fraction(value).limit_denominator(20)} ")
        else:
            out.append(" " if c.isspace() else c)
    text = _HAN_FRACTION.sub(lambda match: f" {_han(match[2])}/{_han(match[1])} ", "".join(out))
    text = re.sub(r"(?<=\d):00(?!\d)", "", text)
    return _BLANK_GROUPS.sub(lambda match: match[0].replace(" ", ""), text)


def numerals(text: str, language: str = "en") -> list[set[Fraction]]:
    """What each number in digits can mean, in order. Often two readings where the comma is decimal; 5 PM may be 17.

    Ordinals (5th) are left out: they are words, and `quantities` and `spelt` have them.
    """
    text, found = plain(text), []
    for match in _NUMERAL.finditer(text):
        if match["ordinal"]:
            continue
        readings = _readings(match, language in DECIMAL_COMMA)
        if power := _HAN_POWER.match(text, match.end()):
            readings[-1] = {value * HAN_POWERS[power[1]] for value in readings[-1]}
        if language == "en" and _AFTERNOON.match(text, match.end()):
            readings[-1] |= {value + 12 for value in readings[-1] if value < 12}
        found += readings
    return found


def too_long(text: str) -> bool:
    """Whether it holds a number of more than `LONGEST` digits."""
    return any(len(match) > LONGEST for match in re.findall(r"[\d.,]+", plain(text)))


def han_numerals(text: str) -> set[float]:
    """The values of single characters. (Unicode has none for the simplified character of two.)"""
    return {unicodedata.numeric("兩" if c == "两" else c, None) for c in text} - {None}


def _han(numeral: str) -> int:
    return int(numeral if numeral.isdigit() else unicodedata.numeric(numeral))


def _english(numeral: str) -> Fraction | None:
    if numeral.isdigit():
        return Fraction(int(numeral))  # the most of them, and ten times as fast
    return Fraction(numeral.replace(",", "")) if _ENGLISH.fullmatch(numeral) else None


def _readings(match: re.Match, decimal_comma: bool = False) -> list[set[Fraction]]:
    """The readings of a match of `_NUMBER`; of what is no number, such as 1.2.3, those of its parts."""
    sign = -1 if match["minus"] else 1
    if match["fraction"]:
        return [{sign * (Fraction(match["fraction"]) + int(match["whole"] or 0))}]
    number = match["number"]
    values = {_english(number), _english(number.translate(_SWAP)) if decimal_comma else None} - {None}
    return [{sign * value for value in values}] if values else [{Fraction(part)} for part in re.findall(r"\d+", number)]


# --- English words ----------------------------------------------------------------------------------------------

_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_SMALL = {word: i for i, word in enumerate((_SMALL + " seventeen eighteen nineteen").split())}
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * i for i, word in enumerate(_TENS.split(), start=2)}
_POWERS = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth"
_ORDINALS = (_ORDINALS + " fifteenth sixteenth seventeenth eighteenth nineteenth twentieth").split()
_ORDINALS = {word: i for i, word in enumerate(_ORDINALS, start=1)}
_PARTS = {word: n for word, n in _ORDINALS.items() if n > 2} | {"half": 2, "halve": 2, "quarter": 4}
_MULTIPLES = {"double": 2, "triple": 3, "treble": 3, "quadruple": 4, "quintuple": 5, "sextuple": 6, "septuple": 7}
_MULTIPLES |= {"octuple": 8, "nonuple": 9, "decuple": 10}
_MULTIPLES |= {form: n for word, n in _MULTIPLES.items() for form in (word + "s", word + "d", word[:-1] + "ing")}
_MULTIPLES |= {"once": 1, "twice": 2, "thrice": 3}
_MONTHS = "january february march april may june july august september october november december"
_ALSO = {word: i for i, word in enumerate(_MONTHS.split(), start=1)} | _ORDINALS
_ALSO |= {"both": 2, "pair": 2, "pairs": 2, "couple": 2}
_UNITS = {"percent": "%", "per cent": "%", "dollar": "$", "buck": "$", "cent": "¢", "euro": "€", "yen": "¥"}


def _any(words) -> str:
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_UNIT, _POWER = _any([*_SMALL, *_TENS]), _any(_POWERS) + "s?"
_NUMBER_WORDS = re.compile(rf"\b(?:{_UNIT}[ -]|{_POWER}(?:[ -]and)?[ -])*(?:{_UNIT}|{_POWER})\b")
_QUANTITY = re.compile(
    rf"{_NUMBER}(?:[ -]?(?P<unit>%|[{_CURRENCY}¢](?!\.?\d)|{_any(_UNITS)}s?\b))?"  # in 5 $3 tickets, $ is the 3's
)


def _rule(pattern: str, value) -> tuple[re.Pattern, Callable[[re.Match], str]]:
    return re.compile(pattern), lambda match: str(value(*match.groups()))


_N = r"(?<![\w.,/])(\d+(?:\.\d+)?)"
# From words to digits, one after the other: what each pattern finds, and its value. A fraction in words gets a ";" in
# front, or it would go with the number before it (30 fifth graders).
_RULES = [
    _rule(rf"\b({_any(_SMALL)})-?fold\b", lambda n: _SMALL[n]),
    _rule(rf"\b({_any(_TENS)})-({_any(list(_ORDINALS)[:9])})\b", lambda ten, n: _TENS[ten] + _ORDINALS[n]),
    _rule(rf"{_N}[ -]({_any(_POWERS)})s?\b", lambda n, power: Fraction(n) * _POWERS[power]),
    _rule(rf"{_N} (\d/[1-9]) ({_any(_POWERS)})s?\b", lambda n, part, power: (int(n) + Fraction(part)) * _POWERS[power]),
    _rule(rf"\b(?:half|1/2)(?: an?)? ({_any(_POWERS)})\b", lambda power: _POWERS[power] // 2),
    (_NUMBER_WORDS, lambda match: " ".join(map(str, _values(re.findall("[a-z]+", match[0]))))),
    _rule(rf"\b({_any(_MULTIPLES)})\b", lambda word: _MULTIPLES[word]),
    _rule(rf"\b(\d+) ({_any(_PARTS)})s\b", lambda n, part: f"; {n}/{_PARTS[part]}"),  # two thirds
    _rule(rf"\b(\d+)-({_any(_PARTS)})s?\b", lambda n, part: f"; {n}/{_PARTS[part]}"),
    _rule(rf"\b(?:1 )?({_any(_PARTS)})s?\b", lambda part: f"; 1/{_PARTS[part]}"),
    _rule(r"\b(\d{1,2})th\b", lambda n: f"; 1/{int(n)}" if 2 < int(n) <= 20 else n),  # as the word
    _rule(r"\b(\d+)[ -]and[ -](?:an?[ -])?(?:; )?(\d+/[1-9]\d*)\b", lambda n, part: f"{n} {part}"),  # two and a half
    _rule(r"\b(an?) (?=(?:dollar|cent|euro)\b)", lambda _: "1 "),
    _rule(r"\b(negative) (?=\d)", lambda _: "-"),
    _rule(r"((?:^|[.?!,;:(]|\b(?:is|was|be|of|to|at|by|from|and)) ?)minus (?=\d)", lambda before: f"{before}-"),
]


@lru_cache(maxsize=64)
def in_digits(text: str) -> str:
    """An English text in small letters with its number words as digits: "two hundred fifty" -> "250"."""
    text = plain(text).casefold()
    for pattern, digits in _RULES:
        text = pattern.sub(digits, text)
    return text


def _values(words: list[str]) -> list[int]:
    """The numbers that a run of number words makes: "twenty five ten" -> 25 10."""
    found, room = [], 0  # each number as its parts, [3000, 500]; a word below `room` is one more part of the last
    for word in words:
        power = _POWERS.get(word.removesuffix("s"))
        value = power or _SMALL.get(word) or _TENS.get(word, 0)
        if word == "and":
            continue
        if power and found:
            parts = found[-1]
            start = next((i for i in range(len(parts)) if sum(parts[i:]) < power), len(parts) - 1)
            product = sum(parts[start:]) * power  # three thousand five + hundred: the five
            parts[start:] = []
            if parts and parts[-1] <= product:  # one hundred, one hundred
                found.append([product])
            else:
                parts.append(product)
        elif 0 < value < room:
            found[-1].append(value)
        else:
            found.append([value])
        room = (power if power != 12 else 0) if power else 10 * (word in _TENS)
    return [sum(parts) for parts in found]


class Quantity(NamedTuple):
    """A number and the sign that belongs to it: "%", that of a currency, or "". Pounds are weights more often."""

    value: Fraction
    unit: str = ""

    def __str__(self):
        return f"{self.value}{self.unit}"


def quantities(text: str) -> list[Quantity]:
    """The numbers of an English text, in words or digits: "two dozen eggs, 3, twice, two-thirds" -> 24 3 2 2/3.

    A bare 1 is left out: "one" is too often no number. Ordinals are read as fractions, whose words they share.
    """
    found = []
    for match in _QUANTITY.finditer(in_digits(text)):
        *others, last = [min(readings) for readings in _readings(match)]
        unit = (match["currency"] or "").strip() or (match["unit"] or "").removesuffix("s")
        found += [*map(Quantity, others), Quantity(last, _UNITS.get(unit, unit))]
    return [quantity for quantity in found if quantity != (1, "")]


def is_number(text: str) -> bool:
    """Whether an English text is numbers and nothing else."""
    return not re.search(r"\w", _QUANTITY.sub("", in_digits(text)))


def spelt(text: str) -> list[set[Fraction]]:
    """What an English text has in words and a translation may have in digits, each with all its readings."""
    text = plain(text).casefold()
    written = {value for readings in numerals(text) for value in readings}
    found = [{value, Fraction(value.numerator)} - {1} for value, _ in quantities(text) if value not in written]
    found += [{value} for value, _ in quantities(_NUMERAL.sub(";", text)) if value in written]
    found += [{Fraction(_ALSO[word])} for word in re.findall(r"[^\W\d_]+", text) if word in _ALSO]
    found += [{Fraction(match["number"])} for match in _NUMERAL.finditer(text) if match["ordinal"]]
    return found + [{Fraction(30)} for _ in re.finditer(r"\bhalf an hour|(?<![\d.])\.5 hour", text)]


def unmatched(wanted: list[set[Fraction]], found: list[set[Fraction]]) -> tuple[list, list]:
    """Of each, what has no partner with a reading in common. Each serves once, the clearest first."""
    by_value = defaultdict(list)
    for place in sorted(range(len(found)), key=lambda i: -len(found[i])):
        for value in found[place]:
            by_value[value].append(place)
    taken, missing = set(), []
    for readings in sorted(wanted, key=len):
        places = [by_value[value] for value in readings if value in by_value]
        for stack in places:
            while stack and stack[-1] in taken:
                stack.pop()
        place = max((stack[-1] for stack in places if stack), key=lambda i: -len(found[i]), default=None)
        if place is None:
            missing.append(readings)
        else:
            taken.add(place)
    return missing, [readings for i, readings in enumerate(found) if i not in taken]
