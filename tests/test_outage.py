"""A translator that is dead, wrong, poor or elsewhere, and what a run and an evaluation make of it."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from helpers import base_directory, call_main, files_under, random_directory, write_tasks
from servers import Reply, libre, serving

import eval as evaluation
import train
from harness.options import Options, deciding, parse
from harness.rundir import Run
from translation.apertium import Apertium
from translation.engines import Apy, Libre, Recorded
from translation.service import open_translator


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A run of four small steps whose policy calls now and then."""
    data = write_tasks(tmp_path_factory.mktemp("data") / "tasks.jsonl")
    given = f"""--model {base_directory()} --data {data} --lang-tier low --prompts 4 --group-size 8 --save-every 1
        --steps 4 --eval-every 2 --validation-items 4 --test-items 4 --max-new-tokens 100 --advantage-scale none"""
    return given.split()


# --- in the middle of a run -------------------------------------------------------------------------------------

REFUSALS = {
    "a wrong key": (Reply({"error": "API key required"}, 401), "HTTP 401: API key required"),
    "no such path": (Reply("<html><h1>Not Found</h1></html>", 404), "HTTP 404: Not Found"),
    "moved": (Reply("", 302, headers=(("Location", "http://elsewhere/"),)), "HTTP 302"),
    "another protocol": (Reply("<html>welcome</html>"), "the answer is not as the protocol says: welcome"),
    "escape codes": (Reply({"error": "\x1b[2J\x07down\x9b1A"}, 403), "HTTP 403: [2Jdown1A"),
    "a long sentence": (Reply({"error": "x" * 500}, 403), f"HTTP 403: {'x' * 79}…"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_server_that_refuses_every_call_stops_the_run_at_once(options, tmp_path, refusal):
    """Catches a run that ends with exit code 0 after hours in which each call of the tool failed."""
    reply, says = REFUSALS[refusal]
    with serving(lambda request: reply) as server, pytest.raises(SystemExit) as stop:
        call_main(train.main, *options, "--translator", f"libre+{server.url}", "--out", tmp_path / "run")
    assert re.match(r"stopped before step [12]: the translator failed in (\d+) of \1 calls", stop.value.code)
    assert f"(the translation failed ({says}))" in stop.value.code and stop.value.code.isprintable()
    assert "--resume" in stop.value.code


def test_a_run_with_a_call_now_and_then_stops_at_its_second_failure(options, tmp_path):
    """Catches a run that forgets the failures of the steps before, or that ends for the first call that failed."""
    words = [*options, "--prompts", 1, "--minibatches", 1, "--group-size", 2, "--steps", 100, "--eval-every", 100]
    with serving(lambda request: Reply({"error": "no"}, 403)) as server, pytest.raises(SystemExit) as stop:
        call_main(train.main, *words, "--translator", f"libre+{server.url}", "--out", tmp_path / "run")
    assert re.match(r"stopped before step \d+: the translator failed in ([2-8]) of \1 calls", stop.value.code)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["tool_error_rate"] > 0 for row in logged) <= 1


def test_a_language_that_a_server_turns_out_to_lack_ends_the_run_with_a_line(options, tmp_path):
    """Catches a traceback from the middle of a run, where the server has no list that could be asked before."""
    with serving(lambda request: Reply({"error": "low-01 is not supported"}, 400)) as server:
        with pytest.raises(SystemExit, match=r"stopped: libre: .* lacks the language: low-01 is not supported"):
            call_main(train.main, *options, "--translator", f"libre+{server.url}", "--out", tmp_path / "run")


def test_a_run_goes_on_with_a_server_that_has_moved(options, tmp_path, capsys):
    """Catches a resumed run that is refused, or pays for everything again, because of another port."""
    words, runs = [*options, "--cache", tmp_path / "cache"], [tmp_path / "run", tmp_path / "undisturbed"]
    with serving(libre) as first:
        call_main(train.main, *words, "--translator", f"libre+{first.url}", "--out", runs[1])
        asked = [request.body for request in first.requests]
        shutil.copytree(runs[1], runs[0])
        shutil.rmtree(runs[0] / "step-000004")
    with serving(libre) as second:
        moved = [*words, "--translator", f"libre+{second.url}/elsewhere", "--out", runs[0], "--resume"]
        call_main(train.main, *moved)
        assert not any(request.body for request in second.requests) and len(asked) == len(set(asked)) > 1
        with pytest.raises(SystemExit):
            call_main(train.main, *moved[:-1], "--resume", "--translator", f"libre+{second.url}?version=2")
    assert "translator was" in capsys.readouterr().err
    assert (runs[0] / "metrics.jsonl").read_bytes() == (runs[1] / "metrics.jsonl").read_bytes()


def test_what_decides_a_translation_is_told_from_where_its_server_stands(tmp_path):
    """Catches another model, engine or file that passes for the same one at another address."""
    same = ["chat+http://a:1/v1?model=m", "chat+https://b/v2?model=m"]
    others = [
        "chat+http://a:1/v1?model=n",
        "libre+http://a:1",
        "apy+http://a:1",
        "recorded:a",
        "recorded:b",
        "apertium",
    ]
    for name in same:
        saved = json.dumps(vars(replace(parse(train.Config, "", []), translator=name)))
        (tmp_path / "config.json").write_text(saved)
        for other in same:
            Run(tmp_path, replace(train.Config(), translator=other), resume=True)
        for other in others:
            with pytest.raises(ValueError, match="translator was"):
                Run(tmp_path, replace(train.Config(), translator=other), resume=True)
    assert "translator" in deciding(train.Config)


# --- before a run -----------------------------------------------------------------------------------------------


@pytest.fixture
def real_tasks(tmp_path):
    """A file of tasks in five languages, of all tiers; Basque is held out."""
    row = {"question": "¿Cuánto?", "answer": "3"}
    rows = [{**row, "id": f"{code}{i}", "language": code} for code in ("de", "es", "eu", "an", "ca") for i in range(40)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "tasks.jsonl"


def refusal(main, capsys, *words) -> str:
    with pytest.raises(SystemExit) as stop:
        call_main(main, *words)
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and printed.count("\n") == 1
    return printed


def test_tasks_of_real_languages_are_no_work_for_the_lexicon(real_tasks, tmp_path, capsys):
    """Catches `--data FILE` with the default translator, which ended in a traceback at the first call."""
    before = files_under(tmp_path)
    words = ["--model", random_directory(), "--data", real_tasks, "--out", tmp_path / "run"]
    said = refusal(train.main, capsys, *words)
    assert (
        "--translator lexicon does not translate an, ca, de, es, eu into English" in said and "such as apertium" in said
    )
    said = refusal(evaluation.main, capsys, "--policy", random_directory(), "--data", real_tasks)
    assert "--translator lexicon does not translate" in said
    assert files_under(tmp_path) == before


def recording(path, *codes):
    path.write_text("".join(json.dumps({"source": c, "text": "a", "translation": "b"}) + "\n" for c in codes))
    return f"recorded:{path}"


def test_a_recording_without_one_of_the_languages_is_refused_before_the_run(real_tasks, tmp_path, capsys):
    """Catches a language that is found out about in the middle of a run."""
    words = ["--model", random_directory(), "--data", real_tasks, "--out", tmp_path / "run", "--translator"]
    said = refusal(train.main, capsys, *words, recording(tmp_path / "es.jsonl", "es", "an"))
    assert "does not translate ca, de, eu into English" in said and "it has an, es:" in said


LISTS = {
    "libre": (Libre, "/languages", [{"code": "es", "targets": ["en"]}, {"code": "eu", "targets": ["es"]}]),
    "libre of old": (Libre, "/languages", [{"code": "es", "name": "Spanish"}, {"code": "en", "name": "English"}]),
    "apy": (Apy, "/listPairs", {"responseData": [{"sourceLanguage": "es", "targetLanguage": "en"}]}),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_server_is_asked_for_its_languages_before_the_run(real_tasks, tmp_path, capsys, kind):
    """Catches a language that the server would refuse at the first call, and a question for each task."""
    engine, path, listed = LISTS[kind]
    words = ["--model", random_directory(), "--data", real_tasks, "--out", tmp_path / "run", "--translator"]
    with serving(lambda request: Reply(listed)) as server:
        said = refusal(train.main, capsys, *words, f"{engine.name}+{server.url}")
        assert [request.path.partition("?")[0] for request in server.requests] == [path]
        known = open_translator(Options(translator=f"{engine.name}+{server.url}"), ["es"])
    assert (
        re.search("does not translate an, ca, de, eu into English.*; it has (en, )?es:", said)
        and known.name == engine.name
    )


@pytest.mark.parametrize("listed", [b"<html>", b"[1]", b"{}", b"[" * 100_000, b'[{"code": {}}]'], ids=repr)
def test_a_list_that_makes_no_sense_holds_up_no_run(listed, capsys):
    """Catches a server of another make that could not be used because it has no such list, or a traceback from it."""
    with serving(lambda request: Reply(listed)) as server:
        for name in ("libre", "apy"):
            open_translator(Options(translator=f"{name}+{server.url}"), ["es"])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all("has no list of languages" in line and "127.0.0.1" not in line for line in said)


def test_offline_engines_know_their_pairs(tmp_path):
    """Catches a pair without its files, and a recording of another direction."""
    assert Recorded(recording(tmp_path / "r.jsonl", "es", "ca").partition(":")[2]).pairs() == {
        ("es", "en"),
        ("ca", "en"),
    }
    (tmp_path / "modes").mkdir()
    for mode in ("spa-eng", "eng-spa", "spa-arg"):
        (tmp_path / "modes" / f"{mode}.mode").write_text("cat")
    engine = object.__new__(Apertium)
    engine.modes = tmp_path / "modes"
    assert engine.pairs() == {("es", "en"), ("en", "es"), ("en", "an")}


# --- an evaluation ----------------------------------------------------------------------------------------------


def test_an_evaluation_whose_money_is_spent_ends_with_a_line(options, tmp_path):
    """Catches a traceback of eval.py where train.py has one line."""
    words = ["--policy", base_directory(), "--data", options[options.index("--data") + 1], "--mode", "forced"]
    words += ["--max-new-tokens", 60, "--money-per-char", 1, "--max-cost", 90, "--json", tmp_path / "out.json"]
    with serving(libre) as server:
        with pytest.raises(SystemExit, match=r"^stopped: libre cost \d+, and the next text is beyond the limit"):
            call_main(evaluation.main, *words, "--translator", f"libre+{server.url}")
    assert not (tmp_path / "out.json").exists()
