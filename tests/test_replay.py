"""train.py --replay: what the update makes of each rollout of a step that was not finite."""

import json
import math
import re

import pytest
import torch
from helpers import base_directory, call_main, files_under, write_tasks

import gspo
import train
from data import load_tokenizer
from harness.replay import read_bad_step
from logprob import policy_logps
from reward import score


@pytest.fixture(scope="module")
def bad_step(tmp_path_factory):
    """A run that stopped in its third step, where the loss of every rollout of at least ten sampled tokens is NaN."""
    place = tmp_path_factory.mktemp("bad")
    data, out, loss_of = write_tasks(place / "tasks.jsonl"), place / "run", gspo.gspo_loss
    words = f"""--model {base_directory()} --data {data} --lang-tier low --prompts 4 --group-size 6 --save-every 1
        --eval-every 9 --validation-items 4 --max-new-tokens 100 --steps 9 --ratio token
        --out {out}""".split()

    def faulty(logps, old, sampled, advantages, *rest):
        loss, metrics = loss_of(logps, old, sampled, advantages, *rest)
        long = (sampled.sum(1) >= LONG).any() and (out / "step-000002").exists()
        return loss * float("nan") if long else loss, metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gspo, "gspo_loss", faulty)
        with pytest.raises(SystemExit, match="--replay shows which") as stop:
            call_main(train.main, *words)
    return out, next(out.glob("bad-step-*.jsonl")), stop.value.code


LONG = 4


def replayed(capsys, path, *words) -> list[str]:
    capsys.readouterr()
    call_main(train.main, "--replay", path, *words)
    return capsys.readouterr().out.splitlines()


def test_a_replay_shows_which_rollouts_are_not_finite_and_trains_nothing(bad_step, capsys, monkeypatch):
    """Catches a table that shows the mean of a step, from which nobody sees the rollout that was wrong."""
    out, path, _ = bad_step
    before, loss_of = files_under(out), gspo.gspo_loss
    step, rollouts, _ = read_bad_step(path)

    def faulty(logps, old, sampled, *rest):
        loss, metrics = loss_of(logps, old, sampled, *rest)
        return loss * float("nan") if sampled.sum() >= LONG else loss, metrics

    monkeypatch.setattr(gspo, "gspo_loss", faulty)
    lines = replayed(capsys, path)
    assert (
        lines[0]
        == f"step {step} of {out}, 24 rollouts, by the weights of {out}/step-{step - 1:06d} (those of this step)"
    )
    wrong = [number for number, line in enumerate(lines[2:26]) if "<- not finite: loss, gradient" in line]
    assert wrong == [i for i, r in enumerate(rollouts) if sum(r.sampled) >= LONG] and 0 < len(wrong) < 24
    assert lines[26] == f"{len(wrong)} of 24 rollouts are not finite" and lines[27].startswith("nothing was trained")
    assert files_under(out) == before


def test_the_numbers_of_a_replay_are_those_of_the_step(bad_step, capsys):
    """Catches weights of another step, another temperature, or a loss of another objective than the run's."""
    out, path, _ = bad_step
    step, rollouts, advantages = read_bad_step(path)
    lines = replayed(capsys, path, "--temperature", 0.5)  # the run's own options are what counts
    assert "0 of 24 rollouts are not finite" in lines[26]
    model, tokenizer = train.load_policy(out / f"step-{step - 1:06d}")
    for line, rollout, advantage in zip(lines[2:26], rollouts, advantages, strict=True):
        _, shown, logp, mismatch, entropy, loss, gradient = map(float, line.split()[:7])
        logps, _, sampled = policy_logps(model, [rollout], 1.0, tokenizer.size)
        assert (shown, logp) == pytest.approx((advantage, logps[sampled].mean().item()), abs=1e-3, rel=1e-3)
        assert mismatch < 1e-3 and entropy > 0  # as they were sampled: the weights are those of the step
        # every ratio is 1, so the loss is -advantage for each sampled token, and its gradient that of their log-probs
        assert loss == pytest.approx(-advantage * int(sampled.sum()), rel=2e-3, abs=1e-3)
        grads = torch.autograd.grad(logps[sampled].sum(), list(model.parameters()), allow_unused=True)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads if g is not None))
        assert gradient == pytest.approx(abs(advantage) * norm, rel=2e-3, abs=1e-4)


def test_rollouts_come_back_as_they_were(bad_step):
    """Catches a field that is lost on the way through the file."""
    _, path, _ = bad_step
    _, rollouts, _ = read_bad_step(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tokenizer = load_tokenizer(base_directory())
    assert [score(rollout, tokenizer).correct for rollout in rollouts] == [row["score"]["correct"] for row in rows]
    assert [score(rollout, tokenizer).cost for rollout in rollouts] == [row["score"]["cost"] for row in rows]


def test_a_number_that_was_not_finite_is_not_finite_again(bad_step, tmp_path, capsys):
    """Catches a null that is read as 0: the row that made the step bad would look innocent."""
    out, path, _ = bad_step
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[5]["advantage"], rows[7]["logps"][0] = None, None
    (tmp_path / "config.json").write_bytes((out / "config.json").read_bytes())
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = replayed(capsys, tmp_path / "bad.jsonl")
    assert [i for i, line in enumerate(lines[2:26]) if "<- not finite" in line] == [5, 7]
    assert "<- not finite: advantage, loss, gradient" in lines[7] and "<- not finite: mismatch" in lines[9]
    assert f"by the weights of {base_directory()} (2 steps before this one began)" in lines[0]


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda row: row.pop("ids"), "bad.jsonl:1: not a rollout"),
        (lambda row: row["ids"].append(1), "do not fit"),
        (lambda row: row.update(ids=[10**6] * len(row["ids"])), "an id is none of"),
        (lambda row: row.update(ids=[-1] * len(row["ids"])), "an id is none of"),
        (lambda row: row.update(sampled=[0] * len(row["ids"])), "do not fit"),
        (lambda row: row.update(advantage="x" * 10_000), "bad.jsonl:1"),
        (lambda row: row.update(step=9), "several steps"),
    ],
)
def test_a_file_that_is_no_bad_step_is_one_line(bad_step, tmp_path, capsys, change, says):
    """Catches a traceback from the depths of the model for a file that was cut, or of another run."""
    out, path, _ = bad_step
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    change(rows[0])
    (tmp_path / "config.json").write_bytes((out / "config.json").read_bytes())
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        call_main(train.main, "--replay", tmp_path / "bad.jsonl")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and re.search(says, said) and len(said) < 400
