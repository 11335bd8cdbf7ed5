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
from translation.numerals import (
    HAN_NUMERALS,
    han_numerals,
    is_number,
    numerals,
    plain,
    quantities,
    spelt,
    too_long,
    unmatched,
)


@dataclass(frozen=True)
class RoundTrip:
    """A task's texts, the question first, then its choices: as they were, translated, and translated back."""

    language: str
    source: tuple[str, ...]  # English
    translation: tuple[str, ...]
    back: tuple[str, ...] | None  # None: there is no way back
    marked: str | None = None  # the first hop with the engine's marks left in, where it has any
    threshold: float = 60  # least chrF of the back-translation

    @property
    def texts(self) -> list[tuple[str, str, str | None]]:
        """(source, translation, back-translation or None) of each text."""
        return list(zip(self.source, self.translation, self.back or [None] * len(self.source), strict=True))

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

NO_QUESTION_MARK = {"th"}  # Thai closes questions with a particle
REDUPLICATING = frozenset("bn hi ht id ja qu sw ta te th tr vi wo yo zh".split())  # a word twice: a plural, or more
DEBRIS = re.compile(
    r"&(?:[a-z]{2,8}|#\d{1,7}|#x[0-9a-f]{1,6});|⁇|\ufffd|▁|</?s>|<pad>|<unk>|\[unk\]|<\|[^|>\s]{1,40}\|>", re.IGNORECASE
)

# --- measures ---------------------------------------------------------------------------------------------------


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


def left_over(trip: RoundTrip) -> tuple[int, float]:
    """How many of the translation's words are words of the source, capitalised and short ones aside, and their share.

    Different words, plural and singular as one: a story repeats its nouns, and a noun that two languages share is no
    failure.
    """
    english = {word.removesuffix("s") for word in re.findall(r"(?<![\w'’])[a-z]{3,}", "\n".join(trip.source))}
    words = {word.removesuffix("s") for word in re.findall(r"[^\W\d_]+", "\n".join(trip.translation))}
    return len(words & english), len(words & english) / max(1, len(words))


def marks(trip: RoundTrip, kinds: str) -> float:
    """The share of words that the engine marked: * unknown, @ not translated, # not generated. What the source has of
    these signs itself is no mark."""
    text = "\n".join(trip.translation) if trip.marked is None else trip.marked
    found, own = (len(re.findall(rf"(?<!\w)[{kinds}](?=\w)", t)) for t in (text, "\n".join(trip.source)))
    return max(0, found - own) / max(1, len(text.split()))


def names(text: str) -> set[str]:
    """Capitalised words inside sentences, without a possessive's ending."""
    return set(re.findall(r"(?<=[\w,;:’')] )[A-Z][^\W\d_]+", text)) - {"I"}


def bare(text: str) -> str:
    """A choice without its label, small letters and single blanks."""
    return " ".join(re.sub(rf"\A\s*{LABEL}", "", text).casefold().split())


def likeness(back: str, source: str) -> float:
    """Of two choices, 0 to 100: their chrF without labels and articles; 100 for equal numbers, however written."""
    pair = [re.sub(r"\b(?:the|an?) ", "", bare(text)) for text in (back, source)]
    if all(map(is_number, pair)) and quantities(pair[0]) == quantities(pair[1]):
        return 100.0
    return chrf(*pair)


def sentences(text: str) -> list[str]:
    """Split at full stops, question marks, exclamation marks and colons that a blank follows, and at line breaks."""
    text = re.sub(r"\b(Mr|Mrs|Ms|Dr)\.", r"\1", text)
    return [part for part in re.split(r"(?<=[.?!:…])\s+|\n", text) if re.search(r"\w", part)]


def unlike(parts: list[str], text: str) -> str:
    """The first of the sentences of whose words less than a third are in the text, "" if there is none. Short words
    count only where there are no others."""
    known = _words(text)
    for part in parts:
        words = {word for word in _words(part) if len(word) > 3} or _words(part)
        if len(words & known) < len(words) / 3:
            return part
    return ""


def doubled(text: str) -> Counter:
    """Words, and phrases of up to four words, that follow directly upon themselves."""
    found, tokens = Counter(), text.casefold().split()
    for n in range(1, 5):
        for i in range(len(tokens) - 2 * n + 1):
            if tokens[i : i + n] == tokens[i + n : i + 2 * n]:
                found[" ".join(tokens[i : i + n])] += 1
    return found


# --- the checks -------------------------------------------------------------------------------------------------
# Each returns why the round trip fails, "" if it does not.


def check_complete(trip: RoundTrip) -> str:
    for name, texts in (("translation", trip.translation), ("back-translation", trip.back or trip.source)):
        if len(texts) != len(trip.source) or not all(is_text(text) and text.strip() for text in texts):
            return f"the {name} has an empty or broken text"
    if any(too_long(text) for text in (*trip.source, *trip.translation, *(trip.back or ()))):
        return "a number is too long to be read"
    if trip.translation == trip.source and re.search(r"\b[a-z]{3,}", "\n".join(trip.source)):
        return "the translation is the source"
    before, after = length(trip.source), length(trip.translation)
    if not 0.6 * before - 10 <= after <= 1.7 * before + 10:  # ten letters: the ratio of short texts varies
        return f"{before} letters became {after}"
    return ""


def check_choices(trip: RoundTrip) -> str:
    """Choices stay different, and each comes back as itself: a short text has no context that would show an error."""
    for texts in (trip.translation, trip.back or ()):
        choices = [bare(text) for text in texts[1:]]
        if len(set(choices)) < len(choices):
            return f"two choices are one: {max(choices, key=choices.count)!r}"
    english = [bare(text) for text in trip.source[1:]]
    for i, text in enumerate(trip.translation[1:], start=1):  # whoever answers "gift" does not mean the German poison
        if bare(text) in english and english.index(bare(text)) != i - 1:
            return f"choice {i} is in English another one: {text!r}"
    for i, back in enumerate(trip.back[1:] if trip.back else (), start=1):
        own = likeness(back, trip.source[i])
        if own < 100 and any(likeness(back, other) > own for other in trip.source[1:]):
            return f"choice {i} came back as another one: {back!r}"
        if own < trip.threshold:
            return f"choice {i} came back as {back!r}: chrF {own:.1f} is below {trip.threshold:g}"
    return ""


def check_questions(trip: RoundTrip) -> str:
    texts = [trip.source, () if trip.language in NO_QUESTION_MARK else trip.translation, trip.back or ()]
    counts = [len(re.findall("[?？؟]", "\n".join(t))) for t in texts if t]
    return "" if len(set(counts)) == 1 else f"question marks: {counts}"


def check_sentences(trip: RoundTrip) -> str:
    """An engine adds nothing of its own, such as "Here is the translation:". Lines are counted, since none is sent
    with a line break; of the back-translation the sentences, and one that is too many must be like none."""
    for source, translation, back in trip.texts:
        for text in (translation, back or source):
            if (found := _lines(text)) != (wanted := _lines(source)):
                return f"{wanted} lines became {found}"
        if back is not None:
            for more, fewer, what in ((back, source, "added"), (source, back, "lost")):
                if len(sentences(more)) > len(sentences(fewer)) and (strange := unlike(sentences(more), fewer)):
                    return f"{what}: {strange!r}"
    return ""


def check_doubled(trip: RoundTrip) -> str:
    """No word or phrase stands there twice in a row, but as often as in the source. In some languages a word may."""
    for source, *others in trip.texts:
        for text, language in zip(others, (trip.language, "en"), strict=True):
            found = doubled(text or "")
            if language in REDUPLICATING:
                found = {words: n for words, n in found.items() if " " in words}
            elif language != "en":
                found = {words: n for words, n in found.items() if len(words) > 4}  # vous vous levez
            if sum(found.values()) > doubled(source).total():
                return f"twice in a row: {', '.join(found)}"
    return ""


def check_debris(trip: RoundTrip) -> str:
    """No signs of a broken engine that the source has not got: HTML entities, marks for unknown tokens, controls."""
    for source, *others in trip.texts:
        for text in filter(None, others):
            if found := Counter(DEBRIS.findall(text)) - Counter(DEBRIS.findall(source)):
                return f"has {', '.join(found)}"
    return ""


def check_digits(trip: RoundTrip) -> str:
    """No number in digits may get lost in the translation, and none come in but for a word of the source (three -> 3).
    1 and 1/2 may get lost, since they often become words, and 1 may come in."""
    for source, translation, _ in trip.texts:
        missing, extra = unmatched(numerals(source), numerals(translation, trip.language))
        extra = unmatched(spelt(source), [readings for readings in extra if 1 not in readings])[1]
        words = {1, Fraction(1, 2)} | (han_numerals(translation) if trip.language in HAN_NUMERALS else set())
        missing = [readings for readings in missing if not readings & words]
        if missing or extra:
            return f"missing {_show(map(min, missing))}, added {_show(map(min, extra))}"
        if signs := _signs(translation) - _signs(source) - {quantity.unit for quantity in quantities(source)}:
            return f"added {_show(signs)}"
    return ""


def check_left_over(trip: RoundTrip) -> str:
    count, share = left_over(trip)
    few = count <= 2 and share <= 0.25  # as total, minute
    return "" if few or share <= 0.10 else f"{share:.0%} of the words are the source's"


def check_marks(trip: RoundTrip) -> str:
    unknown, broken = marks(trip, "*"), marks(trip, "@#")
    return "" if unknown <= 0.10 and broken <= 0.02 else f"{unknown:.0%} unknown words, {broken:.0%} @ or #"


def check_values(trip: RoundTrip) -> str:
    """The numbers of the source, in words or digits, are all there by value and with their signs, and no others.
    1 in digits may come back as a word."""
    for source, _, back in trip.texts:
        before, after = Counter(quantities(source)), Counter(quantities(back))
        if lost_or_added := (before - after) + (after - before):
            lost = before - after
            return f"missing {_show(lost.elements())}, added {_show((lost_or_added - lost).elements())}"
        ones = [len(re.findall(r"(?<![\w.,/-])1(?![\w/]|[.,]\d)", text)) for text in (source, back)]
        if ones[0] - ones[1] > len(re.findall(r"\b(?:one|an?|single|once)\b", back.casefold())):
            return "missing 1"
    return ""


def check_order(trip: RoundTrip) -> str:
    """What the source has in digits and comes back in digits has its order again: who has more depends on it."""
    for source, _, back in trip.texts:
        before, after = ([abs(min(readings)) for readings in numerals(text)] for text in (source, back))
        place, digits = iter(after), set(after) - {1}
        if not all(value in place for value in before if value in digits):
            return f"{_show(before)} became {_show(after)}"
    return ""


def check_names(trip: RoundTrip) -> str:
    known = _words("\n".join(trip.back))
    lost = sorted(name for name in names("\n".join(trip.source)) if name.casefold() not in known)
    return f"missing {', '.join(lost)}" if lost else ""


def check_chrf(trip: RoundTrip) -> str:
    return "" if trip.chrf >= trip.threshold else f"chrF {trip.chrf:.1f} is below {trip.threshold:g}"


def _lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.split("\n"))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.casefold()))


def _signs(text: str) -> set[str]:
    """Of percent and currency."""
    return set(re.findall("[%$€£¥₹₽₩]", re.sub("percent", "%", plain(text))))


def _show(values) -> str:
    return " ".join(map(str, values)) or "nothing"


FORWARD: dict[str, Callable[[RoundTrip], str]] = {  # need no way back
    "complete": check_complete,
    "choices": check_choices,
    "questions": check_questions,
    "sentences": check_sentences,
    "doubled": check_doubled,
    "debris": check_debris,
    "digits": check_digits,
    "left over": check_left_over,
    "marks": check_marks,
}
BACKWARD: dict[str, Callable[[RoundTrip], str]] = {
    "values": check_values,
    "order": check_order,
    "names": check_names,
    "chrF": check_chrf,
}


def verify(trip: RoundTrip) -> Verdict:
    """All checks that can be made; a way back that does not exist fails nothing. Texts that are not complete are
    compared no further."""
    checks = FORWARD | (BACKWARD if trip.back is not None else {})
    if reason := check_complete(trip):
        return Verdict(("complete",), {"complete": reason})
    failures = {name: reason for name, check in checks.items() if (reason := check(trip))}
    ratio = length(trip.translation) / max(1, length(trip.source))
    scores = {"length_ratio": ratio, "left_over": left_over(trip)[1], "unknown": marks(trip, "*")}
    if trip.back is not None:
        scores["chrf"] = trip.chrf
    return Verdict(tuple(checks), failures, {name: round(score, 4) for name, score in scores.items()})
