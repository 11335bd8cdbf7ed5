"""From rollouts and their advantages to optimizer steps on the clipped objective.

    rollouts, advantages -> minibatches -> micro-batches -> log-probs [6] -> gspo_loss [7] -> AdamW

Off the reading path, though worth a look; called by train.py [9], whose Config `config` is. What it owes the algorithm:
a ratio is exactly 1 before the policy moves, and micro-batches change nothing but the order of a sum.

Shapes: B rows, T time, N sampled tokens, C channels.
"""

import torch
from torch import Tensor

import distributed
import gspo
from logprob import token_logps
from model import Qwen3
from runs import update_metrics
from sampler import Rollout


def learning_rate(config, step: int) -> float:
    """That of step 0, 1, …: it rises linearly over the warm-up and falls linearly, towards 0, over the decay."""
    rise = (step + 1) / (config.warmup_steps + 1)
    fall = (config.steps - step) / max(1.0, config.decay * config.steps)
    return config.learning_rate * min(1.0, rise, fall)


def adamw(model: Qwen3, config) -> torch.optim.AdamW:
    """The optimizer, in fp32 and without weight decay."""
    is_cuda = model.embed_tokens.weight.is_cuda  # the fused step makes no temporary copies of all weights
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0,
                             fused=is_cuda or None)  # fmt: skip


def plan(lengths: list[int], budget: int) -> list[list[int]]:
    """Split rows into micro-batches of at most `budget` padded tokens, rows of like length together."""
    order, batches = sorted(range(len(lengths)), key=lambda i: lengths[i]), []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[i] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def policy_logps(model: Qwen3, rollouts: list[Rollout], temperature: float, valid_vocab: int):
    """The model's log-probs of what it sampled: (logps, entropies, sampled), each [B, T] over the ids after the prompt.

    Entries that were not sampled are 0. Hidden states are computed for all tokens, the head only for sampled ones.
    """
    device = model.embed_tokens.weight.device
    B, T = len(rollouts), max(len(r.ids) for r in rollouts)
    rows = [[*r.prompt_ids, *r.ids] for r in rollouts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    sampled = torch.tensor([[*r.sampled, *[False] * (T - len(r.ids))] for r in rollouts], device=device)  # [B, T]
    row, t = sampled.nonzero(as_tuple=True)  # [N] each
    at = torch.tensor([len(r.prompt_ids) for r in rollouts], device=device)[row] + t
    hidden = model(ids)[row, at - 1]  # [N, C]: the state before a token predicts it
    logps, entropy = token_logps(hidden, model.lm_head.weight, ids[row, at], temperature, valid_vocab)
    place = (row, t)
    return logps.new_zeros(B, T).index_put(place, logps), entropy.new_zeros(B, T).index_put(place, entropy), sampled


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
        minibatches.append(([[rows[i] for i in batch] for batch in plan(lengths, config.micro_tokens)], len(members)))
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
            record |= {"loss": loss.item() * share, "entropy": float(entropy.sum() / sampled.sum()),
                       "tokens": int(sampled.sum()), "mismatch": None}  # fmt: skip
            if not norms:  # same weights as the sampler had: what remains is the two computations' difference
                theirs = [torch.tensor(rollouts[i].logps, device=logps.device) for i in batch]
                theirs = torch.nn.utils.rnn.pad_sequence(theirs, batch_first=True)  # [B, T]
                record["mismatch"] = (logps.detach() - theirs)[sampled].abs().cpu()
            records.append(record if share else None)
        if batches:
            norms.append(distributed.clip_gradients(model, config.max_grad_norm or torch.inf))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    records = [record for record in distributed.gather(records) if record]
    return update_metrics(records, norms)
