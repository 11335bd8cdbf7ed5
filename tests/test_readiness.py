"""train.py --dry-run: what is missing is said before the run, and a time only where one was measured."""

import json
from dataclasses import asdict, replace

import pytest
from helpers import call_main, files_under, random_directory, write_tasks

import train
from harness.readiness import duration_line, readiness
from tools import TranslationError
from translation.service import open_translator

CONFIG = train.Config(model=str(random_directory()), lang_tier="low", prompts=4, group_size=2, steps=30)


class Engine:
    """A translator that answers, or fails, and knows ways from some languages only."""

    name = "engine"

    def __init__(self, failure=None, unknown=()):
        self.failure, self.unknown = failure, unknown

    def translate(self, texts, source, target="en"):
        if self.failure:
            raise self.failure
        return ["hello"] * len(texts)

    def route(self, source, target):
        if source in self.unknown:
            raise ValueError(source)


def test_all_that_is_there_is_listed():
    """Catches a check that says "missing" of the embedded world."""
    text = readiness(replace(CONFIG, validation_items=7, test_items=5), open_translator)
    assert "missing" not in text and "translator lexicon: answers" in text
    assert "validation items: 7 in low" in text and "test items: 5 in high" in text and "5 in synthetic" in text


@pytest.mark.parametrize(
    "engine, says",
    [
        (Engine(TranslationError("HTTP 401")), "does not answer (HTTP 401)"),
        (Engine(OSError("refused")), "does not answer (refused)"),
        (Engine(unknown=("low-02", "synthetic-01")), "no way into English from low-02, synthetic-01"),
    ],
)
def test_a_translator_that_would_fail_is_missing(engine, says):
    """Catches a run of hours that finds out about its translator at the first call in a language."""
    (line,) = [line for line in readiness(CONFIG, lambda _: engine).splitlines() if line.startswith("missing")]
    assert says in line


def test_an_address_is_not_shown():
    """Catches a key in a server's address that ends up in a log."""
    text = readiness(replace(CONFIG, translator="chat+http://host/v1?model=a&key=secret"), lambda _: Engine())
    assert "secret" not in text and "translator chat: answers" in text


def test_validation_items_that_are_not_there_are_missing(tmp_path):
    """Catches a file without validation tasks in a tier, found out about after the model has been loaded."""
    data = write_tasks(tmp_path / "tasks.jsonl")
    text = readiness(replace(CONFIG, data=str(data), lang_tier="all"), open_translator)
    assert "missing: validation items in high, xlow; the run would be refused" in text


def timed(run, config, seconds=2.0, steps=6):
    """A run directory with the logs that a rate is measured from; its last step has a validation and takes longer."""
    run.mkdir()
    (run / "config.json").write_text(json.dumps(asdict(config)))
    metrics = [{"step": i + 1, "tokens": 25.0} | ({"validation": {}} if i == steps - 1 else {}) for i in range(steps)]
    times = [{"step": i + 1, "seconds": 100.0 if i == steps - 1 else seconds} for i in range(steps)]
    for name, rows in (("metrics", metrics), ("timings", times)):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_time_is_that_of_the_measured_rate(tmp_path):
    """Catches a time that scales with steps and not with rollouts, and one that counts a validation as a step: 8
    rollouts of 25 tokens in 2 seconds are 100 tokens per second, and 30 x 8 of them take a minute."""
    timed(tmp_path / "old", replace(CONFIG, lang_tier="high"))
    line = duration_line(replace(CONFIG, out=str(tmp_path / "new")))
    assert line.startswith("time: 1.0 minutes for 240 rollouts of 25 tokens, ")
    assert "at the 100 tokens per second of" in line


@pytest.mark.parametrize("other", [{"model": "another"}, {"device": "cuda"}, {"dtype": "bfloat16"}])
def test_no_time_is_told_from_another_model_or_machine(tmp_path, other):
    """Catches a forecast for Qwen3-4B at the rate of a model of a million parameters."""
    timed(tmp_path / "old", replace(CONFIG, **other))
    assert "not known" in duration_line(replace(CONFIG, out=str(tmp_path / "new")))


def test_a_dry_run_says_it_and_writes_nothing(tmp_path, capsys):
    """Catches a check that is made and not printed, and one that leaves a directory behind."""
    words = ["--model", random_directory(), "--lang-tier", "low", "--dry-run", "--out", tmp_path / "run"]
    call_main(train.main, *words)
    printed = capsys.readouterr().out
    assert "predicted memory" in printed and "translator lexicon: answers" in printed and "\ntime: " in printed
    assert files_under(tmp_path) == set()
