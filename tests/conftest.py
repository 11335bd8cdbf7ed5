"""What the tests share: a real tokenizer and a random two-layer Qwen3 in a directory, as `train.py` finds them."""

import pytest
import torch
from hypothesis import settings

import data
import model
import paper.pretrain
from tiny import world
from tiny.languages import LexiconTranslator

torch.set_num_threads(1)  # the tests are about values: small matrices on many threads are only slower
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

CODES = ["en", "high-01", "low-02", "xlow-06"]  # Latin, Greek and Armenian letters


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """A directory with a tokenizer.json of about 600 ids, Qwen3's added tokens among them, and nothing else."""
    directory = tmp_path_factory.mktemp("tokenizer")
    texts = [
        f"{world.render(item, code).question}\n{item.english}"
        for item in world.items("train", 100, "tests")
        for code in CODES
    ]
    texts += ['\n{"name": "translate", "arguments": {}}\n', "user\n", "assistant\n", "system\n", "?\n\n", ".\n"] * 100
    paper.pretrain.train_tokenizer(texts, 600).save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir):
    return data.load_tokenizer(tokenizer_dir)


@pytest.fixture(scope="session")
def config(tokenizer):
    """Two layers, grouped queries, a head dim that is not hidden / heads, and a head with rows beyond the tokenizer."""
    return model.Config(
        vocab_size=tokenizer.size + 9,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
    )


def randomise(qwen, seed=0, scale=0.3):
    """Weights large enough that position and past matter, norms away from 1: a random model that says something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in qwen.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return qwen


@pytest.fixture(scope="session")
def qwen(config):
    """A random model. Shared by the whole session: tests that change weights make their own."""
    return randomise(model.Qwen3(config))


@pytest.fixture(scope="session")
def base_dir(tokenizer_dir, qwen, tmp_path_factory):
    """A model directory: config.json, model.safetensors and tokenizer.json."""
    directory = tmp_path_factory.mktemp("base")
    model.save(qwen, directory)
    (directory / "tokenizer.json").write_bytes((tokenizer_dir / "tokenizer.json").read_bytes())
    return directory


@pytest.fixture(scope="session")
def tasks():
    """Twelve tasks in four languages, of different lengths."""
    return world.tasks("train", CODES, 40, "tests")[::4] + world.tasks("train", ["high-01"], 2, "tests")


@pytest.fixture(scope="session")
def translator():
    return LexiconTranslator()
