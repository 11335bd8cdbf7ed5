"""paper/pretrain.py: the documents that give the base its character, and a further course for it."""

import random
import sys

import pytest
import torch
from safetensors.torch import load_file

from data import load_tokenizer
from paper import pretrain
from tiny.languages import WORLD
from tiny.world import items
from tools import encode_call


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(pretrain.BASE)


def drawn(tokenizer, code: str, count: int = 400, **course) -> list[tuple[list[int], list[float]]]:
    rng = random.Random(1)
    return [pretrain.document(item, WORLD[code], tokenizer, rng, **course) for item in items("train", count, 1)]


def calls(documents, tokenizer) -> list[list[float]]:
    """The loss weights of each document's call, of those that have one."""
    call = encode_call(tokenizer)
    found = []
    for ids, weights in documents:
        starts = [i for i in range(len(ids)) if ids[i : i + len(call)] == call]
        found += [weights[i : i + len(call)] for i in starts]
    return found


@pytest.mark.parametrize("rate", [pretrain.TOOL_RATE, pretrain.COURSES["calls"][1]["tool_rate"]])
def test_english_documents_call_at_the_tool_rate(tokenizer, rate):
    """Catches a rate that is not that of the course: 400 documents, four standard deviations."""
    found = calls(drawn(tokenizer, "en", tool_rate=rate), tokenizer)
    assert abs(len(found) / 400 - rate) < 4 * (rate * (1 - rate) / 400) ** 0.5
    assert all(set(weights) == {1.0} for weights in found)


def test_half_of_the_prompts_of_the_course_with_prices_state_one(tokenizer):
    """Catches a course whose argument reaches no document, or documents that all state a price."""
    documents = drawn(tokenizer, "en", **pretrain.COURSES["prices"][1])
    stated = sum("price" in tokenizer.decode(ids) for ids, _ in documents)
    assert abs(stated / 400 - 0.5) < 0.1


def test_a_foreign_document_that_shows_a_translation_does_not_teach_to_call(tokenizer):
    """Catches loss on the calls of parallel documents, which would make the base call in two of five."""
    found = calls(drawn(tokenizer, "xlow-01", tool_rate=0.0), tokenizer)
    assert abs(len(found) / 400 - pretrain.PARALLEL) < 0.1
    assert all(set(weights) == {0.0} for weights in found)


def test_what_is_learned_is_what_the_assistant_says(tokenizer):
    """Catches loss on the prompt, an answer or its end without loss."""
    for ids, weights in drawn(tokenizer, "en", 20, tool_rate=0.0):
        first = weights.index(1.0)
        assert set(weights[:first]) == {0.0} and set(weights[first:]) == {1.0}
        assert ids[-1] == tokenizer.control["<|im_end|>"] and len(ids) - first >= 2


def test_the_mixture_gives_each_tier_its_share():
    """Catches shares that depend on how many languages a tier has."""
    total = {}
    for language, share in pretrain.mixture():
        total[language.tier] = total.get(language.tier, 0.0) + share
    assert total == pytest.approx(pretrain.SHARE)


@pytest.mark.parametrize("course", pretrain.COURSES)
def test_a_further_course_begins_with_the_base(tmp_path, monkeypatch, capsys, course):
    """Catches a course that starts anew, or a model that is written without its tokenizer."""
    words = f"--course {course} --course-steps 0 --items 1 --out {tmp_path}".split()
    monkeypatch.setattr(sys, "argv", ["paper.pretrain", *words])
    pretrain.main()
    assert capsys.readouterr().out.count("1 validation items per tier") == (2 if course == "prices" else 1)
    before, after = (load_file(where / "model.safetensors") for where in (pretrain.BASE, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "tokenizer.json").read_bytes() == (pretrain.BASE / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_is_that_of_torch_but_for_the_precision(shape):
    """Catches a wrong step, or a rate that does not follow the shape. Close, not equal: torch iterates in bf16."""
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizers = (
        pretrain.Muon([mine], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1),
    )
    for _ in range(10):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip((mine, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - 1).norm()
    assert (mine - theirs).norm() < 0.02 * moved


def test_an_orthogonal_matrix_has_singular_values_near_one():
    """Catches an iteration that does not converge."""
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(pretrain.orthogonal(matrix))
    assert values.min() > 0.6 and values.max() < 1.3
