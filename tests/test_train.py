"""train.py: the update's invariants on hand-made rollouts, and whole runs in processes of their own."""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from helpers import ROOT, base_directory, call_main, environment, files_under, hand_made, sums, write_tasks
from hypothesis import given
from hypothesis import strategies as st

import gspo
import logprob
import model as model_file
import train
from data import load_tokenizer
from eval import evaluate
from harness.guard import ToolOutage, stop_at_outage
from harness.rundir import policy_directory
from reward import score
from sampler import Rollout, Sampling, rollout
from tiny.languages import LexiconTranslator
from tiny.world import render
from tools import Call, TranslationError
from translation.service import BudgetSpent

TASKS = [render(item, "low-01") for item in sums()[:4]]
SMALL = train.Config(prompts=4, group_size=3, minibatches=2, warmup_steps=0, learning_rate=1e-2, max_new_tokens=100)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(base_directory())


def policy(dtype=torch.float32):
    return model_file.load(base_directory(), dtype=dtype)


@pytest.fixture(scope="module")
def batch(tokenizer):
    """Twelve hand-made rollouts of very different length, their advantages: 0 for a whole group and one more row."""
    rollouts = [
        hand_made(tokenizer, task, answer, called=answer == "12")
        for task in TASKS
        for answer in ("3", "12", "4 or perhaps 5")
    ]
    advantages = torch.tensor([1.0, -0.5, -0.5, 0.0, 0.0, 0.0, 0.7, 0.7, -1.4, -1.0, 1.0, 0.0])
    return rollouts, advantages


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def distance(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


def updated(batch, config, dtype=torch.float64, lr=1.0):
    """The weights after an update by plain gradient descent, so that the change is the gradient."""
    model = policy(dtype)
    rollouts, advantages = batch
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    metrics = train.update(model, optimizer, rollouts, advantages.to(dtype), config, 400)
    return weights(model), metrics


@pytest.fixture
def seen(monkeypatch):
    """What update() gives to the loss: a list of (logps, old_logps, sampled, rows), gradients kept."""
    calls, loss = [], gspo.gspo_loss

    def spy(logps, old_logps, sampled, *rest):
        logps.retain_grad()
        calls.append((logps, old_logps.clone(), sampled, rest[0]))
        return loss(logps, old_logps, sampled, *rest)

    monkeypatch.setattr(gspo, "gspo_loss", spy)
    return calls


# --- ratios -----------------------------------------------------------------------------------------------------


def test_every_ratio_is_exactly_one_before_the_policy_moves(batch):
    """Catches old log-probs from another computation than the new ones: equal up to the last bit is not equal."""
    config = replace(SMALL, micro_tokens=200, max_grad_norm=1e9)
    _, metrics = updated(batch, config, torch.float32, lr=0.0)
    assert metrics["updates"] == 2
    assert (metrics["ratio_mean"], metrics["ratio_max"]) == (1.0, 1.0)
    assert (metrics["approx_kl"], metrics["clip_fraction"]) == (0.0, 0.0)


def test_old_log_probs_are_those_of_before_the_first_step(batch, seen):
    """Catches old log-probs that are taken anew in each minibatch: every ratio would be 1 and nothing ever clipped."""
    updated(batch, replace(SMALL, micro_tokens=200), torch.float32, lr=0.1)
    after = list(seen)
    seen.clear()
    updated(batch, replace(SMALL, micro_tokens=200), torch.float32, lr=0.0)
    assert len(after) == len(seen) > 2
    assert all(torch.equal(old, other) for (_, old, _, _), (_, other, _, _) in zip(after, seen, strict=True))
    assert all(torch.equal(old, logps) for logps, old, _, _ in seen)
    assert not all(torch.equal(old, logps) for logps, old, _, _ in after)


def test_old_log_probs_are_no_part_of_the_graph(batch, seen):
    """Catches a ratio whose gradient cancels: with old undetached it is exactly 0."""
    before = weights(policy(torch.float64))
    after, _ = updated(batch, SMALL)
    assert distance(before, after) > 1e-3
    assert not any(old.requires_grad for _, old, _, _ in seen)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_and_trainer_agree_on_every_log_prob(tokenizer, temperature):
    """Catches a temperature, a mask of the vocabulary or a position that the two apply differently."""
    model = policy()
    sampling = Sampling(max_new_tokens=100, temperature=temperature)
    rollouts = rollout(model, tokenizer, TASKS, 8, LexiconTranslator(), torch.Generator().manual_seed(0), sampling)
    assert any(r.calls for r in rollouts) and any(not r.calls for r in rollouts)
    logps, entropy, sampled = logprob.policy_logps(model, rollouts, temperature, tokenizer.size)
    for row, r in enumerate(rollouts):
        assert tuple(sampled[row, : len(r.ids)].tolist()) == r.sampled and not sampled[row, len(r.ids) :].any()
        difference = logps[row, : len(r.ids)] - torch.tensor(r.logps)
        assert difference[sampled[row, : len(r.ids)]].abs().max().item() < 1e-4
    assert (entropy[sampled] >= 0).all() and (entropy <= math.log(tokenizer.size) + 1e-5).all()


ragged = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=6)


@given(ragged, st.lists(st.integers(1, 7), min_size=3, max_size=3), st.integers(0, 6))
def test_sharing_a_text_changes_no_log_prob_and_no_gradient(rows, prompt_lengths, repeated):
    """Catches a row that sees another's tokens, or its prompt's at other positions; a gradient that a prompt, or an
    answer, does not get from all its rows; rows longer or shorter than every prompt; and rows that are taken for the
    same text although other tokens of it were drawn."""
    rng, rollouts = random.Random(0), []
    prompts = [tuple(rng.choices(range(400), k=length)) for length in prompt_lengths]
    for prompt, length in rows:
        ids, sampled = rng.choices(range(400), k=length), [True, *rng.choices([True, False], k=length - 1)]
        rollouts.append(Rollout(TASKS[0], prompts[prompt], tuple(ids), tuple(sampled), (0.0,) * length, (), "end"))
    rollouts += [*rollouts[:repeated], replace(rollouts[0], sampled=(True,) * len(rollouts[0].ids))]
    model = policy(torch.float64)
    logps, _, sampled = logprob.policy_logps(model, rollouts, 1.0, 400)
    weight = torch.rand(logps.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (logps * weight).sum().backward()
    shared = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row, r in enumerate(rollouts):
        first = len(r.prompt_ids)
        scores = model.logits(model(torch.tensor([[*r.prompt_ids, *r.ids]])))[0, first - 1 : -1, :400].log_softmax(-1)
        alone = scores[torch.arange(len(r.ids)), list(r.ids)] * torch.tensor(r.sampled)
        assert (alone - logps[row, : len(r.ids)]).abs().max() < 1e-12
        (alone * weight[row, : len(r.ids)]).sum().backward()
    assert distance(shared, {name: parameter.grad for name, parameter in model.named_parameters()}) < 1e-10


def test_a_text_is_run_once_and_no_padding_is(batch):
    """Catches a forward that pads its rows, or runs the prompt, or an answer that another row has given, again."""
    rollouts = batch[0] + batch[0][::2]
    model, counts = policy(), []
    model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: counts.append(output.shape[:2].numel()))
    logprob.policy_logps(model, rollouts, 1.0, 400)
    prompts = {r.prompt_ids for r in rollouts}
    assert len(prompts) < len(rollouts)
    assert counts == [sum(map(len, prompts)) + sum(len(ids) for _, ids in {(r.prompt_ids, r.ids) for r in rollouts})]


def test_the_mismatch_of_the_sampler_is_logged(tokenizer):
    """Catches a metric that compares tokens of different rows or positions, and so reports large differences always."""
    model = policy()
    generator, sampling = torch.Generator().manual_seed(0), Sampling(max_new_tokens=100)
    rollouts = rollout(model, tokenizer, TASKS, 3, LexiconTranslator(), generator, sampling)
    advantages = torch.linspace(-1, 1, 12)
    wrong = [replace(r, logps=tuple(x - 0.5 for x in r.logps)) for r in rollouts]
    for rows, expected in ((rollouts, 0.0), (wrong, 0.5)):
        _, metrics = updated((rows, advantages), replace(SMALL, micro_tokens=200), torch.float32, lr=0.1)
        assert metrics["sampler_mismatch"] == pytest.approx(expected, abs=1e-4)
        assert metrics["sampler_mismatch_max"] == pytest.approx(expected, abs=1e-4)


# --- the gradient -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", gspo.RATIOS)
@pytest.mark.parametrize("micro_tokens", [1, 150, 500])
def test_the_update_does_not_depend_on_the_micro_batches(batch, ratio, micro_tokens):
    """Catches a gradient that is weighted by micro-batches instead of by rollouts; both minibatches count."""
    config = replace(SMALL, ratio=ratio, learning_rate=1.0)
    whole, metrics = updated(batch, replace(config, micro_tokens=10**9), lr=0.1)
    parts, part_metrics = updated(batch, replace(config, micro_tokens=micro_tokens), lr=0.1)
    assert distance(whole, weights(policy(torch.float64))) > 1e-4
    assert distance(whole, parts) < 1e-12
    for name in ("loss", "ratio_mean", "ratio_max", "clip_fraction", "approx_kl", "entropy", "grad_norm"):
        assert part_metrics[name] == pytest.approx(metrics[name], rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("ratio", gspo.RATIOS)
def test_the_update_is_the_gradient_of_the_mean_over_all_rollouts(batch, ratio):
    """Catches rows of advantage 0 that are left out of the denominator along with the forward."""
    rollouts, advantages = batch
    model = policy(torch.float64)
    logps, _, sampled = logprob.policy_logps(model, rollouts, 1.0, 400)
    loss, _ = gspo.gspo_loss(logps, logps.detach(), sampled, advantages.double(), 0.2, 0.2, ratio)
    loss.backward()
    expected = {name: parameter.detach() - parameter.grad for name, parameter in model.named_parameters()}
    found, metrics = updated(batch, replace(SMALL, minibatches=1, ratio=ratio, max_grad_norm=1e9))
    assert distance(found, expected) < 1e-12
    assert metrics["updates"] == 1 and metrics["loss"] == pytest.approx(loss.item(), abs=1e-12)


def test_the_gradient_norm_is_bounded_and_logged_before_clipping(batch):
    """Catches a clip that is applied to each micro-batch, and a logged norm that is always the bound."""
    config = replace(SMALL, minibatches=1, micro_tokens=150)
    before = weights(policy(torch.float64))
    free, metrics = updated(batch, replace(config, max_grad_norm=1e9))
    norm = math.sqrt(sum((free[name] - before[name]).square().sum().item() for name in free))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)
    bounded, metrics = updated(batch, replace(config, max_grad_norm=norm / 10))
    moved = math.sqrt(sum((bounded[name] - before[name]).square().sum().item() for name in bounded))
    assert moved == pytest.approx(norm / 10, rel=1e-4) and metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)


def test_what_the_policy_drew_carries_loss_and_what_was_inserted_does_not(batch, tokenizer, seen):
    """Catches an end token or a </tool_call> that is not trained, and a tool result that is."""
    rollouts, _ = batch
    calling = [rollouts[1]]
    updated((calling, torch.ones(1)), replace(SMALL, prompts=1, group_size=1, minibatches=1))
    ((logps, _, sampled, _),) = seen
    weight = dict(zip(enumerate(calling[0].ids), logps.grad[0].tolist(), strict=True))
    control = {
        name: tokenizer.control[name] for name in ("<tool_call>", "</tool_call>", "<|im_end|>", "<tool_response>")
    }
    ends = [w for (_, token), w in weight.items() if token == control["<|im_end|>"]]
    assert [w != 0 for w in ends] == [True, False, True]  # of the call, of the inserted turn, of the answer
    assert all(w != 0 for (_, token), w in weight.items() if token in (control["<tool_call>"], control["</tool_call>"]))
    assert all((w != 0) == drawn for w, drawn in zip(weight.values(), calling[0].sampled, strict=True))
    assert all(w == 0 for (_, token), w in weight.items() if token == control["<tool_response>"])


def test_without_a_usable_group_nothing_moves(batch):
    """Catches momentum or weight decay that moves the weights on no evidence, and metrics of nan."""
    rollouts, _ = batch
    model = policy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    train.update(model, optimizer, *batch, SMALL, 400)  # the optimizer has moments
    before, state = weights(model), json.dumps(str(optimizer.state_dict()))
    metrics = train.update(model, optimizer, rollouts, torch.zeros(12), SMALL, 400)
    assert metrics["updates"] == 0 and all(math.isfinite(value) for value in metrics.values())
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())
    assert json.dumps(str(optimizer.state_dict())) == state


def test_a_minibatch_without_a_signal_is_passed_over(batch):
    """Catches an optimizer step on a gradient that does not exist, and ratios of the other minibatch that are not 1."""
    rollouts, advantages = batch
    advantages = torch.cat([torch.zeros(6), advantages[6:]])
    _, metrics = updated((rollouts, advantages), SMALL)
    assert metrics["updates"] == 1 and metrics["ratio_max"] == 1.0


@pytest.mark.parametrize("minibatches, expected", [(1, [4]), (2, [2, 2]), (4, [1, 1, 1, 1])])
def test_minibatches_are_whole_groups_and_hold_every_signal_once(batch, seen, minibatches, expected):
    """Catches a group that is torn apart, and rollouts that are trained on twice or never."""
    rollouts, _ = batch
    advantages = torch.arange(1.0, 13.0)  # says which row it was
    config = replace(SMALL, minibatches=minibatches, micro_tokens=10**9)
    _, metrics = updated((rollouts, advantages), config, lr=0.0)
    found = [sorted(int(a) for a in rows) for *_, rows in seen]
    assert [len(rows) // 3 for rows in found] == expected and metrics["updates"] == len(expected)
    assert sorted(sum(found, [])) == list(range(1, 13))
    assert all(rows == list(range(rows[0], rows[0] + len(rows))) for rows in found)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60)), max_size=40), st.integers(1, 200))
def test_a_plan_holds_every_row_once_within_the_budget(rows, budget):
    """Catches rows that are lost at a boundary, padding that is not counted, and groups whose rows are scattered."""
    groups, lengths = [group for group, _ in rows], [length for _, length in rows]
    batches = logprob.plan(groups, lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    for batch in batches:  # a long row may stand alone
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    order = [groups[i] for batch in batches for i in batch]
    assert sum(a != b for a, b in itertools.pairwise(order)) == max(len(set(groups)) - 1, 0)


# --- a step -----------------------------------------------------------------------------------------------------


def one_step(config, translator=None, tasks=TASKS):
    model = policy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    tokenizer = load_tokenizer(base_directory())
    translator = translator or LexiconTranslator()
    return *train.train_step(model, tokenizer, optimizer, tasks, translator, config, 0), weights(model)


def without_seconds(rows):
    return [{**row, "calls": [{**call, "seconds": 0} for call in row["calls"]]} for row in rows]


ALL = replace(SMALL, group_size=8, log_rollouts=32, micro_tokens=400)


def test_a_step_does_not_depend_on_how_many_rows_decode_at_a_time():
    """Catches a draw that depends on the row's place in its batch: --max-rows would change results."""
    metrics, rows, _ = one_step(ALL)
    others = [one_step(replace(ALL, max_rows=n)) for n in (5, 32)]
    for _, other, _ in others:
        assert [row["ids"] for row in other] == [row["ids"] for row in rows]
    assert without_seconds(others[1][1]) == without_seconds(rows)
    assert len({tuple(row["ids"]) for row in rows}) > 8


def test_a_step_with_a_signal_moves_the_weights():
    """Catches a gradient of zero behind healthy-looking metrics, and steps below the spacing of the weights' dtype."""
    metrics, rows, after = one_step(ALL)
    assert any(row["advantage"] != 0 for row in rows) and metrics["updates"] >= 1 and metrics["grad_norm"] > 0
    before = weights(policy())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert metrics["accuracy"] == sum(row["score"]["correct"] for row in rows) / len(rows)


def test_an_engine_failure_is_left_out_of_confidence_and_loss():
    """Catches a policy that is punished, or a group that is charged, for a translator that was down."""

    class Down:
        name = "down"

        def translate(self, texts, source, target="en"):
            raise TranslationError("no route to host")

    config = replace(ALL, confidence="group", advantage_scale="none", max_tool_errors=1.0)
    metrics, rows, _ = one_step(config, Down())
    failed = [any(call["error"] == "engine" for call in row["calls"]) for row in rows]
    assert 0 < sum(failed) < len(rows)
    assert metrics["tool_error_rate"] == pytest.approx(sum(failed) / len(rows))
    assert all(row["advantage"] == 0 for row, f in zip(rows, failed, strict=True) if f)
    assert all(call["cost"] == 0 for row in rows for call in row["calls"] if call["error"] == "engine")
    kappa = []
    for p in range(4):
        evidence = [
            row["score"]["correct"] for row, f in list(zip(rows, failed, strict=True))[8 * p : 8 * p + 8] if not f
        ]
        kappa.append(sum(evidence) / len(evidence) if evidence else 0.0)
    assert metrics["confidence"] == pytest.approx(sum(kappa) / 4)


def test_probe_confidence_comes_from_extra_rollouts_without_the_tool(tokenizer):
    """Catches a probe that may call, or that shares its uniform numbers with the group."""
    config = replace(ALL, confidence="probe", probe_rollouts=16)
    metrics, rows, _ = one_step(config)
    sampling = Sampling(max_new_tokens=100, mode="forbidden")
    extra = rollout(policy(), tokenizer, TASKS, 16, LexiconTranslator(), train.generator(0, 0, 1), sampling)
    correct = [train.score(r, tokenizer).correct for r in extra]
    assert not any(r.calls for r in extra)
    assert metrics["confidence"] == pytest.approx(sum(correct) / len(correct))
    group, other = ([row | {"confidence": 0, "gate": 0} for row in some] for some in (rows, one_step(ALL)[1]))
    assert without_seconds(group) == without_seconds(other)  # the group itself is the same


WEIGHTED = [replace(task, cost_weight=weight) for task, weight in zip(TASKS, (0.0, 0.2, 1.0, None), strict=True)]


def test_a_tasks_own_cost_weight_is_what_a_call_costs(tokenizer, monkeypatch):
    """Catches a weight that reaches the prompt and not the reward, or 0 that is taken for none: lambda would be the
    same for all prompts."""

    def made(model, tokenizer, tasks, group_size, *rest):
        return [
            hand_made(tokenizer, t, t.answer if i % 3 else "?", i % 2 == 0) for t in tasks for i in range(group_size)
        ]

    monkeypatch.setattr(train, "rollout", made)
    _, rows, _ = one_step(
        replace(ALL, gate="always", penalty="subtract", cost_weight=0.5, advantage="joint", advantage_scale="none"),
        tasks=WEIGHTED,
    )
    for p, weight in enumerate((0.0, 0.2, 1.0, 0.5)):
        group = [row["score"] for row in rows[8 * p : 8 * p + 8]]
        reward = torch.tensor([s["correct"] - weight * s["cost"] for s in group])
        expected = (reward - reward.mean()).tolist()
        assert [row["advantage"] for row in rows[8 * p : 8 * p + 8]] == pytest.approx(expected, abs=1e-4)
        assert {s["cost"] for s in group} == {0.0, 1.0} and {s["correct"] for s in group} == {0, 1}


def test_what_chooses_best_is_the_accuracy_over_all_items_whatever_calls_cost(tokenizer, monkeypatch):
    """Catches a best/ that a high cost weight chooses among policies which do not call, and a mean of tiers' means."""

    def made(policy, tokenizer, tasks, *rest, **options):
        right = task_count == len(tasks)
        rollouts = [hand_made(tokenizer, task, task.answer if right else "no", called=True) for task in tasks]
        return [(r, score(r, tokenizer)) for r in rollouts]

    monkeypatch.setattr(train, "evaluate", made)
    config, task_count = replace(ALL, lang_tier="all", cost_weight=1.0), len(WEIGHTED)
    validation = {"high": WEIGHTED, "low": WEIGHTED[:1], "xlow": WEIGHTED}
    found = train.validate(policy(), tokenizer, validation, LexiconTranslator(), config)
    assert found["accuracy"] == pytest.approx(2 * task_count / (2 * task_count + 1), abs=1e-6)
    assert (found["tier"]["low"]["accuracy"], found["tier"]["high"]["cost"]) == (0.0, 1.0)


def test_the_reward_of_a_score_is_what_is_optimised(monkeypatch):
    """Catches shaping by `correct`, under which a fork's partial credit would change nothing, and a confidence or an
    accuracy that is taken from the reward."""
    given, shaped_reward = [], gspo.shaped_reward
    monkeypatch.setattr(train, "score", lambda *args: replace(score(*args), correct=1, reward=0.5))
    monkeypatch.setattr(gspo, "shaped_reward", lambda *args: given.append(args[0]) or shaped_reward(*args))
    config = replace(ALL, confidence="group", penalty="subtract", gate="always", cost_weight=0.5)
    metrics, rows, _ = one_step(config)
    assert [reward.tolist() for reward in given] == [[[0.5] * 8] * 4]
    costs = torch.tensor([row["score"]["cost"] for row in rows]).view(4, 8)
    shaped = 0.5 - 0.5 * costs
    assert metrics["reward"] == pytest.approx(shaped.mean().item(), abs=1e-6) and costs.any()
    expected = (shaped - shaped.mean(1, keepdim=True)).flatten().tolist()
    assert [row["advantage"] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert metrics["accuracy"] == metrics["confidence"] == 1.0
    assert {row["score"]["reward"] for row in rows} == {0.5}


@pytest.mark.parametrize("failed, of, allowed", [(0, 4, 0.0), (6, 12, 0.5), (9, 12, 0.75), (12, 12, 1.0)])
def test_an_engine_may_fail_in_the_share_that_is_allowed(tokenizer, failed, of, allowed):
    """Catches >= for >: --max-tool-errors 1 could not switch the guard off, and a sound step would stop at 0."""
    stop_at_outage(rollouts_with(tokenizer, failed, of), allowed)


@pytest.mark.parametrize("failed, of, allowed", [(1, 4, 0.0), (5, 9, 0.5), (7, 12, 0.5), (10, 12, 0.75), (30, 50, 0.5)])
def test_more_failures_than_that_stop_the_run_and_say_why(tokenizer, failed, of, allowed):
    """Catches an outage without its share and the engine's own words."""
    with pytest.raises(
        ToolOutage, match=rf"failed in {failed} of {of} calls \(no route\); --max-tool-errors is {allowed}"
    ):
        stop_at_outage(rollouts_with(tokenizer, failed, of), allowed)


def test_an_evaluation_stops_where_its_calls_all_fail(tokenizer):
    """Catches a best/ that is chosen by two answers without the tool, and one failure that ends an evaluation."""
    with pytest.raises(ToolOutage, match="2 of 2"):
        stop_at_outage(rollouts_with(tokenizer, 2, 2), 0.5)
    stop_at_outage(rollouts_with(tokenizer, 1, 1), 0.5)
    stop_at_outage(rollouts_with(tokenizer, 3, 4), 0.5)


def stops_in(tokenizer, steps, allowed=0.5) -> int | None:
    """The step, from 1 on, that stops a run of steps with so many (failed calls, calls)."""
    earlier = []
    for number, (failed, of) in enumerate(steps, start=1):
        try:
            stop_at_outage(rollouts_with(tokenizer, failed, of), allowed, earlier)
        except ToolOutage:
            return number
    return None


def test_a_run_whose_calls_all_fail_stops_within_two_steps_however_few_they_are(tokenizer):
    """Catches a handful that a policy which calls once per step takes five steps to fail in."""
    assert [stops_in(tokenizer, [(n, n)] * 3) for n in (1, 2, 4, 5, 100)] == [2, 1, 1, 1, 1]
    assert stops_in(tokenizer, [(1, 1), (0, 0), (0, 0), (1, 1)]) == 4  # steps without a call say nothing


def test_a_single_failure_stops_no_run(tokenizer):
    """Catches a step with one call, which failed, that ends a run of hours; and two such steps among sound ones."""
    assert stops_in(tokenizer, [(1, 1), (0, 1), (1, 1), (0, 2), (1, 2), (1, 1), (0, 1)]) is None
    assert stops_in(tokenizer, [(0, 1)] * 30 + [(1, 1)] * 10) is None
    assert stops_in(tokenizer, [(1, 1)], allowed=0.0) == 1  # but where none may fail


def test_an_engine_that_dies_late_is_found_by_the_last_calls(tokenizer):
    """Catches a share over all calls of the run, which a thousand good ones keep low, or over one step only."""
    assert stops_in(tokenizer, [(0, 1)] * 1000 + [(1, 1)] * 20) == 1011
    assert stops_in(tokenizer, [(0, 40)] * 100 + [(40, 40)]) == 101
    assert stops_in(tokenizer, [(0, 4)] * 100 + [(3, 4)] * 10) == 104


def test_a_language_that_fails_in_a_large_step_does_not_count_again_in_a_small_one(tokenizer):
    """Catches a window whose calls are the last of a step, all of one language, and not a sample of them."""
    assert stops_in(tokenizer, [(30, 100), (0, 1), (1, 2), (2, 2)]) is None
    assert stops_in(tokenizer, [(0, 40), (2, 2), (25, 100), (2, 2)]) is None


def rollouts_with(tokenizer, failed: int, of: int = 4):
    """So many rollouts, each with one call that reaches the engine; in the last ones the engine failed."""
    answered, error = Call("a", "b", 1.0, None, 0.0), Call("a", "error: no route", 0.0, "engine", 0.0)
    made = hand_made(tokenizer, TASKS[0], "3")
    return [replace(made, calls=(error if i >= of - failed else answered,)) for i in range(of)]


def test_the_share_of_failures_is_one_of_the_calls_and_not_of_the_rollouts(tokenizer):
    """Catches a limit that a policy which calls in 7% of its rollouts never reaches, whatever its server answers."""
    failed = [Call(None, "error: not valid JSON", 0.5, "malformed", 0.0), Call("a", "error: HTTP 401", 0, "engine", 0)]
    made = [hand_made(tokenizer, TASKS[i % 4], "3") for i in range(100)]
    made[:7] = [replace(r, calls=tuple(failed)) for r in made[:7]]
    with pytest.raises(ToolOutage, match=r"failed in 7 of 7 calls \(HTTP 401\)"):
        stop_at_outage(made, 0.5)


def test_what_a_server_says_moves_no_cursor(tokenizer):
    """Catches escape codes of an engine of somebody's own that reach the terminal with the reason."""
    failed = Call("a", "error: \x1b[2J\nall is well\x9b", 0.0, "engine", 0.0)
    with pytest.raises(ToolOutage, match=r"\(\\x1b\[2J\\nall is well\\x9b\)"):
        stop_at_outage([replace(r, calls=(failed,)) for r in rollouts_with(tokenizer, 5, 5)], 0.5)


def test_generators_of_steps_purposes_and_seeds_differ():
    """Catches two steps, or a group and its probe, that draw the same numbers."""
    draws = {
        torch.rand(1, generator=train.generator(seed, step, purpose), dtype=torch.float64).item()
        for seed in range(4)
        for step in range(30)
        for purpose in range(3)
    }
    assert len(draws) == 4 * 30 * 3


# --- whole runs -------------------------------------------------------------------------------------------------

LOGS = ("metrics.jsonl", "rollouts.jsonl", "timings.jsonl")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A run of six steps, with a validation and a checkpoint every second one."""
    data = write_tasks(tmp_path_factory.mktemp("data") / "tasks.jsonl")
    return [
        "--model",
        base_directory(),
        "--data",
        data,
        "--lang-tier",
        "low",
        "--steps",
        6,
        "--prompts",
        4,
        "--group-size",
        6,
        "--save-every",
        2,
        "--eval-every",
        3,
        "--validation-items",
        4,
        "--test-items",
        4,
        "--max-new-tokens",
        100,
        "--micro-tokens",
        600,
        "--advantage-scale",
        "none",
    ]


@pytest.fixture(scope="module")
def uninterrupted(options, tmp_path_factory):
    """The run directory of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    call_main(train.main, *options, "--out", out)
    return out


def start(options, out):
    words = [sys.executable, "train.py", *map(str, options), "--out", str(out)]
    return subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_until(process, condition):
    for _ in range(60_000):
        if condition():
            return
        if process.poll() is not None:
            break
        time.sleep(0.002)
    raise AssertionError(f"it did not come to that:\n{process.communicate()[0]}")


def assert_same_run(one, other):
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    rows = [[json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()] for run in (one, other)]
    assert without_seconds(rows[0]) == without_seconds(rows[1])
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for name in (
        "best/model.safetensors",
        "best/state.json",
        "step-000006/model.safetensors",
        "step-000006/optimizer.safetensors",
        "step-000006/state.json",
    ):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    reports = [json.loads((run / "report.json").read_text())["groups"] for run in (one, other)]
    assert reports[0] == reports[1]


def test_a_run_leaves_a_complete_directory(uninterrupted):
    """Catches a file that is missing at the end, and a run in which nothing was ever learned from."""
    names = {"config.json", "best", "step-000004", "step-000006", "report.json", "report.html", *LOGS}
    assert {path.name for path in uninterrupted.iterdir()} == names
    metrics = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert [("validation" in row) for row in metrics] == [False, False, True, False, False, True]
    assert sum(row["updates"] for row in metrics) >= 4 and any(row["tool_rate"] > 0 for row in metrics)
    assert all(set(row["tier"]) == {"low"} for row in metrics)
    assert policy_directory(uninterrupted) == uninterrupted / "best"


def test_the_saved_configuration_is_the_one_that_ran(uninterrupted, options):
    """Catches a config.json that lacks the defaults, from which nobody could repeat the run."""
    saved = json.loads((uninterrupted / "config.json").read_text())
    given = dict(zip(options[::2], options[1::2], strict=True))
    expected = {name: getattr(train.Config(), name) for name in vars(train.Config())}
    expected |= {
        flag.removeprefix("--").replace("-", "_"): str(v) if isinstance(v, os.PathLike) else v
        for flag, v in given.items()
    }
    assert saved == json.loads(json.dumps({**expected, "out": str(uninterrupted)}))


def test_best_has_the_highest_validation_accuracy(uninterrupted):
    """Catches a best/ that is simply the last."""
    metrics = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    accuracies = {row["step"]: row["validation"]["accuracy"] for row in metrics if "validation" in row}
    best = json.loads((uninterrupted / "best" / "state.json").read_text())
    assert best["step"] == max(accuracies, key=accuracies.get) and best["accuracy"] == max(accuracies.values())


def test_killed_and_resumed_is_the_uninterrupted_run_bit_for_bit(options, uninterrupted, tmp_path):
    """Catches whatever a checkpoint forgets: moments, a generator, the best so far, lines logged after it."""
    out = tmp_path / "killed"
    process = start(options, out)
    wait_until(process, lambda: (out / "step-000002").exists() and (out / "metrics.jsonl").read_text().count("\n") >= 3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "learning_ra')
    call_main(train.main, *options, "--out", out, "--resume")
    assert_same_run(uninterrupted, out)


@pytest.mark.parametrize("reason", ["no route to host", "the money is spent"])
def test_a_run_without_its_translator_stops_and_goes_on_later(options, uninterrupted, tmp_path, monkeypatch, reason):
    """Catches a policy that is taught during an outage that the tool is useless, and a step that is lost to one."""
    steps, failed = [], Call("text", f"error: the translation failed ({reason})", 0.0, "engine", 0.0)

    def fails_in_the_third_step(*args, **options):
        steps.append(1)
        if len(steps) == 3 and "money" in reason:
            raise BudgetSpent(reason)
        return [replace(r, calls=(failed,)) if len(steps) == 3 else r for r in rollout(*args, **options)]

    out = tmp_path / "down"
    with monkeypatch.context() as patch:
        patch.setattr(train, "rollout", fails_in_the_third_step)
        with pytest.raises(SystemExit, match=f"stopped.*{reason}.*--resume"):
            call_main(train.main, *options, "--out", out)
    assert (out / "metrics.jsonl").read_text().count("\n") == 2
    call_main(train.main, *options, "--out", out, "--resume")
    assert_same_run(uninterrupted, out)


def test_an_outage_in_an_evaluation_stops_the_run_before_it_chooses(options, uninterrupted, tmp_path, monkeypatch):
    """Catches a best/ that was chosen, or a closing table that was filled, by answers without the tool."""
    for name, at in (("validation", 2), ("closing", 3)):
        evaluations, failed = [], Call("text", "error: the translation failed (down)", 0.0, "engine", 0.0)

        def fails(*args, at=at, evaluations=evaluations, failed=failed, **options):
            evaluations.append(1)
            found = evaluate(*args, **options)
            return [(replace(r, calls=(failed,)), s) for r, s in found] if len(evaluations) == at else found

        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(train, "evaluate", fails)
            with pytest.raises(SystemExit, match=r"stopped in an evaluation.*\(down\).*--resume"):
                call_main(train.main, *options, "--out", out)
        assert not (out / "report.json").exists()
        call_main(train.main, *options, "--out", out, "--resume")
        assert_same_run(uninterrupted, out)


def test_interrupted_and_resumed_is_the_uninterrupted_run_bit_for_bit(options, uninterrupted, tmp_path):
    """Catches a Ctrl-C that loses the step, prints a traceback, or leaves a trace in the resumed run."""
    out = tmp_path / "interrupted"
    process = start(options, out)
    wait_until(process, lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text())
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in printed and "--resume" in printed
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and 1 <= len(steps) < 6
    assert policy_directory(out).name in ("best", f"step-{steps[-1]:06d}")
    assert (out / f"step-{steps[-1]:06d}").exists()
    call_main(train.main, *options, "--out", out, "--resume")
    assert {path.name for path in out.glob("step-*")} >= {"step-000006"}
    for path in set(out.glob("step-*")) - {out / "step-000006", out / "step-000004"}:
        pytest.fail(f"{path} was not swept away")
    assert_same_run(uninterrupted, out)


def test_an_interrupt_after_the_decision_to_save_loses_nothing(options, tmp_path, monkeypatch):
    """Catches a loop that asks twice whether it was interrupted and gets two answers: it would leave unsaved."""
    out, step, sent = tmp_path / "run", train.Watch.step, []

    def interrupting(*arguments):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        step(*arguments)

    monkeypatch.setattr(train.Watch, "step", interrupting)
    with pytest.raises(SystemExit) as stop:
        call_main(train.main, *options, "--out", out)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert stop.value.code == 130 and (out / f"step-{steps[-1]:06d}").exists()


def test_a_finished_run_can_be_resumed_without_harm(options, uninterrupted):
    """Catches a resume at the last step that trains on, or empties the logs."""
    before = {name: (uninterrupted / name).read_bytes() for name in ("metrics.jsonl", "rollouts.jsonl")}
    names = files_under(uninterrupted)
    call_main(train.main, *options, "--out", uninterrupted, "--resume")
    assert {name: (uninterrupted / name).read_bytes() for name in before} == before
    assert files_under(uninterrupted) == names
