"""gspo.py against numbers worked out by hand, and the invariants that its docstrings promise."""

import doctest
import math
from collections import defaultdict
from unittest.mock import MagicMock

import pytest
import torch
from torch.autograd import gradcheck

import gspo

LOG = math.log
WIDE = dict(clip_low=0.2, clip_high=0.3)


def tensor(*rows):
    """[rows, columns] in float64."""
    return torch.tensor(rows, dtype=torch.float64)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_batch(B=8, T=9, seed=0):
    """logps (a leaf), old_logps, sampled, advantages; rows of different length, some ratios beyond the clip range."""
    generator = torch.Generator().manual_seed(seed)
    logps = -torch.rand(B, T, generator=generator, dtype=torch.float64) * 3
    old = logps + torch.randn(B, T, generator=generator, dtype=torch.float64) * 0.4
    sampled = torch.rand(B, T, generator=generator) < torch.linspace(0.2, 1, B)[:, None]
    sampled[:, 0] = True
    return logps.requires_grad_(), old, sampled, torch.randn(B, generator=generator, dtype=torch.float64)


# --- the clipped objective --------------------------------------------------------------------------------------


def test_sequence_loss_and_gradient_by_hand():
    """Catches a clip that is not a min for both signs of the advantage, and a wrong power of 1/|y|."""
    ratios, advantages = (1.5, 1.5, 0.5, 0.5), vector(1, -1, 1, -1)
    # two sampled tokens per row share log s unevenly, an inserted one stands between them
    logps = tensor(*[[1.5 * LOG(s) - 1, -7.0, 0.5 * LOG(s) - 1] for s in ratios]).requires_grad_()
    old = tensor(*[[-1.0, -1.0, -1.0]] * 4)
    sampled = torch.tensor([[True, False, True]] * 4)
    loss, metrics = gspo.gspo_loss(logps, old, sampled, advantages, **WIDE)
    loss.backward()
    #                    high, A > 0   high, A < 0   low, A > 0   low, A < 0
    objective = torch.tensor([1.3, -1.5, 0.5, -0.8])
    slope = torch.tensor([0.0, -1.5, 0.5, 0.0])  # d objective / d log s: the clipped ones have none
    expected = -(slope / 4 / 2)[:, None] * sampled
    assert loss.item() == pytest.approx(-objective.mean().item(), abs=1e-7)
    assert torch.allclose(logps.grad, expected.double(), atol=1e-7)
    assert metrics["clip_fraction"].item() == pytest.approx(0.5)
    assert metrics["ratio_mean"].item() == pytest.approx(1.0)
    assert metrics["ratio_max"].item() == pytest.approx(1.5)


def test_token_loss_and_gradient_by_hand():
    """Catches a token ratio that is averaged over the row, and clipping that is decided a row at a time."""
    logps = tensor([LOG(1.5) - 1, LOG(0.5) - 1], [LOG(1.5) - 1, LOG(0.5) - 1]).requires_grad_()
    old = torch.full((2, 2), -1.0, dtype=torch.float64)
    loss, metrics = gspo.gspo_loss(logps, old, torch.ones(2, 2, dtype=torch.bool), vector(1, -1), **WIDE, ratio="token")
    loss.backward()
    assert loss.item() == pytest.approx(-((1.3 + 0.5) + (-1.5 - 0.8)) / 2)
    assert torch.allclose(logps.grad, -tensor([0.0, 0.5], [-1.5, 0.0]) / 2)
    assert metrics["clip_fraction"].item() == pytest.approx(0.5)


def test_the_clip_range_is_not_symmetric():
    """Catches clip_low and clip_high that are swapped, or one used for both."""
    sampled = torch.ones(1, 1, dtype=torch.bool)
    for clip_low, clip_high, objective in ((0.1, 0.4, (1.4, -0.9)), (0.4, 0.1, (1.1, -0.6))):
        for row, (ratio, advantage) in enumerate([(2, 1), (0.5, -1)]):
            loss, _ = gspo.gspo_loss(
                tensor([LOG(ratio)]), tensor([0.0]), sampled, vector(advantage), clip_low, clip_high
            )
            assert loss.item() == pytest.approx(-objective[row])


@pytest.mark.parametrize("ratio", gspo.RATIOS)
def test_gradient_equals_finite_differences(ratio):
    """Catches a detached term and a mask that lets gradient through."""
    logps, old, sampled, advantages = random_batch(B=4, T=5, seed=3)
    assert gradcheck(lambda x: gspo.gspo_loss(x, old, sampled, advantages, **WIDE, ratio=ratio)[0], logps)


@pytest.mark.parametrize("ratio", gspo.RATIOS)
@pytest.mark.parametrize("sizes", [[8], [1] * 8, [3, 1, 4]], ids=["1x8", "8x1", "ragged"])
def test_a_batch_is_the_share_weighted_sum_of_its_parts(ratio, sizes):
    """Catches a denominator that depends on the micro-batch: its own token count, or its padding."""
    logps, old, sampled, advantages = random_batch()
    whole, _ = gspo.gspo_loss(logps, old, sampled, advantages, **WIDE, ratio=ratio)
    whole.backward()
    expected, logps.grad = logps.grad, None
    total, first = 0.0, 0
    for size in sizes:
        rows = slice(first, first + size)
        T = 1 + max(int(row.nonzero().max()) for row in sampled[rows])  # each part is padded to a length of its own
        loss, _ = gspo.gspo_loss(
            logps[rows, :T], old[rows, :T], sampled[rows, :T], advantages[rows], **WIDE, ratio=ratio
        )
        (loss * size / 8).backward()
        total, first = total + loss.item() * size / 8, first + size
    assert total == pytest.approx(whole.item(), abs=1e-12)
    assert (logps.grad - expected).abs().max().item() <= 1e-12


@pytest.mark.parametrize("ratio", gspo.RATIOS)
def test_the_ratio_is_exactly_one_before_the_policy_moves(ratio):
    """Catches ratios that are computed through probabilities or otherwise lose the last bits, in fp32 too."""
    logps, _, sampled, advantages = random_batch(B=8, T=300)
    logps = logps.detach().float()
    loss, metrics = gspo.gspo_loss(logps, logps.clone(), sampled, advantages.float(), 3e-4, 4e-4, ratio)
    assert (metrics["ratio_mean"].item(), metrics["ratio_max"].item()) == (1.0, 1.0)
    assert (metrics["approx_kl"].item(), metrics["clip_fraction"].item()) == (0.0, 0.0)
    weight = 1 if ratio == "sequence" else sampled.sum(-1)
    assert loss.item() == pytest.approx(-(advantages * weight).mean().item(), rel=1e-5)


@pytest.mark.parametrize("ratio", gspo.RATIOS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_inserted_tokens_neither_get_gradient_nor_spoil_the_loss(ratio, poison):
    """Catches masking by multiplication: 0 * nan is nan, in the loss or in the gradient."""
    logps, old, sampled, advantages = random_batch()
    clean, clean_metrics = gspo.gspo_loss(logps, old, sampled, advantages, **WIDE, ratio=ratio)
    clean.backward()
    for which in ("new", "old", "both"):
        dirty = logps.detach().clone().masked_fill(~sampled, poison if which != "old" else -1).requires_grad_()
        dirty_old = old.masked_fill(~sampled, poison if which != "new" else -1)
        loss, metrics = gspo.gspo_loss(dirty, dirty_old, sampled, advantages, **WIDE, ratio=ratio)
        loss.backward()
        assert loss.item() == clean.item()
        assert torch.equal(dirty.grad, logps.grad)
        assert dirty.grad[~sampled].eq(0).all()
        assert {name: value.item() for name, value in metrics.items()} == {
            name: value.item() for name, value in clean_metrics.items()
        }


@pytest.mark.parametrize("ratio", gspo.RATIOS)
def test_every_sampled_token_of_a_row_with_a_signal_gets_gradient(ratio):
    """Catches a gradient of exactly zero behind healthy-looking metrics."""
    logps, _, sampled, advantages = random_batch()
    gspo.gspo_loss(logps, logps.detach(), sampled, advantages, **WIDE, ratio=ratio)[0].backward()
    assert (logps.grad[sampled] != 0).all()
    signs = torch.sign(logps.grad).sum(-1) / sampled.sum(-1)
    assert torch.equal(signs, -advantages.sign())


@pytest.mark.parametrize("ratio", gspo.RATIOS)
def test_a_row_without_sampled_tokens_contributes_nothing_but_counts(ratio):
    """Catches a division by |y| = 0, and a mean that leaves such rows out of its denominator."""
    logps, old, sampled, advantages = random_batch(B=3)
    sampled[1] = False
    loss, metrics = gspo.gspo_loss(logps, old, sampled, advantages, **WIDE, ratio=ratio)
    loss.backward()
    others, _ = gspo.gspo_loss(logps[::2], old[::2], sampled[::2], advantages[::2], **WIDE, ratio=ratio)
    assert loss.item() == pytest.approx(others.item() * 2 / 3, abs=1e-12)
    assert torch.isfinite(logps.grad).all() and logps.grad[1].eq(0).all()
    none = torch.zeros_like(sampled)
    empty, metrics = gspo.gspo_loss(logps, old, none, advantages, **WIDE, ratio=ratio)
    assert empty.item() == 0 and all(math.isfinite(value) for value in metrics.values())


def test_approx_kl_is_the_k3_estimator():
    """Catches a KL metric of the wrong sign or of the wrong ratio; k3 is never negative."""
    logps, old = tensor([LOG(0.5), LOG(0.9)]), tensor([LOG(0.25), LOG(0.9)])
    _, metrics = gspo.gspo_loss(logps, old, torch.ones(1, 2, dtype=torch.bool), vector(1), **WIDE, ratio="token")
    assert metrics["approx_kl"].item() == pytest.approx((2 - 1 - LOG(2)) / 2)


def test_metrics_carry_no_gradient():
    """Catches a metric that keeps the graph of a whole step alive."""
    logps, old, sampled, advantages = random_batch()
    _, metrics = gspo.gspo_loss(logps, old, sampled, advantages, **WIDE)
    assert not any(value.requires_grad for value in metrics.values())


def test_the_sequence_ratio_is_the_geometric_mean_of_the_token_ratios():
    """Catches an arithmetic mean of ratios, or a length that counts inserted tokens."""
    sampled = torch.tensor([[True, False, True, True]])
    log_s = gspo.log_ratio(tensor([LOG(2), 5.0, LOG(4), LOG(1)]), tensor([0.0] * 4), sampled)
    assert log_s.tolist() == [pytest.approx([LOG(2), 0.0, LOG(2), LOG(2)])]


def test_the_deciding_token_weighs_less_in_a_calling_rollout_under_sequence_only():
    """Catches a change of the weighting that the design notes: 1/25 against 1/2, and 1 : 1 under "token"."""
    sampled = torch.zeros(2, 60, dtype=torch.bool)
    sampled[0, :20] = sampled[0, 55:] = True  # a call, 35 inserted tokens, an answer: 25 sampled
    sampled[1, :2] = True  # answers at once: 2 sampled
    weights = {}
    for ratio in gspo.RATIOS:
        logps = torch.full((2, 60), -1.0, dtype=torch.float64, requires_grad=True)
        gspo.gspo_loss(logps, logps.detach(), sampled, vector(1, 1), **WIDE, ratio=ratio)[0].backward()
        weights[ratio] = (-2 * logps.grad[:, 0]).tolist()  # times B: the weight of a rollout's first token
    assert weights["sequence"] == pytest.approx([1 / 25, 1 / 2])
    assert weights["token"] == pytest.approx([1.0, 1.0])


# --- confidence and gate ----------------------------------------------------------------------------------------

CORRECT = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
USED = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])


def test_native_confidence_is_the_success_rate_of_tool_free_rollouts():
    """Catches tool rollouts that count as evidence, and 0/0 in a group without a tool-free one."""
    for used in (USED, USED.bool(), USED.float()):
        assert gspo.confidence(CORRECT, used, "native").tolist() == [0.5, 0.0, 0.5]


def test_group_confidence_is_the_success_rate_of_all_rollouts():
    """Catches a group estimator that looks at who used the tool."""
    assert gspo.confidence(CORRECT, USED, "group").tolist() == [0.75, 1.0, 0.25]


def test_probe_confidence_comes_from_the_probe_alone():
    """Catches a probe that is mixed with the group's own rollouts; its size need not be theirs."""
    probe = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert gspo.confidence(CORRECT, USED, "probe", probe).tolist() == pytest.approx([0.4, 0.0, 1.0])
    with pytest.raises(ValueError, match="probe"):
        gspo.confidence(CORRECT, USED, "probe")


@pytest.mark.parametrize("estimator, expected", [("native", [1.0, 0.0, 0.0]), ("group", [2 / 3, 1.0, 0.0])])
def test_confidence_ignores_rollouts_that_are_not_valid(estimator, expected):
    """Catches an engine failure that counts as a wrong answer, or stays in the denominator."""
    valid = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0]]).bool()
    correct = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]])
    assert gspo.confidence(correct, USED, estimator, valid=valid).tolist() == pytest.approx(expected)
    nobody = gspo.confidence(correct, USED, estimator, valid=torch.zeros(3, 4, dtype=torch.bool))
    assert nobody.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("estimator", gspo.ESTIMATORS)
def test_the_gate_opens_at_exactly_the_threshold(estimator):
    """Catches > for >=, and a confidence whose last bit differs from the fraction that the user wrote."""
    for G in range(1, 17):
        for right in range(G + 1):
            correct = torch.tensor([[1] * right + [0] * (G - right)])
            kappa = gspo.confidence(correct, torch.zeros(1, G), estimator, probe=correct)
            assert gspo.gate(kappa, "threshold", right / G).tolist() == [1.0], f"{right} of {G}"
            assert gspo.gate(kappa, "threshold", right / G + 1e-3).tolist() == [0.0]


def test_always_and_never_do_not_look_at_confidence():
    """Catches baselines that are gated after all."""
    kappa = torch.tensor([0.0, 0.5, 1.0])
    assert gspo.gate(kappa, "always", 0.9).tolist() == [1, 1, 1]
    assert gspo.gate(kappa, "never", 0.0).tolist() == [0, 0, 0]


# --- shaped reward ----------------------------------------------------------------------------------------------

COST = tensor([0.0, 1.0, 2.0, 1.0], [0.0, 1.0, 2.0, 1.0])
RIGHT = tensor([1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0])
ONE_OPEN = vector(1.0, 0.0)


def shaped(reward, cost, gates, cost_weight, penalty="multiply"):
    """The two halves of shaping one after the other, as a training step takes them."""
    return gspo.shaped_reward(reward, gspo.charge(cost, gates, cost_weight), penalty)


def test_a_charge_is_the_weighted_cost_where_the_gate_is_open():
    """Catches a gate that is read by column, and a cost that integer tensors round away."""
    assert torch.allclose(gspo.charge(COST, ONE_OPEN, 0.3), tensor([0.0, 0.3, 0.6, 0.3], [0.0] * 4))
    assert gspo.charge(torch.tensor([[0, 1, 2]]), torch.ones(1), 0.25).tolist() == [[0.0, 0.25, 0.5]]


def test_a_partial_reward_is_charged_its_share():
    """Catches shaping that takes any reward above 0 for a right answer: half a reward less a charge of 0.4."""
    reward, charges = tensor([0.5, 1.0]), tensor([0.4, 0.4])
    assert torch.allclose(gspo.shaped_reward(reward, charges), tensor([0.5 * 0.6, 0.6]))
    assert torch.allclose(gspo.shaped_reward(reward, charges, "subtract"), tensor([0.5 - 0.4, 0.6]))


def test_multiply_charges_right_answers_where_the_gate_is_open():
    """Catches a charge through a closed gate, or one for a wrong answer."""
    reward = shaped(RIGHT, COST, ONE_OPEN, 0.3)
    assert torch.allclose(reward, tensor([1.0, 0.7, 0.4, 0.0], [1.0, 1.0, 1.0, 0.0]))


def test_subtract_charges_every_answer_where_the_gate_is_open():
    """Catches a plain cost that spares wrong answers: it would not be the baseline of the literature."""
    reward = shaped(RIGHT, COST, ONE_OPEN, 0.3, "subtract")
    assert torch.allclose(reward, tensor([1.0, 0.7, 0.4, -0.3], [1.0, 1.0, 1.0, 0.0]))


@pytest.mark.parametrize("penalty", gspo.PENALTIES)
def test_the_cost_weight_may_differ_by_prompt(penalty):
    """Catches a [P] weight that is broadcast over the rollouts instead of over the prompts."""
    P = 4  # as many prompts as rollouts: a wrong broadcast raises nothing
    correct, cost, gate = torch.ones(P, P), torch.ones(P, P), torch.ones(P)
    weights = torch.tensor([0.0, 0.1, 0.2, 0.5])
    reward = shaped(correct, cost, gate, weights, penalty)
    for p in range(P):
        assert torch.equal(reward[p : p + 1], shaped(correct[:1], cost[:1], gate[:1], weights[p].item(), penalty))
    assert reward[:, 0].tolist() == pytest.approx([1.0, 0.9, 0.8, 0.5])


@pytest.mark.parametrize("cost", [0.0, 1.0, 3.4, 50.0, 1e9])
def test_a_right_answer_never_gets_less_than_a_wrong_one(cost):
    """Catches a missing cap: a costly right answer would be taught away from."""
    correct, spent = tensor([1.0, 0.0]), tensor([cost, 0.0])
    right, wrong = shaped(correct, spent, vector(1.0), 0.7)[0].tolist()
    assert 0 == wrong < right <= 1


def test_integer_correctness_is_accepted():
    """Catches a charge that is rounded to an integer because correctness is one."""
    correct = torch.tensor([[1, 0]])
    assert shaped(correct, torch.ones(1, 2), torch.ones(1), 0.25).tolist() == [[0.75, 0.0]]


# --- advantages -------------------------------------------------------------------------------------------------

REWARD = tensor([1.0, 0.0, 0.0, 1.0], [0.7, 0.7, 0.7, 0.7], [1.0, 0.6, 0.6, 0.6])


def test_group_scale_divides_by_the_groups_population_deviation():
    """Catches a sample deviation (divided by G - 1) and a deviation over the batch."""
    advantages = gspo.group_advantages(REWARD, "group")
    r3 = math.sqrt(3)
    assert torch.allclose(advantages, tensor([1.0, -1, -1, 1], [0.0] * 4, [r3, -1 / r3, -1 / r3, -1 / r3]))


def test_batch_scale_divides_by_the_deviation_of_all_rewards():
    """Catches a batch deviation of the centred rewards, which would be smaller."""
    advantages = gspo.group_advantages(REWARD, "batch")
    centred = tensor([0.5, -0.5, -0.5, 0.5], [0.0] * 4, [0.3, -0.1, -0.1, -0.1])
    assert torch.allclose(advantages, centred / REWARD.std(correction=0))


def test_scale_none_only_centres():
    """Catches a hidden scale."""
    advantages = gspo.group_advantages(REWARD, "none")
    assert torch.allclose(advantages, tensor([0.5, -0.5, -0.5, 0.5], [0.0] * 4, [0.3, -0.1, -0.1, -0.1]))


@pytest.mark.parametrize("scale", gspo.SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.7, 0.1 + 0.2, 1 / 3, 1 - 0.3 * 1.0483871, -123.456, 1e-20])
def test_a_group_of_equal_rewards_gets_exactly_zero(scale, dtype, value):
    """Catches float noise in the mean or the deviation that turns equal rewards into advantages of size 1."""
    for G in (1, 2, 3, 7, 8, 11):
        reward = torch.full((2, G), value, dtype=dtype)
        reward[1, 0] += 1  # a group with a signal beside it
        advantages = gspo.group_advantages(reward, scale)
        assert advantages[0].tolist() == [0.0] * G


@pytest.mark.parametrize("scale", gspo.SCALES)
def test_equal_rewards_that_were_computed_differently_make_no_signal_in_fp32(scale):
    """Catches equal charges that differ in their last bit by the order of the additions: in float64 0.1 + 0.2 > 0.3."""
    reward = 1 - 0.3 * torch.tensor([[0.1 + 0.2, 0.3, 0.15 * 2, 0.3 * 1.0]], dtype=torch.float32)
    assert gspo.group_advantages(reward, scale).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("scale", gspo.SCALES)
def test_rollouts_that_are_not_valid_get_zero_and_count_in_no_mean(scale):
    """Catches an engine failure that shifts the baseline, keeps a tied group alive, or gets an advantage itself."""
    reward = tensor([1.0, 0.0, 0.0, 5.0], [1.0, 1.0, 1.0, 0.0], [9.0, 1.0, 2.0, 3.0])
    valid = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    advantages = gspo.group_advantages(reward, scale, valid)
    assert advantages[~valid].eq(0).all()
    assert advantages[1:].eq(0).all()
    alone = gspo.group_advantages(tensor([1.0, 0.0, 0.0], [1.0, 1.0, 1.0]), scale)
    assert torch.allclose(advantages[:2, :3], alone)


@pytest.mark.parametrize("scale", gspo.SCALES)
def test_a_reward_of_nan_in_an_invalid_rollout_stays_there(scale):
    """Catches a mask by multiplication."""
    reward = tensor([1.0, 0.0, math.nan])
    valid = torch.tensor([[True, True, False]])
    assert torch.isfinite(gspo.group_advantages(reward, scale, valid)).all()


@pytest.mark.parametrize("scale", gspo.SCALES)
def test_advantages_of_a_group_sum_to_zero(scale):
    """Catches a baseline other than the group's mean."""
    reward = torch.rand(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert gspo.group_advantages(reward, scale).sum(-1).abs().max().item() < 1e-12


@pytest.mark.parametrize("penalty", gspo.PENALTIES)
@pytest.mark.parametrize("cost_weight", [0.01, 0.3, 0.9])
def test_with_seven_native_and_one_calling_answer_lambda_cancels(penalty, cost_weight):
    """Catches a change of the group scale that the design notes: +0.378 and -2.646 whatever lambda is."""
    correct, cost = torch.ones(1, 8, dtype=torch.float64), tensor([0.0] * 7 + [1.0])
    reward = shaped(correct, cost, vector(1.0), cost_weight, penalty)
    advantages = gspo.group_advantages(reward, "group")
    assert advantages[0].tolist() == pytest.approx([1 / math.sqrt(7)] * 7 + [-math.sqrt(7)])
    assert (round(advantages[0, 0].item(), 3), round(advantages[0, 7].item(), 3)) == (0.378, -2.646)


# --- reward and charge in one advantage -------------------------------------------------------------------------

MIXED = tensor([1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0])  # a wrong answer; none
CHARGED = tensor([0.0, 0.8, 0.8, 0.0], [0.0, 0.0, 0.0, 0.8])


def forms(form, penalty="subtract", scale="group", valid=None):
    return gspo.shaped_advantages(MIXED, gspo.shaped_reward(MIXED, CHARGED, penalty), form, scale, valid)


def test_the_joint_form_is_the_advantage_of_the_shaped_reward():
    """Catches a joint form that scales reward and charge apart."""
    assert torch.equal(forms("joint"), gspo.group_advantages(MIXED - CHARGED, "group"))


def test_the_decoupled_form_scales_the_reward_alone():
    """Catches a charge that is divided by a deviation, and a group of right answers whose reward makes a signal."""
    r3 = math.sqrt(3)
    expected = tensor([1 / r3 + 0.4, 1 / r3 - 0.4, -r3 - 0.4, 1 / r3 + 0.4], [0.2, 0.2, 0.2, -0.6])
    assert torch.allclose(forms("decoupled"), expected)
    assert torch.allclose(forms("decoupled", scale="none"), gspo.group_advantages(MIXED - CHARGED, "none"))


def test_the_decoupled_form_charges_what_the_penalty_charges():
    """Catches a wrong answer that is charged although `multiply` spares it."""
    r3 = math.sqrt(3)
    expected = tensor([1 / r3 + 0.2, 1 / r3 - 0.6, -r3 + 0.2, 1 / r3 + 0.2])
    assert torch.allclose(forms("decoupled", "multiply")[:1], expected)


def test_the_clipped_form_reverses_no_sign():
    """Catches a right answer that is punished beside a wrong one, a wrong one that is rewarded, and a group of right
    answers in which saving counts for nothing."""
    reward, charges = tensor([1.0, 0.0, 0.0, 0.0], [1.0] * 4), tensor([2.0, 0.0, 0.0, 2.0], [2.0, 0.0, 0.0, 0.0])
    shaped = gspo.shaped_reward(reward, charges, "subtract")
    joint, clipped = (gspo.shaped_advantages(reward, shaped, form) for form in ("joint", "clipped"))
    assert joint[0, 0] < 0 < joint[0, 1]
    assert clipped[0, :3].tolist() == [0.0] * 3 and clipped[0, 3] == joint[0, 3] < 0
    assert torch.equal(clipped[1], joint[1]) and clipped[1, 0] < 0


@pytest.mark.parametrize("form", gspo.FORMS)
def test_rollouts_that_are_not_valid_count_in_no_form(form):
    """Catches a charge of a failed call that shifts the mean of the charges."""
    valid = torch.tensor([[True, True, True, False], [True, True, True, False]])
    found = forms(form, valid=valid)
    assert found[:, 3].eq(0).all() and found[1].eq(0).all()
    alone = gspo.shaped_advantages(MIXED[:, :3], (MIXED - CHARGED)[:, :3], form)
    assert torch.allclose(found[:, :3], alone)


# --- against TRL's own loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", gspo.RATIOS)
def test_loss_and_gradient_are_those_of_trl(ratio):
    """Catches a difference from the reference in the ratio, the clipping of either sign, or the mean over rows."""
    trl = pytest.importorskip("trl", reason="the reference is an extra: pip install trl")
    logps, old, sampled, advantages = random_batch(B=32, T=12)
    old = logps.detach() + 3 * (old - logps).detach()  # sequence ratios are means: they leave the range less often
    level, loss_type = ("sequence", "grpo") if ratio == "sequence" else ("token", "dr_grpo")
    loss, metrics = gspo.gspo_loss(logps, old, sampled, advantages, **WIDE, ratio=ratio)
    (ours,) = torch.autograd.grad(loss, logps)
    theirs = trl_loss(trl.GRPOTrainer, logps, old, sampled, advantages, level, loss_type)
    (gradient,) = torch.autograd.grad(theirs, logps)
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-12)
    assert torch.allclose(ours, gradient, rtol=0, atol=1e-12)
    s = gspo.log_ratio(logps, old, sampled, ratio).exp()[:, 0]
    clipped = torch.where(advantages > 0, s > 1.3, s < 0.8)
    assert clipped[advantages > 0].any() and clipped[advantages < 0].any()  # the clip acts for both signs


def trl_loss(kind, logps, old, sampled, advantages, level: str, loss_type: str):
    """The loss of TRL's GRPOTrainer on these log-probs: its own method, with its model's forward replaced."""
    trainer = MagicMock(
        importance_sampling_level=level,
        loss_type=loss_type,
        epsilon_low=WIDE["clip_low"],
        epsilon_high=WIDE["clip_high"],
        max_completion_length=1,  # what dr_grpo divides by: we do not
        current_gradient_accumulation_steps=1,
        beta=0.0,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
    )
    trainer.args.delta = None
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (logps, torch.zeros_like(logps), None)
    trainer.accelerator.gather = trainer.accelerator.reduce = lambda value, **kwargs: value
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    none = torch.zeros(len(logps), 0, dtype=torch.long)
    inputs = {"prompt_ids": none, "prompt_mask": none, "completion_ids": sampled.long(), "advantages": advantages}
    inputs |= {"completion_mask": sampled.double(), "old_per_token_logps": old}
    return kind._compute_loss(trainer, None, inputs)


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: gspo.confidence(CORRECT, USED, "natve"),
        lambda: gspo.gate(torch.ones(2), "natve", 0.5),
        lambda: gspo.shaped_reward(RIGHT, COST, "natve"),
        lambda: gspo.group_advantages(REWARD, "natve"),
        lambda: gspo.shaped_advantages(REWARD, REWARD, "natve"),
        lambda: gspo.log_ratio(REWARD, REWARD, REWARD > 0, "natve"),
        lambda: gspo.gspo_loss(REWARD, REWARD, REWARD > 0, REWARD[:, 0], 0.2, 0.2, "natve"),
    ],
    ids=["confidence", "gate", "shaped_reward", "group_advantages", "shaped_advantages", "log_ratio", "gspo_loss"],
)
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(call):
    """Catches a misspelt option that silently falls through to a default."""
    with pytest.raises(ValueError, match="'natve', allowed: .*,"):
        call()


def test_the_examples_of_the_docstrings_are_what_happens():
    """Catches a worked number that the code no longer computes."""
    failed, attempted = doctest.testmod(gspo)
    assert failed == 0 and attempted > 0
