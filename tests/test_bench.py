"""The benchmarks at toy shapes: both sides of each compute the same, and the table is printed."""

import re

from bench import cache, logprobs


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
