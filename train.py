"""[9] Train a policy to call the translator where it helps: the whole experiment, one command.

    python train.py --lang-tier low

Each step follows the stages of the code base:

    draw tasks [1]
    sample a group of rollouts for each, with the model [2] and the tool [3, 4]
    score them [5]
    turn scores into confidence, gate, charge, reward and advantages [7]
    take optimizer steps on the clipped objective of the log-probs [6, 7]

At the end base and result are evaluated on the same items [8].

Everything random follows from the seed, the step's number and the rank, so a run that was killed goes on with --resume
to the same bits. Under torchrun each rank samples its share of the prompts and runs its share of the micro-batches
(harness/distributed.py). All else is computed by every rank from the same rollouts.

Left out: KL penalties, replay, asynchronous rollouts.
"""

import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import gspo
from eval import compare, evaluate, summary
from harness import distributed, guard, memory
from harness.explain import explain
from harness.forecast import dry_run, introduction
from harness.metrics import UpdateLog, logged_rows, step_metrics
from harness.options import (
    Alone,
    Amount,
    Count,
    Neutral,
    Positive,
    Share,
    TrainingOptions,
    Whole,
    clear_errors,
    parse,
    require,
)
from harness.readiness import readiness
from harness.replay import replay
from harness.rundir import Run, load_policy, policy_directory
from harness.tasks import check_prompts, cost_weight, evaluation_tasks, languages_of, training_tasks
from harness.viewer import closing_table
from harness.watch import Watch
from logprob import plan, policy_logps
from model import Qwen3
from reward import score
from sampler import Rollout, rollout
from translation.engines import NoMoreTranslations
from translation.service import open_translator


@dataclass(frozen=True)
class Config(TrainingOptions):
    """Options of train.py. The defaults are those of the tiny preset; docs/log.md says how they were chosen.

    A comment is the option's help. `Neutral` options decide no result, so they may differ when a run is resumed.
    """

    model: str = "tiny"  # the policy to begin with: a model directory
    out: Neutral[str] = ""  # run directory (default: runs/ and the tier)
    resume: Neutral[bool] = False  # go on with the run in --out
    lang_tier: Literal["high", "low", "xlow", "all"] = "all"  # languages to train on
    steps: Count = 280  # training steps
    prompts: Count = 64  # tasks per step
    group_size: Count = 8  # rollouts per task
    confidence: Literal["native", "group", "probe"] = "native"  # which rollouts tell how well the model does by itself
    probe_rollouts: Count = 4  # extra tool-free rollouts per task, for --confidence probe
    gate: Literal["threshold", "always", "never"] = "threshold"  # where calls are charged
    threshold: Share = 0.95  # confidence from which calls are charged (tau)
    penalty: Literal["multiply", "subtract"] = "subtract"  # how the charge lowers the reward
    cost_weight: Amount = 0.5  # what a call of mean length takes off a right answer (lambda), if a task has none
    advantage: Literal["joint", "decoupled", "clipped"] = "decoupled"  # how reward and charge make an advantage
    advantage_scale: Literal["group", "batch", "none"] = "group"  # what advantages are divided by
    ratio: Literal["sequence", "token"] = "sequence"  # importance ratio: of a whole rollout (GSPO), of a token (GRPO)
    clip_low: Positive = 0.2  # a ratio below 1 - clip_low is pushed no further down
    clip_high: Positive = 0.2  # a ratio above 1 + clip_high is pushed no further up
    minibatches: Count = 2  # optimizer steps on each step's rollouts; in the first of them every ratio is 1
    micro_tokens: Count = 16384  # most tokens in one forward: rows times the longest of them, prompt included
    checkpoint_activations: Neutral[bool] = False  # keep each layer's input only, and run it again in the backward
    learning_rate: Positive = 1e-3  # of AdamW, after the warm-up
    warmup_steps: Whole = 5  # steps over which the learning rate rises
    decay: Share = 0.5  # share of the steps, the last ones, over which the learning rate falls towards 0
    max_grad_norm: Positive = 1.0  # gradients are scaled down to this norm
    temperature: Positive = 1.0  # of sampling and of the loss
    seed: Whole = 0  # of the tasks and of the sampling
    eval_every: Count = 35  # steps between validations, which choose best/
    validation_items: Count = 400  # validation items in each training tier
    save_every: Neutral[Count] = 35  # steps between checkpoints
    max_tool_errors: Neutral[Share] = 0.5  # the run stops if the engine fails in more than this share of the calls
    test_items: Neutral[Count] = 500  # test items in each group of languages, for the closing table
    log_rollouts: Neutral[Whole] = 8  # rollouts of each step kept in rollouts.jsonl, whole groups
    explain: Neutral[Alone[str]] = ""  # print a group from prompt to gradient and stop; FILE:STEP:TASK: a logged one
    dry_run: Neutral[bool] = False  # print configuration, memory, plan and what is missing, and stop
    replay: Neutral[str] = ""  # show the numbers of each rollout of this bad-step file, and stop

    @property
    def directory(self) -> str:
        return self.out or f"runs/{self.lang_tier}"

    @property
    def tiers(self) -> list[str]:
        return ["high", "low", "xlow"] if self.lang_tier == "all" else [self.lang_tier]

    def check(self) -> None:
        super().check()
        require(self.prompts % self.minibatches == 0, "--prompts must be a multiple of --minibatches")


# --- one step -----------------------------------------------------------------------------------------------------


def train_step(model, tokenizer, optimizer, tasks, translator, config: Config, step, calls=None) -> tuple[dict, list]:
    """One step: sample, score, shape, update. Returns the metrics, and rows for rollouts.jsonl (`calls`: earlier ones).

    Raises ToolOutage before the policy has moved, Diverged before it moves by numbers that are not finite.
    """
    rollouts, probes = sample(model, tokenizer, tasks, translator, config, step)  # [4]
    guard.stop_at_outage(rollouts, config.max_tool_errors, calls)
    scores = [score(r, tokenizer, config.answer_format) for r in rollouts]  # [5]

    def grouped(values) -> Tensor:
        return torch.tensor(list(values)).view(len(tasks), -1)  # [P, G]

    correct = grouped(float(s.correct) for s in scores)
    reward = grouped(s.reward for s in scores)
    used_tool = grouped(s.used_tool for s in scores)
    cost = grouped(s.cost for s in scores)
    valid = grouped(not r.engine_failed for r in rollouts)
    probe = grouped(score(r, tokenizer, config.answer_format).correct for r in probes) if probes else None
    lambdas = torch.tensor([cost_weight(task, config) for task in tasks])  # [P]

    kappa = gspo.confidence(correct, used_tool, config.confidence, probe, valid)  # [7] [P]
    gates = gspo.gate(kappa, config.gate, config.threshold)  # [P]
    charges = gspo.charge(cost, gates, lambdas)  # [P, G]
    shaped = gspo.shaped_reward(reward, charges, config.penalty)
    advantages = gspo.shaped_advantages(reward, shaped, config.advantage, config.advantage_scale, valid)

    try:
        batch = (model, optimizer, rollouts, advantages.flatten(), config, tokenizer.size)
        updated = memory.within_memory(update, *batch)
        guard.stop_at_divergence(updated, model)
    except guard.Diverged as reason:
        reason.rows = logged_rows(rollouts, scores, advantages, kappa, gates, step + 1, len(rollouts))
        raise
    metrics = step_metrics(tasks, rollouts, scores, kappa, gates, shaped, advantages)
    logged = logged_rows(rollouts, scores, advantages, kappa, gates, step + 1, config.log_rollouts)
    return metrics | updated, logged


def sample(model, tokenizer, tasks, translator, config: Config, step: int) -> tuple[list[Rollout], list[Rollout]]:
    """The step's rollouts and, for --confidence probe, the probe's: group after group, each rank having sampled its
    share. The whole policy, in the dtype of the computation, is gathered once for both and let go when they are done.
    """
    policy = distributed.gathered(model, getattr(torch, config.dtype))

    def run(group_size: int, purpose: int, mode: str) -> list[Rollout]:
        rng = generator(config.seed, step, purpose, distributed.rank())
        mine, sampling = distributed.share(tasks), config.sampling(mode, config.temperature)
        return distributed.gather(rollout(policy, tokenizer, mine, group_size, translator, rng, sampling), group_size)

    with guard.finite_states(policy):
        rollouts = run(config.group_size, 0, "free")
        return rollouts, run(config.probe_rollouts, 1, "forbidden") if config.confidence == "probe" else []


def generator(seed: int, step: int, purpose: int, rank: int = 0) -> torch.Generator:
    """A random generator that depends on nothing but its arguments: this is what makes a run resumable."""
    # a prime spreads the seeds; purposes are 0 (rollouts) and 1 (probes), with room for six more; ranks lie above all
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 8 + purpose + (rank << 48))


# --- the update ---------------------------------------------------------------------------------------------------


def update(model: Qwen3, optimizer, rollouts: list[Rollout], advantages, config: Config, vocab, so_far=None) -> dict:
    """The optimizer steps on one batch of rollouts; returns means of what there is to log.

    Old log-probs come from the same forward over the same micro-batches that will be trained, never from the sampler:
    in the first minibatch they are the detached new ones, for the others they are computed before the first optimizer
    step. So every ratio is exactly 1 before the policy moves. An update that ran out of memory goes on with `so_far`.
    """

    def logps_of(batch: list[int]):
        return policy_logps(model, [rollouts[i] for i in batch], config.temperature, vocab)  # [6]

    minibatches, so_far = split(rollouts, advantages, config), so_far or memory.Progress()
    log = so_far.log = so_far.log or UpdateLog(rollouts)
    if not so_far.old:
        with torch.no_grad():
            old = [(batch, logps_of(batch)[0]) for batches in minibatches[1:] for batch, _ in batches]
        so_far.old = {i: row for batch, rows in old for i, row in zip(batch, rows, strict=True)}
    for number, batches in so_far.left(minibatches):
        for i, (batch, share) in enumerate(batches):
            logps, entropies, sampled = logps_of(batch)  # [B, T] each
            old_logps = so_far.old_logps(batch, logps.shape[1]) if number else logps.detach()
            A, clips = advantages[batch].to(logps.device), (config.clip_low, config.clip_high)
            loss, metrics = gspo.gspo_loss(logps, old_logps, sampled, A, *clips, config.ratio)  # [7]
            distributed.sum_gradients(model, now=i + 1 == len(batches))
            # share of the minibatch: how it is cut into micro-batches changes only a sum's order
            (loss * share).backward()
            log.micro_batch(batch, share, loss, metrics, logps, entropies, sampled)
        if batches:
            norm = distributed.clip_gradients(model, config.max_grad_norm)
            log.step(norm)  # Diverged, before the optimizer moves by numbers that are none
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return log.metrics()


def split(rollouts: list[Rollout], advantages: Tensor, config: Config) -> list[list[tuple[list[int], float]]]:
    """The minibatches of a step; each is a list of micro-batches: rollout numbers, and their share of the minibatch.

    Minibatches are whole groups. Rows with advantage 0 count in the denominator and are not run: their gradient is 0.
    Of several ranks each gets its own micro-batches; an empty one, where another rank has one more, runs some rollout
    at weight 0 (`distributed.deal` says what for).
    """
    size = config.prompts // config.minibatches * config.group_size
    minibatches = []
    for first in range(0, len(rollouts), size):
        members = range(first, min(first + size, len(rollouts)))
        rows = [i for i in members if advantages[i] != 0]
        lengths = [len(rollouts[i].prompt_ids) + len(rollouts[i].ids) for i in rows]
        planned = plan([i // config.group_size for i in rows], lengths, config.micro_tokens)
        mine = distributed.deal([[rows[i] for i in batch] for batch in planned])
        minibatches.append([(batch or [0], len(batch) / len(members)) for batch in mine])
    return minibatches


def adamw(model: Qwen3, config: Config) -> torch.optim.AdamW:
    """The optimizer, in fp32 and without weight decay."""
    fused = model.embed_tokens.weight.is_cuda or None  # the fused step makes no temporary copies of all weights
    trained, betas = distributed.trained(model).values(), (0.9, 0.95)
    return torch.optim.AdamW(trained, lr=config.learning_rate, betas=betas, weight_decay=0.0, fused=fused)


def learning_rate(config: Config, step: int) -> float:
    """That of step 0, 1, …: it rises linearly over the warm-up and falls linearly, towards 0, over the decay."""
    rise = (step + 1) / (config.warmup_steps + 1)
    fall = (config.steps - step) / max(1.0, config.decay * config.steps)
    return config.learning_rate * min(1.0, rise, fall)


# --- the run ------------------------------------------------------------------------------------------------------


def train(config: Config, device: str) -> None:
    """The whole run, on this rank's device."""
    started = time.perf_counter()
    with clear_errors():
        draw_tasks = training_tasks(config, config.tiers, config.seed)  # [1]
        validation = evaluation_tasks(config, "validation", config.validation_items)
        require(
            set(config.tiers) <= set(validation),
            f"--data {config.data}: no validation tasks in {', '.join(config.tiers)}",
        )
        translator = open_translator(config, languages_of(config))  # [3]
        base = policy_directory(config.model)
        run = Run(config.directory, config, config.resume)
        model, tokenizer = run.load_policy(base, device)  # [2], what is trained in fp32
        check_prompts(config, tokenizer)
        model.checkpoint_activations = config.checkpoint_activations
        model = distributed.shard(model, getattr(torch, config.dtype))
        optimizer = adamw(model, config)
        run.open(model, optimizer)
    print(introduction(config, draw_tasks(0, 1)[0], tokenizer, base))

    first, total, calls = run.state["step"], config.steps, []
    watch = Watch(run, config, tokenizer)
    with guard.interrupts() as asked_to_stop, run.until_divergence():
        for step in range(first, total):
            clock, done = time.perf_counter(), step + 1
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            tasks = draw_tasks(step, config.prompts)
            try:
                metrics, logged = train_step(model, tokenizer, optimizer, tasks, translator, config, step, calls)
            except guard.Outage as reason:
                run.save_checkpoint(model, optimizer, base)
                sys.exit(f"stopped before step {done}: {reason}; --resume goes on from there")
            if done % config.eval_every == 0 or done == total:
                metrics["validation"] = validate(model, tokenizer, validation, translator, config)  # [8]
                run.keep_best(model, base, done, metrics["validation"])
            seconds = time.perf_counter() - clock
            run.log_step(done, metrics, logged, seconds, translator)
            stopped_by = distributed.any_rank(sum(asked_to_stop))  # asked once: the signal may come at any line
            if done % config.save_every == 0 or done == total or stopped_by:
                run.save_checkpoint(model, optimizer, base)
            watch.step(done, metrics, seconds)
            if stopped_by:
                print(f"stopped after step {done}; --resume with the same options goes on from there")
                sys.exit(128 + stopped_by)
    with guard.stoppable(f"the run is complete; python eval.py --policy {base} --policy {run.path} makes the table"):
        report(run, base, device, translator, config, started)
        watch.end()


def validate(model, tokenizer, validation, translator, config: Config) -> dict:
    """Validation of the tiers in training: summaries by tier, and the accuracy over all items, which chooses `best/`.

    What calls cost is no part of that choice: lambda has done its work in training, in the unit of the advantage.
    """
    policy = distributed.gathered(model, getattr(torch, config.dtype))
    found = {tier: outcomes(policy, tokenizer, validation[tier], translator, config) for tier in config.tiers}
    correct = [s.correct for tier in config.tiers for _, s in found[tier]]
    accuracy = round(sum(correct) / len(correct), 6)
    return {"accuracy": accuracy, "tier": {tier: summary(found[tier]) for tier in config.tiers}}


def outcomes(policy, tokenizer, tasks, translator, config: Config) -> list:
    """Each task's rollout and score, every rank having evaluated its share. ToolOutage, as in training: else a
    validation without a working tool could choose `best/`."""
    with guard.finite_states(policy):
        mine = evaluate(policy, tokenizer, distributed.share(tasks), translator, config, seed=distributed.rank())  # [8]
    found = distributed.gather(mine)
    guard.stop_at_outage([rollout for rollout, _ in found], config.max_tool_errors)
    return found


def report(run: Run, base, device: str, translator, config: Config, started: float) -> None:
    """Evaluate base and result on the same test items, print the closing table and write `report.json`."""
    distributed.barrier()  # best/ is written
    result, found = policy_directory(run.path), []
    tests = evaluation_tasks(config, "test", config.test_items)
    for directory in (base, result):
        policy = load_policy(directory, device, getattr(torch, config.dtype))
        found.append({group: outcomes(*policy, tasks, translator, config) for group, tasks in tests.items()})
        del policy  # before the next one is read: there is no need of room for both
    compared = compare(*found)
    print(closing_table(compared, result))
    seconds = time.perf_counter() - started
    run.write_report(compared, result, translator, seconds)
    print(f"written to {run.path}, {seconds / 60:.1f} minutes")


def main(argv: list[str] | None = None) -> None:
    config = parse(Config, __doc__, argv)
    if config.dry_run or config.explain or config.replay:
        with clear_errors():
            if config.explain:
                print(explain(config, open_translator, generator))
            elif config.replay:
                print(replay(config, gspo.gspo_loss))
            else:
                print(dry_run(config), readiness(config, open_translator), sep="\n")
        return
    try:
        with guard.stoppable("no step was lost"):
            with clear_errors():
                device = distributed.start(config.device, config.dtype)
            with distributed.together(), guard.locked(config.directory):
                train(config, device)
    except guard.ToolOutage as reason:
        sys.exit(f"stopped in an evaluation: {reason}; --resume goes on from the last checkpoint")
    except (memory.TornUpdate, NoMoreTranslations) as reason:
        sys.exit(f"stopped: {reason}; --resume goes on from the last checkpoint")


if __name__ == "__main__":
    main()
