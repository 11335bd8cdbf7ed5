"""Whether a translated task still has its answer: checks of its texts against each other.

    RoundTrip (source, translation, back-translation) -> verify -> Verdict (checks made, failures, scores)

No check understands the language of the translation. What has a way back is compared in English, where numbers can be
read as words too; the translation itself is only held against what any correct translation shares with its source.
Numbers are read by value: "1.500,00" is 1500 where the locale says so. An engine that copies numbers passes a check of
digits whatever else it does, so number words are compared as well; and a round trip rewards an engine that does not
translate, so words left over are counted. What goes wrong there and comes back right (half that *fast* -> *ayuno* ->
*fast*) is seen by nobody here.

Left out: number words and names in the translation, since that would need a table for each language; whether the
translation reads well.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

from harness.jsonl import is_text


@dataclass(frozen=True)
class RoundTrip:
    """A task's texts, the question first, then its choices: as they were, translated, and translated back."""

    language: str
    source: tuple[str, ...]  # English
    translation: tuple[str, ...]
    back: tuple[str, ...] | None  # None: there is no way back
    marked: str | None = None  # the first hop with the engine's marks left in, where it has any
    threshold: float = 60  # least chrF of the back-translation

    @cached_property
    def chrf(self) -> float:
        return chrf("\n".join(self.back), "\n".join(self.source))


@dataclass(frozen=True)
class Verdict:
    """The checks that were made and, of those that failed, why."""

    made: tuple[str, ...]
    failures: dict[str, str]  # check -> reason
    scores: dict[str, float] = field(default_factory=dict)


LABEL = r"\(?(?:[A-Za-z]|\d{1,2})[.)][^\S\n]+"  # "A) ", "(b) ", "1. " at the start of a line

# --- numbers ----------------------------------------------------------------------------------------------------

# Where a comma begins the decimals and a point groups thousands (CLDR). Engines copy English numbers, so the English
# reading stays possible.
DECIMAL_COMMA = frozenset(
    "an ast br ca da de el es et eu fi fr frp gl hbs hr hu id it nb nn oc pl pt qu ro ru sc sl sr sv tr uk vi".split()
)
NO_QUESTION_MARK = {"th"}  # Thai closes questions with a particle
HAN_NUMERALS = {"zh", "ja"}  # 2 may become 二; a single numeral can be found, 十二 cannot
HAN_POWERS = {"百": 10**2, "千": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}

_BLANK_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
_NUMERAL = r"(?:(?<![\w.,])\.)?\d+(?:[.,]\d+)*"  # .5 too
_ENGLISH = re.compile(r"(\d*|\d{1,3}(?:,\d{2,3})*,\d{3})(\.\d+)?")  # the groups of 2 are the Indian way

_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_SMALL = {word: i for i, word in enumerate((_SMALL + " seventeen eighteen nineteen").split())}
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * i for i, word in enumerate(_TENS.split(), start=2)}
_POWERS = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_POWERS |= {word + "s": value for word, value in _POWERS.items()}
_OTHERS = {
    "once": 1,
    "twice": 2,
    "double": 2,
    "doubles": 2,
    "doubled": 2,
    "thrice": 3,
    "triple": 3,
    "triples": 3,
    "tripled": 3,
    "half": Fraction(1, 2),
    "halves": Fraction(1, 2),
    "third": Fraction(1, 3),
    "thirds": Fraction(1, 3),
    "quarter": Fraction(1, 4),
    "quarters": Fraction(1, 4),
    "fourth": Fraction(1, 4),
    "fourths": Fraction(1, 4),
    "fifth": Fraction(1, 5),
    "fifths": Fraction(1, 5),
}


def _plain_digits(text: str) -> str:
    """Digits of all scripts as 0-9, fractions that are one character as decimals, 80 000 as 80000."""
    out = []
    for c in text:
        value = unicodedata.numeric(c, None) if unicodedata.category(c) == "No" else None
        if c.isdecimal():
            out.append(str(unicodedata.digit(c)))
        elif value is not None and value % 1:
            out.append(f" {value:g} ")
        else:
            out.append(" " if c.isspace() else {"，": ",", "．": "."}.get(c, c))
    return _BLANK_GROUPS.sub(lambda match: match[0].replace(" ", ""), "".join(out))


def numerals(text: str, language: str = "en") -> list[set[Fraction]]:
    """What each number in digits can mean, in order. One reading in English, often two where the comma is decimal."""
    text, found = _plain_digits(text), []
    for match in re.finditer(_NUMERAL, text):
        readings = {_english(match[0])}
        if language in DECIMAL_COMMA:
            readings.add(_english(match[0].translate({ord("."): ",", ord(","): "."})))
        readings.discard(None)
        power = HAN_POWERS.get(text[match.end() :].lstrip()[:1], 1)
        found += (
            [{value * power for value in readings}]
            if readings
            else [{Fraction(part)} for part in re.split("[.,]", match[0])]
        )
    return found


def _han_numerals(text: str) -> set[float]:
    """The values of single characters. (Unicode has none for the simplified character of two.)"""
    return {unicodedata.numeric("兩" if c == "两" else c, None) for c in text} - {None}


def _english(numeral: str) -> Fraction | None:
    return Fraction(numeral.replace(",", "")) if _ENGLISH.fullmatch(numeral) else None


def number_words(text: str) -> list[Fraction]:
    """The numbers of an English text by value, in words or digits: "two dozen eggs, 3, twice, half" -> 24 3 2 1/2.

    1 is left out: "one" is too often no number.
    """
    values, previous = [], None  # the kind of the word before: "tens" may take a unit, any number "hundred"
    for token in re.findall(_NUMERAL + r"|[^\W\d_]+", _plain_digits(text).casefold()):
        kind = None
        if token[-1].isdigit():
            values += [reading for part in numerals(token) for reading in part]
            kind = "number"
        elif token in _POWERS:
            values.append(_POWERS[token] * (values.pop() if previous else Fraction(1)))
            kind = "number"
        elif token in _TENS:
            values.append(Fraction(_TENS[token]))
            kind = "tens"
        elif token in _SMALL:
            unit = previous == "tens" and 0 < _SMALL[token] < 10
            values.append(_SMALL[token] + (values.pop() if unit else Fraction(0)))
            kind = "number"
        elif token in _OTHERS:
            values.append(Fraction(_OTHERS[token]))
        previous = kind
    return [value for value in values if value != 1]


def unmatched(wanted: list[Fraction], found: list[set[Fraction]]) -> tuple[list[Fraction], list[set[Fraction]]]:
    """The values that no numeral can mean, and the numerals that are left: each serves once, the clearest first."""
    missing, left = [], sorted(found, key=len)
    for value in wanted:
        place = next((i for i, readings in enumerate(left) if value in readings), None)
        if place is None:
            missing.append(value)
        else:
            del left[place]
    return missing, left


# --- other measures ---------------------------------------------------------------------------------------------


def chrf(hypothesis: str, reference: str) -> float:
    """Sentence chrF, 0 to 100: the F2 score of character n-grams, n = 1..6, blanks removed (Popović, 2015, WMT)."""
    hypothesis, reference = "".join(hypothesis.split()), "".join(reference.split())
    precisions, recalls = [], []
    for n in range(1, 7):
        a, b = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (hypothesis, reference))
        if a and b:
            common = (a & b).total()
            precisions.append(common / a.total())
            recalls.append(common / b.total())
    if not sum(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall)


def length(texts: tuple[str, ...]) -> int:
    """In letters, blanks aside. A wide character (Han, kana, Hangul) is about two letters."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in "".join("".join(texts).split()))


def left_over(trip: RoundTrip) -> float:
    """The share of the translation's different words that are words of the source, capitalised and short ones aside.

    Different words, since a story repeats its nouns, and a noun that two languages share is no failure.
    """
    english = set(re.findall(r"(?<![\w'’])[a-z]{3,}", "\n".join(trip.source)))
    words = set(re.findall(r"[^\W\d_]+", "\n".join(trip.translation)))
    return len(words & english) / max(1, len(words))


def marks(trip: RoundTrip, kinds: str) -> float:
    """The share of words that the engine marked: * unknown, @ not translated, # not generated. What the source has of
    these signs itself is no mark."""
    text = "\n".join(trip.translation) if trip.marked is None else trip.marked
    found, own = (len(re.findall(rf"(?<!\w)[{kinds}](?=\w)", t)) for t in (text, "\n".join(trip.source)))
    return max(0, found - own) / max(1, len(text.split()))


def names(text: str) -> set[str]:
    """Capitalised words inside sentences, without a possessive's ending."""
    return set(re.findall(r"(?<=[\w,;:’')] )[A-Z][^\W\d_]+", text)) - {"I"}


# --- the checks -------------------------------------------------------------------------------------------------
# Each returns why the round trip fails, "" if it does not.


def check_complete(trip: RoundTrip) -> str:
    for name, texts in (("translation", trip.translation), ("back-translation", trip.back or trip.source)):
        if len(texts) != len(trip.source) or not all(is_text(text) and text.strip() for text in texts):
            return f"the {name} has an empty or broken text"
    if trip.translation == trip.source and re.search(r"\b[a-z]{3,}", "\n".join(trip.source)):
        return "the translation is the source"
    before, after = length(trip.source), length(trip.translation)
    if not 0.6 * before - 10 <= after <= 1.7 * before + 10:  # ten letters: the ratio of short texts varies
        return f"{before} letters became {after}"
    return ""


def check_choices(trip: RoundTrip) -> str:
    for texts in (trip.translation, trip.back or ()):
        choices = [" ".join(re.sub(rf"\A\s*{LABEL}", "", text).casefold().split()) for text in texts[1:]]
        if len(set(choices)) < len(choices):
            return f"two choices are one: {max(choices, key=choices.count)!r}"
    return ""


def check_questions(trip: RoundTrip) -> str:
    texts = [trip.source, () if trip.language in NO_QUESTION_MARK else trip.translation, trip.back or ()]
    counts = [len(re.findall("[?？؟]", "\n".join(t))) for t in texts if t]
    return "" if len(set(counts)) == 1 else f"question marks: {counts}"


def check_digits(trip: RoundTrip) -> str:
    """No number in digits may get lost, and none come in but for a word of the source (three -> 3). 1 may do both in
    the translation, where it is often an article. Translated back, they have their order again."""
    source = "\n".join(trip.source)
    wanted = [min(readings) for readings in numerals(source)]
    words = list((Counter(number_words(source)) - Counter(wanted)).elements())
    for name, texts in (("translation", trip.translation), ("back-translation", trip.back or ())):
        text = "\n".join(texts)
        found = numerals(text, trip.language)
        missing, extra = unmatched(wanted, found) if texts else ([], [])
        extra = [readings for readings in unmatched(words, extra)[1] if 1 not in readings]
        if texts is trip.translation:
            spelt = _han_numerals(text) if trip.language in HAN_NUMERALS else set()
            missing = [value for value in missing if value != 1 and value not in spelt]
        elif texts and not missing:
            place = iter(found)
            if not all(any(value in readings for readings in place) for value in wanted):
                return f"{name}: another order, {_show(map(min, found))} for {_show(wanted)}"
        if missing or extra:
            return f"{name}: missing {_show(missing)}, added {_show(map(min, extra))}"
    return ""


def check_left_over(trip: RoundTrip) -> str:
    share = left_over(trip)
    return "" if share <= 0.10 else f"{share:.0%} of the words are the source's"


def check_marks(trip: RoundTrip) -> str:
    unknown, broken = marks(trip, "*"), marks(trip, "@#")
    return "" if unknown <= 0.10 and broken <= 0.02 else f"{unknown:.0%} unknown words, {broken:.0%} @ or #"


def check_values(trip: RoundTrip) -> str:
    """The numbers of the source, in words or digits, are all there by value, and no others."""
    source, back = (Counter(number_words("\n".join(texts))) for texts in (trip.source, trip.back))
    lost, added = source - back, back - source
    return f"missing {_show(lost.elements())}, added {_show(added.elements())}" if lost or added else ""


def check_names(trip: RoundTrip) -> str:
    words = set(re.findall(r"[^\W\d_]+", "\n".join(trip.back).casefold()))
    lost = sorted(name for name in names("\n".join(trip.source)) if name.casefold() not in words)
    return f"missing {', '.join(lost)}" if lost else ""


def check_chrf(trip: RoundTrip) -> str:
    return "" if trip.chrf >= trip.threshold else f"chrF {trip.chrf:.1f} is below {trip.threshold:g}"


def _show(values) -> str:
    return " ".join(str(value) for value in values) or "nothing"


FORWARD: dict[str, Callable[[RoundTrip], str]] = {  # need no way back
    "complete": check_complete,
    "choices": check_choices,
    "questions": check_questions,
    "digits": check_digits,
    "left over": check_left_over,
    "marks": check_marks,
}
BACKWARD: dict[str, Callable[[RoundTrip], str]] = {"values": check_values, "names": check_names, "chrF": check_chrf}


def verify(trip: RoundTrip) -> Verdict:
    """All checks that can be made; a way back that does not exist fails nothing. Texts that are not complete are
    compared no further."""
    checks = FORWARD | (BACKWARD if trip.back is not None else {})
    if reason := check_complete(trip):
        return Verdict(("complete",), {"complete": reason})
    failures = {name: reason for name, check in checks.items() if (reason := check(trip))}
    ratio = length(trip.translation) / max(1, length(trip.source))
    scores = {"length_ratio": ratio, "left_over": left_over(trip), "unknown": marks(trip, "*")}
    if trip.back is not None:
        scores["chrf"] = trip.chrf
    return Verdict(tuple(checks), failures, {name: round(score, 4) for name, score in scores.items()})
