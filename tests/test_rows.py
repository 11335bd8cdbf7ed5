"""Logged rollouts: what is looked for is found, groups stay together, and terminals are respected."""

import io
import json

import pytest
from helpers import call_main, hand_made, random_directory

import eval as eval_file
from data import Task, load_tokenizer
from harness import terminal
from harness.metrics import rollout_row
from harness.rows import TAGS, groups, parts, read_rollouts, select, tags
from harness.viewer import show
from reward import Score

TOKENIZER = load_tokenizer(random_directory())
KINDS = [  # tier, domain, right, called, gate
    ("low", "math", 1, False, 1.0),
    ("low", "logic", 0, True, 0.0),
    ("xlow", "math", 0, False, 0.0),
    ("xlow", "math", 1, True, None),
]


def made(tier, domain, right, called, gate, step=1, name="t"):
    task = Task(name, "low-01", tier, "trained", domain, "a b?", ("1", "5"), "5", "how many?")
    score = Score(right, float(right), "5", True, float(called), called)
    row = rollout_row(hand_made(TOKENIZER, task, "5", called), score, step, 0.25)
    return row if gate is None else row | {"gate": gate, "confidence": gate}


ROWS = [made(*kind, step=i // 2 + 1) for i, kind in enumerate(KINDS)]


@pytest.fixture
def logged(tmp_path):
    """A run directory with a tokenizer, and 25 groups of two rollouts in its rollouts.jsonl."""
    (tmp_path / "best").symlink_to(random_directory())
    rows = [made(*KINDS[i % 4], step=i // 2 + 1) for i in range(50)]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path / "rollouts.jsonl"


@pytest.mark.parametrize(
    "only, found",
    [
        ("", [0, 1, 2, 3]),
        ("low", [0, 1]),
        ("low,xlow", [0, 1, 2, 3]),
        ("math,wrong", [2]),
        ("wrong,right,no-call", [0, 2]),
        ("call", [1, 3]),
        ("open", [0]),
        ("shut", [1, 2]),
        ("low,math,wrong", []),
    ],
)
def test_words_of_a_kind_are_alternatives_and_kinds_come_together(only, found):
    """Catches a filter that keeps what is not asked for, and one that calls an unknown gate shut."""
    assert select(ROWS, only) == [ROWS[i] for i in found]


def test_a_word_that_no_rollout_could_have_is_an_error_with_the_words_there_are():
    """Catches a misspelled filter that shows nothing, as if there were no such rollouts."""
    with pytest.raises(ValueError, match="'medium' is none of low, xlow, logic, math, right, wrong, call, no-call"):
        select(ROWS, "low,medium")


def test_each_rollout_has_one_word_of_each_kind():
    """Catches a menu that lacks a kind."""
    assert all(tuple(tags(row)) == TAGS for row in ROWS)
    assert tags(ROWS[1]) == {"tier": "low", "domain": "logic", "verdict": "wrong", "call": "call", "gate": "shut"}


def test_a_group_is_a_task_in_a_step():
    """Catches the same task in two steps taken for one group."""
    rows = [made(*KINDS[0], step=step, name=name) for step in (1, 2) for name in ("t", "u", "t")]
    assert [len(group) for group in groups(rows)] == [2, 1, 2, 1]
    assert groups(rows)[0] == [rows[0], rows[2]]


def test_drawn_and_inserted_ids_keep_their_order():
    """Catches a stretch that is lost or given to the other side."""
    assert parts([5, 6, 7, 8], [1, 1, 0, 1]) == [([5, 6], True), ([7], False), ([8], True)]
    assert parts([], []) == []


def shown(path, **how):
    out = io.StringIO()
    show(path, how.pop("limit", 20), out, **how)
    return out.getvalue()


def test_pages_hold_every_rollout_once(logged):
    """Catches a page that repeats the one before, or a rollout between two pages."""
    pages = [shown(logged, page=page) for page in (3, 2, 1)]
    heads = [line for page in pages for line in page.splitlines() if line.startswith("--- ")]
    assert heads == [line for line in shown(logged, limit=50).splitlines() if line.startswith("--- ")]
    assert len(heads) == 50
    assert "rollouts 31 to 50 of 50 that match; --page 2 has those before" in pages[2]
    assert pages[0].endswith("rollouts 1 to 10 of 50 that match\n")
    with pytest.raises(ValueError, match="--page 4: 50 match, 20 on a page"):
        shown(logged, page=4)


def test_a_filter_says_how_many_there_are(logged):
    """Catches a short list that looks like the whole file."""
    text = shown(logged, only="logic")
    assert text.count("--- ") == 13 and "rollouts 1 to 13 of 13 that match" in text
    assert all("wrong" in line for line in text.splitlines() if line.startswith("--- "))


def test_the_group_view_has_a_line_for_each_rollout_of_a_prompt(logged):
    """Catches a group that is torn apart, and a line that a terminal would break."""
    text = shown(logged, by_group=True, limit=2)
    assert text.count("=== step") == 2 and "=== step 25" in text
    group = text.split("=== ")[1].splitlines()
    assert group[1:4] == ["a b?", "1", "5"]
    assert [line.split()[0] for line in group[4:6]] == ["wrong", "right"]
    assert all(terminal.columns_of(line) <= 100 for line in text.splitlines())
    assert "confidence 1.00, gate open" in shown(logged, by_group=True, limit=25)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("name, value", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_no_colours_gets_none(logged, monkeypatch, name, value):
    """Catches escape codes where somebody has asked for none."""
    out = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show(logged, 2, out)
    assert "\033[" in out.getvalue()
    monkeypatch.setenv(name, value)
    out = Terminal()
    show(logged, 2, out)
    assert "\033[" not in out.getvalue() and "⟦" in out.getvalue()


def test_a_narrow_terminal_gets_narrow_lines(logged, monkeypatch):
    """Catches a table that a small window breaks into pieces."""
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal()
    show(logged, 2, out, by_group=True)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("  ")]
    assert len(lines) == 4 and all(terminal.columns_of(line) <= 40 for line in lines)


@pytest.mark.parametrize(
    "text, columns, fitted",
    [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("日本語", 6, "日本語"), ("日本語", 5, "日本…"), ("a\nb", 9, "a b")],
)
def test_a_line_is_cut_by_what_it_takes_on_the_screen(text, columns, fitted):
    """Catches wide characters that are counted as one column."""
    assert terminal.fit(text, columns) == fitted


def test_the_command_line_takes_the_filters(logged, capsys):
    """Catches an option that is parsed and not used."""
    call_main(eval_file.main, "--show", logged, "--only", "xlow,wrong", "--limit", 3, "--page", 2)
    printed = capsys.readouterr().out
    assert printed.count("--- ") == 3 and "rollouts 7 to 9 of 12 that match" in printed
    call_main(eval_file.main, "--show", logged, "--groups", "--limit", 1)
    assert "groups 25 to 25 of 25" in capsys.readouterr().out


def test_reading_names_the_line_that_is_no_rollout(logged):
    """Catches a filter that dies of a half-written last line without saying where it is."""
    with open(logged, "a") as file:
        file.write("{\n")
    with pytest.raises(ValueError, match=r"rollouts\.jsonl:51: not a rollout"):
        read_rollouts(logged)
