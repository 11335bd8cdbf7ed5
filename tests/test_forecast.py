"""The forecast of a run: bytes against autograd's own account, and a dry run that writes nothing."""

import json
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from helpers import ROOT, base_directory, call_main, files_under, write_tasks
from torch.autograd.graph import saved_tensors_hooks

import gspo
import logprob
import model as model_file
import train
from data import Task
from harness import distributed, forecast, lora
from harness.options import PRESETS
from model import Config, Qwen3
from sampler import Rollout

SMALL = Config(
    vocab_size=300,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    tie_word_embeddings=True,
)
SHAPES = {
    "grouped queries": SMALL,
    "one head for each key": replace(SMALL, num_key_value_heads=6),
    "wide MLP, untied": replace(SMALL, intermediate_size=400, tie_word_embeddings=False),
}
BATCH = forecast.Batch(rows=20, group=8, prompt=30, new=34)
ATTEND = model_file.attend


def account(model: Qwen3, run) -> int:
    """Bytes of all storages that autograd saves while `run` is called, each counted once, the weights not."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor  # which keeps it alive, so that no address is used twice

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    assert result.requires_grad
    return sum(saved.values())


def attend_as_on_a_gpu(q, k, v, mask):
    """`model.attend`, with keys and values repeated for each head."""
    groups = q.shape[2] // k.shape[2]
    return ATTEND(q, k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2), mask)


@pytest.mark.parametrize("prompt, new", [(30, 34), (50, 8)])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape, rank", [*((shape, 0) for shape in SHAPES), ("grouped queries", 4)])
def test_the_forecast_is_within_a_tenth_of_what_autograd_saves(
    shape, rank, dtype, checkpoint, prompt, new, monkeypatch
):
    """Catches a tensor that is forgotten or counted twice, and a checkpoint that saves what it should not."""
    monkeypatch.setattr(model_file, "attend", attend_as_on_a_gpu)
    config, batch = SHAPES[shape], forecast.Batch(rows=7, group=4, prompt=prompt, new=new)
    task = Task("t", "en", "high", "trained", "math", "?", (), "1")
    rollouts = [
        Rollout(task, (5 + row // 4,) * prompt, (row,) * new, (True,) * new, (0.0,) * new, (), "end")
        for row in range(batch.rows)
    ]

    def measure(layers: int, checkpoint: bool) -> int:
        model = Qwen3(replace(config, num_hidden_layers=layers)).to(getattr(torch, dtype))
        model.checkpoint_activations = checkpoint
        if rank:
            lora.adapt(model, rank, 1.0, 0)

        def loss():
            logps, _, sampled = logprob.policy_logps(model, rollouts, 1.0, config.vocab_size)
            return gspo.gspo_loss(logps, logps.detach(), sampled, torch.ones(batch.rows), 0.2, 0.2)[0]

        return account(model, loss)

    measured = measure(config.num_hidden_layers, checkpoint)
    if checkpoint:  # and one layer, while it is run again
        measured += measure(2, False) - measure(1, False)
    assert forecast.saved(config, dtype, batch, checkpoint, rank) == pytest.approx(measured, rel=0.1)


def test_checkpointing_changes_no_gradient():
    """Catches a recomputation with other inputs, and a flag that does nothing."""
    config, gradients, saved = SHAPES["grouped queries"], [], []
    torch.manual_seed(0)
    model = Qwen3(config)
    ids = torch.randint(0, config.vocab_size, (3, 40))
    for checkpoint in (False, True):
        model.checkpoint_activations = checkpoint
        saved.append(account(model, lambda: model(ids)))
        model.logits(model(ids)).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert saved[1] < saved[0] / 4


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted(tied):
    """Catches a forgotten norm, and a tied head that is counted twice."""
    config = replace(SMALL, tie_word_embeddings=tied)
    layer, ends = forecast.parameters(config)
    assert config.num_hidden_layers * layer + ends == sum(p.numel() for p in Qwen3(config).parameters())


def test_ranks_share_the_state_and_not_the_tokens():
    """Catches a forecast that divides what every rank holds whole."""
    one, eight = (forecast.update(SMALL, BATCH, "bfloat16", True, ranks) for ranks in (1, 8))
    assert one["weights"] // 8 == eight["weights"] and one["moments"] // 8 == eight["moments"]
    assert one["activations"] == eight["activations"] and one["gradients"] == eight["gradients"]
    assert forecast.update(SMALL, BATCH, "float32", True, 1)["gathered"] == 0
    assert forecast.rollouts(SMALL, 8, 4, 20, 20, "float32", 1)["copy"] == 0


def test_a_dry_run_says_what_would_happen_and_writes_nothing(tmp_path, capsys):
    """Catches a dry run that begins, that needs the weights, or whose numbers are not the run's."""
    data = write_tasks(tmp_path / "tasks.jsonl")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_bytes((base_directory() / name).read_bytes())
    before = files_under(tmp_path)
    call_main(
        train.main,
        "--preset",
        "qwen3-4b",
        "--model",
        model,
        "--data",
        data,
        "--lang-tier",
        "low",
        "--steps",
        3,
        "--out",
        tmp_path / "run",
        "--dry-run",
    )
    printed = capsys.readouterr().out
    assert files_under(tmp_path) == before
    config = json.loads(printed[: printed.index("\nfirst prompt")])
    assert (config["steps"], config["group_size"], config["clip_high"]) == (3, 8, 4e-4)
    assert "<tools>" in printed and "<|im_start|>assistant\n<think>\n\n</think>" in printed
    assert "3 steps, each 128 prompts x 8 = 1024 rollouts and 4 optimizer steps" in printed
    assert "3,072 rollouts and at most 6,291,456 tokens" in printed
    assert printed.count(" GB (weights ") == 6
    assert printed.count(": 0.00 GB while") == 1 and "predicted disk: fits: " in printed


def dry(capsys, *words) -> str:
    call_main(train.main, "--dry-run", *words)
    return capsys.readouterr().out


def test_no_more_rows_are_counted_than_there_are(capsys):
    """Catches a step of four prompts that is told to need the memory of 55 rows."""
    step = ("--prompts", 4, "--group-size", 2, "--minibatches", 2, "--validation-items", 3, "--test-items", 3)
    printed = dry(capsys, *step)
    assert "micro-batches of 4 such rows" in printed and "rollouts, 8 rows" in printed
    assert "closing evaluation, 3 such rows" in printed and "closing evaluation, 1 such rows" in printed
    assert forecast.Batch.largest(100, 8, 30, 30, most=7).rows == 1


def test_the_longest_prompt_of_the_file_counts(tmp_path, capsys):
    """Catches a forecast from the first step's prompts: a run that ends at the first long one."""
    path = write_tasks(tmp_path / "tasks.jsonl")
    rows = path.read_text(encoding="utf-8").splitlines()
    last = json.loads(rows[-1])
    longer = json.dumps({**last, "question": last["question"] + " a" * 300}, ensure_ascii=False)

    def rows_of(content: list[str]) -> int:
        path.write_text("\n".join(content) + "\n", encoding="utf-8")
        printed = dry(capsys, "--data", path, "--lang-tier", "low", "--prompts", 2)
        return int(printed.partition(" rows of ")[2].partition(" + ")[0])

    assert rows_of([*rows[:-1], longer]) >= rows_of(rows) + 300


def test_what_fits_and_what_does_not_is_said(tmp_path, capsys, monkeypatch):
    """Catches a verdict that is always the same, and a disk that fills up with the third checkpoint."""
    few = ("--validation-items", 3, "--test-items", 3)
    assert "  fits: " in (printed := dry(capsys, *few)) and "does not fit" not in printed
    monkeypatch.setattr(forecast.os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 8 * 10**7}.get)
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(0, 0, 4 * 10**7))
    printed = dry(capsys, *few, "--out", tmp_path / "not" / "yet")
    assert printed.count("  does not fit: ") == 2 and "predicted disk: does not fit: " in printed


def test_the_disk_holds_three_checkpoints_and_two_of_the_best(tmp_path):
    """Catches a count of the files that a run writes which is not theirs."""
    model = Qwen3(SMALL)
    model_file.save(model, tmp_path / "best")
    weights = (tmp_path / "best" / "model.safetensors").stat().st_size
    assert forecast.on_disk(SMALL) == pytest.approx(3 * 3 * weights + 2 * weights, rel=0.02)
    assert (forecast.on_host(SMALL, True), forecast.on_host(SMALL, False)) == (pytest.approx(3 * weights, rel=0.02), 0)


def test_the_closing_evaluation_holds_a_policy_beside_the_trained_one():
    """Catches a run that ends in its last minute, when base and result are read."""
    end = forecast.closing(SMALL, 8, 20, 20, "bfloat16", 1)
    layer, ends = forecast.parameters(SMALL)
    total = SMALL.num_hidden_layers * layer + ends
    assert (end["weights"] + end["moments"], end["copy"]) == (12 * total, 2 * total)
    assert end["working"] >= forecast.rollouts(SMALL, 8, 4, 20, 20, "bfloat16", 1)["working"]


def test_base_and_result_are_not_held_at_a_time(monkeypatch, tmp_path):
    """Catches a closing evaluation that needs room for two policies beside the trained one."""
    held, at_once = weakref.WeakSet(), []
    load = train.load_policy

    def counting(*arguments):
        policy = load(*arguments)
        held.add(policy[0])
        at_once.append(len(held))
        return policy

    monkeypatch.setattr(train, "load_policy", counting)
    few = ("--steps", 1, "--prompts", 2, "--group-size", 2, "--validation-items", 2, "--test-items", 2)
    data = write_tasks(tmp_path / "tasks.jsonl")
    options = ("--model", base_directory(), "--data", data, "--lang-tier", "low", *few)
    call_main(train.main, *options, "--out", tmp_path / "run")
    assert at_once == [1, 1]


# --- adapters ---------------------------------------------------------------------------------------------------------

QWEN3_4B = Config(151_936, 2560, 9728, 36, 32, 8, 128, tie_word_embeddings=True)


def phases(rank: int, rows: int) -> list[int]:
    """Bytes of the three phases of the preset qwen3-4b on one GPU, with prompts of 500 ids."""
    preset = PRESETS["qwen3-4b"]
    new, group = preset["max_new_tokens"], preset["group_size"]
    batch = forecast.Batch.largest(preset["micro_tokens"], group, 500, new)
    found = (
        forecast.rollouts(QWEN3_4B, rows, group, 500, new, preset["dtype"], 1, rank),
        forecast.update(QWEN3_4B, batch, preset["dtype"], preset["checkpoint_activations"], 1, rank),
        forecast.closing(QWEN3_4B, rows, 500, new, preset["dtype"], 1, rank),
    )
    return [sum(parts.values()) for parts in found]


def test_a_4b_run_with_adapters_fits_a_card_of_24_gb():
    """Catches a frozen base that is kept in fp32 or has gradients, and a claim of docs/scaling.md that is not so."""
    card = 0.95 * 24e9
    assert max(phases(16, 8)) <= card < min(phases(0, 8))
    assert max(phases(16, 24)) > card  # the rows of the preset are for a larger one


def test_the_page_on_scaling_shows_what_the_forecast_says():
    """Catches a table of a smaller card that the code does not agree with."""
    section = (
        (ROOT / "docs" / "scaling.md")
        .read_text(encoding="utf-8")
        .partition("## A smaller card")[2]
        .partition("\n## ")[0]
    )
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in section.splitlines() if line[:2] == "| "}
    columns = [phases(*setting) for setting in ((0, 24), (16, 24), (16, 8), (64, 8))]
    for i, phase in enumerate(("rollouts", "update", "closing evaluation")):
        assert [float(cell) for cell in rows[phase]] == [round(column[i] / 1e9, 1) for column in columns]
    cards = [80, 40, 24, 32]
    assert [int(cell.split()[0]) for cell in rows["fits, 5% left free"]] == cards
    assert all(max(column) <= 0.95e9 * card for column, card in zip(columns, cards, strict=True))


def test_what_is_held_with_adapters_is_what_the_model_and_its_optimizer_hold(tmp_path):
    """Catches a projection whose adapter is not counted."""
    model = lora.adapt(Qwen3(SMALL), 4, 1.0, 0)
    layers = SMALL.num_hidden_layers
    trained = sum(weight.numel() for weight in distributed.trained(model).values())
    frozen = sum(weight.numel() for weight in model.parameters()) - trained
    assert layers * forecast.adapters(SMALL, 4) == trained
    held = forecast.held(SMALL, "bfloat16", 8, 4)
    assert held == {"weights": 2 * frozen, "adapters": 4 * trained, "moments": 8 * trained}
    copied = sum(weight.numel() for name, weight in model.named_parameters() if name.endswith("_proj.weight"))
    assert forecast.rollouts(SMALL, 8, 4, 20, 20, "bfloat16", 1, 4)["copy"] == 2 * copied
    model_file.save(lora.merged(model), tmp_path / "best")
    weights = (tmp_path / "best" / "model.safetensors").stat().st_size
    expected = 3 * (weights + 12 * trained) + 2 * weights
    assert forecast.on_disk(SMALL, "float32", 4) == pytest.approx(expected, rel=0.02)


def test_a_dry_run_knows_of_adapters(capsys):
    """Catches a forecast that is told of another run than the one to come."""
    few = ("--prompts", 4, "--group-size", 2, "--validation-items", 3, "--test-items", 3)
    assert dry(capsys, *few, "--lora-rank", 4).count(", adapters ") == 6
    assert dry(capsys, *few).count(", adapters ") == 0
