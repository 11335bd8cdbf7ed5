"""Several processes: the loss and gradients of one, the real command under torchrun, and what a lost rank costs."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, base_directory, call_main, command, environment, hand_made, sums, write_tasks
from safetensors.torch import load_file

import model as model_file
import train
from data import load_tokenizer
from harness import distributed
from harness.rundir import Run, load_policy
from tiny.world import render

FORKSERVER = multiprocessing.get_context("forkserver")  # torch is imported once for all of the processes below
FORKSERVER.set_forkserver_preload(["torch", "train", "helpers"])
CONFIG = train.Config(prompts=4, group_size=3, minibatches=2, max_grad_norm=1e9, learning_rate=1e-3, micro_tokens=200)


def batch():
    """Twelve hand-made rollouts of very different length, and advantages: 0 for a whole group and one more row."""
    tokenizer = load_tokenizer(base_directory())
    tasks = [render(item, "low-01") for item in sums()[:4]]
    rollouts = [
        hand_made(tokenizer, task, answer, called=answer == "12")
        for task in tasks
        for answer in ("3", "12", "4 or perhaps 5")
    ]
    return rollouts, torch.tensor([1.0, -0.5, -0.5, 0.0, 0.0, 0.0, 0.7, 0.7, -1.4, -1.0, 1.0, 0.0])


def rank_of(number, world, place, function, arguments):
    """What a spawned process does: join the group, call the function, and as rank 0 leave its result in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{place}.store", world), rank=number, world_size=world)
    result = function(*arguments)
    if number == 0:
        Path(f"{place}.result").write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(world, directory, function, *arguments):
    """The function's result on rank 0 of `world` processes with these arguments."""
    place = str(Path(directory) / f"{function.__name__}-{world}")
    processes = [
        FORKSERVER.Process(target=rank_of, args=(number, world, place, function, arguments)) for number in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world
    return pickle.loads(Path(f"{place}.result").read_bytes())


# --- loss and gradients -----------------------------------------------------------------------------------------

CASES = {
    "two minibatches": CONFIG,
    "one minibatch": replace(CONFIG, minibatches=1),
    "checkpointed": replace(CONFIG, checkpoint_activations=True),
    "fewer micro-batches than ranks": replace(CONFIG, micro_tokens=10**6),
}


def updates(directory, rollouts, advantages):
    """Metrics and weights after an update by plain gradient descent in float64, for each of the cases."""
    found = {}
    for name, config in CASES.items():
        model = model_file.load(directory, dtype=torch.float64)
        model.checkpoint_activations = config.checkpoint_activations
        model = distributed.shard(model, torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0 if config.minibatches == 1 else 0.1)
        metrics = train.update(model, optimizer, rollouts, advantages.double(), config, 400)
        weights = distributed.whole({n: parameter.detach() for n, parameter in model.named_parameters()})
        found[name] = metrics, {n: weight.numpy() for n, weight in weights.items()}
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_ranks_has_the_same_loss_and_gradients(world, tmp_path):
    """Catches gradients that are averaged or counted twice, a padding micro-batch with weight, ranks that hang."""
    rollouts, advantages = batch()
    alone = updates(base_directory(), rollouts, advantages)
    together = on_ranks(world, tmp_path, updates, base_directory(), rollouts, advantages)
    before = dict(model_file.load(base_directory(), dtype=torch.float64).named_parameters())
    for name, (metrics, weights) in alone.items():
        other_metrics, other_weights = together[name]
        assert other_metrics == pytest.approx(metrics, rel=1e-6, abs=1e-9)
        assert other_metrics["loss"] == pytest.approx(metrics["loss"], abs=1e-9)
        assert max(abs(weights[n] - before[n].detach().numpy()).max() for n in weights) > 1e-3
        assert max(abs(weights[n] - other_weights[n]).max() for n in weights) < 1e-9, name


def dealt(items):
    mine = distributed.share(items)
    batches = distributed.deal([[i] for i in items])
    blocks = [entry for i in mine for entry in (i, -i)]
    return distributed.gather(mine), distributed.gather(blocks, 2), distributed.gather([len(batches)])


def test_what_is_shared_comes_back_in_order(tmp_path):
    """Catches rollouts that are scored as another task's, and ranks with different numbers of micro-batches."""
    items = [1, 2, 3, 4, 5]
    whole, blocks, batches = on_ranks(2, tmp_path, dealt, items)
    assert whole == items and blocks == [entry for i in items for entry in (i, -i)]
    assert batches == [3, 3]
    assert dealt(items) == (items, blocks, [5])


# --- checkpoints ------------------------------------------------------------------------------------------------


def updated(directory, resume, step, rollouts, advantages):
    """One more AdamW update, of the base model or of the run's checkpoint, saved as a checkpoint."""
    config = replace(CONFIG, out=str(directory))
    run = Run(directory, config, resume)
    model, _ = load_policy(run.last_checkpoint() if resume else base_directory_of(directory))
    model = distributed.shard(model, torch.float32)
    optimizer = train.adamw(model, config)
    run.open(model, optimizer)
    metrics = train.update(model, optimizer, rollouts, advantages, config, 400)
    run.log_step(step, metrics, [], 0.0, None)
    run.save_checkpoint(model, optimizer, base_directory_of(directory))


def base_directory_of(directory) -> Path:
    return Path((Path(directory).parent / "base").read_text())


def test_a_checkpoint_knows_no_number_of_ranks(tmp_path):
    """Catches parts saved as wholes, moments that stay behind, and two ranks that write into one directory."""
    (tmp_path / "base").write_text(str(base_directory()))
    rollouts, advantages = batch()
    updated(tmp_path / "alone", False, 1, rollouts, advantages)
    updated(tmp_path / "alone", True, 2, rollouts, advantages)
    on_ranks(2, tmp_path, updated, tmp_path / "changing", False, 1, rollouts, advantages)
    updated(tmp_path / "changing", True, 2, rollouts, advantages)
    on_ranks(3, tmp_path, updated, tmp_path / "changing", True, 3, rollouts, advantages)
    updated(tmp_path / "alone", True, 3, rollouts, advantages)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(tmp_path / run / "step-000003" / name) for run in ("alone", "changing"))
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.allclose(tensor, other[key], rtol=1e-3, atol=1e-6), key
    assert not list((tmp_path / "changing").glob(".*"))


# --- mixed precision --------------------------------------------------------------------------------------------


def in_bf16(directory, rollouts, advantages):
    """dtypes of weights, gradients and of the sampling copy, and whether tiny steps add up."""
    model = distributed.shard(model_file.load(directory), torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    before = {n: p.detach().full_tensor().clone() for n, p in model.named_parameters()}
    for _ in range(3):
        train.update(model, optimizer, rollouts, advantages, CONFIG, 400)
    moved = [not torch.equal(before[n], p.detach().full_tensor()) for n, p in model.named_parameters()]
    policy = distributed.gathered(model, torch.bfloat16)
    kinds = {p.dtype for p in model.parameters()}, {p.dtype for p in policy.parameters()}
    return kinds, moved, policy(torch.tensor([[1, 2, 3]])).dtype, type(policy).__name__


def test_weights_stay_in_fp32_where_the_computation_is_in_bf16(tmp_path):
    """Catches steps that are rounded away because bf16 weights are optimised in place."""
    (weights, sampling), moved, hidden, name = on_ranks(1, tmp_path, in_bf16, base_directory(), *batch())
    assert weights == {torch.float32} and sampling == {torch.bfloat16} and all(moved)
    assert hidden == torch.bfloat16 and name == "Qwen3"


# --- the real command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    data = write_tasks(tmp_path_factory.mktemp("data") / "tasks.jsonl")
    return [
        "--model",
        base_directory(),
        "--data",
        data,
        "--lang-tier",
        "low",
        "--prompts",
        4,
        "--group-size",
        6,
        "--save-every",
        1,
        "--eval-every",
        2,
        "--validation-items",
        5,
        "--test-items",
        5,
        "--max-new-tokens",
        100,
        "--micro-tokens",
        600,
    ]


def torchrun(*words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    return subprocess.Popen(
        [*command, *map(str, words)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def log(run) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_real_command_on_two_ranks_and_then_on_one(options, tmp_path):
    """Catches a command that hangs, that prints everything twice, or whose run only as many ranks can go on with."""
    out = tmp_path / "run"
    printed, _ = (process := torchrun(*options, "--steps", 2, "--dtype", "bfloat16", "--out", out)).communicate()
    assert process.returncode == 0, printed
    assert printed.count("first prompt:") == 1 and printed.count("base against") == 1
    names = {
        "config.json",
        "best",
        "step-000001",
        "step-000002",
        "report.json",
        "report.html",
        "metrics.jsonl",
        "timings.jsonl",
        "rollouts.jsonl",
    }
    assert {path.name for path in out.iterdir()} == names
    assert [row["step"] for row in log(out)] == [1, 2] and any(row["updates"] for row in log(out))
    assert all(len(row["tier"]) == 1 and 0 <= row["accuracy"] <= 1 for row in log(out))
    call_main(train.main, *options, "--steps", 3, "--dtype", "bfloat16", "--out", out, "--resume")
    assert [row["step"] for row in log(out)] == [1, 2, 3] and (out / "step-000003").is_dir()
    assert not dist.is_initialized()


def children(pid: int) -> dict[str, int]:
    """RANK -> pid of a process's children."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [v.removeprefix(b"RANK=").decode() for v in variables if v.startswith(b"RANK=")]
        found |= {rank: int(child) for rank in ranks}
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks' processes in /proc")
def test_a_lost_rank_ends_all_and_costs_no_saved_step(options, tmp_path):
    """Catches ranks that wait for ever for one that is gone, and a checkpoint that is torn by it."""
    out = tmp_path / "run"
    process = torchrun(*options, "--steps", 1000, "--out", out)
    while not (out / "step-000002").is_dir() and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]
    os.kill(children(process.pid)["1"], signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode != 0
    assert "another rank is gone" in printed or "Signal 9 (SIGKILL)" in printed
    done = len(log(out))
    saved = max(int(path.name.removeprefix("step-")) for path in out.glob("step-*"))
    assert done - 1 <= saved <= done
    call_main(train.main, *options, "--steps", saved + 1, "--out", out, "--resume")
    assert [row["step"] for row in log(out)] == list(range(1, saved + 2))


def test_a_single_process_starts_without_the_engine_that_splits_weights():
    """Catches an import that takes a quarter of the start of every command, and is used by a run on several ranks."""
    loaded = command("-c", "import sys, train; print(*sys.modules)").stdout.split()
    assert {"train", "harness.distributed", "torch.distributed"} <= set(loaded)
    assert not {"torch.distributed.fsdp", "torch.distributed.tensor"} & set(loaded)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_one_process_on_a_gpu_starts_with_and_without_its_number(device, monkeypatch):
    """Catches `--device cuda` without torchrun ending in torch's ValueError: set_device takes no device without one."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda name: chosen.append(torch.cuda._utils._get_device_index(name)))
    monkeypatch.setattr(dist, "init_process_group", lambda *backends, **settings: None)
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: False)
    assert distributed.start(device, "bfloat16") == device
    assert chosen == [1] * (device == "cuda:1")
