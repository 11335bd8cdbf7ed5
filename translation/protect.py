"""Keep what must not change out of an engine's hands: option labels, line breaks, code, LaTeX, numbers, names.

    text -> cut -> pieces -> protect -> (an engine) -> restore

A label or a line break is where a text is cut, and is never sent. All else is sent as a number that the text has not
got: engines copy plain numbers, where they translate, split or drop other placeholders. For the same reason a plain
number is its own placeholder, which leaves its grammar right (1 apple, 2 apples).

Left out: placeholders that come back changed (7,001 for 7001). Such a text is lost, and says so.
"""

import re
from collections import Counter
from itertools import count

from harness.jsonl import is_text
from translation.checks import LABEL, names

# No pattern may look at one part of a text again and again: a text may be 64,000 blanks, digits or opening brackets. So
# each begins where nothing of its kind stands before it, and ends where another of its kind begins.
CUTS = re.compile(r"\A|\s+")  # where a text may be cut: a line begins at its start, and at blanks with a line break
LABELS = re.compile(LABEL)
PROTECTED = {
    "code": r"```.*?```|`[^`\n]+`",
    # $…$ is money unless it begins behind no letter or digit, and has no word between blanks: $5 and 7$
    "latex": r"\$\$.+?\$\$|(?<![\w$])\$(?=[^\s,.;:!?])(?:(?!\s[^\W\d_]{2,}\s)[^$\n])+?(?<=\S)\$(?!\d)"
    r"|\\\((?:(?!\\\().)+?\\\)|\\\[(?:(?!\\\[).)+?\\\]|\\[a-zA-Z]+(?:\{[^{}]*\})*",
    "numbers": r"(?<![\w.])\.\d+|(?<!\d)\d+(?:[.,:/]\d+)+",  # with a separator, which a locale may change
}
KINDS = ("labels", *PROTECTED, "names")


class Lost(Exception):
    """A text that cannot be translated without losing what must not change."""


def protect(text: str, kinds: list[str]) -> tuple[str, dict[str, str]]:
    """The text with numbers for what must not change, and what each stands for."""
    pattern = "|".join(PROTECTED[kind] for kind in PROTECTED if kind in kinds) or r"(?!)"
    pattern = rf"(?:(?<!\d)\d+)?(?:(?:{pattern})\d*)+"  # with its neighbours: two numbers side by side would be one
    known = names(text) if "names" in kinds else ()
    if known:
        pattern += r"|(?P<name>\b[^\W\d_]+\b)"
    found, taken = {}, set(re.findall(r"\d+", text))
    unused = (key for key in map(str, count(7001)) if key not in taken)

    def hide(match: re.Match) -> str:
        if match.lastgroup == "name" and match[0] not in known:
            return match[0]
        found[key := next(unused)] = match[0]
        return key

    return re.sub(pattern, hide, text, flags=re.DOTALL), found


def restore(text: str, found: dict[str, str]) -> str:
    """The inverse of `protect` after a translation. Raises Lost unless each number is there exactly once."""
    times = Counter(re.findall(r"\d+", text))
    for key, hidden in found.items():
        if times[key] != 1:
            raise Lost(f"{hidden!r} came back {times[key]} times")
    return re.sub(r"\d+", lambda match: found.get(match[0], match[0]), text)


def cut(text: str, kinds: list[str]) -> list[str]:
    """The text in pieces: those at even places are translated, those between them are labels and line breaks."""
    if "labels" not in kinds:
        return [text]
    pieces, start = [], 0
    for blanks in CUTS.finditer(text):
        label = LABELS.match(text, blanks.end()) if blanks.start() == 0 or "\n" in blanks[0] else None
        if label or "\n" in blanks[0]:
            end = label.end() if label else blanks.end()
            pieces += [text[start : max(start, blanks.start())], text[max(start, blanks.start()) : end]]
            start = end
    return [*pieces, text[start:]]


def is_plain(text: str) -> bool:
    """Text without control characters: engines drop them, or take them for the end."""
    return is_text(text) and not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
