"""[7] Confidence-gated GSPO: the algorithm, as pure functions from values to values.

    correct, used_tool -> confidence -> gate
    cost, gate -> charge;   reward, charge -> shaped_reward -> shaped_advantages
    logps, old_logps -> log_ratio;   ratio, advantages -> gspo_loss

For each prompt a group of G rollouts is sampled. A translation costs something only where the model is confident, that
is, where it does well by itself: saving money must not suppress a call that is needed. What follows is group sequence
policy optimisation (GSPO, Zheng et al. 2025, arXiv 2507.18071). The advantage of a rollout is its reward relative to
its group; the importance ratio is that of the whole sequence, normalised by its length, and clipped.

The defaults are GSPO in ratio, scale and clipping. They differ from what was published in one thing: the reward is
divided by the group's deviation, the charge is not (`shaped_advantages`).

To try another reading of the paper, change a line here: no function knows about models, optimizers or files.

Left out: a KL term against a reference model, a value function, and anything that drops or re-weighs groups.

Symbols: c reward (`correct`, unless a fork says otherwise), u used_tool, kappa confidence, tau threshold, g gate, k
cost, lambda cost_weight, h charge, r shaped reward, A advantage, s ratio, y sampled tokens.
Shapes: P prompts, G rollouts per group, E extra probe rollouts, B rows, T time.
"""

import torch
from torch import Tensor

ESTIMATORS = ("native", "group", "probe")
GATES = ("threshold", "always", "never")
PENALTIES = ("multiply", "subtract")
FORMS = ("joint", "decoupled", "clipped")
SCALES = ("group", "batch", "none")
RATIOS = ("sequence", "token")
MAX_CHARGE = 0.99  # with "multiply" a right answer keeps a hundredth of its reward: it stays above a wrong one


def confidence(
    correct: Tensor, used_tool: Tensor, estimator: str, probe: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """How well the model does on a prompt by itself: kappa(x) in [0, 1].

        native: sum_i c_i (1 - u_i) / sum_i (1 - u_i)   the group's tool-free rollouts; 0 if it has none
        group:  mean_i c_i                              all of the group's rollouts
        probe:  mean_e c_e                              extra rollouts in which the tool was forbidden

    It is coarse: with a threshold of 0.95 and groups of 8, the gate opens where all of the tool-free rollouts are
    right, and one of them is enough.

    correct and used_tool [P, G] in {0, 1}; probe [P, E] in {0, 1}, for "probe" only; valid [P, G], false where the
    translator failed and the rollout is no evidence. Returns float kappa [P].
    """
    _one_of("estimator", estimator, ESTIMATORS)
    if estimator == "probe":
        if probe is None:
            raise ValueError("the probe estimator needs probe rollouts")
        return _float(probe).mean(-1)
    correct = _float(correct)
    evidence = torch.ones_like(correct) if valid is None else valid.to(correct.dtype)
    if estimator == "native":
        evidence = evidence * (1 - used_tool.to(correct.dtype))
    return (correct * evidence).sum(-1) / evidence.sum(-1).clamp(min=1)  # [P]


def gate(kappa: Tensor, rule: str, threshold: float) -> Tensor:
    """Where a call is charged, [P] -> [P]: 1, the gate is open and calls cost; 0, it is shut and they are free.

    threshold: g(x) = 1[kappa(x) >= tau]      where the model is confident
    always:    g(x) = 1                       everywhere: the plain cost of the literature
    never:     g(x) = 0                       nowhere: the unconstrained policy
    """
    _one_of("gate", rule, GATES)
    if rule == "threshold":
        return (kappa >= threshold).to(kappa.dtype)
    return torch.full_like(kappa, float(rule == "always"))


def charge(cost: Tensor, gates: Tensor, cost_weight: float | Tensor) -> Tensor:
    """What the calls of each rollout are charged: h_i = lambda k_i g(x).

    cost k [P, G], gates g [P], cost_weight (lambda) a number or [P]. Returns h [P, G], in units of a right answer.
    """
    cost = _float(cost)
    weight = torch.as_tensor(cost_weight, dtype=cost.dtype, device=cost.device).reshape(-1, 1)
    return weight * cost * gates[:, None]  # [P, G]


def shaped_reward(reward: Tensor, charges: Tensor, penalty: str = "multiply") -> Tensor:
    """What is optimised: the reward c, lowered by the charge h.

        multiply: r_i = c_i (1 - min(h_i, MAX_CHARGE))     a wrong answer is not charged
        subtract: r_i = c_i - h_i

    reward and charges [P, G]. Returns r [P, G].
    """
    _one_of("penalty", penalty, PENALTIES)
    reward = _float(reward)
    if penalty == "subtract":
        return reward - charges
    return reward * (1 - charges.clamp(max=MAX_CHARGE))


def group_advantages(reward: Tensor, scale: str = "group", valid: Tensor | None = None) -> Tensor:
    """Rewards relative to the group: A_i = (r_i - mean(r)) / scale, [P, G] -> [P, G].

    scale "group" is the group's population standard deviation (GSPO and GRPO), "batch" that of all rewards, "none" 1.
    A group whose rewards are all equal gets exactly 0, decided by comparing rewards and not by a small standard
    deviation. Rollouts that are not `valid` [P, G] get 0 and count in no mean.
    """
    _one_of("advantage scale", scale, SCALES)
    reward = _float(reward)
    valid = torch.ones_like(reward, dtype=torch.bool) if valid is None else valid.bool()
    highest = reward.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
    lowest = reward.masked_fill(~valid, torch.inf).amin(-1, keepdim=True)
    usable = valid & (highest > lowest)
    centred = (reward - _mean(reward, valid, dim=-1)) * usable
    if scale == "group":
        spread = _mean(centred.square(), valid, dim=-1).sqrt()
    elif scale == "batch":
        spread = _mean((reward - _mean(reward, valid)).square(), valid).sqrt()
    else:
        spread = torch.ones_like(reward)
    spread = torch.where(spread > 0, spread, 1.0)  # squares of tiny differences may underflow to 0
    return torch.where(usable, centred / spread, 0.0)


def shaped_advantages(
    reward: Tensor, shaped: Tensor, form: str, scale: str = "group", valid: Tensor | None = None
) -> Tensor:
    """What each rollout is reinforced with: how far it is above its group in reward c and in shaped reward r.

        joint:     A_i = (r_i - mean(r)) / std(r)                                      GRPO and GSPO, as published
        decoupled: A_i = (c_i - mean(c)) / std(c) - (h_i - mean(h)),   h = c - r       the charge keeps its unit
        clipped:   joint, but 0 where it has the opposite sign of c_i - mean(c)        in spirit AdaTIR's

    with the deviation that `scale` names. "decoupled" is close to GDPO (arXiv 2601.05242), which normalises each reward
    by itself. "clipped" is our reading of AdaTIR's clipped advantage shaping (arXiv 2601.14696): in a group that holds
    right and wrong answers no saving turns a right one into something to unlearn.

    reward and shaped [P, G], see `shaped_reward`. Returns A [P, G]; 0 for rollouts that are not `valid` [P, G].

    Note what the joint form does to a charge. With seven right answers without the tool and one with it, the deviation
    is that of the charges, so lambda cancels; it acts only through groups that also hold wrong answers.

    >>> right = torch.ones(1, 8)
    >>> for form, cost_weight in (("joint", 0.2), ("joint", 0.8), ("decoupled", 0.2), ("decoupled", 0.8)):
    ...     h = charge(torch.tensor([[0.0] * 7 + [1.0]]), torch.ones(1), cost_weight)
    ...     A = shaped_advantages(right, shaped_reward(right, h), form)[0]
    ...     print(f"{form:9} {cost_weight}: {A[0]:+.3f} without the call, {A[7]:+.3f} with it")
    joint     0.2: +0.378 without the call, -2.646 with it
    joint     0.8: +0.378 without the call, -2.646 with it
    decoupled 0.2: +0.025 without the call, -0.175 with it
    decoupled 0.8: +0.100 without the call, -0.700 with it
    """
    _one_of("advantage", form, FORMS)
    reward = _float(reward)
    by_reward = group_advantages(reward, scale, valid)
    if form == "decoupled":
        return by_reward - group_advantages(reward - shaped, "none", valid)
    joint = group_advantages(shaped, scale, valid)
    if form == "clipped":
        return torch.where(by_reward * joint < 0, 0.0, joint)
    return joint


def log_ratio(logps: Tensor, old_logps: Tensor, sampled: Tensor, ratio: str = "sequence") -> Tensor:
    """Log importance ratio of each token, [B, T] -> [B, T]; 0 where the policy did not draw the token.

    sequence: log s_i = (1/|y_i|) sum_t [log pi(y_t) - log pi_old(y_t)]      GSPO, eq. 7: one number per row
    token:    log w_t = log pi(y_t) - log pi_old(y_t)                        GRPO, arXiv 2402.03300
    """
    _one_of("ratio", ratio, RATIOS)
    difference = torch.where(sampled, logps - old_logps, 0.0)
    if ratio == "token":
        return difference
    mean = difference.sum(-1, keepdim=True) / sampled.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(sampled, mean, 0.0)


def gspo_loss(
    logps: Tensor,
    old_logps: Tensor,
    sampled: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    ratio: str = "sequence",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped objective to minimise, averaged over the rows, and what to log about it.

        sequence: loss = -(1/B) sum_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)
        token:    loss = -(1/B) sum_i sum_t min(w_t A_i, clip(w_t, 1 - clip_low, 1 + clip_high) A_i)

    over the tokens that the policy drew. "sequence" is GSPO, eq. 5; "token" is GRPO without its 1/|y_i|, as in Dr. GRPO
    (arXiv 2503.20783). The min holds for both signs of A: clipping only ever takes an incentive away. A row without
    sampled tokens contributes 0. The losses of the parts of a batch, each weighted by its share of the rows, add up to
    the loss of the batch.

    logps, old_logps float and sampled bool [B, T]; advantages [B]. The metrics are detached scalars: `ratio_mean`,
    `ratio_max`, `clip_fraction` (share of sampled tokens whose gradient is clipped away) and `approx_kl` (mean of
    s - 1 - log s over tokens: with "token" Schulman's k3, with "sequence" blind to changes that cancel in a row).

    Note what the 1/|y_i| in log s_i does. The token that decides weighs 1/18 in a rollout of 18 tokens that calls, and
    1/3 in one of three tokens that answers at once: an answer at once pushes it 6 times as hard. With "token" it weighs
    1 in both.

    >>> sampled = torch.arange(18) < torch.tensor([[18], [3]])
    >>> for ratio in RATIOS:
    ...     logps = torch.zeros(2, 18, requires_grad=True)
    ...     gspo_loss(logps, logps.detach(), sampled, torch.ones(2), 0.2, 0.2, ratio)[0].backward()
    ...     print(ratio, *(f"{-2 * grad:.2f}" for grad in logps.grad[:, 0]))  # -2: a mean over two rows is minimised
    sequence 0.06 0.33
    token 1.00 1.00
    """
    sampled = sampled.bool()
    log_s = log_ratio(logps, old_logps, sampled, ratio)
    s = log_s.exp()
    A = advantages[:, None]
    clipped = s.clamp(1 - clip_low, 1 + clip_high) * A
    objective = torch.where(sampled, torch.minimum(s * A, clipped), 0.0)  # [B, T]
    # every token of a row has the same sequence ratio: their mean is that one term
    terms = sampled.sum(-1).clamp(min=1) if ratio == "sequence" else 1
    loss = -(objective.sum(-1) / terms).mean()
    with torch.no_grad():
        count = sampled.sum().clamp(min=1)
        metrics = {
            "ratio_mean": torch.where(sampled, s, 0.0).sum() / count,
            "ratio_max": torch.where(sampled, s, 0.0).amax() if s.numel() else s.sum(),
            "clip_fraction": (sampled & (clipped < s * A)).sum() / count,
            "approx_kl": torch.where(sampled, s - 1 - log_s, 0.0).sum() / count,
        }
    return loss, metrics


def _mean(values: Tensor, valid: Tensor, dim: int | None = None) -> Tensor:
    """Mean over the valid entries, kept as a broadcastable dimension."""
    total, count = torch.where(valid, values, 0.0), valid.to(values.dtype)
    if dim is None:
        return total.sum() / count.sum().clamp(min=1)
    return total.sum(dim, keepdim=True) / count.sum(dim, keepdim=True).clamp(min=1)


def _float(values: Tensor) -> Tensor:
    return values if values.is_floating_point() else values.float()


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, allowed: {', '.join(allowed)}")
