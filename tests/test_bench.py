"""The benchmarks at toy shapes: both sides of each compute the same, and the table is printed."""

import re

import pytest
import torch

from bench import cache, decode, growth, job, logprobs, rollouts, turns, update


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
def test_rollouts_are_those_that_generate_writes(case, capsys):
    """Catches a benchmark whose sides sample different texts: one of them would have less to do."""
    pytest.importorskip("transformers")
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
