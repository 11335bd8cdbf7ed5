"""What several test files share: a base model that is small enough to make in seconds, and rollouts made by hand."""

import atexit
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import model as model_file
from data import Chat, Task, encode_prompt, encode_tool_turn, load_tokenizer
from model import Config, Qwen3
from paper.pretrain import train_tokenizer
from sampler import Rollout
from tiny import world
from tools import Call, encode_call

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("TRANSLATE_R1_DATA") or "unset")  # a folder of real data sets, for the tests that want them
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="TRANSLATE_R1_DATA names no folder of real data sets")
VOCABULARY = 400
torch.set_num_threads(1)


@functools.cache
def random_directory(seed: int = 0) -> Path:
    """A model directory with a small real tokenizer and a random two-layer Qwen3."""
    directory = Path(tempfile.mkdtemp(prefix="policy-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    texts = [
        world.render(item, code).question
        for item in world.items("train", 200, "tokenizer")
        for code in ("en", "low-01", "high-04")
    ]
    train_tokenizer(texts, VOCABULARY).save(str(directory / "tokenizer.json"))
    torch.manual_seed(seed)
    config = Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
    )
    model = Qwen3(config)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(0.1)
    model_file.save(model, directory)
    return directory


@functools.cache
def base_directory() -> Path:
    """The random model after a few seconds of lessons: it ends its turns, calls the tool now and then, and
    is right now and then, so that there is something for reinforcement learning to work on."""
    source = random_directory()
    directory = Path(tempfile.mkdtemp(prefix="base-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    shutil.copyfile(source / "tokenizer.json", directory / "tokenizer.json")
    model, tokenizer = model_file.load(source), load_tokenizer(source)
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=1e-2), random.Random("lessons")
    for _ in range(60):
        documents = [document(item, tokenizer, rng) for item in rng.sample(sums(), 8)]
        longest = max(len(ids) for ids, _ in documents)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in documents])
        targets = torch.tensor(
            [[i if w else -100 for i, w in zip(*d, strict=True)] + [-100] * (longest - len(d[0])) for d in documents]
        )
        logits = model.logits(model(ids)[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model_file.save(model, directory)
    return directory


@functools.cache
def sums() -> list:
    """Items of math whose answer is one digit: easy to get right by chance."""
    return [item for item in world.items("train", 1000, "sums") if item.domain == "math" and len(item.answer) == 1]


def document(item, tokenizer, rng: random.Random) -> tuple[list[int], list[bool]]:
    """(ids, whether each is a target) of a task in a low language, every second time with a call."""
    ids = encode_prompt(world.render(item, "low-01"), tokenizer, Chat())
    is_target = [False] * len(ids)
    if rng.random() < 0.3:
        call, turn = encode_call(tokenizer), encode_tool_turn([item.english], tokenizer, think=True)
        ids, is_target = ids + call + turn, is_target + [True] * len(call) + [False] * len(turn)
    answer = [*tokenizer.encode_text(item.answer), tokenizer.control["<|im_end|>"]]
    return ids + answer, is_target + [True] * len(answer)


def write_tasks(path: Path, count: int = 80) -> Path:
    """A JSONL file of tasks that the base model is right about now and then, in three languages of the low tier."""
    codes = ("low-01", "low-02", "low-04")
    tasks = [world.render(item, codes[i % 3]) for i, item in enumerate(sums()[:count])]
    path.write_text("".join(json.dumps(asdict(task)) + "\n" for task in tasks), encoding="utf-8")
    return path


def hand_made(tokenizer, task: Task, answer: str, called: bool = False) -> Rollout:
    """A rollout as the sampler would write it: answers at once, or after one call and its result."""
    prompt = encode_prompt(task, tokenizer, Chat())
    ids, sampled = [], []
    if called:
        call, turn = encode_call(tokenizer), encode_tool_turn([task.question_en or "?"], tokenizer, think=True)
        ids, sampled = call + turn, [True] * len(call) + [False] * len(turn)
    end = [*tokenizer.encode_text(answer), tokenizer.control["<|im_end|>"]]
    ids, sampled = ids + end, sampled + [True] * len(end)
    calls = (Call(task.question, task.question_en or "?", 1.0, None, 0.0),) if called else ()
    return Rollout(task, tuple(prompt), tuple(ids), tuple(sampled), (0.0,) * len(ids), calls, "end")


def environment() -> dict:
    """Of a second process: one thread, as here, since another number of threads may add in another order."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}


def command(*words) -> subprocess.CompletedProcess:
    """Run a command line of the product in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=environment(), text=True, timeout=300, capture_output=True
    )


def call_main(main, *words) -> None:
    """Run a command line's main here, and leave the process as it was."""
    before = signal.getsignal(signal.SIGINT)
    try:
        main([str(word) for word in words])
    finally:
        signal.signal(signal.SIGINT, before)


def files_under(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in Path(directory).rglob("*")}
