"""Outside text on a terminal: it is shown, and steers nothing."""

import io
import json
import unicodedata

import pytest
from helpers import base_directory, call_main, hand_made, random_directory, sums
from hypothesis import given
from hypothesis import strategies as st

import eval as evaluation
import model as model_file
import train
from data import load_tokenizer
from harness.escape import in_line, on_screen
from harness.metrics import rollout_row
from harness.viewer import show
from reward import score
from tiny.world import render

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b1A\rright\x08\x7f\u202eevil\u2066\n--- step 9  forged"
STEERS = [chr(c) for c in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))]


@given(st.text())
def test_no_text_steers_a_terminal(text):
    """Catches a control character that is let through, in its form of one byte or of two."""
    shown, line = on_screen(text), in_line(text)
    assert not set(shown) & (set(STEERS) - {"\n", "\t"}) and not set(line) & {*STEERS, "\u2028", "\u2029"}
    assert (shown + line).encode("utf-8").decode() == shown + line and len(line.splitlines()) <= 1
    assert shown.count("\n") == text.count("\n")


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])))
def test_what_steers_nothing_is_shown_as_it_is(text):
    """Catches joiners of Indic scripts and Persian, wide blanks and marks that are turned into codes."""
    if not any(0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 for c in text):
        assert on_screen(text) == in_line(text) == text


def test_codes_are_spelled_as_python_spells_them():
    """Catches a code from which nobody can tell the character."""
    assert in_line("a\x1b[2J\n\x9b\u202e\ud800é") == "a\\x1b[2J\\n\\x9b\\u202e\\ud800é"
    assert on_screen("a\tb\nक्‍ष\u3000") == "a\tb\nक्‍ष\u3000"
    assert all(unicodedata.category(c) in ("Cc", "Cf") and in_line(c).isascii() for c in STEERS)


@pytest.fixture
def hostile_run(tmp_path):
    """A run directory with a rollout whose task and answer hold what a terminal would obey."""
    run, tokenizer = tmp_path / "run", load_tokenizer(random_directory())
    model_file.save(model_file.load(random_directory()), run / "best")
    (run / "best" / "tokenizer.json").write_bytes((random_directory() / "tokenizer.json").read_bytes())
    made = hand_made(tokenizer, render(sums()[0], "low-01"), f"3{HOSTILE}", called=True)
    row = rollout_row(made, score(made, tokenizer), step=1, advantage=0.5)
    row["task"] |= {"id": HOSTILE, "question": HOSTILE, "choices": [HOSTILE], "answer": HOSTILE}
    row["stop"] = HOSTILE
    (run / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
    return run / "rollouts.jsonl"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_viewer_shows_a_hostile_rollout_as_text(hostile_run):
    """Catches escape codes of a question, a choice, an id or an answer that reach the terminal, and a forged head."""
    show(hostile_run, 1, plain := io.StringIO())
    assert not set(plain.getvalue()) & (set(STEERS) - {"\n", "\t"})
    assert plain.getvalue().splitlines()[0].startswith("--- step 1  \\x1b[2J")
    assert plain.getvalue().count("\\x1b[2J") >= 5
    show(hostile_run, 1, terminal := Terminal())
    ours = {"\x1b[1;32m", "\x1b[2m", "\x1b[0m"}  # the viewer's own colours
    shown = terminal.getvalue()
    for code in ours:
        shown = shown.replace(code, "")
    assert not set(shown) & (set(STEERS) - {"\n", "\t"})


def test_the_first_prompt_of_a_run_is_shown_as_text(tmp_path, capsys):
    """Catches escape codes of a task that reach the terminal before the first step."""
    row = {"id": "a", "language": "low-01", "tier": "low", "split": "trained", "question": HOSTILE, "answer": "3"}
    rows = [{**row, "id": f"{i}\x1b"} for i in range(60)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", base_directory(), "--data", tmp_path / "tasks.jsonl", "--lang-tier", "low", "--dry-run"]
    call_main(train.main, *words)
    printed = capsys.readouterr().out
    assert "\\x1b[2J" in printed and not set(printed) & (set(STEERS) - {"\n", "\t"})


@pytest.mark.parametrize(
    "row",
    [
        {"id": HOSTILE, "language": "low-01", "tier": HOSTILE, "split": "trained", "question": "?", "answer": "3"},
        {"id": HOSTILE, "language": HOSTILE, "question": "?", "answer": "3"},
        {"id": [HOSTILE], "language": "es", "question": "?", "answer": "3"},
    ],
    ids=["tier", "language", "id"],
)
def test_an_error_that_quotes_a_file_is_one_line_of_text(tmp_path, capsys, row):
    """Catches a value of a file that reaches the terminal in an error, or breaks its line."""
    path = tmp_path / "a\x1b[2Jb.jsonl"
    path.write_text(json.dumps(row) + "\n")
    for main, words in ((train.main, []), (evaluation.main, ["--policy", random_directory()])):
        with pytest.raises(SystemExit):
            call_main(main, *words, "--data", path)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and not set(said) & (set(STEERS) - {"\n"})
