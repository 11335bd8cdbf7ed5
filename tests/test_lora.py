"""Adapters: one policy in updates, rollouts and files, gradients against closed forms, and runs of nothing else."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import base_directory, call_main, random_directory, write_tasks
from safetensors.torch import load_file
from test_distributed import CONFIG, batch, log, on_ranks, torchrun
from torch import nn

import model as model_file
import train
from harness import distributed, lora
from harness.rundir import Run, load_policy
from logprob import policy_logps

RANK, ALPHA = 3, 6.0
PARTS = [f"{part}.{name}" for part, names in lora.PROJECTIONS.items() for name in names]


def adapted(dtype=torch.float64, seed=1, directory=None):
    """The small base with adapters of which neither factor is 0."""
    model = lora.adapt(model_file.load(directory or base_directory(), dtype=dtype), RANK, ALPHA, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in distributed.trained(model).items():
        if name.endswith(".B"):
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return model.to(dtype) if dtype == torch.float64 else model


class Unmerged(nn.Module):
    """x W^T + alpha / r * (x A^T) B^T: the adapter as it is usually run."""

    def __init__(self, module: lora.Adapted):
        super().__init__()
        self.weight, self.A, self.B = module.weight, module.A, module.B

    def forward(self, x):
        return F.linear(x, self.weight) + ALPHA / RANK * F.linear(F.linear(x, self.A), self.B)


def unmerged(model):
    for layer in model.layers:
        for part in PARTS:
            block, name = part.split(".")
            setattr(getattr(layer, block), name, Unmerged(layer.get_submodule(part)))
    return model


# --- one policy -------------------------------------------------------------------------------------------------


def test_a_policy_with_new_adapters_is_the_base_bit_for_bit():
    """Catches a run whose first rollouts are not those of the policy that it was told to begin with."""
    base, ids = model_file.load(base_directory()), torch.arange(30).view(2, 15)
    model = lora.adapt(model_file.load(base_directory()), RANK, ALPHA, 0)
    assert torch.equal(model(ids), base(ids)) and torch.equal(lora.merged(model)(ids), base(ids))
    assert len(distributed.trained(model)) == 2 * len(PARTS) * base.config.num_hidden_layers


def test_merged_and_unmerged_adapters_compute_the_same():
    """Catches a factor that is transposed, a scale that is left out, and a projection without its adapter."""
    model, ids = adapted(), torch.arange(30).view(2, 15)
    expected = unmerged(adapted())(ids)
    assert (model(ids) - expected).abs().max() < 1e-10
    assert (lora.merged(model)(ids) - expected).abs().max() < 1e-10
    assert (expected - model_file.load(base_directory(), dtype=torch.float64)(ids)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_update_and_rollouts_see_the_same_weights_bit_for_bit(dtype):
    """Catches ratios that are off before the policy has moved: in bf16 an unmerged adapter is another policy."""
    rollouts, _ = batch()
    model = adapted(dtype)
    policy = distributed.gathered(model, dtype)
    assert type(policy) is model_file.Qwen3 and not lora.is_adapted(policy)
    assert {weight.dtype for weight in policy.parameters()} == {dtype}
    assert {weight.dtype for weight in distributed.trained(model).values()} == {torch.float32}
    with torch.no_grad():
        ours, theirs = (policy_logps(m, rollouts, 1.0, 400)[0] for m in (model, policy))
    assert torch.equal(ours, theirs)


def test_merging_leaves_the_trained_policy_as_it_was():
    """Catches a merged copy that unfreezes, moves or adds to the weights that it shares."""
    model = adapted(torch.float32)
    before = {name: (weight.requires_grad, weight.clone()) for name, weight in model.named_parameters()}
    lora.merged(model).double()
    for name, weight in model.named_parameters():
        assert before[name][0] == weight.requires_grad and torch.equal(before[name][1], weight), name


# --- gradients --------------------------------------------------------------------------------------------------


def changes(model, config=CONFIG):
    """How an update by plain gradient descent with rate 1 moves each parameter, which is minus its gradient."""
    rollouts, advantages = batch()
    model = distributed.shard(model, torch.float64)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD(distributed.trained(model).values(), lr=1.0)
    train.update(model, optimizer, rollouts, advantages.double(), config, 400)
    return {name: (weight.detach() - before[name]).numpy() for name, weight in model.named_parameters()}


def test_the_gradients_of_the_factors_follow_from_that_of_the_whole_weight():
    """Catches a factor that gets no gradient, or another's. W' = W + s B A: dB = s dW' A^T, and dA = s B^T dW'."""
    config = replace(CONFIG, minibatches=1)
    model = adapted()
    factors = {name: weight.detach().clone() for name, weight in distributed.trained(model).items()}
    whole, found = changes(copy.deepcopy(lora.merged(model)), config), changes(model, config)
    for layer in range(model.config.num_hidden_layers):
        for part in PARTS:
            name = f"layers.{layer}.{part}"
            A, B, dW = factors[f"{name}.A"].numpy(), factors[f"{name}.B"].numpy(), whole[f"{name}.weight"]
            assert abs(dW).max() > 1e-6
            assert found[f"{name}.B"] == pytest.approx(ALPHA / RANK * dW @ A.T, rel=1e-7, abs=1e-12)
            assert found[f"{name}.A"] == pytest.approx(ALPHA / RANK * B.T @ dW, rel=1e-7, abs=1e-12)
    frozen = found.keys() - factors.keys()
    assert frozen and not any(found[name].any() for name in frozen)


def of_ranks():
    return changes(adapted())


def test_two_ranks_have_the_gradients_of_one(tmp_path):
    """Catches adapters that each rank trains by itself, and gradients that are averaged or counted twice."""
    alone, together = of_ranks(), on_ranks(2, tmp_path, of_ranks)
    assert max(abs(change).max() for change in alone.values()) > 1e-3
    assert alone.keys() == together.keys()
    assert max(abs(alone[name] - together[name]).max() for name in alone) < 1e-9


def test_the_peft_library_computes_the_same():
    """Catches a reading of the method that is ours alone: logits and gradients of the most used implementation."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    ids, model = torch.arange(30).view(2, 15), adapted()
    reference = AutoModelForCausalLM.from_pretrained(base_directory(), dtype=torch.float64, attn_implementation="eager")
    names = [part.split(".")[1] for part in PARTS]
    reference = peft.get_peft_model(reference, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names))
    reference.double()
    theirs = dict(reference.named_parameters())
    pairs = {}
    for name, weight in distributed.trained(model).items():
        module, factor = name.rsplit(".", 1)
        pairs[name] = theirs[f"base_model.model.model.{module}.lora_{factor}.default.weight"]
        pairs[name].data = weight.detach().clone()
    ours, expected = model.logits(model(ids)), reference(ids).logits
    assert (ours - expected).abs().max() < 1e-5  # theirs has norms and angles in fp32, whatever the dtype
    for logits in (ours, expected):
        logits.square().mean().backward()
    for name, weight in distributed.trained(model).items():
        assert torch.allclose(weight.grad, pairs[name].grad, rtol=1e-4, atol=1e-7), name


# --- runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A run of four steps with adapters in bf16, and a checkpoint every second one."""
    words = "--lang-tier low --steps 4 --prompts 4 --group-size 6 --save-every 2 --eval-every 2 --validation-items 4"
    words += " --test-items 4 --max-new-tokens 100 --micro-tokens 600 --learning-rate 0.02 --warmup-steps 0"
    data = write_tasks(tmp_path_factory.mktemp("data") / "tasks.jsonl")
    return [*words.split(), "--data", data, "--model", base_directory(), "--lora-rank", 4, "--dtype", "bfloat16"]


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    call_main(train.main, *options, "--out", out)
    return out


def test_a_checkpoint_replaces_the_base_and_holds_adapters_and_their_moments(finished):
    """Catches frozen weights that move, moments of weights that are not trained, adapters that are left out of it."""
    base = load_file(base_directory() / "model.safetensors")
    saved, adapters, moments = (
        load_file(finished / "step-000004" / f"{name}.safetensors") for name in ("model", "adapters", "optimizer")
    )
    assert saved.keys() == base.keys() and {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    moved = {name for name in base if not torch.equal(base[name].bfloat16(), saved[name])}
    projected = {f"model.{name.removesuffix('.B')}.weight" for name in adapters if name.endswith(".B")}
    assert moved and moved <= projected and len(projected) == 2 * len(PARTS)
    assert {name.rsplit(".", 1)[0] for name in moments} == set(adapters)
    model = lora.adapt(model_file.load(base_directory(), dtype=torch.bfloat16), 4, train.Config().lora_alpha, 0)
    lora.restore(model, finished / "step-000004")
    ids = torch.arange(30).view(2, 15)
    assert torch.equal(load_policy(finished / "step-000004", dtype=torch.bfloat16)[0](ids), lora.merged(model)(ids))


def test_the_optimizer_holds_the_adapters_alone():
    """Catches 8 bytes for each frozen weight, and a copy of all of them before each update."""
    model = adapted(torch.float32)
    (group,) = train.adamw(model, CONFIG).param_groups
    assert [id(weight) for weight in group["params"]] == [id(w) for w in model.parameters() if w.requires_grad]


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(options, finished, tmp_path):
    """Catches adapters that begin anew, or that are taken out of merged weights, which have been rounded."""
    out = tmp_path / "again"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "step-000004")
    call_main(train.main, *options, "--out", out, "--resume")
    for name in ("model", "adapters", "optimizer"):
        place = f"step-000004/{name}.safetensors"
        assert (out / place).read_bytes() == (finished / place).read_bytes()
    for name in ("metrics.jsonl", "best/model.safetensors"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and sum(row["updates"] for row in rows) >= 2


def test_adapters_of_another_base_are_refused(finished, tmp_path):
    """Catches a --model that was changed between two starts: with the adapters it is a policy that nobody trained."""
    config = train.Config(**json.loads((finished / "config.json").read_text()) | {"evaluation_data": ()})
    run = Run(finished, config, resume=True)
    model, _ = run.load_policy(random_directory(), "cpu")
    with pytest.raises(ValueError, match=r"adapters\.safetensors: .* other weights than those of --model"):
        run.open(model, train.adamw(model, config))


def test_two_ranks_and_the_real_command(options, tmp_path):
    """Catches adapters that differ between ranks, and a checkpoint that only two can go on with."""
    out = tmp_path / "run"
    shorter = [2 if before == "--steps" else word for before, word in zip([None, *options], options, strict=False)]
    printed, _ = (process := torchrun(*shorter, "--out", out)).communicate()
    assert process.returncode == 0, printed
    call_main(train.main, *options, "--out", out, "--resume")
    assert [row["step"] for row in log(out)] == [1, 2, 3, 4]


def test_a_short_run_learns_to_call(tmp_path):
    """Catches adapters whose updates never reach the policy that samples. 0.08 to 0.7 of the rollouts in ten steps."""
    words = "--lang-tier xlow --steps 10 --prompts 16 --lora-rank 8 --learning-rate 0.01 --warmup-steps 0"
    few = "--save-every 10 --eval-every 10 --validation-items 4 --test-items 4"
    call_main(train.main, *words.split(), *few.split(), "--out", tmp_path / "run")
    rates = [row["tool_rate"] for row in log(tmp_path / "run")]
    assert max(rates[:2]) < 0.2 and min(rates[8:]) > 0.5
