"""[9] Train a policy to call the translator where it helps: the whole experiment, one command.

    python train.py --lang-tier low

Each step follows the stages of the code base: draw tasks [1], sample a group of rollouts for each with the model [2]
and the tool [3, 4], score them [5], turn scores into confidence, gate, shaped reward and advantages [7], and take a few
optimizer steps on the clipped objective of the log-probs [6, 7]. At the end base and result are evaluated on the same
items [8].

Everything random follows from the seed and the step's number, so a run that was killed goes on with --resume to the
same bits. Under torchrun each rank samples its share of the prompts and runs its share of the micro-batches
(distributed.py); all else is computed by every rank from the same rollouts.

Left out: KL penalties, replay, asynchronous rollouts.
"""

import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

import gspo
from data import Task
from eval import compare, compare_table, evaluate, summary
from harness import distributed
from harness.forecast import dry_run, introduction
from harness.guard import ToolOutage, failure_rate
from harness.metrics import rollout_row, step_metrics, update_metrics
from harness.options import TrainingOptions, clear_errors, parse, require
from harness.rundir import Run, load_policy, policy_directory, write_json
from harness.tasks import evaluation_tasks, training_tasks
from logprob import plan, policy_logps
from model import Qwen3
from reward import score
from sampler import Rollout, rollout
from translation.service import BudgetSpent, open_translator


@dataclass(frozen=True)
class Config(TrainingOptions):
    """Options of train.py. The defaults are those of the tiny preset; LOG.md says how they were chosen."""

    model: str = "tiny"  # the policy to begin with: a model directory
    out: str = ""  # run directory (default: runs/ and the tier)
    resume: bool = False  # go on with the run in --out
    lang_tier: Literal["high", "low", "xlow", "all"] = "all"  # languages to train on
    steps: int = 140  # training steps
    prompts: int = 64  # tasks a step
    group_size: int = 8  # rollouts of each task
    gate: Literal["native", "group", "probe", "always", "never"] = "native"  # where a call is charged
    threshold: float = 0.95  # confidence from which the gate is open (tau)
    penalty: Literal["multiply", "subtract"] = "multiply"  # form of the charge
    cost_weight: float = 0.25  # what a call of mean length takes off a right answer (lambda), where a task has no price
    probe_rollouts: int = 4  # extra tool-free rollouts of each task, for --gate probe
    advantage_scale: Literal["group", "batch", "none"] = "none"  # what advantages are divided by
    ratio: Literal["sequence", "token"] = "token"  # importance ratio and weight: GSPO's a rollout, or GRPO's a token
    clip_low: float = 0.2  # ratios below 1 - clip_low get no further
    clip_high: float = 0.2  # ratios above 1 + clip_high get no further
    minibatches: int = 2  # optimizer steps on each step's rollouts
    micro_tokens: int = 16384  # in one forward: rows times the longest of them, prompt included
    checkpoint_activations: bool = False  # keep each layer's input only, and run it again in the backward
    learning_rate: float = 1e-3  # of AdamW, after the warm-up
    warmup_steps: int = 5  # steps over which the learning rate rises
    decay: float = 0.5  # share of the steps, the last ones, over which the learning rate falls towards 0
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm
    temperature: float = 1.0  # of sampling and of the loss
    seed: int = 0  # of the tasks and of the sampling
    eval_every: int = 35  # steps between validations, which choose best/
    validation_items: int = 400  # validation items in each training tier
    save_every: int = 35  # steps between checkpoints
    max_tool_errors: float = 0.5  # the run stops if the engine fails in more than this share of a step's rollouts
    test_items: int = 500  # test items in each group of languages, for the closing table
    log_rollouts: int = 8  # rollouts of each step kept in rollouts.jsonl
    dry_run: bool = False  # print configuration, first prompt, predicted memory and plan, and stop

    @property
    def tiers(self) -> list[str]:
        return ["high", "low", "xlow"] if self.lang_tier == "all" else [self.lang_tier]

    def check(self) -> None:
        super().check()
        require(self.threshold <= 1, f"--threshold is a confidence, at most 1, not {self.threshold}")
        require(self.decay <= 1, f"--decay is a share of the steps, at most 1, not {self.decay}")
        require(self.prompts % self.minibatches == 0, "--prompts must be a multiple of --minibatches")


def generator(seed: int, step: int, purpose: int, rank: int = 0) -> torch.Generator:
    """A random generator that depends on nothing but its arguments: this is what makes a run resumable."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 8 + purpose + (rank << 48))


def cost_weight(task: Task, config: Config) -> float:
    """Lambda for this task: the price that its prompt states, else --cost-weight."""
    return config.cost_weight if task.price is None else task.price


# --- the update ---


def learning_rate(config, step: int) -> float:
    """That of step 0, 1, …: it rises linearly over the warm-up and falls linearly, towards 0, over the decay."""
    rise = (step + 1) / (config.warmup_steps + 1)
    fall = (config.steps - step) / max(1.0, config.decay * config.steps)
    return config.learning_rate * min(1.0, rise, fall)


def adamw(model: Qwen3, config) -> torch.optim.AdamW:
    """The optimizer, in fp32 and without weight decay."""
    is_cuda = model.embed_tokens.weight.is_cuda  # the fused step makes no temporary copies of all weights
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=is_cuda or None
    )


def split(rollouts: list[Rollout], advantages: Tensor, config) -> list[tuple[list[list[int]], int]]:
    """The minibatches of a step, each as (its micro-batches of rollout numbers, its number of rollouts).

    Minibatches are whole groups. Rows with advantage 0 count in the denominator and are not run: their gradient is 0.
    """
    size = config.prompts // config.minibatches * config.group_size
    minibatches = []
    for first in range(0, len(rollouts), size):
        members = range(first, min(first + size, len(rollouts)))
        rows = [i for i in members if advantages[i] != 0]
        lengths = [len(rollouts[i].prompt_ids) + len(rollouts[i].ids) for i in rows]
        batches = plan([i // config.group_size for i in rows], lengths, config.micro_tokens)
        minibatches.append(([[rows[i] for i in batch] for batch in batches], len(members)))
    return minibatches


def update(model: Qwen3, optimizer, rollouts: list[Rollout], advantages: Tensor, config, vocab: int) -> dict:
    """The optimizer steps on one batch of rollouts; returns means of what there is to log.

    Old log-probs come from the same forward over the same micro-batches that will be trained, never from the sampler:
    in the first minibatch they are the detached new ones, for the others they are computed before the first optimizer
    step. So every ratio is exactly 1 before the policy moves.
    """
    minibatches = [  # an empty micro-batch (distributed.deal says what for) runs some rollout at weight 0
        [(batch or [0], len(batch) / rows) for batch in distributed.deal(batches)]
        for batches, rows in split(rollouts, advantages, config)
    ]

    def logps_of(batch):
        return policy_logps(model, [rollouts[i] for i in batch], config.temperature, vocab)  # [6]

    with torch.no_grad():
        old = [[logps_of(batch)[0] for batch, _ in batches] for batches in minibatches[1:]]
    records, norms = [], []
    for number, batches in enumerate(minibatches):
        for i, (batch, share) in enumerate(batches):
            logps, entropy, sampled = logps_of(batch)
            old_logps = old[number - 1][i] if number else logps.detach()
            A = advantages[batch].to(logps.device)
            loss, metrics = gspo.gspo_loss(  # [7]
                logps, old_logps, sampled, A, config.clip_low, config.clip_high, config.ratio
            )
            distributed.sum_gradients(model, now=i + 1 == len(batches))
            (loss * share).backward()
            record = {name: float(value) for name, value in metrics.items()}
            record |= {
                "loss": loss.item() * share,
                "entropy": float(entropy.sum() / sampled.sum()),
                "tokens": int(sampled.sum()),
                "mismatch": None,
            }
            if not norms:  # same weights as the sampler had: what remains is the two computations' difference
                theirs = [torch.tensor(rollouts[i].logps, device=logps.device) for i in batch]
                theirs = torch.nn.utils.rnn.pad_sequence(theirs, batch_first=True)  # [B, T]
                record["mismatch"] = (logps.detach() - theirs)[sampled].abs().cpu()
            records.append(record if share else None)
        if batches:
            norms.append(distributed.clip_gradients(model, config.max_grad_norm))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    records = [record for record in distributed.gather(records) if record]
    return update_metrics(records, norms)


# --- the loop ---------------------------------------------------------------------------------------------------


def sample(model, tokenizer, tasks, translator, config: Config, step: int) -> tuple[list[Rollout], list[Rollout]]:
    """The step's rollouts and, for --gate probe, the probe's: group after group, each rank having sampled its share.

    The whole policy, in the dtype of the computation, is gathered once for both and let go when they are done.
    """
    policy = distributed.gathered(model, getattr(torch, config.dtype))

    def run(group_size: int, purpose: int, mode: str) -> list[Rollout]:
        rng = generator(config.seed, step, purpose, distributed.rank())
        mine = rollout(
            policy,
            tokenizer,
            distributed.share(tasks),
            group_size,
            translator,
            rng,
            mode=mode,
            temperature=config.temperature,
            **config.sampling(),
        )
        return distributed.gather(mine, group_size)

    rollouts = run(config.group_size, 0, "free")
    return rollouts, run(config.probe_rollouts, 1, "forbidden") if config.gate == "probe" else []


def train_step(model, tokenizer, optimizer, tasks, translator, config: Config, step: int) -> tuple[dict, list[dict]]:
    """One step: sample, score, shape, update. Returns the metrics, and rows for rollouts.jsonl.

    Raises ToolOutage before the policy has moved.
    """
    P, G = len(tasks), config.group_size
    rollouts, extra = sample(model, tokenizer, tasks, translator, config, step)  # [4]
    scores = [score(r, tokenizer, config.answer) for r in rollouts]  # [5]
    correct = torch.tensor([float(s.correct) for s in scores]).view(P, G)
    used_tool = torch.tensor([s.used_tool for s in scores]).view(P, G)
    cost = torch.tensor([s.cost for s in scores]).view(P, G)
    valid = torch.tensor([not r.engine_failed for r in rollouts]).view(P, G)
    failed = failure_rate(rollouts, config.max_tool_errors)
    probe = torch.tensor([score(r, tokenizer, config.answer).correct for r in extra]).view(P, -1) if extra else None

    estimator = config.gate if config.gate in gspo.ESTIMATORS else "native"  # logged, also where it gates nothing
    kappa = gspo.confidence(correct, used_tool, estimator, probe, valid)  # [7]
    gates = gspo.gate(kappa, config.gate, config.threshold)
    weights = torch.tensor([cost_weight(task, config) for task in tasks])
    reward = gspo.shaped_reward(correct, cost, gates, weights, config.penalty)
    advantages = gspo.group_advantages(reward, config.advantage_scale, valid)
    updated = update(model, optimizer, rollouts, advantages.flatten(), config, tokenizer.size)

    silent = (advantages == 0).all(-1)
    metrics = step_metrics(tasks, scores, gates, kappa, (~used_tool & valid).sum(-1) == 0, G)
    metrics |= {
        "reward": float(reward.mean()),
        "all_right_rate": float((silent & (correct == 1).all(-1)).float().mean()),
        "all_wrong_rate": float((silent & (correct == 0).all(-1)).float().mean()),
        "unanswered": sum(not s.format_ok for s in scores) / len(scores),
        "malformed_calls": sum(call.error == "malformed" for r in rollouts for call in r.calls),
        "tool_error_rate": failed,
        "tokens": sum(len(r.ids) for r in rollouts) / len(rollouts),
    }
    every = max(1, len(rollouts) // max(1, config.log_rollouts))
    kept = list(range(0, len(rollouts), every))[: config.log_rollouts]
    logged = [rollout_row(rollouts[i], scores[i], step + 1, float(advantages.flatten()[i])) for i in kept]
    return metrics | updated, logged


def validate(model, tokenizer, validation, tiers, translator, config: Config) -> dict:
    """Validation of the tiers in training: summaries by tier, and the utility that chooses `best/`."""
    policy = distributed.gathered(model, getattr(torch, config.dtype))
    found = {tier: outcomes(policy, tokenizer, validation[tier], translator, config) for tier in tiers}
    every = [outcome for tier in tiers for outcome in found[tier]]
    utility = sum(s.correct - cost_weight(r.task, config) * s.cost for r, s in every) / len(every)
    return {"utility": round(utility, 6), "tier": {tier: summary(found[tier]) for tier in tiers}}


def outcomes(policy, tokenizer, tasks, translator, config: Config) -> list:
    """Each task's rollout and score, every rank having evaluated its share. ToolOutage, as in training: answers
    without the tool would choose `best/`."""
    mine = evaluate(policy, tokenizer, distributed.share(tasks), translator, config, seed=distributed.rank())  # [8]
    found = distributed.gather(mine)
    failure_rate([rollout for rollout, _ in found], config.max_tool_errors)
    return found


def report(run: Run, base: Path, device: str, translator, config: Config, started: float) -> None:
    """Evaluate base and result on the same test items, print the closing table and write `report.json`."""
    distributed.barrier()  # best/ is written
    result, found = policy_directory(run.path), []
    for directory, max_price in ((base, 0.0), (result, config.max_price)):  # the base knows no prices
        policy = load_policy(directory, device, getattr(torch, config.dtype))
        tests = evaluation_tasks(config, "test", config.test_items, max_price)
        found.append({group: outcomes(*policy, tasks, translator, config) for group, tasks in tests.items()})
    if not run.is_writer:
        return
    compared = compare(*found)
    items = "/".join(str(n) for n in dict.fromkeys(group["n"] for group in compared.values()))
    print(f"\nbase against {result}, {items} test items a group, sampled at temperature 1")
    print(compare_table(compared, "base", "result"))
    seconds = time.perf_counter() - started
    best = json.loads((result / "state.json").read_text())
    more = {"translator": translator.meters} if hasattr(translator, "meters") else {}
    write_json(run.path / "report.json", {"groups": compared, "result": best, "seconds": round(seconds, 1), **more})
    print(f"written to {run.path}, {seconds / 60:.1f} minutes")


def main(argv: list[str] | None = None) -> None:
    config = parse(Config, __doc__, argv)
    if config.dry_run:
        with clear_errors():
            print(dry_run(config))
        return
    with clear_errors():
        device = distributed.start(config.device, config.dtype)
    try:
        with distributed.together():
            train(config, device)
    except ToolOutage as reason:
        sys.exit(f"stopped in an evaluation: {reason}; --resume goes on from the last checkpoint")
    except BudgetSpent as reason:
        sys.exit(f"stopped: {reason}; with a higher --max-cost, --resume goes on from the last checkpoint")


def train(config: Config, device: str) -> None:
    """The whole run, on this rank's device."""
    started = time.perf_counter()
    with clear_errors():
        tiers = config.tiers
        draw_tasks = training_tasks(config, tiers, config.seed)  # [1]
        validation = evaluation_tasks(config, "validation", config.validation_items, config.max_price)
        require(set(tiers) <= set(validation), f"--data {config.data}: no validation tasks in {', '.join(tiers)}")
        translator = open_translator(config)  # [3]
        base = policy_directory(config.model)
        run = Run(config.out or f"runs/{config.lang_tier}", config, config.resume)
        model, tokenizer = load_policy(run.last_checkpoint() if run.state else base, device)  # [2], in fp32
        model.checkpoint_activations = config.checkpoint_activations
        model = distributed.shard(model, getattr(torch, config.dtype))
        optimizer = adamw(model, config)
        if run.state:
            run.restore_optimizer(model, optimizer)
        run.open()
    print(introduction(config, draw_tasks(0, 1)[0], tokenizer))

    state = run.state or {"step": 0, "best": None}
    interrupted = []  # Ctrl-C lets the step finish and be saved; the second one is not caught
    signal.signal(signal.SIGINT, lambda *_: (interrupted.append(1), signal.signal(signal.SIGINT, signal.SIG_DFL)))
    progress = tqdm(
        range(state["step"], config.steps),
        initial=state["step"],
        total=config.steps,
        unit="step",
        disable=not run.is_writer,
    )
    for step in progress:
        clock, is_last = time.perf_counter(), step + 1 == config.steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        tasks = draw_tasks(step, config.prompts)
        try:
            metrics, logged = train_step(model, tokenizer, optimizer, tasks, translator, config, step)
        except ToolOutage as reason:
            run.save_checkpoint(model, optimizer, base, state)
            progress.close()
            sys.exit(f"stopped before step {step + 1}: {reason}; --resume goes on from there")
        if (step + 1) % config.eval_every == 0 or is_last:
            metrics["validation"] = validate(model, tokenizer, validation, tiers, translator, config)
            if state["best"] is None or metrics["validation"]["utility"] > state["best"]["utility"]:
                state["best"] = {"step": step + 1, **metrics["validation"]}
                run.save_best(model, base, state["best"])
        run.log_step(step + 1, metrics, logged, time.perf_counter() - clock, getattr(translator, "meters", None))
        state["step"] = step + 1
        is_stopping = distributed.any_rank(bool(interrupted))  # asked once: the signal may come at any line
        if (step + 1) % config.save_every == 0 or is_last or is_stopping:
            run.save_checkpoint(model, optimizer, base, state)
        if "validation" in metrics:
            tqdm.write(f"step {step + 1:4d}  validation  " + status(metrics["validation"]["tier"]))
        progress.set_postfix_str(status(metrics["tier"]) + ("" if metrics["updates"] else ", no usable group"))
        if is_stopping:
            progress.close()
            print(f"stopped after step {step + 1}; --resume with the same options goes on from there")
            sys.exit(130)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    report(run, base, device, translator, config, started)


def status(by_tier: dict[str, dict]) -> str:
    """Reward, tool rate and cost of each tier, for a line on the screen."""
    return ", ".join(
        f"{tier} {100 * m['accuracy']:.0f} tool {m['tool_rate']:.2f} cost {m['cost']:.2f}"
        for tier, m in by_tier.items()
    )


if __name__ == "__main__":
    main()
