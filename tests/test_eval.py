"""eval.py: figures worked out by hand, pairs that are pairs, and a viewer that tells who wrote what."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from helpers import call_main, command, hand_made, random_directory, sums, write_tasks

import eval as eval_file
import model as model_file
from data import Task, load_tokenizer
from eval import breakdown, compare, evaluate, paired_difference, summary
from harness.metrics import rollout_row
from harness.options import Options
from harness.viewer import compare_table, show, table
from reward import Score
from tiny.languages import LexiconTranslator
from tiny.world import render

TOKENIZER = load_tokenizer(random_directory())


def outcome(correct, cost=0.0, domain="math", language="low-01", answered=True):
    task = Task("t", language, "low", "trained", domain, "a b?", (), "5", "how many?")
    score = Score(correct, float(correct), "5", answered, cost, cost > 0)
    return hand_made(TOKENIZER, task, "5", called=cost > 0), score


FOUR = [outcome(1), outcome(0, answered=False), outcome(1, 1.5, "logic"), outcome(0, 0.5, "logic", "low-02")]


# --- figures ----------------------------------------------------------------------------------------------------


def test_a_summary_by_hand():
    """Catches a cost per call where a cost per task is meant, and a tool rate that counts calls."""
    found = summary(FOUR)
    assert found["n"] == 4 and found["accuracy"] == 0.5 and found["tool_rate"] == 0.5
    assert found["cost"] == 0.5 and found["unanswered"] == 0.25 and found["tool_error_rate"] == 0


def test_a_breakdown_holds_each_outcome_once():
    """Catches parts that overlap or that lose an outcome."""
    found = breakdown(FOUR, lambda task: task.domain)
    assert {name: (part["n"], part["accuracy"], part["cost"]) for name, part in found.items()} == {
        "math": (2, 0.5, 0.0),
        "logic": (2, 0.5, 1.0),
    }
    assert list(breakdown(FOUR, lambda task: task.language)) == ["low-01", "low-02"]


@pytest.mark.parametrize("difference", [-0.5, 0.0, 1.0])
def test_a_constant_difference_has_an_interval_of_no_width(difference):
    """Catches a bootstrap that resamples the two policies apart: the pairing would be lost."""
    before = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    assert paired_difference(before, before + difference) == (difference,) * 3


def test_the_difference_is_after_minus_before():
    """Catches a table in which an improvement has the wrong sign."""
    mean, low, high = paired_difference(np.zeros(200), np.tile([0.0, 1.0], 100))
    assert mean == 0.5 and low < 0.5 < high


def test_the_interval_is_that_of_the_mean():
    """Catches an interval of single differences, or of 68% or 99%: for 400 coin tosses it is 0.5 ± 1.96 * 0.025."""
    _, low, high = paired_difference(np.zeros(400), np.tile([0.0, 1.0], 200))
    assert (low, high) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=0.006)


def test_the_interval_is_the_same_every_time():
    """Catches a bootstrap that draws from a shared generator."""
    before, after = np.zeros(50), np.random.default_rng(1).random(50)
    first = paired_difference(before, after)
    np.random.rand(7)
    assert paired_difference(before, after) == first


def test_compare_by_hand():
    """Catches measures that are mixed up on the way into the report."""
    before = {"low": [outcome(0), outcome(0)]}
    after = {"low": [outcome(1, 2.0), outcome(1, 2.0)]}
    row = compare(before, after)["low"]
    assert row["n"] == 2
    assert row["accuracy"] == {"before": 0, "after": 1, "difference": 1, "interval": [1, 1]}
    assert row["cost"] == {"before": 0, "after": 2, "difference": 2, "interval": [2, 2]}
    assert row["tool_rate"]["difference"] == 1


def test_the_compared_table_says_what_the_report_says():
    """Catches swapped columns, and a reward that is not accuracy x 100."""
    report = compare({"low": [outcome(0), outcome(1)]}, {"low": [outcome(1, 3.0), outcome(1, 1.0)]})
    text = compare_table(report, "base", "result")
    (line,) = [line for line in text.splitlines() if line.startswith("low")]
    figures = [float(word) for word in line.replace("[", " ").replace("]", " ").replace(",", " ").split()[1:]]
    assert figures[:3] == [50.0, 100.0, 50.0] and figures[5:] == [0.0, 1.0, 0.0, 2.0]
    assert text.index("base") < text.index("result")


def test_the_table_has_three_figures_for_each_policy():
    """Catches columns that stand under another policy's name."""
    reports = {"first": {"low": summary(FOUR)}, "second": {"low": summary([outcome(1, 1.0)])}}
    lines = table(reports, "by group").splitlines()
    (line,) = [line for line in lines if line.startswith("low")]
    assert [float(word) for word in line.split()[1:]] == [50.0, 0.5, 0.5, 100.0, 1.0, 1.0]
    assert any("first" in line and line.index("first") < line.index("second") for line in lines if "second" in line)


# --- evaluation -------------------------------------------------------------------------------------------------


def blind(seed):
    """A model that gives every token the same probability: what it draws is the uniform numbers themselves."""
    model = model_file.load(random_directory())
    torch.manual_seed(seed)
    for parameter in model.layers.parameters():
        torch.nn.init.normal_(parameter)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    return model


TASKS = [render(item, "low-01") for item in sums()[:6]]


def test_two_policies_meet_the_same_uniform_numbers():
    """Catches policies that draw from one generator in turn: their differences would not be paired."""
    options, translator = Options(max_new_tokens=8), LexiconTranslator()
    first = evaluate(blind(0), TOKENIZER, TASKS, translator, options, seed=3)
    second = evaluate(blind(1), TOKENIZER, TASKS, translator, options, seed=3)
    other = evaluate(blind(0), TOKENIZER, TASKS, translator, options, seed=4)
    assert [r.ids for r, _ in first] == [r.ids for r, _ in second]
    assert [r.ids for r, _ in first] != [r.ids for r, _ in other]


def test_the_mode_reaches_the_sampler():
    """Catches columns that are named forced or forbidden and sampled free."""
    options, translator = Options(max_new_tokens=60), LexiconTranslator()
    forced = evaluate(blind(0), TOKENIZER, TASKS, translator, options, mode="forced")
    assert all(r.calls and not r.sampled[0] and s.used_tool and s.cost > 0 for r, s in forced)
    forbidden = evaluate(blind(0), TOKENIZER, TASKS, translator, options, mode="forbidden")
    assert not any(r.calls or TOKENIZER.control["<tool_call>"] in r.ids for r, _ in forbidden)


# --- the viewer -------------------------------------------------------------------------------------------------


@pytest.fixture
def logged(tmp_path):
    """A rollouts.jsonl of three rollouts in a run directory with a policy."""
    run = tmp_path / "run"
    model_file.save(model_file.load(random_directory()), run / "best")
    (run / "best" / "tokenizer.json").write_bytes((random_directory() / "tokenizer.json").read_bytes())
    rows = [
        rollout_row(*outcome(c, cost), step=i + 1, advantage=0.5)
        for i, (c, cost) in enumerate([(1, 1.0), (0, 0.0), (1, 0.0)])
    ]
    (run / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run / "rollouts.jsonl"


def test_the_viewer_tells_sampled_and_inserted_apart(logged):
    """Catches a tool result that looks like the policy's own words."""
    out = io.StringIO()
    show(logged, 20, out)
    first = out.getvalue().split("--- ")[1]
    inserted = first[first.index("⟦") + 1 : first.index("⟧")]
    sampled = first[first.index("> ") + 2 : first.index("⟦")] + first[first.index("⟧") + 1 :]
    assert "<tool_response>\nhow many?\n</tool_response>" in inserted and '"name"' not in inserted
    assert '"name": "translate"' in sampled and sampled.strip().endswith("5<|im_end|>")
    assert out.getvalue().count("⟦") == 1


def test_the_viewer_uses_colours_on_a_terminal(logged):
    """Catches escape codes in a file, or brackets on a terminal."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, file = Terminal(), io.StringIO()
    show(logged, 20, terminal)
    show(logged, 20, file)
    assert "\033[" in terminal.getvalue() and "⟦" not in terminal.getvalue() and "\033[" not in file.getvalue()


def test_the_viewer_shows_the_last_ones(logged):
    """Catches a limit that shows the first rollouts of a long run."""
    out = io.StringIO()
    show(logged, 2, out)
    assert "step 1 " not in out.getvalue() and "step 2 " in out.getvalue() and "step 3 " in out.getvalue()
    assert "wrong, the answer is '5'" in out.getvalue()


def test_the_viewer_tells_a_partial_reward(logged):
    """Catches partial credit that nobody can see: "wrong" alone would hide what is optimised."""
    task = Task("t", "low-01", "low", "trained", "math", "a b?", (), "5")
    row = rollout_row(hand_made(TOKENIZER, task, "5"), Score(0, 0.25, "5", True, 0.0, False), step=4, advantage=0.0)
    with open(logged, "a") as file:
        file.write(json.dumps(row) + "\n")
    out = io.StringIO()
    show(logged, 20, out)
    assert "wrong, the answer is '5', reward 0.25, cost" in out.getvalue()
    assert out.getvalue().count("reward") == 1


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"task": {}, "score": {}, "ids": [1], "sampled": [1]}'])
def test_the_viewer_names_a_line_that_is_no_rollout(logged, line):
    """Catches a traceback over a half-written last line."""
    with open(logged, "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"rollouts\.jsonl:4: not a rollout"):
        show(logged, 20, io.StringIO())


def test_the_viewer_reads_lines_that_hold_unicode_line_separators(logged):
    """Catches str.splitlines, which also splits at U+2028."""
    task = Task("t", "low-01", "low", "trained", "math", "a\u2028b?", (), "5")
    row = rollout_row(hand_made(TOKENIZER, task, "5"), Score(1, 1.0, "5", True, 0.0, False), step=4, advantage=0.0)
    with open(logged, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    out = io.StringIO()
    show(logged, 1, out)
    assert "a\u2028b?" in out.getvalue()


# --- the command line -------------------------------------------------------------------------------------------


def test_two_policies_on_the_command_line(tmp_path):
    """Catches a command line that works in the tests' process only, and a file that lacks a policy or a cut."""
    other = tmp_path / "other"
    other.mkdir()
    torch.manual_seed(1)
    base = model_file.load(random_directory())
    model_file.save(model_file.Qwen3(base.config), other)
    (other / "tokenizer.json").write_bytes((random_directory() / "tokenizer.json").read_bytes())
    out = tmp_path / "out.json"
    done = command(
        "eval.py",
        "--policy",
        random_directory(),
        "--policy",
        other,
        "--tiers",
        "low,synthetic",
        "--items",
        10,
        "--max-new-tokens",
        8,
        "--by-language",
        "--json",
        out,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(out.read_text(encoding="utf-8"))
    names = [str(random_directory()), str(other)]
    assert found["options"]["items"] == 10 and found["options"]["policy"] == names
    for cut, parts in (("group", {"low", "synthetic"}), ("domain", None), ("language", None)):
        assert list(found[cut]) == names
        for report in found[cut].values():
            assert sum(part["n"] for part in report.values()) == 20
            assert parts is None or set(report) == parts
            assert {"accuracy", "tool_rate", "cost"} <= set(next(iter(report.values())))
    assert list(found["differences"]) == names[1:] and set(found["differences"][names[1]]) == {"low", "synthetic"}
    for title in ("by group", "by domain", "by language", f"{other} against"):
        assert title in done.stdout


def test_a_file_without_some_tiers_is_evaluated_on_those_it_has(tmp_path, monkeypatch, capsys):
    """Catches a default of --tiers that only the embedded world can satisfy, and counts of items that are not there."""
    data = write_tasks(tmp_path / "tasks.jsonl")
    monkeypatch.setattr(sys, "argv", ["eval.py"])
    eval_file.main(["--policy", str(random_directory()), "--data", str(data), "--max-new-tokens", "4"])
    assert "low" in capsys.readouterr().out


def test_a_translator_that_fails_is_told_beside_the_figures(tmp_path, capsys):
    """Catches an accuracy that is that of an outage, in a table that does not say so."""
    (tmp_path / "none.jsonl").write_text('{"text": "a", "translation": "b", "source": "low-01"}\n')
    words = ["--policy", random_directory(), "--tiers", "low", "--items", 3, "--max-new-tokens", 60, "--mode", "forced"]
    call_main(eval_file.main, *words, "--translator", f"recorded:{tmp_path / 'none.jsonl'}")
    printed = capsys.readouterr().out
    assert "3 test items per group" in printed and "the translator failed in 100.0% of the rollouts" in printed


def test_plotting_without_matplotlib_is_one_clear_line(tmp_path, monkeypatch, capsys):
    """Catches a missing extra that is found out about after the evaluation, or by a traceback."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stop:
        eval_file.main(
            [
                "--policy",
                str(random_directory()),
                "--tiers",
                "low",
                "--items",
                "2",
                "--max-new-tokens",
                "4",
                "--plot",
                str(tmp_path / "out.png"),
            ]
        )
    printed = capsys.readouterr()
    assert stop.value.code == 2 and "pip install" in printed.err and printed.err.count("\n") == 1
    assert printed.out == ""
