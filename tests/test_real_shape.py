"""Three steps in the real setting at the smallest size: the published shape and chat format, questions in two real
languages as a file of somebody else's holds them, and recorded answers of an engine.

The model is Qwen3-0.6B in every dimension but two: 1 layer instead of 28, and as many rows in the head as its tokenizer
has ids, 600 instead of 151,936. Its weights are random, so it is never right; who is right is decided otherwise, so
that there is something to learn from.
"""

import json

import pytest
import torch
from helpers import call_main

import data
import model as model_file
import train
from data import Chat, load_tasks, load_tokenizer
from harness.options import BOXED
from paper.pretrain import train_tokenizer
from reward import Score, score
from sampler import Sampling, rollout
from tools import SCHEMA
from translation.service import open_engine

# Each question as it stands in a file, then as an engine made English of it: not always well.
TEXTS = {
    "es": [
        ("Ana tiene {a} manzanas y compra {b} más. ¿Cuántas manzanas tiene?", "Ana has {a} apples and buy {b} more."),
        ("Un tren sale con {a} viajeros y suben {b}. ¿Cuántos hay?", "A train goes out with {a} and go up {b}."),
        ("Luis leyó {a} páginas ayer y {b} hoy. ¿Cuántas leyó?", "Luis read {a} pages yesterday and {b} today."),
    ],
    "fr": [
        ("Anne a {a} pommes et en achète {b} de plus. Combien en a-t-elle ?", "Anne has {a} apples and buys {b}."),
        ("Un train part avec {a} voyageurs et {b} montent. Combien sont-ils ?", "A train leaves with {a}, {b} go up."),
        ("Louis a lu {a} pages hier et {b} aujourd'hui. Combien en a-t-il lu ?", "Louis has read {a}, {b} today."),
    ],
}
ROWS = [
    {
        "id": f"sum-{number}-{a}-{b}-{language}",
        "lang": language,
        "question": question.format(a=a, b=b),
        "answer": str(a + b),
        "question_en": f"What is {a} and {b}? ({number})",
        "translation_en": translation.format(a=a, b=b),
    }
    for language, texts in TEXTS.items()
    for number, (question, translation) in enumerate(texts)
    for a, b in [(2, 3), (16, 5), (7, 11), (40, 2), (9, 9), (125, 30), (8, 64), (31, 4), (3, 70), (52, 28)]
]


def write(path, *names: str):
    """These fields of all rows, as JSONL."""
    rows = ({name: row[name] for name in ("id", "lang", *names)} for row in ROWS)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tasks") / "sums.jsonl", "question", "answer", "question_en")


@pytest.fixture(scope="module")
def recorded(task_file):
    """The engine that has the answers to these questions: its file names them by the id of the question."""
    path = write(task_file.parent / "to_en.jsonl", "translation_en")
    return f"recorded:{path}?source=lang&translation=translation_en&text=question&texts={task_file}"


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory):
    """A model directory as it would be downloaded, with random weights and a tokenizer of Qwen3's make."""
    directory = tmp_path_factory.mktemp("qwen3")
    markup = [json.dumps(SCHEMA), BOXED, data.TOOLS_INTRO, *(p for p in data.TOOLS_OUTRO if isinstance(p, str))]
    texts = [row[name] for row in ROWS for name in ("question", "translation_en")] + markup * 20
    train_tokenizer(texts, 600).save(str(directory / "tokenizer.json"))
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

    def lucky(r, tokenizer, answer_format):
        right, format_ok = sum(r.ids) % 2, score(r, tokenizer, answer_format).format_ok
        return Score(right, float(right), None, format_ok, 0.0, bool(r.calls))

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
    sampling = Sampling(max_new_tokens=160, mode="forced", chat=Chat(BOXED, (SCHEMA,), think=False))
    engine = open_engine(recorded)
    for r in rollout(model, tokenizer, tasks, 1, engine, torch.Generator().manual_seed(0), sampling):
        assert r.calls[0].error is None
        assert r.calls[0].result == engine.translate([r.task.question], r.task.language)[0]
        assert f"<tool_response>\n{r.calls[0].result}\n</tool_response>" in tokenizer.decode(r.ids)
        assert not score(r, tokenizer, "boxed").correct
