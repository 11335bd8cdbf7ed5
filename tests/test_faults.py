"""The short form of bench/faults.py: faults at random, and nothing is lost."""

import pytest

from bench import faults


@pytest.mark.parametrize("part, count", [("texts", 300), ("models", 40), ("servers", 40), ("kills", 3)])
def test_of_many_faults_none_loses_anything(part, count):
    """Catches a fault of a kind that no other test thought of; the seed repeats it."""
    told, losses = faults.PARTS[part](count, seed=1)
    assert losses == 0 and told.startswith(str(count))


def test_a_run_through_kills_full_disks_and_a_failing_server_is_the_undisturbed_one():
    """Catches a pair of faults that do no harm one by one: a kill while a checkpoint is written on a full disk, say."""
    told, losses = faults.soak(steps=12, seed=3, faults=3)
    assert losses == 0 and told.startswith("12 steps")


def test_a_loss_would_be_counted(monkeypatch):
    """Catches a count of losses that is 0 whatever happens."""
    monkeypatch.setattr(faults, "parse_call", lambda text: 1 / 0)
    assert faults.texts(5, seed=1) == ("5 hostile texts", 5)
    monkeypatch.setattr(faults, "load_policy", lambda directory: 1 / 0)
    assert faults.models(5, seed=1)[1] == 5
    monkeypatch.setattr(faults.Libre, "translate", lambda *args: 1 / 0)
    assert 0 < faults.servers(15, seed=1)[1] < 15
