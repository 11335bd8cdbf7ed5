"""harness/inherit.py: eval.py measures a policy as it was trained, and says where it does not."""

import json
from dataclasses import asdict, replace

import pytest
from helpers import call_main, random_directory, write_tasks

import eval as eval_file
import train
from harness.inherit import inherited, run_of
from harness.options import parse

TRAINED = train.Config(think=False, answer_format="boxed", price_call=0.25, translator="apertium", max_calls=1)


def make_run(directory, config=TRAINED, **more):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(asdict(config) | more))
    return directory


def options(*words):
    return parse(eval_file.EvalOptions, "", [str(word) for word in words], inherited)


def test_a_policy_is_measured_as_it_was_trained(tmp_path, capsys):
    """Catches a boxed policy that is scored as a plain one: every answer would be wrong, silently."""
    run = make_run(tmp_path / "run")
    found = options("--policy", run)
    names = ("think", "answer_format", "price_call", "translator", "max_calls")
    assert {name: getattr(found, name) for name in names} == {name: getattr(TRAINED, name) for name in names}
    said = capsys.readouterr().out
    assert "--no-think" in said and "--answer-format boxed" in said and "--price-char" not in said


def test_an_option_that_is_given_wins(tmp_path):
    """Catches a run that overrules its user, and fields of one file that are looked for in another."""
    run = make_run(tmp_path / "run", replace(TRAINED, data="a.jsonl", fields="question=text"))
    found = options("--policy", run, "--translator", "lexicon", "--think")
    assert (found.translator, found.think, found.answer_format) == ("lexicon", True, "boxed")
    assert (found.data, found.fields) == ("a.jsonl", "question=text")
    found = options("--policy", run, "--data", "b.jsonl")
    assert (found.data, found.fields) == ("b.jsonl", "")


def test_a_difference_between_runs_is_said(tmp_path, capsys):
    """Catches a second policy that is measured under the first one's conditions without a word."""
    first, other = make_run(tmp_path / "first"), make_run(tmp_path / "other", replace(TRAINED, price_call=0.75))
    assert options("--policy", first, "--policy", other).price_call == 0.25
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(other))]
    assert "--price-call 0.75, not 0.25" in line and "--max-calls" not in line
    assert options("--policy", first, "--policy", other, "--price-call", "1").price_call == 1
    assert str(other) not in capsys.readouterr().out


def test_a_runs_best_policy_belongs_to_the_run_and_a_model_directory_to_none(tmp_path):
    """Catches --policy runs/low/best measured with other settings than --policy runs/low."""
    run = make_run(tmp_path / "run")
    (run / "best").mkdir()
    (run / "best" / "config.json").write_text('{"model_type": "qwen3"}')
    assert run_of(run) == run_of(run / "best") == run
    assert run_of(random_directory()) is None and run_of("nowhere") is None
    assert options("--policy", random_directory()) == replace(
        eval_file.EvalOptions(), policy=(str(random_directory()),)
    )


@pytest.mark.parametrize("name, value", [("think", "yes"), ("max_calls", True), ("price_call", None), ("system", [3])])
def test_a_setting_of_another_type_is_named(tmp_path, capsys, name, value):
    """Catches a traceback, or a text where a number is meant, from a config.json that was edited."""
    run = make_run(tmp_path / "run", **{name: value})
    with pytest.raises(SystemExit) as stop:
        options("--policy", run)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and "config.json" in line and name in line


def test_a_number_of_an_older_run_is_read_where_text_is_meant(tmp_path):
    """Catches runs whose --tool-noise was one number: it may be three by now."""
    assert options("--policy", make_run(tmp_path / "run", tool_noise=0.25)).noise["low"] == 0.25


def test_the_settings_reach_the_evaluation(tmp_path, capsys):
    """Catches settings that are read and not used: the run's file of tasks is what is evaluated on."""
    data = write_tasks(tmp_path / "tasks.jsonl")
    run = make_run(tmp_path / "run", train.Config(data=str(data), max_new_tokens=4))
    (run / "best").symlink_to(random_directory())
    call_main(eval_file.main, "--policy", run)
    assert str(data) in capsys.readouterr().out
