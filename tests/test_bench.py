"""The benchmarks at toy shapes: both sides of each compute the same, and the table is printed."""

import json
import re
import sys

import pytest
import torch

from bench import cache, decode, gpu, gpu_parts, growth, job, logprobs, rollouts, turns, update


def test_the_cache_on_the_disk_and_in_memory_hold_the_same(tmp_path, capsys):
    """Catches a benchmark whose sides do different work, or that no longer runs."""
    cache.main(["--items", "2", "--repeats", "1", "--out", str(tmp_path)])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[:2] for row in rows] == [["1", "1"], ["1", "8"], ["50", "1"], ["50", "8"]]
    assert not list(tmp_path.iterdir())


def test_log_probs_by_chunks_and_by_all_logits_agree(capsys):
    """The same; the toy is large enough for the peak of full logits to lie above the chunks'."""
    shape = ["--tokens", "1000", "--hidden", "8", "--vocab", "20000"]
    logprobs.main([*shape, "--repeats", "1"])
    printed = capsys.readouterr().out
    assert printed.count("times the bare products") == 3
    full, chunked = (float(re.search(rf"{way} +([\d,]+) MB", printed)[1]) for way in ("full", "chunked"))
    assert full > chunked
    found = {"full": [logprobs.torch.ones(3)], "chunked": [logprobs.torch.tensor([1.0, 1.0, 2.0])]}
    assert not logprobs.agreed(found, 3e-2)


def test_ways_take_turns_and_the_first_turn_does_not_count():
    """Catches a warm-up among the figures, ways that run block by block, and ratios of what is not of one turn."""
    calls, time = [], iter(range(100))
    ways = {name: lambda name=name: calls.append(name) or len(calls) for name in ("one", "other")}
    seconds, found = turns.in_turns(ways, 3, lambda: float(next(time)))
    assert calls == ["one", "other"] * 4 and found == {"one": 7, "other": 8}
    assert seconds == {"one": [1.0] * 3, "other": [1.0] * 3}
    found = turns.ratios({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0]}, "a", "b")
    assert found == [2.0, 3.0, 1.0] and turns.spread(found) == "2.00 (1.00, 3.00)"


@pytest.mark.parametrize("case", rollouts.CASES, ids=[case.name for case in rollouts.CASES])
def test_rollouts_are_those_that_generate_writes(case, capsys, monkeypatch):
    """Catches a benchmark whose sides sample different texts: one of them would have less to do."""
    pytest.importorskip("transformers")
    toy = rollouts.Place("cpu", toy=True).shape("0.6B")
    monkeypatch.setattr(rollouts, "shape", lambda name: toy)
    rollouts.main(["--rows", "4", "--repeats", "1", "--cases", str(1 + rollouts.CASES.index(case))])
    assert capsys.readouterr().out.splitlines()[-1].startswith(case.name)


def test_rollouts_that_differ_are_not_compared(monkeypatch):
    """Catches an agreement that is never looked at: here one side draws by other numbers."""
    pytest.importorskip("transformers")
    original, other = rollouts.turn_by_turn, torch.Generator()
    monkeypatch.setattr(rollouts, "turn_by_turn", lambda *args: original(*args[:5], other.manual_seed(1), args[6]))
    with pytest.raises(AssertionError, match="no tools: both sides write the same, but only in"):
        rollouts.main(["--rows", "8", "--repeats", "1", "--cases", "1"])


def test_all_ways_to_the_updates_log_probs_agree(capsys):
    """Catches a way that scores other tokens, sees other prompts, or has another gradient."""
    update.main(["--prompts", "2", "--long", "1", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert printed.count("times as long as shared") == 2 * (1 + len(update.peers()))


def test_growth_and_decoding_print_their_tables(capsys):
    """Catches a benchmark that no longer runs, and products that are not the step's own."""
    growth.main(["--groups", "1", "--repeats", "1"])
    assert capsys.readouterr().out.count("times the row above") == 3
    decode.main(["--rows", "2", "--context", "3", "--repeats", "1"])
    assert re.findall(r"^(\w+) .* of the step$", capsys.readouterr().out, re.M) == ["products", "attention", "draw"]
    model, seen = decode.load_policy("tiny")[0], []
    original = torch.nn.functional.linear
    with pytest.MonkeyPatch.context() as patches, torch.no_grad():
        patches.setattr(torch.nn.functional, "linear", lambda x, w, *bias: seen.append(w.shape) or original(x, w))
        decode.products(model, 2)()
        by_hand = sorted(seen)
        seen.clear()
        model.logits(model(torch.zeros(2, 1, dtype=torch.long)))
    assert by_hand == sorted(seen)


def test_the_phases_of_a_job_add_up(capsys):
    """Catches a phase that is counted twice, or not at all."""
    small = "--prompts 2 --minibatches 1 --validation-items 2 --eval-every 2"
    job.main(["--steps", "2", "--items", "2", "--options", small])
    lines = capsys.readouterr().out.splitlines()[-7:-1]
    names = ["sampling", "update", "validation", "closing evaluation", "  of which the base", "the rest"]
    found = {line[:22].rstrip(): float(re.search(r"([\d.]+)%", line)[1]) for line in lines}
    assert list(found) == names
    base = found.pop("  of which the base")
    assert 0 < base < found["closing evaluation"] and sum(found.values()) == pytest.approx(100, abs=0.5)


# --- the GPU's ----------------------------------------------------------------------------------------------------


def test_without_a_gpu_there_are_no_rows_of_one(tmp_path, capsys, monkeypatch):
    """Catches figures of a CPU under the name of a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--out", str(tmp_path / "day")])
    assert ended.value.code == 2 and "torch finds no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "day").exists()


ONCE = ["kernel", "log-probs", "world", "step-0.6B", "decode-0.6B", "generate-0.6B"]  # 4B is the same toy


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """These parts at toy shapes, each in a process of its own."""
    out = tmp_path_factory.mktemp("day")
    gpu.main(["--toy", "--parts", ",".join(ONCE), "--out", str(out)])
    return out


def test_all_parts_run_and_make_their_tables(day):
    """Catches a part that ends in a traceback on the one day that somebody has a GPU."""
    parts = json.loads((day / "rows.json").read_text())["parts"]
    assert list(parts) == ONCE and {part["error"] for part in parts.values()} == {""}
    tables = (day / "tables.md").read_text()
    for table, (_, title, columns) in gpu_parts.TABLES.items():
        mine = [cells for part in parts.values() for name, cells in part["rows"] if name == table]
        assert mine and {len(cells) for cells in mine} == {len(columns)} and title in tables
    assert {cells[-1] for name, cells in parts["kernel"]["rows"]} == {"yes"}
    assert tables.startswith("device toy shapes on the CPU, no figures of a GPU, ")


def test_a_toys_tables_hold_no_seconds_and_no_memory(day):
    """Catches a figure that was measured on nothing."""
    rows = [row for part in json.loads((day / "rows.json").read_text())["parts"].values() for row in part["rows"]]
    measured = {"log-probs": [3, 4, 5], "step": [3, 4], "memory": [2, 4], "decode": [3, 4, 5, 6], "generate": [4, 5]}
    cells = [row[place] for table, row in rows for place in measured.get(table, [])]
    assert len(cells) > 50 and set(cells) <= {"-", "not installed"}


def test_random_weights_answer_as_those_of_transformers(day):
    """Catches a comparison of two models that are not the same, which no time would show."""
    pytest.importorskip("transformers")
    rows = [row for part in json.loads((day / "rows.json").read_text())["parts"].values() for row in part["rows"]]
    apart = [float(row[-1]) for table, row in rows if table == "generate" and row[3].startswith("generate")]
    assert len(apart) == 2 and max(apart) < 2e-2  # of bf16


def test_a_finished_part_is_not_run_again_and_a_failed_one_is(day, tmp_path, capsys, monkeypatch):
    """Catches a second start that begins anew, one that never repeats a failure, rows of two machines in a file."""
    content = json.loads((day / "rows.json").read_text())
    content["parts"]["kernel"] |= {"error": "out of memory", "rows": []}
    (tmp_path / "rows.json").write_text(json.dumps(content))
    started = []
    monkeypatch.setattr(gpu, "run", lambda part, *_: started.append(part) or ([["kernel", ["a"] * 6]], ""))
    gpu.main(["--toy", "--parts", ",".join(ONCE), "--out", str(tmp_path)])
    assert started == ["kernel"] and gpu.Results(tmp_path, gpu.conditions(toy=True)).is_finished("kernel")
    assert capsys.readouterr().out.count("finished before, not run again") == len(ONCE) - 1
    content["conditions"]["torch"] = "1.0"
    (tmp_path / "rows.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        gpu.main(["--toy", "--out", str(tmp_path)])
    assert "torch was 1.0, is " in capsys.readouterr().err


@pytest.mark.parametrize(
    "ending, limit, said",
    [
        ("raise RuntimeError('no kernel image')", 60, "RuntimeError: no kernel image"),
        ("os.kill(os.getpid(), 9)", 60, "ended by signal 9"),
        ("time.sleep(60)", 3, "stopped after 3 s"),
    ],
    ids=["raises", "is killed", "hangs"],
)
def test_a_part_that_fails_says_so_in_a_line_and_the_next_goes_on(ending, limit, said, tmp_path, capsys, monkeypatch):
    """Catches a day that ends with its first failure, and rows before a failure that are lost."""
    row, run = gpu.ROW + json.dumps(["kernel", ["x"] * 6]), gpu.subprocess.run

    def instead(command, **settings):
        program = f"import os, time\nprint({row!r}, flush=True)\n{ending if 'kernel' in command else ''}"
        return run([sys.executable, "-c", program], **settings)

    monkeypatch.setattr(gpu.subprocess, "run", instead)
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--toy", "--parts", "kernel,log-probs", "--limit", str(limit), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and f"kernel: failed: {said}; " in printed and "log-probs: 1 rows" in printed
    assert printed.count("| x | x | x | x | x | x |") == 2  # the row of each


def test_memory_that_is_not_there_is_told_in_a_line(capsys, monkeypatch):
    """Catches a traceback of allocations where one sentence is meant."""

    def greedy(place):
        yield "kernel", ["x"]
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setitem(gpu_parts.PARTS, "kernel", greedy)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Card", (), {"total_memory": 80 * 10**9}))
    with pytest.raises(SystemExit, match="out of memory: 80 GB are not enough"):
        gpu.alone("kernel", gpu_parts.Place("cpu", True))
    assert 'row: ["kernel", ["x"]]' in capsys.readouterr().out
