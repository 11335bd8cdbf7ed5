"""Text from outside, made safe to print: it can move no cursor, clear no screen and forge no line.

    a question, a rollout, a server's sentence, a file's content -> on_screen | in_line -> a terminal

A terminal obeys what it is shown: an escape sequence in a question could rename its window, overwrite the line above,
or say "right" where a verdict stands. So each control character is shown by its code, as Python spells it: \\x1b.
Letters of all languages stay, and so do the joiners that Indic scripts and Persian are written with.
"""

import unicodedata

_TURNS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # they turn the direction of what stands behind them


def on_screen(text: str) -> str:
    """The text with its line breaks and tabs; all else that would steer a terminal by its code."""
    return "".join(c if c in "\n\t" or not _steers(c) else _code(c) for c in text)


def in_line(text: str) -> str:
    """The same as a piece of one line: line breaks by their codes, too."""
    return "".join(_code(c) if _steers(c) or c in "\u2028\u2029" else c for c in text)


def _steers(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cs") or ord(c) in _TURNS  # Cs: half of a pair, which cannot be printed


def _code(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")
