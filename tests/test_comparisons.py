"""What policies are compared by, on closed-form cases: measures, shares of prices, introspection, overlap, goals."""

import numpy as np
import pytest

from harness.tasks import training_tasks
from paper import comparisons, goals, introspection, measures, overlap, pareto, tables
from paper.policies import GROUPS, TRAINED, Policy
from tiny.languages import WORLD
from tiny.world import Item
from train import Config

# --- measures ---------------------------------------------------------------------------------------------------


def test_pareto_shares_are_the_lengths_of_the_upper_envelope():
    """Catches a share that is counted on the wrong side of a crossing, or for a policy that is never the best."""
    families = {"never": [(0.5, 0.0)], "some": [(0.75, 0.5)], "always": [(0.875, 1.0)], "worse": [(0.6, 0.8)]}
    # always beats some below (0.875 - 0.75) / 0.5, some beats never below (0.75 - 0.5) / 0.5
    assert measures.pareto_shares(families) == {"never": 0.5, "some": 0.25, "always": 0.25, "worse": 0.0}


def test_a_familys_share_is_that_of_all_its_members_and_ties_are_shared():
    """Catches members that compete with their own family, and equal policies that both take the whole interval."""
    shares = measures.pareto_shares({"a": [(0.5, 0.0), (1.0, 1.0)], "b": [(1.0, 1.0)]})
    assert shares == {"a": 0.75, "b": 0.25}


def test_shares_of_a_part_of_the_prices_are_relative_to_that_part():
    """Catches a share of [0, 1] that is reported for the prices at which a call can pay."""
    assert measures.pareto_shares({"never": [(0.5, 0.0)], "always": [(0.7, 1.0)]}, 0.4)["always"] == pytest.approx(0.5)


def test_shares_agree_with_a_grid_of_prices():
    """Catches an interval that is off for points in general position: crossings outside of the range among them."""
    points = np.random.default_rng(0).random((6, 2))
    shares = measures.pareto_shares({str(i): [tuple(point)] for i, point in enumerate(points.tolist())})
    prices = np.linspace(0, 1, 20001)
    winner = np.argmax([measures.utility(point, prices) for point in points], axis=0)
    assert sum(shares.values()) == pytest.approx(1)
    assert [shares[str(i)] for i in range(6)] == pytest.approx([(winner == i).mean() for i in range(6)], abs=2e-4)


def test_headroom():
    """Catches a swapped base and oracle, and a division by an oracle that is no better than the base."""
    assert measures.headroom_recovered(0.75, 0.5, 0.9) == pytest.approx(0.625)
    assert np.isnan(measures.headroom_recovered(0.75, 0.5, 0.5))
    assert measures.share_of(0.3, 0.6) == 0.5 and np.isnan(measures.share_of(0.3, 0))


def outcome(correct, cost, logp=None):
    rows = {"correct": correct, "used_tool": [float(c > 0) for c in cost], "cost": cost}
    rows |= {"logp": logp} if logp else {}
    return {name: np.array(values, dtype=float) for name, values in rows.items()}


NATIVE = outcome([1, 0, 0, 1], [0, 0, 0, 0], [-0.1, -3.0, -2.0, -0.2])
FORCED = outcome([0, 1, 0, 1], [1, 1, 2, 1])


def test_the_oracle_translates_only_where_that_turns_wrong_into_right():
    """Catches an oracle that pays for calls that change nothing, or that call where the native answer was right."""
    best = measures.oracle(NATIVE, FORCED)
    assert best["correct"].tolist() == [1, 1, 0, 1]
    assert best["cost"].tolist() == best["used_tool"].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("price, translated", [(0.1, [1]), (1.5, [])])
def test_the_threshold_is_the_best_one_at_its_price(price, translated):
    """Catches a router that forgets the price, or that translates the likely answers instead of the unlikely ones."""
    threshold = measures.tune_threshold(NATIVE, FORCED, price)
    assert np.flatnonzero(NATIVE["logp"] < threshold).tolist() == translated


def test_equally_likely_answers_are_routed_alike():
    """Catches a threshold that could only be reached by telling equal log-probs apart."""
    native, forced = outcome([1, 0], [0, 0], [-1.0, -1.0]), outcome([0, 1], [1, 1])
    assert measures.tune_threshold(native, forced, 0.1) == -np.inf


@pytest.mark.parametrize(
    "x, y, expected",
    [([1, 2, 3, 4], [1, 4, 9, 16], 1), ([1, 2, 3], [3, 2, 1], -1), ([1, 2, 2, 3], [1, 2, 3, 3], 3.75 / 4.5)],
)
def test_rank_correlation_with_ties(x, y, expected):
    """Catches ranks that depend on the order in which ties stand, and a correlation of values instead of ranks."""
    assert measures.spearman(np.array(x), np.array(y)) == pytest.approx(expected)
    assert measures.spearman(np.array(x)[::-1], np.array(y)[::-1]) == pytest.approx(expected)


def test_the_ceiling_is_one_without_noise_and_follows_the_noise():
    """Catches a ceiling that is taken from whole rows (always 1), or halves that are not stepped up to full length."""
    steps = np.repeat(np.arange(6)[:, None] / 5, 10, axis=1)
    assert measures.split_half_ceiling(steps, 1 - steps) == pytest.approx(1)
    rates = np.linspace(0.3, 0.7, 200)[:, None]
    items = (np.random.default_rng(0).random((200, 40)) < rates).astype(float)
    signal, noise = 0.4**2 / 12, 0.24 / 40  # variances of the rates, and of a mean of 40 items around its rate
    assert measures.reliability(items) == pytest.approx(signal / (signal + noise), abs=0.08)
    assert measures.split_half_ceiling(items, items) == pytest.approx(measures.reliability(items))


def test_the_bootstrap_draws_an_item_with_all_its_renderings():
    """Catches renderings that are resampled as if they were items of their own: the interval would be too narrow."""
    items = np.array(["a", "b"] * 50)
    values = np.array([0.0, 1.0] * 50)
    assert measures.bootstrap(lambda chosen: values[chosen].mean(), items, 200) == (0.0, 1.0)


def test_reward_and_cost_kept_are_ratios_to_the_unconstrained_policy():
    """Catches one seed that is measured against one seed and three against three, and a missing tier."""
    groups = np.array(GROUPS)
    columns = {"group": groups, "domain": groups, "language": groups, "item": groups}

    def policy(*seeds):  # (right, cost) in the three tiers, and something else elsewhere
        return Policy("", "", "", [outcome([*right, 0, 0, 0, 0], [*cost, 9, 9, 9, 9]) for right, cost in seeds])

    pool = {
        "base": policy(([0, 0, 1], [0, 0, 0])),
        "oracle": policy(([1, 1, 1], [1, 1, 0])),
        "unconstrained": policy(([1, 1, 1], [1, 1, 2]), ([1, 0, 1], [1, 1, 1])),
    }
    ours = policy(([1, 0, 1], [1, 0, 1]), ([1, 0, 1], [0, 0, 3]))
    row = comparisons.policy_summary(ours, pool, columns)
    assert row["headroom"] == [0.5, 0.0]
    assert row["reward_kept"] == [pytest.approx((2 / 3) / (5 / 6), abs=1e-4), 0.0]
    assert row["cost_kept"][0] == pytest.approx((2 / 3 + 1) / 2 / (7 / 6), abs=1e-4)
    single = comparisons.policy_summary(policy(([1, 0, 1], [1, 0, 1])), pool, columns)
    assert single["reward_kept"] == row["reward_kept"]
    assert row["groups"]["low"]["gain"] == [0.0, 0.0, 0.0]


def columns_of_tiers() -> dict[str, np.ndarray]:
    """Columns of one item in each group of languages."""
    groups = np.array(GROUPS)
    return {"group": groups, "domain": np.full(7, "math"), "language": groups, "item": groups}


def policy(name, *seeds, **more):
    """(right, cost) of its items in the three tiers with each seed; other groups have nothing to do with it."""
    rows = [outcome([*right, 0, 0, 0, 0], [*cost, 9, 9, 9, 9]) for right, cost in seeds]
    return Policy(name, name.rpartition("-")[0] or name, "", rows, **more)


def test_a_coin_lies_between_never_and_always():
    """Catches a coin that pays for the calls that it does not make."""
    assert measures.coin(0.25, (0.5, 0.0), (0.9, 1.2)) == pytest.approx((0.6, 0.3))
    free, native, forced = outcome([1, 1], [0, 2]), outcome([1, 0], [0, 0]), outcome([1, 1], [1, 2])
    assert pareto.coin_points([free], [native], [forced], np.array([True, True])) == [(0.75, 0.75)]
    assert pareto.coin_points([free], [native], [forced], np.array([False, True])) == [(1.0, 2.0)]


@pytest.mark.parametrize("cost, expected", [(0.0, 0.5), (0.25, 0.65), (0.5, 0.8), (0.75, 0.85), (1.0, 0.9), (2.0, 0.9)])
def test_at_equal_cost_a_family_may_mix_two_members(cost, expected):
    """Catches a line through a member that two others beat together, and one that is drawn beyond the last member."""
    members = [(0.9, 1.0), (0.5, 0.0), (0.6, 0.4), (0.8, 0.5)]
    assert measures.at_cost(members, cost) == pytest.approx(expected)
    assert np.isnan(measures.at_cost(members[:1], 0.5))


def test_the_deviation_is_over_all_choices_of_seeds():
    """Catches a deviation over equal numbers of seeds only, and a share that is a mean of shares."""
    families = {"a": [[(1.0, 1.0)], [(1.0, 0.5)]], "b": [[(0.5, 0.0)], [(0.9, 0.0)]]}
    # a against b: 0.5 / 1 and 0.1 / 1, 0.5 / 0.5 and 0.1 / 0.5; of the means 0.3 / 0.75
    assert pareto.share_of_prices(families, "a", 1.0) == [0.4, round(float(np.std([0.5, 0.1, 1.0, 0.2])), 4)]
    assert pareto.share_of_prices(families, "b", 1.0)[0] == 0.6


def test_the_gated_policy_is_compared_in_every_set_with_what_else_would_win():
    """Catches a null that is compared beside the gated policy instead of in its place, policies of different cost
    weights in one set, and a range of prices that is not the one it names."""
    pool = {
        "always translate": policy("always translate", ([1, 1, 1], [2, 2, 2])),
        "never translate": policy("never translate", ([0, 0, 0], [0, 0, 0])),
        "unconstrained": policy("unconstrained", ([1, 1, 1], [1, 1, 1])),
        "base": policy("base", ([0, 0, 0], [0, 0, 0])),
        "plain-0.5": policy("plain-0.5", ([1, 0, 0], [0, 0, 0])),
        "native-0.5": policy("native-0.5", ([1, 1, 0], [1, 0, 0])),
        "native-2": policy("native-2", ([1, 1, 1], [0, 0, 0])),
    }
    own = {
        "free": pool["native-0.5"].seeds,
        "forbidden": pool["never translate"].seeds,
        "forced": pool["always translate"].seeds,
    }
    found = comparisons.summarise(pool, {}, "native-0.5", columns_of_tiers(), own)["pareto"]
    assert list(found) == ["0.5", "2"]
    shares = {(len(e["set"]), e["highest price"], e["cut"]): e["shares"] for e in found["0.5"]}
    assert set(shares) == {(n, r, cut) for n in (2, 3, 4, 5) for r in pareto.RANGES for cut in pareto.CUTS}
    # gated: 2/3 at 1/3, against 1 at 1: better from 1/2 on; against 0 at 0: always. The coin: 1/3 at 2/3, never better
    alone = {"gated": [0.5, 0.0], "coin": [0.0, 0.0], "plain cost": [1 / 3, 0.0]}
    assert {name: pytest.approx(share, abs=1e-4) for name, share in alone.items()} == shares[2, 1.0, "trained"]
    assert shares[2, 0.5, "trained"]["gated"] == [0.0, 0.0]
    assert shares[2, 1.0, "low"]["gated"] == [1.0, 0.0]
    assert shares[5, 1.0, "trained"] == {"gated": [0.5, 0.0], "coin": [0.0, 0.0]}
    assert {e["shares"]["gated"][0] for e in found["2"] if e["cut"] == "trained"} == {1.0}
    assert all("coin" not in e["shares"] for e in found["2"])


def test_over_suppression_compares_at_the_same_weight_and_at_equal_cost():
    """Catches a family without its unconstrained end, and rates of another tier."""

    def curve(rate):
        of_xlow = {"mixed_reversed_rate": [rate, None], "reversed_rate": [0.75, 0.25]}
        return {"tier": {"xlow": of_xlow, "low": dict.fromkeys(of_xlow, [None, None])}}

    pool = {
        "unconstrained": policy("unconstrained", ([1, 1, 1], [1, 1, 1])),
        "plain-1": policy("plain-1", ([1, 1, 0], [0, 0, 0]), curves=[curve(0.5)]),
        "native-1": policy("native-1", ([1, 1, 1], [0, 0, 0.5]), curves=[curve(0.0)]),
        "joint-plain-1": policy("joint-plain-1", ([0, 0, 0], [0, 0, 0])),
    }
    found = comparisons.over_suppression(pool, {}, "native", columns_of_tiers())
    assert [(row["form"], row["tier"]) for row in found] == [("default", tier) for tier in TRAINED]
    xlow = found[2]
    assert xlow["plain"] == {"reward": 0.0, "cost": 0.0, "reversed": 0.5, "mixed_reversed": 0.5}
    assert xlow["gated"] == {"reward": 100.0, "cost": 0.5, "reversed": 0.5, "mixed_reversed": 0.0}
    assert xlow["difference"] == [100.0] * 3 and xlow["at equal cost"] == [50.0, 50.0, 50.0, 0.0]
    assert np.isnan(found[1]["plain"]["mixed_reversed"]) and found[1]["at equal cost"] == [0.0] * 4
    pool["plain-1"] = policy("plain-1", ([1, 1, 1], [0, 0, 1]))
    assert np.isnan(comparisons.over_suppression(pool, {}, "native", columns_of_tiers())[2]["at equal cost"][0])
    pool["forbidden"] = policy("forbidden", ([0, 0, 0], [0, 0, 0]))  # what a plain cost ends at that is too high
    assert comparisons.over_suppression(pool, {}, "native", columns_of_tiers())[2]["at equal cost"][0] == 50.0


def test_at_equal_cost_seeds_are_compared_with_their_own_and_last_checkpoints_with_last_ones():
    """Catches a deviation that leaves out the plain cost's own, a mean of per-seed frontiers under the name of that of
    the means, and last checkpoints that are compared with the best ones."""
    nothing = ([0, 0, 0], [0, 0, 0])
    pool = {
        "forbidden": policy("forbidden", nothing, nothing),
        "plain-1": policy("plain-1", ([1, 1, 1], [1, 1, 1]), ([0, 0, 0], [1, 1, 1])),
        "native-1": policy("native-1", ([1, 1, 1], [0.5, 0.5, 0.5]), ([0, 0, 0], [0.5, 0.5, 0.5])),
    }
    last = {
        "plain-1": policy("plain-1", ([1, 1, 1], [0.5, 0.5, 0.5])),
        "native-1": policy("native-1", ([1, 1, 1], [0.5, 0.5, 0.5])),
    }
    row = comparisons.over_suppression(pool, last, "native", columns_of_tiers())[0]
    # of the means 0.5 against half of 0.5; by seed 1 against 0.5, and 0 against 0
    assert row["at equal cost"] == [25.0, 25.0, 25.0, round(100 * float(np.std([0.5, 0.0], ddof=1)), 2)]
    assert row["at equal cost, last"] == [0.0] * 4
    pool["plain-2"] = policy("plain-2", nothing)  # has one seed, and no last checkpoint here
    row = comparisons.over_suppression(pool, last, "native", columns_of_tiers())[0]
    assert row["at equal cost"] == [25.0, 25.0, 25.0, 0.0] and "at equal cost, last" not in row


def test_the_interval_at_equal_cost_is_over_items_drawn_for_all_policies():
    """Catches items that are drawn anew for each policy: what is hard for all would widen the interval."""
    hard = np.arange(400) % 2.0
    mask, calls = np.ones(400, bool), np.full(400, 0.5)
    pool = {
        "forbidden": Policy("forbidden", "", "", [outcome(hard, 0 * calls)]),
        "unconstrained": Policy("unconstrained", "", "", [outcome(hard, 2 * calls)]),
        "native-1": Policy("native-1", "native", "", [outcome(hard, calls)]),
        "native-2": Policy("native-2", "native", "", [outcome(np.maximum(hard, np.arange(400) % 4 == 0), calls)]),
    }
    assert comparisons.at_equal_cost(pool, "native-1", "plain", mask) == [0.0] * 4
    points, low, high, deviation = comparisons.at_equal_cost(pool, "native-2", "plain", mask)
    width = 2 * 196 * np.sqrt(0.25 * 0.75 / 400)  # a quarter of the items is gained
    assert points == 25.0 and low < 25 < high and high - low == pytest.approx(width, rel=0.15) and deviation == 0


def test_what_is_said_of_clean_items_is_of_the_policies_that_saw_them():
    """Catches clean items whose comparison takes the coin or the router of other items, and a weight left out."""
    names = ("unconstrained", "plain-1", "native-1", "native-0.5")
    pool = {name: policy(name, ([1, 1, 0], [1, 0.5, 0])) for name in names}
    found = comparisons.on_clean(pool, pool, "native-1", columns_of_tiers())
    assert list(found["pareto"]) == ["0.5", "1"]
    assert {tuple(entry["set"]) for entry in found["pareto"]["1"]} == {pareto.SETS[0]}
    assert set(found["pareto"]["1"][0]["shares"]) == {"gated", "plain cost"}
    assert [row["at equal cost, last"] for row in found["over-suppression"]] == [[0.0] * 4] * 3
    assert comparisons.on_clean({}, {}, "native-1", columns_of_tiers()) == {
        "pareto": {},
        "over-suppression": [],
        "given up": [],
    }


def test_what_the_gate_gives_up_is_told_domain_by_domain():
    """Catches a domain that another one, or another tier, hides."""
    columns = {"group": np.repeat(["high", "low", "xlow"], 4), "domain": np.tile(["math", "math", "logic", "logic"], 3)}
    whole, right = np.ones(12), np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1.0])
    pool = {
        "unconstrained": Policy("unconstrained", "", "", [outcome(whole, whole)]),
        "native-1": Policy("native-1", "native", "", [outcome(right, right / 2)]),
    }
    found = {(row["tier"], row["domain"]): row for row in comparisons.given_up(pool, "native-1", columns)}
    assert len(found) == 6 and found["xlow", "math"]["difference"] == [-100.0] * 3
    assert found["xlow", "math"]["gated"] == {"reward": 0.0, "cost": 0.0}
    assert found["xlow", "logic"]["difference"] == [0.0] * 3 == found["low", "math"]["difference"]
    assert found["xlow", "logic"]["gated"] == {"reward": 100.0, "cost": 0.5}


def test_utilities_are_by_the_weight_of_training_and_the_price_of_judgement():
    """Catches the two exchanged, and weights in the order of their names."""
    pool = {name: policy(name, ([1, 1, 0], [0.5, 0.5, 0.5])) for name in ("plain-10", "native-2", "router", "plain-2")}
    found = comparisons.utilities(pool, "native", columns_of_tiers())
    assert {family: list(weights) for family, weights in found.items()} == {"native": ["2"], "plain": ["2", "10"]}
    assert found["plain"]["10"]["0.4"] == round(2 / 3 - 0.2, 4)


def test_a_call_that_goes_by_its_value_is_told_from_one_that_goes_by_ignorance():
    """Catches the correlations exchanged, and cells that mix domains or tiers."""
    languages = [f"{tier}-0{i}" for tier in ("low", "xlow") for i in (1, 2)]
    parts = {"language": np.repeat(languages, 2), "domain": np.tile(["math", "logic"], 4), "level": np.full(8, "easy")}
    right, gain = np.array([1, 1, 0, 0, 1, 1, 0, 0.0]), np.array([0, 1, 0, 1, 0, 1, 0, 0.0])
    outcomes = {"forbidden": [{"correct": right}], "forced": [{"correct": right + gain}]}
    found = introspection.follows(free=[{"call_p": gain}], **outcomes, columns=parts)
    assert [row["cells"] for row in found.values()] == [4, 8]
    assert [row["gain"] for row in found.values()] == [1.0, 1.0]
    x, y, z = np.random.default_rng(0).normal(size=(3, 50)) + np.random.default_rng(1).normal(size=50)
    freed = [values - np.polyval(np.polyfit(z, values, 1), z) for values in (x, y)]
    xy, xz, yz = (np.corrcoef(*pair)[0, 1] for pair in ((x, y), (x, z), (y, z)))
    assert introspection._partial(xy, xz, yz) == pytest.approx(np.corrcoef(*freed)[0, 1])
    assert found["language, domain and level"]["wrong alone"] < 0.5
    constant = introspection.follows(free=[{"call_p": np.ones(8)}], **outcomes, columns=parts)
    assert tables.follows_section(constant).splitlines()[-1] == "| language, domain and level | 8 | - | - | - | - |"
    found = introspection.follows(free=[{"call_p": 1 - right}], **outcomes, columns=parts)
    assert found["language, domain and level"]["wrong alone"] == 1.0


def test_the_parts_of_a_covariance_add_up_and_go_where_they_belong():
    """Catches a part that is counted twice, and means over cells of the coarser table."""
    rng = np.random.default_rng(0)
    outer, inner = np.repeat([0, 1], 6), np.repeat([0, 1, 2, 3], 3)
    x, y = rng.random((2, 12))
    parts = measures.covariance_parts(x, y, [outer, inner])
    assert parts.sum() == pytest.approx(np.cov(x, y, bias=True)[0, 1])
    assert measures.covariance_parts(outer + 0.0, y, [outer, inner])[1:] == pytest.approx([0, 0])
    within = x - measures._cell_means(x, inner)
    assert measures.covariance_parts(within, y, [outer, inner])[:2] == pytest.approx([0, 0])
    by_hand = np.mean([np.cov(x[inner == i], y[inner == i], bias=True)[0, 1] for i in range(4)])
    assert parts[2] == pytest.approx(by_hand)


def introspected(p, gain, language, level="easy"):
    """Outcomes of a policy that calls with probability p [N] where a call brings `gain` [N]; one seed."""
    zeros = np.zeros(len(p))
    columns = {"language": np.array(language), "level": np.full(len(p), level), "domain": np.full(len(p), "math")}
    columns["item"] = np.array([f"item {i}" for i in range(len(p))])
    free, forced = {"call_p": np.array(p)}, {"correct": np.array(gain, dtype=float)}
    return {"free": [free], "forbidden": [{"correct": zeros}], "forced": [forced], "columns": columns}


def test_the_lift_over_a_coin_is_that_of_the_language_or_of_the_item():
    """Catches a share that is given to the wrong table: a policy that only knows its languages would seem to know its
    items."""
    languages = ["low-01", "low-02"] * 20
    p, gain = [0.0, 1.0] * 20, [0, 1] * 20
    found = introspection.lift(**introspected(p, gain, languages), draws=50)
    assert found["lift"][0] == 25.0  # 0.5 points of reward for 0.5 calls, where a coin has 0.25
    assert [share[0] for share in found["shares"].values()] == [100.0, 0.0, 0.0, 0.0]
    found = introspection.lift(**introspected(p, gain, ["low-01"] * 20 + ["low-02"] * 20), draws=50)
    assert {name: share[0] for name, share in found["shares"].items()} == {
        "language": 0.0,
        "domain": 0.0,
        "level": 0.0,
        "item": 100.0,
    }
    low, high = found["lift"][1:]
    assert low < 25 <= high


def test_a_lift_that_may_be_nothing_has_no_shares():
    """Catches 229% of nothing in a table."""
    shares = dict.fromkeys(introspection.PARTS, [229.0, -1741.0, 588.0])
    lifts = {"base": {"lift": [0.1, -0.2, 0.3], "shares": shares}, "ours": {"lift": [9.0, 8.0, 10.0], "shares": shares}}
    *_, base, ours = tables.lift_section(lifts).splitlines()
    assert base == "| base | 0.1 [-0.2, 0.3] | - | - | - | - |"
    assert ours == "| ours | 9.0 [8.0, 10.0] |" + 4 * " 229 [-1741, 588] |"


def test_calibration_is_by_the_probability_of_the_call():
    """Catches bins of what happened, and a probability of 1 that falls out of the last bin."""
    found = measures.calibration(np.array([0.0, 0.04, 0.55, 1.0]), {"wrong": np.array([0, 1, 1, 1])}, bins=10)
    assert [(row["share"], row["wrong"]) for row in found] == [(0.5, 0.5), (0.25, 1.0), (0.25, 1.0)]
    assert [row["p"] for row in found] == pytest.approx([0.02, 0.55, 1.0])


def test_resampled_languages_widen_an_interval_where_languages_differ():
    """Catches an interval over items alone under the name of one over languages."""
    languages = np.array(["a", "b"] * 200)
    assert measures.languages_resampled(np.array([0.0, 1.0] * 200), languages) == (0.0, 1.0)
    values = np.random.default_rng(0).random(400)
    low, high = measures.languages_resampled(values, np.full(400, "a"))
    over_items = measures.bootstrap(lambda chosen: values[chosen].mean(), np.arange(400))
    assert (low, high) == pytest.approx(over_items, abs=0.01)


def sentences(*texts):
    """An item of logic from English sentences."""
    return Item("logic", "easy", tuple(sentence for text in texts for sentence in WORLD["en"].read(text)), "")


def test_items_that_differ_in_names_only_have_one_skeleton():
    """Catches two persons that become one, an order that is lost, and a thing that is taken for a name."""
    asked = "who is oldest?"
    first = overlap.skeleton(sentences("Ana is older than Ben.", asked))
    assert first == overlap.skeleton(sentences("Zoe is older than Ana.", asked))
    assert first != overlap.skeleton(sentences("Ana is older than Ana.", asked))
    assert first != overlap.skeleton(sentences("Ana is younger than Ben.", asked))
    kept = sentences("Ana has 3 coins."), sentences("Ana has 3 eggs."), sentences("Ana has 4 coins.")
    assert len({overlap.skeleton(item) for item in kept}) == 3
    shares = overlap.names_only([sentences("Kim is older than Leo.", asked), kept[0]], {first})
    assert shares == {"all": 0.5, "logic": 0.5}


def test_test_items_are_compared_with_what_training_draws():
    """Catches another stream of items than train.py's: the share would be that of items nobody trained on."""
    found = set()
    for seed in (0, 1):
        tasks = training_tasks(Config(), ["low"], seed)(0, 20)
        found |= {overlap.skeleton(sentences(task.question_en)) for task in tasks}
    assert overlap.training_skeletons(40, prompts=20, steps=1) == found


def group(gain, **more):
    return {"gain": [gain, gain - 1, gain + 1], "gain, languages resampled": [gain - 5, gain + 5], **more}


def row_of(gains, cost=0.5, **more):
    groups = {tier: group(gain) for tier, gain in zip((*TRAINED, "synthetic"), gains, strict=True)}
    return {"family": "native", "groups": groups | {"trained": {"cost": [cost, 0.0]}}, **more}


def test_goals_are_read_from_the_clean_items_and_from_the_last_checkpoint():
    """Catches a goal that is reached on items that defaults were chosen by, or by the best of the checkpoints."""
    kept = {"reward_kept": [0.99, 0.01], "cost_kept": [0.6, 0.02]}
    reversal = {"mixed_reversed": {"high": 0.0, "low": 0.004, "xlow": 0.01}}
    plain = {"reward": 50.0, "cost": 0.4, "mixed_reversed": 0.2}
    better = {"reward": 60.0, "cost": 0.5, "mixed_reversed": 0.0}
    entry = {"form": "default", "cost weight": "1", "tier": "xlow", "plain": plain, "gated": better}
    shares = {"gated": [0.96, 0.02], "coin": [0.6, 0.1]}
    summary = {
        "headline": "native-1",
        "at full reward": "native-1",
        "policies": {f"native-{weight:g}": row_of([9] * 4, 1 / weight) for weight in (0.5, 2, 4)}
        | {
            "native-1": row_of([99] * 4, 1.0, **reversal),
            "native-1, clean": row_of([9, 20, 30, 26]),
            "native-1, clean, last": row_of([0] * 4, **kept),
            "always translate": {"family": "", "groups": {tier: group(99) for tier in TRAINED}},
            "always translate, clean": {
                "family": "",
                "groups": {tier: group(10 * i) for i, tier in enumerate(TRAINED, 1)},
            },
            "plain-1": {"family": "plain", "mixed_reversed": {"high": 0.5, "low": float("nan"), "xlow": 0.2}},
        },
        "over-suppression": [{**entry, "difference": [10.0, 5.0, 15.0], "at equal cost": [1.0, -0.5, 2.5, 0.5]}],
        "pareto": {"1": [{"set": [*pareto.SETS[0]], "highest price": 1.0, "cut": "xlow", "shares": shares}]},
        "clean": {"pareto": {}, "over-suppression": []},
    }
    rows = {row[0]: row for row in goals.rows(summary)}
    verdicts = {name: row[-1] for name, row in rows.items()}
    assert verdicts == {
        "the cost follows lambda": "no",  # 0.25 is below half of 1
        "gain High": "yes",
        "gain Low": "yes",
        "gain XLow": "yes",
        "gain synthetic": "yes",
        "XLow, plain cost against gate, lambda 1": "yes",
        "XLow, plain cost against gate, lambda 1, at equal cost": "no",
        "full reward at": "yes",
        "Pareto share beside the unconstrained policy, XLow": "yes",
        "reversed in mixed groups, High / Low / XLow": "yes",
    }
    assert rows["gain Low"][3] == "+20.0 [+19.0, +21.0], languages resampled [+15.0, +25.0]; a call on every item +20.0"
    assert rows["reversed in mixed groups, High / Low / XLow"][3] == "0.0% / 0.4% / 1.0%; plain cost 50.0% / - / 20.0%"
    assert rows["Pareto share beside the unconstrained policy, XLow"][3] == "96 ± 2%, coin 60%"
    (of_test,) = summary["pareto"]["1"]
    summary["clean"]["pareto"] = {"0.5": [of_test], "1": [{**of_test, "shares": {"gated": [0.82, 0.1]}}]}
    ahead = {"at equal cost": [0.5, 0.1, 0.9, 0.4], "at equal cost, last": [0.5, -0.1, 1.1, 0.0]}
    summary["clean"]["over-suppression"] = [{**entry, **ahead, "cost weight": weight} for weight in ("1", "0.5")]
    summary["clean"]["over-suppression"][1] |= {"at equal cost": [9.0, 9.0, 9.0, 0.0]}
    rows = {row[0]: row for row in goals.rows(summary)}
    share, equal = rows["Pareto share beside the unconstrained policy, XLow"], rows["XLow, at equal cost, clean items"]
    assert share[3:] == ["82 ± 10%, test items 96%, coin 60%", "no"]
    assert equal[3:] == ["+0.5 [+0.1, +0.9] ± 0.4; of the last checkpoints +0.5 [-0.1, +1.1]", "no"]
    summary["policies"]["native-4"] = row_of([9] * 4, 0.6)
    assert goals.rows(summary)[0][-1] == "no"  # 0.6 is above the 0.5 of a lower cost weight
    summary["policies"]["native-2"] = row_of([9] * 4, 0.7)
    assert goals.rows(summary)[0][-1] == "yes"


def test_tiers_are_titled_and_codes_of_languages_are_not():
    """Catches a table that renames a language, or leaves a tier in the spelling of a flag."""
    assert tables.titled("held-out xlow") == "held-out XLow"
    assert tables.titled("low math") == "Low math" and tables.titled("low-01") == "low-01"


def test_at_full_reward_the_cheapest_member_is_chosen_on_validation_items():
    """Catches a choice that looks at test items or takes the dearest one, and none where none is enough."""

    def member(name, family, accuracy, cost):
        return Policy(name, family, "", [outcome([0], [9])], (accuracy, cost))

    pool = {"unconstrained": member("unconstrained", "unconstrained", 0.9, 1.0)}
    chosen = [("a-1", 0.89, 0.8), ("a-2", 0.888, 0.6), ("a-3", 0.87, 0.3), ("b-1", 0.7, 0.1), ("b-2", 0.8, 0.4)]
    pool |= {name: member(name, name[0], *point) for name, *point in chosen}
    assert comparisons.cheapest_at_full_reward(pool, "a") == "a-2"
    assert comparisons.cheapest_at_full_reward(pool, "b") == "b-2"
    assert comparisons.cheapest_at_full_reward(pool, "c") is None
