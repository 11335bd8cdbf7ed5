"""Three steps in the real setting at the smallest size: the published shape and chat format, real questions, and the
recorded answers of a real engine.

The model is Qwen3-0.6B in every dimension but two: 1 layer instead of 28, and as many rows in the head as its tokenizer
has ids, 3,000 instead of 151,936. Its weights are random, so it is never right; who is right is decided otherwise, so
that there is something to learn from.
"""

import json
from pathlib import Path

import pytest
import torch
from helpers import call_main

import data
import model as model_file
import train
from data import TOOL_SCHEMA, Chat, load_tasks, load_tokenizer
from harness.options import BOXED
from paper.pretrain import train_tokenizer
from reward import Score, score
from sampler import rollout
from translation.service import open_engine

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not (DATA / "mgsm.jsonl").is_file(), reason="the recorded data are not beside the code")
LANGUAGES = ("es", "fr")


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def questions():
    """The questions of two trained languages; English has no tier and would be refused."""
    return [row for row in rows("mgsm.jsonl") if row["lang"] in LANGUAGES]


@pytest.fixture(scope="module")
def recorded():
    """The engine that has the answers to MGSM's questions: the file names them by the id of the question."""
    fields = f"source=lang&translation=translation_en&text=question&texts={DATA / 'mgsm.jsonl'}"
    return f"recorded:{DATA / 'apertium_to_en.jsonl'}?{fields}"


@pytest.fixture(scope="module")
def task_file(questions, tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "mgsm.jsonl"
    short = sorted(questions, key=lambda row: len(row["question"]))[:120]
    path.write_text("".join(json.dumps(row) + "\n" for row in short), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def policy_dir(questions, tmp_path_factory):
    """A model directory as it would be downloaded, with random weights and a tokenizer of Qwen3's make."""
    directory = tmp_path_factory.mktemp("qwen3")
    markup = [json.dumps(TOOL_SCHEMA), BOXED, data.TOOLS_INTRO, *(p for p in data.TOOLS_OUTRO if isinstance(p, str))]
    texts = [row["question"] for row in questions[::5]] + [row["question_en"] for row in questions[::5]] + markup * 20
    train_tokenizer(texts, 3000).save(str(directory / "tokenizer.json"))
    size = load_tokenizer(directory).size
    config = model_file.Config(
        vocab_size=size,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = model_file.Qwen3(config)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(0.02)
    model_file.save(model, directory)
    return directory


def test_three_steps_of_the_4b_preset(policy_dir, task_file, recorded, tmp_path, monkeypatch, capsys):
    """Catches whatever only the real setting has: the schema turn, boxed answers, a field map, checkpointed
    activations, and their way into a checkpoint. In fp32: a CPU without bf16 units needs twice as long in bf16."""

    def lucky(r, tokenizer, answer):
        return Score(sum(r.ids) % 2, None, score(r, tokenizer, answer).format_ok, 0.0, bool(r.calls))

    monkeypatch.setattr(train, "score", lucky)
    out = tmp_path / "run"
    call_main(
        train.main,
        "--preset",
        "qwen3-4b",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--model",
        policy_dir,
        "--translator",
        recorded,
        "--data",
        task_file,
        "--fields",
        "language=lang",
        "--lang-tier",
        "high",
        "--steps",
        3,
        "--prompts",
        2,
        "--group-size",
        3,
        "--minibatches",
        2,
        "--max-new-tokens",
        12,
        "--eval-every",
        3,
        "--validation-items",
        1,
        "--save-every",
        3,
        "--test-items",
        1,
        "--learning-rate",
        1e-3,
        "--advantage-scale",
        "none",
        "--out",
        out,
    )
    printed = capsys.readouterr().out
    assert "<tools>" in printed and "\\boxed{}" in printed and "<think>\n\n</think>" in printed
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3] and sum(row["updates"] for row in metrics) >= 2
    assert all(row["sampler_mismatch"] < 0.1 for row in metrics if row["updates"])
    before, after = model_file.load(policy_dir), model_file.load(out / "step-000003")
    assert all(p.dtype == torch.float32 for p in after.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_a_recorded_translation_is_read_by_the_policy(policy_dir, task_file, recorded):
    """Catches a source language, a text or a field that is not the recording's, and a result that is not spliced in."""
    tasks = load_tasks(task_file, {"language": "lang"})[:2]
    model, tokenizer = model_file.load(policy_dir), load_tokenizer(policy_dir)
    chat = Chat(BOXED, tool_schema=True, think_block=True, answer="boxed")
    engine = open_engine(recorded)
    for r in rollout(
        model,
        tokenizer,
        tasks,
        1,
        engine,
        torch.Generator().manual_seed(0),
        mode="forced",
        max_new_tokens=160,
        chat=chat,
    ):
        assert r.calls[0].error is None
        assert r.calls[0].result == engine.translate([r.task.question], r.task.language)[0]
        assert f"<tool_response>\n{r.calls[0].result}\n</tool_response>" in tokenizer.decode(r.ids)
        assert not score(r, tokenizer, "boxed").correct
