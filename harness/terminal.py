"""What a terminal is told apart by: colours, and how wide it is. A pipe gets neither control codes nor cut lines."""

import os
import shutil
import unicodedata


def has_colours(stream) -> bool:
    """Whether to colour what is printed there: a terminal, unless NO_COLOR says otherwise (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width(stream, otherwise: int = 100) -> int:
    """Columns of the terminal, `otherwise` for a pipe or a file."""
    return max(20, shutil.get_terminal_size((otherwise, 24)).columns) if stream.isatty() else otherwise


def fit(text: str, columns: int) -> str:
    """One line of at most so many columns; … stands where it was cut. Wide characters take two, marks none."""
    text, used = " ".join(text.split("\n")), 0
    for i, character in enumerate(text):
        used += columns_of(character)
        if used > columns:
            while i and columns_of(text[:i]) > columns - 1:
                i -= 1
            return text[:i] + "…"
    return text


def columns_of(text: str) -> int:
    """How many columns a text takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
