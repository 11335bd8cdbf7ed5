"""Keep what must not change out of an engine's hands: option labels, line breaks, code, LaTeX, numbers, names.

    text -> cut -> pieces -> protect -> (an engine) -> restore

A label or a line break is where a text is cut, and is never sent. All else is sent as a number that the text has not
got: engines copy plain numbers, where they translate, split or drop other placeholders. For the same reason a plain
number is its own placeholder, which leaves its grammar right (1 apple, 2 apples).

Left out: placeholders that come back changed (7,001 for 7001). Such a text is lost, and says so.
"""

import re

from harness.jsonl import is_text
from translation.checks import LABEL, names

CUTS = rf"(\A\s*{LABEL}|\s*\n\s*(?:{LABEL})?)"
PROTECTED = {
    "code": r"```.*?```|`[^`\n]+`",
    "latex": r"\$\$.+?\$\$|\$(?=\S)[^$\n]+?(?<=\S)\$(?!\d)|\\\(.+?\\\)|\\\[.+?\\\]|\\[a-zA-Z]+(?:\{[^{}]*\})*",
    "numbers": r"(?<![\w.])\.\d+|\d+(?:[.,:/]\d+)+",  # with a separator, which a locale may change
}
KINDS = ("labels", *PROTECTED, "names")


class Lost(Exception):
    """A text that cannot be translated without losing what must not change."""


def protect(text: str, kinds: list[str]) -> tuple[str, dict[str, str]]:
    """The text with numbers for what must not change, and what each stands for."""
    patterns = [PROTECTED[kind] for kind in PROTECTED if kind in kinds]
    if "names" in kinds and (known := sorted(names(text))):
        patterns.append(rf"\b(?:{'|'.join(known)})\b")
    found, unused = {}, (str(n) for n in range(7001, 10**6) if str(n) not in text)

    def hide(match: re.Match) -> str:
        found[key := next(unused)] = match[0]
        return key

    return (re.sub("|".join(patterns), hide, text, flags=re.DOTALL) if patterns else text), found


def restore(text: str, found: dict[str, str]) -> str:
    """The inverse of `protect` after a translation. Raises Lost unless each number is there exactly once."""
    for key, hidden in found.items():
        if (count := len(re.findall(rf"(?<!\d){key}(?!\d)", text))) != 1:
            raise Lost(f"{hidden!r} came back {count} times")
    keys = "|".join(found)
    return re.sub(rf"(?<!\d)(?:{keys})(?!\d)", lambda match: found[match[0]], text) if found else text


def cut(text: str, kinds: list[str]) -> list[str]:
    """The text in pieces: those at even places are translated, those between them are labels and line breaks."""
    return re.split(CUTS, text) if "labels" in kinds else [text]


def is_plain(text: str) -> bool:
    """Text without control characters: engines drop them, or take them for the end."""
    return is_text(text) and not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
