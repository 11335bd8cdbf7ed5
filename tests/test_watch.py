"""What a run shows while it runs: lines that fit, a picture, boards; and no control codes."""

import importlib.util
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers import call_main, command, random_directory, write_tasks

import train
from data import load_tokenizer
from harness.boards import TensorBoard, flat, open_board
from harness.watch import Watch, columns, duration, picture, step_line, validation_columns

PART = {"accuracy": 0.85, "tool_rate": 0.44, "cost": 1.41, "gate_rate": 0.5}
METRICS = {
    "reward": 0.62,
    "gate_rate": 0.45,
    "reversed_rate": 0.02,
    "tier": dict.fromkeys(("high", "low", "xlow"), PART),
}
CONFIG = train.Config(steps=10_000)


def heads(cells, columns=100):
    return step_line(cells, columns, head=True).split()


@pytest.mark.parametrize("tier", ["all", "low"])
@pytest.mark.parametrize("width", [100, 80, 60, 40, 20])
def test_a_line_fits(tier, width):
    """Catches a line that a terminal breaks in two: the longest one that a run of 10,000 steps can have."""
    config = replace(CONFIG, lang_tier=tier)
    cells = columns(10_000, config, METRICS, 9999.9, 359_999)
    assert len(step_line(cells, width)) <= width and len(step_line(cells, width, head=True)) <= width
    assert len(step_line(validation_columns(config, METRICS), width, note="  accuracy 0.123, best so far")) <= width


def test_a_line_holds_each_tiers_figures_under_their_heads():
    """Catches a column that stands under another's head, and a tier that is given another's figures."""
    metrics = METRICS | {"tier": {"low": PART, "xlow": PART | {"accuracy": 0.3, "tool_rate": 0.7}}}
    cells = columns(7, CONFIG, metrics, 2.34, 3723)
    found = {head: text for head, text, _ in cells}
    assert (found["step"], found["reward"], found["gate"], found["rev"]) == ("7/10000", "0.62", "0.45", "0.02")
    assert (found["seconds"], found["left"]) == ("2.3", "1:02:03")
    assert [text for head, text, _ in cells if head.endswith("%")] == ["-", "85", "30"]
    assert [text for head, text, _ in cells if head == "tool"] == ["-", "0.44", "0.70"]
    line, head = step_line(cells, 100), step_line(cells, 100, head=True)
    assert len(line) == len(head) and line.index("0.62") + 4 == head.index("reward") + 6


def test_without_a_rate_of_reversals_there_is_no_column_for_it():
    """Catches a line that needs a metric which older runs do not have."""
    assert "rev" not in heads(columns(7, CONFIG, {k: v for k, v in METRICS.items() if k != "reversed_rate"}, 1, 1))


def test_a_rate_that_has_no_value_in_a_step_is_a_dash():
    """Catches a run that ends where no right answer had a call."""
    assert ("rev", "-", 5) in columns(7, CONFIG, METRICS | {"reversed_rate": None}, 1, 1)


def test_a_narrow_terminal_keeps_step_and_tiers():
    """Catches a line that is cut in the middle of a figure although there are columns to do without."""
    cells = columns(7, replace(CONFIG, lang_tier="low"), METRICS, 1, 1)
    assert step_line(cells, 40, head=True).split() == ["step", "reward", "low", "%", "tool", "cost"]


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (59.6, "1:00"), (245, "4:05"), (3723, "1:02:03")])
def test_a_duration_as_a_clock_shows_it(seconds, text):
    """Catches 0:60, and minutes beyond an hour."""
    assert duration(seconds) == text


def test_the_picture_shows_each_tiers_tool_rate_at_its_height():
    """Catches a picture that stands on its head, or that shows the first steps only."""
    rows = [{"step": i + 1, "tier": {"low": {"tool_rate": i / 99}, "xlow": {"tool_rate": 0.5}}} for i in range(100)]
    lines = picture(rows, 56).splitlines()[2:]
    assert len(lines) == 11 and max(map(len, lines)) <= 56
    assert lines[0].startswith(" 1.0 |") and lines[0].rstrip().endswith("l")
    assert lines[-1].startswith(" 0.0 |l") and set(lines[5][6:]) <= {"x", "*"} and "*" in lines[5]
    assert "steps 1 to 100" in picture(rows, 56) and "l low, x xlow" in picture(rows, 56)
    assert picture([], 56) == ""


def test_a_short_run_has_a_picture_too():
    """Catches a division by the number of columns that a short run does not fill."""
    assert "l" in picture([{"step": 1, "tier": {"low": {"tool_rate": 0.2}}}], 80).splitlines()[-3]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run in a process of its own, its output in a pipe: (run directory, what it printed)."""
    place = tmp_path_factory.mktemp("watched")
    words = "--lang-tier low --steps 3 --prompts 2 --group-size 2 --eval-every 2 --validation-items 2 --test-items 2"
    words += f" --max-new-tokens 8 --model {random_directory()} --data {write_tasks(place / 'tasks.jsonl')}"
    done = command("train.py", *words.split(), "--out", place / "run")
    assert (done.returncode, done.stderr) == (0, "")
    return place / "run", done.stdout


def test_a_pipe_gets_lines_without_control_codes(run):
    """Catches carriage returns and colours in a log file."""
    _, printed = run
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed)
    told = printed[printed.index("one line per step") :].splitlines()
    assert all(len(line) <= 100 for line in told[:8])


def test_there_is_a_line_for_each_step_and_each_validation(run):
    """Catches a step that nobody sees, and a validation under another step."""
    steps = [line.split()[0] for line in run[1].splitlines() if re.match(r" *(\d/3|valid) ", line)]
    assert steps == ["1/3", "2/3", "valid", "3/3", "valid"]
    assert "best so far" in run[1]


def test_a_run_ends_with_a_picture_and_a_page(run):
    """Catches a page without the closing table, because it was written before there was one."""
    directory, printed = run
    assert "tool rate by tier (l low), steps 1 to 3" in printed and str(directory / "report.html") in printed
    html = (directory / "report.html").read_text(encoding="utf-8")
    assert '<section id="table">' in html and "3 of 3 steps" in html


def test_names_on_a_board_are_those_of_the_log():
    """Catches a tier whose figures overwrite another's."""
    assert flat({"a": 1, "b": None, "tier": {"low": {"cost": 2}, "xlow": {"cost": 3}}}) == {
        "a": 1,
        "tier/low/cost": 2,
        "tier/xlow/cost": 3,
    }


def test_a_board_whose_package_is_missing_is_one_line(monkeypatch, capsys, tmp_path):
    """Catches a run that dies of a missing extra after its first step."""
    found = importlib.util.find_spec
    monkeypatch.setattr("harness.options.find_spec", lambda name: None if name == "wandb" else found(name))
    with pytest.raises(SystemExit) as stop:
        call_main(train.main, "--log", "wandb", "--out", tmp_path / "run")
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and "pip install wandb" in line
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_every_number_of_a_step(tmp_path):
    """Catches a metric that is missing on the board, and steps that a resumed run shows twice."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first in (0, 1):  # the second one goes on behind step 1
        board = TensorBoard(tmp_path, first)
        for step in range(first + 1, 4):
            board.log(step, {"accuracy": step + 10 * first, "tier": {"low": {"cost": 0.5}}})
        board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"accuracy", "tier/low/cost"}
    assert [(event.step, event.value) for event in events.Scalars("accuracy")] == [(1, 1), (2, 12), (3, 13)]


def test_weights_and_biases_gets_every_number_of_a_step(tmp_path, monkeypatch):
    """Catches a call that its client does not take; offline, so nothing leaves the machine."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    board = open_board("wandb", tmp_path, {"steps": 3}, 0)
    board.log(1, {"accuracy": 0.5, "tier": {"low": {"cost": 0.25}}})
    summary = dict(board._run.summary)
    board.close()
    assert summary["accuracy"] == 0.5 and summary["tier/low/cost"] == 0.25
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_no_board_is_the_default_and_writes_nothing(run):
    """Catches a package that is asked for by everybody."""
    directory, _ = run
    assert json.loads((directory / "config.json").read_text())["log"] == "none"
    assert {path.name for path in directory.iterdir() if path.is_dir()} <= {"best", "step-000002", "step-000003"}


def test_a_page_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    """Catches a training of days that dies of a full disk, or of a damaged log, for the sake of a picture."""
    run = SimpleNamespace(path=tmp_path / "nowhere", is_writer=True, state={"step": 0, "best": None})
    watch = Watch(run, CONFIG, load_tokenizer(random_directory()))
    watch.step(1, METRICS | {"updates": 0, "validation": {"accuracy": 0.5, "tier": METRICS["tier"]}}, 1.0)
    printed = capsys.readouterr().out
    assert "report.html was not written" in printed and "nothing was learned" in printed
