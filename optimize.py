"""From rollouts and their advantages to optimizer steps on the clipped objective.

    rollouts, advantages -> minibatches -> micro-batches -> log-probs [6] -> gspo_loss [7] -> AdamW

Off the reading path, though worth a look; called by train.py [9], whose Config `config` is. What it owes the algorithm:
a ratio is exactly 1 before the policy moves, and micro-batches change nothing but the order of a sum.

Shapes: P prompts, B rows, T time, S keys, N tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import distributed
import gspo
from logprob import token_logps
from model import Packed, Qwen3
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
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=is_cuda or None
    )


def plan(groups: list[int], lengths: list[int], budget: int) -> list[list[int]]:
    """Split rows into micro-batches of at most `budget` padded tokens: like beside like, a group's rows together.
    The prompt of a group that lies across a boundary is run twice.

    Row i is one of groups[i], whose rows share a prompt, and has lengths[i] tokens, the prompt's included.
    """
    longest = {}
    for group, length in zip(groups, lengths, strict=True):
        longest[group] = max(length, longest.get(group, 0))
    batches = []
    for i in sorted(range(len(lengths)), key=lambda i: (longest[groups[i]], groups[i])):
        if batches and (len(batches[-1]) + 1) * longest[groups[i]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def pack(rows: list[Sequence[int]], prompts: list[int | None], device) -> tuple[Tensor, Packed]:
    """The ids [1, N] of these rows laid end to end, and how they hang together: row b continues row prompts[b]."""
    lengths = torch.tensor([len(row) for row in rows], device=device)  # [B]
    shared = torch.tensor([0 if p is None else len(rows[p]) for p in prompts], device=device)
    starts = lengths.cumsum(0) - lengths
    prompt_starts = starts[torch.tensor([p or 0 for p in prompts], device=device)]
    before, own = (torch.arange(int(most), device=device) for most in (shared.max(), lengths.max()))
    is_before, is_own = before < shared[:, None], own < lengths[:, None]  # [B, S - T], [B, T]
    row_tokens = (starts[:, None] + own) * is_own
    key_tokens = torch.cat([(prompt_starts[:, None] + before) * is_before, row_tokens], 1)
    B, T = row_tokens.shape
    visible = torch.cat([is_before[:, None].expand(B, T, -1), (own <= own[:, None]).expand(B, T, T)], 2)[:, None]
    positions = (shared[:, None] + own)[is_own][None]
    ids = torch.tensor([[token for row in rows for token in row]], device=device)
    return ids, Packed(positions, row_tokens, key_tokens, visible, places=is_own.flatten().nonzero()[:, 0])


def policy_logps(model: Qwen3, rollouts: list[Rollout], temperature: float, valid_vocab: int):
    """The model's log-probs of what it sampled: (logps, entropies, sampled), each [B, T] over the ids after the prompt.

    Entries that were not sampled are 0. A prompt is run once for all rollouts that share it, and nothing is padded
    outside of attention. Hidden states are computed for all tokens, the head only for sampled ones.
    """
    device = model.embed_tokens.weight.device
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(r.prompt_ids for r in rollouts))}
    P, prompts = len(number), [number[r.prompt_ids] for r in rollouts]
    ids, packed = pack([*number, *(r.ids for r in rollouts)], [None] * P + prompts, device)
    B, T = len(rollouts), max(len(r.ids) for r in rollouts)
    sampled = torch.tensor([[*r.sampled, *[False] * (T - len(r.ids))] for r in rollouts], device=device)  # [B, T]
    ends = torch.tensor([len(prompt) for prompt in number], device=device).cumsum(0) - 1  # [P]: of each prompt
    own = packed.row_tokens[P:, :T]  # [B, T]: which of the N tokens
    predicting = torch.cat([ends[prompts][:, None], own[:, :-1]], 1)  # [B, T]: the one before
    place = sampled.nonzero(as_tuple=True)  # (row, t) of each sampled token
    hidden = model(ids, packed=packed)[0, predicting[place]]
    logps, entropy = token_logps(hidden, model.lm_head.weight, ids[0, own[place]], temperature, valid_vocab)
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
