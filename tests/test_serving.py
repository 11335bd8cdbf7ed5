"""A trained policy as a drop-in directory: what it keeps of its source, and docs/serving.md's loop in transformers."""

import json
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, random_directory
from safetensors.torch import load_file

import data
import model as model_file
import train
from data import IM_END, Chat, Task, load_tokenizer
from harness import template
from harness.rundir import Run
from sampler import Sampling, rollout
from tools import SCHEMA, encode_call

transformers = pytest.importorskip("transformers")

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
PUBLISHED = (ROOT / "tests" / "qwen3_chat_template.jinja").read_text(encoding="utf-8")
SYSTEM, ENGLISH = "Answer in English.", "How many books has Cleo?"
TASK = Task("t", "fr", "high", "trained", "math", "Combien de livres ?", (), "8")
CHAT = Chat(SYSTEM, (SCHEMA,), think=False)


class Says:
    """An engine with one answer."""

    def translate(self, texts, source, target="en"):
        return [ENGLISH] * len(texts)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A directory as it is published: bfloat16, a template, and more files and fields than the training reads."""
    directory = tmp_path_factory.mktemp("published")
    model, tokenizer = model_file.load(random_directory()), load_tokenizer(random_directory())
    model_file.save(model.bfloat16(), directory, like=random_directory())
    end = tokenizer.id(IM_END)
    raw = json.loads((directory / "config.json").read_text())
    raw |= {"max_position_embeddings": 4096, "eos_token_id": end, "bos_token_id": None, "use_cache": True}
    (directory / "config.json").write_text(json.dumps(raw))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": PUBLISHED}
    (directory / "tokenizer_config.json").write_text(json.dumps(words))
    generation = {"eos_token_id": [end], "do_sample": True, "temperature": 0.6, "top_k": 20, "pad_token_id": end}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    (directory / "LICENSE").write_text("Apache")
    return directory


@pytest.fixture(scope="module")
def taught(source):
    """A model that has learned one conversation by heart: it calls the tool, reads the result, answers and ends."""
    model, tokenizer = model_file.load(source), load_tokenizer(source)
    prompt = data.encode_prompt(TASK, tokenizer, CHAT)
    call, turn = encode_call(tokenizer), data.encode_tool_turn([ENGLISH], tokenizer, think=False)
    said = [*tokenizer.encode_text("Cleo has 8 books"), tokenizer.id(IM_END)]
    ids = torch.tensor([prompt + call + turn + said])
    targets = torch.tensor([[-100] * len(prompt) + call + [-100] * len(turn) + said])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = F.cross_entropy(model.logits(model(ids)[:, :-1]).flatten(0, 1), targets[:, 1:].flatten())
        if loss < 0.01:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def best(source, taught, tmp_path_factory):
    """`best/` of a run without thinking, as the run saves it."""
    run = Run(tmp_path_factory.mktemp("run"), train.Config(think=False), resume=False)
    run.keep_best(taught, source, 7, {"accuracy": 0.5})
    return run.path / "best"


def test_best_is_a_replacement_for_its_source(source, best, taught):
    """Catches lost ids of the end, positions and templates, and weights of twice the size."""
    before, after = (json.loads((place / "config.json").read_text()) for place in (source, best))
    assert {name: after[name] for name in before} == before
    names = {path.name for path in source.iterdir()}
    assert names - {path.name for path in best.iterdir()} == set()
    for name in names - {"config.json", "tokenizer_config.json", "model.safetensors"}:
        assert (best / name).read_bytes() == (source / name).read_bytes()
    stored = load_file(best / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    expected = taught.embed_tokens.weight.detach().bfloat16()
    assert torch.equal(stored["model.embed_tokens.weight"], expected)
    assert taught.embed_tokens.weight.dtype == torch.float32  # the one in training is still what it was


def test_transformers_loads_it_with_its_own_numbers(best):
    """Catches a rotation or a dtype that the two read differently."""
    config = transformers.AutoConfig.from_pretrained(best)
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    assert rope["rope_theta"] == model_file.read_config(best).rope_theta
    assert (config.max_position_embeddings, config.dtype) == (4096, torch.bfloat16)


def test_the_loop_of_the_page_sees_what_the_training_saw(best):
    """Catches a page that no version runs, `generate` without an end, and a single id of the context, tool turn
    included, that a served policy reads otherwise than in its rollouts."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    page = {}
    exec(block, page)
    model, tokenizer = page["load"](best)
    tools = [json.loads(re.search(r"^```json\n(.*?)\n```$", PAGE, flags=re.MULTILINE | re.DOTALL)[1])]
    assert tools == [SCHEMA]
    sent = []

    def translate(text):
        sent.append(text)
        return ENGLISH

    found = page["answer"](
        model.float(), tokenizer, TASK.question, translate, SYSTEM, tools, do_sample=False, max_new_tokens=60
    )
    assert [message["role"] for message in found] == ["system", "user", "assistant", "tool", "assistant"]
    assert (sent, found[-1]["content"]) == ([TASK.question], "Cleo has 8 books")

    sampling = Sampling(max_new_tokens=200, temperature=0.0, chat=CHAT)
    ours, words = model_file.load(best), load_tokenizer(best)
    (trained,) = rollout(ours, words, [TASK], 1, Says(), torch.Generator(), sampling)
    context = tokenizer.apply_chat_template(found[:-1], tools=tools, add_generation_prompt=True, return_dict=False)
    last = max(i for i, sampled in enumerate(trained.sampled) if not sampled) + 1
    assert list(context) == [*trained.prompt_ids, *trained.ids[:last]]
    assert words.decode(trained.ids[last:]) == found[-1]["content"] + "<|im_end|>"


def test_the_published_template_would_not_do(best, source, tmp_path):
    """Catches a test that any template passes."""
    shutil.copytree(best, tmp_path / "best")
    (tmp_path / "best" / "chat_template.jinja").write_text(PUBLISHED)
    call = {"function": {"name": "translate", "arguments": {}}}
    messages = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    messages.append({"role": "tool", "content": "A?"})
    ids = [
        transformers.AutoTokenizer.from_pretrained(place).apply_chat_template(
            messages, add_generation_prompt=True, enable_thinking=False, return_dict=False
        )
        for place in (best, tmp_path / "best")
    ]
    assert len(ids[0]) - len(ids[1]) == len(load_tokenizer(best).encode([data.THINK, "\n\n", data.END_THINK, "\n\n"]))
    assert template.chat_template(source) == PUBLISHED
